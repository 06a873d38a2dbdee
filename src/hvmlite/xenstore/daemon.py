"""The store with everyone who uses it: connections, the life of domains, the special events.

This is what a wire request can reach; the Python side's conveniences are in server.py.
Everything happens in the caller's thread, at once; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable

from hvmlite.abi.errno import XEN_EINVAL, XEN_ENOENT
from hvmlite.abi.xen import DOMID_FIRST_RESERVED
from hvmlite.xenstore import control
from hvmlite.xenstore.connection import Connection
from hvmlite.xenstore.core import Core
from hvmlite.xenstore.domains import (
    DOM0,
    QUOTA_ALIASES,
    QUOTA_NAMES,
    UNLIMITED,
    Caller,
    Domain,
    Quota,
)
from hvmlite.xenstore.errors import XenStoreError
from hvmlite.xenstore.tree import OWNED_BY_DOM0, SPECIAL_NODES, Node
from hvmlite.xenstore.watches import Match, Request, Watch


class Local(Caller):
    """The Python side as a caller: events go to callbacks, after the operation that caused them."""

    def __init__(self, domain: Domain, core: Core) -> None:
        super().__init__(domain, 0)
        self._core = core
        self._pending: set[tuple[Watch, str]] = set()
        self._next_transaction = 0

    def next_transaction(self) -> int:
        """A number that no open transaction has."""
        self._next_transaction += 1
        return self._next_transaction

    def send_event(self, watch: Watch, path: str, request: Request | None) -> None:
        """Queue a call of the watch's callback, unless the same one is queued already."""
        key = (watch, path)
        if path[:1] != "@":
            if key in self._pending:
                return
            self._pending.add(key)
        if request is not None:
            request.events += 1
        self._core.work.append(lambda: self._call(watch, path, request))

    def _call(self, watch: Watch, path: str, request: Request | None) -> None:
        self._pending.discard((watch, path))
        if request is not None:
            request.event_delivered()
        if watch.callback is not None and (watch.path, watch.token) in self.watches:
            watch.callback(path)


