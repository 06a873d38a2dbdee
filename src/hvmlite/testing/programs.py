"""Programs of the host for a guest's ramdisk, with the shared libraries that they need.

Finds them as the dynamic linker does (ldd); for programs of trusted packages only.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from hvmlite.testing.assets import AssetMissingError
from hvmlite.testing.ramdisk import Entry, regular


def program(name: str, package: str) -> dict[str, Entry]:
    """Return the files of the program ``name`` for a ramdisk, by path.

    Raises:
        AssetMissingError: it is not installed; the message names its Debian package.
    """
    found = shutil.which(name)
    if found is None:
        raise AssetMissingError(f"{name} is not installed (package {package})")
    files = {f"usr/bin/{name}": regular(Path(found).read_bytes(), 0o755)}
    listing = subprocess.run(["ldd", found], capture_output=True, text=True, check=False).stdout
    for line in listing.splitlines():
        path = next((Path(word) for word in line.split() if word.startswith("/")), None)
        if path is not None:
            files[str(path).lstrip("/")] = regular(path.read_bytes(), 0o755)
    return files


def module_loader(modules: dict[str, bytes]) -> tuple[dict[str, Entry], str]:
    """Return the files of kernel modules for a ramdisk, and shell commands that load them."""
    files = {f"modules/{name}.ko": regular(data) for name, data in modules.items()}
    return files, "".join(f"insmod /modules/{name}.ko\n" for name in modules)
