"""Messages for containerd: the bytes are protobuf's, and no bytes of a stranger do harm."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_fscache.registry.manifest import Descriptor
from nydus_fscache.runtimes.containerd.pull import LABEL_LIMIT, _fitting, chain_id
from nydus_fscache.runtimes.containerd.wire import (
    mapping,
    message,
    messages_of,
    number_of,
    parse,
    text_of,
)

numbers = st.integers(1, (1 << 29) - 1)


def test_bytes_are_those_of_the_format() -> None:
    # the examples of the encoding page of protobuf.dev
    assert message((1, 150)) == bytes.fromhex("089601")
    assert message((2, "testing")) == bytes.fromhex("120774657374696e67")
    assert message((3, message((1, 150)))) == bytes.fromhex("1a03089601")
    assert message((1, 0), (2, ""), (3, b"")) == b""


@given(st.dictionaries(numbers, st.one_of(st.integers(1, (1 << 64) - 1), st.binary(min_size=1))))
def test_a_message_is_read_as_it_was_written(fields: dict[int, int | bytes]) -> None:
    assert parse(message(*fields.items())) == {n: [value] for n, value in fields.items()}


@given(st.binary(max_size=200))
def test_noise_is_an_error_or_a_message(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse(data)


@pytest.mark.parametrize("data", ["0a05", "08", "08ffffffffffffffffffff01", "0b", "09000000"])
def test_a_cut_message_is_refused(data: str) -> None:
    with pytest.raises(ValueError, match=r"number|field|wire"):
        parse(bytes.fromhex(data))


def test_what_is_missing_has_the_value_of_proto3() -> None:
    fields = parse(message(*mapping(5, {"b": "2", "a": "1"})))
    assert [text_of(parse(one), 1) for one in messages_of(fields, 5)] == ["a", "b"]
    assert (text_of(fields, 1), number_of(fields, 1)) == ("", 0)


def test_names_of_snapshots() -> None:
    one, two = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
    assert chain_id("", one) == one
    # printf '%s %s' ONE TWO | sha256sum
    assert chain_id(one, two).startswith("sha256:")
    assert chain_id(one, two) != chain_id(two, one)


def test_a_label_holds_as_many_layers_as_fit() -> None:
    layers = [Descriptor("", f"sha256:{n:064x}", 1, {}) for n in range(100)]
    key = "containerd.io/snapshot/cri.image-layers"
    value = _fitting(key, layers)
    assert len(key) + len(value) <= LABEL_LIMIT
    assert value.split(",") == [layer.digest for layer in layers[: len(value.split(","))]]
    assert len(key) + len(value) + len(layers[0].digest) + 1 > LABEL_LIMIT
