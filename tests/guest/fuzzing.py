"""Runs the fuzz guest with many seeds on one host in this process and prints what became of it.

A process of its own, so that its memory is only hvmlite's: `python -m tests.guest.fuzzing --help`.
The last line of its output is JSON: calls, endings, host exceptions, what was left behind after a
domain's end, the largest size of each table that a guest can fill, and memory before and after.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hvmlite.errors import EngineError
from hvmlite.toolstack.config import DomainConfig
from hvmlite.toolstack.host import Host

if TYPE_CHECKING:
    from hvmlite.hypervisor.control import Domain as Guest

MEMORY = 64 << 20
VCPUS = 3
RELEASES = ("4.17", "4.21")
TIMEOUT = 60.0
WILD_TIMEOUT = 3.0
PATIENCE = 10.0
"""Seconds that the host may take to answer while a guest does not end."""
_CALLS = re.compile(rb"calls: (\d+)")
_DONE = re.compile(rb"calls: \d+ checksum: ([0-9a-f]{16})")


def memory(key: str) -> int:
    """A line of /proc/self/status, in KiB."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def tables(guest: Guest) -> dict[str, int]:
    """The sizes of what a guest can fill in the host."""
    host, physmap, pages, grants = guest.host, guest.physmap, guest.pages, guest.grants
    return {
        "physmap changes": len(physmap._changes),
        "physmap places": len(physmap._gfns),
        "regions": len(pages._regions),
        "runs of RAM": len(pages._ram._starts),
        "shared frames": len(pages._special),
        "unused frames": len(pages._unused),
        "RAM frames": guest.total_pages - guest.max_pages,
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
        "rings": len(argo._rings) if (argo := guest.argo) is not None else 0,
        "waiting": sum(len(ring.pending) for ring in argo._rings.values()) if argo else 0,
    }


def leftovers(host: Host) -> dict[str, int]:
    """What must be the same after every domain's end."""
    hypervisor = host.loop
    return {
        "free frames": hypervisor.machine.free_frames,
        "references": len(hypervisor.frames._extra),
        "orphans": len(hypervisor.frames._orphans),
        "timers": sum(1 for item in hypervisor.timers._heap if item[2].callback is not None),
        "domains": len(hypervisor.domains),
        "running": len(hypervisor._running),
        "readers": len(hypervisor._readers),
        "files": len(os.listdir("/proc/self/fd")),
        "children": len(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()),
    }


class Fuzzing:
    """One host and the figures of all runs on it."""

    def __init__(self) -> None:
        self.host = Host(256 << 20)
        self.calls = 0
        self.runs = 0
        self.endings: Counter[str] = Counter()
        self.exceptions: list[str] = []
        self.hangs: list[str] = []
        self.left: list[str] = []
        self.sizes: Counter[str] = Counter()
        self.checksums: dict[str, str] = {}
        self._clean: dict[str, int] = {}

    def run(self, elf: Path, seed: int, calls: int, wild: bool) -> None:
        """One guest from its start to its end."""
        if not self._clean:
            self._clean = self.host.call(leftovers, self.host)
        cmdline = f"seed={seed} n={calls} wild={int(wild)}"
        release = RELEASES[seed // 2 % len(RELEASES)]
        config = DomainConfig(kernel=elf, cmdline=cmdline, memory=MEMORY, vcpus=VCPUS)
        config.on_reboot = "destroy"
        config.xen_version = release
        domain = self.host.create(config)
        self.host.call(self._prepare, domain.incarnation.domain)
        what = f"{elf.name} {cmdline} (Xen {release})"
        domain.start()
        try:
            outcome = domain.wait(WILD_TIMEOUT if wild else TIMEOUT)
            if outcome is None:
                # Whatever the guest did to itself, the host must go on.
                self.host.call(self._measure, domain.incarnation.domain)
                domain.destroy()
                if not wild:
                    self.hangs.append(what)
            ending = "no end" if outcome is None else outcome.reason
            if outcome is not None and outcome.crash is not None:
                ending = f"crash: {outcome.crash.reason}"
        except Exception:
            self.exceptions.append(f"{what}\n{traceback.format_exc()}")
            ending = "host exception"
        output = domain.console.output
        counts = [int(count) for count in _CALLS.findall(output)]
        self.calls += max(counts, default=0)
        self.runs += 1
        if done := _DONE.search(output):
            self.checksums[what] = done[1].decode()
        elif not wild:
            ending += " (early)"
            print(f"{what}: {ending}\n{output[-600:].decode(errors='replace')}", file=sys.stderr)
        self.endings[ending] += 1
        if ending == "host exception":
            self.host = Host(256 << 20)
            return
        now = self.host.call(leftovers, self.host)
        if now != self._clean:
            kept = {key: (self._clean[key], now[key]) for key in now if now[key] != self._clean[key]}
            self.left.append(f"{what}: {kept}")

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


def main() -> int:
    parser = argparse.ArgumentParser(description="fuzz the hypercalls")
    parser.add_argument("elf", nargs="+", type=Path, help="the fuzz guest, in one or more variants")
    parser.add_argument("--calls", type=int, default=20000, help="calls in all, without wild ones")
    parser.add_argument("--each", type=int, default=3000, help="calls of one run")
    parser.add_argument("--wild", type=int, default=0, help="further runs without any caution")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    options = parser.parse_args()
    fuzzing = Fuzzing()
    try:
        seed, before, objects = options.seed, {}, 0
        for elf in options.elf:
            # So that what is loaded or cached at the first use counts as before.
            fuzzing.run(elf, seed, options.each, False)
            if options.wild:
                fuzzing.run(elf, seed, 200, True)
            seed += 1
        gc.collect()
        objects = len(gc.get_objects())
        before = {key: memory(key) for key in ("VmHWM", "RssAnon")}
        while fuzzing.calls < options.calls and fuzzing.runs < options.calls // options.each * 3:
            fuzzing.run(options.elf[seed % len(options.elf)], seed, options.each, False)
            seed += 1
        for number in range(options.wild):
            fuzzing.run(options.elf[number % len(options.elf)], seed + number, 200, True)
        gc.collect()
        after = {key: memory(key) for key in ("VmHWM", "RssAnon")}
        figures = {
            "calls": fuzzing.calls,
            "runs": fuzzing.runs,
            "endings": dict(fuzzing.endings),
            "exceptions": fuzzing.exceptions,
            "hangs": fuzzing.hangs,
            "left": fuzzing.left,
            "sizes": dict(fuzzing.sizes),
            "objects": len(gc.get_objects()) - objects,
            "before": before,
            "after": after,
        }
    except EngineError as error:
        print(f"fuzzing: {error}", file=sys.stderr)
        return 1
    finally:
        fuzzing.host.close()
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
