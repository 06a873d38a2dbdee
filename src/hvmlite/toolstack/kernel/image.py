"""A kernel image: opened, unpacked, checked, and ready to be copied into a guest's memory.

Facts: Xen's docs/misc/pvh.pandoc, xen/common/libelf and tools/libs/guest. As Xen does for PVH, the
segments go to their p_paddr and XEN_ELFNOTE_PHYS32_ENTRY is the entry; nothing is relocated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Self

from hvmlite.records import field, record
from hvmlite.toolstack.kernel import bzimage, decompress
from hvmlite.toolstack.kernel.elf import ELF_MAGIC, ElfHeader, ElfReader, LoadSegment
from hvmlite.toolstack.kernel.notes import XenNotes, read_notes
from hvmlite.toolstack.kernel.source import (
    START_SIZE,
    BufferSource,
    KernelError,
    Source,
    open_file,
    printable,
)

if TYPE_CHECKING:
    from hvmlite.toolstack.progress import Progress

_PIECE_SIZE = 64 << 10
_ZEROS = bytes(_PIECE_SIZE)

# What people hand over instead of a kernel, by its first bytes
_OTHER_FILES = (
    (b"MZ", "an EFI application without a bzImage in it"),
    (b"070701", "an initramfs (cpio archive)"),
    (b"070702", "an initramfs (cpio archive)"),
    (b"hsqs", "a SquashFS file system"),
    (b"#!", "a script"),
    (b"!<arch>", "an ar archive"),
    (b"QFI\xfb", "a qcow2 disk image"),
)


@record(frozen=True)
class Segment:
    """Bytes to copy to guest-physical address `paddr`; up to `memsz` bytes the rest is zeros."""

    paddr: int
    memsz: int
    filesz: int
    executable: bool
    _source: Source = field(repr=False, compare=False)
    _offset: int = field(repr=False)

    @property
    def data(self) -> memoryview:
        """The `filesz` bytes from the image; of an uncompressed file they are read each time.

        To fill a guest's memory `KernelImage.copy_to` takes less memory.
        """
        return memoryview(self._source.read(self._offset, self.filesz))

    def pieces(self, size: int = _PIECE_SIZE) -> Iterator[memoryview]:
        """Yield `data` in pieces of `size` bytes; KernelError if the file is no longer there."""
        return self._source.chunks(self._offset, self.filesz, size)

    @property
    def end(self) -> int:
        """First guest-physical address after the segment."""
        return self.paddr + self.memsz


@record(frozen=True)
class KernelImage:
    """A kernel that can boot as PVH, given enough memory. Holds its file open until `close`."""

    name: str
    """The path as given, for messages."""
    kind: str
    """What the file is: "elf", "elf (gzip)", "bzImage (xz)"."""
    elf_class: int
    """32 or 64, of the ELF file; the entry is 32-bit code in both."""
    segments: tuple[Segment, ...]
    entry: int
    """Guest-physical address of XEN_ELFNOTE_PHYS32_ENTRY."""
    notes: XenNotes
    path: str
    """Absolute path of the file, for whoever looks for its symbol table later."""
    _source: Source = field(repr=False, compare=False)

    @property
    def lowest_address(self) -> int:
        """First guest-physical address of any segment."""
        return min(segment.paddr for segment in self.segments)

    @property
    def highest_address(self) -> int:
        """First guest-physical address after all segments."""
        return max(segment.end for segment in self.segments)

    def check_fits(self, memory_bytes: int, reserved: Iterable[tuple[int, int]] = ()) -> None:
        """Raise KernelError unless all segments lie in a guest's first `memory_bytes` bytes.

        `reserved` are the ranges in there, as (start, size) in bytes, that are no RAM or belong
        to something else (the special pages, ACPI tables, the MMIO hole).
        """
        if self.highest_address > memory_bytes:
            raise KernelError(
                f"occupies memory up to {self.highest_address:#x}: the guest has "
                f"{memory_bytes / (1 << 20):g} MiB, it needs {-(-self.highest_address >> 20)} MiB",
                self.name,
            )
        ranges = list(reserved)
        for segment in self.segments:
            for start, size in ranges:
                if segment.paddr < start + size and start < segment.end:
                    raise KernelError(
                        f"segment {segment.paddr:#x}-{segment.end:#x} lies in the reserved range "
                        f"{start:#x}-{start + size:#x}",
                        self.name,
                    )

    def copy_to(self, write: Callable[[int, memoryview], object]) -> None:
        """Call `write(address, data)` for the image's bytes, in pieces of up to 64 KiB.

        The guest's memory must be zero: neither what lies between a segment's `filesz` and
        `memsz` is written nor a piece of zeros (half of a Linux image), which would only take
        host memory. KernelError if the file can no longer be read.
        """
        for segment in self.segments:
            address = segment.paddr
            for piece in segment.pieces():
                size = len(piece)
                # the two ends first: they spare most pieces the comparison
                if piece[0] or piece[-1] or bytes(piece) != _ZEROS[:size]:
                    write(address, piece)
                address += size

    def close(self) -> None:
        """Close the file. The segments can no longer be read."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@record
class Inspection:
    """What was found in a file, as far as it could be read, and why it cannot boot."""

    name: str
    file_size: int
    source: Source
    format: str | None = None
    compression: str | None = None
    boot_protocol: str | None = None
    elf_size: int | None = None
    elf: ElfHeader | None = None
    notes: XenNotes = field(default_factory=XenNotes)
    reasons: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """What is wrong and does not keep the kernel from booting."""

    @property
    def kind(self) -> str:
        """As in KernelImage."""
        return f"{self.format} ({self.compression})" if self.compression else f"{self.format}"


