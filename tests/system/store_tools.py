"""Debian's own xenstore programs, for a guest that has nothing but busybox."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from hvmlite.testing import ramdisk

PROGRAM = "xenstore"
"""One binary that does what it is called as."""
NAMES = ("xenstore-ls", "xenstore-read", "xenstore-write", "xenstore-watch", "xenstore-exists")


def store_tools() -> dict[str, ramdisk.Entry]:
    """The files to add to a ramdisk; empty if the host has none (package xenstore-utils)."""
    program = shutil.which(PROGRAM)
    if program is None:
        return {}
    listing = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    files = {f"usr/bin/{PROGRAM}": ramdisk.regular(Path(program).read_bytes(), 0o755)}
    files |= {f"usr/bin/{name}": ramdisk.symlink(PROGRAM) for name in NAMES}
    for library in re.findall(r"(/\S+) \(0x", listing):
        files[library.lstrip("/")] = ramdisk.regular(Path(library).read_bytes(), 0o755)
    return files
