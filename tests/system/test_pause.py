"""A paused Debian: nothing runs, time goes on, and what came due is there afterwards.

Cannot see what a pause of hours would do, nor one of the host itself.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from .command import cpu_seconds
from .conftest import Boot
from .guests import QUIET, Shell

PAUSE = 1.5


@pytest.fixture
def guest(uvm: Boot, linux: Path, shell_cpio: Path) -> Shell:
    guest = uvm(linux, shell=True, ramdisk=shell_cpio, cmdline=QUIET, vcpus=2)
    assert isinstance(guest, Shell)
    return guest


def uptime(guest: Shell) -> float:
    return float(guest.run("cut -d' ' -f1 /proc/uptime"))


def running(guest: Shell) -> list[bool]:
    return guest.call(lambda: [vcpu.running for vcpu in guest.domain.incarnation.domain.vcpus])


def test_time_goes_on(guest: Shell) -> None:
    before, first = time.monotonic(), uptime(guest)
    guest.domain.pause()
    time.sleep(PAUSE)
    guest.domain.unpause()
    last, after = uptime(guest), time.monotonic()
    # Hundredths, and each reading is taken some time during its command.
    assert PAUSE - 0.03 < last - first < after - before + 0.03
    assert abs(int(guest.run("date +%s")) - time.time()) < 2
    assert guest.run("sleep 0.2; echo awake") == "awake\n"


def test_a_sleep_that_ends_meanwhile(guest: Shell) -> None:
    guest.console.write("echo begin; sleep 1; echo end\n")
    guest.console.expect(r"begin\n")
    time.sleep(0.3)  # until it sleeps
    guest.domain.pause()
    time.sleep(PAUSE)
    begin = time.monotonic()
    guest.domain.unpause()
    guest.console.expect(r"end\n\[status 0\]\n")
    # Of the second nothing is left.
    assert time.monotonic() - begin < 0.5


def test_nothing_runs(guest: Shell) -> None:
    guest.run("(while :; do :; done) & echo $! > /busy")
    guest.domain.pause()
    guest.domain.pause()
    deadline = time.monotonic() + 5
    while any(running(guest)):
        assert time.monotonic() < deadline, "a vCPU still runs"
        time.sleep(0.01)
    engine = guest.call(lambda: guest.domain.incarnation.domain.partition._process.pid)
    before = cpu_seconds(engine)
    time.sleep(PAUSE)
    assert cpu_seconds(engine) - before < 0.1
    guest.domain.unpause()
    assert not any(running(guest)), "pauses are counted"
    guest.domain.unpause()
    guest.run("kill $(cat /busy)")
    assert "hung" not in guest.run("dmesg")


def test_input_and_xenstore_wait(guest: Shell) -> None:
    guest.domain.pause()
    guest.console.write("echo typed\n")
    path = f"/local/domain/{guest.domain.id}/cpu/1/availability"
    guest.call(lambda: guest.host.store.write(path, "offline"))
    time.sleep(0.2)
    guest.domain.unpause()
    guest.console.expect(r"typed\n\[status 0\]\n")
    deadline = time.monotonic() + 10
    while guest.run("nproc") != "1\n":
        assert time.monotonic() < deadline, "xenstore was not heard"
        time.sleep(0.05)
