"""Random hypercalls from guests in three modes (fuzz.c), and what they do to the host: nothing.

Proves that no call ends or hangs the host loop, that a domain leaves nothing behind, that the
host's tables about a guest stay bounded and that memory does not grow; two guests run at a time and
share grants, event channels and Argo rings. Cannot see whether an answer is right, nor what needs
a hostile ring or a device.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from .build import GuestToolsMissingError, build_guest
from .conftest import FUZZ
from .run import SOURCE_DIR

ROOT = SOURCE_DIR.parent
VARIANTS = ("hvm64", "hvm32pae", "hvm32")
RAM_FRAMES = (64 << 20) >> 12
SPARE_FRAMES = 256
"""By how much a domain may exceed its memory, as under libxl."""
LARGEST = {
    # What each table can hold at most by its own limit, for a domain of fuzzing.py's.
    "physmap changes": 8192,
    "physmap places": 8192,
    "regions": 1024 + (RAM_FRAMES + SPARE_FRAMES >> 8),
    "runs of RAM": 1024,
    "shared frames": 1 + 64 + 8,
    "unused frames": 0,
    "surplus frames": 0,
    "maptrack": 4096,
    "pins": 64 * 512,
    "grant frames": 64 + 8,
    "ports": 1024,
    "pirqs": 56,
    "refused calls": 256,
    "memory map": 1024,
    "timers": 512,
    "references": 4096,
    "params": 43,
    "rings": 128,
    "waiting": 128 * 32,
}
# The pages of guests count as the process's once it has looked at them.
PEAK_GROWTH_KIB = 2 * (64 << 10) + (16 << 10)
# What malloc keeps of the work on crash reports; guests without crashes add some KiB in a hundred.
GROWTH_KIB = 8 << 10
OBJECTS = 2000
"""Objects of Python: a domain has some thousand."""


def fuzz(config: pytest.Config, *options: str, timeout: float) -> dict[str, Any]:
    try:
        elfs = [str(build_guest("fuzz", variant)) for variant in VARIANTS]
    except GuestToolsMissingError as exc:
        pytest.skip(str(exc))
    done = subprocess.run(
        [sys.executable, "-m", "tests.guest.fuzzing", *elfs, *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(SOURCE_DIR)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    config.stash.setdefault(FUZZ, []).append(figures)
    figures["messages"] = done.stderr
    return figures


def check(figures: dict[str, Any], calls: int) -> None:
    assert figures["exceptions"] == []
    assert figures["hangs"] == []
    assert figures["left"] == []
    assert figures["calls"] >= calls
    early = sum(n for ending, n in figures["endings"].items() if ending.endswith("(early)"))
    # The neighbour may change a structure between a guest's look at it and the call.
    assert early <= max(1, figures["calls"] // 100_000), figures["messages"]
    too_large = {name: size for name, size in figures["sizes"].items() if size > LARGEST[name]}
    assert too_large == {}
    before, after = figures["before"], figures["after"]
    assert after["VmHWM"] - before["VmHWM"] < PEAK_GROWTH_KIB
    assert after["RssAnon"] - before["RssAnon"] < GROWTH_KIB
    assert figures["objects"] < OBJECTS


@pytest.mark.engine
@pytest.mark.timeout(120)
def test_random_calls(pytestconfig: pytest.Config) -> None:
    check(fuzz(pytestconfig, "--calls", "20000", "--wild", "9", timeout=110), 20_000)


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1800)
def test_many_random_calls(pytestconfig: pytest.Config) -> None:
    options = ("--calls", "220000", "--wild", "120", "--seed", "1000")
    check(fuzz(pytestconfig, *options, timeout=1700), 200_000)


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(900)
def test_long_runs_of_one_guest(pytestconfig: pytest.Config) -> None:
    options = ("--calls", "300000", "--each", "20000", "--seed", "500")
    check(fuzz(pytestconfig, *options, timeout=800), 200_000)
