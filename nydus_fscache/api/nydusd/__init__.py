"""nydusd's control API, as nydus-snapshotter speaks it: documents, server, and one instance."""
