"""The shared ring that PV block and network devices use. Source: io/ring.h.

`sring` is the header of the page; the entries follow at its end, a power of two of them.
"""

from typing import Annotated

from hvmlite.abi.layout import Bytes, Struct, u32

XEN_PAGE_SHIFT = 12


class sring(Struct):
    """The start of every DEFINE_RING_TYPES ring: 64 bytes. Indexes run freely."""

    req_prod: u32 = 0
    req_event: u32 = 0
    rsp_prod: u32 = 0
    rsp_event: u32 = 0
    pvt: Annotated[bytes, Bytes(4)] = b""
    pad: Annotated[bytes, Bytes(44)] = b""


def RING_SIZE(entry_size: int, size: int) -> int:
    """Entries of `entry_size` bytes in a ring of `size` bytes: a power of two, or 0 if none fits.

    The entry size is that of the larger of request and response, in the frontend's ABI.
    """
    room = (size - sring.sizeof()) // entry_size
    return 1 << (room.bit_length() - 1) if room > 0 else 0
