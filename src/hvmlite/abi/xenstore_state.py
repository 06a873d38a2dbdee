"""The records of a xenstore state stream. Source: docs/designs/xenstore-migration.md, version 1."""

from typing import Annotated, Final

from hvmlite.abi.layout import Bytes, Struct, s32, u8, u16, u32

IDENT: Final = b"xenstore"
VERSION: Final = 1
BIG_ENDIAN: Final = 1

TYPE_END: Final = 0
TYPE_GLOBAL_DATA: Final = 1
TYPE_CONNECTION_DATA: Final = 2
TYPE_WATCH_DATA: Final = 3
TYPE_TRANSACTION_DATA: Final = 4
TYPE_NODE_DATA: Final = 5

CONN_TYPE_RING: Final = 0
CONN_TYPE_SOCKET: Final = 1

ACCESS_READ: Final = 1
ACCESS_WRITTEN: Final = 2

PERM_IGNORE: Final = 1
"""In the octet after the letter: the entry's domain is gone (Xen from 4.15 on)."""


class header(Struct):
    """Big-endian in any case."""

    ident: Annotated[bytes, Bytes(8)] = b""
    version: u32 = 0
    flags: u32 = 0


class record(Struct):
    """Before each body, which is padded to a multiple of 8 bytes."""

    type: u32 = 0
    len: u32 = 0


class global_data(Struct):
    """Sockets of the daemon; -1 for none."""

    rw_socket_fd: s32 = 0
    ro_socket_fd: s32 = 0


class connection_data(Struct):
    """A shared-ring connection; in_data, then out_data follow."""

    conn_id: u32 = 0
    conn_type: u16 = 0
    flags: u16 = 0
    domid: u16 = 0
    tdomid: u16 = 0
    evtchn: u32 = 0
    in_data_len: u16 = 0
    out_resp_len: u16 = 0
    out_data_len: u32 = 0


class watch_data(Struct):
    """A watch; its path and its token follow, both NUL-terminated."""

    conn_id: u32 = 0
    wpath_len: u16 = 0
    token_len: u16 = 0


class transaction_data(Struct):
    """An open transaction."""

    conn_id: u32 = 0
    tx_id: u32 = 0


class node_data(Struct):
    """A node, or what a transaction did to one; permissions, path with NUL and value follow."""

    conn_id: u32 = 0
    tx_id: u32 = 0
    path_len: u16 = 0
    value_len: u16 = 0
    access: u16 = 0
    perm_count: u16 = 0


class node_perm(Struct):
    """One permission."""

    perm: u8 = 0
    flags: u8 = 0
    domid: u16 = 0
