"""Names the two cffi extension modules, for which pyproject.toml has no field."""

from setuptools import setup

setup(cffi_modules=["csrc/build_codec.py:ffi", "csrc/build_core.py:ffi"])
