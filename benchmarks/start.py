"""From the start of the command to the guest's first instruction: plain QEMU, microvm and q35.

The guest (guests/first_instruction.S) writes one byte to the debug console at once and ends.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

from common import QEMU, ROOT, BenchmarkError, Run, arguments, measure, report, rows, solo

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


def build_guest() -> Path:
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


def plain_qemu(machine: str, elf: Path) -> list[str | Path]:
    """Return the peer's command for one machine type."""
    argv: list[str | Path] = [QEMU, "-M", MACHINES[machine], "-accel", "tcg"]
    argv += ["-cpu", "max,la57=off", "-m", "32", "-nodefaults", "-no-user-config"]
    argv += ["-display", "none", "-no-reboot", "-chardev", "stdio,id=out"]
    argv += ["-device", "isa-debugcon,iobase=0xe9,chardev=out"]
    argv += ["-device", "isa-debug-exit,iobase=0xf4", "-kernel", elf]
    return argv


def peer(machine: str, elf: Path) -> Run:
    """Measure one start of plain QEMU."""
    return measure(plain_qemu(machine, elf), MARKS, timeout_s=30, expect=GUEST_ENDED)


def main() -> int:
    """Run the benchmark."""
    options = arguments("start-up to the guest's first instruction").parse_args()
    try:
        elf = build_guest()
        for machine, machine_options in MACHINES.items():
            runs = solo(options.pairs, partial(peer, machine, elf))
            json_file = options.json
            if json_file is not None:
                json_file = json_file.with_stem(f"{json_file.stem}-{machine}")
            setup = {"machine": machine_options, "pairs": options.pairs}
            report(rows([], runs, CALLED), f"QEMU {machine}", json_file, setup)
    except BenchmarkError as error:
        print(f"start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
