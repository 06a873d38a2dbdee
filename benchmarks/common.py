"""What every benchmark shares: measured runs of whole processes, interleaved pairs, one table.

The project and its peer run in turn, so that a noisy machine hits both; figures are medians and the
ratio of medians. Knows nothing of what is measured.
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
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HVMLITE = Path(sys.executable).parent / "hvmlite"
QEMU = "qemu-system-x86_64"

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
LINGER_S = 2.0


class BenchmarkError(Exception):
    """A run did not do what it had to, so that its figures would mean nothing."""


@dataclass(frozen=True)
class Run:
    """One run of a command: seconds of wall time, seconds of CPU time, and its marks.

    ``cpu`` is user and system time of the command and of every process it started. ``marks`` has,
    for each mark, the wall time from the start to that mark in the output.
    """

    wall: float
    cpu: float
    marks: dict[str, float]
    output: bytes


def measure(
    argv: Sequence[str | Path],
    marks: Mapping[str, bytes] | None = None,
    timeout_s: float = 120,
    expect: int = 0,
) -> Run:
    """Run ``argv`` without input to its end, which is exit status ``expect``, and measure it.

    Raises:
        BenchmarkError: it failed, ran out of time, left out a mark or left a process running.
    """
    name = os.fspath(argv[0])
    _become_subreaper()
    start = time.perf_counter()
    try:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    except OSError as error:
        raise BenchmarkError(f"cannot run {name}: {error.strerror}") from error
    assert process.stdout is not None
    try:
        output, seen = _read(process.stdout.fileno(), marks or {}, start, timeout_s)
    except BaseException:
        _kill_all()
        raise
    finally:
        process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime + _reap_orphans(name)
    if process.returncode != expect:
        tail = output[-400:].decode("utf-8", "replace")
        raise BenchmarkError(f"{name} ended with status {process.returncode}; last output:\n{tail}")
    if left_out := [mark for mark in marks or {} if mark not in seen]:
        tail = output[-400:].decode("utf-8", "replace")
        raise BenchmarkError(f"{name} never printed: {', '.join(left_out)}; last output:\n{tail}")
    return Run(wall, cpu, seen, output)


def _read(
    fd: int, marks: Mapping[str, bytes], start: float, timeout_s: float
) -> tuple[bytes, dict[str, float]]:
    """Read ``fd`` to its end; return all of it and when each mark came."""
    output = bytearray()
    seen: dict[str, float] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            left = timeout_s - (time.perf_counter() - start)
            if left <= 0 or not selector.select(left):
                tail = bytes(output[-400:]).decode("utf-8", "replace")
                raise BenchmarkError(f"no end after {timeout_s:.0f} s; last output:\n{tail}")
            data = os.read(fd, 65536)
            now = time.perf_counter() - start
            if not data:
                return bytes(output), seen
            output += data
            for mark, text in marks.items():
                if mark not in seen and text in output:
                    seen[mark] = now


def _become_subreaper() -> None:
    """Have orphans of what we run become our children, so that their time is not lost."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise BenchmarkError(f"prctl: {os.strerror(ctypes.get_errno())}")


def _reap_orphans(name: str) -> float:
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
        elif time.perf_counter() > deadline:
            _kill_all()
            raise BenchmarkError(f"{name} left a process running")
        else:
            time.sleep(0.005)


def _kill_all() -> None:
    """End and reap all our children: what we ran and, we being its reaper, what that left."""
    while True:
        for children in Path("/proc/self/task").glob("*/children"):
            for pid in children.read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        try:
            os.wait4(-1, 0)
        except ChildProcessError:
            return


def pairs(
    count: int, project: Callable[[], Run], peer: Callable[[], Run]
) -> tuple[list[Run], list[Run]]:
    """Run both ``count`` times in turn, the first of each pair alternating, after one warm-up."""
    runs: tuple[list[Run], list[Run]] = ([], [])
    sides = (project, peer)
    for side in sides:
        side()
    for index in range(count):
        for which in (index % 2, 1 - index % 2):
            runs[which].append(sides[which]())
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return runs


def solo(count: int, side: Callable[[], Run]) -> list[Run]:
    """Run one side alone ``count`` times, after one warm-up."""
    side()
    return [side() for _ in range(count)]


@dataclass(frozen=True)
class Row:
    """One figure of a benchmark in seconds: medians of both sides, and project over peer."""

    what: str
    project: float | None
    peer: float
    ratio: float | None
    project_all: list[float]
    peer_all: list[float]


def row(what: str, project: Sequence[float], peer: Sequence[float]) -> Row:
    """Return the figure ``what``; ``project`` may be empty when only the peer ran."""
    peer_median = statistics.median(peer)
    project_median = statistics.median(project) if project else None
    ratio = None if project_median is None or not peer_median else project_median / peer_median
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


def table(figures: Sequence[Row], peer_name: str) -> str:
    """Return the figures as text, in milliseconds with the spread of each side."""

    def cell(median: float | None, values: Sequence[float]) -> str:
        if median is None:
            return "-"
        return f"{median * 1e3:.1f} ({min(values) * 1e3:.1f} to {max(values) * 1e3:.1f})"

    lines = [("median (range), ms", "hvmlite", peer_name, "ratio")]
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
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--pairs", type=int, default=7, help="runs of each side (default 7)")
    parser.add_argument("--peer-only", action="store_true", help="leave hvmlite out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


def compare(
    count: int, peer_only: bool, project: Callable[[], Run], peer: Callable[[], Run]
) -> tuple[list[Run], list[Run]]:
    """Run both sides as the options say."""
    if count < 1:
        raise BenchmarkError("--pairs: expected at least 1")
    if peer_only:
        return [], solo(count, peer)
    return pairs(count, project, peer)


def report(
    figures: Sequence[Row],
    peer_name: str,
    json_file: Path | None,
    setup: Mapping[str, str | int],
) -> None:
    """Print the table and, if asked for, write everything as JSON."""
    print(table(figures, peer_name))
    if json_file is not None:
        document = {
            "peer": peer_name,
            "setup": dict(setup),
            "machine": machine(),
            "unit": "seconds",
            "figures": [asdict(figure) for figure in figures],
        }
        json_file.write_text(json.dumps(document, indent=2) + "\n")
