"""Events and the page of the PV keyboard and pointer. Source: io/kbdif.h."""

from typing import Annotated

from hvmlite.abi.layout import Array, Bytes, Struct, UnionOf, s16, s32, u8, u32

XENKBD_TYPE_MOTION = 1
XENKBD_TYPE_RESERVED = 2
XENKBD_TYPE_KEY = 3
XENKBD_TYPE_POS = 4
XENKBD_TYPE_MTOUCH = 5

XENKBD_MT_EV_DOWN = 0
XENKBD_MT_EV_UP = 1
XENKBD_MT_EV_MOTION = 2
XENKBD_MT_EV_SYN = 3
XENKBD_MT_EV_SHAPE = 4
XENKBD_MT_EV_ORIENT = 5

XENKBD_DRIVER_NAME = "vkbd"
XENKBD_FIELD_FEAT_DSBL_KEYBRD = "feature-disable-keyboard"
XENKBD_FIELD_FEAT_DSBL_POINTER = "feature-disable-pointer"
XENKBD_FIELD_FEAT_ABS_POINTER = "feature-abs-pointer"
XENKBD_FIELD_FEAT_RAW_POINTER = "feature-raw-pointer"
XENKBD_FIELD_FEAT_MTOUCH = "feature-multi-touch"
XENKBD_FIELD_REQ_ABS_POINTER = "request-abs-pointer"
XENKBD_FIELD_REQ_RAW_POINTER = "request-raw-pointer"
XENKBD_FIELD_REQ_MTOUCH = "request-multi-touch"
XENKBD_FIELD_RING_GREF = "page-gref"
XENKBD_FIELD_EVT_CHANNEL = "event-channel"
XENKBD_FIELD_WIDTH = "width"
XENKBD_FIELD_HEIGHT = "height"
XENKBD_FIELD_MT_WIDTH = "multi-touch-width"
XENKBD_FIELD_MT_HEIGHT = "multi-touch-height"
XENKBD_FIELD_MT_NUM_CONTACTS = "multi-touch-num-contacts"
XENKBD_FIELD_UNIQUE_ID = "unique-id"
XENKBD_FIELD_RING_REF = "page-ref"  # a frame, not a grant; from older frontends

XENKBD_IN_EVENT_SIZE = 40
XENKBD_OUT_EVENT_SIZE = 40

# Offset and size of the rings in the page (bytes), and their lengths (events).
XENKBD_IN_RING_SIZE = 2048
XENKBD_IN_RING_LEN = XENKBD_IN_RING_SIZE // XENKBD_IN_EVENT_SIZE
XENKBD_IN_RING_OFFS = 1024
XENKBD_OUT_RING_SIZE = 1024
XENKBD_OUT_RING_LEN = XENKBD_OUT_RING_SIZE // XENKBD_OUT_EVENT_SIZE
XENKBD_OUT_RING_OFFS = XENKBD_IN_RING_OFFS + XENKBD_IN_RING_SIZE


class xenkbd_motion(Struct):
    """XENKBD_TYPE_MOTION: the pointer moved by so much; rel_z is the wheel."""

    type: u8 = 0
    rel_x: s32 = 0
    rel_y: s32 = 0
    rel_z: s32 = 0


class xenkbd_key(Struct):
    """XENKBD_TYPE_KEY: keycode is Linux's KEY_* or BTN_*."""

    type: u8 = 0
    pressed: u8 = 0
    keycode: u32 = 0


class xenkbd_position(Struct):
    """XENKBD_TYPE_POS: the pointer is there; rel_z is the wheel."""

    type: u8 = 0
    abs_x: s32 = 0
    abs_y: s32 = 0
    rel_z: s32 = 0


class xenkbd_mtouch_pos(Struct):
    """xenkbd_mtouch.u for XENKBD_MT_EV_DOWN and XENKBD_MT_EV_MOTION."""

    abs_x: s32 = 0
    abs_y: s32 = 0


class xenkbd_mtouch_shape(Struct):
    """xenkbd_mtouch.u for XENKBD_MT_EV_SHAPE."""

    major: u32 = 0
    minor: u32 = 0


class xenkbd_mtouch(Struct):
    """XENKBD_TYPE_MTOUCH."""

    type: u8 = 0
    event_type: u8 = 0  # XENKBD_MT_EV_*
    contact_id: u8 = 0
    reserved: Annotated[tuple[int, ...], Array(u8, 5)] = ()
    u: Annotated[bytes, UnionOf(xenkbd_mtouch_pos, xenkbd_mtouch_shape, s16)] = b""


class xenkbd_in_event(Struct):
    """One slot of the ring towards the frontend: any of the above, by its first byte."""

    pad: Annotated[bytes, Bytes(XENKBD_IN_EVENT_SIZE)] = b""


class xenkbd_page(Struct):
    """The start of the shared page; indexes run freely, in events."""

    in_cons: u32 = 0
    in_prod: u32 = 0
    out_cons: u32 = 0
    out_prod: u32 = 0
