"""What every benchmark shares: measured runs of whole processes, sides in turn, tables, limits.

The project and its peers run in turn, so that a noisy machine hits all of them; figures are medians
and the ratio of medians. Knows nothing of what is measured.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import selectors
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[1]
HVMLITE = Path(sys.executable).parent / "hvmlite"
QEMU = "qemu-system-x86_64"

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
LINGER_S = 2.0
QUIET_LOAD = 1.0

T = TypeVar("T")


class BenchmarkError(Exception):
    """A run did not do what it had to, so that its figures would mean nothing."""


@dataclass(frozen=True)
class Run:
    """One run of a command: seconds of wall time, seconds of CPU time, and its marks.

    ``cpu`` is user and system time of the command and of every process it started. ``marks`` has,
    for each mark, the wall time from the start to that mark in the output. ``output`` and
    ``messages`` are what it wrote to stdout and stderr.
    """

    wall: float
    cpu: float
    marks: dict[str, float]
    output: bytes
    messages: bytes


def measure(
    argv: Sequence[str | Path],
    marks: Mapping[str, bytes] | None = None,
    timeout_s: float = 120,
    expect: int = 0,
    beside: Collection[int] = (),
) -> Run:
    """Run ``argv`` without input to its end, which is exit status ``expect``, and measure it.

    ``beside`` are children of ours that run on, such as a server.

    Raises:
        BenchmarkError: it failed, ran out of time, left out a mark or left a process running.
    """
    name = os.fspath(argv[0])
    _become_subreaper()
    with tempfile.TemporaryFile() as stderr:

        def failure(what: str, output: bytes) -> BenchmarkError:
            stderr.seek(0)
            said = (output[-400:] + b"\n" + stderr.read()[-2000:]).decode("utf-8", "replace")
            return BenchmarkError(f"{name} {what}; last words:\n{said.strip()}")

        start = time.perf_counter()
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr
            )
        except OSError as error:
            raise BenchmarkError(f"cannot run {name}: {error.strerror}") from error
        assert process.stdout is not None
        try:
            output, seen, ended = _read(process.stdout.fileno(), marks or {}, start, timeout_s)
            if not ended:
                raise failure(f"did not end within {timeout_s:.0f} s", output)
        except BaseException:
            _kill_all()
            raise
        finally:
            process.stdout.close()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu = usage.ru_utime + usage.ru_stime + _reap_orphans(name, beside)
        if process.returncode != expect:
            raise failure(f"ended with status {process.returncode}", output)
        if left_out := [mark for mark in marks or {} if mark not in seen]:
            raise failure(f"never printed: {', '.join(left_out)}", output)
        stderr.seek(0)
        return Run(wall, cpu, seen, output, stderr.read())


def _read(
    fd: int, marks: Mapping[str, bytes], start: float, timeout_s: float
) -> tuple[bytes, dict[str, float], bool]:
    """Read ``fd``; return all of it, when each mark came, and whether it ended in time."""
    output = bytearray()
    seen: dict[str, float] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            left = timeout_s - (time.perf_counter() - start)
            if left <= 0 or not selector.select(left):
                return bytes(output), seen, False
            data = os.read(fd, 65536)
            now = time.perf_counter() - start
            if not data:
                return bytes(output), seen, True
            output += data
            for mark, text in marks.items():
                if mark not in seen and text in output:
                    seen[mark] = now


def _become_subreaper() -> None:
    """Have orphans of what we run become our children, so that their time is not lost."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise BenchmarkError(f"prctl: {os.strerror(ctypes.get_errno())}")


def _children() -> set[int]:
    return {
        int(pid)
        for children in Path("/proc/self/task").glob("*/children")
        for pid in children.read_text().split()
    }


def _reap_orphans(name: str, beside: Collection[int]) -> float:
    """Return the CPU seconds of processes that ``name`` started and did not wait for."""
    cpu = 0.0
    deadline = time.perf_counter() + LINGER_S
    while True:
        try:
            pid, _, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return cpu
        if pid:
            cpu += usage.ru_utime + usage.ru_stime
        elif _children() <= set(beside):
            return cpu
        elif time.perf_counter() > deadline:
            _kill_all()
            raise BenchmarkError(f"{name} left a process running")
        else:
            time.sleep(0.005)


def _kill_all() -> None:
    """End and reap all our children: what we ran and, we being its reaper, what that left."""
    while True:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
        try:
            os.wait4(-1, 0)
        except ChildProcessError:
            return


