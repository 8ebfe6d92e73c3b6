"""``mount.erofs.nydus``: options of mount(8) and fstab become words of ``nydus-fscache mount``."""

from __future__ import annotations

import pytest

from nydus_fscache.cli.mount_helper import main, options_of
from nydus_fscache.errors import UsageError


def test_options() -> None:
    given = ["rw,blob_dir=/a\\054b,x-systemd.automount", "plain_http,_netdev,prefetch=all"]
    assert options_of(given) == ["--blob-dir", "/a,b", "--plain-http", "--prefetch", "all"]
    assert options_of([]) == []
    for wrong in ("blob_dir", "blob_dir=", "plain_http=1", "subvol=x"):
        with pytest.raises(UsageError, match=wrong):
            options_of([wrong])
    assert options_of(["subvol=x,root=/r"], sloppy=True) == ["--root", "/r"]


def test_fake_mounts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["r.example/a:1", "/mnt", "-f", "-o", "backend=/b.json"]) == 0
    assert capsys.readouterr().out == "nydus-fscache mount --backend /b.json r.example/a:1 /mnt\n"