class Daemon(Core):
    """The state of the store and all that can be done to it, by domain 0 or by a guest."""

    def __init__(self, xen_version: tuple[int, int] = (4, 17)) -> None:
        super().__init__(xen_version)
        self.trace = False
        """Whether every message is logged; CONTROL "log"."""
        self.on_introduce: Callable[[int, int, int], None] | None = None
        """Called with domid, gfn and port when a socket client introduces a domain (INTRODUCE);
        expected to attach a transport to connection(domid).
        """
        self.local = Local(self.domains[DOM0], self)
        self.connections: dict[Connection, None] = {}
        self._sequence = 0

    # Connections

    def connect(self, domid: int = DOM0) -> Connection:
        """A new connection that acts as `domid`: 0 for a tool, privileged.

        A guest's own connection comes from introduce_domain.
        """
        self._sequence += 1
        connection = Connection(self, self.account(domid), self._sequence)
        self.connections[connection] = None
        return connection

    def connection(self, domid: int) -> Connection | None:
        """The connection that introduce_domain made for `domid`."""
        domain = self.domains.get(domid)
        return domain.connection if domain is not None else None

    def forget(self, connection: Connection) -> None:
        """Take a closed connection off the books."""
        self.connections.pop(connection, None)
        if connection.domain.connection is connection:
            connection.domain.connection = None

    # Domains

    def introduce_domain(
        self, domid: int, *, port: int = 0, features: int | None = None, announce: bool = True
    ) -> Connection:
        """Begin to serve a domain (INTRODUCE); returns its connection, to be given a transport.

        A domain that is already introduced keeps its connection, which starts anew. `port` is
        the event channel, for the books. `features`: XENSTORE_SERVER_FEATURE_* offered to the
        guest, all by default. Fires @introduceDomain the first time, if `announce`.

        Raises XenStoreError(EINVAL) for an id that no domain has.
        """
        if not 0 <= domid < DOMID_FIRST_RESERVED:
            raise XenStoreError(XEN_EINVAL)
        domain = self.account(domid)
        if features is not None:
            domain.features = features & self.features
        domain.port = port
        domain.shutdown = False
        outer = self.enter()
        try:
            connection = domain.connection
            if connection is not None:
                connection.reset()
                if connection.transport is not None:
                    self.work.append(connection.transport.reset)
            else:
                connection = domain.connection = self.connect(domid)
            announce = announce and not domain.introduced
            domain.introduced = True
            if announce:
                self._special("@introduceDomain", domid)
        finally:
            self.leave(outer)
        return connection

    def announce(self, domid: int) -> None:
        """Fire @introduceDomain for a domain that was introduced without."""
        outer = self.enter()
        try:
            self._special("@introduceDomain", domid)
        finally:
            self.leave(outer)

    def introduce_from_wire(self, domid: int, gfn: int, port: int) -> None:
        """INTRODUCE by a socket client."""
        self.introduce_domain(domid, port=port)
        if self.on_introduce is not None:
            hook = self.on_introduce
            self.work.append(lambda: hook(domid, gfn, port))

    def release_domain(self, domid: int) -> None:
        """Forget a domain (RELEASE, or its destruction): its connections, watches, transactions
        and the nodes it owns. Fires @releaseDomain if it was introduced.

        Permissions that name it are void from now on. A domain the store has not heard of is fine.
        Raises XenStoreError(EINVAL) for domain 0.
        """
        if domid == DOM0:
            raise XenStoreError(XEN_EINVAL)
        domain = self.domains.get(domid)
        if domain is None:
            return
        outer = self.enter()
        try:
            for connection in [c for c in self.connections if c.domain is domain]:
                connection.close()
            self._remove_owned(domain)
            for other in self.domains.values():
                if other.target == domid:
                    other.target = None
            del self.domains[domid]
            # A domain to come under this id is younger than all that was written so far.
            self.tree.generation += 1
            if domain.introduced:
                self._special("@releaseDomain", domid)
        finally:
            self.leave(outer)

    def _remove_owned(self, domain: Domain) -> None:
        for name in ("/", *SPECIAL_NODES):
            node = self.tree.nodes[name]
            if node.perms[0].domid == domain.domid:
                self.tree.put(name, Node(node.value, OWNED_BY_DOM0, node.children))
        for path in sorted(self.tree.owned.get(domain.domid, ())):
            # May have gone with its parent.
            if path in self.tree.nodes:
                self.remove_subtree(self.local, None, path)

    def domain_shutdown(self, domid: int) -> None:
        """Note that a domain has shut down or crashed; fires @releaseDomain once until RESUME."""
        domain = self.domains.get(domid)
        if domain is None or not domain.introduced or domain.shutdown:
            return
        domain.shutdown = True
        outer = self.enter()
        try:
            self._special("@releaseDomain", domid)
        finally:
            self.leave(outer)

    def domain_resume(self, domid: int) -> None:
        """Undo domain_shutdown (RESUME): the next one fires again."""
        domain = self.domains.get(domid)
        if domain is not None:
            domain.shutdown = False

    def _special(self, name: str, domid: int) -> None:
        node = self.tree.nodes[name]
        self.changed(self.local, None, name, node, None, Match.NODEPTH)
        self.changed(self.local, None, f"{name}/{domid}", node, None, Match.DEPTH)

    # Quotas, CONTROL

    def get_quota(self, domid: int | None, name: str) -> int:
        """One quota, of a domain or the default; 0 if off. Raises XenStoreError: EINVAL, ENOENT."""
        value = int(getattr(self._quota(domid), _quota_attribute(name)))
        return 0 if value == UNLIMITED else value

    def set_quota(self, domid: int | None, name: str, value: int) -> None:
        """Set a quota of one domain, or the default for all that have none of their own; 0: off.

        Raises XenStoreError: EINVAL, ENOENT.
        """
        attribute = _quota_attribute(name)
        quota = self._quota(domid)
        if domid is not None and quota is self.quota:
            quota = self.domains[domid].quota = Quota(**vars(quota))
        setattr(quota, attribute, value or UNLIMITED)

    def _quota(self, domid: int | None) -> Quota:
        if domid is None:
            return self.quota
        domain = self.domains.get(domid)
        if domain is None:
            raise XenStoreError(XEN_ENOENT)
        return domain.quota

    def control(self, payload: bytes) -> bytes:
        """Serve a CONTROL request's payload."""
        return control.control(self, payload)

    def check(self) -> list[str]:
        """Everything wrong inside the store, one line each; empty if all is well."""
        return control.check(self)


def _quota_attribute(name: str) -> str:
    name = QUOTA_ALIASES.get(name, name)
    if name not in QUOTA_NAMES:
        raise XenStoreError(XEN_EINVAL)
    return QUOTA_NAMES[name][0]
