"""The whole store as bytes and back: domains with their connections, watches, transactions, nodes.

Format: docs/designs/xenstore-migration.md of Xen, version 1. A socket client's connection is not
kept, nor are the Python side's watches: their owners make them anew.
What is loaded is not trusted: a wrong byte is a StateError, never a traceback.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated, Final, TypeVar

from hvmlite.abi.layout import Abi, Bytes, Struct, s32, u8, u16, u32
from hvmlite.abi.xen import DOMID_FIRST_RESERVED, DOMID_INVALID
from hvmlite.errors import UserError
from hvmlite.xenstore.connection import Connection
from hvmlite.xenstore.errors import XenStoreError
from hvmlite.xenstore.server import XenStore
from hvmlite.xenstore.transactions import Transaction
from hvmlite.xenstore.tree import (
    NO_CHILDREN,
    OWNED_BY_DOM0,
    SPECIAL_NODES,
    XS_PERM_IGNORE,
    Node,
    Perm,
    Perms,
    base_name,
    canonical_path,
    parent_path,
)
from hvmlite.xenstore.watches import Watch

S = TypeVar("S", bound=Struct)

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

CHANGED: Final = -2
"""A generation that no node has: the transaction must end in EAGAIN."""

_LETTERS: Final = b"nrwb"


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


class StateError(UserError):
    """The bytes are not a store that this version can load."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"xenstore state: {problem}")


# Dumping


def dump(store: XenStore) -> bytes:
    """The state of `store`; see load. The store goes on as if nothing happened."""
    daemon = store.daemon
    start = struct.pack(">" + header.layout(Abi.X86_64).format, IDENT, VERSION, 0)
    out = [start, _record(TYPE_GLOBAL_DATA, global_data(-1, -1).pack())]
    numbers: dict[Connection, int] = {}
    for domain in daemon.domains.values():
        connection = domain.connection
        if connection is None:
            continue
        numbers[connection] = number = len(numbers) + 1
        data, partial, output = connection.streams()
        target = DOMID_INVALID if domain.target is None else domain.target
        head = connection_data(
            number,
            CONN_TYPE_RING,
            0,
            domain.domid,
            target,
            domain.port,
            len(data),
            partial,
            len(output),
        )
        out.append(_record(TYPE_CONNECTION_DATA, head.pack() + data + output))
        for watch in connection.watches.values():
            wpath = watch.path[watch.prefix :].encode("ascii") + b"\0"
            token = watch.token + b"\0"
            entry = watch_data(number, len(wpath), len(token))
            out.append(_record(TYPE_WATCH_DATA, entry.pack() + wpath + token))
        for transaction in connection.transactions.values():
            opened = transaction_data(number, transaction.number)
            out.append(_record(TYPE_TRANSACTION_DATA, opened.pack()))
    tree = daemon.tree
    special = [(name, tree.nodes[name]) for name in SPECIAL_NODES]
    for path, node in [*tree.walk(), *special]:
        out.append(_node(0, 0, path, node.value, daemon.current_perms(node), 0))
    for connection, number in numbers.items():
        for transaction in connection.transactions.values():
            out += _transaction_nodes(store, number, transaction)
    out.append(_record(TYPE_END, b""))
    return b"".join(out)


def _record(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 8)
    return record(kind, len(body)).pack() + body


def _node(number: int, tx_id: int, path: str, value: bytes, perms: Perms, access: int) -> bytes:
    name = path.encode("ascii") + b"\0"
    head = node_data(number, tx_id, len(name), len(value), access, len(perms))
    entries = []
    for perm in perms:
        flags = PERM_IGNORE if perm.bits & XS_PERM_IGNORE else 0
        # A domid beyond 16 bits is no domain's, and its entry void already.
        entry = node_perm(_LETTERS[perm.bits & 3], flags, perm.domid & 0xFFFF)
        entries.append(entry.pack())
    return _record(TYPE_NODE_DATA, b"".join([head.pack(), *entries, name, value]))


def _transaction_nodes(store: XenStore, number: int, transaction: Transaction) -> Iterator[bytes]:
    tx_id = transaction.number
    doomed = transaction.doomed(store.daemon.domains)
    if doomed:
        # "Read the root as missing": no store can ever agree.
        yield _node(number, tx_id, "/", b"", (), ACCESS_READ)
    for path, seen in transaction.accessed.items():
        if doomed and path == "/":
            continue
        node = seen.node
        if node is None:
            access = 0 if seen.modified else ACCESS_READ
            yield _node(number, tx_id, path, b"", (), access)
        else:
            access = ACCESS_READ | (ACCESS_WRITTEN if seen.modified else 0)
            perms = store.daemon.current_perms(node)
            yield _node(number, tx_id, path, node.value, perms, access)


