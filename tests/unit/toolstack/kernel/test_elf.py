"""ELF kernels: what a good one becomes, and the one line that each bad one gets.

Cannot see: whether a guest runs from what was loaded (tests/system), nor linkers' odd habits that
no file here has.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hvmlite.errors import UserError
from hvmlite.toolstack.kernel import KernelError, KernelImage, check_kernel, load_kernel

from .build import (
    EM_386,
    EM_ARM,
    ET_CORE,
    ET_DYN,
    ET_REL,
    LOAD_ADDRESS,
    PHYS32_ENTRY,
    Elf,
    Load,
    R,
    W,
    X,
    entry_note,
    note,
)

Save = Callable[[bytes], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(data: bytes) -> Path:
        path = tmp_path / "kernel"
        path.write_bytes(data)
        return path

    return write


def reason(path: Path) -> str:
    """The one line of the KernelError, without the file's name."""
    with pytest.raises(KernelError) as caught:
        load_kernel(path)
    line = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("machine", [EM_386, 62])
@pytest.mark.parametrize("file_type", [2, ET_DYN])
def test_loads_both_classes(save: Save, bits: int, machine: int, file_type: int) -> None:
    data = bytes(range(256)) * 20
    elf = Elf(
        bits=bits,
        machine=machine,
        file_type=file_type,
        loads=[Load(data=data), Load(0x300000, b"more", memsz=0x2000, flags=R | W)],
        notes=entry_note(LOAD_ADDRESS + 16, size=bits // 8),
    )
    with load_kernel(save(elf.build())) as image:
        assert (image.kind, image.elf_class, image.entry) == ("elf", bits, LOAD_ADDRESS + 16)
        assert (image.lowest_address, image.highest_address) == (LOAD_ADDRESS, 0x302000)
        first, second = image.segments
        assert (first.paddr, first.memsz, first.executable) == (LOAD_ADDRESS, len(data), True)
        assert (second.paddr, second.memsz, second.executable) == (0x300000, 0x2000, False)
        assert first.data == data
        assert second.data == b"more"


def test_may_load_at_address_zero(save: Save) -> None:
    with load_kernel(save(Elf(loads=[Load(0)], notes=entry_note(0)).build())) as image:
        assert (image.entry, image.lowest_address) == (0, 0)


def test_keeps_the_path(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Elf().build())
    monkeypatch.chdir(path.parent)
    with load_kernel("kernel") as image:
        assert (image.name, image.path) == ("kernel", str(path))


def test_skips_what_libelf_skips(save: Save) -> None:
    loads = [Load(), Load(0x200000, flags=0), Load(0x300000, b"")]
    with load_kernel(save(Elf(loads=loads).build())) as image:
        assert [segment.paddr for segment in image.segments] == [LOAD_ADDRESS]


def copy(image: KernelImage) -> dict[int, bytes]:
    written: dict[int, bytes] = {}
    image.copy_to(lambda address, data: written.update({address: bytes(data)}))
    return written


def test_copies_in_pieces_without_zeros(save: Save) -> None:
    size = 64 << 10
    data = b"a" * size + bytes(size) + b"\0b" * (size // 2) + b"c" + bytes(10) + b"\0"
    with load_kernel(save(Elf(loads=[Load(data=data, memsz=1 << 20)]).build())) as image:
        assert copy(image) == {
            LOAD_ADDRESS: b"a" * size,
            LOAD_ADDRESS + 2 * size: b"\0b" * (size // 2),
            LOAD_ADDRESS + 3 * size: b"c" + bytes(11),
        }


def test_file_that_shrinks_later(save: Save) -> None:
    path = save(Elf().build())
    with load_kernel(path) as image:
        os.truncate(path, 10)
        with pytest.raises(KernelError, match="became shorter while it was read"):
            copy(image)


def test_closed_image(save: Save) -> None:
    image = load_kernel(save(Elf().build()))
    image.close()
    image.close()
    with pytest.raises(KernelError, match="is closed"):
        _ = image.segments[0].data


def test_closes_the_file(save: Save) -> None:
    path = save(Elf().build())
    bad = save(Elf(notes=b"").build()).rename(path.with_name("bad"))
    path = save(Elf().build())
    before = set(os.listdir("/proc/self/fd"))
    load_kernel(path).close()
    with load_kernel(path):
        pass
    check_kernel(path)
    reason(bad)
    image = load_kernel(path)
    del image
    assert set(os.listdir("/proc/self/fd")) == before


# What is wrong with the file itself


def test_files_that_cannot_be_read(tmp_path: Path, save: Save) -> None:
    assert reason(tmp_path) == "is a directory"
    assert reason(Path("/dev/zero")) == "is not a regular file"
    assert reason(tmp_path / "absent") == "cannot be opened: No such file or directory"
    assert reason(save(b"")) == "is empty"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert reason(fifo) == "is not a regular file"
    with pytest.raises(KernelError, match=r"^a\\x00b: cannot be opened: embedded null byte$"):
        load_kernel("a\0b")
    with pytest.raises(KernelError, match=r"/a\\nb: cannot be opened: No such file"):
        load_kernel(tmp_path / "a\nb")


def test_unreadable_file(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Elf().build())
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything

        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    assert reason(path) == "cannot be opened: Permission denied"


def test_larger_than_the_limit(save: Save) -> None:
    path = save(Elf().build())
    os.truncate(path, (4 << 30) + 1)
    assert reason(path) == "is larger than 4 GiB"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"hello, world\n", "a text file"),
        (b"#!/bin/sh\n", "a script"),
        (b"070701" + bytes(100), "an initramfs (cpio archive)"),
        (b"MZ" + bytes(2000), "an EFI application without a bzImage in it"),
        (bytes(5000), "something else (neither ELF nor bzImage)"),
        (b"\x7f", "something else (neither ELF nor bzImage)"),
    ],
)
def test_no_kernel(save: Save, data: bytes, what: str) -> None:
    assert reason(save(data)) == f"is not a kernel but {what}"


