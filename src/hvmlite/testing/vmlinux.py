"""The ELF file inside a fetched kernel, for whoever boots it without unpacking a bzImage first.

Apart from assets, which `make setup` needs before anything else of hvmlite has to work.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from hvmlite.testing import assets
from hvmlite.toolstack.kernel import KernelError
from hvmlite.toolstack.kernel.image import inspect_kernel


def vmlinux(name: str = "debian") -> Path:
    """Return the ELF file of the kernel ``name``; it is unpacked once and kept beside the bzImage.

    Raises:
        AssetMissingError: the kernel was not fetched.
        KernelError: it cannot be unpacked.
    """
    bzimage = assets.kernel(name)
    elf = assets.assets_dir() / name / "vmlinux"
    if not elf.exists():
        unpack(bzimage, elf)
    return elf


def unpack(bzimage: Path, elf: Path) -> None:
    """Write the ELF file inside ``bzimage`` to ``elf``; KernelError if there is none."""
    found = inspect_kernel(bzimage)
    try:
        if found.reasons:
            raise KernelError(found.reasons[0], found.name)
        # Under a name of its own first: another process may be waiting for it to appear.
        with tempfile.TemporaryDirectory(dir=elf.parent) as folder:
            part = Path(folder) / elf.name
            with part.open("wb") as file:
                for chunk in found.source.chunks(0, found.source.size):
                    file.write(chunk)
            part.replace(elf)
    finally:
        found.source.close()
