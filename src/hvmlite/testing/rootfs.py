"""A Debian root file system on a disk image, with the kernel and initramfs that it boots with.

Made by debootstrap (`hvmlite.testing.debootstrap`). It takes a minute or two and some 130 MB of
downloads, so it is made when it is first wanted and kept in the assets folder until its recipe
changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hvmlite.testing.apt import release_codename
from hvmlite.testing.assets import assets_dir
from hvmlite.testing.debootstrap import Recipe, bootstrap
from hvmlite.testing.tools import environment, run

PASSWORD = "hvmlite"
"""Root's password in the guest."""
CMDLINE = "root=/dev/xvda1 ro console=hvc0"
PARTITION_START = 1 << 20
"""Bytes before the one partition of the image, which goes on to its end."""

_IMAGE_SIZE = 2 << 30
_SECTOR = 512
_SCRATCH = ".rootfs-"
_RECIPE = Recipe(
    packages=(
        *("systemd-sysv", "udev", "dbus", "libpam-systemd", "linux-image-amd64"),
        *("initramfs-tools", "e2fsprogs", "procps", "ifupdown", "isc-dhcp-client", "iproute2"),
        *("iputils-ping", "netbase", "gcc", "make", "libc6-dev"),
    ),
    # The initramfs is made while the kernel's package is configured.
    early={
        "etc/initramfs-tools/conf.d/driver-policy": "MODULES=list\n",
        "etc/initramfs-tools/modules": "xen-blkfront\nxen-netfront\next4\n",
    },
    # What Debian's installer would have written.
    late={
        "etc/fstab": "/dev/xvda1 / ext4 errors=remount-ro 0 1\n",
        "etc/hostname": "debian\n",
        "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost\n",
        "etc/network/interfaces": (
            "auto lo\niface lo inet loopback\nallow-hotplug enX0\niface enX0 inet dhcp\n"
        ),
        "etc/apt/sources.list": "",
        # An empty one would make systemd think of a first boot, and enable every unit there is.
        "etc/machine-id": f"{1:032x}\n",
    },
    # Of the host: the way to its mirror and its name server.
    removed=("etc/resolv.conf", "var/log/bootstrap.log"),
    password=PASSWORD,
)


@dataclass(frozen=True)
class Rootfs:
    """What boots a Debian guest; the files are shared and must not be written to."""

    kernel: Path
    ramdisk: Path
    image: Path
    """A raw disk with one partition (ext4) for /dev/xvda."""

    def copy(self, target: Path, image_format: str = "raw") -> Path:
        """Write an image of one's own in a format that qemu-img knows; return its path."""
        run("qemu-img", "convert", "-f", "raw", "-O", image_format, self.image, target)
        return target


def debian_rootfs(*, refresh: bool = False) -> Rootfs:
    """Return the root file system, which is made first if there is none by today's recipe.

    Raises:
        FetchError: a tool or a package source is missing, or making it failed.
    """
    folder = assets_dir() / "rootfs"
    stamp = folder / "recipe"
    with _locked(assets_dir()):
        for left in assets_dir().glob(f"{_SCRATCH}*"):
            # Of one that was killed.
            shutil.rmtree(left, ignore_errors=True)
        if refresh or not (stamp.is_file() and stamp.read_text() == _recipe()):
            with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=assets_dir()) as scratch:
                fresh = Path(scratch, "rootfs")
                _build(Path(scratch), fresh)
                shutil.rmtree(folder, ignore_errors=True)
                fresh.rename(folder)
    return Rootfs(folder / "vmlinuz", folder / "initrd.img", folder / "debian.raw")


def ext4_image(image: Path, size: int, tree: Path, offset: int = 0) -> None:
    """Make ``image``, of ``size`` bytes, whose file system at ``offset`` holds what ``tree`` does.

    Without root every file of it belongs to this user, unless fakeroot says otherwise.

    Raises:
        FetchError: mkfs.ext4 failed.
    """
    with image.open("wb") as file:
        file.truncate(size)
    run(*_mkfs(image, size, tree, offset))


def check_ext4(image: Path, offset: int = 0) -> str:
    """Return what e2fsck has found in a raw image that nobody uses; empty if it is clean."""
    done = subprocess.run(
        ["e2fsck", "-f", "-n", f"{image}?offset={offset}"],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else f"exit status {done.returncode}\n{done.stdout}"


def _mkfs(image: Path, size: int, tree: Path, offset: int) -> list[str]:
    # Tables are written now: later the guest's kernel would, in the background of every test.
    options = f"offset={offset},lazy_itable_init=0,lazy_journal_init=0"
    blocks = f"{(size - offset) >> 10}k"
    return ["mkfs.ext4", "-q", "-F", "-d", str(tree), "-E", options, str(image), blocks]


def _recipe() -> str:
    """Return what changes when the image has to be made anew."""
    parts = ("debootstrap", _RECIPE, _IMAGE_SIZE, release_codename())
    return hashlib.sha256(repr(parts).encode()).hexdigest() + "\n"


def _build(scratch: Path, folder: Path) -> None:
    folder.mkdir()
    archive = bootstrap(scratch, _RECIPE)
    tree = scratch / "plain"
    tree.mkdir()
    image = folder / "debian.raw"
    # One process of fakeroot has to see who owns what in the archive, and then make the image.
    script = (
        # A device takes more than fakeroot to unpack, and the guest's kernel makes its own.
        "set -e; tree=$1 archive=$2 folder=$3; shift 3; "
        'tar -C "$tree" -x --exclude="./dev/*" -f "$archive"; '
        'cp "$tree"/boot/vmlinuz-* "$folder/vmlinuz"; '
        'cp "$tree"/boot/initrd.img-* "$folder/initrd.img"; "$@"'
    )
    with image.open("wb") as file:
        file.truncate(_IMAGE_SIZE)
    fakeroot = () if os.geteuid() == 0 else ("fakeroot", "--")
    mkfs = _mkfs(image, _IMAGE_SIZE, tree, PARTITION_START)
    run(*fakeroot, "sh", "-c", script, "sh", tree, archive, folder, *mkfs)
    with image.open("r+b") as file:
        file.write(_partition_table(_IMAGE_SIZE))
    for name in ("vmlinuz", "initrd.img"):
        (folder / name).chmod(0o644)
    (folder / "recipe").write_text(_recipe())


def _partition_table(size: int) -> bytes:
    """Return a boot sector whose one partition (type 83, Linux) is the rest of the disk."""
    start = PARTITION_START // _SECTOR
    # Cylinders, heads and sectors that say: look at the block numbers behind.
    no_geometry = b"\xfe\xff\xff"
    entry = struct.pack(
        "<B3sB3sII", 0x80, no_geometry, 0x83, no_geometry, start, size // _SECTOR - start
    )
    return bytes(446) + entry.ljust(64, b"\0") + b"\x55\xaa"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two test runs at once make it once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".rootfs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
