"""Fetches the guest kernels into build/assets: Debian's own packages, unpacked and not installed.

Works without root and leaves the host's apt untouched. Where the host's package lists are absent
or too old, and for backports, apt runs on lists of its own, whose source is derived from the
host's. Writes nothing but build/.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hvmlite.testing.apt import Apt, FetchError, backports, host_suites, private_apt
from hvmlite.testing.assets import (
    KERNELS,
    AssetMissingError,
    assets_dir,
    kernel,
    module_depends,
    module_files,
    read_module,
)

META_PACKAGES = {
    "debian": "linux-image-amd64",
    "cloud": "linux-image-cloud-amd64",
    "backports": "linux-image-amd64",
}
# Drivers of a Xen guest, what a test guest may mount or open, and the drivers that the same guest
# has under plain QEMU, which benchmarks compare with.
WANTED_MODULES = re.compile(
    r"(xen_\w+|\w+_xen|xenfs|xen\w*front|\w+_xen_front|9p|af_packet|crc32c_generic|libcrc32c|ext4"
    r"|overlay|squashfs|virtio_(pci|net|blk))"
)
UNWANTED_MODULES = re.compile(r"\w+back|drm\w*|xen_acpi_processor|netxen\w*")
WANTED_STAMP = "wanted"
"""Beside each kernel: what was wanted of its modules when it was fetched."""


def download(apt: Apt, meta_package: str, folder: Path) -> Path:
    """Download the image package that ``meta_package`` stands for; return the .deb."""
    depends = apt.run("apt-cache", "depends", "--important", meta_package)
    packages = re.findall(r"^ +Depends: (linux-image-\S+)$", depends, re.MULTILINE)
    if not packages:
        raise FetchError(f"{meta_package} is unknown to apt")
    for old in folder.glob("*.deb"):
        old.unlink()
    apt.run("apt-get", "download", packages[0], cwd=folder)
    debs = list(folder.glob("*.deb"))
    if len(debs) != 1:
        raise FetchError(f"apt-get download {packages[0]} left {len(debs)} files")
    return debs[0]


def unpack(deb: Path, into: Path) -> str:
    """Unpack what tests use of the kernel package ``deb``; return its name and version."""
    with tempfile.TemporaryDirectory(dir=deb.parent) as scratch:
        whole = Path(scratch)
        subprocess.run(["dpkg-deb", "-x", deb, whole], check=True)
        files = [*whole.glob("boot/vmlinuz-*"), *whole.glob("boot/config-*")]
        files += wanted_modules(whole)
        for file in files:
            target = into / file.relative_to(whole)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    name = subprocess.run(
        ["dpkg-deb", "-W", "--showformat=${Package} ${Version}", deb],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    (into / "package").write_text(name + "\n")
    (into / WANTED_STAMP).write_text(WANTED_MODULES.pattern + "\n")
    return name


def wanted_modules(root: Path) -> list[Path]:
    """Return the module files below ``root`` that a test guest may load, dependencies included."""
    by_name = module_files(root)
    queue = [
        name
        for name in by_name
        if WANTED_MODULES.fullmatch(name) and not UNWANTED_MODULES.fullmatch(name)
    ]
    chosen: dict[str, Path] = {}
    while queue:
        name = queue.pop()
        if name in by_name and name not in chosen:
            chosen[name] = by_name[name]
            queue += module_depends(read_module(by_name[name]))
    return sorted(chosen.values())


def fetch(name: str, work: Path) -> str:
    """Fetch the kernel ``name`` into the assets folder; return the package's name and version."""
    downloads = work / "debs"
    downloads.mkdir(exist_ok=True)
    if name == "backports":
        deb = download(
            private_apt(work / "apt-backports", backports(host_suites())),
            META_PACKAGES[name],
            downloads,
        )
    else:
        try:
            deb = download(Apt(), META_PACKAGES[name], downloads)
        except FetchError:
            # The host's lists are absent, or so old that what they name is gone.
            apt = private_apt(work / "apt-release", host_suites())
            deb = download(apt, META_PACKAGES[name], downloads)
    fresh = work / name
    package = unpack(deb, fresh)
    deb.unlink()
    target = assets_dir() / name
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    return package


def present(name: str) -> bool:
    """Tell whether the kernel ``name`` was fetched, with the modules that are wanted now."""
    try:
        kernel(name)
    except AssetMissingError:
        return False
    stamp = assets_dir() / name / WANTED_STAMP
    return stamp.exists() and stamp.read_text() == WANTED_MODULES.pattern + "\n"


def main() -> int:
    """Fetch what is missing; a kernel that only backports has may stay missing."""
    parser = argparse.ArgumentParser(description="fetch the guest kernels into build/assets")
    parser.add_argument("--refresh", action="store_true", help="fetch again what is there already")
    refresh: bool = parser.parse_args().refresh
    wanted = [name for name in KERNELS if refresh or not present(name)]
    if not wanted:
        return 0
    assets_dir().mkdir(parents=True, exist_ok=True)
    status = 0
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=assets_dir()) as scratch:
        for name in wanted:
            try:
                package = fetch(name, Path(scratch))
            except (FetchError, subprocess.CalledProcessError) as error:
                print(f"setup: {name} kernel: {error}", file=sys.stderr)
                if name == "backports":
                    print("setup: going on without it; its tests are skipped", file=sys.stderr)
                else:
                    status = 1
            else:
                print(f"setup: {name} kernel: {package}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
