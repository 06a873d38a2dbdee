"""Runs the fuzz guest with many seeds, two at a time on one host, and prints what became of it.

A process of its own, so that its memory is only hvmlite's: `python -m tests.guest.fuzzing --help`.
The last line of its output is JSON: calls, endings, host exceptions, what was left behind after the
domains' ends, the largest size of each table that a guest can fill, and memory before and after.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

# So that what is loaded at the first crash or odd instruction does not look like growth.
import iced_x86  # noqa: F401

import hvmlite.engine.disasm
import hvmlite.observe.crash  # noqa: F401
from hvmlite.errors import EngineError
from hvmlite.toolstack.config import DomainConfig
from hvmlite.toolstack.host import Host

if TYPE_CHECKING:
    from hvmlite.hypervisor.control import Domain as Guest
    from hvmlite.toolstack.domain import Domain

HOST_MEMORY = 256 << 20
MEMORY = 64 << 20
VCPUS = 3
RELEASES = ("4.17", "4.21")
TIMEOUT = 60.0
WILD_TIMEOUT = 3.0
WILD_CALLS = 200
_CALLS = re.compile(rb"calls: (\d+)")
_DONE = re.compile(rb"calls: \d+ checksum: [0-9a-f]{16}")


@dataclass(frozen=True)
class Job:
    """One guest to run; `wild`: without any caution (fuzz.c)."""

    elf: Path
    seed: int
    calls: int
    wild: bool = False

    def config(self) -> DomainConfig:
        return DomainConfig(
            kernel=self.elf,
            cmdline=f"seed={self.seed} n={self.calls} wild={int(self.wild)}",
            memory=MEMORY,
            vcpus=VCPUS,
            on_reboot="destroy",
            xen_version=RELEASES[self.seed // 2 % len(RELEASES)],
        )


def memory(key: str) -> int:
    """A line of /proc/self/status, in KiB."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def settled() -> tuple[dict[str, int], int]:
    """Peak and present memory (KiB), and the number of Python's objects, without garbage."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return {key: memory(key) for key in ("VmHWM", "RssAnon")}, len(gc.get_objects())


def tables(guest: Guest) -> dict[str, int]:
    """The sizes of what a guest can fill in the host."""
    host, physmap, pages, grants = guest.host, guest.physmap, guest.pages, guest.grants
    rings = guest.argo._rings if guest.argo is not None else {}
    return {
        "physmap changes": len(physmap._changes),
        "physmap places": len(physmap._gfns),
        "regions": len(pages._regions),
        "runs of RAM": len(pages._ram._starts),
        "shared frames": len(pages._special),
        "unused frames": len(pages._unused),
        "surplus frames": guest.total_pages - guest.max_pages,
        "maptrack": len(grants.maptrack.mapped),
        "pins": len(grants.pins),
        "grant frames": len(grants.frames) + len(grants.status),
        "ports": len(guest.evtchn._ports),
        "pirqs": len(guest.evtchn._pirqs),
        "refused calls": len(guest.unknown_calls),
        "memory map": len(guest.memory_map),
        "timers": len(host.timers._heap),
        "references": len(host.frames._extra),
        "params": len(guest.params.values),
        "rings": len(rings),
        "waiting": sum(len(ring.pending) for ring in rings.values()),
    }


def leftovers(host: Host) -> dict[str, int]:
    """What must be the same after every domain's end."""
    hypervisor = host.loop
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {
        "free frames": hypervisor.machine.free_frames,
        "references": len(hypervisor.frames._extra),
        "orphans": len(hypervisor.frames._orphans),
        "timers": sum(1 for item in hypervisor.timers._heap if item[2].callback is not None),
        "domains": len(hypervisor.domains),
        "running": len(hypervisor._running),
        "readers": len(hypervisor._readers),
        "files": len(os.listdir("/proc/self/fd")),
        "children": len(children),
    }


