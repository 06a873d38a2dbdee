"""The Xen ELF notes of a kernel: what it says of itself and what it wants.

Facts: Xen's public/elfnote.h, and xen/common/libelf/libelf-dominfo.c for what Xen makes of them:
strings end at the first NUL, numbers have 1, 2, 4 or 8 bytes, the last note of a type counts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from hvmlite.abi import elfnote
from hvmlite.records import field, record
from hvmlite.toolstack.kernel.elf import NoteArea
from hvmlite.toolstack.kernel.source import KernelError, Source, printable

MAX_NOTE_AREA = 1 << 20
MAX_NOTES = 4096

_NUMBER_SIZES = (1, 2, 4, 8)
_OWNER = b"Xen\0"

_STRINGS = {
    elfnote.XEN_ELFNOTE_XEN_VERSION: "xen_version",
    elfnote.XEN_ELFNOTE_GUEST_OS: "guest_os",
    elfnote.XEN_ELFNOTE_GUEST_VERSION: "guest_version",
    elfnote.XEN_ELFNOTE_LOADER: "loader",
    elfnote.XEN_ELFNOTE_PAE_MODE: "pae_mode",
    elfnote.XEN_ELFNOTE_FEATURES: "features",
    elfnote.XEN_ELFNOTE_BSD_SYMTAB: "bsd_symtab",
}
_NUMBERS = {
    elfnote.XEN_ELFNOTE_ENTRY: "entry",
    elfnote.XEN_ELFNOTE_HYPERCALL_PAGE: "hypercall_page",
    elfnote.XEN_ELFNOTE_VIRT_BASE: "virt_base",
    elfnote.XEN_ELFNOTE_PADDR_OFFSET: "paddr_offset",
    elfnote.XEN_ELFNOTE_HV_START_LOW: "hv_start_low",
    elfnote.XEN_ELFNOTE_SUSPEND_CANCEL: "suspend_cancel",
    elfnote.XEN_ELFNOTE_INIT_P2M: "init_p2m",
    elfnote.XEN_ELFNOTE_MOD_START_PFN: "mod_start_pfn",
    elfnote.XEN_ELFNOTE_SUPPORTED_FEATURES: "supported_features",
    elfnote.XEN_ELFNOTE_PHYS32_ENTRY: "phys32_entry",
}

# The names that libelf knows; a kernel that requires another one is refused by Xen
_FEATURES = frozenset(
    {
        "writable_page_tables",
        "writable_descriptor_tables",
        "auto_translated_physmap",
        "supervisor_mode_kernel",
        "pae_pgdir_above_4gb",
        "hvm_callback_vector",
        "dom0",
    }
)


class Note(NamedTuple):
    """One note of the owner "Xen": its type and its bytes, as they are."""

    type: int
    desc: bytes

    @property
    def name(self) -> str:
        """The header's name of the type, or "type N"."""
        return _names().get(self.type, f"type {self.type}")


@record
class XenNotes:
    """The notes by name: strings, numbers, and None for what is absent or has no valid size.

    Virtual addresses (`entry`, `hypercall_page`, `virt_base`, `hv_start_low`, `init_p2m`) and
    `paddr_offset` concern PV guests; for PVH Xen's loader ignores them.
    """

    guest_os: str | None = None
    guest_version: str | None = None
    xen_version: str | None = None
    loader: str | None = None
    pae_mode: str | None = None
    bsd_symtab: str | None = None
    features: str | None = None
    supported_features: int | None = None
    phys32_entry: int | None = None
    entry: int | None = None
    hypercall_page: int | None = None
    virt_base: int | None = None
    paddr_offset: int | None = None
    hv_start_low: int | None = None
    init_p2m: int | None = None
    mod_start_pfn: int | None = None
    suspend_cancel: int | None = None
    raw: list[Note] = field(default_factory=list)
    """Every note of the owner "Xen" in the order of the file, known or not."""
    little_endian: bool = True

    @property
    def required_features(self) -> tuple[str, ...]:
        """The names in `features` that are marked with "!"."""
        names = (self.features or "").split("|")
        return tuple(name[1:] for name in names if name.startswith("!"))

    def value(self, note: Note) -> str | int:
        """Return a note's value for a report: a number, a string, or hexadecimal bytes."""
        if note.type in _STRINGS:
            return _string(note.desc)
        if note.type in _NUMBERS and len(note.desc) in _NUMBER_SIZES:
            return self._number(note.desc)
        return note.desc.hex()

    def add(self, note: Note) -> None:
        """Take in one note."""
        self.raw.append(note)
        if note.type in _STRINGS:
            setattr(self, _STRINGS[note.type], _string(note.desc))
        elif note.type in _NUMBERS:
            value = self._number(note.desc) if len(note.desc) in _NUMBER_SIZES else None
            setattr(self, _NUMBERS[note.type], value)

    def check(self, reasons: list[str]) -> None:
        """Append to `reasons` what the notes demand and no domU gets."""
        for name in self.required_features:
            if name == "dom0":
                reasons.append("its notes require the feature dom0: it does not run as a domU")
            elif name not in _FEATURES:
                reasons.append(f"its notes require the unknown feature {printable(name)}")

    def _number(self, desc: bytes) -> int:
        return int.from_bytes(desc, "little" if self.little_endian else "big")


def _string(desc: bytes) -> str:
    return printable(desc.partition(b"\0")[0].decode("latin-1"))


def _names() -> dict[int, str]:
    return {
        value: name
        for name, value in vars(elfnote).items()
        if name.startswith("XEN_ELFNOTE_") and name != "XEN_ELFNOTE_MAX" and isinstance(value, int)
    }


def read_notes(
    source: Source, areas: Iterable[NoteArea], notes: XenNotes, damage: list[str]
) -> None:
    """Add the Xen notes of `areas` to `notes`, as far as they can be read; the rest to `damage`.

    Damage alone makes no kernel unusable: Xen boots what has the notes it looks for.
    """
    count = 0
    for area in areas:
        try:
            for owner, note in _read_area(source, area, notes.little_endian):
                count += 1
                if count > MAX_NOTES:
                    damage.append(f"has more than {MAX_NOTES} notes")
                    return
                if owner == _OWNER:
                    notes.add(note)
        except KernelError as error:
            damage.append(error.reason)


def _read_area(source: Source, area: NoteArea, little_endian: bool) -> Iterator[tuple[bytes, Note]]:
    where = f"its notes at byte {area.offset:#x}"
    if area.size > MAX_NOTE_AREA:
        raise KernelError(f"{where} have {area.size} bytes: the limit is {MAX_NOTE_AREA}")
    if area.offset + area.size > source.size:
        raise KernelError(f"{where} lie beyond the end of the file")
    data = bytes(source.read(area.offset, area.size))
    header = struct.Struct("<III" if little_endian else ">III")
    position = 0
    while position + header.size <= len(data):
        name_size, desc_size, note_type = header.unpack_from(data, position)
        name_start = position + header.size
        desc_start = name_start + (name_size + 3 & ~3)
        end = desc_start + desc_size
        owner, desc = data[name_start : name_start + name_size], data[desc_start:end]
        # GRUB's PV image has a string in its last note that claims more bytes than there are
        if end <= len(data) or (desc and note_type in _STRINGS):
            yield owner, Note(note_type, desc)
        if end > len(data):
            raise KernelError(f"{where} are broken: a note is larger than its segment")
        position = end + 3 & ~3
