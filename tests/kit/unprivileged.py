"""Children that are not root, wherever the checkout lies.

They load all of our code first and give up their rights then: another user may not read a clone
in root's home, nor start the interpreter of its virtual environment.
"""

from __future__ import annotations

import sys

_DROP = """\
import importlib, os, pkgutil, sys
import nydus_fscache, rafs_v6
for package in (nydus_fscache, rafs_v6):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""


def as_nobody(code: str) -> list[str]:
    """The command of a child that runs ``code`` as uid 65534; arguments may follow."""
    return [sys.executable, "-c", _DROP + code]


CLI_AS_NOBODY = as_nobody(
    "from nydus_fscache.cli.fscache.main import main\nsys.exit(main(sys.argv[1:]))"
)
