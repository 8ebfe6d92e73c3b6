"""The service: life, mount table, calls, dispatch, housekeeping."""

from nydus_fscache import deferred as deferred  # before what the others import
