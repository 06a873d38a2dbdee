"""Runs one test guest under `hvmlite run` and reads its verdict from the console.

Knows the command line only, nothing of the VMM inside. HVMLITE_GUEST_RUNNER may name another
command that takes the same arguments, to run the same guests elsewhere.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

SOURCE_DIR = Path(__file__).resolve().parents[2] / "src"
TIMEOUT = 20
"""Seconds that a guest may run; the harness waits a little longer than `hvmlite run` does."""


class Verdict(StrEnum):
    """What became of a guest, by the names of the Xen Test Framework."""

    SUCCESS = "SUCCESS"
    SKIP = "SKIP"
    ERROR = "ERROR"
    FAILURE = "FAILURE"
    CRASH = "CRASH"


@dataclass(frozen=True)
class GuestRun:
    """A finished run: verdict, console, the VMM's own messages, exit status (None: stopped)."""

    verdict: Verdict
    console: str
    messages: str
    status: int | None
    seconds: float

    def report(self) -> str:
        """Everything that was seen, for a failed test."""
        status = "stopped by the harness" if self.status is None else f"exit status {self.status}"
        parts = [
            f"{self.verdict} after {self.seconds:.1f} s, {status}",
            "--- console",
            self.console,
        ]
        if self.messages:
            parts += ["--- messages", self.messages]
        return "\n".join(parts)


def verdict_of(console: str, status: int | None) -> Verdict:
    """The verdict that a console text ends with.

    A guest gives it in its last line and then powers off: no such line, text behind it, or an exit
    status other than 0 means that the guest crashed or never ended.
    """
    last = console.rstrip().rpartition("\n")[2].strip()
    found = re.fullmatch(r"Test result: (SUCCESS|SKIP|ERROR|FAILURE)", last)
    if found is None or status != 0:
        return Verdict.CRASH
    return Verdict(found[1])


def runner() -> list[str]:
    """The command in front of the kernel's path."""
    if other := os.environ.get("HVMLITE_GUEST_RUNNER"):
        return shlex.split(other)
    script = Path(sys.executable).with_name("hvmlite")
    if script.exists():
        return [str(script), "run"]
    return [sys.executable, "-m", "hvmlite.cli.main", "run"]


def run_guest(elf: Path, options: Sequence[str] = (), timeout: int = TIMEOUT) -> GuestRun:
    """Boots an ELF with 64 MiB and waits for its end; `timeout` is in seconds."""
    arguments = ["--memory", "64M", "--timeout", str(timeout), *options]
    path = os.pathsep.join(filter(None, [str(SOURCE_DIR), os.environ.get("PYTHONPATH")]))
    start = time.monotonic()
    process = subprocess.Popen(
        [*runner(), str(elf), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    status: int | None
    try:
        console, messages = process.communicate(timeout=timeout + 10)
        status = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        console, messages = process.communicate()
        status = None
    text = console.decode(errors="backslashreplace").replace("\r\n", "\n")
    return GuestRun(
        verdict=verdict_of(text, status),
        console=text,
        messages=messages.decode(errors="backslashreplace"),
        status=status,
        seconds=time.monotonic() - start,
    )
