"""Images in registries: references, credentials, manifests, and the bootstrap of a Nydus image."""

from nydus_fscache.oci.pull import PulledImage, pull_bootstrap
from nydus_fscache.oci.reference import Reference

__all__ = ["PulledImage", "Reference", "pull_bootstrap"]