# What is wrong with an ELF file


def case(elf: Elf, line: str) -> object:
    return pytest.param(elf, line, id=line[:40])


ONE = "segment 0x100000-0x100040"


@pytest.mark.parametrize(
    ("elf", "line"),
    [
        case(Elf(machine=EM_ARM), "is for machine EM_ARM, not for x86"),
        case(Elf(machine=0xFFFF), "is for machine 65535, not for x86"),
        case(Elf(file_type=ET_CORE), "is a core dump"),
        case(Elf(file_type=ET_REL), "is a relocatable object file, not a linked kernel"),
        case(Elf(file_type=0xABCD), "has file type 43981"),
        case(Elf(loads=[]), "has nothing to load: no PT_LOAD segment"),
        case(Elf(phnum=129), "has 129 program headers: the limit is 128"),
        case(Elf(phnum=0xFFFF), "has 65535 program headers: the limit is 128"),
        case(Elf(phentsize=55), "has program headers of 55 bytes, not 56"),
        case(
            Elf(loads=[Load(filesz=65, memsz=64, offset=0)]),
            f"{ONE} has 0x41 bytes in the file but 0x40 in memory",
        ),
        case(
            Elf(loads=[Load(offset=1 << 40)]),
            f"is cut short: {ONE} ends at byte {(1 << 40) + 64}, the file at 260",
        ),
        case(
            Elf(loads=[Load(), Load((1 << 64) - 4096, memsz=4096)]),
            "segment 0xfffffffffffff000-0x10000000000000000 wraps around the address space",
        ),
        case(
            Elf(loads=[Load(memsz=0x2000), Load(LOAD_ADDRESS + 0x1000)]),
            "segment 0x100000-0x102000 and segment 0x101000-0x101040 overlap",
        ),
        case(
            Elf(loads=[Load(LOAD_ADDRESS + 63), Load()]),
            f"{ONE} and segment 0x10003f-0x10007f overlap",
        ),
        case(
            Elf(loads=[Load(0), Load(0)], notes=entry_note(0)),
            "has no physical addresses: p_paddr is 0 in every segment",
        ),
        case(
            Elf(notes=entry_note(LOAD_ADDRESS + 64)),
            "its entry 0x100040 lies outside the loaded segments",
        ),
        case(
            Elf(notes=entry_note(LOAD_ADDRESS - 1)),
            "its entry 0xfffff lies outside the loaded segments",
        ),
        case(
            Elf(loads=[Load(memsz=4096)], notes=entry_note(LOAD_ADDRESS + 64)),
            "its entry 0x100040 lies in the zero-filled end of segment 0x100000-0x101000",
        ),
        case(
            Elf(notes=entry_note(1 << 32, 8)),
            "its entry 0x100000000 lies above 4 GiB: it is entered in 32-bit mode",
        ),
        case(
            Elf(notes=note(PHYS32_ENTRY, b"abc")),
            "its note XEN_ELFNOTE_PHYS32_ENTRY is no number of 4 or 8 bytes",
        ),
        case(
            Elf(notes_in=""),
            "has no Xen ELF notes: it is not built for PVH "
            "(XEN_ELFNOTE_PHYS32_ENTRY; Linux: CONFIG_PVH)",
        ),
        case(
            Elf(notes=note(6, b"linux\0")),
            "has Xen ELF notes, but not XEN_ELFNOTE_PHYS32_ENTRY: a PV kernel without PVH "
            "(Linux: CONFIG_PVH)",
        ),
        case(
            Elf(notes=entry_note() + note(10, b"!dom0|!hvm_callback_vector\0")),
            "its notes require the feature dom0: it does not run as a domU",
        ),
        case(
            Elf(notes=entry_note() + note(10, b"!tele\x1bport\0")),
            "its notes require the unknown feature tele\\x1bport",
        ),
    ],
)
def test_bad_elf(save: Save, elf: Elf, line: str) -> None:
    assert reason(save(elf.build())) == line


