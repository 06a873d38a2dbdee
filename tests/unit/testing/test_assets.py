"""Proves that assets are found where they are and that a missing one is a clear line.

Works on made-up folders. Cannot see whether the fetched kernels are good: tests/system boots them.
"""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from hvmlite.testing import assets


def module(depends: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HVMLITE_ASSETS", str(tmp_path))
    boot = tmp_path / "debian" / "boot"
    boot.mkdir(parents=True)
    (boot / "vmlinuz-6.1.0-1-amd64").touch()
    (boot / "config-6.1.0-1-amd64").touch()
    (tmp_path / "debian" / "package").write_text("linux-image-6.1.0-1-amd64 6.1.1-1\n")
    drivers = tmp_path / "debian" / "lib/modules/6.1.0-1-amd64/kernel/drivers"
    drivers.mkdir(parents=True)
    (drivers / "xen-netfront.ko").write_bytes(module("net-helper,built_in"))
    (drivers / "net_helper.ko.xz").write_bytes(lzma.compress(module("base")))
    (drivers / "base.ko").write_bytes(module(""))
    (drivers / "base.ko.old").write_bytes(b"")
    return tmp_path


def test_kernel_and_config(folder: Path) -> None:
    assert assets.kernel() == folder / "debian/boot/vmlinuz-6.1.0-1-amd64"
    assert assets.config("debian") == folder / "debian/boot/config-6.1.0-1-amd64"


def test_package(folder: Path) -> None:
    assert assets.package() == "linux-image-6.1.0-1-amd64 6.1.1-1"


def test_missing_kernel(folder: Path) -> None:
    with pytest.raises(assets.AssetMissingError, match=r"^cloud kernel: .*run 'make setup'"):
        assets.kernel("cloud")
    with pytest.raises(
        assets.AssetMissingError, match="no kernel is called 'xyz': expected debian"
    ):
        assets.kernel("xyz")


def test_modules_come_in_load_order(folder: Path) -> None:
    found = assets.modules("debian", "xen-netfront", "base")
    assert list(found) == ["base", "net_helper", "xen_netfront"]
    assert found["net_helper"] == module("base")


def test_missing_module(folder: Path) -> None:
    with pytest.raises(
        assets.AssetMissingError, match="module xen-blkfront is not with the debian"
    ):
        assets.modules("debian", "xen-blkfront")


def test_module_that_depends_on_itself(folder: Path) -> None:
    drivers = folder / "debian" / "lib/modules/6.1.0-1-amd64/kernel/drivers"
    (drivers / "a.ko").write_bytes(module("b"))
    (drivers / "b.ko").write_bytes(module("a"))
    assert set(assets.modules("debian", "a")) == {"a", "b"}


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (module(""), ()),
        (module("a,b-c"), ("a", "b_c")),
        (b"softdepends=x\0", ()),
        (b"depends=unterminated", ()),
        (b"", ()),
    ],
)
def test_module_depends(data: bytes, names: tuple[str, ...]) -> None:
    assert assets.module_depends(data) == names


def test_busybox_missing_and_not_elf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "BUSYBOX", tmp_path / "busybox")
    with pytest.raises(assets.AssetMissingError, match="package busybox-static"):
        assets.busybox()
    (tmp_path / "busybox").write_bytes(b"#!/bin/sh\n")
    with pytest.raises(assets.AssetMissingError, match="not an ELF file"):
        assets.busybox()


def test_missing_lists_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "BUSYBOX", folder / "none")
    monkeypatch.setattr(assets, "GRUB_PVH", folder / "none")
    lines = assets.missing()
    assert [line.split()[0] for line in lines[:2]] == ["cloud", "backports"]
    assert [line.split(":")[0] for line in lines[2:4]] == list(assets.XEN_TOOLS)
    assert len(lines) == 6


def test_xen_tools(folder: Path) -> None:
    with pytest.raises(assets.AssetMissingError, match=r"^xenstored: Xen's own store .*make setup"):
        assets.xen_tool("xenstored")
    program = folder / "xen-tools" / "xenstored"
    program.parent.mkdir()
    program.write_bytes(b"")
    assert assets.xen_tool("xenstored") == program
    with pytest.raises(assets.AssetMissingError):
        assets.xen_tool("package")
