"""Round trip of an event-channel send plus upcall: on one vCPU, and between two.

What a 64-bit guest sees by its own time stamp counter (tests/guest/bench_evtchn.c); each figure is
the median of the medians of some guests. There is no peer: real Xen is not at hand.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from common import HVMLITE, ROOT, BenchmarkError, arguments, in_turn, measure, report, row
from hvmlite.errors import HvmliteError

sys.path.insert(0, str(ROOT))
from tests.guest.build import GuestBuildError, GuestToolsMissingError, build_guest

KINDS = {
    "self": "a send to oneself, up to the end of its upcall",
    "spinning": "to vCPU 1 and back, both busy in the guest",
    "halted": "to vCPU 1 and back, both in HLT in between",
}
_LINE = re.compile(rb"bench_evtchn: (\w+) n=\d+ ns=(\d+) least=\d+ of_ten=\d+")


def round_trips(elf: Path, count: int) -> dict[str, float]:
    """Return the seconds of each kind of round trip, by its name, in a guest of its own."""
    argv: list[str | Path] = [HVMLITE, "run", elf, "--memory", "64M", "--vcpus", "2"]
    output = measure([*argv, "--cmdline", f"n={count}"], timeout_s=120).output
    found = {kind.decode(): int(ns) / 1e9 for kind, ns in _LINE.findall(output)}
    if found.keys() != KINDS.keys():
        raise BenchmarkError(f"not all figures in the guest's output: {output[-400:]!r}")
    return found


def main() -> int:
    """Run the benchmark."""
    parser = arguments("event-channel send plus upcall")
    parser.add_argument("--count", type=int, default=2000, help="round trips a run (default 2000)")
    options = parser.parse_args()
    try:
        elf = build_guest("bench_evtchn", "hvm64")
        runs = in_turn(options.pairs, {"hvmlite": lambda: round_trips(elf, options.count)})
        figures = [
            row(what, [run[kind] for run in runs["hvmlite"]], []) for kind, what in KINDS.items()
        ]
        setup = {"count": options.count, "runs": options.pairs, "guest": elf.name}
        return report(options, {"-": figures}, [], setup, "µs")
    except (BenchmarkError, HvmliteError, GuestBuildError, GuestToolsMissingError) as error:
        print(f"evtchn: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
