"""The store as bytes and back, whole or one domain's part of it: connections, watches,
transactions, nodes.

Format: docs/designs/xenstore-migration.md of Xen, version 1. A socket client's connection is not
kept, nor are the Python side's watches: their owners make them anew.
What is loaded is not trusted: a wrong byte is a StateError, never a traceback.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

from hvmlite.abi.layout import Abi, Struct
from hvmlite.abi.xen import DOMID_FIRST_RESERVED, DOMID_INVALID
from hvmlite.abi.xenstore_state import (
    ACCESS_READ,
    ACCESS_WRITTEN,
    BIG_ENDIAN,
    CONN_TYPE_RING,
    CONN_TYPE_SOCKET,
    IDENT,
    PERM_IGNORE,
    TYPE_CONNECTION_DATA,
    TYPE_END,
    TYPE_GLOBAL_DATA,
    TYPE_NODE_DATA,
    TYPE_TRANSACTION_DATA,
    TYPE_WATCH_DATA,
    VERSION,
    connection_data,
    global_data,
    header,
    node_data,
    node_perm,
    record,
    transaction_data,
    watch_data,
)
from hvmlite.errors import UserError
from hvmlite.xenstore.connection import Connection
from hvmlite.xenstore.domains import Domain
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

CHANGED: Final = -2
"""A generation that no node has: the transaction must end in EAGAIN."""

_LETTERS: Final = b"nrwb"


class StateError(UserError):
    """The bytes are not a store that this version can load."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"xenstore state: {problem}")


# Dumping


def dump(store: XenStore) -> bytes:
    """The state of `store`; see load. The store goes on as if nothing happened."""
    tree = store.daemon.tree
    special = [(name, tree.nodes[name]) for name in SPECIAL_NODES]
    return _dump(store, list(store.daemon.domains.values()), [*tree.walk(), *special])


def dump_domain(store: XenStore, domid: int, roots: Sequence[str] = ()) -> bytes:
    """One domain's part of `store`; see load_domain. The store goes on as if nothing happened.

    That is its connection with all that is under way on it, its watches and open transactions, and
    the nodes at and below its home, /local/domain/<domid>, and at and below `roots`.
    Raises StateError if it is not introduced.
    """
    domain = store.daemon.domains.get(domid)
    if domain is None or domain.connection is None:
        raise StateError(f"domain {domid} is not introduced")
    tree = store.daemon.tree
    nodes: dict[str, Node] = {}
    for root in (domain.home, *roots):
        if root in tree.nodes:
            nodes.update(tree.walk(root))
    return _dump(store, [domain], nodes.items())


def _dump(store: XenStore, domains: Iterable[Domain], nodes: Iterable[tuple[str, Node]]) -> bytes:
    daemon = store.daemon
    start = struct.pack(">" + header.layout(Abi.X86_64).format, IDENT, VERSION, 0)
    out = [start, _record(TYPE_GLOBAL_DATA, global_data(-1, -1).pack())]
    numbers: dict[Connection, int] = {}
    for domain in domains:
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
    for path, node in nodes:
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
    return _Loader(data, XenStore(xen_version)).load()


