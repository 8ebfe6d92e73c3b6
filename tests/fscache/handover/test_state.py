"""What a successor reads is what was written, one line a binding."""

from __future__ import annotations

from pathlib import Path

from nydus_fscache.handover import state
from nydus_fscache.handover.state import State
from nydus_fscache.image.binding import Binding


def test_a_state_comes_back_one_line_a_binding(tmp_path: Path) -> None:
    bindings = [
        Binding(
            f"{n:064}", {"type": "localfs", "localfs": {"dir": "/a \"b\"\n"}}, "fanotify",
            {"fsid": "x"}, f"/mnt/{n}", "src", {"amplify": n}, {"number": n, "paths": ["/a"]},
            {"unique": n, "id": 3, "device": "0:4", "boot": "b"}, n == 1,
        )
        for n in range(3)
    ]  # fmt: skip
    path = tmp_path / "state.json"
    for written in (State(bindings, {"b": 7}, 99), State()):
        written.save(path)
        assert state.load(path) == written
        assert state.raw(path) == written.document()
        lines = path.read_text().splitlines()
        assert sum('"digest"' in line for line in lines) == len(written.bindings)
        assert all(line.count('"digest"') < 2 for line in lines)
