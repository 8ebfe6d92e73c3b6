"""Names the cffi extension modules, for which pyproject.toml has no field."""

import sys

from setuptools import setup

sys.path.insert(0, "csrc")  # one builder imports the other's declarations

setup(cffi_modules=["csrc/build_codec.py:ffi", "csrc/build_core.py:ffi", "csrc/build_build.py:ffi"])
