"""Proves PV disks with Debian's own driver: file systems that hold after a clean end, discard, resize,
read-only, attaching and detaching in a running guest without anything left, errors of the image, and
data through each format.

Cannot see speed (benchmarks/block.py) nor a host that dies (test_block_crash.py).
"""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvmlite.toolstack.devices.disk import parse

from .block_tools import DiskShell, disk_ramdisk
from .guests import Shell

ROUNDS = 10
MANY_ROUNDS = 100
MIB = 1 << 20
DATA_MIB = int(os.environ.get("HVMLITE_DATA_MIB", "320"))
DATA_LIMIT = 60 + DATA_MIB / 4
"""Seconds to write the data, or to read it: a machine with nothing else to do needs a tenth."""
Boot = Callable[..., DiskShell]


@pytest.fixture(scope="session")
def disk_cpio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "initrd.cpio"
    path.write_bytes(disk_ramdisk())
    return path


@pytest.fixture
def boot(linux: Path, disk_cpio: Path) -> Iterator[Boot]:
    guests: list[DiskShell] = []

    def start(*disks: str) -> DiskShell:
        guests.append(DiskShell(linux, disk_cpio, *disks))
        return guests[-1]

    yield start
    for guest in guests:
        guest.close()


def tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def blank(path: Path, size: int) -> Path:
    path.write_bytes(b"")
    os.truncate(path, size)
    return path


def fresh_ext4(path: Path, size: int) -> Path:
    blank(path, size)
    subprocess.run([tool("mkfs.ext4"), "-q", "-F", path], check=True)
    return path


def test_a_file_system(boot: Boot, tmp_path: Path) -> None:
    image = fresh_ext4(tmp_path / "disk.img", 64 * MIB)
    guest = boot(f"{image},raw,xvda,rw")
    said = guest.run(
        "mkdir /m && mount -t ext4 /dev/xvda /m && dd if=/dev/urandom of=/m/data bs=64k count=320 "
        "2>/dev/null && cp /bin/busybox /m/ && /m/busybox md5sum /m/data && umount /m && "
        "echo 3 >/proc/sys/vm/drop_caches && mount -t ext4 /dev/xvda /m && "
        "/m/busybox md5sum /m/data /m/busybox /bin/busybox && umount /m"
    )
    sums = [line.split()[0] for line in said.splitlines()]
    assert len(sums) == 4
    assert sums[0] == sums[1]
    assert sums[2] == sums[3]
    guest.close()
    subprocess.run([tool("e2fsck"), "-fn", image], check=True, capture_output=True)
    assert guest.messages == []


def test_what_the_guest_sees(boot: Boot, tmp_path: Path) -> None:
    image = blank(tmp_path / "disk.img", 32 * MIB)
    image.write_bytes(b"\xff" * (32 * MIB))
    iso = blank(tmp_path / "cd.iso", 2 * MIB)
    guest = boot(f"{image},,xvda", f"{iso},,xvdb,ro")
    seen = guest.run("cd /sys/block/xvda; cat size ro queue/write_cache; cd /")
    assert seen.splitlines()[:3] == ["65536", "0", "write back"]
    assert guest.run("cat /sys/block/xvdb/ro").strip() == "1"
    status, _ = guest.attempt("dd if=/dev/zero of=/dev/xvdb bs=4k count=1 conv=fsync 2>/dev/null")
    assert status != 0
    guest.run("blkdiscard -o 1048576 -l 4194304 /dev/xvda")
    data = image.read_bytes()
    assert data == b"\xff" * MIB + bytes(4 * MIB) + b"\xff" * (27 * MIB)
    # Somebody makes the file larger.
    os.truncate(image, 48 * MIB)
    guest.run("until [ $(cat /sys/block/xvda/size) = 98304 ]; do usleep 50000; done")
    guest.run("dd if=/dev/zero of=/dev/xvda bs=1M seek=47 count=1 conv=fsync 2>/dev/null")
    assert guest.messages == []


def stream_md5(seed: bytes, count: int) -> str:
    """The checksum of what the guest's stream() of `count` MiB is."""
    digest = hashlib.md5()
    for i in range(count):
        digest.update(b"%08d" % i)
        digest.update(memoryview(seed)[:-8])
    return digest.hexdigest()


