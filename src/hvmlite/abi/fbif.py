"""Events and the page of the PV framebuffer. Source: io/fbif.h."""

from typing import Annotated

from hvmlite.abi.layout import Array, Bytes, Struct, s32, u8, u32, ulong

# From the frontend.
XENFB_TYPE_UPDATE = 2
XENFB_TYPE_RESIZE = 3

# From the backend.
XENFB_TYPE_REFRESH_PERIOD = 1
XENFB_NO_REFRESH = 0

XENFB_IN_EVENT_SIZE = 40
XENFB_OUT_EVENT_SIZE = 40

# Offset and size of the rings in the page (bytes), and their lengths (events).
XENFB_IN_RING_SIZE = 1024
XENFB_IN_RING_LEN = XENFB_IN_RING_SIZE // XENFB_IN_EVENT_SIZE
XENFB_IN_RING_OFFS = 1024
XENFB_OUT_RING_SIZE = 2048
XENFB_OUT_RING_LEN = XENFB_OUT_RING_SIZE // XENFB_OUT_EVENT_SIZE
XENFB_OUT_RING_OFFS = XENFB_IN_RING_OFFS + XENFB_IN_RING_SIZE


class xenfb_update(Struct):
    """XENFB_TYPE_UPDATE: this rectangle (pixels) changed."""

    type: u8 = 0
    x: s32 = 0
    y: s32 = 0
    width: s32 = 0
    height: s32 = 0


class xenfb_resize(Struct):
    """XENFB_TYPE_RESIZE: a new geometry; stride and offset in bytes, depth in bits."""

    type: u8 = 0
    width: s32 = 0
    height: s32 = 0
    stride: s32 = 0
    depth: s32 = 0
    offset: s32 = 0


class xenfb_refresh_period(Struct):
    """XENFB_TYPE_REFRESH_PERIOD: how often the backend looks (ms; XENFB_NO_REFRESH: never)."""

    type: u8 = 0
    period: u32 = 0


class xenfb_out_event(Struct):
    """One slot of the ring from the frontend: any of the above, by its first byte."""

    pad: Annotated[bytes, Bytes(XENFB_OUT_EVENT_SIZE)] = b""


class xenfb_in_event(Struct):
    """One slot of the ring towards the frontend."""

    pad: Annotated[bytes, Bytes(XENFB_IN_EVENT_SIZE)] = b""


class xenfb_page(Struct):
    """The shared page; `pd` lists frames that list the framebuffer's frames."""

    in_cons: u32 = 0
    in_prod: u32 = 0
    out_cons: u32 = 0
    out_prod: u32 = 0
    width: s32 = 0
    height: s32 = 0
    line_length: u32 = 0
    mem_length: u32 = 0
    depth: u8 = 0
    pd: Annotated[tuple[int, ...], Array(ulong, 256)] = ()