# Loading


def load(data: bytes, xen_version: tuple[int, int] = (4, 17)) -> XenStore:
    """A store with the state that `data` holds. Raises StateError.

    Its domains are introduced and wait for transports: XenStore.connection(domid).
    """
    return _Loader(data, xen_version).load()


class _Body:
    """The body of one record, taken apart from the front."""

    def __init__(self, data: bytes, order: str) -> None:
        self._data = data
        self._order = order
        self._at = 0

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise StateError("record is too short for what it says it holds")
        part = self._data[self._at : end]
        self._at = end
        return part

    def struct(self, kind: type[S]) -> S:
        layout = kind.layout(Abi.X86_64)
        values = struct.unpack(self._order + layout.format, self.take(layout.size))
        return kind(*values)

    def string(self, size: int) -> bytes:
        text = self.take(size)
        if not text or text.find(b"\0") != size - 1:
            raise StateError("string is not NUL-terminated")
        return text[:-1]


class _Loader:
    def __init__(self, data: bytes, xen_version: tuple[int, int]) -> None:
        self._data = data
        self._store = XenStore(xen_version)
        self._daemon = self._store.daemon
        self._connections: dict[int, Connection | None] = {}
        self._targets: list[tuple[Connection, int]] = []
        self._order = "<"

    def load(self) -> XenStore:
        self._daemon.clear()
        handlers = {
            TYPE_CONNECTION_DATA: self._connection,
            TYPE_WATCH_DATA: self._watch,
            TYPE_TRANSACTION_DATA: self._transaction,
            TYPE_NODE_DATA: self._node,
        }
        outer = self._daemon.enter()
        try:
            for kind, body in self._records():
                if kind == TYPE_GLOBAL_DATA:
                    continue
                if kind not in handlers:
                    raise StateError(f"unknown record type {kind}")
                handlers[kind](body)
            self._finish()
        except XenStoreError as error:
            raise StateError(str(error)) from None
        finally:
            self._daemon.leave(outer)
        return self._store

    def _records(self) -> Iterator[tuple[int, _Body]]:
        data = self._data
        size = header.sizeof()
        if len(data) < size:
            raise StateError("too short for a header")
        ident, version, flags = struct.unpack_from(">" + header.layout(Abi.X86_64).format, data)
        if ident != IDENT:
            raise StateError("not a xenstore stream")
        if version != VERSION:
            raise StateError(f"version {version} is not known")
        if flags & ~BIG_ENDIAN:
            raise StateError(f"unknown flags {flags:#x}")
        self._order = ">" if flags & BIG_ENDIAN else "<"
        codec = struct.Struct(self._order + record.layout(Abi.X86_64).format)
        at = size
        while True:
            if at + codec.size > len(data):
                raise StateError("ends without an END record")
            kind, length = codec.unpack_from(data, at)
            at += codec.size
            if kind == TYPE_END:
                if length:
                    raise StateError("END record with a body")
                return
            if length > len(data) - at:
                raise StateError("record goes beyond the end")
            yield kind, _Body(data[at : at + length], self._order)
            at += -(-length // 8) * 8

    def _connection(self, body: _Body) -> None:
        head = body.struct(connection_data)
        if not head.conn_id or head.conn_id in self._connections:
            raise StateError(f"connection {head.conn_id} is zero or appears twice")
        if head.conn_type == CONN_TYPE_SOCKET:
            self._connections[head.conn_id] = None
            return
        if head.conn_type != CONN_TYPE_RING:
            raise StateError(f"unknown connection type {head.conn_type}")
        domain = self._daemon.domains.get(head.domid)
        if head.domid >= DOMID_FIRST_RESERVED or (domain is not None and domain.connection):
            raise StateError(f"domain {head.domid} is impossible or appears twice")
        data = body.take(head.in_data_len)
        output = body.take(head.out_data_len)
        connection = self._daemon.introduce_domain(head.domid, port=head.evtchn, announce=False)
        if not connection.restore_streams(data, head.out_resp_len, output):
            raise StateError(f"pending data of domain {head.domid} is not whole messages")
        self._connections[head.conn_id] = connection
        if head.tdomid != DOMID_INVALID:
            self._targets.append((connection, head.tdomid))

    def _known(self, conn_id: int) -> Connection | None:
        """The connection of a record; None for one that is not kept."""
        if conn_id not in self._connections:
            raise StateError(f"connection {conn_id} has no record")
        return self._connections[conn_id]

    def _watch(self, body: _Body) -> None:
        head = body.struct(watch_data)
        raw = body.string(head.wpath_len)
        token = body.string(head.token_len)
        connection = self._known(head.conn_id)
        if connection is None:
            return
        path = canonical_path(raw, connection.domain.home, special=True)
        if (path, token) in connection.watches:
            raise StateError(f"watch on {path} appears twice")
        relative = raw[:1] not in {b"/", b"@"}
        self._daemon.watches.add(Watch(connection, path, token, relative, None, None))

    def _transaction(self, body: _Body) -> None:
        head = body.struct(transaction_data)
        connection = self._known(head.conn_id)
        if connection is None:
            return
        if not head.tx_id or head.tx_id in connection.transactions:
            raise StateError(f"transaction {head.tx_id} is zero or appears twice")
        Transaction(self._daemon.tree, connection, head.tx_id)
        connection.next_transaction = (head.tx_id + 1) & 0xFFFFFFFF

    def _node(self, body: _Body) -> None:
        head = body.struct(node_data)
        perms = tuple([self._perm(body.struct(node_perm)) for _ in range(head.perm_count)])
        raw = body.string(head.path_len)
        value = body.take(head.value_len)
        path = canonical_path(raw, "", special=True)
        if raw[:1] not in {b"/", b"@"}:
            raise StateError("node with a relative path")
        if path.startswith("@") and path not in SPECIAL_NODES:
            raise StateError(f"unknown special node {path}")
        if head.conn_id:
            connection = self._known(head.conn_id)
            if connection is not None:
                transaction = connection.transactions.get(head.tx_id)
                if transaction is None:
                    raise StateError(f"transaction {head.tx_id} has no record")
                self._touched(transaction, path, value, perms, head.access)
            return
        tree = self._daemon.tree
        if path in tree.nodes or not perms:
            raise StateError(f"node {path} appears twice or has no owner")
        if path != "/" and path not in SPECIAL_NODES:
            parent = tree.get(parent_path(path))
            if parent is None:
                raise StateError(f"node {path} comes before its parent")
            parent.children = parent.children.added(base_name(path))
        tree.put(path, Node(value, perms))

    def _perm(self, entry: node_perm) -> Perm:
        bits = _LETTERS.find(bytes([entry.perm]))
        if bits < 0:
            raise StateError(f"unknown permission {entry.perm:#x}")
        if entry.flags & PERM_IGNORE or entry.domid >= DOMID_FIRST_RESERVED:
            bits |= XS_PERM_IGNORE
        else:
            self._daemon.account(entry.domid)
        return Perm(entry.domid, bits)

    @staticmethod
    def _touched(
        transaction: Transaction, path: str, value: bytes, perms: Perms, access: int
    ) -> None:
        if path in transaction.accessed:
            raise StateError(f"node {path} appears twice in a transaction")
        old = transaction.get(path)
        if access & ACCESS_WRITTEN:
            if not perms:
                raise StateError(f"node {path} has no owner")
            children = NO_CHILDREN if old is None else old.children
            transaction.created |= old is None
            transaction.put(path, Node(value, perms, children))
        elif access & ACCESS_READ:
            same = not perms if old is None else (old.value, old.perms) == (value, perms)
            if not same:
                transaction.accessed[path].generation = CHANGED
            return
        else:
            transaction.remove(path)
        # Whether it was the node itself or its list of children is not in the format.
        transaction.queue_watch(path, exact=False)

    def _finish(self) -> None:
        daemon = self._daemon
        tree = daemon.tree
        if "/" not in tree.nodes:
            raise StateError("no root node")
        for name in SPECIAL_NODES:
            if name not in tree.nodes:
                tree.put(name, Node(b"", OWNED_BY_DOM0))
        for path, node in tree.nodes.items():
            if node.perms[0].domid not in daemon.domains:
                raise StateError(f"node {path} is owned by an impossible domain")
        for connection, target in self._targets:
            domain = daemon.domains.get(target)
            if domain is None or not domain.introduced:
                raise StateError(f"target domain {target} is not introduced")
            connection.domain.target = target
        for connection in [c for c in self._connections.values() if c is not None]:
            for transaction in connection.transactions.values():
                self._relink(transaction)

    def _relink(self, transaction: Transaction) -> None:
        """Make the lists of children in a transaction's view fit its new and deleted nodes."""
        for path, seen in transaction.accessed.items():
            existed = path in self._daemon.tree.nodes
            if not seen.modified or path == "/" or path in SPECIAL_NODES:
                continue
            above = transaction.accessed.get(parent_path(path))
            parent = above.node if above is not None and above.modified else None
            if seen.node is not None and not existed:
                if parent is None:
                    raise StateError(f"node {path} is created without its parent")
                parent.children = parent.children.added(base_name(path))
            elif seen.node is None and existed and parent is not None:
                parent.children = parent.children.removed(base_name(path))
