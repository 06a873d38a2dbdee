"""Boots the same Debian kernel and ramdisk in hvmlite and in plain QEMU (q35, TCG), in turn.

Both get the same ELF kernel, so that unpacking a bzImage is in neither figure, unless --bzimage
asks for it. Wall time runs from the start of the command to its end, CPU time covers every process.
"""

from __future__ import annotations

import hashlib
import re
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bare import bare_exit
from common import (
    HVMLITE,
    QEMU,
    ROOT,
    BenchmarkError,
    Limit,
    Run,
    arguments,
    in_turn,
    measure,
    report,
    rows,
)
from hvmlite.errors import HvmliteError
from hvmlite.testing import assets, ramdisk
from hvmlite.testing.vmlinux import vmlinux

WALL_AT_MOST = 1.15
CPU_AT_MOST = 1.30
SMP_WALL_AT_MOST = 1.4
MARKS = {
    "userspace": ramdisk.BENCH_USERSPACE.encode(),
    "end": ramdisk.BENCH_END.encode(),
}
CALLED = {"userspace": "start to userspace", "end": "start to end of script"}
KERNEL_OPTIONS = "loglevel=3 panic=-1"


def hvmlite(kernel: Path, initrd: Path, memory_mib: int, vcpus: int) -> list[str | Path]:
    """Return the project's command."""
    argv: list[str | Path] = [HVMLITE, "run", "--verbose", kernel, "--ramdisk", initrd]
    argv += ["--memory", f"{memory_mib}M", "--vcpus", str(vcpus)]
    argv += ["--cmdline", f"console=hvc0 {KERNEL_OPTIONS}"]
    return argv


def plain_qemu(kernel: Path, initrd: Path, memory_mib: int, vcpus: int) -> list[str | Path]:
    """Return the peer's command."""
    # max without la57: with it the kernel would use five-level page tables, which no guest needs.
    argv: list[str | Path] = [QEMU, "-M", "q35", "-accel", "tcg", "-cpu", "max,la57=off"]
    argv += ["-smp", str(vcpus), "-m", str(memory_mib), "-nodefaults", "-no-user-config"]
    argv += [
        "-display",
        "none",
        "-no-reboot",
        "-serial",
        "stdio",
        "-kernel",
        kernel,
        "-initrd",
        initrd,
    ]
    argv += ["-append", f"console=ttyS0 {KERNEL_OPTIONS}"]
    return argv


def checked(argv: Sequence[str | Path], digest: bytes) -> Run:
    """Measure one boot; the guest's own sum over busybox shows that it computed rightly."""
    run = measure(argv, MARKS)
    if digest not in run.output:
        raise BenchmarkError(f"{argv[0]}: the guest's md5sum is wrong")
    return run


def said(runs: Sequence[Run]) -> str:
    """Return what hvmlite says of its exits, and what bare ones would cost by themselves."""
    found = [re.search(rb"(\d+) exits? in ", run.messages) for run in runs]
    if not runs or None in found:
        raise BenchmarkError("hvmlite --verbose did not say how many exits there were")
    exits = statistics.median(int(each[1]) for each in found if each)
    bare = bare_exit()
    wall = statistics.median(run.wall for run in runs)
    return (
        f"exits: {exits:.0f} (median); a bare one takes {bare * 1e6:.1f} µs here, so these alone "
        f"{exits * bare * 1e3:.0f} ms, {exits * bare / wall:.1%} of the wall time"
    )


def main() -> int:
    """Run the benchmark."""
    parser = arguments("boot to userspace and to the end of a script: hvmlite and plain QEMU")
    parser.add_argument("--kernel", choices=list(assets.KERNELS), default="debian")
    parser.add_argument("--bzimage", action="store_true", help="boot the bzImage, not its ELF")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="default 512")
    parser.add_argument("--vcpus", type=int, default=1, help="CPUs of the guest (default 1)")
    options = parser.parse_args()
    try:
        find = assets.kernel if options.bzimage else vmlinux
        kernel = find(options.kernel)
        initrd = ROOT / "build" / "bench" / "initrd.cpio"
        initrd.parent.mkdir(parents=True, exist_ok=True)
        initrd.write_bytes(ramdisk.boot_bench())
        digest = hashlib.md5(assets.busybox().read_bytes()).hexdigest().encode()
        asked = kernel, initrd, options.memory, options.vcpus
        runs = in_turn(
            options.pairs,
            {
                "hvmlite": partial(checked, hvmlite(*asked), digest),
                "qemu": partial(checked, plain_qemu(*asked), digest),
            },
        )
        figures = rows(runs["hvmlite"], runs["qemu"], CALLED)
        wall, cpu = figures[-2:]
        setup = {
            "kernel": assets.package(options.kernel),
            "image": "bzImage" if options.bzimage else "vmlinux",
            "memory_mib": options.memory,
            "vcpus": options.vcpus,
            "pairs": options.pairs,
        }
        exits = said(runs["hvmlite"])
        if options.vcpus == 1:
            limits = [
                Limit("whole process, wall, over QEMU", wall, WALL_AT_MOST),
                Limit("whole process, CPU, over QEMU", cpu, CPU_AT_MOST),
            ]
        else:
            limits = [
                Limit(
                    f"start to userspace, over QEMU -smp {options.vcpus}",
                    figures[0],
                    SMP_WALL_AT_MOST,
                ),
                Limit(
                    f"whole process, wall, over QEMU -smp {options.vcpus}", wall, SMP_WALL_AT_MOST
                ),
            ]
        status = report(options, {"QEMU q35": figures}, limits, setup | {"exits": exits})
        print(f"\n{exits}")
        return status
    except (BenchmarkError, HvmliteError) as error:
        print(f"boot: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
