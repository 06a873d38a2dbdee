"""The requests of the wire protocol: payload in, payload of the reply out.

Which strings a request takes, how its reply is terminated and which error a malformed one gets is
what Xen's xenstored answers (tools/xenstored, docs/misc/xenstore.txt).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hvmlite.abi import xs_wire
from hvmlite.abi.errno import (
    XEN_E2BIG,
    XEN_EACCES,
    XEN_EBUSY,
    XEN_EINVAL,
    XEN_ENOENT,
    XEN_ENOSPC,
    XEN_ENOSYS,
)
from hvmlite.abi.xen import DOMID_FIRST_RESERVED, DOMID_SELF
from hvmlite.xenstore.domains import DOM0, QUOTA_NAMES, Domain
from hvmlite.xenstore.errors import XenStoreError, wire_payload
from hvmlite.xenstore.transactions import Transaction
from hvmlite.xenstore.tree import SPECIAL_NODES, canonical_path, parse_perm, quota_length
from hvmlite.xenstore.watches import Watch
from hvmlite.xenstore.wire import XENSTORE_SERVER_FEATURE_WATCHDEPTH

if TYPE_CHECKING:
    from hvmlite.xenstore.connection import Connection

Handler = Callable[["Connection", Transaction | None, bytes], bytes]

OK: Final = b"OK\0"

_ATOI = re.compile(rb"[\s]*([+-]?[0-9]{1,20})").match


def atoi(text: bytes) -> int:
    """The number at the start of `text` as C's atoi() reads it, modulo 2**32; 0 if there is none.

    The daemon reads domids, ports and offsets this way, so a malformed one is not an error.
    """
    match = _ATOI(text)
    return int(match[1]) & 0xFFFFFFFF if match else 0


def one_string(payload: bytes) -> bytes:
    """The payload's only string: exactly one NUL, at its end. Raises XenStoreError(EINVAL)."""
    if not payload or payload.find(b"\0") != len(payload) - 1:
        raise XenStoreError(XEN_EINVAL)
    return payload[:-1]


def strings(payload: bytes) -> list[bytes]:
    """The NUL-terminated strings of the payload; what follows the last NUL does not count."""
    return payload.split(b"\0")[:-1]


def absolute(connection: Connection, raw: bytes, special: bool = False) -> str:
    """The node that `raw` names for this connection. Raises XenStoreError(EINVAL)."""
    path = canonical_path(raw, connection.domain.home, special)
    limit = connection.domain.quota.path_max
    if (
        len(path) > limit
        and (not connection.privileged or connection.store.path_max_for_all)
        and quota_length(path) > limit
    ):
        raise XenStoreError(XEN_EINVAL)
    return path


