"""An ELF file's header, its loadable segments and where its notes lie, all bounds checked.

pyelftools knows the layouts; it gets only ranges that were found to lie in the file. What makes a
file unusable is appended to `reasons`, so that a report can name everything at once. Which program
headers count follows Xen's libelf (xen/common/libelf).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from hvmlite.toolstack.kernel.source import KernelError, Source

ELF_MAGIC = b"\x7fELF"
MAX_PROGRAM_HEADERS = 128
MAX_SECTION_HEADERS = 4096
MAX_LOADED_SIZE = 1 << 30
"""Bytes that all segments together may take from the file."""

_IDENT_SIZE = 16
_EI_CLASS = 4
_EI_DATA = 5
_CLASS_BITS = {1: 32, 2: 64}
_ELFDATA2LSB = 1
_ELFDATA2MSB = 2
_PF_X = 1
_PF_W = 2
_PF_R = 4

_FILE_TYPES = {
    "ET_NONE": "has no file type",
    "ET_REL": "is a relocatable object file, not a linked kernel",
    "ET_CORE": "is a core dump",
}


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
        return bool(self.flags & _PF_X)

    @property
    def access(self) -> str:
        """The flags as "RWX", with a dash for each that is missing."""
        bits = ((_PF_R, "R"), (_PF_W, "W"), (_PF_X, "X"))
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
        if source.size < _IDENT_SIZE:
            raise KernelError("the ELF header is cut short")
        ident = bytes(source.read(0, _IDENT_SIZE))
        if not ident.startswith(ELF_MAGIC):
            raise KernelError("is not an ELF file")
        elf_class = _CLASS_BITS.get(ident[_EI_CLASS])
        if elf_class is None:
            raise KernelError(f"its ELF class {ident[_EI_CLASS]} is neither 32- nor 64-bit")
        if ident[_EI_DATA] not in (_ELFDATA2LSB, _ELFDATA2MSB):
            raise KernelError(f"its ELF byte order {ident[_EI_DATA]} is unknown")
        # pyelftools takes some milliseconds to import
        from elftools.elf.structs import ELFStructs  # noqa: PLC0415

        self._elf_class = elf_class
        self._little_endian = ident[_EI_DATA] == _ELFDATA2LSB
        self._structs: Any = ELFStructs(self._little_endian, elf_class)
        self._structs.create_basic_structs()
        self._ehdr = self._unpack(self._structs.Elf_Ehdr, 0, "ELF header")
        self._structs.create_advanced_structs(self._ehdr.e_type, self._ehdr.e_machine)

    def header(self) -> ElfHeader:
        """Read the program headers; what is wrong with them or the header goes to `reasons`."""
        ehdr = self._ehdr
        file_type, machine = str(ehdr.e_type), str(ehdr.e_machine)
        if not self._little_endian:
            self._reasons.append("is big-endian: x86 is little-endian")
        if machine not in ("EM_386", "EM_X86_64"):
            self._reasons.append(f"is for machine {machine}, not for x86")
        if file_type not in ("ET_EXEC", "ET_DYN"):
            self._reasons.append(_FILE_TYPES.get(file_type, f"has file type {file_type}"))
        segments, note_segments = self._program_headers()
        return ElfHeader(
            self._elf_class, self._little_endian, file_type, machine, segments, note_segments
        )

    def note_sections(self) -> Iterator[NoteArea]:
        """Yield the SHT_NOTE sections; none if the section headers are missing or broken."""
        ehdr = self._ehdr
        layout = self._structs.Elf_Shdr
        if (
            ehdr.e_shnum > MAX_SECTION_HEADERS
            or ehdr.e_shentsize < layout.sizeof()
            or ehdr.e_shoff + ehdr.e_shnum * ehdr.e_shentsize > self._source.size
        ):
            return
        for index in range(ehdr.e_shnum):
            shdr = self._unpack(layout, ehdr.e_shoff + index * ehdr.e_shentsize, "section header")
            if shdr.sh_type == "SHT_NOTE":
                yield NoteArea(shdr.sh_offset, shdr.sh_size)

    def _unpack(self, layout: Any, offset: int, what: str) -> Any:
        size = layout.sizeof()
        if offset + size > self._source.size:
            raise KernelError(f"the {what} is cut short")
        try:
            return layout.parse(bytes(self._source.read(offset, size)))
        except KernelError:
            raise
        except Exception as error:  # pyelftools states no base class for what its parsers raise
            raise KernelError(f"the {what} cannot be read: {error}") from None

    def _program_headers(self) -> tuple[tuple[LoadSegment, ...], tuple[NoteArea, ...]]:
        ehdr = self._ehdr
        layout = self._structs.Elf_Phdr
        end = ehdr.e_phoff + ehdr.e_phnum * ehdr.e_phentsize
        reason = ""
        if ehdr.e_phnum == 0:
            reason = "has no program headers"
        elif ehdr.e_phnum > MAX_PROGRAM_HEADERS:
            reason = f"has {ehdr.e_phnum} program headers: the limit is {MAX_PROGRAM_HEADERS}"
        elif ehdr.e_phentsize < layout.sizeof():
            reason = f"has program headers of {ehdr.e_phentsize} bytes, not {layout.sizeof()}"
        elif end > self._source.size:
            reason = f"is cut short: the program headers end at byte {end}"
        if reason:
            self._reasons.append(reason)
            return (), ()

        segments: list[LoadSegment] = []
        note_segments: list[NoteArea] = []
        for index in range(ehdr.e_phnum):
            phdr = self._unpack(layout, ehdr.e_phoff + index * ehdr.e_phentsize, "program header")
            if phdr.p_type == "PT_NOTE":
                # libelf: some linkers leave p_offset of a note segment at zero
                if phdr.p_offset:
                    note_segments.append(NoteArea(phdr.p_offset, phdr.p_filesz))
            elif phdr.p_type == "PT_LOAD" and phdr.p_flags & (_PF_R | _PF_W | _PF_X):
                segment = LoadSegment(
                    phdr.p_paddr, phdr.p_memsz, phdr.p_offset, phdr.p_filesz, phdr.p_flags
                )
                if segment.memsz or segment.filesz:
                    segments.append(segment)
        check_segments(segments, self._source.size, self._reasons)
        return tuple(segments), tuple(note_segments)


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