def load_domain(store: XenStore, data: bytes, domid: int | None = None) -> Connection:
    """Add a domain that dump_domain has saved to `store`, as domain `domid` if that is not None.

    Under another number its home moves with it, permissions and watches that mean it mean the new
    number, and a transaction that was open ends in EAGAIN. Saved nodes take the place of what is
    at those paths; others below its home go. Fires @introduceDomain. Returns the connection, which
    waits for a transport.

    Raises StateError; the domain, its home and the saved nodes are not in the store then.
    """
    return _DomainLoader(data, store, domid).load_domain()


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
    def __init__(self, data: bytes, store: XenStore) -> None:
        self._data = data
        self._store = store
        self._daemon = store.daemon
        self._connections: dict[int, Connection | None] = {}
        self._targets: list[tuple[Connection, int]] = []
        self._order = "<"

    def load(self) -> XenStore:
        self._daemon.clear()
        self._run(self._finish)
        return self._store

    def _run(self, finish: Callable[[], None]) -> None:
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
            finish()
        except XenStoreError as error:
            raise StateError(str(error)) from None
        finally:
            self._daemon.leave(outer)

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
        head.domid = self._number(head.domid)
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

    def _number(self, domid: int) -> int:
        """The number here of a domain that had this one."""
        return domid

    def _here(self, path: bytes) -> bytes:
        """The path here of what had this one."""
        return path

    def _known(self, conn_id: int) -> Connection | None:
        """The connection of a record; None for one that is not kept."""
        if conn_id not in self._connections:
            raise StateError(f"connection {conn_id} has no record")
        return self._connections[conn_id]

    def _watch(self, body: _Body) -> None:
        head = body.struct(watch_data)
        raw = self._here(body.string(head.wpath_len))
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
        raw = self._here(body.string(head.path_len))
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
        self._store_node(path, value, perms)

    def _store_node(self, path: str, value: bytes, perms: Perms) -> None:
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
            return Perm(entry.domid, bits)
        domid = self._number(entry.domid)
        self._daemon.account(domid)
        return Perm(domid, bits)

    def _touched(
        self, transaction: Transaction, path: str, value: bytes, perms: Perms, access: int
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
        tree = self._daemon.tree
        if "/" not in tree.nodes:
            raise StateError("no root node")
        for name in SPECIAL_NODES:
            if name not in tree.nodes:
                tree.put(name, Node(b"", OWNED_BY_DOM0))
        for path, node in tree.nodes.items():
            self._check_owner(path, node)
        self._connect()

    def _check_owner(self, path: str, node: Node) -> None:
        if node.perms[0].domid not in self._daemon.domains:
            raise StateError(f"node {path} is owned by an impossible domain")

    def _connect(self) -> None:
        """What needs all records: targets, and transactions as a whole."""
        daemon = self._daemon
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


class _DomainLoader(_Loader):
    """Adds one domain to a store with others in it."""

    def __init__(self, data: bytes, store: XenStore, domid: int | None) -> None:
        super().__init__(data, store)
        self._wanted = domid
        self._old: int | None = None
        self._home = b""
        self._made: set[str] = set()
        self._watches: list[_Body] = []

    def load_domain(self) -> Connection:
        try:
            self._run(self._finish_domain)
        except StateError:
            self._undo()
            raise
        (connection,) = self._connections.values()
        assert connection is not None
        return connection

    def _undo(self) -> None:
        daemon = self._daemon
        made = set(self._made)
        for connection in self._connections.values():
            if connection is not None:
                made.add(connection.domain.home)
                daemon.release_domain(connection.domid)
        for path in sorted(made - {"/"}):
            if path in daemon.tree.nodes:
                daemon.remove_subtree(daemon.local, None, path)

    def _connection(self, body: _Body) -> None:
        if self._old is not None:
            raise StateError("holds more than one domain")
        super()._connection(body)
        (connection,) = self._connections.values()
        if connection is None:
            raise StateError("holds no domain")
        domain = connection.domain
        if domain.home in self._daemon.tree.nodes:
            self._daemon.remove_subtree(self._daemon.local, None, domain.home)

    def _number(self, domid: int) -> int:
        if self._old is None:
            # The record of the connection comes first.
            self._old = domid
            self._home = b"/local/domain/%d" % domid
        return self._wanted if self._wanted is not None and domid == self._old else domid

    def _here(self, path: bytes) -> bytes:
        moved = self._wanted is not None and self._wanted != self._old
        if moved and (path == self._home or path.startswith(self._home + b"/")):
            return f"/local/domain/{self._wanted}".encode() + path[len(self._home) :]
        return path

    def _watch(self, body: _Body) -> None:
        # The nodes of the domain are not news to itself.
        self._watches.append(body)

    def _store_node(self, path: str, value: bytes, perms: Perms) -> None:
        if not self._connections:
            raise StateError("node before the connection's record")
        if not perms or path in self._made or path.startswith("@"):
            raise StateError(f"node {path} appears twice, has no owner or is nobody's")
        self._made.add(path)
        daemon = self._daemon
        daemon.write(daemon.local, None, path, value)
        node = daemon.tree.nodes[path]
        new = Node(value, perms, node.children)
        self._check_owner(path, new)
        daemon.tree.put(path, new)
        daemon.changed(daemon.local, None, path, new, None)

    def _touched(
        self, transaction: Transaction, path: str, value: bytes, perms: Perms, access: int
    ) -> None:
        super()._touched(transaction, path, value, perms, access)
        if self._wanted not in {None, self._old}:
            transaction.accessed[path].generation = CHANGED

    def _finish_domain(self) -> None:
        if not self._connections:
            raise StateError("holds no domain")
        for body in self._watches:
            super()._watch(body)
        self._connect()
        (connection,) = self._connections.values()
        assert connection is not None
        self._daemon.announce(connection.domain.domid)
