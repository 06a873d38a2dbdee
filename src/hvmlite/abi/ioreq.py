"""Requests from the hypervisor to an ioreq server, by shared page. Source: hvm/ioreq.h."""

from typing import Annotated

from hvmlite.abi.layout import Array, Struct, u8, u16, u32, u64

IOREQ_READ = 1
IOREQ_WRITE = 0

STATE_IOREQ_NONE = 0
STATE_IOREQ_READY = 1
STATE_IOREQ_INPROCESS = 2
STATE_IORESP_READY = 3

IOREQ_TYPE_PIO = 0
IOREQ_TYPE_COPY = 1
IOREQ_TYPE_PCI_CONFIG = 2
IOREQ_TYPE_TIMEOFFSET = 7
IOREQ_TYPE_INVALIDATE = 8

IOREQ_BUFFER_SLOT_NUM = 511

# Bit positions in ioreq.bits; the header has bit-fields instead.
IOREQ_STATE_MASK = 0xF  # state
IOREQ_DATA_IS_PTR = 1 << 4  # data is a guest-physical address
IOREQ_DIR = 1 << 5  # IOREQ_READ or IOREQ_WRITE
IOREQ_DF = 1 << 6  # addresses go down

# And in buf_ioreq.bits, a little-endian u32 of which type is the low byte.
BUF_IOREQ_DIR_SHIFT = 9
BUF_IOREQ_SIZE_SHIFT = 10  # log2 of the bytes; 3 takes two slots
BUF_IOREQ_ADDR_SHIFT = 12


class ioreq(Struct):
    """One vCPU's request: `count` transfers of `size` bytes at `addr`."""

    addr: u64 = 0
    data: u64 = 0
    count: u32 = 0
    size: u32 = 0
    vp_eport: u32 = 0  # event channel to notify
    _pad0: u16 = 0
    bits: u8 = 0  # IOREQ_STATE_MASK, IOREQ_DATA_IS_PTR, IOREQ_DIR, IOREQ_DF
    type: u8 = 0  # IOREQ_TYPE_*


class buf_ioreq(Struct):
    """One buffered write."""

    bits: u32 = 0  # type, dir, size, addr: BUF_IOREQ_*
    data: u32 = 0


_buf_ioreq = buf_ioreq


class buffered_iopage(Struct):
    """The page of buffered writes; the pointers run freely, modulo IOREQ_BUFFER_SLOT_NUM."""

    read_pointer: u32 = 0
    write_pointer: u32 = 0
    buf_ioreq: Annotated[tuple[_buf_ioreq, ...], Array(_buf_ioreq, IOREQ_BUFFER_SLOT_NUM)] = ()
