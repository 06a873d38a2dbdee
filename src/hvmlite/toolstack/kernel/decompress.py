"""The compression formats of kernel images, each in bounded steps and imported when needed.

Formats: gzip, bzip2, lzma, xz, lzo, lz4 and zstd as in Linux Documentation/arch/x86/boot.rst and
scripts/Makefile.lib, lzop's container as lzop writes it, lz4's legacy frame as in
lz4_Frame_format.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from hvmlite.toolstack.kernel.source import START_SIZE, KernelError, Source

MAX_DECOMPRESSED_SIZE = 1 << 30
"""Bytes; Xen's XC_DOM_DECOMPRESS_MAX."""

_INPUT_STEP = 64 << 10
_OUTPUT_STEP = 1 << 20
_ZSTD_INPUT_STEP = 2 << 10  # an input byte yields up to 32 KiB, and a call has no output limit
_LZMA_MEMORY = 256 << 20
_ZSTD_WINDOW = 128 << 20
_LZ4_BLOCK = 8 << 20
_LZ4_MAX_BLOCKS = 2 * MAX_DECOMPRESSED_SIZE // _LZ4_BLOCK
_LZO_BLOCK = 256 << 10  # LZO_BLOCK_SIZE of Linux's decompress_unlzo.c

_U32_LE = struct.Struct("<I")
_U32_BE = struct.Struct(">I")


class _Decompressor(Protocol):
    """What bz2 and lzma have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes | memoryview, max_length: int = -1) -> bytes: ...


class _Range(NamedTuple):
    """The compressed bytes: `length` of them from byte `offset` of `source`."""

    source: Source
    offset: int
    length: int


def _truncated(what: str) -> KernelError:
    return KernelError(f"the {what} data is cut short")


def _corrupt(what: str, error: Exception) -> KernelError:
    return KernelError(f"the {what} data is corrupt: {' '.join(str(error).split())}")


def _gzip(data: _Range) -> Iterator[bytes]:
    import zlib  # noqa: PLC0415

    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        for piece in data.source.chunks(data.offset, data.length, _INPUT_STEP):
            pending: bytes | memoryview = piece
            while pending and not stream.eof:
                yield stream.decompress(pending, _OUTPUT_STEP)
                pending = stream.unconsumed_tail
            if stream.eof:
                return
    except zlib.error as error:
        raise _corrupt("gzip", error) from None
    raise _truncated("gzip")


def _pump(
    what: str, stream: _Decompressor, data: _Range, errors: type[Exception]
) -> Iterator[bytes]:
    try:
        for piece in data.source.chunks(data.offset, data.length, _INPUT_STEP):
            yield stream.decompress(piece, _OUTPUT_STEP)
            while not stream.eof and not stream.needs_input:
                yield stream.decompress(b"", _OUTPUT_STEP)
            if stream.eof:
                return
    except errors as error:
        raise _corrupt(what, error) from None
    raise _truncated(what)


def _bzip2(data: _Range) -> Iterator[bytes]:
    import bz2  # noqa: PLC0415

    return _pump("bzip2", bz2.BZ2Decompressor(), data, OSError)


def _lzma(data: _Range) -> Iterator[bytes]:
    import lzma  # noqa: PLC0415

    stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY)
    return _pump("lzma", stream, data, lzma.LZMAError)


def _xz(data: _Range) -> Iterator[bytes]:
    import lzma  # noqa: PLC0415

    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY)
    return _pump("xz", stream, data, lzma.LZMAError)


def _zstd(data: _Range) -> Iterator[bytes]:
    import zstandard  # noqa: PLC0415

    stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
    try:
        for piece in data.source.chunks(data.offset, data.length):
            for start in range(0, len(piece), _ZSTD_INPUT_STEP):
                yield stream.decompress(piece[start : start + _ZSTD_INPUT_STEP])
                if stream.eof:
                    return
    except zstandard.ZstdError as error:
        raise _corrupt("zstd", error) from None
    raise _truncated("zstd")


class _Cursor:
    """Reads of a container's header and blocks, one after the other."""

    def __init__(self, what: str, data: _Range) -> None:
        self._what = what
        self._source = data.source
        self._offset = data.offset
        self.left = data.length

    def take(self, length: int) -> bytes | memoryview:
        """Return the next `length` bytes; KernelError if there are fewer."""
        if length > self.left:
            raise _truncated(self._what)
        data = self._source.read(self._offset, length)
        self._offset += length
        self.left -= length
        return data

    def u32(self, layout: struct.Struct) -> int:
        """Return the next 32-bit word."""
        word: int = layout.unpack(self.take(4))[0]
        return word


def _lz4(data: _Range) -> Iterator[bytes]:
    import lz4.block  # noqa: PLC0415

    cursor = _Cursor("lz4", data)
    cursor.take(4)  # the magic number
    for _ in range(_LZ4_MAX_BLOCKS):
        if not cursor.left:
            return
        size = cursor.u32(_U32_LE)
        if size > _LZ4_BLOCK + _LZ4_BLOCK // 255 + 16:  # LZ4_COMPRESSBOUND
            raise KernelError(f"the lz4 data is corrupt: a block of {size} bytes")
        block = cursor.take(size)
        try:
            yield lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK)
        except (lz4.block.LZ4BlockError, ValueError, OverflowError) as error:
            raise _corrupt("lz4", error) from None
    raise KernelError("the lz4 data is corrupt: too many blocks")


# Header flags of lzop's conf.h
_F_ADLER32_D = 0x1
_F_ADLER32_C = 0x2
_F_H_EXTRA_FIELD = 0x40
_F_CRC32_D = 0x100
_F_CRC32_C = 0x200
_F_MULTIPART = 0x400
_F_H_FILTER = 0x800
_LZOP_VERSION_WITH_LEVEL = 0x0940
_LZOP_METHODS = (1, 2, 3)  # LZO1X-1, LZO1X-1(15), LZO1X-999: one decoder reads all


