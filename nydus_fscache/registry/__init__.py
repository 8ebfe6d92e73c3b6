"""The OCI distribution protocol: references, credentials, manifests, pulling."""
