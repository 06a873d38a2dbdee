"""Runs the `hvmlite` command as a user does, and finds whatever it leaves behind.

Every process gets a mark in its environment, which all that it starts inherit: a process with the
mark is a leftover, whoever its parent has become.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

SOURCE_DIR = Path(__file__).resolve().parents[2] / "src"
MARK = "HVMLITE_TEST_MARK"
LIMIT = 60.0
"""Seconds that any run may take before it counts as hung."""


def command_line(verb: str = "run") -> list[str]:
    """The command, without arguments."""
    script = Path(sys.executable).with_name("hvmlite")
    first = [str(script)] if script.exists() else [sys.executable, "-m", "hvmlite.cli.main"]
    return [*first, verb]


def marked(mark: str) -> list[int]:
    """Every living process that carries the mark; a zombie carries nothing any more."""
    needle = f"{MARK}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if needle in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
    return found


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether `condition()` becomes true within that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def shared_files(pid: int) -> set[str]:
    """Files in /dev/shm that a process has open or mapped."""
    found = set(re.findall(r"/dev/shm/\S+", Path(f"/proc/{pid}/maps").read_text()))
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(fd)
            if target.startswith("/dev/shm/"):
                found.add(target)
    return found


@dataclass(frozen=True)
class Finished:
    """A run that has ended: `output` is the guest's console, `messages` are ours, on stderr."""

    status: int
    output: str
    messages: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """The lines of stderr."""
        return self.messages.splitlines()

    def __str__(self) -> str:
        return (
            f"exit status {self.status} after {self.seconds:.1f} s\n--- console\n"
            f"{self.output[-4000:]}\n--- messages\n{self.messages}"
        )


class Command:
    """One running `hvmlite` with a pipe for its stdout, or the given descriptors.

    Use it in a `with` statement, which ends what is still there.  `env` changes the environment;
    `prepare` runs in the child before the command starts.
    """

    def __init__(
        self,
        *arguments: str | Path,
        verb: str = "run",
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.PIPE,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        prepare: Callable[[], None] | None = None,
        new_session: bool = False,
    ) -> None:
        self.arguments = [*command_line(verb), *map(str, arguments)]
        self.mark = uuid.uuid4().hex
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        path = os.pathsep.join(filter(None, [str(SOURCE_DIR), os.environ.get("PYTHONPATH")]))

        def begin() -> None:
            # A test run in the background has SIGINT or SIGHUP ignored, which is inherited.
            for number in (signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            if prepare is not None:
                prepare()

        self.begin = time.monotonic()
        self.process = subprocess.Popen(
            self.arguments,
            stdin=stdin,
            stdout=stdout,
            stderr=self._stderr,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path, **(env or {}), MARK: self.mark},
            preexec_fn=begin,  # noqa: PLW1509
            start_new_session=new_session,
        )
        self.pid = self.process.pid
        self.output = bytearray()
        self._read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._stderr.close()

    # ---- its processes --------------------------------------------------------------------------

    def engines(self) -> list[int]:
        """What it has started and still runs."""
        return [pid for pid in marked(self.mark) if pid != self.pid]

    def wait_for_engine(self) -> int:
        """The process number of its QEMU, once that has replaced the forked Python."""

        def is_qemu(pid: int) -> bool:
            with contextlib.suppress(OSError):
                return "qemu" in os.readlink(f"/proc/{pid}/exe")
            return False

        found: list[int] = []

        def look() -> bool:
            found[:] = [pid for pid in self.engines() if is_qemu(pid)]
            return bool(found) or self.process.poll() is not None

        assert wait_until(look, LIMIT), "no QEMU was started"
        assert found, f"ended with status {self.process.returncode}: {self.messages}"
        return found[0]

    # ---- its streams ----------------------------------------------------------------------------

    @property
    def messages(self) -> str:
        """What it has said on stderr so far."""
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="backslashreplace")

    @property
    def position(self) -> int:
        """How much of `output` was read by `expect`."""
        return self._read

    def write(self, data: bytes) -> None:
        """Writes to its stdin, a pipe."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def expect(self, pattern: bytes, timeout: float = LIMIT) -> re.Match[bytes]:
        """Waits until unread output matches; reads up to the end of the match."""
        expression = re.compile(pattern)
        deadline = time.monotonic() + timeout
        while True:
            match = expression.search(bytes(self.output), self._read)
            if match is not None:
                self._read = match.end()
                return match
            if not self._receive(deadline - time.monotonic()):
                raise AssertionError(
                    f"no {pattern!r}; console: {bytes(self.output[-1000:])!r}; {self.messages}"
                )

    def _receive(self, seconds: float) -> bool:
        stream = self.process.stdout
        assert stream is not None
        if not select.select([stream], [], [], max(seconds, 0))[0]:
            return False
        data = os.read(stream.fileno(), 65536)
        self.output += data
        return bool(data)

    def finish(self, data: bytes | None = None, timeout: float = LIMIT) -> Finished:
        """Sends `data` and the end of stdin if that is a pipe, and waits for the end."""
        feeder = None
        if self.process.stdin is not None:
            feeder = threading.Thread(target=self._feed, args=(data or b"",), daemon=True)
            feeder.start()
        deadline = time.monotonic() + timeout
        if self.process.stdout is not None:
            while self._receive(deadline - time.monotonic()):
                pass
        try:
            status = self.process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{shlex.join(self.arguments)} hangs; console: "
                f"{bytes(self.output[-1000:])!r}; {self.messages}"
            ) from None
        if feeder is not None:
            feeder.join()
        return Finished(
            status,
            self.output.decode(errors="backslashreplace").replace("\r\n", "\n"),
            self.messages,
            time.monotonic() - self.begin,
        )

    def _feed(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(data)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


def hvmlite(
    *arguments: str | Path,
    data: bytes | None = None,
    stdin: int | IO[bytes] | None = None,
    timeout: float = LIMIT,
    verb: str = "run",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    prepare: Callable[[], None] | None = None,
) -> Finished:
    """Runs the command to its end with `data` on stdin; nothing of it may remain."""
    if stdin is None:
        stdin = subprocess.DEVNULL if data is None else subprocess.PIPE
    with Command(*arguments, verb=verb, stdin=stdin, env=env, cwd=cwd, prepare=prepare) as command:
        finished = command.finish(data, timeout)
        left = marked(command.mark)
    assert not left, f"processes {left} are left behind by {shlex.join(command.arguments)}"
    return finished
