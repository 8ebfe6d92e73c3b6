"""nydusd's control API, as nydus-snapshotter speaks it: documents, server, and one instance."""

from nydus_fscache import deferred as deferred  # before what the others import
