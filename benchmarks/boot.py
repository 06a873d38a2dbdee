"""Boots the same Debian kernel and ramdisk in hvmlite and in plain QEMU (q35, TCG), in turn.

Both get the same ELF kernel, so that unpacking a bzImage is in neither figure, unless --bzimage
asks for it. Wall time runs from the start of the command to its end, CPU time covers every process.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common import (
    HVMLITE,
    QEMU,
    ROOT,
    BenchmarkError,
    Run,
    arguments,
    compare,
    measure,
    report,
    rows,
)
from hvmlite.errors import UserError
from hvmlite.testing import assets, ramdisk
from hvmlite.testing.vmlinux import vmlinux

MARKS = {
    "userspace": ramdisk.BENCH_USERSPACE.encode(),
    "end": ramdisk.BENCH_END.encode(),
}
CALLED = {"userspace": "start to userspace", "end": "start to end of script"}
KERNEL_OPTIONS = "loglevel=3 panic=-1"


def hvmlite(kernel: Path, initrd: Path, memory_mib: int) -> list[str | Path]:
    """Return the project's command."""
    argv: list[str | Path] = [HVMLITE, "run", kernel, "--ramdisk", initrd]
    argv += ["--memory", f"{memory_mib}M", "--cmdline", f"console=hvc0 {KERNEL_OPTIONS}"]
    return argv


def plain_qemu(kernel: Path, initrd: Path, memory_mib: int) -> list[str | Path]:
    """Return the peer's command."""
    # max without la57: with it the kernel would use five-level page tables, which no guest needs.
    argv: list[str | Path] = [QEMU, "-M", "q35", "-accel", "tcg", "-cpu", "max,la57=off"]
    argv += ["-m", str(memory_mib), "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-no-reboot", "-serial", "stdio", "-kernel", kernel, "-initrd", initrd]
    argv += ["-append", f"console=ttyS0 {KERNEL_OPTIONS}"]
    return argv


def checked(argv: Sequence[str | Path], digest: bytes) -> Run:
    """Measure one boot; the guest's own sum over busybox shows that it computed rightly."""
    run = measure(argv, MARKS)
    if digest not in run.output:
        raise BenchmarkError(f"{argv[0]}: the guest's md5sum is wrong")
    return run


def main() -> int:
    """Run the benchmark."""
    parser = arguments("boot to userspace and to the end of a script: hvmlite and plain QEMU")
    parser.add_argument("--kernel", choices=list(assets.KERNELS), default="debian")
    parser.add_argument("--bzimage", action="store_true", help="boot the bzImage, not its ELF")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="default 512")
    options = parser.parse_args()
    try:
        find = assets.kernel if options.bzimage else vmlinux
        kernel = find(options.kernel)
        initrd = ROOT / "build" / "bench" / "initrd.cpio"
        initrd.parent.mkdir(parents=True, exist_ok=True)
        initrd.write_bytes(ramdisk.boot_bench())
        digest = hashlib.md5(assets.busybox().read_bytes()).hexdigest().encode()
        project, peer = compare(
            options.pairs,
            options.peer_only,
            partial(checked, hvmlite(kernel, initrd, options.memory), digest),
            partial(checked, plain_qemu(kernel, initrd, options.memory), digest),
        )
        setup = {
            "kernel": assets.package(options.kernel),
            "image": "bzImage" if options.bzimage else "vmlinux",
            "memory_mib": options.memory,
            "pairs": options.pairs,
        }
        report(rows(project, peer, CALLED), "QEMU q35", options.json, setup)
    except (BenchmarkError, UserError) as error:
        print(f"boot: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
