"""Whatever ends `hvmlite run`, its QEMU and its shared memory end with it.

Proves it for signals at many moments, from the first milliseconds on. Cannot see what the kernel
itself keeps for a moment, nor a machine that stops as a whole.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from .command import Command, marked, shared_files, wait_until
from .guests import QUIET, SPIN, machine_code

GONE_WITHIN = 1.0
"""Seconds."""
DELAYS = (0, 2, 5, 10, 20, 35, 50, 70, 90, 110, 130, 150, 170, 200, 250, 300)
"""Milliseconds from start to kill: Python starting, QEMU starting, the guest running."""


def _shm() -> set[str]:
    return set(os.listdir("/dev/shm"))


def _gone(command: Command) -> bool:
    return wait_until(lambda: not marked(command.mark), GONE_WITHIN)


def test_kill(tmp_path: Path) -> None:
    files = _shm()
    with Command(machine_code(tmp_path / "kernel", SPIN), "--vcpus", "3") as command:
        engine = command.wait_for_engine()
        assert shared_files(command.pid) | shared_files(engine) == set()
        command.process.kill()
        command.process.wait()
        assert _gone(command)
        assert not Path(f"/proc/{engine}").exists() or not Path(f"/proc/{engine}/exe").exists()
    assert {name for name in _shm() - files if "hvmlite" in name or "qemu" in name} == set()


def test_kill_a_booted_guest(linux: Path, shell_cpio: Path) -> None:
    with Command(linux, "--ramdisk", shell_cpio, "--cmdline", QUIET, stdin=-1) as command:
        command.expect(rb"shell guest is ready")
        assert len(command.engines()) == 1
        command.process.kill()
        command.process.wait()
        assert _gone(command)


def test_kill_at_any_moment(tmp_path: Path) -> None:
    kernel = machine_code(tmp_path / "kernel", SPIN)
    remained = []
    for delay in DELAYS:
        with Command(kernel) as command:
            time.sleep(delay / 1000)
            command.process.kill()
            command.process.wait()
            if not _gone(command):
                remained.append(delay)
    assert remained == []


def test_kill_while_the_engine_starts(tmp_path: Path) -> None:
    """The moments around fork and exec, found by looking rather than by the clock."""
    kernel = machine_code(tmp_path / "kernel", SPIN)
    for extra in (0, 0.0005, 0.001, 0.002, 0.004, 0.008):
        with Command(kernel) as command:
            assert wait_until(lambda it=command: bool(_children(it.pid)), 20)
            time.sleep(extra)
            command.process.kill()
            command.process.wait()
            assert _gone(command), extra


def _children(pid: int) -> str:
    try:
        return "".join(
            (task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()
        )
    except OSError:
        return ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_at_any_moment(tmp_path: Path, number: signal.Signals) -> None:
    kernel = machine_code(tmp_path / "kernel", SPIN)
    for delay in DELAYS[4::3]:
        with Command(kernel) as command:
            time.sleep(delay / 1000)
            command.process.send_signal(number)
            run = command.finish(timeout=20)
            assert _gone(command), delay
        assert run.status in (1, -number), (delay, run)


def test_stopped_process_is_killed(tmp_path: Path) -> None:
    with Command(machine_code(tmp_path / "kernel", SPIN)) as command:
        command.wait_for_engine()
        command.process.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        command.process.kill()
        command.process.wait()
        assert _gone(command)


def test_abort_leaves_nothing(tmp_path: Path) -> None:
    """As after a fault of our own process."""
    with Command(machine_code(tmp_path / "kernel", SPIN)) as command:
        command.wait_for_engine()
        command.process.send_signal(signal.SIGSEGV)
        command.process.wait()
        assert _gone(command)
