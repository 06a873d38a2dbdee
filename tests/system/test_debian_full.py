"""Debian as people run it: systemd on a root file system on a disk, a login, a network, packages.

Proves that the disk and the network carry a distribution from boot to shutdown, on a raw file and
on qcow2: what is written lies there afterwards and the file system is clean. Cannot see speed
(benchmarks), power failures, or what only other distributions' set-up would do.
"""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
from pathlib import Path

import pytest

from hvmlite.testing.rootfs import PARTITION_START, Rootfs, check_ext4

from .debian_guest import DebianGuest, network_address, rootfs_or_skip
from .package_mirror import GREETING, PACKAGE, PackageMirror

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

PAYLOAD = random.Random(1).randbytes(8 << 20)
"""What the installed package carries: through the network once, through the disk three times."""
EXPECTED_ERRORS = re.compile(
    # A PVH guest on Xen has no I/O APIC, PCI bus or SCI either.
    r"ACPI: No IOAPIC entries present|PCI: Fatal: No config space access function found"
    r"|ACPI: OSL: SCI \(ACPI GSI 9\) not registered"
    # docs/limits.md: no machine check banks.
    r"|mce: Unable to init MCE device"
    # Of the programs themselves: a lease without end; a file that Debian's installer would write.
    r"|Timeout too large reducing to|pam_env\(.*/etc/default/locale"
)


@pytest.fixture(scope="module")
def rootfs() -> Rootfs:
    return rootfs_or_skip()


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_boot_network_packages_shutdown(rootfs: Rootfs, tmp_path: Path, image_format: str) -> None:
    image = rootfs.copy(tmp_path / f"debian.{image_format}", image_format)
    disk = f"{image},{image_format},xvda,w"
    with (
        PackageMirror(tmp_path / "mirror", PAYLOAD) as mirror,
        DebianGuest(rootfs, [disk], "--vif", "type=user") as guest,
    ):
        guest.login()
        assert guest.run("findmnt -n -o SOURCE /") == "/dev/xvda1\n"
        assert guest.run("systemctl is-system-running --wait") == "running\n", guest.run(
            "systemctl --failed --no-pager"
        )
        assert guest.run("systemd-detect-virt") == "xen\n"
        _address, gateway = network_address(guest)

        guest.run(f"echo '{mirror.source(gateway)}' >/etc/apt/sources.list")
        guest.run("apt-get -q update", 120)
        guest.run(f"DEBIAN_FRONTEND=noninteractive apt-get -q -y install {PACKAGE}", 120)
        assert [line for line in mirror.requests if f"{PACKAGE}_" in line and " 200 " in line]
        assert guest.run("greeting") == f"{GREETING}\n"
        guest.run(f"test -e /var/lib/{PACKAGE}")
        guest.run("sync; echo 3 >/proc/sys/vm/drop_caches")
        checksum = guest.run("sha256sum </usr/share/hvmlite/payload").split()[0]
        assert checksum == hashlib.sha256(PAYLOAD).hexdigest()

        finished = guest.power_off()
    assert finished.status == 0, finished
    assert "Power Off" in finished.output, finished
    raw = image
    if image_format != "raw":
        subprocess.run(["qemu-img", "check", "-q", str(image)], check=True)
        raw = tmp_path / "debian.raw"
        command = ["qemu-img", "convert", "-f", image_format, "-O", "raw", image, raw]
        subprocess.run([str(word) for word in command], check=True)
    assert check_ext4(raw, PARTITION_START) == ""


def test_no_trouble_in_the_logs(rootfs: Rootfs, tmp_path: Path) -> None:
    """What the kernel and systemd call an error is what they would on Xen too, or not there."""
    image = rootfs.copy(tmp_path / "debian.raw")
    with DebianGuest(rootfs, [f"{image},raw,xvda,w"], "--vif", "type=user") as guest:
        guest.login()
        network_address(guest)
        assert guest.run("systemctl is-system-running --wait") == "running\n"
        assert guest.run("systemctl --failed --no-legend --no-pager") == ""
        errors = guest.run("journalctl -b -p err -q --no-pager -o cat").splitlines()
        assert [line for line in errors if not EXPECTED_ERRORS.match(line)] == []
        assert guest.run(
            "cat /sys/devices/system/clocksource/clocksource0/current_clocksource"
        ) == ("xen\n")
        assert guest.power_off().status == 0