class Fuzzing:
    """One host and the figures of all runs on it."""

    def __init__(self) -> None:
        self.host = Host(HOST_MEMORY)
        self.calls = 0
        self.runs = 0
        self.endings: Counter[str] = Counter()
        self.exceptions: list[str] = []
        self.hangs: list[str] = []
        self.left: list[str] = []
        self.sizes: Counter[str] = Counter()
        self._clean = self.host.call(leftovers, self.host)

    def run(self, *jobs: Job) -> None:
        """Some guests at the same time, from their start to their end."""
        domains = [self.host.create(job.config()) for job in jobs]
        for domain in domains:
            self.host.call(self._prepare, domain.incarnation.domain)
        for domain in domains:
            domain.start()
        failed = False
        for job, domain in zip(jobs, domains, strict=True):
            ending = self._end(job, domain)
            failed |= ending == "host exception"
            self.endings[ending] += 1
        self.runs += 1
        if failed:
            self.host = Host(HOST_MEMORY)
            return
        now = self.host.call(leftovers, self.host)
        changed = {key: (self._clean[key], now[key]) for key in now if now[key] != self._clean[key]}
        if changed:
            self.left.append(f"{jobs}: {changed}")

    def _end(self, job: Job, domain: Domain) -> str:
        """Waits for a guest's end, takes its figures, and returns how it ended."""
        try:
            outcome = domain.wait(WILD_TIMEOUT if job.wild else TIMEOUT)
            if outcome is None:
                # Whatever the guest did to itself, the host must go on.
                self.host.call(self._measure, domain.incarnation.domain)
                domain.destroy()
                if not job.wild:
                    self.hangs.append(str(job))
            ending = "no end" if outcome is None else outcome.reason
            if outcome is not None and outcome.crash is not None:
                ending = f"crash: {outcome.crash.reason}"
        except Exception:
            self.exceptions.append(f"{job}\n{traceback.format_exc()}")
            return "host exception"
        output = domain.console.output
        self.calls += max(map(int, _CALLS.findall(output)), default=0)
        if not job.wild and not _DONE.search(output):
            ending += " (early)"
            said = output[-600:].decode(errors="replace")
            print(f"{job}: {ending}\n{said}", file=sys.stderr)
        return ending

    def _prepare(self, guest: Guest) -> None:
        self.host.control.enable_argo(guest, permissive=True)
        shut_down = guest.hooks.shutdown
        assert shut_down is not None

        def watched(domain: Guest, then: Callable[[Guest], None] = shut_down) -> None:
            self._measure(domain)
            then(domain)

        guest.hooks.shutdown = watched

    def _measure(self, guest: Guest) -> None:
        for name, size in tables(guest).items():
            self.sizes[name] = max(self.sizes[name], size)


def fuzz(fuzzing: Fuzzing, options: argparse.Namespace) -> dict[str, object]:
    """Runs all that the options ask for; returns the figures."""
    elfs: list[Path] = options.elf
    seed: int = options.seed

    def jobs(calls: int = options.each, wild: bool = False) -> tuple[Job, Job]:
        nonlocal seed
        seed += 2
        first = Job(elfs[seed % len(elfs)], seed, calls)
        other = WILD_CALLS if wild else calls
        return first, Job(elfs[(seed + 1) % len(elfs)], seed + 1, other, wild)

    # So that what is loaded or cached at the first use counts as before.
    for _ in elfs:
        fuzzing.run(*jobs())
    if options.wild:
        fuzzing.run(*jobs(WILD_CALLS, True))
    before, objects_before = settled()
    for _ in range(options.wild):
        fuzzing.run(*jobs(WILD_CALLS, True))
    most = fuzzing.runs + options.calls // options.each
    while fuzzing.calls < options.calls and fuzzing.runs < most:
        fuzzing.run(*jobs())
    after, objects_after = settled()
    return {
        "calls": fuzzing.calls,
        "runs": fuzzing.runs,
        "guests": fuzzing.endings.total(),
        "endings": dict(fuzzing.endings),
        "exceptions": fuzzing.exceptions,
        "hangs": fuzzing.hangs,
        "left": fuzzing.left,
        "sizes": dict(fuzzing.sizes),
        "objects": objects_after - objects_before,
        "before": before,
        "after": after,
    }


def main() -> int:
    """Runs the fuzzer from the command line."""
    parser = argparse.ArgumentParser(description="fuzz the hypercalls")
    parser.add_argument("elf", nargs="+", type=Path, help="the fuzz guest, in one or more variants")
    parser.add_argument("--calls", type=int, default=20000, help="calls in all (default 20000)")
    parser.add_argument("--each", type=int, default=2500, help="calls of one guest (default 2500)")
    parser.add_argument("--wild", type=int, default=0, help="runs with one guest without caution")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    options = parser.parse_args()
    try:
        fuzzing = Fuzzing()
        try:
            figures = fuzz(fuzzing, options)
        finally:
            fuzzing.host.close()
    except EngineError as error:
        print(f"fuzzing: {error}", file=sys.stderr)
        return 1
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
