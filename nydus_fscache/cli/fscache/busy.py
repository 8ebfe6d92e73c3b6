"""Who uses a mount that cannot be unmounted: the daemon has no right to look, and we have."""

from __future__ import annotations

from nydus_fscache.api.client import Client
from nydus_fscache.errors import DaemonError, MountpointError
from nydus_fscache.kernel import holders


def explained(error: MountpointError, client: Client, mountpoint: str = "") -> MountpointError:
    """The same with the processes that hold the file system, of one mountpoint or of any."""
    try:
        mounts = client.call("GET", "/v1/status")["mounts"]
    except DaemonError:
        return error
    found = [m for m in mounts if m["device"] and mountpoint in ("", m["mountpoint"])]
    told = [f"{m['mountpoint']}: {who}" for m in found for who in holders.users_of(m["device"])]
    new = [text for text in told if text.partition(": ")[2] not in str(error)]
    return MountpointError("; ".join([str(error), *new]), hint=error.hint)
