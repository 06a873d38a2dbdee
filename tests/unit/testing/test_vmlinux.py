"""Proves that the ELF file inside a real bzImage is unpacked, once, and that a bad one is refused.

Skipped where no kernel was fetched. Cannot see whether the ELF file boots.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hvmlite.testing import assets
from hvmlite.testing.vmlinux import vmlinux
from hvmlite.toolstack.kernel import KernelError, load_kernel


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HVMLITE_ASSETS", str(tmp_path))
    folder = tmp_path / "debian" / "boot"
    folder.mkdir(parents=True)
    return folder


def test_real_kernel(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    try:
        bzimage = assets.kernel()
    except assets.AssetMissingError as missing:
        pytest.skip(str(missing))
    boot: Path = request.getfixturevalue("boot")
    (boot / bzimage.name).symlink_to(bzimage)
    elf = vmlinux()
    assert elf == boot.parent / "vmlinux"
    with load_kernel(elf) as plain, load_kernel(bzimage) as packed:
        assert plain.kind == "elf"
        assert plain.entry == packed.entry
        assert plain.segments == packed.segments
    elf.write_bytes(b"kept")
    assert vmlinux().read_bytes() == b"kept"
    assert sorted(path.name for path in elf.parent.iterdir()) == ["boot", "vmlinux"]


def test_bad_kernel(boot: Path) -> None:
    (boot / "vmlinuz-1").write_bytes(b"#!/bin/sh\n")
    with pytest.raises(KernelError, match="vmlinuz-1: is not a kernel but a script"):
        vmlinux()
    assert [path.name for path in boot.parent.iterdir()] == ["boot"]
