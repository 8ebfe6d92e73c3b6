"""Conversion of images: layers to blobs, bootstraps to one, manifests, indexes and caches."""
