"""Debian's unmodified kernel, seen from its own userspace.

Proves that it finds itself a PVH guest of the Xen that is presented, with the interfaces it should
use. Cannot see how fast it is (benchmarks), nor what only a second vCPU or a device would show.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from hvmlite.testing import assets

from .command import hvmlite
from .conftest import Boot
from .guests import QUIET, Shell, script_ramdisk


def test_hypervisor_in_sysfs(debian: Shell) -> None:
    base = "/sys/hypervisor"
    assert debian.run(f"cat {base}/type") == "xen\n"
    version = debian.run(f"cat {base}/version/major {base}/version/minor {base}/version/extra")
    assert re.fullmatch(r"4\n17\n\.\d+\n", version)
    assert debian.run(f"cat {base}/properties/features") == "00012305\n"
    assert debian.run(f"cat {base}/guest_type") == "PVH\n"
    uuid = debian.run(f"cat {base}/uuid").strip()
    domain = debian.domain.incarnation
    assert uuid in (domain.uuid, "00000000-0000-0000-0000-000000000000")


@pytest.mark.parametrize(
    "line",
    [
        "Hypervisor detected: Xen HVM",
        "Booting kernel on Xen PVH",
        "xen:events: Using FIFO-based ABI",
        "xen:events: Xen HVM callback vector for event delivery is enabled",
        "clocksource: Switched to clocksource xen",
        "installing Xen timer for CPU 0",
        "xen:grant_table: Grant tables using version 1 layout",
    ],
)
def test_boot_log(debian: Shell, line: str) -> None:
    assert line in debian.run("dmesg")


def test_boot_log_has_no_oops(debian: Shell) -> None:
    log = debian.run("dmesg")
    for sign in ("BUG:", "Oops", "Call Trace", "WARNING:", "unchecked MSR access", "Firmware Bug"):
        assert sign not in log


def test_clocksource_and_timer(debian: Shell) -> None:
    base = "/sys/devices/system"
    assert debian.run(f"cat {base}/clocksource/clocksource0/current_clocksource") == "xen\n"
    assert debian.run(f"cat {base}/clockevents/clockevent0/current_device") == "xen\n"


def test_memory_and_processors(debian: Shell) -> None:
    assert debian.run("nproc") == "1\n"
    total = int(debian.run("awk '/MemTotal/ {print $2}' /proc/meminfo"))
    assert 400 << 10 < total <= 512 << 10


def test_balloon_knows_its_size(debian: Shell) -> None:
    base = "/sys/devices/system/xen_memory/xen_memory0"
    assert debian.run(f"cat {base}/info/current_kb") == debian.run(f"cat {base}/target_kb")


def test_no_errors_are_logged_by_xen_drivers(debian: Shell) -> None:
    log = debian.run("dmesg -r").splitlines()
    errors = [line for line in log if re.match(r"<[0-3]>", line) and "xen" in line.lower()]
    assert errors == []


def test_bzimage_by_the_command(bzimage: Path, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd.cpio"
    initrd.write_bytes(
        script_ramdisk("cat /sys/hypervisor/type /sys/hypervisor/properties/features; uname -r")
    )
    run = hvmlite(bzimage, "--ramdisk", initrd, "--cmdline", QUIET)
    assert run.status == 0, run
    release = bzimage.name.removeprefix("vmlinuz-")
    assert run.output.endswith(f"xen\n00012305\n{release}\n"), run
    assert run.messages == ""


@pytest.mark.parametrize("name", ["cloud", "backports"])
def test_other_kernels(name: str, uvm: Boot, shell_cpio: Path) -> None:
    try:
        kernel = assets.kernel(name)
    except assets.AssetMissingError as error:
        pytest.skip(str(error))
    guest = uvm(kernel, shell=True, ramdisk=shell_cpio, cmdline=QUIET)
    assert isinstance(guest, Shell)
    assert guest.run("uname -r").strip() == kernel.name.removeprefix("vmlinuz-")
    assert guest.run("cat /sys/hypervisor/type") == "xen\n"
    log = guest.run("dmesg")
    assert "Booting kernel on Xen PVH" in log
    assert "Using FIFO-based ABI" in log
    begin = time.monotonic()
    guest.run("sleep 0.5")
    assert time.monotonic() - begin >= 0.5
    guest.console.write("poweroff -f\n")
    outcome = guest.domain.wait(20)
    assert outcome is not None
    assert outcome.reason == "poweroff"


def test_two_vcpus(uvm: Boot, linux: Path, shell_cpio: Path) -> None:
    guest = uvm(linux, shell=True, ramdisk=shell_cpio, cmdline=QUIET, vcpus=2)
    assert isinstance(guest, Shell)
    assert guest.run("nproc") == "2\n"
    for cpu in (0, 1):
        assert guest.run(f"taskset {1 << cpu:x} sh -c 'sleep 0.1; echo ran'") == "ran\n"
    guest.console.write("poweroff -f\n")
    outcome = guest.domain.wait(20)
    assert outcome is not None
    assert outcome.reason == "poweroff"


@pytest.mark.parametrize(
    ("lapic", "acpi"),
    [(False, True), (True, False), (False, False)],
    ids=["no-lapic", "no-acpi", "neither"],
)
def test_bare_guest(uvm: Boot, linux: Path, shell_cpio: Path, lapic: bool, acpi: bool) -> None:
    """Linux sets its timer up only where it finds a local APIC by ACPI: it runs, but never wakes.

    So there is no sleep here and no orderly shutdown; SysRq and a panic need no timer.  Without
    ACPI, which says that there is no CMOS clock, it would also wait 4 s for one.
    """
    guest = uvm(
        linux,
        shell=True,
        ramdisk=shell_cpio,
        cmdline=f"{QUIET} initcall_blacklist=cmos_init",
        lapic=lapic,
        acpi=acpi,
        on_reboot="destroy",
    )
    assert isinstance(guest, Shell)
    assert guest.run("cat /sys/hypervisor/type") == "xen\n"
    assert guest.run("nproc") == "1\n"
    assert ("apic" in guest.run("grep -m1 flags /proc/cpuinfo").split()) is lapic
    assert ("ACPI: RSDP" in guest.run("dmesg")) is acpi
    guest.console.write("echo b > /proc/sysrq-trigger\n")
    outcome = guest.domain.wait(20)
    assert outcome is not None
    assert outcome.reason == "reboot"
