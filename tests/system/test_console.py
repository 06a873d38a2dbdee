"""The console as a user has it: pipes, files and terminals at both ends, and much data at once.

Proves that bytes arrive complete and in order, and that a terminal is left as it was found. Cannot
see more than one console, nor a terminal that changes its size.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .command import Command, hvmlite, wait_until
from .guests import QUIET, SPIN, STORM, Shell, machine_code

LINES = 150_000
NUMBERS = "".join(f"{i}\n" for i in range(1, LINES + 1)).encode()
"""About a megabyte."""
# Not by seq itself: to a terminal it writes line by line, which takes the guest ten times as long.
PRINT_NUMBERS = f"seq 1 {LINES} > /tmp/numbers; cat /tmp/numbers".encode()


@pytest.fixture
def shell_command(linux: Path, shell_cpio: Path) -> list[str | Path]:
    return [linux, "--ramdisk", shell_cpio, "--cmdline", QUIET]


def test_commands_from_a_pipe(shell_command: list[str | Path]) -> None:
    run = hvmlite(*shell_command, data=b"echo $((6 * 7))\necho bye; poweroff -f\n")
    assert run.status == 0, run
    assert "42\n[status 0]\nbye\n" in run.output
    assert run.messages == ""


def test_end_of_stdin_does_not_end_the_guest(shell_command: list[str | Path]) -> None:
    run = hvmlite(*shell_command, data=b"sleep 0.5; echo later; poweroff -f\n")
    assert run.status == 0, run
    assert "later\n" in run.output


def test_commands_from_a_file(shell_command: list[str | Path], tmp_path: Path) -> None:
    """More than the ring and our own buffer hold."""
    script = tmp_path / "script"
    comment = b"# " + b"x" * 4000 + b"\n"
    script.write_bytes(
        b"n=0\n" + b"n=$((n + 1)); [ 1 ]\n" * 100 + comment * 20 + b"echo n=$n\npoweroff -f\n"
    )
    with script.open("rb") as stdin:
        run = hvmlite(*shell_command, stdin=stdin)
    assert run.status == 0, run
    assert "n=100\n" in run.output


@pytest.mark.parametrize("kind", ["null", "closed"])
def test_no_input(tmp_path: Path, kind: str) -> None:
    kernel = machine_code(tmp_path / "kernel", SPIN)
    prepare = (lambda: os.close(0)) if kind == "closed" else None
    run = hvmlite(kernel, "--timeout", "0.5", prepare=prepare)
    assert run.status == 4, run
    assert len(run.lines) == 1


def test_no_output(tmp_path: Path) -> None:
    kernel = machine_code(tmp_path / "kernel", SPIN)
    run = hvmlite(kernel, "--timeout", "0.5", prepare=lambda: os.close(1))
    assert run.status == 4, run
    assert len(run.lines) == 1


def test_much_output_to_a_slow_reader(shell_command: list[str | Path]) -> None:
    """The reader sleeps until the guest is done: it gets all the same bytes afterwards."""
    with Command(*shell_command, stdin=subprocess.PIPE) as command:
        command.expect(rb"shell guest is ready\r?\n")
        command.write(PRINT_NUMBERS + b"\n")
        time.sleep(2)
        command.expect(rb"\[status 0\]\n")
        command.write(b"poweroff -f\n")
        run = command.finish()
    assert run.status == 0, run.status
    output = bytes(command.output)
    start = output.index(b"1\n2\n3\n")
    assert output[start : start + len(NUMBERS)] == NUMBERS


def test_much_output_to_a_file(shell_command: list[str | Path], tmp_path: Path) -> None:
    with (
        (tmp_path / "output").open("w+b") as stdout,
        Command(*shell_command, stdin=subprocess.PIPE, stdout=stdout) as command,
    ):
        run = command.finish(PRINT_NUMBERS + b"; poweroff -f\n")
        assert run.status == 0, run.status
        stdout.seek(0)
        output = stdout.read()
    assert output.endswith((b"ready\r\n" + NUMBERS, b"ready\n" + NUMBERS))


def test_much_input(debian: Shell) -> None:
    """Lines of many lengths, with every printable character, faster than the guest reads."""
    text = "".join(
        "".join(chr(33 + (i * 7 + j) % 94) for j in range(i * 13 % 1000)) + "\n" for i in range(400)
    )
    assert len(text) > 190_000
    debian.console.write(f"head -c {len(text)} | md5sum\n")
    # The owner of a console must not write more than there is room for.
    data = text.encode()
    deadline = time.monotonic() + 60
    while data:
        room = debian.call(lambda: debian.console.input_room)
        if room:
            debian.console.write(data[:room])
            data = data[room:]
        else:
            time.sleep(0.005)
        assert time.monotonic() < deadline
    found = debian.console.expect(r"([0-9a-f]{32})  -\n\[status 0\]\n", 30)
    assert found[1].decode() == hashlib.md5(text.encode()).hexdigest()


def test_paste_by_the_command(shell_command: list[str | Path]) -> None:
    """All of it is there before the guest has even booted."""
    text = "".join(f"line {i:06} {'=' * (i % 60)}\n" for i in range(5000)).encode()
    command = f"head -c {len(text)} | md5sum\n".encode()
    run = hvmlite(*shell_command, data=command + text + b"poweroff -f\n")
    assert run.status == 0, run
    assert hashlib.md5(text).hexdigest() in run.output, run


def test_input_while_output_floods(shell_command: list[str | Path]) -> None:
    """A guest that prints without pause still hears its user."""
    with Command(*shell_command, stdin=subprocess.PIPE) as command:
        command.expect(rb"shell guest is ready\r?\n")
        command.write(b"yes & read -r line; kill $!; echo heard $line\n")
        command.expect(rb"(y\r?\n){1000}")
        command.write(b"you\n")
        command.expect(rb"heard you", 20)
        command.write(b"poweroff -f\n")
        assert command.finish().status == 0


# --- terminals -----------------------------------------------------------------------------------


@dataclass
class Terminal:
    """A pseudo-terminal: `user` is the side with keyboard and screen."""

    user: int
    line: int

    @property
    def settings(self) -> list[Any]:
        return termios.tcgetattr(self.line)

    @property
    def raw(self) -> bool:
        return not self.settings[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def read(self) -> bytes:
        return os.read(self.user, 65536)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    user, line = os.openpty()
    yield Terminal(user, line)
    os.close(user)
    os.close(line)


def test_session_on_a_terminal(linux: Path, prompt_cpio: Path, terminal: Terminal) -> None:
    before = terminal.settings
    with Command(
        linux, "--ramdisk", prompt_cpio, "--cmdline", QUIET, stdin=terminal.line,
        stdout=terminal.line,
    ) as command:  # fmt: skip
        seen = b""

        def expect(text: bytes) -> None:
            nonlocal seen
            while text not in seen:
                seen += terminal.read()
            seen = seen[seen.index(text) + len(text) :]

        expect(b"guest# ")
        assert terminal.raw
        os.write(terminal.user, b"echo $((6 * 7))\r")
        expect(b"42\r\n")
        expect(b"guest# ")
        # The guest's terminal, not ours, makes a signal of Ctrl-C.
        os.write(terminal.user, b"sleep 100\r")
        expect(b"sleep 100")
        time.sleep(0.3)
        os.write(terminal.user, b"\x03")
        expect(b"guest# ")
        os.write(terminal.user, b"echo never\x1decho typed after leaving\r")
        run = command.finish(timeout=20)
        assert command.engines() == []
    assert run.status == 0, run
    assert run.lines == ["hvmlite: left the console; the guest was destroyed"]
    assert terminal.settings == before


@pytest.mark.parametrize("end", ["escape", "SIGTERM", "time limit"])
def test_terminal_is_restored(tmp_path: Path, terminal: Terminal, end: str) -> None:
    before = terminal.settings
    kernel = machine_code(tmp_path / "kernel", SPIN)
    limit = "1" if end == "time limit" else "60"
    with Command(kernel, "--timeout", limit, stdin=terminal.line, stdout=terminal.line) as command:
        assert wait_until(lambda: terminal.raw, 20)
        if end == "escape":
            os.write(terminal.user, b"\x1d")
        elif end == "SIGTERM":
            command.process.send_signal(signal.SIGTERM)
        run = command.finish(timeout=20)
        assert command.engines() == []
    assert run.status == {"escape": 0, "SIGTERM": 1, "time limit": 4}[end], run
    assert terminal.settings == before


def test_escape_from_a_busy_guest(tmp_path: Path, terminal: Terminal) -> None:
    """Hypercalls without a pause leave the host time for its user."""
    kernel = machine_code(tmp_path / "kernel", STORM)
    with Command(kernel, "--vcpus", "2", stdin=terminal.line, stdout=terminal.line) as command:
        command.wait_for_engine()
        time.sleep(0.5)
        begin = time.monotonic()
        os.write(terminal.user, b"\x1d")
        run = command.finish(timeout=20)
        assert time.monotonic() - begin < 5
    assert run.status == 0, run


def test_terminal_of_a_bad_kernel(tmp_path: Path, terminal: Terminal) -> None:
    before = terminal.settings
    (tmp_path / "kernel").write_text("no kernel\n")
    with Command(tmp_path / "kernel", stdin=terminal.line, stdout=terminal.line) as command:
        assert command.finish().status == 2
    assert terminal.settings == before


def test_escape_in_a_pipe_is_a_byte(shell_command: list[str | Path]) -> None:
    run = hvmlite(*shell_command, data=b"echo 'a\x1db' | od -An -c; poweroff -f\n")
    assert run.status == 0, run
    assert "a 035   b" in run.output
