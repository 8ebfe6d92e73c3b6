"""Modules of others that are used late or never: loaded with the first use of a name."""

from __future__ import annotations

import sys
from _thread import allocate_lock
from importlib import import_module
from types import ModuleType
from typing import Any


def defer(name: str) -> None:
    """Unless it is loaded already.  Thread-safe; a failure is one of this use alone."""
    if name in sys.modules:
        return
    stand_in, lock = ModuleType(name), allocate_lock()

    def load(wanted: str) -> Any:
        with lock:
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]
                try:
                    import_module(name)
                except BaseException:
                    sys.modules[name] = stand_in
                    raise
        return getattr(sys.modules[name], wanted)

    stand_in.__dict__["__getattr__"] = load  # of a module, by PEP 562
    sys.modules[name] = stand_in
