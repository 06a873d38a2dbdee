"""The store through its socket, side by side with Xen's own xenstored, with few and many nodes.

The same C program (xenstore_client.c) is the client of both. Our side is a whole `Host` without a
guest; the peer is Debian's unmodified xenstored, kept alive without Xen by a shim
(hvmlite.testing.xenstored).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from common import ROOT, BenchmarkError, Limit, Row, arguments, in_turn, report, row
from hvmlite.errors import HvmliteError
from hvmlite.testing.xenstored import Xenstored

CLIENT = ROOT / "benchmarks" / "xenstore_client.c"
FEW, MANY = 10, 100_000
TIMEOUT_S = 120
BATCH = 32

WORK = {
    "fill": ("create a node", 1),
    "read": ("read", 1),
    "batch": (f"read, {BATCH} requests at once, each", BATCH),
    "write": ("write", 1),
    "directory": ("directory of up to 100", 1),
    "create": ("mkdir and rm", 1),
    "transaction": ("transaction: start, read, write, end", 1),
    "watch": ("write until its watch event", 1),
}
"""What the client prints: what it is, and how many the printed time is for."""

SERVER = """\
import sys
from hvmlite import Host
with Host(64 << 20) as host:
    host.listen_xenstore(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.read()
"""

Times = dict[str, float]
Server = Callable[[Path], AbstractContextManager[Path]]


def build_client(folder: Path) -> Path:
    """Compile the client."""
    program = folder / "xenstore_client"
    done = subprocess.run(
        ["gcc", "-O2", "-Wall", "-o", program, CLIENT], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchmarkError(f"xenstore_client.c does not compile: {done.stderr}")
    return program


@contextmanager
def ours(folder: Path) -> Iterator[Path]:
    """A host without guests, with a socket, in a process of its own."""
    path = folder / "hvmlite-socket"
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        if server.stdout.readline() != b"ready\n":
            raise BenchmarkError("the host does not start")
        try:
            yield path
        finally:
            server.stdin.close()


@contextmanager
def peer(_folder: Path) -> Iterator[Path]:
    """Xen's xenstored."""
    with Xenstored() as daemon:
        yield daemon.path


def run(client: Path, path: Path, nodes: int, count: int) -> Times:
    """Fill a store and measure it; seconds by the names of WORK."""
    try:
        done = subprocess.run(
            [client, path, str(nodes), str(count)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"no end with {nodes} nodes") from error
    if done.returncode != 0:
        raise BenchmarkError(f"the client failed with {nodes} nodes: {done.stderr}")
    lines = dict(line.split() for line in done.stdout.splitlines())
    return {name: float(lines[name]) / 1e9 / share for name, (_, share) in WORK.items()}


def figures(nodes: int, project: Sequence[Times], its: Sequence[Times]) -> dict[str, Row]:
    """The rows for one size of the store."""
    return {
        name: row(f"{what}, {nodes:,} nodes", [t[name] for t in project], [t[name] for t in its])
        for name, (what, _) in WORK.items()
    }


def main() -> int:
    """Run the benchmark."""
    parser = arguments("the store through its socket, against Xen's xenstored")
    parser.add_argument("--count", type=int, default=20_000, help="requests of each kind")
    options = parser.parse_args()
    # On one processor: whether the kernel puts client and server on one or on two changes every
    # figure by half, and differs from run to run.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found: dict[int, dict[str, Row]] = {}
    with tempfile.TemporaryDirectory(prefix="hvmlite-bench-") as scratch:
        folder = Path(scratch)
        client = build_client(folder)

        def side(server: Server, nodes: int) -> Times:
            with server(folder) as path:
                return run(client, path, nodes, options.count)

        for nodes in (FEW, MANY):
            times = in_turn(
                options.pairs,
                {
                    "hvmlite": partial(side, ours, nodes),
                    "xenstored": partial(side, peer, nodes),
                },
            )
            found[nodes] = figures(nodes, times["hvmlite"], times["xenstored"])
    few, many = found[FEW], found[MANY]
    scale = {
        name: row(
            f"{WORK[name][0]}: {MANY:,} nodes to {FEW}",
            many[name].project_all,
            few[name].project_all,
        )
        for name in WORK
    }
    limits = [
        *(
            Limit(f"{size[name].what}, to xenstored's", size[name], 2)
            for size in (few, many)
            for name in ("read", "write", "transaction", "watch")
        ),
        Limit("a transaction among many nodes, to one among few", scale["transaction"], 1.5),
    ]
    rows = [*few.values(), *many.values()]
    print("requests per second (hvmlite, xenstored):")
    for each in rows:
        if each.project and each.peer:
            print(f"  {each.what:<55} {1 / each.project:>9,.0f} {1 / each.peer:>9,.0f}")
    print()
    sides = {
        "xenstored": rows,
        f"hvmlite with {FEW} nodes": list(scale.values()),
    }
    return report(options, sides, limits, {"count": options.count}, unit="µs")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BenchmarkError, HvmliteError) as failure:
        sys.exit(f"xenstore.py: {failure}")
