"""tsc_mode: a tiny guest looks at its TSC in each mode, and Debian keeps time with an emulated one.

Proves what tests/guest/tsc_modes.c says, in 64-bit and 32-bit code, and that only always_emulate
costs exits. Cannot see an engine that lets no read of the TSC exit: there is none yet.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hvmlite.toolstack.config import TSC_MODES

from ..guest.build import VARIANTS, GuestToolsMissingError, build_guest
from .conftest import Boot
from .guests import QUIET, Shell


@pytest.mark.parametrize("mode", TSC_MODES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_tiny_guest(uvm: Boot, variant: str, mode: str) -> None:
    try:
        elf = build_guest("tsc_modes", variant)
    except GuestToolsMissingError as exc:
        pytest.skip(str(exc))
    guest = uvm(elf, cmdline=f"mode={TSC_MODES.index(mode)}", memory=64 << 20, tsc_mode=mode)
    console = guest.console.expect(r"Test result: (\w+)", 30)
    assert console[1] == b"SUCCESS", console.string
    outcome = guest.domain.wait(10)
    assert outcome is not None
    assert outcome.reason == "poweroff"
    # It reads its TSC more than 1000 times by RDTSC and RDTSCP, and has some 600 other exits.
    assert (guest.domain.exits > 1400) is (mode == "always_emulate"), guest.domain.exits


@pytest.mark.slow
def test_debian_with_an_emulated_tsc(uvm: Boot, linux: Path, shell_cpio: Path) -> None:
    guest = uvm(
        linux, shell=True, ramdisk=shell_cpio, cmdline=QUIET, vcpus=2, tsc_mode="always_emulate"
    )
    assert isinstance(guest, Shell)
    source = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
    assert guest.run(f"cat {source}") == "xen\n"
    before, first = time.monotonic(), float(guest.run("cut -d' ' -f1 /proc/uptime"))
    time.sleep(2)
    last, after = float(guest.run("cut -d' ' -f1 /proc/uptime")), time.monotonic()
    assert last - first < after - before + 0.05
    assert last - first > 2 - 0.05
    log = guest.run("dmesg")
    for sign in ("time went backwards", "WARNING:", "BUG:"):
        assert sign not in log
