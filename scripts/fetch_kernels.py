"""Fetches the guest kernels into build/assets: Debian's own packages, unpacked and not installed.

Works without root and leaves the host's apt untouched. Where the host's package lists are absent
or too old, and for backports, apt runs on lists of its own, whose source is derived from the
host's. Writes nothing but build/.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
APT_TIMEOUT = 600


class FetchError(Exception):
    """A kernel cannot be fetched; the message is for the user."""


@dataclass(frozen=True)
class Apt:
    """One configuration of apt: the host's, or a private one in a folder of ours."""

    config: Path | None = None

    def run(self, *argv: str, cwd: Path | None = None) -> str:
        """Run one apt command and return its output; FetchError carries its last error line."""
        env = dict(os.environ, LC_ALL="C")
        if self.config is not None:
            env["APT_CONFIG"] = str(self.config)
        command = list(argv)
        if os.geteuid() == 0:
            # apt would drop to a user of its own, who cannot write to our folder.
            command[1:1] = ["-o", "APT::Sandbox::User=root"]
        try:
            done = subprocess.run(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=APT_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FetchError(str(error)) from error
        if done.returncode != 0:
            reasons = [line for line in done.stderr.splitlines() if line.startswith("E:")]
            reason = reasons[-1] if reasons else f"exit status {done.returncode}"
            raise FetchError(f"{' '.join(argv)}: {reason}")
        return done.stdout


@dataclass(frozen=True)
class Suite:
    """One suite with a main component among the host's sources."""

    uri: str
    name: str


def host_suites() -> list[Suite]:
    """Return this Debian release's own suites: the release, its updates and security fixes."""
    codename = release_codename()
    # Named in the sources by codename or by a class, of which "stable" is one.
    own = re.compile(rf"({codename}|(old)*stable)(-updates|-security)?")
    # What an update would fetch: known without lists, and without root.
    uris = Apt().run("apt-get", "update", "--print-uris")
    found = re.findall(r"^'(\S+/)dists/(\S+)/main/binary-amd64/Packages", uris, re.MULTILINE)
    suites = [Suite(uri, name) for uri, name in dict.fromkeys(found) if own.fullmatch(name)]
    if not suites:
        raise FetchError(f"no source of {codename} is configured")
    return suites


def private_apt(folder: Path, suites: Sequence[Suite]) -> Apt:
    """Return an apt with lists of its own for ``suites``, as far as they are to be had."""
    for sub in ("state/lists/partial", "cache/archives/partial"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    signed_by = f"Signed-By: {KEYRING}\n" if KEYRING.exists() else ""
    sources = folder / "fetch.sources"
    sources.write_text(
        "\n".join(
            f"Types: deb\nURIs: {suite.uri}\nSuites: {suite.name}\nComponents: main\n{signed_by}"
            for suite in suites
        )
    )
    # The host's proxy and time limits are kept, its hooks are not: they would touch its caches.
    kept = [
        line
        for line in Apt().run("apt-config", "dump").splitlines()
        if line.startswith("Acquire::") and not line.startswith("Acquire::IndexTargets")
    ]
    config = folder / "apt.conf"
    config.write_text(
        "\n".join(
            [
                'Dir::Etc::parts "/dev/null";',
                'Dir::Etc::main "/dev/null";',
                f'Dir::Etc::sourcelist "{sources}";',
                'Dir::Etc::sourceparts "/dev/null";',
                'Dir::Etc::preferencesparts "/dev/null";',
                f'Dir::State "{folder}/state";',
                'Dir::State::status "/var/lib/dpkg/status";',
                f'Dir::Cache "{folder}/cache";',
                'Acquire::Languages "none";',
                *kept,
                "",
            ]
        )
    )
    apt = Apt(config)
    # One suite that cannot be had fails the update, yet another may hold what we look for.
    try:
        apt.run("apt-get", "update")
    except FetchError as error:
        print(f"setup: {error}", file=sys.stderr)
    return apt


def release_codename() -> str:
    """Return this Debian release's codename."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME")
    if not codename:
        raise FetchError("/etc/os-release names no release")
    return codename


def backports(suites: Sequence[Suite]) -> list[Suite]:
    """Return where the backports of this release would be, going by where the release is."""
    name = f"{release_codename()}-backports"
    return [Suite(suite.uri, name) for suite in suites if "-" not in suite.name]


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
