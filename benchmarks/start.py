"""Start-up: from the start of the command to the guest's first instruction, and to a whole run.

The guest guests/first_instruction.S writes one byte to the debug console at once and ends; hvmlite
and plain QEMU (microvm, q35) run the same ELF. hello (tests/guest/hello.c) prints one line by the
PV console and shuts down, which no plain QEMU can run: its figure stands alone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

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
    row,
    rows,
)

sys.path.insert(0, str(ROOT))
from tests.guest.build import GuestBuildError, GuestToolsMissingError, build_guest

HELLO_AT_MOST_S = 0.25
MARKS = {"first": b"!"}
CALLED = {"first": "start to first instruction"}
# isa-debug-exit makes QEMU's status odd: what the guest wrote, doubled, plus one.
GUEST_ENDED = 1
MACHINES = {
    "microvm": (
        "microvm,pic=off,pit=off,rtc=off,isa-serial=off,auto-kernel-cmdline=off,"
        "x-option-roms=off,acpi=off"
    ),
    "q35": "q35",
}


def assemble() -> Path:
    """Assemble and link the tiny guest; return the ELF."""
    source = ROOT / "benchmarks" / "guests" / "first_instruction.S"
    elf = ROOT / "build" / "bench" / "first_instruction.elf"
    elf.parent.mkdir(parents=True, exist_ok=True)
    # One page at 1 MiB for code and note; ld would put the note elsewhere.
    flags = ["-Wl,-Ttext=0x100000,--section-start=.note.Xen=0x100100"]
    flags += ["-m32", "-nostdlib", "-static", "-no-pie", "-Wl,-N,--build-id=none"]
    done = subprocess.run(
        ["gcc", *flags, "-o", elf, source], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchmarkError(f"gcc failed: {done.stderr.strip()}")
    return elf


def first_instruction(elf: Path) -> Run:
    """Measure one start of hvmlite."""
    return measure([HVMLITE, "run", elf, "--memory", "32M"], MARKS, timeout_s=30)


def plain_qemu(machine: str, elf: Path) -> Run:
    """Measure one start of plain QEMU with that machine type."""
    argv: list[str | Path] = [QEMU, "-M", MACHINES[machine], "-accel", "tcg"]
    argv += ["-cpu", "max,la57=off", "-m", "32", "-nodefaults", "-no-user-config"]
    argv += ["-display", "none", "-no-reboot", "-chardev", "stdio,id=out"]
    argv += ["-device", "isa-debugcon,iobase=0xe9,chardev=out"]
    argv += ["-device", "isa-debug-exit,iobase=0xf4", "-kernel", elf]
    return measure(argv, MARKS, timeout_s=30, expect=GUEST_ENDED)


def hello(elf: Path) -> Run:
    """Measure one whole run of the minimal guest."""
    run = measure([HVMLITE, "run", elf, "--memory", "64M"], timeout_s=30)
    if b"Hello from a PVH guest" not in run.output:
        raise BenchmarkError(f"the guest did not say hello: {run.output[-200:]!r}")
    return run


def python_alone() -> Run:
    """Measure Python that does nothing: the part of every figure of ours that is not ours."""
    return measure([sys.executable, "-c", "pass"], timeout_s=30)


def main() -> int:
    """Run the benchmark."""
    options = arguments("start-up to the guest's first instruction, and a whole run").parse_args()
    try:
        elf, hello_elf = assemble(), build_guest("hello", "hvm64")
        sides: dict[str, Callable[[], Run]] = {
            "hvmlite": partial(first_instruction, elf),
            "hello": partial(hello, hello_elf),
            "python": python_alone,
        }
        sides |= {machine: partial(plain_qemu, machine, elf) for machine in MACHINES}
        runs = in_turn(options.pairs, sides)
        alone = [
            row("hello, whole process, wall", [run.wall for run in runs["hello"]], []),
            row("hello, whole process, CPU", [run.cpu for run in runs["hello"]], []),
            row("python -c pass, wall", [run.wall for run in runs["python"]], []),
        ]
        figures = {f"QEMU {each}": rows(runs["hvmlite"], runs[each], CALLED) for each in MACHINES}
        return report(
            options,
            {**figures, "no peer": alone},
            [Limit("hello, whole `hvmlite run`", alone[0], HELLO_AT_MOST_S, seconds=True)],
            {**MACHINES, "hello": hello_elf.name, "pairs": options.pairs},
        )
    except (BenchmarkError, GuestBuildError, GuestToolsMissingError) as error:
        print(f"start: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
