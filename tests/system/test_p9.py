"""Proves shared folders with Linux's own client: a tree goes in and out unharmed, the host and the
guest see each other's changes, a read-only share stays as it is, a detached one goes.

Cannot see other clients, nor caching modes other than Linux's default.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvmlite import DomainConfig
from hvmlite.testing import assets
from hvmlite.toolstack.devices.console import ChannelSpec, Connection
from hvmlite.toolstack.devices.p9 import P9Spec

from .guests import QUIET, Shell, shell_ramdisk

MOUNT = "mount -t 9p -o trans=xen,version=9p2000.L"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("p9")
    for name in ("rw", "ro"):
        (base / name).mkdir()
    (base / "ro" / "file").write_text("as it was\n")
    return base / "rw", base / "ro"


@pytest.fixture(scope="module")
def guest(
    linux: Path, folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shell]:
    modules = assets.modules("debian", "9pnet_xen", "9p")
    initrd = tmp_path_factory.mktemp("initrd") / "initrd.cpio"
    initrd.write_bytes(shell_ramdisk({f"lib/{name}.ko": data for name, data in modules.items()}))
    made = Shell(
        DomainConfig(
            kernel=linux,
            ramdisk=initrd,
            cmdline=QUIET,
            memory=256 << 20,
            devices=[P9Spec("rw", folders[0]), P9Spec("ro", folders[1], readonly=True)],
        )
    )
    messages: list[str] = []
    made.domain.on_message = messages.append
    try:
        made.ready()
        for name in modules:
            made.run(f"insmod /lib/{name}.ko")
        made.run(f"mkdir /rw /ro; {MOUNT} rw /rw && {MOUNT} ro /ro")
        yield made
        assert messages == []
    finally:
        made.close()


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Type, permissions and contents of all below a folder."""
    found = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        data = b""
        if stat.S_ISLNK(mode):
            data = os.fsencode(os.readlink(path))
        elif stat.S_ISREG(mode):
            data = path.read_bytes()
        found[str(path.relative_to(folder))] = (mode, data)
    return found


def test_a_tree_in_and_out(guest: Shell, folders: tuple[Path, Path], tmp_path: Path) -> None:
    chance = random.Random(5)
    source = tmp_path / "tree"
    source.mkdir()
    below = [source]
    for i in range(60):
        parent = chance.choice(below)
        if i % 5 == 0:
            path = parent / f"folder {i}"
            path.mkdir(mode=0o750)
            below.append(path)
        elif i % 7 == 0:
            (parent / f"link{i}").symlink_to(f"../nowhere/{i}")
        else:
            path = parent / f"Datei-ä{i}"
            path.write_bytes(chance.randbytes(chance.choice([0, 1, 4095, 4097, 70_000])))
            path.chmod(chance.choice([0o600, 0o644, 0o755]))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(source, "tree")
    (folders[0] / "in.tar").write_bytes(packed.getvalue())
    guest.run("cd /rw && tar xf in.tar && cd /", 60)
    assert tree(folders[0] / "tree") == tree(source)
    guest.run("cd /rw && tar cf out.tar tree && cd /", 60)
    with tarfile.open(folders[0] / "out.tar") as archive:
        archive.extractall(tmp_path / "back", filter="tar")
    assert tree(tmp_path / "back" / "tree") == tree(source)
    guest.run("mv /rw/tree /rw/moved && rm -r /rw/moved /rw/*.tar", 60)
    assert tree(folders[0]) == {}


def test_much_data_both_ways(guest: Shell, folders: tuple[Path, Path]) -> None:
    data = random.Random(1).randbytes(8 << 20)
    (folders[0] / "big").write_bytes(data)
    digest = hashlib.md5(data).hexdigest()
    assert guest.run("md5sum < /rw/big", 60).split()[0] == digest
    guest.run("cp /rw/big /rw/copy && sync", 60)
    assert (folders[0] / "copy").read_bytes() == data
    guest.run("rm /rw/big /rw/copy")


def test_host_and_guest_at_once(guest: Shell, folders: tuple[Path, Path]) -> None:
    rw = folders[0]
    guest.run("echo guest > /rw/log")
    with (rw / "log").open("a") as file:
        file.write("host\n")
    guest.run("echo again >> /rw/log")
    assert (rw / "log").read_text() == guest.run("cat /rw/log") == "guest\nhost\nagain\n"
    (rw / "log").rename(rw / "other")
    assert guest.attempt("cat /rw/log")[0] != 0
    assert guest.run("ls /rw") == "other\n"
    (rw / "other").unlink()
    # Eight writers at a time in the guest, one here.
    jobs = (
        "for j in 1 2 3 4 5 6 7 8; do (for i in 1 2 3 4 5 6; do echo $j$i > /rw/$j$i; done) & done"
    )
    guest.console.write(f"{jobs}; wait\n")
    for i in range(60):
        (rw / f"host{i}").write_text("x")
    guest.console.expect(r"\[status 0\]\n", 60)
    assert len(guest.run("ls /rw").split()) == 108
    assert all(
        (rw / f"{j}{i}").read_text() == f"{j}{i}\n" for j in range(1, 9) for i in range(1, 7)
    )
    guest.run("rm /rw/*")
    assert list(rw.iterdir()) == []