def in_turn(count: int, sides: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Run every side ``count`` times in turn, each round in another order, after one warm-up."""
    if count < 1:
        raise BenchmarkError("--pairs: expected at least 1")
    names = list(sides)
    for name in names:
        sides[name]()
    runs: dict[str, list[T]] = {name: [] for name in names}
    for index in range(count):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            runs[name].append(sides[name]())
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return runs


@dataclass(frozen=True)
class Row:
    """One figure of a benchmark in seconds: medians of both sides, and project over peer.

    A side that was not measured has no values and no median.
    """

    what: str
    project: float | None
    peer: float | None
    ratio: float | None
    project_all: list[float]
    peer_all: list[float]


def row(what: str, project: Sequence[float], peer: Sequence[float]) -> Row:
    """Return the figure ``what``; either side may be empty."""
    project_median = statistics.median(project) if project else None
    peer_median = statistics.median(peer) if peer else None
    ratio = project_median / peer_median if project_median and peer_median else None
    return Row(what, project_median, peer_median, ratio, list(project), list(peer))


def rows(project: Sequence[Run], peer: Sequence[Run], marks: Mapping[str, str]) -> list[Row]:
    """Return the figures of two sets of runs; ``marks`` maps a mark to what it is to be called."""
    return [
        *(
            row(what, [run.marks[mark] for run in project], [run.marks[mark] for run in peer])
            for mark, what in marks.items()
        ),
        row("whole process, wall", [run.wall for run in project], [run.wall for run in peer]),
        row("whole process, CPU", [run.cpu for run in project], [run.cpu for run in peer]),
    ]


UNITS = {"ms": 1e3, "µs": 1e6}


def table(figures: Sequence[Row], peer_name: str, unit: str = "ms") -> str:
    """Return the figures as text, with the spread of each side; ``unit`` is one of UNITS."""
    scale, digits = UNITS[unit], 1 if unit == "ms" else 2

    def cell(median: float | None, values: Sequence[float]) -> str:
        if median is None:
            return "-"
        low, high = min(values) * scale, max(values) * scale
        return f"{median * scale:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    lines = [(f"median (range), {unit}", "hvmlite", peer_name, "ratio")]
    lines += [
        (
            figure.what,
            cell(figure.project, figure.project_all),
            cell(figure.peer, figure.peer_all),
            "-" if figure.ratio is None else f"{figure.ratio:.2f}",
        )
        for figure in figures
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(line[i].rjust(widths[i]) for i in range(1, 4))]
        ).rstrip()
        for line in lines
    )


@dataclass(frozen=True)
class Limit:
    """What a figure must not exceed: its ratio, or with ``seconds`` the project's median."""

    what: str
    figure: Row
    at_most: float
    seconds: bool = False

    @property
    def value(self) -> float | None:
        """What is compared; None if it was not measured."""
        return self.figure.project if self.seconds else self.figure.ratio

    @property
    def kept(self) -> bool:
        """Whether it was measured and is within the limit."""
        return self.value is not None and self.value <= self.at_most

    def __str__(self) -> str:
        unit = " s" if self.seconds else ""
        value = "not measured" if self.value is None else f"{self.value:.3g}{unit}"
        return (
            f"{'ok    ' if self.kept else 'MISSED'}  {self.what}: {value}, "
            f"at most {self.at_most:g}{unit}"
        )


def machine() -> dict[str, str | int]:
    """Return what the figures depend on."""
    version = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=False)
    return {
        "qemu": version.stdout.partition("\n")[0],
        "python": platform.python_version(),
        "host_kernel": platform.release(),
        "cpus": os.cpu_count() or 0,
        "load": f"{os.getloadavg()[0]:.2f}",
    }


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        print(f"warning: this machine is busy (load {load:.1f})", file=sys.stderr)
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--pairs", type=int, default=7, help="runs of each side (default 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--check", action="store_true", help="exit 1 if a limit is exceeded")
    return parser


def report(
    options: argparse.Namespace,
    figures: Mapping[str, Sequence[Row]],
    limits: Sequence[Limit],
    setup: Mapping[str, str | int | float],
    unit: str = "ms",
) -> int:
    """Print one table for each peer and the limits; write JSON if asked for.

    Returns the exit status: 1 if a limit is exceeded and the options say to check.
    """
    for peer, its in figures.items():
        print(table(its, peer, unit), end="\n\n")
    for limit in limits:
        print(limit)
    if options.json is not None:
        document = {
            "setup": dict(setup),
            "machine": machine(),
            "unit": "seconds",
            "figures": [
                {"peer": peer} | asdict(each) for peer in figures for each in figures[peer]
            ],
            "limits": [
                {"what": each.what, "value": each.value, "at_most": each.at_most, "kept": each.kept}
                for each in limits
            ],
        }
        try:
            options.json.write_text(json.dumps(document, indent=2) + "\n")
        except OSError as error:
            raise BenchmarkError(f"--json {options.json}: {error.strerror}") from error
    return 1 if options.check and not all(limit.kept for limit in limits) else 0
