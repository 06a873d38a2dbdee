"""The PV console's ring. Source: io/console.h."""

from typing import Annotated

from hvmlite.abi.layout import Bytes, Struct, u8, u32

XENCONS_IN_SIZE = 1024  # sizeof(in); the header has no name for it
XENCONS_OUT_SIZE = 2048  # sizeof(out)

# xencons_interface.connection, 4.21: set by the toolstack, cleared by the backend.
XENCONSOLE_CONNECTED = 0
XENCONSOLE_DISCONNECTED = 1


class xencons_interface(Struct):
    """The console page: `in_` is read by the guest, `out` written by it; indexes run freely."""

    in_: Annotated[bytes, Bytes(XENCONS_IN_SIZE)] = b""
    out: Annotated[bytes, Bytes(XENCONS_OUT_SIZE)] = b""
    in_cons: u32 = 0
    in_prod: u32 = 0
    out_cons: u32 = 0
    out_prod: u32 = 0
    connection: u8 = 0  # 4.21
