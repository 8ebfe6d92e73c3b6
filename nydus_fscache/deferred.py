"""Large modules that others import and use late or never: loaded with the first use of a name.

A package of a process that is to be small imports this before all else.  ``inspect``:
``dataclasses`` takes it for classes without a docstring only; with ``ast`` and ``dis``.
``hashlib``: makes OpenSSL begin, 3 MiB, and nothing is verified before the first image.
``ipaddress``, ``pickle``: of branches of the standard library that are not ours.
"""

from __future__ import annotations

from rafs_v6.deferred import defer

NAMES = ("inspect", "hashlib", "ipaddress", "pickle")

for _name in NAMES:
    defer(_name)
