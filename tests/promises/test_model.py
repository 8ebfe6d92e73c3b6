"""Whatever is done in whatever order: mounts, ``status`` and every byte are as the model says.

A few hundred steps here; NYDUS_TEST_MODEL_STEPS=100000 for the long run, whose steps are counted
in the output (pytest -s).
"""

from __future__ import annotations

import os
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from model import (
    BACKEND,
    CACHE_DIR,
    DAEMON,
    INNER,
    MOUNTPOINT,
    OK,
    POINTS,
    TMPFS,
    USAGE,
    ImageFiles,
    Open,
    World,
    prepared,
    run,
)

STEPS = int(os.environ.get("NYDUS_TEST_MODEL_STEPS") or 300)
STEPS_EACH = 30
points = st.sampled_from(POINTS)

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no daemon can be tested"),
    pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="NO mkfs.ext4: no disk to fill"),
]


class Daemon(RuleBasedStateMachine):
    """No rule has a precondition: what commands at once end with is not decided by the data, and
    a rule for which nothing is there does nothing."""

    images: list[ImageFiles]
    disk: object
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.images, self.disk)  # type: ignore[arg-type]

    def teardown(self) -> None:
        try:
            self.world.check(every_byte=True)
        finally:
            self.world.close()
        if "NYDUS_TEST_MODEL_STEPS" in os.environ:
            print(f"{type(self).steps} steps", flush=True)

    def done(self) -> None:
        type(self).steps += 1
        self.world.check()

    # -- what users do -----------------------------------------------------------------------

    @rule(point=points, number=st.sampled_from((0, 0, 1, 1, 2, 3)))
    def mount(self, point: str, number: int) -> None:
        world, image = self.world, self.images[number]
        was_running = world.running
        code = world.mount_call(point, image)
        if world.stacks[point]:
            assert code == MOUNTPOINT, world.said
        elif world.full:
            assert code in (OK, CACHE_DIR, image.code, DAEMON), (code, world.said)
        else:
            assert code == image.code, (code, world.said, world.log())
        if code == OK:
            world.stacks[point] = [image]
        # a daemon that was started for a mount that failed ends with it
        world.running = was_running or code == OK
        self.done()

    @rule(point=points)
    def umount(self, point: str) -> None:
        world = self.world
        code = world.umount_call(point)
        if not world.running:
            assert code == DAEMON
        elif world.on_top(point) and not world.is_held(point):
            assert code == OK, world.said
            world.stacks[point].pop()
        else:
            assert code == MOUNTPOINT, world.said
        self.done()

    @rule()
    def stop(self) -> None:
        world = self.world
        code = world.stop_call()
        held = [p for p in world.ours() if world.is_held(p) or world.on_top(p) is None]
        if not world.running:
            assert code == DAEMON
        elif held or world.files:
            assert code == MOUNTPOINT, world.said
        else:
            assert code == OK, (world.said, world.log())
        for point in [p for p in world.ours() if p not in held] if world.running else []:
            world.stacks[point].pop()
        world.running = world.running and code != OK
        self.done()

    @rule(point=points)
    def prefetch(self, point: str) -> None:
        code = self.world.prefetch_call(point)
        if not self.world.running:
            assert code == DAEMON
        else:
            assert code == (OK if point in self.world.ours() else MOUNTPOINT), self.world.said
        self.done()

    @rule()
    def gc_and_login(self) -> None:
        assert self.world.gc_call() == (OK if self.world.running else DAEMON), self.world.said
        assert self.world.login_call() == (USAGE if self.world.running else DAEMON)
        self.done()

    @rule()
    def upgrade(self) -> None:
        if not self.world.running:
            return
        assert self.world.upgrade_call() == OK, (self.world.said, self.world.log())
        self.done()

    # -- what happens to it ------------------------------------------------------------------

    @rule(who=st.sampled_from(("service", "service", "keeper")))
    def kill(self, who: str) -> None:
        if not self.world.running:
            return
        if who == "service":
            self.world.kill_service()
        else:
            self.world.kill_keeper()
        self.done()

    @rule()
    def kill_both(self) -> None:
        world = self.world
        if not world.running or world.full or not world.is_plain():
            return
        had = bool(world.ours())
        world.kill_both()
        world.running = had  # without mounts there is nothing to be served again
        self.done()

    @rule()
    def full_disk(self) -> None:
        self.world.make_room() if self.world.full else self.world.fill()
        self.done()

    # -- what administrators and programs do --------------------------------------------------

    @rule(point=points)
    def umount_by_hand(self, point: str) -> None:
        world = self.world
        if not world.stacks[point] or point in world.inner:
            return
        files = [f for f in world.files if f.point == point]
        lazy = ["-l"] if files and world.on_top(point) else []
        run("umount", *lazy, world.base / point)
        world.stacks[point].pop()
        for file in files if lazy else []:
            file.point = None
        self.done()

    @rule(point=points)
    def mount_over(self, point: str) -> None:
        if len(self.world.stacks[point]) < 3:
            run("mount", "-t", "tmpfs", "over", self.world.base / point)
            self.world.stacks[point].append(TMPFS)
            self.done()

    @rule(point=points)
    def mount_inside(self, point: str) -> None:
        world = self.world
        if not world.on_top(point):
            return
        if point in world.inner:
            run("umount", world.base / point / INNER)
            world.inner.discard(point)
        else:
            run("mount", "-t", "tmpfs", "inside", world.base / point / INNER)
            world.inner.add(point)
        self.done()

    @rule(source=points, to=points)
    def move(self, source: str, to: str) -> None:
        world = self.world
        if world.stacks[to] or source in world.inner or len(world.stacks[source]) != 1:
            return
        run("mount", "--move", world.base / source, world.base / to)
        world.stacks[source], world.stacks[to] = [], world.stacks[source]
        for file in world.files:
            file.point = to if file.point == source else file.point
        self.done()

    @rule(point=points, name=st.sampled_from(("f0", "f3", "f7")))
    def open_file(self, point: str, name: str) -> None:
        image = self.world.on_top(point)
        if image and len(self.world.files) < 3:
            fd = os.open(self.world.base / point / name, os.O_RDONLY | os.O_CLOEXEC)
            self.world.files.append(Open(fd, point, image, name))
            self.done()

    @rule()
    def close_files(self) -> None:
        while self.world.files:
            os.close(self.world.files.pop().fd)
        time.sleep(0)
        self.done()

    # -- at once -----------------------------------------------------------------------------

    @rule(seed=st.integers(0, 1 << 30), count=st.integers(2, 3))
    def at_once(self, seed: int, count: int) -> None:
        world, dice = self.world, random.Random(seed)
        if world.full or not world.is_plain():
            return
        calls = [
            lambda: world.mount_call(dice.choice(POINTS), world.images[dice.choice((0, 1, 2, 3))]),
            lambda: world.mount_call(dice.choice(POINTS), world.images[dice.choice((0, 1))]),
            lambda: world.umount_call(dice.choice(POINTS)),
            world.stop_call,
            world.gc_call,
            lambda: world.prefetch_call(dice.choice(POINTS)),
        ]
        chosen = dice.choices(calls, k=count)
        with ThreadPoolExecutor(count) as pool:
            codes = list(pool.map(lambda call: call(), chosen))
        expected = {OK, MOUNTPOINT, DAEMON, BACKEND, 3}
        assert set(codes) <= expected, f"{codes}: {world.said}\n{world.log()}"
        world.believe_the_kernel()
        self.world.check(every_byte=True)
        type(self).steps += count


def test_the_model() -> None:
    long_run = "NYDUS_TEST_MODEL_STEPS" in os.environ
    with prepared() as (images, disk):
        Daemon.images, Daemon.disk, Daemon.steps = images, disk, 0
        run_state_machine_as_test(
            Daemon,
            settings=settings(
                max_examples=max(1, STEPS // STEPS_EACH),
                stateful_step_count=STEPS_EACH,
                deadline=None,
                derandomize=not long_run,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                print_blob=False,
            ),
        )
    print(f"{Daemon.steps} steps")
