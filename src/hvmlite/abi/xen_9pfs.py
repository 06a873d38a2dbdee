"""The indexes page and the message header of the 9pfs transport.

Source: io/9pfs.h, io/ring.h (DEFINE_XEN_FLEX_RING_AND_INTF), docs/misc/9pfs.pandoc.
"""

from typing import Annotated

from hvmlite.abi.layout import Bytes, Struct, u8, u16, u32


class xen_9pfs_data_intf(Struct):
    """The start of the indexes page; 1 << ring_order grant references follow.

    Each direction has half of the frames: (1 << ring_order) * 2048 bytes.
    """

    in_cons: u32 = 0
    in_prod: u32 = 0
    pad1: Annotated[bytes, Bytes(56)] = b""
    out_cons: u32 = 0
    out_prod: u32 = 0
    pad2: Annotated[bytes, Bytes(56)] = b""
    ring_order: u32 = 0


class xen_9pfs_header(Struct, packed=True):
    """The start of every 9p message in either direction; size in bytes includes it."""

    size: u32 = 0
    id: u8 = 0
    tag: u16 = 0
