"""Round trip of a null hypercall (XENVER_version) against a bare VMRUN and #VMEXIT.

The project's figure is what a running 64-bit guest sees (tests/guest/bench_hypercall.c, by its own
time stamp counter); the peer's is taken inside the same QEMU binary, started as for a domain, with
nobody handling the exit.
"""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path

from bare import COUNT, bare_exit
from common import HVMLITE, ROOT, BenchmarkError, Limit, arguments, in_turn, measure, report, row
from hvmlite.errors import HvmliteError

sys.path.insert(0, str(ROOT))
from tests.guest.build import GuestBuildError, GuestToolsMissingError, build_guest

AT_MOST = 1.5
_LINE = re.compile(rb"bench_hypercall: n=(\d+) cycles=\d+ ns=(\d+)")


def null_hypercall(elf: Path, count: int, inline: int) -> float:
    """Return the seconds of one hypercall in a guest of its own."""
    argv: list[str | Path] = [HVMLITE, "run", elf, "--memory", "64M"]
    argv += ["--cmdline", f"n={count} inline={inline}"]
    output = measure(argv, timeout_s=60).output
    found = _LINE.search(output)
    if found is None or int(found[1]) != count or not int(found[2]):
        raise BenchmarkError(f"no figure in the guest's output: {output[-200:]!r}")
    return int(found[2]) / 1e9


def main() -> int:
    """Run the benchmark."""
    parser = arguments("a null hypercall, in units of a bare VMRUN and #VMEXIT")
    parser.add_argument("--count", type=int, default=COUNT, help=f"exits a run (default {COUNT})")
    options = parser.parse_args()
    try:
        elf = build_guest("bench_hypercall", "hvm64")
        runs = in_turn(
            options.pairs,
            {
                "page": partial(null_hypercall, elf, options.count, 0),
                "bare": partial(bare_exit, options.count),
                "inline": partial(null_hypercall, elf, options.count, 1),
                "bare32": partial(bare_exit, options.count, long_mode=False),
            },
        )
        figures = [
            row("null hypercall, by the hypercall page", runs["page"], runs["bare"]),
            row("null hypercall, VMMCALL inlined", runs["inline"], runs["bare"]),
            row("the first against a bare guest without paging", runs["page"], runs["bare32"]),
        ]
        return report(
            options,
            {"bare VMRUN, #VMEXIT": figures},
            [Limit("null hypercall over bare exit, both of a 64-bit guest", figures[0], AT_MOST)],
            {"count": options.count, "pairs": options.pairs, "guest": elf.name},
            "µs",
        )
    except (BenchmarkError, HvmliteError, GuestBuildError, GuestToolsMissingError) as error:
        print(f"hypercall: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