@pytest.mark.parametrize(
    ("elf", "start"),
    [
        (Elf(order=">"), "is big-endian: x86 is little-endian"),
        (Elf(phnum=0), "has no program headers"),
        (Elf(phoff=1 << 60), "is cut short: the program headers end at byte"),
        (Elf(notes_size=1 << 30), "its notes at byte 0xf0 have 1073741824 bytes: the limit is"),
        (Elf(notes_size=21), "its notes at byte 0xf0 lie beyond the end of the file"),
        (Elf(notes_offset=(1 << 64) - 1), "its notes at byte 0xffffffffffffffff lie beyond"),
        (Elf(notes=entry_note()[:-4]), "its notes at byte 0xf0 are broken: a note is larger"),
        (Elf(notes=b"\xff" * 16), "its notes at byte 0xf0 are broken: a note is larger"),
        (Elf(notes=bytes(12) * 4097 + entry_note()), "has more than 4096 notes"),
    ],
)
def test_bad_elf_with_consequences(save: Save, elf: Elf, start: str) -> None:
    assert reason(save(elf.build())).startswith(start)


def test_more_reasons_are_counted(save: Save) -> None:
    path = save(Elf(machine=EM_ARM, file_type=ET_CORE, notes=b"").build())
    line = "is for machine EM_ARM, not for x86 (and 2 more: see hvmlite check)"
    assert reason(path) == line


def test_bad_ident(save: Save) -> None:
    good = Elf().build()
    assert reason(save(good[:15])) == "the ELF header is cut short"
    assert reason(save(good[:63])) == "the ELF header is cut short"
    bad_class = good[:4] + b"\x03" + good[5:]
    assert reason(save(bad_class)) == "its ELF class 3 is neither 32- nor 64-bit"
    bad_order = good[:5] + b"\x00" + good[6:]
    assert reason(save(bad_order)) == "its ELF byte order 0 is unknown"


def test_every_cut_is_refused(save: Save) -> None:
    data = Elf().build()
    for length in range(1, len(data)):
        reason(save(data[:length]))


def test_segments_that_share_the_file_are_limited(save: Save) -> None:
    loads = [Load(index << 32, b"", 1 << 30, R | X, 0, 1 << 30) for index in range(2)]
    path = save(Elf(loads=loads, notes=entry_note(0)).build())
    os.truncate(path, 2 << 30)
    assert reason(path) == f"loads {2 << 30} bytes: the limit is 1 GiB"


# Does it fit


def test_check_fits(save: Save) -> None:
    loads = [Load(memsz=0x1000), Load(0x300000, memsz=0x1000, flags=R | W)]
    with load_kernel(save(Elf(loads=loads).build())) as image:
        image.check_fits(0x301000)
        image.check_fits(0x301000, [(0, LOAD_ADDRESS), (0x101000, 0x1FF000), (0x301000, 1 << 64)])
        for memory in (0x300FFF, 0x100000, 1, 0):
            with pytest.raises(KernelError, match="occupies memory up to 0x301000"):
                image.check_fits(memory)
        with pytest.raises(KernelError) as caught:
            image.check_fits(2 << 20)
        assert str(caught.value).endswith(
            "kernel: occupies memory up to 0x301000: the guest has 2 MiB, it needs 4 MiB"
        )
        for start, size in ((0x300FFF, 1), (0, 0x300001), (0x300800, 0x10)):
            with pytest.raises(KernelError, match="lies in the reserved range"):
                image.check_fits(1 << 30, [(0, 0x1000), (start, size)])


def test_flags_are_reported_as_executable(save: Save) -> None:
    for flags, executable in ((R, False), (R | W, False), (X, True), (R | W | X, True)):
        with load_kernel(save(Elf(loads=[Load(flags=flags)]).build())) as image:
            assert image.segments[0].executable is executable
