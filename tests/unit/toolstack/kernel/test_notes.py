"""The Xen notes: where they are found, how each kind of value is read, what is refused.

Cannot see: whether the names of the notes are the header's (tests/abi compares the constants).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hvmlite.toolstack.kernel import KernelError, XenNotes, load_kernel
from hvmlite.toolstack.kernel.elf import NoteArea
from hvmlite.toolstack.kernel.notes import Note, read_notes
from hvmlite.toolstack.kernel.source import BufferSource

from .build import LOAD_ADDRESS, Elf, Load, entry_note, note


def read(data: bytes) -> tuple[XenNotes, list[str]]:
    notes, damage = XenNotes(), list[str]()
    read_notes(BufferSource(data), [NoteArea(0, len(data))], notes, damage)
    return notes, damage


def load_notes(path: Path, elf: Elf) -> XenNotes:
    path.write_bytes(elf.build())
    with load_kernel(path) as image:
        return image.notes


def test_values_by_name() -> None:
    notes, damage = read(
        note(6, b"linux\0")
        + note(7, b"2.6\0")
        + note(5, b"xen-3.0\0")
        + note(8, b"generic\0")
        + note(9, b"yes\0")
        + note(11, b"no\0")
        + note(10, b"!writable_page_tables|pae_pgdir_above_4gb\0")
        + note(17, (0x8801).to_bytes(4, "little"))
        + note(1, (0xFFFFFFFF830791C0).to_bytes(8, "little"))
        + note(2, (0xFFFFFFFF81000000).to_bytes(8, "little"))
        + note(3, (0xFFFFFFFF80000000).to_bytes(8, "little"))
        + note(4, bytes(8))
        + note(12, (0xFFFF800000000000).to_bytes(8, "little"))
        + note(13, bytes(16))
        + note(14, b"\1\0\0\0")
        + note(15, (1 << 39).to_bytes(8, "little"))
        + note(16, b"\1")
        + note(18, (0x1000850).to_bytes(8, "little"))
    )
    assert damage == []
    assert len(notes.raw) == 18
    assert (notes.guest_os, notes.guest_version) == ("linux", "2.6")
    assert (notes.xen_version, notes.loader) == ("xen-3.0", "generic")
    assert (notes.pae_mode, notes.bsd_symtab) == ("yes", "no")
    assert notes.features == "!writable_page_tables|pae_pgdir_above_4gb"
    assert notes.required_features == ("writable_page_tables",)
    assert (notes.supported_features, notes.phys32_entry) == (0x8801, 0x1000850)
    assert (notes.entry, notes.hypercall_page) == (0xFFFFFFFF830791C0, 0xFFFFFFFF81000000)
    assert (notes.virt_base, notes.paddr_offset) == (0xFFFFFFFF80000000, 0)
    assert (notes.hv_start_low, notes.init_p2m) == (0xFFFF800000000000, 1 << 39)
    assert (notes.suspend_cancel, notes.mod_start_pfn) == (1, 1)


def test_other_owners_and_types_are_passed_over() -> None:
    notes, damage = read(
        note(18, b"GNUX", b"GNU\0") + note(18, b"1234", b"Xen") + note(99, b"?") + entry_note(7)
    )
    assert damage == []
    assert notes.phys32_entry == 7
    assert [n.name for n in notes.raw] == ["type 99", "XEN_ELFNOTE_PHYS32_ENTRY"]
    assert [notes.value(n) for n in notes.raw] == ["3f", 7]


def test_the_last_note_of_a_type_counts() -> None:
    assert read(entry_note(1) + entry_note(2))[0].phys32_entry == 2


def test_strings_end_at_the_first_nul_and_cannot_escape() -> None:
    notes, _ = read(note(6, b"a\x1b[31m\n\0rest") + note(7, b"no end") + note(8, b"\xe9\x90"))
    assert notes.guest_os == r"a\x1b[31m\n"
    assert notes.guest_version == "no end"
    assert notes.loader == "\xe9\\x90"


def test_numbers_of_odd_size_are_not_read() -> None:
    notes, _ = read(note(18, b"") + note(3, b"abc") + note(4, bytes(9)))
    assert (notes.phys32_entry, notes.virt_base, notes.paddr_offset) == (None, None, None)
    assert notes.value(Note(3, b"abc")) == "616263"


def test_what_precedes_damage_counts() -> None:
    """GRUB's PV image ends in a string note that claims 12 bytes and has 4."""
    tail = note(9, b"yes\0 and more")[:-12]
    damage = ["its notes at byte 0x0 are broken: a note is larger than its segment"]
    notes, found = read(entry_note() + tail)
    assert (notes.phys32_entry, notes.pae_mode, found) == (LOAD_ADDRESS, "yes", damage)
    notes, found = read(entry_note(size=8)[:-4])
    assert (notes.phys32_entry, notes.raw, found) == (None, [], damage)


def test_padding_at_the_end_is_no_note() -> None:
    assert read(entry_note() + bytes(8)) == read(entry_note())


def test_notes_in_sections_only(tmp_path: Path) -> None:
    notes = load_notes(tmp_path / "k", Elf(notes_in="section"))
    assert notes.phys32_entry == LOAD_ADDRESS
    notes = load_notes(tmp_path / "k", Elf(bits=32, notes_in="section"))
    assert notes.phys32_entry == LOAD_ADDRESS


def test_sections_do_not_repeat_segments(tmp_path: Path) -> None:
    assert len(load_notes(tmp_path / "k", Elf(notes_in="both")).raw) == 1


def test_note_segment_without_an_offset_is_passed_over(tmp_path: Path) -> None:
    elf = Elf(notes_offset=0)
    with pytest.raises(KernelError, match="has no Xen ELF notes"):
        load_notes(tmp_path / "k", elf)


def test_broken_section_headers_hold_no_notes(tmp_path: Path) -> None:
    for shnum in (3, 4097, 0xFFFF):
        with pytest.raises(KernelError, match="has no Xen ELF notes"):
            load_notes(tmp_path / "k", Elf(notes_in="section", shnum=shnum))


def test_features_that_xen_knows_may_be_required(tmp_path: Path) -> None:
    features = b"!writable_page_tables|!auto_translated_physmap|no_such_feature|\0"
    elf = Elf(loads=[Load()], notes=entry_note() + note(10, features))
    notes = load_notes(tmp_path / "k", elf)
    assert notes.required_features == ("writable_page_tables", "auto_translated_physmap")
