"""GNTTABOP_copy by size, and in batches.

What a 64-bit guest sees by its own time stamp counter (tests/guest/bench_grantcopy.c); each figure
is the median of the medians of some guests. There is no peer: real Xen is not at hand.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from common import HVMLITE, ROOT, BenchmarkError, arguments, in_turn, measure, report, row
from hvmlite.errors import HvmliteError

sys.path.insert(0, str(ROOT))
from tests.guest.build import GuestBuildError, GuestToolsMissingError, build_guest

_LINE = re.compile(rb"bench_grantcopy: size=(\d+) count=(\d+) n=\d+ ns=(\d+)")


def copies(elf: Path, count: int) -> dict[tuple[int, int], float]:
    """Return the seconds of one hypercall by (bytes of a copy, copies in it)."""
    argv: list[str | Path] = [HVMLITE, "run", elf, "--memory", "64M", "--cmdline", f"n={count}"]
    output = measure(argv, timeout_s=120).output
    found = {(int(size), int(each)): int(ns) / 1e9 for size, each, ns in _LINE.findall(output)}
    if not found:
        raise BenchmarkError(f"no figure in the guest's output: {output[-400:]!r}")
    return found


def main() -> int:
    """Run the benchmark."""
    parser = arguments("grant copies by size")
    parser.add_argument("--count", type=int, default=1000, help="calls of a size (default 1000)")
    options = parser.parse_args()
    try:
        elf = build_guest("bench_grantcopy", "hvm64")
        runs = in_turn(options.pairs, {"hvmlite": lambda: copies(elf, options.count)})["hvmlite"]
        figures = [
            row(f"{each} x {size} bytes in a call", [run[size, each] for run in runs], [])
            for size, each in runs[0]
        ]
        setup = {"count": options.count, "runs": options.pairs, "guest": elf.name}
        return report(options, {"-": figures}, [], setup, "µs")
    except (BenchmarkError, HvmliteError, GuestBuildError, GuestToolsMissingError) as error:
        print(f"grantcopy: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
