"""Finds the real guests that tests, the demo and the benchmarks boot; fetches nothing itself.

``make setup`` puts Debian's kernels into build/assets (scripts/fetch_kernels.py) and installs the
Debian packages that hold the rest. HVMLITE_ASSETS names another folder of the same shape.
"""

from __future__ import annotations

import lzma
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from hvmlite.errors import UserError

KERNELS: Mapping[str, str] = {
    "debian": "the release's kernel (linux-image-amd64)",
    "cloud": "the release's kernel for cloud machines (linux-image-cloud-amd64)",
    "backports": "the newest kernel built for the release (linux-image-amd64 of its backports)",
}

XEN_TOOLS: Mapping[str, str] = {
    "xenstore-control": "Xen's own client of the store's CONTROL request",
    "xenstored": "Xen's own store",
}
"""Programs of the package xen-utils-X.Y, which cannot be installed everywhere."""

BUSYBOX = Path("/bin/busybox")
GRUB_PVH = Path("/usr/lib/grub-xen/grub-i386-xen_pvh.bin")

_MODULE_SUFFIX = re.compile(r"\.ko(\.xz)?$")
_MODULE_DEPENDS = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")


class AssetMissingError(UserError):
    """A file that ``make setup`` provides is not there; the message says which and what to do."""


def assets_dir() -> Path:
    """Return the folder of the fetched kernels, which need not exist."""
    if override := os.environ.get("HVMLITE_ASSETS"):
        return Path(override)
    return Path(__file__).resolve().parents[3] / "build" / "assets"


def kernel(name: str = "debian") -> Path:
    """Return the bzImage of the kernel ``name``, a key of KERNELS.

    Raises:
        AssetMissingError: it was not fetched.
    """
    return _only(name, "boot/vmlinuz-*")


def package(name: str = "debian") -> str:
    """Return the Debian package that the kernel ``name`` is from, and its version.

    Raises:
        AssetMissingError: it was not fetched.
    """
    return _only(name, "package").read_text().strip()


def config(name: str = "debian") -> Path:
    """Return the build configuration of the kernel ``name``.

    Raises:
        AssetMissingError: it was not fetched.
    """
    return _only(name, "boot/config-*")


def modules(name: str, *wanted: str) -> dict[str, bytes]:
    """Return the modules ``wanted`` and those they depend on, in an order they can be loaded in.

    Keys are module names with underscores, as the running kernel shows them; values are whole .ko
    files, decompressed. A dependency that is not among the fetched modules is built in.

    Raises:
        AssetMissingError: the kernel was not fetched, or a module in ``wanted`` is not with it.
    """
    by_name = module_files(assets_dir() / name)
    loaded: dict[str, bytes] = {}
    visited: set[str] = set()

    def load(module: str) -> None:
        if module in visited or module not in by_name:
            return
        visited.add(module)
        data = read_module(by_name[module])
        for dependency in module_depends(data):
            load(dependency)
        loaded[module] = data

    for module in wanted:
        if module.replace("-", "_") not in by_name:
            raise AssetMissingError(f"module {module} is not with the {name} kernel {_hint()}")
        load(module.replace("-", "_"))
    return loaded


def module_files(root: Path) -> dict[str, Path]:
    """Return every kernel module below ``root`` by its name with underscores."""
    return {
        _MODULE_SUFFIX.sub("", path.name).replace("-", "_"): path
        for path in sorted(root.glob("**/*.ko*"))
        if _MODULE_SUFFIX.search(path.name)
    }


def read_module(path: Path) -> bytes:
    """Return the module file's bytes, decompressed."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def module_depends(data: bytes) -> tuple[str, ...]:
    """Return the modules that a .ko file names in its modinfo's ``depends``."""
    if not (match := _MODULE_DEPENDS.search(data)):
        return ()
    names = match.group(1).decode("ascii", "replace")
    return tuple(name.replace("-", "_") for name in names.split(",") if name)


def busybox() -> Path:
    """Return a statically linked busybox, which runs in a guest that has nothing else.

    Raises:
        AssetMissingError: none is installed, or it needs shared libraries.
    """
    if not BUSYBOX.is_file():
        raise AssetMissingError(f"{BUSYBOX} is missing (package busybox-static) {_hint()}")
    try:
        with BUSYBOX.open("rb") as file:
            segments = {segment["p_type"] for segment in ELFFile(file).iter_segments()}
    except ELFError as error:
        raise AssetMissingError(f"{BUSYBOX} is not an ELF file: {error}") from error
    if "PT_INTERP" in segments:
        raise AssetMissingError(
            f"{BUSYBOX} is dynamically linked; install busybox-static {_hint()}"
        )
    return BUSYBOX


def grub_pvh() -> Path:
    """Return GRUB as a 32-bit Xen PVH image.

    Raises:
        AssetMissingError: the package grub-xen-host is not installed.
    """
    if not GRUB_PVH.is_file():
        raise AssetMissingError(f"{GRUB_PVH} is missing (package grub-xen-host) {_hint()}")
    return GRUB_PVH


def xen_tool(name: str) -> Path:
    """Return a program of Xen's, a key of XEN_TOOLS.

    Raises:
        AssetMissingError: it was not fetched.
    """
    path = assets_dir() / "xen-tools" / name
    if name not in XEN_TOOLS or not path.is_file():
        raise AssetMissingError(f"{name}: {XEN_TOOLS.get(name, 'unknown')} {_hint()}")
    return path


def missing() -> list[str]:
    """Return one line for each asset that is not there; empty when all are."""
    return list(_missing())


def _missing() -> Iterator[str]:
    for name in KERNELS:
        try:
            kernel(name)
        except AssetMissingError as error:
            yield str(error)
    for name in XEN_TOOLS:
        try:
            xen_tool(name)
        except AssetMissingError as error:
            yield str(error)
    for find in (busybox, grub_pvh):
        try:
            find()
        except AssetMissingError as error:
            yield str(error)


def _only(name: str, pattern: str) -> Path:
    if name not in KERNELS:
        raise AssetMissingError(f"no kernel is called {name!r}: expected {', '.join(KERNELS)}")
    found = sorted((assets_dir() / name).glob(pattern))
    if not found:
        raise AssetMissingError(f"{name} kernel: {KERNELS[name]} was not fetched {_hint()}")
    return found[-1]


def _hint() -> str:
    return f"(looked in {assets_dir()}; run 'make setup')"
