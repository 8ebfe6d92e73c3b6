"""A prefetch of all is begun again as long as something is missing, and only then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from nydus_fscache.fetch.completion import FIRST_PAUSE_S, LAST_PAUSE_S, Completion
from nydus_fscache.fetch.prefetch import Loadable, Prefetcher


@dataclass
class Object:
    present: int = 0
    complete: bool = False

    def bytes_present(self) -> int:
        return self.present


@dataclass(eq=False)
class Image:
    policy: str = "all"
    is_open: bool = True
    objects: list[Object] = field(default_factory=lambda: [Object()])
    name: str = "image"

    @property
    def on_record(self) -> dict[str, Any]:
        return {"policy": self.policy}


class Begun:
    def __init__(self) -> None:
        self.count = 0

    def resume(self, images: list[Image]) -> None:
        self.count += len(images)


def look(completion: Completion, image: Image, now: float) -> None:
    completion.look(cast(list[Loadable], [image]), now)


def made() -> tuple[Completion, Begun]:
    begun = Begun()
    return Completion(cast(Prefetcher, begun)), begun


def test_again_after_pauses_that_grow() -> None:
    completion, begun = made()
    image, attempts = Image(), []
    for now in range(3000):
        before = begun.count
        look(completion, image, float(now))
        if begun.count != before:
            attempts.append(now)
    pauses = [b - a for a, b in zip([0, *attempts], attempts, strict=False)]
    assert pauses[:4] == [20, 40, 80, 160]
    assert max(pauses) <= LAST_PAUSE_S
    image.objects[0].present = 1
    look(completion, image, 3000.0)
    count = begun.count
    look(completion, image, 3000.0 + FIRST_PAUSE_S)
    assert begun.count == count + 1, "something arrived: short pauses again"


def test_what_goes_on_is_left_alone() -> None:
    completion, begun = made()
    image = Image()
    for now in range(200):
        image.objects[0].present = now
        look(completion, image, float(now))
    assert begun.count == 0


@pytest.mark.parametrize(
    "image", [Image(policy="table"), Image(is_open=False), Image(objects=[Object(complete=True)])]
)
def test_what_needs_nothing_is_left_alone(image: Image) -> None:
    completion, begun = made()
    for now in range(200):
        look(completion, image, float(now))
    assert begun.count == 0
