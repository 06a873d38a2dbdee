"""Proves that a QEMU that is missing, broken, mute or hanging is one clear EngineError in bounded
time, and that no process, file or frame is left behind.

Uses shell scripts in QEMU's place; the real one is in test_engine.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hvmlite.engine.memory import MachineMemory
from hvmlite.engine.tcg import partition as partition_module
from hvmlite.engine.tcg import process
from hvmlite.engine.tcg.engine import TcgEngine
from hvmlite.engine.tcg.partition import TcgPartition
from hvmlite.engine.tcg.process import ENVIRONMENT, QemuProcess, find_qemu, qemu_version
from hvmlite.errors import EngineError

from .conftest import children, descriptors

SOURCE = Path(__file__).resolve().parents[4] / "src"


def start(memory: MachineMemory) -> QemuProcess:
    return QemuProcess(memory, b"rom", 1, "max")


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


# --- finding it ------------------------------------------------------------------------------


def test_the_environment_names_it(fake_qemu: Callable[[str], Path]) -> None:
    path = fake_qemu("exit 0")
    assert find_qemu() == str(path)


def test_a_name_in_the_environment_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my-qemu").write_text("#!/bin/sh\n")
    (tmp_path / "my-qemu").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(ENVIRONMENT, "my-qemu")
    assert find_qemu() == str(tmp_path / "my-qemu")
    monkeypatch.delenv(ENVIRONMENT)
    with pytest.raises(EngineError) as caught:
        find_qemu()
    assert str(caught.value) == (
        "qemu-system-x86_64 not found: install the package qemu-system-x86 (7.2 or newer)"
    )


@pytest.mark.parametrize("value", ["/nowhere/qemu", "no-such-qemu", "/", "/etc/passwd"])
def test_what_cannot_be_run_is_not_found(
    memory: MachineMemory, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(ENVIRONMENT, value)
    with pytest.raises(EngineError) as caught:
        TcgEngine().create(memory, 1)
    assert str(caught.value).startswith(f"{value} (from $HVMLITE_QEMU) not found: install ")


def test_not_even_a_program(memory: MachineMemory, fake_qemu: Callable[[str], Path]) -> None:
    path = fake_qemu("")
    path.write_bytes(b"\x7fELF no program")
    with pytest.raises(EngineError, match=f"^cannot start {path}: .*Exec format error"):
        TcgEngine().create(memory, 1)


# --- its version -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("echo 'QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)'", "7.2.22"),
        ("echo QEMU emulator version 11.0.90", "11.0.90"),
    ],
)
def test_version(fake_qemu: Callable[[str], Path], script: str, version: str) -> None:
    assert qemu_version(str(fake_qemu(script))) == version


@pytest.mark.parametrize("script", ["echo hello", "true", "echo a version", "printf '\\377'"])
def test_not_the_version_of_a_qemu(fake_qemu: Callable[[str], Path], script: str) -> None:
    with pytest.raises(EngineError, match="does not look like QEMU|cannot be run"):
        qemu_version(str(fake_qemu(script)))


def test_version_of_what_fails(fake_qemu: Callable[[str], Path]) -> None:
    with pytest.raises(EngineError, match="cannot be run: .*exit status 3"):
        qemu_version(str(fake_qemu("exit 3")))


def test_version_of_what_hangs(
    fake_qemu: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = subprocess.run

    def hurried(*arguments: object, **options: object) -> object:
        assert options["timeout"] == 20
        return run(*arguments, **{**options, "timeout": 0.1})  # type: ignore[call-overload]

    monkeypatch.setattr(process.subprocess, "run", hurried)
    with pytest.raises(EngineError, match="cannot be run: .*timed out"):
        qemu_version(str(fake_qemu("exec sleep 30")))


# --- its end ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 1", "QEMU ended with status 1: it printed nothing"),
        ("echo first; echo 'last words' >&2; exit 0", "QEMU ended with status 0: last words"),
        ("echo out of luck; kill -9 $$", "QEMU ended by signal 9: out of luck"),
        ("printf '\\377\\n\\n  \\n'; exit 2", "QEMU ended with status 2: �"),
    ],
)
def test_last_words(
    memory: MachineMemory, fake_qemu: Callable[[str], Path], script: str, words: str
) -> None:
    fake_qemu(script)
    partition = TcgEngine().create(memory, 1)
    with pytest.raises(EngineError) as caught:
        partition.wait_ready()
    assert str(caught.value) == words
    with pytest.raises(EngineError):
        partition.check_alive()
    partition.close()


def test_bin_false(memory: MachineMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "/bin/false")
    partition = TcgEngine().create(memory, 2)
    with pytest.raises(EngineError, match="^QEMU ended with status 1: it printed nothing$"):
        partition.wait_ready()
    partition.close()


def test_endless_words_are_cut(memory: MachineMemory, fake_qemu: Callable[[str], Path]) -> None:
    fake_qemu("head -c 1000000 /dev/zero | tr '\\0' x; exit 1")
    partition = TcgEngine().create(memory, 1)
    with pytest.raises(EngineError) as caught:
        partition.wait_ready()
    assert len(str(caught.value)) < 70000
    partition.close()


def test_one_that_hangs_is_given_up(
    memory: MachineMemory, fake_qemu: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition_module, "_START_TIMEOUT", 0.3)
    path = fake_qemu("exec sleep 60")
    partition = TcgEngine().create(memory, 1)
    begin = time.monotonic()
    with pytest.raises(EngineError, match=f"^QEMU \\({path}\\) does not start within"):
        partition.wait_ready()
    assert time.monotonic() - begin < 10
    partition.close()


def test_close_ends_it_and_may_be_repeated(
    memory: MachineMemory, fake_qemu: Callable[[str], Path]
) -> None:
    fake_qemu("exec sleep 60")
    partition = TcgPartition(memory, 1)
    pid = partition._process.pid
    assert alive(pid)
    partition.close()
    assert not alive(pid)
    partition.close()


def test_one_that_ignores_signals_is_ended_as_well(
    memory: MachineMemory, fake_qemu: Callable[[str], Path]
) -> None:
    fake_qemu("trap '' TERM INT HUP; echo ready >&2; while :; do sleep 0.01; done")
    started = start(memory)
    wait_for(lambda: os.fstat(started._log_fd).st_size > 0)
    started.close()
    assert not alive(started.pid)


def test_signals_of_the_terminal_do_not_reach_it(
    memory: MachineMemory, fake_qemu: Callable[[str], Path]
) -> None:
    fake_qemu("exec sleep 60")
    started = start(memory)
    assert os.getpgid(started.pid) == started.pid != os.getpgrp()
    started.close()


def test_what_it_inherits(memory: MachineMemory, fake_qemu: Callable[[str], Path]) -> None:
    """Standard streams, and the four files of its command line; nothing else of ours."""
    fake_qemu("exec sleep 60")
    secret = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    started = start(memory)
    wait_for(lambda: b"sleep" in Path(f"/proc/{started.pid}/cmdline").read_bytes()[:6])
    links = {os.readlink(fd) for fd in Path(f"/proc/{started.pid}/fd").iterdir()}
    assert len([each for each in links if each.startswith("socket:")]) == 2
    assert {each for each in links if not each.startswith("socket:")} == {
        "/dev/null",
        "/memfd:hvmlite (deleted)",
        "/memfd:hvmlite-rom (deleted)",
        "/memfd:hvmlite-qemu-log (deleted)",
    }
    started.close()
    os.close(secret)


def test_failing_to_start_leaves_nothing(
    memory: MachineMemory, fake_qemu: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_qemu("exit 0")

    def fail(*_arguments: object, **_options: object) -> None:
        raise PermissionError(1, "not today")

    monkeypatch.setattr(process.subprocess, "Popen", fail)
    for _ in range(3):
        with pytest.raises(EngineError, match="cannot start .*: .*not today"):
            TcgEngine().create(memory, 1)


def test_it_dies_with_us(fake_qemu: Callable[[str], Path], tmp_path: Path) -> None:
    fake_qemu("exec sleep 60")
    script = (
        "import os, time\n"
        "from hvmlite.engine.memory import MachineMemory\n"
        "from hvmlite.engine.tcg.process import QemuProcess\n"
        "memory = MachineMemory(2 << 20)\n"
        "process = QemuProcess(memory, b'rom', 1, 'max')\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: not alive(pid))


def test_the_tests_own_measures() -> None:
    before, files = children(), descriptors()
    with subprocess.Popen(["sleep", "30"]) as child:
        assert children() == before | {child.pid}
        child.kill()
    assert children() == before
    assert descriptors() == files
