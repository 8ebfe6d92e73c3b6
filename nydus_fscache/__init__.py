"""A daemon that loads container images lazily inside the Linux kernel, and its tools."""

__version__ = "0.1.0"