class Holdings:
    """What the devices of a guest hold, on both sides."""

    def __init__(self, guest: Shell) -> None:
        domain = guest.domain.incarnation.domain
        self.grants = guest.call(lambda: len(domain.grants.pins))
        self.ports = guest.call(lambda: len(domain.evtchn._backends))
        self.fds = len(os.listdir("/proc/self/fd"))
        store = guest.host.store
        base = f"/local/domain/{guest.domain.id}/device/vbd"
        there = f"/local/domain/0/backend/vbd/{guest.domain.id}"
        self.nodes = guest.call(
            lambda: [store.list(path) if store.exists(path) else [] for path in (base, there)]
        )


def attach_and_detach(guest: DiskShell, image: Path, rounds: int) -> None:
    before = None
    # The memory of earlier tests' guests, one descriptor each, is there until it is collected.
    gc.collect()
    for i in range(rounds):
        guest.domain.attach(parse(f"{image},,xvdb"))
        guest.run(
            "until [ -b /dev/xvdb ]; do usleep 10000; done; "
            f"echo round {i} | dd of=/dev/xvdb bs=512 conv=sync,fsync seek={i} 2>/dev/null; "
            "dd if=/dev/xvdb of=/dev/null bs=64k 2>/dev/null"
        )
        assert guest.domain.detach("vbd", 51728)
        guest.run("until [ ! -b /dev/xvdb ]; do usleep 10000; done")
        if i == 1:
            before = vars(Holdings(guest))
    assert vars(Holdings(guest)) == before
    data = image.read_bytes()
    for i in range(rounds):
        assert data[i * 512 :].startswith(b"round %d\n" % i)


def test_attach_and_detach(boot: Boot, tmp_path: Path) -> None:
    image = blank(tmp_path / "disk.img", MIB)
    attach_and_detach(boot(), image, ROUNDS)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_attach_and_detach_many_times(boot: Boot, tmp_path: Path) -> None:
    image = blank(tmp_path / "disk.img", MIB)
    attach_and_detach(boot(), image, MANY_ROUNDS)


@pytest.mark.slow
@pytest.mark.timeout(60 + 2 * DATA_LIMIT)
@pytest.mark.parametrize("form", ["raw", "qcow2", "vhd", "vmdk"])
def test_data(boot: Boot, tmp_path: Path, form: str) -> None:
    """A stream of which no two MiB are alike, written and read back; HVMLITE_DATA_MIB sets how much.

    The guest's memory is a part of it, so that most is read from the image.
    """
    image, seed = tmp_path / "disk.img", tmp_path / "seed.img"
    driver = {"vhd": "vpc"}.get(form, form)
    size = f"{DATA_MIB}M"
    subprocess.run([tool("qemu-img"), "create", "-q", "-f", driver, image, size], check=True)
    seed.write_bytes(os.urandom(MIB))
    guest = boot(f"{image},{form},xvda", f"{seed},raw,xvdb,ro")
    guest.run(f"head -c {MIB - 8} /dev/xvdb >/seed")
    guest.run(
        f"stream() {{ i=0; while [ $i -lt {DATA_MIB} ]; do printf %08d $i; cat /seed; "
        "i=$((i+1)); done; }"
    )
    start = time.monotonic()
    guest.run("stream >/dev/xvda && sync", DATA_LIMIT)
    written = time.monotonic()
    guest.run("echo 3 >/proc/sys/vm/drop_caches")
    found = guest.run(
        f"dd if=/dev/xvda bs=1M count={DATA_MIB} 2>/dev/null | md5sum", DATA_LIMIT
    ).split()[0]
    read = time.monotonic()
    print(
        f"{form}: {DATA_MIB} MiB written at {DATA_MIB / (written - start):.1f} MiB/s, "
        f"read and summed at {DATA_MIB / (read - written):.1f} MiB/s"
    )
    assert found == stream_md5(seed.read_bytes(), DATA_MIB)
    assert guest.messages == []
    guest.close()
    # tmp_path outlives the test, and this may be a large part of the disk.
    image.unlink()
