"""iperf3 in the same Debian guest under hvmlite and plain QEMU (q35, TCG, virtio-net), in turn.

Both sides go through passt to an iperf3 server on this machine. Each run gives the rate both ways;
the figures are seconds for one gigabyte, so that less is better as in the other benchmarks.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import (
    HVMLITE,
    QEMU,
    BenchmarkError,
    Limit,
    Row,
    arguments,
    in_turn,
    measure,
    report,
    row,
)
from hvmlite.errors import HvmliteError
from hvmlite.testing import network, ramdisk
from hvmlite.testing.ramdisk import Entry
from hvmlite.testing.vmlinux import vmlinux

AT_MOST = 1.0
MEMORY = "512M"
OPTIONS = "loglevel=3 panic=-1"
_LISTENING = re.compile(r":1451 0+:0000 0A")
"""Port 5201 in the kernel's table of sockets."""
_RATE = re.compile(rb"RATE (up|down) ([\d.]+)")


@dataclass(frozen=True)
class Rates:
    """Seconds for 10^9 bytes out of the guest and into it."""

    up: float
    down: float


def make_ramdisk(path: Path, modules: Sequence[str], seconds: float, mtu: int) -> Path:
    """Write a ramdisk that measures both ways and powers off."""
    files: dict[str, bytes | Entry] = {}
    commands = []
    its, load = network.driver("debian", *modules)
    lease, dhcp = network.dhcp()
    files.update(its)
    files.update(lease)
    files.update(network.program("iperf3"))
    commands += [*load, "ip link set lo up", "ip link set eth0 up", dhcp]
    if mtu:
        commands.append(f"ip link set eth0 mtu {mtu}")
    commands.append("host=$(ip route | awk '/^default/ {print $3}')")
    for name, option in (("up", ""), ("down", "-R")):
        # The last line but for the empty ones is what the receiver counted, in Mbit/s.
        commands.append(
            f"echo RATE {name} $(iperf3 -c $host -f m -t {seconds:g} -O 1 {option} "
            "| awk '/receiver/ {print $7}')"
        )
    init = (
        "#!/bin/busybox sh\nexport PATH=/bin:/usr/bin\nmount -t devtmpfs dev /dev\n"
        "mount -t proc proc /proc\nmount -t sysfs sys /sys\n"
        + "\n".join(commands)
        + "\npoweroff -f\n"
    )
    path.write_bytes(ramdisk.build(init, files=files, applets=ramdisk.all_applets()))
    return path


@contextmanager
def server() -> Iterator[int]:
    """Run iperf3's server meanwhile; yield its process id."""
    process = subprocess.Popen(["iperf3", "-s"], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            # Not by connecting: it would take that for a client.
            if _LISTENING.search(Path("/proc/net/tcp6").read_text()):
                break
            time.sleep(0.02)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _rates(argv: Sequence[str | Path], timeout_s: float, beside: Collection[int]) -> Rates:
    run = measure(argv, timeout_s=timeout_s, beside=beside)
    found = {name.decode(): float(rate) for name, rate in _RATE.findall(run.output)}
    if set(found) != {"up", "down"} or not all(found.values()):
        raise BenchmarkError(f"no rates in {run.output[-400:]!r}")
    return Rates(8000 / found["up"], 8000 / found["down"])


def hvmlite(kernel: Path, initrd: Path, timeout_s: float) -> Rates:
    """Measure the project."""
    argv: list[str | Path] = [HVMLITE, "run", kernel, "--ramdisk", initrd, "--memory", MEMORY]
    argv += ["--cmdline", f"console=hvc0 {OPTIONS}", "--vif", "type=user"]
    with server() as iperf3:
        return _rates(argv, timeout_s, [iperf3])


def plain_qemu(kernel: Path, initrd: Path, timeout_s: float) -> Rates:
    """Measure the peer."""
    with tempfile.TemporaryDirectory() as folder, server() as iperf3:
        # passt gives up root, and its socket is made by who it is by then.
        Path(folder).chmod(0o777)
        path = Path(folder) / "passt"
        passt = subprocess.Popen(["passt", "-f", "-q", "-s", path], stderr=subprocess.DEVNULL)
        try:
            for _ in range(200):
                if path.exists():
                    break
                time.sleep(0.02)
            argv: list[str | Path] = [QEMU, "-M", "q35", "-accel", "tcg", "-cpu", "max,la57=off"]
            argv += ["-m", MEMORY, "-nodefaults", "-no-user-config", "-display", "none"]
            argv += ["-no-reboot", "-serial", "stdio", "-kernel", kernel, "-initrd", initrd]
            argv += ["-append", f"console=ttyS0 {OPTIONS}"]
            argv += ["-netdev", f"stream,id=n0,server=off,addr.type=unix,addr.path={path}"]
            argv += ["-device", "virtio-net-pci,netdev=n0"]
            return _rates(argv, timeout_s, [iperf3, passt.pid])
        finally:
            passt.kill()
            passt.wait()


def _rows(runs: Mapping[str, Sequence[Rates]]) -> list[Row]:
    ours, theirs = runs["hvmlite"], runs["QEMU"]
    return [
        row("out of the guest, per GB", [r.up for r in ours], [r.up for r in theirs]),
        row("into the guest, per GB", [r.down for r in ours], [r.down for r in theirs]),
    ]


def main() -> int:
    """Run the benchmark; return the exit status."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--seconds", type=float, default=4, help="of each way (default 4)")
    parser.add_argument("--mtu", type=int, default=0, help="instead of what passt says")
    options = parser.parse_args()
    kernel = vmlinux()
    with tempfile.TemporaryDirectory() as folder:
        ours = make_ramdisk(
            Path(folder) / "xen.cpio", ["xen_netfront"], options.seconds, options.mtu
        )
        theirs = make_ramdisk(
            Path(folder) / "virtio.cpio", ["virtio_pci", "virtio_net"], options.seconds, options.mtu
        )
        limit_s = 60 + 4 * options.seconds
        runs = in_turn(
            options.pairs,
            {
                "hvmlite": partial(hvmlite, kernel, ours, limit_s),
                "QEMU": partial(plain_qemu, kernel, theirs, limit_s),
            },
        )
    figures = _rows(runs)
    for figure in figures:
        if figure.project and figure.peer:
            print(
                f"{figure.what.partition(',')[0]}: hvmlite {8000 / figure.project:.0f} Mbit/s, "
                f"QEMU {8000 / figure.peer:.0f} Mbit/s"
            )
    limits = [Limit(f"{figure.what}, hvmlite to QEMU", figure, AT_MOST) for figure in figures]
    setup: dict[str, str | int | float] = {"mtu": options.mtu, "seconds": options.seconds}
    return report(options, {"QEMU q35 with virtio-net": figures}, limits, setup)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BenchmarkError, HvmliteError) as error:
        print(f"net: {error}", file=sys.stderr)
        sys.exit(1)
