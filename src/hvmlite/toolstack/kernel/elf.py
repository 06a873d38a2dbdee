"""An ELF file's header, its loadable segments and where its notes lie, all bounds checked.

What makes a file unusable is appended to `reasons`, so that a report can name everything at once.
Which program headers count follows Xen's libelf (xen/common/libelf).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from hvmlite.abi.elf import (
    EI_CLASS,
    EI_DATA,
    EI_NIDENT,
    ELFCLASS32,
    ELFCLASS64,
    ELFDATA2LSB,
    ELFDATA2MSB,
    EM_386,
    EM_X86_64,
    ET_CORE,
    ET_DYN,
    ET_EXEC,
    ET_NONE,
    ET_REL,
    PF_R,
    PF_W,
    PF_X,
    PT_LOAD,
    PT_NOTE,
    SHT_NOTE,
    elf32_hdr,
    elf32_phdr,
    elf32_shdr,
    elf64_hdr,
    elf64_phdr,
    elf64_shdr,
)
from hvmlite.abi.layout import Struct
from hvmlite.toolstack.kernel.source import KernelError, Source

ELF_MAGIC = b"\x7fELF"
MAX_PROGRAM_HEADERS = 128
MAX_SECTION_HEADERS = 4096
MAX_LOADED_SIZE = 1 << 30
"""Bytes that all segments together may take from the file."""

_CLASS_BITS = {ELFCLASS32: 32, ELFCLASS64: 64}
_FILE_TYPES = {
    ET_NONE: "ET_NONE", ET_REL: "ET_REL", ET_EXEC: "ET_EXEC", ET_DYN: "ET_DYN", ET_CORE: "ET_CORE",
}  # fmt: skip
_NO_KERNEL = {
    ET_NONE: "has no file type",
    ET_REL: "is a relocatable object file, not a linked kernel",
    ET_CORE: "is a core dump",
}

S = TypeVar("S", bound=Struct)


class LoadSegment(NamedTuple):
    """A program header to load: addresses and sizes in bytes, `flags` the PF_ bits."""

    paddr: int
    memsz: int
    offset: int
    filesz: int
    flags: int

    @property
    def end(self) -> int:
        """First guest-physical address after the segment."""
        return self.paddr + self.memsz

    @property
    def executable(self) -> bool:
        """PF_X."""
        return bool(self.flags & PF_X)

    @property
    def access(self) -> str:
        """The flags as "RWX", with a dash for each that is missing."""
        bits = ((PF_R, "R"), (PF_W, "W"), (PF_X, "X"))
        return "".join(letter if self.flags & bit else "-" for bit, letter in bits)

    def __str__(self) -> str:
        return f"segment {self.paddr:#x}-{self.end:#x}"


class NoteArea(NamedTuple):
    """A part of the file that holds ELF notes."""

    offset: int
    size: int


class ElfHeader(NamedTuple):
    """What the ELF header says; `segments` in the order of the program headers."""

    elf_class: int
    little_endian: bool
    file_type: str
    machine: str
    segments: tuple[LoadSegment, ...]
    note_segments: tuple[NoteArea, ...]


class ElfReader:
    """Reads the tables of one ELF file."""

    def __init__(self, source: Source, reasons: list[str]) -> None:
        self._source = source
        self._reasons = reasons
        if source.size < EI_NIDENT:
            raise KernelError("the ELF header is cut short")
        ident = bytes(source.read(0, EI_NIDENT))
        if not ident.startswith(ELF_MAGIC):
            raise KernelError("is not an ELF file")
        elf_class = _CLASS_BITS.get(ident[EI_CLASS])
        if elf_class is None:
            raise KernelError(f"its ELF class {ident[EI_CLASS]} is neither 32- nor 64-bit")
        if ident[EI_DATA] not in (ELFDATA2LSB, ELFDATA2MSB):
            raise KernelError(f"its ELF byte order {ident[EI_DATA]} is unknown")
        self._elf_class = elf_class
        self._little_endian = ident[EI_DATA] == ELFDATA2LSB
        self._wide = elf_class == 64
        what = "ELF header"
        self._ehdr: elf32_hdr | elf64_hdr = (
            self._unpack(elf64_hdr, 0, what) if self._wide else self._unpack(elf32_hdr, 0, what)
        )

    def header(self) -> ElfHeader:
        """Read the program headers; what is wrong with them or the header goes to `reasons`."""
        file_type, machine = self._ehdr.e_type, self._ehdr.e_machine
        if not self._little_endian:
            self._reasons.append("is big-endian: x86 is little-endian")
            file_type, machine = _swapped(file_type), _swapped(machine)
        if machine not in (EM_386, EM_X86_64):
            self._reasons.append(f"is for machine {machine_name(machine)}, not for x86")
        if file_type not in (ET_EXEC, ET_DYN):
            self._reasons.append(_NO_KERNEL.get(file_type, f"has file type {file_type}"))
        # The tables of a big-endian file would be read for nothing.
        segments, note_segments = self._program_headers() if self._little_endian else ((), ())
        return ElfHeader(
            self._elf_class,
            self._little_endian,
            _FILE_TYPES.get(file_type, str(file_type)),
            machine_name(machine),
            segments,
            note_segments,
        )

    def note_sections(self) -> Iterator[NoteArea]:
        """Yield the SHT_NOTE sections; none if the section headers are missing or broken."""
        ehdr = self._ehdr
        what = "section header"
        if (
            not self._little_endian
            or ehdr.e_shnum > MAX_SECTION_HEADERS
            or ehdr.e_shentsize < (elf64_shdr if self._wide else elf32_shdr).sizeof()
            or ehdr.e_shoff + ehdr.e_shnum * ehdr.e_shentsize > self._source.size
        ):
            return
        for index in range(ehdr.e_shnum):
            at = ehdr.e_shoff + index * ehdr.e_shentsize
            shdr: elf32_shdr | elf64_shdr = (
                self._unpack(elf64_shdr, at, what)
                if self._wide
                else self._unpack(elf32_shdr, at, what)
            )
            if shdr.sh_type == SHT_NOTE:
                yield NoteArea(shdr.sh_offset, shdr.sh_size)

    def _unpack(self, kind: type[S], offset: int, what: str) -> S:
        size = kind.sizeof()
        if offset + size > self._source.size:
            raise KernelError(f"the {what} is cut short")
        return kind.unpack(self._source.read(offset, size))

    def _program_headers(self) -> tuple[tuple[LoadSegment, ...], tuple[NoteArea, ...]]:
        ehdr = self._ehdr
        what = "program header"
        entry_size = (elf64_phdr if self._wide else elf32_phdr).sizeof()
        end = ehdr.e_phoff + ehdr.e_phnum * ehdr.e_phentsize
        reason = ""
        if ehdr.e_phnum == 0:
            reason = "has no program headers"
        elif ehdr.e_phnum > MAX_PROGRAM_HEADERS:
            reason = f"has {ehdr.e_phnum} program headers: the limit is {MAX_PROGRAM_HEADERS}"
        elif ehdr.e_phentsize < entry_size:
            reason = f"has program headers of {ehdr.e_phentsize} bytes, not {entry_size}"
        elif end > self._source.size:
            reason = f"is cut short: the program headers end at byte {end}"
        if reason:
            self._reasons.append(reason)
            return (), ()

        segments: list[LoadSegment] = []
        note_segments: list[NoteArea] = []
        for index in range(ehdr.e_phnum):
            at = ehdr.e_phoff + index * ehdr.e_phentsize
            phdr: elf32_phdr | elf64_phdr = (
                self._unpack(elf64_phdr, at, what)
                if self._wide
                else self._unpack(elf32_phdr, at, what)
            )
            if phdr.p_type == PT_NOTE:
                # libelf: some linkers leave p_offset of a note segment at zero
                if phdr.p_offset:
                    note_segments.append(NoteArea(phdr.p_offset, phdr.p_filesz))
            elif phdr.p_type == PT_LOAD and phdr.p_flags & (PF_R | PF_W | PF_X):
                segment = LoadSegment(
                    phdr.p_paddr, phdr.p_memsz, phdr.p_offset, phdr.p_filesz, phdr.p_flags
                )
                if segment.memsz or segment.filesz:
                    segments.append(segment)
        check_segments(segments, self._source.size, self._reasons)
        return tuple(segments), tuple(note_segments)


def _swapped(value: int) -> int:
    return int.from_bytes(value.to_bytes(2, "little"), "big")


def machine_name(machine: int) -> str:
    """The EM_ name of a machine, or its number."""
    if machine == EM_X86_64:
        return "EM_X86_64"
    if machine == EM_386:
        return "EM_386"
    # Takes longer to import than a small guest to run, for names that are wanted in a message.
    from elftools.elf.enums import ENUM_E_MACHINE  # noqa: PLC0415

    names = [name for name, number in ENUM_E_MACHINE.items() if number == machine]
    return names[0] if names else str(machine)


def check_segments(segments: list[LoadSegment], file_size: int, reasons: list[str]) -> None:
    """Append to `reasons` why these segments cannot be loaded from a file of `file_size` bytes."""
    if not segments:
        reasons.append("has nothing to load: no PT_LOAD segment")
    for segment in segments:
        if segment.filesz > segment.memsz:
            reasons.append(
                f"{segment} has {segment.filesz:#x} bytes in the file "
                f"but {segment.memsz:#x} in memory"
            )
        if segment.offset + segment.filesz > file_size:
            reasons.append(
                f"is cut short: {segment} ends at byte {segment.offset + segment.filesz}, "
                f"the file at {file_size}"
            )
        if segment.end >= 1 << 64:
            reasons.append(f"{segment} wraps around the address space")
    total = sum(segment.filesz for segment in segments)
    if total > MAX_LOADED_SIZE:
        reasons.append(f"loads {total} bytes: the limit is {MAX_LOADED_SIZE >> 30} GiB")

    if len(segments) > 1 and not any(segment.paddr for segment in segments):
        reasons.append("has no physical addresses: p_paddr is 0 in every segment")
        return
    reach: LoadSegment | None = None
    for segment in sorted(segments, key=lambda segment: segment.paddr):
        if reach and segment.paddr < reach.end and segment.memsz:
            reasons.append(f"{reach} and {segment} overlap")
        if reach is None or segment.end > reach.end:
            reach = segment
