"""Where the kernel lacks EROFS, doctor says what this distribution has for it."""

from __future__ import annotations

import platform

import pytest

from nydus_fscache.kernel import probe


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"ID": "ubuntu"}, f"linux-modules-extra-{platform.release()}"),
        ({"ID": "debian"}, "linux-image-cloud-amd64"),
        ({"ID": "almalinux", "ID_LIKE": "rhel centos fedora"}, "up to RHEL 9.3"),
        ({"ID": "flatcar"}, "fuse-tree"),
        ({"ID": "somebody's own"}, "CONFIG_EROFS_FS"),
        (None, "CONFIG_EROFS_FS"),
    ],
)
def test_remedy(
    told: dict[str, str] | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def os_release() -> dict[str, str]:
        if told is None:
            raise FileNotFoundError
        return told

    monkeypatch.setattr(platform, "freedesktop_os_release", os_release)
    monkeypatch.setattr(probe, "has_erofs", lambda: False)
    finding = probe.erofs_driver()
    assert not finding.ok
    assert said in finding.remedy
