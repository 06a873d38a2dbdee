"""How a run ends: exit statuses, what is said about it, and that nothing remains.

Proves each way in which a guest or its user can end a run. Cannot see the save and restore kinds of
shutdown, nor crashes of several vCPUs at once.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .command import Command, Finished, hvmlite
from .guests import HLT, QUIET, SPIN, UD2, machine_code, script_ramdisk

RunScript = Callable[..., Finished]


@pytest.fixture
def run_script(linux: Path, tmp_path: Path) -> RunScript:
    """Boots Debian with a few commands as its whole userspace."""

    def run(script: str, *options: str, cmdline: str = QUIET) -> Finished:
        initrd = tmp_path / "initrd.cpio"
        initrd.write_bytes(script_ramdisk(script))
        return hvmlite(linux, "--ramdisk", initrd, "--cmdline", cmdline, *options)

    return run


def test_poweroff(run_script: RunScript) -> None:
    run = run_script("echo up; poweroff -f")
    assert run.status == 0, run
    assert run.output == "up\n"
    assert run.messages == ""


def test_reboot_exit(run_script: RunScript) -> None:
    run = run_script("echo up; reboot -f", "--on-reboot", "exit")
    assert run.status == 0, run
    assert run.output == "up\n"
    assert run.messages == ""


def test_reboot_restart(linux: Path, shell_cpio: Path) -> None:
    with Command(linux, "--ramdisk", shell_cpio, "--cmdline", QUIET, stdin=-1) as command:
        for _ in range(2):
            command.expect(rb"shell guest is ready\r?\n")
            command.write(b"dmesg | grep -c 'Booting kernel on Xen PVH'; reboot -f\n")
            command.expect(rb"\b1\r?\n")
        command.expect(rb"shell guest is ready\r?\n")
        command.write(b"poweroff -f\n")
        run = command.finish()
    assert run.status == 0, run
    assert run.messages == ""


@pytest.mark.parametrize("panic", ["panic=-1", "panic=0"])
def test_panic(run_script: RunScript, panic: str) -> None:
    run = run_script("echo c > /proc/sysrq-trigger", cmdline=f"console=hvc0 loglevel=4 {panic}")
    assert run.status == 3, run
    assert "Kernel panic - not syncing: sysrq triggered crash" in run.output
    report = run.messages
    assert run.lines[0].startswith("hvmlite: guest crashed: ")
    assert "SHUTDOWN_crash" in run.lines[0]
    assert re.search(r"^  rip ffffffff8[0-9a-f]{7}  rflags [0-9a-f]{8}$", report, re.MULTILINE)
    assert re.search(r"^  cr0 [0-9a-f]+ .*cr3 [0-9a-f]+.*efer", report, re.MULTILINE)
    assert re.search(r"^  instruction: \w+", report, re.MULTILINE)
    # The last hypercall is the one that told us: SCHEDOP_shutdown is number 2.
    assert re.search(r"^    sched_op\(0x2, ", run.lines[-1]), report


def test_panic_at_boot(linux: Path) -> None:
    run = hvmlite(linux, "--cmdline", "console=hvc0 loglevel=4 panic=-1")
    assert run.status == 3, run
    assert "VFS: Unable to mount root fs" in run.output
    assert run.lines[0].startswith("hvmlite: guest crashed: ")


def test_triple_fault(tmp_path: Path) -> None:
    code = b"\xb8\x78\x56\x34\x12" + UD2  # mov $0x12345678, %eax
    run = hvmlite(machine_code(tmp_path / "kernel", code))
    assert run.status == 3, run
    assert run.output == ""
    report = run.messages
    assert "triple fault" in run.lines[0]
    assert re.search(r"\brip 0000000000100005\b", report), report
    assert re.search(r"\brax 0000000012345678\b", report), report
    assert re.search(r"^  code at rip: 0f 0b\b", report, re.MULTILINE), report
    assert re.search(r"^  instruction: ud2", report, re.MULTILINE), report


def test_hypercalls_before_a_triple_fault(tmp_path: Path) -> None:
    code = (
        b"\xb8\x11\x00\x00\x00"  # mov $__HYPERVISOR_xen_version, %eax
        b"\x31\xdb\x31\xc9"  # xor %ebx, %ebx; xor %ecx, %ecx
        b"\x0f\x01\xd9"  # vmmcall
        b"\xb8\x3b\x00\x00\x00"  # mov $59, %eax: no hypercall has this number
        b"\x0f\x01\xd9" + UD2
    )
    run = hvmlite(machine_code(tmp_path / "kernel", code), "--verbose")
    assert run.status == 3, run
    calls = run.messages.partition("last hypercalls")[2].splitlines()[1:3]
    assert re.match(r"    xen_version\(0x0, .* = 262161$", calls[0]), run
    assert re.match(r"    \S.*59.*\(.* = -38$", calls[1]), run
    assert re.search(r"^hvmlite: not supported: .*59", run.messages, re.MULTILINE), run


def test_all_vcpus_down(tmp_path: Path) -> None:
    """As Xen has it: a guest whose vCPUs all halt with interrupts off has powered off."""
    run = hvmlite(machine_code(tmp_path / "kernel", HLT))
    assert run.status == 0, run
    assert run.messages == ""


def test_jump_into_nothing(tmp_path: Path) -> None:
    """An address where there is no memory at all."""
    code = b"\xea\x00\x00\x00\xd0\x08\x00"  # ljmp $8, $0xd0000000: the GDT is not there either
    run = hvmlite(machine_code(tmp_path / "kernel", code), "--timeout", "20")
    assert run.status == 3, run
    assert run.lines[0].startswith("hvmlite: guest crashed: ")


def test_execution_outside_memory(tmp_path: Path) -> None:
    code = b"\xb8\x00\x00\x00\xd0\xff\xe0"  # mov $0xd0000000, %eax; jmp *%eax
    run = hvmlite(machine_code(tmp_path / "kernel", code), "--timeout", "20")
    assert run.status == 3, run
    assert run.lines[0].startswith("hvmlite: guest crashed: ")
    assert "d0000000" in run.messages


@pytest.mark.parametrize("vcpus", [1, 4])
def test_time_limit(tmp_path: Path, vcpus: int) -> None:
    kernel = machine_code(tmp_path / "kernel", SPIN)
    run = hvmlite(kernel, "--timeout", "0.7", "--vcpus", str(vcpus))
    assert run.status == 4, run
    assert run.lines == ["hvmlite: time limit of 0.7 s reached"]
    assert 0.7 < run.seconds < 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals(tmp_path: Path, number: signal.Signals) -> None:
    with Command(machine_code(tmp_path / "kernel", SPIN)) as command:
        command.wait_for_engine()
        command.process.send_signal(number)
        run = command.finish(timeout=20)
        assert command.engines() == []
    # A signal that comes before the handlers are there ends it as it ends any program.
    assert run.status in (1, -number), run
    if run.status == 1:
        assert run.lines == [f"hvmlite: ended by {number.name}"]


def test_reader_of_the_console_goes(linux: Path, shell_cpio: Path) -> None:
    """`hvmlite run … | head -1`: ends as soon as it writes again."""
    with Command(linux, "--ramdisk", shell_cpio, "--cmdline", QUIET, stdin=-1) as command:
        command.expect(rb"shell guest is ready")
        assert command.process.stdout is not None
        command.process.stdout.close()
        command.process.stdout = None
        command.write(b"echo nobody reads this\n")
        run = command.finish(timeout=20)
        assert command.engines() == []
    assert run.status == 1, run
    assert run.lines == ["hvmlite: the reader of the console has gone"]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("/nonexistent/qemu", "not found"),
        ("/bin/false", "QEMU ended with status 1"),
    ],
)
def test_no_engine(tmp_path: Path, program: str, message: str) -> None:
    kernel = machine_code(tmp_path / "kernel", SPIN)
    run = hvmlite(kernel, "--timeout", "20", env={"HVMLITE_QEMU": program})
    assert run.status == 1, run
    assert len(run.lines) == 1
    assert run.lines[0].startswith("hvmlite: ")
    assert message in run.lines[0]


@pytest.mark.parametrize("delay", [0, 0.02, 0.5])
def test_engine_is_killed(tmp_path: Path, delay: float) -> None:
    """Our own failure, as far as the user can tell: status 1 and one line."""
    with Command(machine_code(tmp_path / "kernel", SPIN)) as command:
        engine = command.wait_for_engine()
        time.sleep(delay)
        os.kill(engine, signal.SIGKILL)
        run = command.finish(timeout=20)
    assert run.status == 1, run
    assert len(run.lines) == 1, run
    if delay == 0.5:
        # Earlier it may be the self-test that fails.
        assert "QEMU ended by signal 9" in run.messages
