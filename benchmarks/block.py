"""fio in a Debian guest: hvmlite's PV disk against virtio-blk of plain QEMU (q35, TCG), in turn.

Same kernel, same raw image through the host's page cache (QEMU: cache=writeback, the default), same
fio. Each run boots, goes through all jobs and powers off; figures are medians of each job's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common import (
    HVMLITE,
    QEMU,
    ROOT,
    BenchmarkError,
    arguments,
    in_turn,
    machine,
    measure,
)
from hvmlite.errors import HvmliteError
from hvmlite.testing import assets, ramdisk
from hvmlite.testing.programs import module_loader, program
from hvmlite.testing.vmlinux import vmlinux

JOBS = {
    f"{pattern} {size} depth {depth}": (pattern, size, depth)
    for pattern, size in (
        ("read", "1m"),
        ("write", "1m"),
        ("randread", "4k"),
        ("randwrite", "4k"),
    )
    for depth in (1, 32)
}
AT_LEAST = 1.0
MARK = "FIO-RESULT"
READ_BANDWIDTH, READ_IOPS, WRITE_BANDWIDTH, WRITE_IOPS = 6, 7, 47, 48
"""Fields of fio's terse output, version 3; KiB/s and operations a second."""


def script(device: str, loads: str, jobs: Sequence[str], seconds: int, size: int) -> str:
    """Return the guest's /init."""
    lines = [
        "#!/bin/busybox sh",
        "export PATH=/bin:/usr/bin",
        "mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev",
        loads,
        f"while [ ! -b /dev/{device} ]; do sleep 0.1; done",
        # Once over all of it: neither side's first job shall pay for first uses.
        f"dd if=/dev/{device} of=/dev/null bs=1M 2>/dev/null",
    ]
    for name in jobs:
        pattern, block, depth = JOBS[name]
        lines.append(
            f"echo '{MARK};{name};'$(fio --name=x --filename=/dev/{device} --size={size}M "
            f"--rw={pattern} --bs={block} --iodepth={depth} --direct=1 --ioengine=libaio "
            f"--runtime={seconds} --time_based --thread --randrepeat=1 --norandommap "
            "--output-format=terse --terse-version=3 2>&1)"
        )
    return "\n".join([*lines, "poweroff -f", ""])


def build_initrd(side: str, options: argparse.Namespace) -> Path:
    """Write one side's ramdisk."""
    wanted = ["virtio_pci", "virtio_blk"] if side == "qemu" else ["xen-blkfront"]
    files, loads = module_loader(assets.modules("debian", *wanted))
    device = "vda" if side == "qemu" else "xvda"
    init = script(device, loads, options.jobs, options.seconds, options.size)
    path = ROOT / "build" / "bench" / f"block-{side}.cpio"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        ramdisk.build(init, applets=ramdisk.all_applets(), files={**files, **program("fio", "fio")})
    )
    return path


def make_image(path: Path, size: int) -> None:
    """Write an image of data that does not compress, whole, so that no block is missing."""
    with path.open("wb") as file:
        for _ in range(size):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())


def hvmlite(kernel: Path, initrd: Path, image: Path) -> list[str | Path]:
    """Return the project's command."""
    argv: list[str | Path] = [HVMLITE, "run", kernel, "--ramdisk", initrd, "--memory", "1G"]
    return [*argv, "--cmdline", "console=hvc0 loglevel=3 panic=-1", "--disk", f"{image},raw,xvda"]


def plain_qemu(kernel: Path, initrd: Path, image: Path) -> list[str | Path]:
    """Return the peer's command."""
    argv: list[str | Path] = [QEMU, "-M", "q35", "-accel", "tcg", "-cpu", "max,la57=off"]
    argv += ["-m", "1024", "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-no-reboot", "-serial", "stdio", "-kernel", kernel, "-initrd", initrd]
    argv += ["-append", "console=ttyS0 loglevel=3 panic=-1"]
    argv += ["-drive", f"file={image},format=raw,if=none,id=d,cache=writeback"]
    return [*argv, "-device", "virtio-blk-pci,drive=d"]


def figures(argv: Sequence[str | Path], jobs: Sequence[str]) -> dict[str, float]:
    """Run one side; return each job's operations a second."""
    run = measure(argv, timeout_s=600)
    found: dict[str, float] = {}
    for line in run.output.decode(errors="replace").splitlines():
        fields = line.strip().split(";")
        if fields[0] == MARK and len(fields) > WRITE_IOPS + 2:
            index = WRITE_IOPS if "write" in fields[1] else READ_IOPS
            found[fields[1]] = float(fields[2:][index])
    if missing := [name for name in jobs if not found.get(name)]:
        said = run.output[-600:].decode(errors="replace")
        raise BenchmarkError(f"{argv[0]}: no result for {', '.join(missing)}; it said: {said}")
    return found


def show(
    ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]], jobs: Sequence[str]
) -> dict[str, float]:
    """Print the table; return the ratios, ours to theirs."""
    ratios = {}
    print(f"{'operations/s, median (range)':30} {'hvmlite':>24} {'QEMU q35':>24}  ratio")
    for name in jobs:
        cells, medians = [], []
        for side in (ours, theirs):
            values = [run[name] for run in side]
            medians.append(statistics.median(values))
            cells.append(f"{medians[-1]:.0f} ({min(values):.0f} to {max(values):.0f})")
        ratios[name] = medians[0] / medians[1]
        print(f"{name:30} {cells[0]:>24} {cells[1]:>24}  {ratios[name]:.2f}")
    return ratios


def main() -> int:
    """Run the benchmark."""
    parser = arguments("fio in the guest: hvmlite's PV disk and QEMU's virtio-blk")
    parser.add_argument("--seconds", type=int, default=3, help="of each job (default 3)")
    parser.add_argument("--size", type=int, default=512, metavar="MIB", help="of the image")
    parser.add_argument("--job", action="append", dest="jobs", choices=list(JOBS), help="only this")
    options = parser.parse_args()
    options.jobs = options.jobs or list(JOBS)
    image = ROOT / "build" / "bench" / "block.img"
    try:
        kernel = vmlinux("debian")
        initrds = {side: build_initrd(side, options) for side in ("hvmlite", "qemu")}
        make_image(image, options.size)
        runs = in_turn(
            options.pairs,
            {
                "hvmlite": partial(
                    figures, hvmlite(kernel, initrds["hvmlite"], image), options.jobs
                ),
                "qemu": partial(figures, plain_qemu(kernel, initrds["qemu"], image), options.jobs),
            },
        )
    except (BenchmarkError, HvmliteError) as error:
        print(f"block: {error}", file=sys.stderr)
        return 1
    finally:
        image.unlink(missing_ok=True)
    ratios = show(runs["hvmlite"], runs["qemu"], options.jobs)
    if options.json is not None:
        document = {"machine": machine(), "runs": runs, "ratios": ratios}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    slow = [name for name, ratio in ratios.items() if ratio < AT_LEAST]
    print(f"\nslower than QEMU: {', '.join(slow) or 'none'}")
    return 1 if options.check and slow else 0


if __name__ == "__main__":
    sys.exit(main())
