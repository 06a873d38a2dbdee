"""Fetches Xen's own xenstored and xenstore-control into build/assets, for tests and benchmarks.

From Debian's package xen-utils-X.Y, unpacked and not installed: it would set up services of a Xen
host. X.Y is that of libxen-dev, whose libraries the programs need. Without them their tests are
skipped, so a failure is reported and nothing more.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hvmlite.testing.apt import Apt, FetchError, host_suites, private_apt
from hvmlite.testing.assets import XEN_TOOLS, AssetMissingError, assets_dir, xen_tool


def package_name() -> str:
    """Return the package that fits the installed libraries; raises FetchError."""
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", "libxen-dev"],
        capture_output=True,
        text=True,
        check=False,
    )
    numbers = done.stdout.split(".")
    if done.returncode != 0 or len(numbers) < 3:
        raise FetchError("libxen-dev is not installed")
    return f"xen-utils-{numbers[0]}.{numbers[1]}"


def fetch(package: str, work: Path) -> None:
    """Download ``package`` and put its programs into the assets folder."""
    try:
        Apt().run("apt-get", "download", package, cwd=work)
    except FetchError:
        # The host's lists are absent, or so old that what they name is gone.
        private_apt(work / "apt", host_suites()).run("apt-get", "download", package, cwd=work)
    (deb,) = work.glob("*.deb")
    whole = work / "whole"
    subprocess.run(["dpkg-deb", "-x", deb, whole], check=True)
    fresh = work / "xen-tools"
    fresh.mkdir()
    for name in XEN_TOOLS:
        (found,) = whole.glob(f"usr/lib/xen-*/bin/{name}")
        shutil.copy(found, fresh / name)
    (fresh / "package").write_text(deb.name.removesuffix(".deb") + "\n")
    target = assets_dir() / "xen-tools"
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)


def main() -> int:
    """Fetch what is missing."""
    try:
        for name in XEN_TOOLS:
            xen_tool(name)
    except AssetMissingError:
        pass
    else:
        return 0
    assets_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=assets_dir()) as scratch:
        try:
            package = package_name()
            fetch(package, Path(scratch))
        except (FetchError, subprocess.CalledProcessError, ValueError) as error:
            print(f"setup: Xen's tools: {error}", file=sys.stderr)
            print("setup: going on without them; their tests are skipped", file=sys.stderr)
        else:
            print(f"setup: Xen's tools: {package}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
