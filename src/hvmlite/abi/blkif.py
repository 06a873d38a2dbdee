"""Requests and responses of the PV block device. Source: io/blkif.h.

The frontend's `protocol` node says which of the two layouts it uses. Sectors are 512 bytes.
The precompiled `struct.Struct`s are for a backend, which has one request after the other to read.
"""

from functools import cache
from struct import Struct as Packer
from typing import Annotated

from hvmlite.abi.layout import Abi, Array, Only, Struct, s16, u8, u16, u32, u64

BLKIF_OP_READ = 0
BLKIF_OP_WRITE = 1
BLKIF_OP_WRITE_BARRIER = 2
BLKIF_OP_FLUSH_DISKCACHE = 3
BLKIF_OP_RESERVED_1 = 4
BLKIF_OP_DISCARD = 5
BLKIF_OP_INDIRECT = 6

BLKIF_MAX_SEGMENTS_PER_REQUEST = 11
BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST = 8

BLKIF_DISCARD_SECURE = 1 << 0

BLKIF_RSP_OKAY = 0
BLKIF_RSP_ERROR = -1
BLKIF_RSP_EOPNOTSUPP = -2

# The backend's `info` node.
VDISK_CDROM = 1
VDISK_REMOVABLE = 2
VDISK_READONLY = 4


class blkif_request_segment(Struct):
    """One segment: sectors first_sect to last_sect (inclusive) of a granted frame."""

    gref: u32 = 0
    first_sect: u8 = 0
    last_sect: u8 = 0


class blkif_request(Struct):
    """BLKIF_OP_READ, WRITE, WRITE_BARRIER, FLUSH_DISKCACHE."""

    operation: u8 = 0
    nr_segments: u8 = 0
    handle: u16 = 0
    id: u64 = 0
    sector_number: u64 = 0
    seg: Annotated[
        tuple[blkif_request_segment, ...],
        Array(blkif_request_segment, BLKIF_MAX_SEGMENTS_PER_REQUEST),
    ] = ()


class blkif_request_discard(Struct):
    """BLKIF_OP_DISCARD."""

    operation: u8 = 0
    flag: u8 = 0  # BLKIF_DISCARD_SECURE
    handle: u16 = 0
    id: u64 = 0
    sector_number: u64 = 0
    nr_sectors: u64 = 0


class blkif_request_indirect(Struct):
    """BLKIF_OP_INDIRECT: segments lie in granted frames, 512 in each."""

    operation: u8 = 0
    indirect_op: u8 = 0  # BLKIF_OP_READ or BLKIF_OP_WRITE
    nr_segments: u16 = 0
    id: u64 = 0
    sector_number: u64 = 0
    handle: u16 = 0
    indirect_grefs: Annotated[
        tuple[int, ...], Array(u32, BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST)
    ] = ()
    pad: Annotated[int, Only(u64, Abi.X86_32)] = 0


class blkif_response(Struct):
    """The answer to any request."""

    id: u64 = 0
    operation: u8 = 0
    status: s16 = 0  # BLKIF_RSP_*


SECTOR_SIZE = 512
SECTORS_PER_PAGE = 8

REQUEST_SIZE = {abi: max(blkif_request.sizeof(abi), blkif_response.sizeof(abi)) for abi in Abi}
"""Bytes of one entry of the ring."""

REQUEST_HEAD = {Abi.X86_64: Packer("<BBHxxxxQQ"), Abi.X86_32: Packer("<BBHQQ")}
"""What all three kinds of request begin with: operation, nr_segments (flag, indirect_op), handle
(nr_segments of an indirect request), id, sector_number."""

SEGMENTS_OFFSET = {abi: blkif_request.offsetof("seg", abi) for abi in Abi}
NR_SECTORS = Packer("<Q")
NR_SECTORS_OFFSET = {abi: blkif_request_discard.offsetof("nr_sectors", abi) for abi in Abi}
INDIRECT_GREFS = Packer(f"<{BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST}I")
INDIRECT_GREFS_OFFSET = {abi: blkif_request_indirect.offsetof("indirect_grefs", abi) for abi in Abi}

RESPONSE = {Abi.X86_64: Packer("<QBxhxxxx"), Abi.X86_32: Packer("<QBxh")}
"""id, operation, status."""


@cache
def packed_segments(count: int) -> Packer:
    """gref, first_sect, last_sect of each of so many segments."""
    return Packer("<" + "IBBxx" * count)
