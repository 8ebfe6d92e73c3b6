"""Media types and annotations of images, Nydus images and what belongs to them.  Names only."""

from __future__ import annotations

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"

DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
DOCKER_SCHEMA_1 = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)

NYDUS_BLOB = "application/vnd.oci.image.layer.nydus.blob.v1"
NYDUS_MANIFEST = "application/vnd.nydus.image.manifest.v1+json"  # artifactType in an index
NYDUS_CONFIG = "application/vnd.nydus.image.config.v1+json"
NYDUS_TRACE = "application/vnd.nydus-fscache.trace.v1+json"  # our own artifact type
EMPTY = "application/vnd.oci.empty.v1+json"

INDEXES = (OCI_INDEX, DOCKER_LIST)
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
DOCKER = (DOCKER_LIST, DOCKER_MANIFEST)
TARS = (
    OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, DOCKER_LAYER, DOCKER_LAYER_GZIP,
    f"{DOCKER_LAYER}.zstd",
)  # fmt: skip
GZIPPED = (OCI_LAYER_GZIP, DOCKER_LAYER_GZIP)

SNAPSHOT = "containerd.io/snapshot/"
BLOB = f"{SNAPSHOT}nydus-blob"
BOOTSTRAP = f"{SNAPSHOT}nydus-bootstrap"
FS_VERSION = f"{SNAPSHOT}nydus-fs-version"
REF = f"{SNAPSHOT}nydus-ref"
SOURCE_DIGEST = f"{SNAPSHOT}nydus-source-digest"
SOURCE_REFERENCE = f"{SNAPSHOT}nydus-source-reference"
BUILDER_VERSION = f"{SNAPSHOT}nydus-builder-version"
CACHE_VERSION = f"{SNAPSHOT}nydus-cache-version"
EMPTY_LAYER = f"{SNAPSHOT}nydus-empty-layer"
COMMIT_BLOBS = f"{SNAPSHOT}nydus-commit-blobs"
PREFETCH_BLOB = f"{SNAPSHOT}nydus-separated-blob-with-prefetch-files"
TOC_DIGEST = f"{SNAPSHOT}stargz/toc.digest"  # asked for by Podman from 5.1 on
UNCOMPRESSED = "containerd.io/uncompressed"
ATTESTED = "vnd.docker.reference.digest"
IMAGE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
CREATED = "org.opencontainers.image.created"  # RFC 3339
