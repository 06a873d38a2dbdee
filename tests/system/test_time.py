"""Time in a guest against the host's: sleeping, the clock, the wall clock, and idling.

Proves that the clocks agree while the guest runs undisturbed. Cannot see single late ticks, nor
what becomes of time when the host is suspended. A busy host makes a guest late, never early: that
a sleep takes too long counts only if it does so again and again.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from .command import Command, cpu_seconds
from .guests import QUIET, Shell

TOLERANCE = 0.05


def _uptime(guest: Shell) -> float:
    return float(guest.run("cut -d' ' -f1 /proc/uptime"))


def _timed(guest: Shell, command: str) -> float:
    """Seconds between the guest's output before and after a command, on the host's clock."""
    guest.console.write(f"echo begin; {command}; echo end\n")
    guest.console.expect(r"begin\n")
    begin = time.monotonic()
    guest.console.expect(r"end\n\[status 0\]\n")
    return time.monotonic() - begin


def test_sleep(debian: Shell) -> None:
    taken = []
    for _ in range(4):
        taken.append(_timed(debian, "sleep 1"))
        # The two lines may have been a millisecond under way.
        assert taken[-1] > 1 - 0.01, taken
        if taken[-1] < 1 + TOLERANCE:
            return
    pytest.fail(f"sleep 1 takes {taken} s")


def _check_pace(guest: Shell, seconds: float) -> None:
    """The guest's clock advances as far as the host's; each reading takes a moment, at its end."""
    before, guest_before, started = time.monotonic(), _uptime(guest), time.monotonic()
    time.sleep(seconds)
    middle, guest_after, after = time.monotonic(), _uptime(guest), time.monotonic()
    taken = guest_after - guest_before
    # /proc/uptime counts hundredths.
    assert middle - started - 0.02 <= taken <= after - before + 0.02


def test_clock_keeps_pace(debian: Shell) -> None:
    _check_pace(debian, 1.0)


def test_busy_guest_keeps_time(debian: Shell) -> None:
    """A second of work, timed by the guest and by the host alike."""
    work = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done"
    guest_before = _uptime(debian)
    taken = _timed(debian, work)
    guest_taken = _uptime(debian) - guest_before
    assert guest_taken > taken - 0.05
    assert guest_taken < taken + 1.0


def test_wall_clock(debian: Shell) -> None:
    before = int(time.time())
    seconds = int(debian.run("date +%s"))
    assert before - 1 <= seconds <= time.time() + 1


def test_timer_interrupts_arrive(debian: Shell) -> None:
    count = "awk '/timer0/ {print $2}' /proc/interrupts"
    before = int(debian.run(count))
    debian.run("sleep 0.3")
    assert int(debian.run(count)) > before


@pytest.mark.slow
def test_idle_guest_costs_nothing(linux: Path, prompt_cpio: Path) -> None:
    """Ten seconds at the prompt: at most a tenth of one CPU, hvmlite and QEMU together."""
    with Command(linux, "--ramdisk", prompt_cpio, "--cmdline", QUIET, stdin=-1) as command:
        command.expect(rb"guest# ")
        processes = [command.pid, command.wait_for_engine()]
        time.sleep(2)  # the kernel still has things to finish
        begin, before = time.monotonic(), sum(map(cpu_seconds, processes))
        time.sleep(10)
        used = sum(map(cpu_seconds, processes)) - before
        share = used / (time.monotonic() - begin)
        print(f"an idle guest takes {share:.1%} of a CPU")
        assert share < 0.10


@pytest.mark.slow
def test_no_drift(debian: Shell) -> None:
    _check_pace(debian, 20.0)
