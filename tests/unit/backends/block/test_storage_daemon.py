"""Proves images that QEMU's block layer serves, with the real qemu-storage-daemon: formats, overlays,
a remote image, what the user is told of a bad one, and that nothing is left behind.

Cannot see images made by other programs than qemu-img.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvmlite.backends.block import storage_daemon
from hvmlite.errors import UserError

from .conftest import FLUSH, OKAY, PATTERN, READ, SIZE, WRITE, Attach, Disk

pytestmark = pytest.mark.skipif(
    not (shutil.which("qemu-storage-daemon") and shutil.which("qemu-img")),
    reason="needs qemu-storage-daemon (qemu-system-common) and qemu-img (qemu-utils)",
)


def convert(image: Path, driver: str) -> Path:
    path = image.with_suffix(f".{driver}")
    subprocess.run(["qemu-img", "convert", "-O", driver, image, path], check=True)
    return path


def check(disk: Disk) -> None:
    """Reads, writes, reads again after another driver has connected."""
    disk.connect(persistent=True)
    own, refs = disk.pages(2)
    assert disk.ask(disk.request(READ, 1, 3, [(refs[0], 0, 7)])) == {1: (READ, OKAY)}
    assert own[0].read(0, 4096) == PATTERN[3 * 512 : 11 * 512]
    own[1].write(0, b"new" * 1365)
    assert disk.ask(disk.request(WRITE, 2, 64, [(refs[1], 0, 7)])) == {2: (WRITE, OKAY)}
    assert disk.ask(disk.request(FLUSH, 3, 0, [])) == {3: (FLUSH, OKAY)}
    disk.front.state(6)
    # Linux's driver waits too: what it wrote is flushed first.
    disk.front.wait(lambda: disk.front.backend_state() == 6)
    disk.connect()
    own, refs = disk.pages(1)
    assert disk.ask(disk.request(READ, 4, 64, [(refs[0], 0, 7)])) == {4: (READ, OKAY)}
    assert own[0].read(0, 4095) == b"new" * 1365


@pytest.mark.parametrize(
    ("name", "driver"), [("qcow2", "qcow2"), ("vhd", "vpc"), ("vmdk", "vmdk"), ("vdi", "vdi")]
)
def test_formats(attach: Attach, image: Path, name: str, driver: str) -> None:
    path = convert(image, driver)
    disk = attach(target=str(path), format=name)
    assert disk.front.backend("type") == "qdisk"
    check(disk)
    assert int(disk.front.backend("sectors") or 0) >= SIZE // 512
    disk.domain.destroy()
    raw = image.with_suffix(".back")
    subprocess.run(["qemu-img", "convert", "-O", "raw", path, raw], check=True)
    assert raw.read_bytes()[64 * 512 :][:4095] == b"new" * 1365


@pytest.mark.parametrize("driver", ["raw", "qcow2"])
def test_snapshot(attach: Attach, image: Path, driver: str) -> None:
    path = convert(image, driver)
    before = path.read_bytes()
    disk = attach(target=str(path), format=driver, snapshot=True)
    check(disk)
    disk.domain.destroy()
    assert path.read_bytes() == before


@pytest.fixture
def server(image: Path) -> Iterator[str]:
    """A remote image: an NBD server of the test's own."""
    path = image.with_name("socket")
    process = subprocess.Popen(
        [
            "qemu-storage-daemon",
            "--blockdev", f"driver=file,node-name=d,filename={image}",
            "--nbd-server", f"addr.type=unix,addr.path={path}",
            "--export", "type=nbd,id=e,node-name=d,name=there,writable=on",
            "--pidfile", str(image.with_name("pid")),
        ]
    )  # fmt: skip
    while not image.with_name("pid").exists():
        assert process.poll() is None
    yield f"nbd+unix:///there?socket={path}"
    process.kill()
    process.wait()


def test_remote(attach: Attach, server: str, image: Path) -> None:
    check(attach(target=server))
    assert image.read_bytes()[64 * 512 :][:4095] == b"new" * 1365


def test_nothing_is_left_behind(
    attach: Attach, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    fds = len(os.listdir("/proc/self/fd"))
    disk = attach(target=str(convert(image, "qcow2")), format="qcow2", snapshot=True)
    assert list(folder.iterdir()) == []
    assert disk.domain.detach("vbd", 51712)
    assert len(os.listdir("/proc/self/fd")) <= fds + 2
    disk.domain.destroy()


def test_what_cannot_be_opened(attach: Attach, image: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^disk .*disk.img: Image is not in qcow2 format$"):
        attach(format="qcow2")
    with pytest.raises(UserError, match="No such file or directory"):
        attach(target=str(tmp_path / "nothing"), format="qcow2")
    with pytest.raises(UserError, match="No such file or directory"):
        attach(target=f"nbd+unix:///x?socket={tmp_path}/nothing")
    with pytest.raises(UserError, match="no overlay could be made"):
        attach(target=f"nbd+unix:///x?socket={tmp_path}/nothing", snapshot=True)


def test_one_writer_at_a_time(attach: Attach, image: Path) -> None:
    """Also between ours and QEMU's."""
    path = convert(image, "qcow2")
    attach(target=str(path), format="qcow2")
    with pytest.raises(UserError, match="another process using the image"):
        attach(target=str(path), format="qcow2", vdev="xvdb")
    with pytest.raises(UserError, match="in use by another program"):
        attach(target=str(path), vdev="xvdb")
    attach()
    with pytest.raises(UserError, match="in use by another program"):
        attach(vdev="xvdb")
    with pytest.raises(UserError, match="is written by another program"):
        attach(vdev="xvdb", readonly=True)
    argv = ["qemu-img", "resize", "-f", "raw", image, "+1M"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert "lock" in done.stderr
    assert image.stat().st_size == SIZE


def test_readers_share(attach: Attach) -> None:
    attach(readonly=True)
    attach(readonly=True, vdev="xvdb")
    with pytest.raises(UserError, match="in use"):
        attach(vdev="xvdc")


@pytest.mark.parametrize("address", ["nbd://[::1", "nbd://[x]/disk", "nbd://host:70000/disk"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(UserError, match="disk nbd://"):
        storage_daemon._remote(address)


def test_what_was_answered_is_there_after_the_end(attach: Attach, tmp_path: Path) -> None:
    """Also what no flush came for: a guest that is destroyed is no power cut of the host's."""
    path = tmp_path / "late.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(SIZE)], check=True)
    disk = attach(target=str(path), format="qcow2")
    disk.connect()
    own, refs = disk.pages(1)
    own[0].write(0, b"late" * 1024)
    assert disk.ask(disk.request(WRITE, 1, 8, [(refs[0], 0, 7)])) == {1: (WRITE, OKAY)}
    disk.domain.destroy()
    raw = tmp_path / "late.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw], check=True)
    assert raw.read_bytes()[4096:8192] == b"late" * 1024
