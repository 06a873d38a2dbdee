"""Ramdisks for Linux guests: busybox, an /init script and whatever files a test adds.

Shared by the tests, the demo and the benchmarks. Needs no root: the archive is written here. The
same input gives the same bytes. Format: Linux's Documentation/driver-api/early-userspace
buffer-format.rst ("newc").
"""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hvmlite.errors import UserError
from hvmlite.testing import assets

MAGIC = b"070701"
TRAILER = "TRAILER!!!"
ALIGNMENT = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of any kind: ``mode`` with the type bits, its bytes, and a device's numbers."""

    mode: int
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)


def regular(data: bytes, mode: int = 0o644) -> Entry:
    """Return a regular file."""
    return Entry(stat.S_IFREG | mode, data)


def directory(mode: int = 0o755) -> Entry:
    """Return a directory."""
    return Entry(stat.S_IFDIR | mode)


def symlink(target: str) -> Entry:
    """Return a symbolic link to ``target``."""
    return Entry(stat.S_IFLNK | 0o777, target.encode())


def char_device(major: int, minor: int, mode: int = 0o600) -> Entry:
    """Return a character device node."""
    return Entry(stat.S_IFCHR | mode, rdev=(major, minor))


def newc(entries: Mapping[str, Entry]) -> bytes:
    """Return the cpio archive of ``entries`` by path; parents that are not named are added.

    Raises:
        UserError: a path is absolute, empty, or has a ``.`` or ``..`` in it.
    """
    whole: dict[str, Entry] = {}
    for path in sorted(entries):
        parts = path.split("/")
        if any(part in {"", ".", ".."} for part in parts) or "\0" in path:
            raise UserError(f"ramdisk: bad path {path!r}: expected a relative path of plain names")
        for depth in range(1, len(parts)):
            whole.setdefault("/".join(parts[:depth]), directory())
        whole[path] = entries[path]
    # A directory has to come before what is in it, which the sorted order ensures.
    archive = bytearray()
    for inode, path in enumerate(sorted(whole), start=1):
        _append(archive, path, whole[path], inode)
    _append(archive, TRAILER, Entry(0), 0)
    return bytes(archive)


def _append(archive: bytearray, path: str, entry: Entry, inode: int) -> None:
    name = path.encode() + b"\0"
    header = (
        inode,
        entry.mode,
        0,  # uid
        0,  # gid
        1,  # nlink
        0,  # mtime
        len(entry.data),
        0,  # device
        0,
        *entry.rdev,
        len(name),
        0,  # check: unused in this variant
    )
    archive += MAGIC + b"".join(b"%08x" % field for field in header)
    archive += name
    archive += bytes(-len(archive) % ALIGNMENT)
    archive += entry.data
    archive += bytes(-len(archive) % ALIGNMENT)


def build(
    init: str,
    *,
    files: Mapping[str, bytes | Entry] | None = None,
    applets: Iterable[str] = (),
    busybox: Path | None = None,
) -> bytes:
    """Return a ramdisk that runs the script ``init`` as process 1.

    Args:
        init: a shell script; its first line should be ``#!/bin/busybox sh``.
        files: what else goes in, by path; bare bytes become a regular file of mode 0644.
        applets: busybox commands to have in /bin under their own names.
        busybox: a statically linked busybox; the host's if not given.

    Raises:
        UserError: a path is bad, or the host has no busybox that would run.
    """
    entries = {
        "bin/busybox": regular((busybox or assets.busybox()).read_bytes(), 0o755),
        # The kernel opens it for process 1 before anything is mounted.
        "dev/console": char_device(5, 1),
        "dev/null": char_device(1, 3, 0o666),
        "init": regular(init.encode(), 0o755),
        "proc": directory(),
        "sys": directory(),
        "tmp": directory(0o1777),
    }
    for applet in applets:
        if applet != "busybox":
            entries[f"bin/{applet}"] = symlink("busybox")
    for path, content in (files or {}).items():
        entries[path] = content if isinstance(content, Entry) else regular(content)
    return newc(entries)


def all_applets(busybox: Path | None = None) -> list[str]:
    """Return the commands that ``busybox`` (the host's if not given) holds."""
    listing = subprocess.run(
        [busybox or assets.busybox(), "--list"], check=True, capture_output=True, text=True
    )
    return listing.stdout.split()


BENCH_USERSPACE = "HELLO-FROM-INIT"
BENCH_END = "ALL-DONE"

# Kept step for step: figures of different versions are compared with each other.
BOOT_BENCH_INIT = f"""\
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox echo {BENCH_USERSPACE}
/bin/busybox uname -a
/bin/busybox cat /proc/uptime
i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done
/bin/busybox md5sum /bin/busybox
for j in 1 2 3 4 5 6 7 8 9 10; do /bin/busybox true; done
/bin/busybox echo {BENCH_END}
/bin/busybox poweroff -f
"""


def boot_bench() -> bytes:
    """Return the ramdisk of the boot benchmark: a fixed piece of work between two marks."""
    return build(BOOT_BENCH_INIT)


DEMO_USERSPACE = "hvmlite-demo: userspace"
DEMO_END = "hvmlite-demo: end"

_DEMO_INIT = """\
#!/bin/busybox sh
export PATH=/bin HOME=/ TERM={term}
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
echo '{userspace}'
xen=/sys/hypervisor
field() {{ if [ -r "$2" ]; then echo "$1: $(cat "$2")"; else echo "$1: none"; fi; }}
echo "uname: $(uname -a)"
field 'hypervisor type' $xen/type
if [ -d $xen/version ]; then
    cd $xen/version
    echo "hypervisor version: $(cat major).$(cat minor)$(cat extra)"
    cd /
fi
field 'hypervisor features' $xen/properties/features
field 'uptime' /proc/uptime
{shell}echo '{end}'
poweroff -f
"""

_DEMO_SHELL = """\
echo "A shell in the guest; 'exit' powers the guest off."
setsid cttyhack sh
"""


def demo(*, interactive: bool, term: str = "vt100") -> bytes:
    """Return the demo's ramdisk: it reports what the guest runs on, then powers off.

    Args:
        interactive: between the two, run a shell with job control on the console.
        term: the kind of terminal that the console ends at; anything but a plain name is vt100.
    """
    plain = term.replace("-", "").replace("+", "").replace(".", "").isalnum() and term.isascii()
    init = _DEMO_INIT.format(
        term=term if plain else "vt100",
        userspace=DEMO_USERSPACE,
        end=DEMO_END,
        shell=_DEMO_SHELL if interactive else "",
    )
    return build(init, applets=all_applets())
