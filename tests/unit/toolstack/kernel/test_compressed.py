"""bzImages and compressed ELF files: each format's round trip, and damage to each of them.

The payloads come from the same libraries that unpack them; that real tools write the same is seen
by the tests that take a file from the machine, where there is one.
"""

from __future__ import annotations

import gzip
import lzma
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from hvmlite.toolstack.kernel import KernelError, check_kernel, load_kernel
from hvmlite.toolstack.kernel import decompress as decompress_module

from .build import (
    COMPRESSORS,
    LOAD_ADDRESS,
    Elf,
    Load,
    R,
    X,
    bzimage,
    compressed_bzimage,
    lz4_legacy,
    lzop,
)

CODECS = sorted(COMPRESSORS)
# part random, so that lzop has stored blocks, and of more than one block in lzop and lz4
CODE = random.Random(1).randbytes(300_000) + b"\x90" * 9_000_000
ELF = Elf(loads=[Load(data=CODE)]).build()
SMALL = Elf(loads=[Load(data=random.Random(2).randbytes(3000) + bytes(20_000))]).build()


def reason(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(KernelError) as caught:
        load_kernel(path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kernel"


@pytest.mark.parametrize("codec", CODECS)
def test_bzimage_round_trip(path: Path, codec: str) -> None:
    path.write_bytes(compressed_bzimage(codec, ELF))
    with load_kernel(path) as image:
        assert image.kind == f"bzImage ({codec})"
        assert image.entry == LOAD_ADDRESS
        assert image.segments[0].data == CODE


@pytest.mark.parametrize("codec", CODECS)
def test_compressed_elf_round_trip(path: Path, codec: str) -> None:
    path.write_bytes(COMPRESSORS[codec](ELF))
    with load_kernel(path) as image:
        assert image.kind == f"elf ({codec})"
        assert image.segments[0].data == CODE
    with pytest.raises(KernelError, match="is closed"):
        _ = image.segments[0].data


@pytest.mark.parametrize("flags", [0, 0x1, 0x2, 0x3, 0x100, 0x200, 0x301, 0x43])
@pytest.mark.parametrize("version", [0x0930, 0x0940, 0x1040])
def test_lzop_headers(path: Path, flags: int, version: int) -> None:
    path.write_bytes(lzop(SMALL, flags, version, name=b""))
    with load_kernel(path) as image:
        assert image.elf_class == 64


@pytest.mark.parametrize("codec", CODECS)
def test_cut_short(path: Path, codec: str) -> None:
    packed = COMPRESSORS[codec](SMALL)
    for length in sorted({*range(16, len(packed) - 1, 97), len(packed) - 1}):
        line = reason(path, packed[:length])
        assert line.startswith(
            (f"the {codec} data is cut short", f"the {codec} data is corrupt")
        ) or ("is cut short: segment" in line and codec == "lz4")
        reason(path, bzimage(packed[:length], len(SMALL)))


@pytest.mark.parametrize("codec", CODECS)
def test_corrupt(path: Path, codec: str) -> None:
    whole = compressed_bzimage(codec, SMALL)
    start = whole.index(COMPRESSORS[codec](SMALL)[:32])
    for position in range(start, len(whole) - 9, 211):
        data = bytearray(whole)
        data[position] ^= 0x55
        path.write_bytes(data)
        try:  # not every format has a checksum
            load_kernel(path).close()
        except KernelError:
            continue


@pytest.mark.parametrize("codec", CODECS)
def test_declared_size_is_held_to(path: Path, codec: str) -> None:
    packed = COMPRESSORS[codec](SMALL)
    if codec == "gzip":
        packed = packed[:-4]
        fewer = more = (
            "the gzip data is corrupt: Error -3 while decompressing data: incorrect length check"
        )
    else:
        fewer = f"its {codec} data yields {len(SMALL)} bytes, not the declared {len(SMALL) + 1}"
        more = f"its {codec} data yields more than the declared {len(SMALL) - 1} bytes"
    assert reason(path, bzimage(packed, len(SMALL) + 1)) == fewer
    assert reason(path, bzimage(packed, len(SMALL) - 1)) == more
    line = reason(path, bzimage(packed, 0xFFFFFFFF))
    assert line == "its payload declares 4294967295 bytes: the limit is 1 GiB"


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_inside_is_looked_at_first(path: Path, codec: str) -> None:
    """A bomb of zeros, or an initrd given as the kernel, is not unpacked to its end."""
    compress = COMPRESSORS[codec]
    line = reason(path, compress(bytes(20_000_000)))
    assert line.startswith("the compressed data is not an ELF file but something else")
    line = reason(path, compress(b"070701" + bytes(5000)))
    assert line == "the compressed data is not an ELF file but an initramfs (cpio archive)"
    assert reason(path, compress(b"")).endswith(("but empty", "is cut short"))
    assert reason(path, compress(compressed_bzimage("gzip", SMALL))).endswith("but a bzImage")
    assert reason(path, compress(gzip.compress(SMALL))).endswith("but gzip data")


@pytest.mark.parametrize("codec", CODECS)
def test_bomb_that_starts_as_elf(path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompress_module, "MAX_DECOMPRESSED_SIZE", 1 << 20)
    line = reason(path, COMPRESSORS[codec](SMALL + bytes(30_000_000)))
    assert line == f"its {codec} data yields more than the limit of {1 << 20} bytes"


def test_steps_are_bounded() -> None:
    """No decoder hands over more than a fixed amount at once, whatever the ratio."""
    from hvmlite.toolstack.kernel.source import BufferSource

    bomb = bytes(20_000_000)
    for codec in decompress_module.CODECS:
        packed = COMPRESSORS[codec.name](bomb)
        data = decompress_module._Range(BufferSource(packed), 0, len(packed))
        sizes = [len(piece) for piece in codec.decode(data)]
        assert sum(sizes) == len(bomb)
        assert max(sizes) <= 64 << 20


def test_lz4_blocks_are_bounded(path: Path) -> None:
    magic = b"\x02\x21\x4c\x18"
    assert reason(path, magic + struct.pack("<I", 1 << 31) + SMALL).startswith(
        "the lz4 data is corrupt: a block of 2147483648 bytes"
    )
    assert reason(path, magic + struct.pack("<I", 0) * 2).startswith("the lz4 data is corrupt")
    empty_block = struct.pack("<I", 1) + b"\0"
    line = reason(path, lz4_legacy(SMALL) + empty_block * 300)
    assert line == "the lz4 data is corrupt: too many blocks"


def test_lzop_that_is_not_understood(path: Path) -> None:
    data = bytearray(lzop(SMALL))
    data[15] = 0x80
    assert reason(path, bytes(data)) == "the lzo data uses method 128: only LZO1X is known"
    line = reason(path, lzop(SMALL, flags=0x800))
    assert line == "the lzo data uses a filter or several parts: neither is known"
    magic = lzop(b"")[:-4]
    for plain, packed in ((0x40001, 1), (10, 11), (10, 0), (0xFFFFFFFF, 1)):
        block = struct.pack(">III", plain, packed, 0) + bytes(64)
        assert reason(path, magic + block) == (f"the lzo data is corrupt: a block of {plain} bytes")
    body = lzop(SMALL)
    at = body.index(struct.pack(">I", zlib.adler32(SMALL)))
    line = reason(path, body[:at] + bytes(4) + body[at + 4 :])
    assert line == "the lzo data is corrupt: a block does not match its checksum"


def test_lzma_memory_is_bounded(path: Path) -> None:
    packed = bytearray(lzma.compress(SMALL, format=lzma.FORMAT_ALONE))
    struct.pack_into("<I", packed, 1, (1 << 30) | 0x10000)
    assert reason(path, bytes(packed)) == ("the lzma data is corrupt: Memory usage limit exceeded")


# The bzImage around it


@pytest.mark.parametrize("setup_sects", [0, 1, 27, 255])
def test_setup_sects(path: Path, setup_sects: int) -> None:
    path.write_bytes(bzimage(gzip.compress(SMALL), None, setup_sects=setup_sects))
    with load_kernel(path) as image:
        assert image.kind == "bzImage (gzip)"


def test_bad_bzimage(path: Path) -> None:
    good = compressed_bzimage("gzip", SMALL)
    assert reason(path, good[:0x24F]) == "the bzImage's setup header is cut short"
    old = bzimage(gzip.compress(SMALL), None, protocol=0x0207)
    assert reason(path, old) == "boot protocol 2.07 is too old: the payload came with 2.08"
    assert reason(path, good[:2000]).startswith("the bzImage is cut short: its payload ends at")
    for field in (0x248, 0x24C):
        data = bytearray(good)
        struct.pack_into("<I", data, field, 0xFFFFFFFF)
        assert reason(path, bytes(data)).startswith("the bzImage is cut short")
    for length in (0, 4):
        empty = bzimage(gzip.compress(SMALL), None, payload_length=length)
        assert reason(path, empty) == "the bzImage has no payload"
    unknown = bzimage(SMALL, len(SMALL))
    assert reason(path, unknown) == "the bzImage's payload has an unknown compression format"


def test_reasons_inside_a_bzimage(path: Path) -> None:
    elf = Elf(loads=[Load(0x100000, b"\x90" * 2000, flags=R | X)], notes_in="")
    assert reason(path, compressed_bzimage("xz", elf.build())).startswith("has no Xen ELF notes")


def test_protocol_is_reported(path: Path) -> None:
    path.write_bytes(compressed_bzimage("zstd", SMALL))
    assert check_kernel(path).to_json()["boot_protocol"] == "2.15"


def test_plain_elf_imports_no_compression(path: Path) -> None:
    path.write_bytes(Elf().build())
    code = (
        "import sys; from hvmlite.toolstack.kernel import load_kernel; "
        "load_kernel(sys.argv[1]); "
        "print(*{'zlib','bz2','_bz2','lzma','_lzma','lz4','zstandard','lzallright'}"
        ".intersection(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, path],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert run.stdout.strip() == ""
