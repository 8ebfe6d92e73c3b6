"""An image that is served: which one, over which transport, where, and how.

The values that outlive the process (handover/state.py writes them).
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

from rafs_v6.values import dataclass

Address = dict[str, str]  # a transport's own: how it finds its image again; others look not into it


@dataclass(slots=True)
class Binding:
    """``mountpoint``: "" when the user mounts it."""

    digest: str  # sha256 of the bootstrap
    backend: dict[str, Any]
    transport: str
    address: Address
    mountpoint: str
    source: str  # what the user named: a path or an image reference
    tuning: dict[str, Any] = field(default_factory=dict)  # see Tuning
    # of the last prefetch, which a successor goes on with: its number, policy and paths
    prefetch: dict[str, Any] = field(default_factory=dict)
    # the kernel's name of the mount (mountinfo.MountId), as soon as there is one
    mount: dict[str, Any] = field(default_factory=dict)
    # complete, and in nobody's hands but the kernel's (Presenter.is_independent)
    independent: bool = False
