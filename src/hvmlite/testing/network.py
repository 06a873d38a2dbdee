"""What a guest's ramdisk needs for a network: the driver, addresses by DHCP, programs to measure.

Shared by the tests and the benchmarks.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from hvmlite.testing import assets, ramdisk
from hvmlite.testing.assets import AssetMissingError
from hvmlite.testing.ramdisk import Entry

# What busybox's udhcpc has done with a lease.
_LEASE = b"""\
#!/bin/busybox sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr flush dev "$interface"
[ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
ip addr add "$ip/$mask" dev "$interface"
for each in $router; do ip route add default via "$each" dev "$interface" && break; done
: >/etc/resolv.conf
for each in $dns; do echo "nameserver $each" >>/etc/resolv.conf; done
"""


def driver(kernel: str = "debian", *wanted: str) -> tuple[dict[str, bytes | Entry], list[str]]:
    """Return files with modules of a kernel, and the commands that load them.

    Args:
        kernel: a key of `assets.KERNELS`.
        wanted: the modules; Xen's network driver if none is named.
    """
    files: dict[str, bytes | Entry] = {}
    commands = []
    for name, data in assets.modules(kernel, *(wanted or ("xen_netfront",))).items():
        files[f"lib/modules/{name}.ko"] = data
        commands.append(f"insmod /lib/modules/{name}.ko")
    return files, commands


def dhcp() -> tuple[dict[str, bytes | Entry], str]:
    """Return files, and the command that gets an address for eth0 (which must be up)."""
    return {
        "etc/udhcpc": ramdisk.regular(_LEASE, 0o755),
        "etc/resolv.conf": b"",
    }, "udhcpc -i eth0 -s /etc/udhcpc -q -n -t 20 -T 1 >/dev/null 2>&1"


def program(name: str) -> Mapping[str, Entry]:
    """Return a program of this machine's and the libraries that it needs.

    Raises:
        AssetMissingError: it is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise AssetMissingError(f"{name} is not installed; run 'make setup'")
    listing = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    return {
        file.lstrip("/"): ramdisk.regular(Path(file).read_bytes(), 0o755)
        for file in (path, *re.findall(r"(/\S+) \(0x", listing))
    }
