"""Names the cffi extension modules, for which pyproject.toml has no field."""

import sys

from setuptools import setup

sys.path.insert(0, "csrc")  # one builder imports the other's declarations

setup(cffi_modules=[f"csrc/build_{name}.py:ffi" for name in ("codec", "core", "writer")])
