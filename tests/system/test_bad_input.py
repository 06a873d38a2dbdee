"""Every mistake a user can make: one line on stderr, exit status 2, and nothing left behind.

Proves it of the whole command, with the host's memory limited so that a bomb would show. Cannot see
all the ways in which a file can be broken: tests/unit/toolstack/kernel has them, and hypothesis.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..unit.toolstack.kernel.build import (
    COMPRESSORS,
    EM_ARM,
    Elf,
    Load,
    bzimage,
    compressed_bzimage,
    entry_note,
    note,
)
from .command import Command, Finished, hvmlite
from .guests import SPIN, machine_code

MIB = 1 << 20
ADDRESS_SPACE = 2 << 30
"""Bytes that the command may map: far more than it needs, far less than a bomb yields."""
BOMB = bytes(64 * MIB)


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory for temporary files that has to be empty in the end."""
    path = Path(tempfile.mkdtemp())
    yield path
    try:
        assert list(path.iterdir()) == []
    finally:
        shutil.rmtree(path)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A kernel that runs until it is ended."""
    return machine_code(tmp_path / "kernel", SPIN)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))


def refused(room: Path, *arguments: str | Path, seconds: float = 20) -> str:
    """Runs the command, which must refuse; returns its one line without our name."""
    run = hvmlite(
        *arguments,
        *("--timeout", "20"),
        env={"TMPDIR": str(room)},
        cwd=room,
        prepare=_limit,
        timeout=seconds,
    )
    assert run.status == 2, run
    assert run.output == ""
    return one_line(run)


def one_line(run: Finished) -> str:
    assert run.messages.endswith("\n")
    assert len(run.lines) == 1, run
    assert run.lines[0].isprintable()
    assert run.lines[0].startswith("hvmlite: ")
    return run.lines[0].removeprefix("hvmlite: ")


def _compressed(codec: str, *, cut: int = 0, plain: bytes | None = None) -> bytes:
    """A bzImage whose payload is cut short, or yields `plain` instead of what it declares."""
    elf = Elf(loads=[Load(data=random.Random(1).randbytes(4096))]).build()
    if plain is not None:
        return bzimage(COMPRESSORS[codec](elf + plain), None if codec == "gzip" else len(elf))
    data = COMPRESSORS[codec](elf)
    return bzimage(data[: len(data) - cut], None if codec == "gzip" else len(elf))


def _elf(*loads: Load, **fields: object) -> bytes:
    return Elf(loads=list(loads) or [Load()], **fields).build()


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "text": (lambda: b"Hello, world\n" * 100, "is not a kernel but a text file"),
    "zeros": (lambda: bytes(MIB), "is not a kernel"),
    "noise": (lambda: bytes(range(1, 256)) * 99, "is not a kernel"),
    "cpio": (lambda: b"070701" + b"0" * 200, "initramfs"),
    "cut-elf": (lambda: _elf()[:40], ""),
    "arm": (lambda: _elf(machine=EM_ARM), ""),
    "no-segments": (lambda: Elf(loads=[]).build(), ""),
    "no-note": (lambda: _elf(notes=b"", notes_in=""), "no Xen ELF notes"),
    "pv-only": (lambda: _elf(notes=note(6, b"linux\0")), "XEN_ELFNOTE_PHYS32_ENTRY"),
    "note-outside": (lambda: _elf(notes_offset=1 << 40), "beyond the end of the file"),
    "note-cut": (lambda: _elf(notes_size=1 << 16), "beyond the end of the file"),
    "entry-outside": (lambda: _elf(notes=entry_note(0x200000)), "outside the loaded segments"),
    "entry-high": (lambda: _elf(notes=entry_note(1 << 32, 8)), "above 4 GiB"),
    "data-outside": (lambda: _elf(Load(offset=1 << 30)), ""),
    "data-larger-than-memory": (lambda: _elf(Load(memsz=8)), ""),
    "overlap": (lambda: _elf(Load(), Load(paddr=0x100020)), "overlap"),
    "wrap": (lambda: _elf(Load(), Load(paddr=(1 << 64) - 4096, memsz=8192)), ""),
    "beyond-memory": (lambda: _elf(Load(), Load(paddr=1 << 30)), "memory"),
    "in-the-hole": (lambda: _elf(Load(), Load(paddr=0xFEE00000)), "memory"),
    "huge": (lambda: _elf(Load(memsz=1 << 40)), "memory"),
    "many-headers": (lambda: _elf(phnum=0xFFFF), ""),
    "bzimage-of-text": (lambda: compressed_bzimage("gzip", b"text " * 99), "not an ELF file"),
    "bzimage-unknown": (lambda: bzimage(b"\xff" * 999, 99), "unknown compression format"),
    "bzimage-old": (lambda: bzimage(b"", None, protocol=0x0200), ""),
    "bzimage-payload-outside": (lambda: bzimage(b"", None, payload_length=1 << 30), ""),
    "declares-too-much": (
        lambda: bzimage(COMPRESSORS["xz"](_elf()), (1 << 32) - 1),
        "declares 4294967295 bytes",
    ),
    "gzip-bomb-alone": (lambda: COMPRESSORS["gzip"](BOMB), "not an ELF file"),
}
FILES |= {
    f"truncated-{codec}": (lambda c=codec: _compressed(c, cut=40), "") for codec in COMPRESSORS
}
FILES |= {
    f"bomb-{codec}": (lambda c=codec: _compressed(c, plain=BOMB), "")
    for codec in COMPRESSORS
    if codec != "gzip"
}


@pytest.mark.parametrize("name", FILES)
def test_kernel(name: str, room: Path, tmp_path: Path) -> None:
    build, message = FILES[name]
    kernel = tmp_path / "kernel"
    kernel.write_bytes(build())
    said = refused(room, kernel)
    assert said.startswith(f"{kernel}: ") or message == "memory", said
    assert message in said


@pytest.mark.parametrize("name", ["no-note", "overlap", "wrap", "truncated-xz", "text"])
def test_check_agrees(name: str, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(FILES[name][0]())
    run = hvmlite(kernel, verb="check")
    assert run.status == 2, run
    assert run.messages == ""


@pytest.mark.parametrize("what", ["missing", "directory", "fifo", "device", "forbidden"])
def test_unreadable_kernel(what: str, room: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    if what == "directory":
        kernel.mkdir()
    elif what == "fifo":
        os.mkfifo(kernel)
    elif what == "device":
        kernel = Path("/dev/zero")
    elif what == "forbidden":
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        kernel.write_bytes(_elf())
        kernel.chmod(0)
    assert refused(room, kernel).startswith(f"{kernel}: ")


def test_name_with_control_characters(room: Path, tmp_path: Path) -> None:
    assert "two\\nlines\\x1b[2J" in refused(room, tmp_path / "two\nlines\x1b[2J")


@pytest.mark.parametrize("option", ["--ramdisk", "--module"])
@pytest.mark.parametrize("what", ["missing", "directory", "fifo", "device", "empty", "large"])
def test_modules(option: str, what: str, room: Path, good: Path, tmp_path: Path) -> None:
    file = tmp_path / "two\nlines"
    if what == "directory":
        file.mkdir()
    elif what == "fifo":
        os.mkfifo(file)
    elif what == "device":
        file = Path("/dev/zero")
    elif what == "empty":
        file.touch()
    elif what == "large":
        with file.open("wb") as stream:
            stream.truncate(1 << 36)
    assert option.removeprefix("--") in refused(room, good, option, file)


def test_memory_too_small_for_the_kernel(room: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(_elf(Load(data=bytes(3 * MIB))))
    assert "memory" in refused(room, kernel, "--memory", "3M")


def test_memory_too_small_for_kernel_and_ramdisk(room: Path, good: Path, tmp_path: Path) -> None:
    ramdisk = tmp_path / "ramdisk"
    ramdisk.write_bytes(b"x" * 7 * MIB)
    said = refused(room, good, "--ramdisk", ramdisk, "--memory", "8M")
    assert "boot needs" in said
    assert "7.0 MiB" in said


def test_real_kernel_in_too_little_memory(room: Path, linux: Path) -> None:
    assert "memory" in refused(room, linux, "--memory", "32M")


def test_command_line_too_long(room: Path, good: Path) -> None:
    said = refused(room, good, "--cmdline", "x" * 70_000)
    assert "command line has 70000 bytes" in said


OPTIONS = [
    ("--memory", "lots"),
    ("--memory", ""),
    ("--memory", "0"),
    ("--memory", "-1"),
    ("--memory", "4097k"),
    ("--memory", "1.5G"),
    ("--memory", "5000T"),
    ("--memory", "9" * 6000),
    ("--vcpus", "0"),
    ("--vcpus", "-1"),
    ("--vcpus", "two"),
    ("--vcpus", "1000"),
    ("--vcpus", "9" * 6000),
    ("--timeout", "0"),
    ("--timeout", "-3"),
    ("--timeout", "nan"),
    ("--timeout", "inf"),
    ("--timeout", "1e300"),
    ("--timeout", "soon"),
    ("--timer-slack", "nan"),
    ("--timer-slack", "inf"),
    ("--timer-slack", "-1"),
    ("--xen-version", "3.0"),
    ("--xen-version", "new"),
    ("--engine", "magic"),
    ("--on-reboot", "twice"),
    ("--bogus", "1"),
]


@pytest.mark.parametrize(("option", "value"), OPTIONS, ids=lambda it: it[:12] or "empty")
def test_options(option: str, value: str, good: Path) -> None:
    run = hvmlite(good, f"{option}={value}", timeout=20)
    assert run.status == 2, run
    assert run.output == ""
    assert len(one_line(run)) < 10_000


def test_no_kernel_named() -> None:
    run = hvmlite()
    assert run.status == 2, run
    assert "KERNEL" in one_line(run)


def test_unknown_verb() -> None:
    run = hvmlite(verb="walk")
    assert run.status == 2, run
    assert "walk" in one_line(run)


def test_kernel_is_cut_short_while_it_boots(tmp_path: Path) -> None:
    """Nobody is killed by SIGBUS for it, whether it is noticed or not."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(_elf(Load(data=SPIN + bytes(64 * MIB))))
    with Command(kernel, "--timeout", "1") as command:
        time.sleep(0.15)
        os.truncate(kernel, 5000)
        run = command.finish()
    assert run.status in (2, 4), run
    assert len(run.lines) == 1, run


def test_note_of_the_last_bytes(tmp_path: Path) -> None:
    """The counter-example: nothing here is refused that is only unusual."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(_elf(Load(data=SPIN + struct.pack("<Q", 0)), notes_in="section"))
    run = hvmlite(kernel, "--timeout", "0.3", prepare=_limit)
    assert run.status == 4, run