def _directory(connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    path = absolute(connection, one_string(payload))
    return connection.store.node(connection, transaction, path).children.listing()


def _directory_part(
    connection: Connection, transaction: Transaction | None, payload: bytes
) -> bytes:
    arguments = strings(payload)
    if len(arguments) != 2:
        raise XenStoreError(XEN_EINVAL)
    path = absolute(connection, arguments[0])
    node = connection.store.node(connection, transaction, path)
    offset = atoi(arguments[1])
    generation = b"%d\0" % node.generation
    listing = node.children.listing()
    if offset >= len(listing):
        return generation + b"\0"
    room = xs_wire.XENSTORE_PAYLOAD_MAX - len(generation) - 1
    end = listing.rfind(b"\0", offset, offset + room) + 1
    part = generation + listing[offset : max(end, offset)]
    return part + b"\0" if end == len(listing) else part


def _read(connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    path = absolute(connection, one_string(payload))
    return connection.store.node(connection, transaction, path).value


def _get_perms(connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    special = connection.store.special_in_tree
    path = absolute(connection, one_string(payload), special)
    perms = connection.store.node(connection, transaction, path).perms
    return "".join([f"{perm}\0" for perm in perms]).encode("ascii")


def _set_perms(connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    arguments = strings(payload)
    if len(arguments) < 2:
        raise XenStoreError(XEN_EINVAL)
    if not connection.privileged and len(arguments) - 1 > connection.domain.quota.node_permissions:
        raise XenStoreError(XEN_ENOSPC)
    store = connection.store
    perms = store.named(connection, tuple([parse_perm(text) for text in arguments[1:]]))
    path = absolute(connection, arguments[0], special=True)
    if path.startswith("@") and path not in SPECIAL_NODES and not store.special_in_tree:
        raise XenStoreError(XEN_EINVAL)
    store.set_perms(connection, transaction, path, perms)
    return OK


def _write(connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    raw, nul, value = payload.partition(b"\0")
    if not nul:
        raise XenStoreError(XEN_EINVAL)
    connection.store.write(connection, transaction, absolute(connection, raw), value)
    return OK


def _mkdir(connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    connection.store.mkdir(connection, transaction, absolute(connection, one_string(payload)))
    return OK


def _rm(connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    connection.store.rm(connection, transaction, absolute(connection, one_string(payload)))
    return OK


def _watch(connection: Connection, _transaction: Transaction | None, payload: bytes) -> bytes:
    arguments = strings(payload)
    depth = None
    if len(arguments) == 3 and (connection.domain.features & XENSTORE_SERVER_FEATURE_WATCHDEPTH):
        depth = atoi(arguments[2])
        if depth > 0x7FFFFFFF:
            raise XenStoreError(XEN_EINVAL)
    elif len(arguments) != 2:
        raise XenStoreError(XEN_EINVAL)
    raw, token = arguments[:2]
    path = absolute(connection, raw, special=True)
    watch = Watch(connection, path, token, raw[:1] not in {b"/", b"@"}, depth, None)
    connection.store.add_watch(watch)
    connection.after_reply = (watch, path[watch.prefix :])
    return OK


def _unwatch(connection: Connection, _transaction: Transaction | None, payload: bytes) -> bytes:
    arguments = strings(payload)
    if len(arguments) != 2:
        raise XenStoreError(XEN_EINVAL)
    try:
        path = absolute(connection, arguments[0], special=True)
    except XenStoreError:
        # There is no watch on what cannot be watched.
        raise XenStoreError(XEN_ENOENT) from None
    watch = connection.watches.get((path, arguments[1]))
    if watch is None:
        raise XenStoreError(XEN_ENOENT)
    connection.store.watches.remove(watch)
    return OK


def _reset_watches(
    connection: Connection, _transaction: Transaction | None, _payload: bytes
) -> bytes:
    connection.drop_watches()
    connection.drop_transactions()
    return OK


def _transaction_start(
    connection: Connection, transaction: Transaction | None, _payload: bytes
) -> bytes:
    if transaction is not None:
        raise XenStoreError(XEN_EBUSY)
    number = connection.next_transaction
    while number == 0 or number in connection.transactions:
        number = (number + 1) & 0xFFFFFFFF
    connection.store.transaction_start(connection, number)
    connection.next_transaction = (number + 1) & 0xFFFFFFFF
    return b"%d\0" % number


def _transaction_end(
    connection: Connection, transaction: Transaction | None, payload: bytes
) -> bytes:
    verdict = one_string(payload)
    if verdict not in {b"T", b"F"}:
        raise XenStoreError(XEN_EINVAL)
    if transaction is None:
        raise XenStoreError(XEN_ENOENT)
    if verdict == b"T":
        connection.store.transaction_commit(transaction)
    else:
        transaction.discard()
    return OK


def _introduce(connection: Connection, _transaction: Transaction | None, payload: bytes) -> bytes:
    arguments = strings(payload)
    if len(arguments) < 3:
        raise XenStoreError(XEN_EINVAL)
    domid, gfn, port = (atoi(text) for text in arguments[:3])
    if not 0 < port <= 0x7FFFFFFF or not DOM0 < domid < DOMID_FIRST_RESERVED:
        raise XenStoreError(XEN_EINVAL)
    connection.store.introduce_from_wire(domid, gfn, port)
    return OK


def _introduced(connection: Connection, domid: int) -> Domain:
    domain = connection.store.domains.get(domid)
    if domain is None or not domain.introduced:
        raise XenStoreError(XEN_ENOENT)
    return domain


def _one_domain(connection: Connection, payload: bytes) -> Domain:
    domid = atoi(one_string(payload))
    if domid == DOM0:
        raise XenStoreError(XEN_EINVAL)
    return _introduced(connection, domid)


def _release(connection: Connection, _transaction: Transaction | None, payload: bytes) -> bytes:
    connection.store.release_domain(_one_domain(connection, payload).domid)
    return OK


def _resume(connection: Connection, _transaction: Transaction | None, payload: bytes) -> bytes:
    _one_domain(connection, payload).shutdown = False
    return OK


def _is_domain_introduced(
    connection: Connection, _transaction: Transaction | None, payload: bytes
) -> bytes:
    domid = atoi(one_string(payload))
    domain = connection.store.domains.get(domid)
    known = domid == DOMID_SELF or (domain is not None and domain.introduced)
    return b"T\0" if known else b"F\0"


def _get_domain_path(
    _connection: Connection, _transaction: Transaction | None, payload: bytes
) -> bytes:
    return b"/local/domain/%d\0" % atoi(one_string(payload))


def _set_target(connection: Connection, _transaction: Transaction | None, payload: bytes) -> bytes:
    arguments = strings(payload)
    if len(arguments) < 2:
        raise XenStoreError(XEN_EINVAL)
    domain = _introduced(connection, atoi(arguments[0]))
    domain.target = _introduced(connection, atoi(arguments[1])).domid
    return OK


def _control(connection: Connection, _transaction: Transaction | None, payload: bytes) -> bytes:
    return connection.store.control(payload)


def _domid(text: bytes) -> int:
    domid = atoi(text)
    if domid >= DOMID_FIRST_RESERVED:
        raise XenStoreError(XEN_EINVAL)
    return domid


def _get_feature(connection: Connection, _transaction: Transaction | None, payload: bytes) -> bytes:
    arguments = strings(payload)
    if not connection.privileged and (arguments or connection.store.xen_version < (4, 22)):
        raise XenStoreError(XEN_EACCES)
    if not arguments:
        return b"%d\0" % connection.domain.features
    if len(arguments) > 1:
        raise XenStoreError(XEN_EINVAL)
    domain = connection.store.domains.get(_domid(arguments[0]))
    if domain is None:
        raise XenStoreError(XEN_ENOENT)
    return b"%d\0" % domain.features


def _set_feature(connection: Connection, _transaction: Transaction | None, payload: bytes) -> bytes:
    arguments = strings(payload)
    if len(arguments) != 2:
        raise XenStoreError(XEN_EINVAL)
    domain = connection.store.account(_domid(arguments[0]))
    if domain.introduced:
        raise XenStoreError(XEN_EBUSY)
    features = atoi(arguments[1])
    if features & ~connection.store.features:
        raise XenStoreError(XEN_EINVAL)
    domain.features = features
    return OK


def _get_quota(connection: Connection, _transaction: Transaction | None, payload: bytes) -> bytes:
    arguments = strings(payload)
    if not arguments:
        return " ".join(QUOTA_NAMES).encode("ascii") + b"\0"
    return b"%d\0" % connection.store.get_quota(*_quota_arguments(arguments, 1))


def _set_quota(connection: Connection, _transaction: Transaction | None, payload: bytes) -> bytes:
    arguments = strings(payload)
    domid, name = _quota_arguments(arguments[:-1], 1)
    value = atoi(arguments[-1])
    if value > 0x7FFFFFFF:
        raise XenStoreError(XEN_EINVAL)
    connection.store.set_quota(domid, name, value)
    return OK


def _quota_arguments(arguments: list[bytes], least: int) -> tuple[int | None, str]:
    if not least <= len(arguments) <= least + 1:
        raise XenStoreError(XEN_EINVAL)
    domid = _domid(arguments[0]) if len(arguments) > least else None
    return domid, arguments[-1].decode("latin-1")


_NO_TRANSACTION: Final = 1
"""The request ignores tx_id."""
_PRIVILEGED: Final = 2
"""Domain 0 only; others get EACCES."""

_HANDLERS: Final[dict[int, tuple[Handler, int, tuple[int, int]]]] = {
    xs_wire.XS_CONTROL: (_control, _PRIVILEGED, (0, 0)),
    xs_wire.XS_DIRECTORY: (_directory, 0, (0, 0)),
    xs_wire.XS_READ: (_read, 0, (0, 0)),
    xs_wire.XS_GET_PERMS: (_get_perms, 0, (0, 0)),
    xs_wire.XS_WATCH: (_watch, _NO_TRANSACTION, (0, 0)),
    xs_wire.XS_UNWATCH: (_unwatch, _NO_TRANSACTION, (0, 0)),
    xs_wire.XS_TRANSACTION_START: (_transaction_start, 0, (0, 0)),
    xs_wire.XS_TRANSACTION_END: (_transaction_end, 0, (0, 0)),
    xs_wire.XS_INTRODUCE: (_introduce, _PRIVILEGED, (0, 0)),
    xs_wire.XS_RELEASE: (_release, _PRIVILEGED, (0, 0)),
    xs_wire.XS_GET_DOMAIN_PATH: (_get_domain_path, 0, (0, 0)),
    xs_wire.XS_WRITE: (_write, 0, (0, 0)),
    xs_wire.XS_MKDIR: (_mkdir, 0, (0, 0)),
    xs_wire.XS_RM: (_rm, 0, (0, 0)),
    xs_wire.XS_SET_PERMS: (_set_perms, 0, (0, 0)),
    xs_wire.XS_IS_DOMAIN_INTRODUCED: (_is_domain_introduced, _PRIVILEGED, (0, 0)),
    xs_wire.XS_RESUME: (_resume, _PRIVILEGED, (0, 0)),
    xs_wire.XS_SET_TARGET: (_set_target, _PRIVILEGED, (0, 0)),
    xs_wire.XS_RESET_WATCHES: (_reset_watches, 0, (0, 0)),
    xs_wire.XS_DIRECTORY_PART: (_directory_part, 0, (0, 0)),
    xs_wire.XS_GET_FEATURE: (_get_feature, 0, (4, 21)),
    xs_wire.XS_SET_FEATURE: (_set_feature, _PRIVILEGED, (4, 21)),
    xs_wire.XS_GET_QUOTA: (_get_quota, _PRIVILEGED, (4, 22)),
    xs_wire.XS_SET_QUOTA: (_set_quota, _PRIVILEGED, (4, 22)),
}
"""Handler, flags and the first Xen version to have it, by message type."""


def dispatch(connection: Connection, kind: int, tx_id: int, payload: bytes) -> tuple[int, bytes]:
    """Serve one request; returns the reply's type and payload."""
    try:
        entry = _HANDLERS.get(kind)
        if entry is None or connection.store.xen_version < entry[2]:
            raise XenStoreError(XEN_ENOSYS)
        handler, flags, _since = entry
        if flags & _PRIVILEGED and not connection.privileged:
            raise XenStoreError(XEN_EACCES)
        transaction = None
        if tx_id and not flags & _NO_TRANSACTION:
            transaction = connection.transactions.get(tx_id)
            if transaction is None:
                raise XenStoreError(XEN_ENOENT)
        reply = handler(connection, transaction, payload)
        if len(reply) > xs_wire.XENSTORE_PAYLOAD_MAX:
            raise XenStoreError(XEN_E2BIG)
    except XenStoreError as error:
        connection.after_reply = None
        return xs_wire.XS_ERROR, wire_payload(error.errno)
    return kind, reply