def test_links_lead_nowhere_else(guest: Shell, folders: tuple[Path, Path]) -> None:
    rw = folders[0]
    (rw.parent / "secret").write_text("secret")
    (rw / "out").symlink_to("..")
    (rw / "file").symlink_to("../secret")
    guest.run("mkdir -p /tmp/rw; touch /secret")
    assert guest.run("cat /rw/file") == ""
    guest.run("echo mine > /rw/file")
    assert guest.run("cat /secret") == "mine\n"
    assert (rw.parent / "secret").read_text() == "secret"
    assert guest.run("ls -d /rw/out/bin") == "/rw/out/bin\n"
    guest.run("rm /rw/out /rw/file")


def test_read_only(guest: Shell, folders: tuple[Path, Path]) -> None:
    assert guest.run("cat /ro/file") == "as it was\n"
    for command in (
        "echo x > /ro/file",
        "rm /ro/file",
        "mkdir /ro/x",
        "touch /ro/file",
        "mv /ro/file /ro/x",
    ):
        status, output = guest.attempt(command)
        assert status != 0 and "Read-only file system" in output
    assert tree(folders[1]) == {
        "file": (folders[1].joinpath("file").stat().st_mode, b"as it was\n")
    }


def test_attributes(guest: Shell, folders: tuple[Path, Path]) -> None:
    guest.run(
        "touch -d '2001-02-03 04:05:06' /rw/a; chmod 4711 /rw/a; ln /rw/a /rw/b; truncate -s 5 /rw/b"
    )
    status = (folders[0] / "a").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_nlink, status.st_size) == (0o711, 2, 5)
    assert guest.run("df /rw | tail -n 1").split()[0] == "rw"
    guest.run(
        "mkfifo /rw/fifo; (echo through > /rw/fifo &) ; cat /rw/fifo; rm /rw/fifo /rw/a /rw/b"
    )
    assert guest.attempt("mknod /rw/null c 1 3")[0] != 0


def test_detach_and_attach(guest: Shell, folders: tuple[Path, Path]) -> None:
    grants = guest.call(lambda: len(guest.domain.incarnation.domain.grants.pins))
    extra = folders[0].parent / "extra"
    extra.mkdir()
    for i in range(3):
        kind, devid = guest.domain.attach(P9Spec(f"extra{i}", extra))
        # The driver takes a moment.
        guest.run(f"mkdir -p /extra; until {MOUNT} extra{i} /extra 2>&-; do sleep 0.05; done")
        guest.run(f"echo {i} > /extra/{i}; umount /extra")
        assert (extra / str(i)).read_text() == f"{i}\n"
        assert guest.domain.detach(kind, devid, 20)
        guest.run(f"while [ -e /sys/bus/xen/devices/9pfs-{devid} ]; do sleep 0.05; done")
        assert guest.call(lambda: len(guest.domain.incarnation.domain.grants.pins)) == grants


@pytest.mark.slow
def test_a_hundred_times(guest: Shell, folders: tuple[Path, Path]) -> None:
    """A folder and a channel come and go; nothing of theirs stays."""
    domain, store = guest.domain.incarnation.domain, guest.host.store
    there = "/sys/bus/xen/devices"

    def held() -> tuple[int, int, int, list[str]]:
        return (
            *(len(domain.grants.pins), len(domain.evtchn._backends)),
            *(len(os.listdir("/proc/self/fd")), store.check()),
        )

    before = None
    guest.run("mkdir -p /many")
    for i in range(100):
        folder = guest.domain.attach(P9Spec(f"many{i}", folders[1]))
        channel = guest.domain.attach(ChannelSpec(Connection("pty"), "many"))
        guest.run(
            f"until {MOUNT} many{i} /many 2>&-; do sleep 0.02; done; cat /many/file; umount /many"
        )
        guest.run(f"until [ -e {there}/console-{channel[1]}/driver ]; do sleep 0.02; done")
        for kind, devid in (folder, channel):
            assert guest.domain.detach(kind, devid, 20)
            guest.run(f"while [ -e {there}/{kind}-{devid} ]; do sleep 0.02; done")
        if i == 2:
            before = guest.call(held)
    assert guest.call(held) == before
