"""The store as the rest of hvmlite uses it.

The Python side acts as domain 0: no quota, all permissions. Everything happens in the caller's
thread, at once; nothing here waits.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from hvmlite.abi.errno import XEN_E2BIG, XEN_EAGAIN, XEN_EINVAL, XEN_ENOENT
from hvmlite.abi.xs_wire import XENSTORE_PAYLOAD_MAX
from hvmlite.xenstore.connection import Connection
from hvmlite.xenstore.daemon import Daemon
from hvmlite.xenstore.errors import XenStoreError
from hvmlite.xenstore.transactions import Transaction
from hvmlite.xenstore.tree import Node, Perm, Perms, canonical_path, parse_perm
from hvmlite.xenstore.watches import Watch

T = TypeVar("T")

RETRIES = 100
"""Attempts at a transaction before XenStore.transact gives up."""


class Accessor:
    """Reading and writing as domain 0, at once or inside a transaction.

    Relative paths start at /local/domain/0. All methods raise XenStoreError unless they say
    otherwise, with EINVAL for a malformed path.
    """

    def __init__(self, daemon: Daemon, transaction: Transaction | None = None) -> None:
        self._core = daemon
        self._caller = daemon.local
        self._transaction = transaction

    def _path(self, path: str, special: bool = False) -> str:
        try:
            raw = path.encode("ascii")
        except UnicodeEncodeError:
            raise XenStoreError(XEN_EINVAL, path) from None
        return canonical_path(raw, self._caller.domain.home, special)

    def _node(self, path: str, special: bool = False) -> Node:
        return self._core.node(self._caller, self._transaction, self._path(path, special))

    def read(self, path: str) -> bytes | None:
        """The value at `path`; None if there is no such node."""
        try:
            return self._node(path).value
        except XenStoreError as error:
            if error.errno == XEN_ENOENT:
                return None
            raise

    def exists(self, path: str) -> bool:
        """Whether there is a node at `path`."""
        return self.read(path) is not None

    def write(
        self, path: str, value: bytes | str, perms: Sequence[Perm | str] | None = None
    ) -> None:
        """Store `value` at `path`, with missing parents; then set `perms` if given.

        A permission is written as on the wire ("n0" first: the owner and the default, then "r4").
        Raises XenStoreError(E2BIG) if a guest could not read the value back.
        """
        data = value.encode() if isinstance(value, str) else value
        node = self._path(path)
        if len(node) + 1 + len(data) > XENSTORE_PAYLOAD_MAX:
            raise XenStoreError(XEN_E2BIG, path)
        wanted = None if perms is None else _perms(perms)
        outer = self._core.enter()
        try:
            self._core.write(self._caller, self._transaction, node, data)
            if wanted is not None:
                self._core.set_perms(self._caller, self._transaction, node, wanted)
        finally:
            self._core.leave(outer)

    def mkdir(self, path: str, perms: Sequence[Perm | str] | None = None) -> None:
        """Ensure that `path` exists; then set `perms` if given."""
        node = self._path(path)
        wanted = None if perms is None else _perms(perms)
        outer = self._core.enter()
        try:
            self._core.mkdir(self._caller, self._transaction, node)
            if wanted is not None:
                self._core.set_perms(self._caller, self._transaction, node, wanted)
        finally:
            self._core.leave(outer)

    def rm(self, path: str) -> None:
        """Remove `path` and all below it. A missing node is fine if its parent exists (ENOENT)."""
        node = self._path(path)
        outer = self._core.enter()
        try:
            self._core.rm(self._caller, self._transaction, node)
        finally:
            self._core.leave(outer)

    def list(self, path: str) -> list[str]:
        """The names of the children of `path`, in order of creation. Raises ENOENT."""
        return [*self._node(path).children.names]

    def get_perms(self, path: str) -> builtins.list[str]:
        """The permissions of `path`, such as ["n0", "r4"]. Raises ENOENT."""
        return [str(perm) for perm in self._node(path, special=True).perms]

    def set_perms(self, path: str, perms: Sequence[Perm | str]) -> None:
        """Set the permissions of `path`. Raises ENOENT, also for an impossible owner."""
        node = self._path(path, special=True)
        wanted = _perms(perms)
        outer = self._core.enter()
        try:
            self._core.set_perms(self._caller, self._transaction, node, wanted)
        finally:
            self._core.leave(outer)


def _perms(perms: Sequence[Perm | str]) -> Perms:
    if not perms:
        raise XenStoreError(XEN_EINVAL)
    return tuple(
        [p if isinstance(p, Perm) else parse_perm(p.encode("ascii", "replace")) for p in perms]
    )


class XenStore(Accessor):
    """The store, empty at first. `xen_version`: the (major, minor) of Xen that is presented."""

    def __init__(self, xen_version: tuple[int, int] = (4, 17)) -> None:
        self.daemon = Daemon(xen_version)
        super().__init__(self.daemon)
        self._tokens = 0

    # Connections and domains

    def connect(self, domid: int = 0) -> Connection:
        """A new connection that acts as `domid`: 0 for a tool. See Daemon.connect."""
        return self.daemon.connect(domid)

    def connection(self, domid: int) -> Connection | None:
        """The connection that introduce_domain made for `domid`."""
        return self.daemon.connection(domid)

    def introduce_domain(
        self, domid: int, *, port: int = 0, features: int | None = None
    ) -> Connection:
        """Begin to serve a domain; returns its connection. See Daemon.introduce_domain."""
        return self.daemon.introduce_domain(domid, port=port, features=features)

    def release_domain(self, domid: int) -> None:
        """Forget a domain and all that is its own. See Daemon.release_domain."""
        self.daemon.release_domain(domid)

    def domain_shutdown(self, domid: int) -> None:
        """Note that a domain has shut down or crashed. See Daemon.domain_shutdown."""
        self.daemon.domain_shutdown(domid)

    def domain_resume(self, domid: int) -> None:
        """Undo domain_shutdown. See Daemon.domain_resume."""
        self.daemon.domain_resume(domid)

    def set_quota(self, domid: int | None, name: str, value: int) -> None:
        """Set a quota of one domain, or of all (None). See Daemon.set_quota."""
        self.daemon.set_quota(domid, name, value)

    def check(self) -> builtins.list[str]:
        """Everything wrong inside the store, one line each; empty if all is well."""
        return self.daemon.check()

    # Watches and transactions

    def watch(self, path: str, callback: Callable[[str], None], depth: int | None = None) -> Watch:
        """Call `callback` with the event's path at each change of `path` or below, and once now.

        `depth` limits it to that many levels below. Callbacks run after the operation that caused
        them, one after another, and may use the store; what a callback raises goes to whoever
        caused it. Returns the handle for unwatch. Raises XenStoreError(EINVAL).
        """
        self._tokens += 1
        name = self._path(path, special=True)
        relative = path[:1] not in {"/", "@"}
        watch = Watch(self._caller, name, b"%d" % self._tokens, relative, depth, callback)
        outer = self._core.enter()
        try:
            self._core.add_watch(watch)
            self._caller.send_event(watch, name[watch.prefix :], None)
        finally:
            self._core.leave(outer)
        return watch

    def unwatch(self, watch: Watch) -> None:
        """End a watch; its callback is not called any more. Ending it twice is fine."""
        if self._caller.watches.get((watch.path, watch.token)) is watch:
            self._core.watches.remove(watch)

    @contextmanager
    def transaction(self) -> Iterator[Accessor]:
        """A transaction around a `with` block: committed at its end, discarded on an exception.

        Raises XenStoreError(EAGAIN) at the end if someone else changed what it touched.
        """
        transaction = self._core.transaction_start(self._caller, self._caller.next_transaction())
        try:
            yield Accessor(self._core, transaction)
        except BaseException:
            transaction.discard()
            raise
        outer = self._core.enter()
        try:
            self._core.transaction_commit(transaction)
        finally:
            self._core.leave(outer)

    def transact(self, body: Callable[[Accessor], T]) -> T:
        """Run `body` in a transaction, again as long as others interfere; returns its result.

        Raises XenStoreError(EAGAIN) after RETRIES attempts.
        """
        for attempt in range(1, RETRIES + 1):
            try:
                with self.transaction() as transaction:
                    result = body(transaction)
            except XenStoreError as error:
                if error.errno != XEN_EAGAIN or attempt == RETRIES:
                    raise
            else:
                return result
        raise AssertionError