def load_kernel(path: str | os.PathLike[str], progress: Progress | None = None) -> KernelImage:
    """Open a kernel and check everything about it that does not depend on the guest.

    `progress` hears of its unpacking. Raises KernelError, one line with the file's name and the
    reason.
    """
    found = inspect_kernel(path, progress)
    elf, source, entry = found.elf, found.source, found.notes.phys32_entry
    if found.reasons or elf is None or entry is None:
        source.close()
        more = len(found.reasons) - 1
        note = f" (and {more} more: see hvmlite check)" if more > 0 else ""
        raise KernelError(found.reasons[0] + note, found.name)
    return KernelImage(
        name=found.name,
        kind=found.kind,
        elf_class=elf.elf_class,
        segments=tuple(
            Segment(
                paddr=segment.paddr,
                memsz=segment.memsz,
                filesz=segment.filesz,
                executable=segment.executable,
                _source=source,
                _offset=segment.offset,
            )
            for segment in elf.segments
        ),
        entry=entry,
        notes=found.notes,
        path=os.path.abspath(path),
        _source=source,
    )


def inspect_kernel(path: str | os.PathLike[str], progress: Progress | None = None) -> Inspection:
    """Read all that a kernel declares and collect every reason why it cannot boot.

    Raises KernelError only if the file itself cannot be read. The caller closes `source`.
    """
    name = printable(os.fspath(path))
    source = open_file(path, name)
    found = Inspection(name, source.size, source)
    try:
        _unpack(found, progress)
        if found.source is not source:
            source.close()
        found.elf_size = found.source.size
        reader = ElfReader(found.source, found.reasons)
        found.elf = reader.header()
        _inspect_notes(found, reader, found.elf)
    except KernelError as error:
        found.reasons.append(error.reason)
        source.close()
    except BaseException:
        source.close()
        raise
    return found


def _unpack(found: Inspection, progress: Progress | None) -> None:
    """Replace `found.source`, unless it is an ELF file, by the ELF file inside it."""
    source = found.source
    start = source.read(0, min(START_SIZE, source.size))
    if bytes(start[:4]) == ELF_MAGIC:
        found.format = "elf"
        return
    offset, length, expected_size = 0, source.size, None
    if bzimage.is_bzimage(start):
        found.format = "bzImage"
        payload = bzimage.find_payload(source)
        found.boot_protocol = payload.protocol
        offset, length, expected_size = payload.offset, payload.length, payload.expected_size
        start = source.read(offset, min(START_SIZE, length))
    codec = decompress.find_codec(start)
    if codec is None:
        if found.format:
            raise KernelError("the bzImage's payload has an unknown compression format")
        raise KernelError(f"is not a kernel but {_describe(start)}")
    if expected_size is not None and codec.name != "gzip":
        length -= 4
    found.compression = codec.name
    tell = None
    if progress is not None:
        tell = partial(progress, f"unpacking {found.name}")
    data = decompress.decompress(
        codec,
        source,
        offset,
        length,
        check_start=_check_start,
        expected_size=expected_size,
        progress=tell,
    )
    found.format = found.format or "elf"
    found.source = BufferSource(data)


def _check_start(start: bytes) -> None:
    if not start.startswith(ELF_MAGIC):
        raise KernelError(f"the compressed data is not an ELF file but {_describe(start)}")


def _describe(start: bytes | memoryview) -> str:
    start = bytes(start)
    if not start:
        return "empty"
    if bzimage.is_bzimage(start):
        return "a bzImage"
    if codec := decompress.find_codec(start):
        return f"{codec.name} data"
    for magic, description in _OTHER_FILES:
        if start.startswith(magic):
            return description
    if all(byte in b"\t\n\f\r" or 0x20 <= byte < 0x7F for byte in start):
        return "a text file"
    return "something else (neither ELF nor bzImage)"


def _inspect_notes(found: Inspection, reader: ElfReader, elf: ElfHeader) -> None:
    notes = found.notes
    notes.little_endian = elf.little_endian
    damage: list[str] = []
    read_notes(found.source, elf.note_segments, notes, damage)
    if not notes.raw:
        read_notes(found.source, reader.note_sections(), notes, damage)
    notes.check(found.reasons)
    if notes.raw or (elf.segments and not damage):
        _check_entry(notes, elf.segments, found.reasons)
    (found.reasons if notes.phys32_entry is None else found.remarks).extend(damage)


def _check_entry(notes: XenNotes, segments: tuple[LoadSegment, ...], reasons: list[str]) -> None:
    entry = notes.phys32_entry
    if entry is None:
        if not notes.raw:
            reasons.append(
                "has no Xen ELF notes: it is not built for PVH "
                "(XEN_ELFNOTE_PHYS32_ENTRY; Linux: CONFIG_PVH)"
            )
        elif any(note.name == "XEN_ELFNOTE_PHYS32_ENTRY" for note in notes.raw):
            reasons.append("its note XEN_ELFNOTE_PHYS32_ENTRY is no number of 4 or 8 bytes")
        else:
            reasons.append(
                "has Xen ELF notes, but not XEN_ELFNOTE_PHYS32_ENTRY: a PV kernel without PVH "
                "(Linux: CONFIG_PVH)"
            )
        return
    if entry >= 1 << 32:
        reasons.append(f"its entry {entry:#x} lies above 4 GiB: it is entered in 32-bit mode")
        return
    if not segments:
        return
    home = next((s for s in segments if s.paddr <= entry < s.end), None)
    if home is None:
        reasons.append(f"its entry {entry:#x} lies outside the loaded segments")
    elif entry >= home.paddr + home.filesz:
        reasons.append(f"its entry {entry:#x} lies in the zero-filled end of {home}")