def _lzop_header(cursor: _Cursor) -> int:
    """Read lzop's file header and return its flags."""
    cursor.take(9)  # the magic number
    version = int.from_bytes(cursor.take(2), "big")
    cursor.take(2)  # library version
    if version >= _LZOP_VERSION_WITH_LEVEL:
        cursor.take(2)  # version needed to extract
    method = cursor.take(1)[0]
    if method not in _LZOP_METHODS:
        raise KernelError(f"the lzo data uses method {method}: only LZO1X is known")
    if version >= _LZOP_VERSION_WITH_LEVEL:
        cursor.take(1)  # level
    flags = cursor.u32(_U32_BE)
    if flags & (_F_MULTIPART | _F_H_FILTER):
        raise KernelError("the lzo data uses a filter or several parts: neither is known")
    cursor.take(8)  # mode, mtime
    if version >= _LZOP_VERSION_WITH_LEVEL:
        cursor.take(4)  # the upper half of mtime
    cursor.take(cursor.take(1)[0])  # file name
    cursor.take(4)  # header checksum
    if flags & _F_H_EXTRA_FIELD:
        cursor.take(cursor.u32(_U32_BE))
        cursor.take(4)
    return flags


def _lzo(data: _Range) -> Iterator[bytes]:
    import zlib  # noqa: PLC0415

    from lzallright import InputNotConsumed, LZOCompressor, LZOError  # noqa: PLC0415

    cursor = _Cursor("lzo", data)
    flags = _lzop_header(cursor)
    # the checksums of a block, in their order: of its plain, then of its compressed bytes
    plain_sums = [
        check
        for flag, check in ((_F_ADLER32_D, zlib.adler32), (_F_CRC32_D, zlib.crc32))
        if flags & flag
    ]
    packed_sums = [
        check
        for flag, check in ((_F_ADLER32_C, zlib.adler32), (_F_CRC32_C, zlib.crc32))
        if flags & flag
    ]
    while plain_size := cursor.u32(_U32_BE):
        packed_size = cursor.u32(_U32_BE)
        if plain_size > _LZO_BLOCK or not 0 < packed_size <= plain_size:
            raise KernelError(f"the lzo data is corrupt: a block of {plain_size} bytes")
        stored = packed_size == plain_size
        expected = [cursor.u32(_U32_BE) for _ in plain_sums]
        # a stored block has no checksum of its compressed form
        packed_expected = [] if stored else [cursor.u32(_U32_BE) for _ in packed_sums]
        packed = cursor.take(packed_size)
        try:
            block = bytes(packed) if stored else LZOCompressor.decompress(packed, plain_size)
        except (LZOError, InputNotConsumed) as error:
            raise _corrupt("lzo", error) from None
        if (
            len(block) != plain_size
            or [check(block) for check in plain_sums] != expected
            or (not stored and [check(packed) for check in packed_sums] != packed_expected)
        ):
            raise KernelError("the lzo data is corrupt: a block does not match its checksum")
        yield block


class Codec(NamedTuple):
    """A compression format: its name, its first bytes, its decoder."""

    name: str
    magic: bytes
    decode: Callable[[_Range], Iterator[bytes]]


CODECS = (
    Codec("gzip", b"\x1f\x8b", _gzip),
    Codec("bzip2", b"BZh", _bzip2),
    Codec("xz", b"\xfd7zXZ\0", _xz),
    Codec("zstd", b"\x28\xb5\x2f\xfd", _zstd),
    Codec("lzma", b"\x5d\0\0", _lzma),
    Codec("lzo", b"\x89LZO\0\r\n\x1a\n", _lzo),
    Codec("lz4", b"\x02\x21\x4c\x18", _lz4),
)


def find_codec(start: bytes | memoryview) -> Codec | None:
    """Return the compression format that data beginning with `start` has, or None."""
    start = bytes(start)
    return next((codec for codec in CODECS if start.startswith(codec.magic)), None)


def decompress(
    codec: Codec,
    source: Source,
    offset: int,
    length: int,
    *,
    check_start: Callable[[bytes], None],
    expected_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> bytearray:
    """Decompress `length` bytes from byte `offset` of `source` into one buffer.

    `check_start` gets the first bytes and raises KernelError if they promise no kernel, so that
    the rest is not produced. Raises KernelError if the data is corrupt or cut short, if it yields
    other than `expected_size` bytes, or more than MAX_DECOMPRESSED_SIZE.  `progress(done, all)`
    hears how many bytes there are, if it is known how many there will be.
    """
    limit = MAX_DECOMPRESSED_SIZE if expected_size is None else expected_size
    if limit > MAX_DECOMPRESSED_SIZE:
        raise KernelError(
            f"its payload declares {limit} bytes: the limit is {MAX_DECOMPRESSED_SIZE >> 30} GiB"
        )
    output = bytearray()
    for piece in codec.decode(_Range(source, offset, length)):
        checked = len(output) >= START_SIZE
        output += piece
        if progress is not None and expected_size:
            progress(min(len(output), expected_size), expected_size)
        if not checked and len(output) >= START_SIZE:
            check_start(bytes(output[:START_SIZE]))
        if len(output) > limit:
            raise KernelError(
                f"its {codec.name} data yields more than the "
                + ("limit of " if expected_size is None else "declared ")
                + f"{limit} bytes"
            )
    if len(output) < START_SIZE:
        check_start(bytes(output))
    if expected_size is not None and len(output) != expected_size:
        raise KernelError(
            f"its {codec.name} data yields {len(output)} bytes, not the declared {expected_size}"
        )
    return output
