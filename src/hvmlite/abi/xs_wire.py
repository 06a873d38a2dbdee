"""The xenstore wire protocol and its ring. Source: io/xs_wire.h, docs/misc/xenstore.txt."""

from typing import Annotated

from hvmlite.abi.layout import Bytes, Struct, u32

# xsd_sockmsg.type
XS_CONTROL = 0
XS_DEBUG = XS_CONTROL
XS_DIRECTORY = 1
XS_READ = 2
XS_GET_PERMS = 3
XS_WATCH = 4
XS_UNWATCH = 5
XS_TRANSACTION_START = 6
XS_TRANSACTION_END = 7
XS_INTRODUCE = 8
XS_RELEASE = 9
XS_GET_DOMAIN_PATH = 10
XS_WRITE = 11
XS_MKDIR = 12
XS_RM = 13
XS_SET_PERMS = 14
XS_WATCH_EVENT = 15  # from the server only
XS_ERROR = 16  # from the server only
XS_IS_DOMAIN_INTRODUCED = 17
XS_RESUME = 18
XS_SET_TARGET = 19
XS_RESET_WATCHES = 21  # 20, XS_RESTRICT, is gone
XS_DIRECTORY_PART = 22
XS_GET_FEATURE = 23  # 4.21
XS_SET_FEATURE = 24  # 4.21
XS_GET_QUOTA = 25  # 4.21
XS_SET_QUOTA = 26  # 4.21
XS_INVALID = 0xFFFF

XS_WRITE_NONE = "NONE"
XS_WRITE_CREATE = "CREATE"
XS_WRITE_CREATE_EXCL = "CREATE|EXCL"

# Errors travel by name. The order is the header's table.
XSD_ERRORS = (
    "EINVAL",
    "EACCES",
    "EEXIST",
    "EISDIR",
    "ENOENT",
    "ENOMEM",
    "ENOSPC",
    "EIO",
    "ENOTEMPTY",
    "ENOSYS",
    "EROFS",
    "EBUSY",
    "EAGAIN",
    "EISCONN",
    "E2BIG",
    "EPERM",
)

# Elements of a watch event.
XS_WATCH_PATH = 0
XS_WATCH_TOKEN = 1

XENSTORE_RING_SIZE = 1024
XENSTORE_PAYLOAD_MAX = 4096
XENSTORE_ABS_PATH_MAX = 3072
XENSTORE_REL_PATH_MAX = 2048

XENSTORE_SERVER_FEATURE_RECONNECTION = 1
XENSTORE_SERVER_FEATURE_ERROR = 2

# xenstore_domain_interface.connection
XENSTORE_CONNECTED = 0
XENSTORE_RECONNECT = 1

# xenstore_domain_interface.error
XENSTORE_ERROR_NONE = 0
XENSTORE_ERROR_COMM = 1
XENSTORE_ERROR_RINGIDX = 2
XENSTORE_ERROR_PROTO = 3


class xsd_sockmsg(Struct):
    """The header of a message in either direction; len bytes of payload follow."""

    type: u32 = 0  # XS_*
    req_id: u32 = 0
    tx_id: u32 = 0
    len: u32 = 0


class xenstore_domain_interface(Struct):
    """The xenstore page: `req` is written by the guest, `rsp` read by it; indexes run freely."""

    req: Annotated[bytes, Bytes(XENSTORE_RING_SIZE)] = b""
    rsp: Annotated[bytes, Bytes(XENSTORE_RING_SIZE)] = b""
    req_cons: u32 = 0
    req_prod: u32 = 0
    rsp_cons: u32 = 0
    rsp_prod: u32 = 0
    server_features: u32 = 0  # XENSTORE_SERVER_FEATURE_*
    connection: u32 = 0
    error: u32 = 0
