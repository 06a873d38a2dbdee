"""Several vCPUs: Debian finds them all, takes them offline and back, and obeys xenstore.

Proves that a vCPU that went down comes up again by INIT and start-up message, on its own timer and
event channels. Cannot see what a guest without udev leaves to its user: that a CPU which xenstore
gave back is also brought online; the tests do that by hand. How fast it is: benchmarks.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from .command import hvmlite
from .conftest import Boot
from .guests import QUIET, Shell, script_ramdisk

CPUS = "/sys/devices/system/cpu"
PATIENCE = 20.0
"""Seconds in which a guest should have done what xenstore told it."""


def boot(uvm: Boot, linux: Path, ramdisk: Path, vcpus: int, maxvcpus: int = 0) -> Shell:
    guest = uvm(linux, shell=True, ramdisk=ramdisk, cmdline=QUIET, vcpus=vcpus, maxvcpus=maxvcpus)
    assert isinstance(guest, Shell)
    return guest


def look(guest: Shell, name: str) -> str:
    return guest.run(f"cat {CPUS}/{name}").strip()


def set_availability(guest: Shell, cpus: range, value: str) -> None:
    """What `xl vcpu-set` does."""

    def write() -> None:
        for cpu in cpus:
            path = f"/local/domain/{guest.domain.id}/cpu/{cpu}/availability"
            guest.host.store.write(path, value)

    guest.call(write)


def wait_for(guest: Shell, name: str, value: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while (seen := look(guest, name)) != value:
        assert time.monotonic() < deadline, f"{name} stays {seen}, not {value}"
        time.sleep(0.1)


def listed(count: int) -> str:
    return f"0-{count - 1}" if count > 1 else "0"


def runs_tasks(guest: Shell, cpus: range) -> None:
    """Each CPU runs what is put there, and is woken by its own timer."""
    for cpu in cpus:
        assert guest.run(f"taskset {1 << cpu:x} sh -c 'sleep 0.02; echo ran'") == "ran\n"


@pytest.mark.parametrize("vcpus", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_cpus_come_and_go(uvm: Boot, linux: Path, shell_cpio: Path, vcpus: int) -> None:
    guest = boot(uvm, linux, shell_cpio, vcpus)
    others = range(1, vcpus)
    assert guest.run("nproc") == f"{vcpus}\n"
    assert guest.run("grep -c ^processor /proc/cpuinfo") == f"{vcpus}\n"
    assert [look(guest, name) for name in ("possible", "present", "online")] == [listed(vcpus)] * 3
    runs_tasks(guest, range(vcpus))

    for cpu in others:
        guest.run(f"echo 0 > {CPUS}/cpu{cpu}/online")
    assert guest.run("nproc") == "1\n"
    assert look(guest, "online") == "0"
    down = guest.call(lambda: [vcpu.up for vcpu in guest.domain.incarnation.domain.vcpus])
    assert down == [True] + [False] * (vcpus - 1)
    for cpu in others:
        guest.run(f"echo 1 > {CPUS}/cpu{cpu}/online")
    assert guest.run("nproc") == f"{vcpus}\n"
    runs_tasks(guest, range(vcpus))

    set_availability(guest, others, "offline")
    wait_for(guest, "present", "0")
    assert look(guest, "online") == "0"
    assert guest.run("grep -c ^processor /proc/cpuinfo") == "1\n"
    set_availability(guest, others, "online")
    wait_for(guest, "present", listed(vcpus))
    for cpu in others:
        guest.run(f"echo 1 > {CPUS}/cpu{cpu}/online")
    assert guest.run("grep -c ^processor /proc/cpuinfo") == f"{vcpus}\n"
    runs_tasks(guest, range(vcpus))

    log = guest.run("dmesg")
    for sign in ("BUG:", "Oops", "Call Trace", "WARNING:", "didn't die", "stuck"):
        assert sign not in log
    guest.console.write("poweroff -f\n")
    outcome = guest.domain.wait(PATIENCE)
    assert outcome is not None
    assert outcome.reason == "poweroff"


def test_one_is_enough_to_go_down(uvm: Boot, linux: Path, shell_cpio: Path) -> None:
    """A poweroff with CPUs offline, and a reboot that has them all again."""
    guest = boot(uvm, linux, shell_cpio, 2)
    guest.run(f"echo 0 > {CPUS}/cpu1/online")
    guest.console.write("reboot -f\n")
    guest.ready()
    assert guest.domain.reboots == 1
    assert guest.run("nproc") == "2\n"


def test_more_than_it_starts_with(uvm: Boot, linux: Path, shell_cpio: Path) -> None:
    """maxvcpus: xenstore and MADT say which of them are there.

    That Linux cannot start a CPU whose MADT entry was not enabled at boot is its own limit.
    """
    guest = boot(uvm, linux, shell_cpio, 2, 4)
    assert [look(guest, name) for name in ("possible", "present", "online")] == [
        "0-3", "0-1", "0-1",
    ]  # fmt: skip
    assert guest.run("grep -c ^processor /proc/cpuinfo") == "2\n"
    states = [guest.run(f"xenstore-read cpu/{cpu}/availability").strip() for cpu in range(4)]
    assert states == ["online", "online", "offline", "offline"]
    set_availability(guest, range(2, 3), "online")
    wait_for(guest, "present", "0-2")
    set_availability(guest, range(2, 3), "offline")
    wait_for(guest, "present", "0-1")


@pytest.mark.parametrize("vcpus", [2, 8])
def test_by_the_command(linux: Path, tmp_path: Path, vcpus: int) -> None:
    initrd = tmp_path / "initrd.cpio"
    initrd.write_bytes(script_ramdisk("nproc; grep -c ^processor /proc/cpuinfo"))
    run = hvmlite(linux, "--ramdisk", initrd, "--vcpus", str(vcpus), "--cmdline", QUIET)
    assert run.status == 0, run
    assert re.search(rf"^{vcpus}\n{vcpus}\n\Z", run.output, re.MULTILINE), run
