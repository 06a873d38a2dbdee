"""Builds small kernels, good and bad: ELF files, bzImages, and each compression's container.

Packs by hand, from the ELF specification, boot.rst and lzop's format, so that the tests do not
check the loader against its own idea of the layouts.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import lz4.block
import zstandard
from lzallright import LZOCompressor

EM_386, EM_ARM, EM_X86_64 = 3, 40, 62
ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
PT_LOAD, PT_NOTE = 1, 4
R, W, X = 4, 2, 1
PHYS32_ENTRY = 18
LOAD_ADDRESS = 0x100000


@dataclass
class Load:
    """A PT_LOAD segment; `offset` and `filesz` lie about the data if they are given."""

    paddr: int = LOAD_ADDRESS
    data: bytes = b"\xf4" * 64
    memsz: int | None = None
    flags: int = R | X
    offset: int | None = None
    filesz: int | None = None


def note(note_type: int, desc: bytes, owner: bytes = b"Xen\0", order: str = "<") -> bytes:
    """One ELF note, padded to 4 bytes."""
    return (
        struct.pack(order + "III", len(owner), len(desc), note_type)
        + owner.ljust(-(-len(owner) // 4) * 4, b"\0")
        + desc.ljust(-(-len(desc) // 4) * 4, b"\0")
    )


def entry_note(entry: int = LOAD_ADDRESS, size: int = 4) -> bytes:
    """XEN_ELFNOTE_PHYS32_ENTRY."""
    return note(PHYS32_ENTRY, entry.to_bytes(size, "little"))


@dataclass
class Elf:
    """An ELF file; the defaults boot."""

    bits: int = 64
    machine: int = EM_X86_64
    file_type: int = ET_EXEC
    order: str = "<"
    loads: Sequence[Load] = field(default_factory=lambda: [Load()])
    notes: bytes = field(default_factory=entry_note)
    notes_in: str = "segment"
    """Where a header points at the notes: "segment", "section", "both" or ""."""
    notes_offset: int | None = None
    notes_size: int | None = None
    phnum: int | None = None
    phentsize: int | None = None
    phoff: int | None = None
    shnum: int | None = None

    def build(self) -> bytes:
        """Return the file."""
        word = "Q" if self.bits == 64 else "I"
        ehdr_size, phdr_size, shdr_size = (64, 56, 64) if self.bits == 64 else (52, 32, 40)
        in_segment = self.notes_in in ("segment", "both")
        in_section = self.notes_in in ("section", "both")
        phnum = len(self.loads) + in_segment
        position = ehdr_size + phnum * phdr_size
        body = b""
        phdrs = b""
        for load in self.loads:
            offset = position + len(body) if load.offset is None else load.offset
            filesz = len(load.data) if load.filesz is None else load.filesz
            memsz = len(load.data) if load.memsz is None else load.memsz
            phdrs += self._phdr(PT_LOAD, load.flags, offset, load.paddr, filesz, memsz)
            body += load.data
        notes_offset = position + len(body) if self.notes_offset is None else self.notes_offset
        notes_size = len(self.notes) if self.notes_size is None else self.notes_size
        if in_segment:
            phdrs += self._phdr(PT_NOTE, R, notes_offset, 0, notes_size, notes_size)
        body += self.notes
        shdrs = b""
        if in_section:
            shdrs = bytes(shdr_size) + struct.pack(
                self.order + "II" + 4 * word + "II" + 2 * word,
                *(0, 7, 0, 0, notes_offset, notes_size, 0, 0, 4, 0),
            )
        ident = b"\x7fELF" + bytes([self.bits // 32, 1 if self.order == "<" else 2, 1]) + bytes(9)
        ehdr = ident + struct.pack(
            self.order + "HHI" + 3 * word + "IHHHHHH",
            *(self.file_type, self.machine, 1, LOAD_ADDRESS),
            ehdr_size if self.phoff is None else self.phoff,
            position + len(body) if shdrs else 0,
            *(0, ehdr_size),
            phdr_size if self.phentsize is None else self.phentsize,
            phnum if self.phnum is None else self.phnum,
            shdr_size,
            (2 if shdrs else 0) if self.shnum is None else self.shnum,
            0,
        )
        return ehdr + phdrs + body + shdrs

    def _phdr(
        self, kind: int, flags: int, offset: int, paddr: int, filesz: int, memsz: int
    ) -> bytes:
        if self.bits == 64:
            return struct.pack(
                self.order + "IIQQQQQQ", kind, flags, offset, paddr, paddr, filesz, memsz, 4
            )
        return struct.pack(
            self.order + "IIIIIIII", kind, offset, paddr, paddr, filesz, memsz, flags, 4
        )


def lz4_legacy(data: bytes) -> bytes:
    """The frame that `lz4 -l` writes."""
    blocks = [data[i : i + (8 << 20)] for i in range(0, len(data), 8 << 20)]
    packed = [lz4.block.compress(block, store_size=False) for block in blocks]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(p)) + p for p in packed)


def lzop(data: bytes, flags: int = 0x1, version: int = 0x1040, name: bytes = b"vmlinux") -> bytes:
    """The container that `lzop -9` writes; `flags` chooses the checksums."""
    new = version >= 0x0940
    header = struct.pack(">HH", version, 0x2080)
    header += struct.pack(">H", 0x0940) if new else b""
    header += b"\x03" + (b"\x09" if new else b"")
    header += struct.pack(">III", flags, 0o100644, 0) + (bytes(4) if new else b"")
    header += bytes([len(name)]) + name
    out = b"\x89LZO\0\r\n\x1a\n" + header + struct.pack(">I", zlib.adler32(header))
    if flags & 0x40:
        out += struct.pack(">I4sI", 4, b"more", 0)
    for start in range(0, len(data), 256 << 10):
        block = data[start : start + (256 << 10)]
        packed = LZOCompressor().compress(block)
        if len(packed) >= len(block):
            packed = block
        out += struct.pack(">II", len(block), len(packed))
        sums = [(0x1, zlib.adler32, block), (0x100, zlib.crc32, block)]
        if packed is not block:
            sums += [(0x2, zlib.adler32, packed), (0x200, zlib.crc32, packed)]
        for flag, check, of in sums:
            out += struct.pack(">I", check(of)) if flags & flag else b""
        out += packed
    return out + bytes(4)


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzo": lzop,
    "lz4": lz4_legacy,
    "zstd": _zstd,
}


def bzimage(
    payload: bytes,
    size: int | None,
    protocol: int = 0x020F,
    setup_sects: int = 2,
    payload_offset: int = 0x2E0,
    payload_length: int | None = None,
) -> bytes:
    """A bzImage around `payload`; `size`, if not None, is appended to it as its plain size."""
    if size is not None:
        payload += struct.pack("<I", size)
    setup = bytearray(((setup_sects or 4) + 1) * 512)
    setup[0x1F1] = setup_sects
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, protocol)
    length = len(payload) if payload_length is None else payload_length
    struct.pack_into("<II", setup, 0x248, payload_offset, length)
    return bytes(setup) + bytes(payload_offset) + payload + b"signature"


def compressed_bzimage(codec: str, elf: bytes) -> bytes:
    """A bzImage as Linux's build makes it: gzip alone carries the plain size itself."""
    return bzimage(COMPRESSORS[codec](elf), None if codec == "gzip" else len(elf))
