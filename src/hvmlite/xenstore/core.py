"""What a request does: permission checks, quotas, the operations on the tree, firing of watches.

Knows no byte of the wire and no Python-side convenience. Every check is made before the first
change, so a refused operation leaves the tree as it was. Behaviour is that of Xen's xenstored
(tools/xenstored, docs/misc/xenstore.txt).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from hvmlite.abi.errno import (
    XEN_E2BIG,
    XEN_EACCES,
    XEN_EEXIST,
    XEN_EINVAL,
    XEN_ENOENT,
    XEN_ENOMEM,
    XEN_ENOSPC,
    XEN_EPERM,
)
from hvmlite.abi.xen import DOMID_FIRST_RESERVED
from hvmlite.abi.xs_wire import XENSTORE_SERVER_FEATURE_ERROR, XENSTORE_SERVER_FEATURE_RECONNECTION
from hvmlite.xenstore.domains import (
    DOM0,
    PERM_SIZE,
    Caller,
    Domain,
    Quota,
)
from hvmlite.xenstore.errors import XenStoreError
from hvmlite.xenstore.transactions import Transaction
from hvmlite.xenstore.tree import (
    XS_PERM_ALL,
    XS_PERM_IGNORE,
    XS_PERM_OWNER,
    XS_PERM_READ,
    XS_PERM_WRITE,
    Children,
    Node,
    Perm,
    Perms,
    Tree,
    base_name,
    parent_path,
)
from hvmlite.xenstore.watches import Match, Watch, WatchTable
from hvmlite.xenstore.wire import XENSTORE_SERVER_FEATURE_WATCHDEPTH

View = Tree | Transaction


class Core:
    """The tree, the accounts and the watches, and the operations on them.

    `xen_version` is the (major, minor) of the Xen that is presented; what the protocol answered
    in that version is what it answers here.
    """

    def __init__(self, xen_version: tuple[int, int] = (4, 17)) -> None:
        self.xen_version = xen_version
        self.quota = Quota()
        self.features = XENSTORE_SERVER_FEATURE_RECONNECTION | XENSTORE_SERVER_FEATURE_ERROR
        if xen_version >= (4, 22):
            self.features |= XENSTORE_SERVER_FEATURE_WATCHDEPTH
        self.domains: dict[int, Domain] = {}
        self.domains[DOM0] = dom0 = Domain(DOM0, 0, self.quota, self.features)
        dom0.introduced = True
        self.tree = Tree(self._charge)
        self.watches = WatchTable()
        self.work: deque[Callable[[], None]] = deque()
        """What is to be done once the operation at hand is complete; see settle()."""
        self._busy = False
        # sizeof(struct xs_tdb_record_hdr) until 4.18, sizeof(struct node_hdr) since.
        self._node_header = 24 if xen_version < (4, 19) else 16
        # Up to 4.17 a node of exactly the quota was refused, and domain 0's paths were measured.
        self._node_size_slack = -1 if xen_version < (4, 18) else 0
        self.path_max_for_all = xen_version < (4, 18)
        self.special_in_tree = xen_version >= (4, 18)
        """Whether @introduceDomain and @releaseDomain are nodes. Up to 4.17 their permissions are
        kept apart: they cannot be read, belong to no transaction, and a change fires no watch.
        """

    def enter(self) -> bool:
        """Begin an operation: what it causes waits until leave(). Returns leave()'s argument."""
        outer = self._busy
        self._busy = True
        return outer

    def leave(self, outer: bool) -> None:
        """End an operation, and settle() if it was the outermost."""
        self._busy = outer
        if not outer and self.work:
            self.settle()

    def settle(self) -> None:
        """Deliver what is due: output to transports, events to callbacks, stalled requests.

        Everything that could call back into the store is put off until here, so that no
        operation ever runs inside another.
        """
        if self._busy:
            return
        self._busy = True
        work = self.work
        try:
            while work:
                work.popleft()()
        finally:
            self._busy = False

    # Accounts

    def _charge(self, domid: int, nodes: int, size: int) -> None:
        domain = self.domains.get(domid)
        if domain is not None:
            domain.nodes += nodes
            domain.memory += size

    def clear(self) -> None:
        """Empty the tree altogether, for a state that is to be loaded."""
        for path in list(self.tree.nodes):
            self.tree.remove(path)

    def account(self, domid: int) -> Domain:
        """The account of `domid`, made if the store has not heard of the domain yet."""
        domain = self.domains.get(domid)
        if domain is None:
            domain = Domain(domid, self.tree.generation, self.quota, self.features)
            self.domains[domid] = domain
        return domain

    def domain_exists(self, domid: int) -> bool:
        """Whether a guest may name `domid` in a permission. May be replaced by the toolstack's
        own knowledge; without it only domains that the store has heard of exist.
        """
        return domid in self.domains

    def _heard_of(self, caller: Caller, perm: Perm) -> Perm:
        domid = perm.domid
        if domid in self.domains:
            return perm
        if domid < DOMID_FIRST_RESERVED and (caller.privileged or self.domain_exists(domid)):
            self.account(domid)
            return perm
        return Perm(domid, perm.bits | XS_PERM_IGNORE)

    def _is_current(self, perm: Perm, generation: int) -> bool:
        """Whether a permission written at `generation` speaks of the domain of today."""
        domain = self.domains.get(perm.domid)
        return domain is not None and domain.generation <= generation

    def current_perms(self, node: Node) -> Perms:
        """The permissions of a node, entries of domains that are gone marked as such."""
        perms = node.perms
        if len(perms) == 1:
            return perms
        generation = node.generation
        if all(p.bits & XS_PERM_IGNORE or self._is_current(p, generation) for p in perms[1:]):
            return perms
        return (
            perms[0],
            *(
                p
                if p.bits & XS_PERM_IGNORE or self._is_current(p, generation)
                else Perm(p.domid, p.bits | XS_PERM_IGNORE)
                for p in perms[1:]
            ),
        )

    # Permissions

    def rights(self, caller: Caller, perms: Perms, generation: int) -> int:
        """XS_PERM_* bits that `caller` has by the permissions of a node of that generation."""
        if caller.privileged:
            return XS_PERM_ALL
        domid = caller.domid
        target = caller.domain.target
        owner = perms[0]
        if owner.domid in (domid, target):
            return XS_PERM_ALL
        for perm in perms[1:]:
            if (
                perm.domid in (domid, target)
                and not perm.bits & XS_PERM_IGNORE
                and self._is_current(perm, generation)
            ):
                return perm.bits
        return owner.bits

    def find(self, caller: Caller, view: View, path: str, need: int) -> Node | None:
        """The node if `caller` has all the rights `need`; None if missing and it may know that.

        Raises XenStoreError(EACCES) otherwise.
        """
        node = view.get(path)
        if node is not None and (
            caller.privileged or self.rights(caller, node.perms, node.generation) & need == need
        ):
            return node
        if caller.privileged and view is self.tree:
            return None
        # The nearest existing parent decides what the caller may know. In a transaction its
        # reading counts as a touch, as in xenstored.
        above = path
        ancestor = None
        while ancestor is None and above != "/":
            above = parent_path(above)
            ancestor = view.get(above)
        if (
            node is not None
            or ancestor is None
            or not self.rights(caller, ancestor.perms, ancestor.generation) & need
        ):
            raise XenStoreError(XEN_EACCES, path)
        return None

    def node(self, caller: Caller, transaction: Transaction | None, path: str) -> Node:
        """The node at `path`, for reading. Raises XenStoreError: ENOENT, EACCES."""
        node = self.find(caller, transaction or self.tree, path, XS_PERM_READ)
        if node is None:
            raise XenStoreError(XEN_ENOENT, path)
        return node

    # Changes

    def write(
        self, caller: Caller, transaction: Transaction | None, path: str, value: bytes
    ) -> None:
        """Store `value` at `path`, with missing parents. Raises XenStoreError."""
        view = transaction or self.tree
        try:
            node = self.find(caller, view, path, XS_PERM_WRITE)
            if node is None:
                parent, node = self._create(caller, view, path, value)
            else:
                parent = None
                new = Node(value, self.current_perms(node), node.children)
                self._check_size(caller, path, new, len(value) - len(node.value))
                view.put(path, new)
                node = new
        except XenStoreError as error:
            if transaction is not None and error.errno in {XEN_ENOSPC, XEN_ENOMEM}:
                transaction.failed = True
            raise
        self.changed(caller, transaction, path, node, parent)

    def mkdir(self, caller: Caller, transaction: Transaction | None, path: str) -> None:
        """Ensure that `path` exists. Raises XenStoreError."""
        view = transaction or self.tree
        if self.find(caller, view, path, XS_PERM_WRITE) is not None:
            return
        try:
            parent, node = self._create(caller, view, path, b"")
        except XenStoreError:
            if transaction is not None:
                transaction.failed = True
            raise
        self.changed(caller, transaction, path, node, parent)

    def _create(self, caller: Caller, view: View, path: str, value: bytes) -> tuple[Node, Node]:
        """Create `path` and its missing parents; returns the node's parent and the node."""
        missing = [path]
        above = parent_path(path)
        while (parent := view.get(above)) is None:
            missing.append(above)
            above = parent_path(above)
        perms = self.current_perms(parent)
        if not caller.privileged:
            domain = caller.domain
            perms = (Perm(caller.domid, perms[0].bits), *perms[1:])
            owned = domain.nodes
            if isinstance(view, Transaction):
                owned += view.owned.get(domain.domid, 0)
            if owned + len(missing) > domain.quota.nodes:
                raise XenStoreError(XEN_ENOSPC, path)
        base = self.current_perms(parent)
        names = [base_name(each) for each in missing]
        nodes = [Node(value, perms)]
        for name in names[:-1]:
            nodes.append(Node(b"", perms, Children({name: None}, len(name) + 1)))
        if not caller.privileged:
            growth = sum(map(len, missing)) + len(value)
            for each, node in zip(missing, nodes, strict=True):
                self._check_size(caller, each, node, growth)
            self._check_size(caller, above, parent, growth, len(names[-1]) + 1)
        if isinstance(view, Transaction):
            view.created = True
        for each, node in zip(missing, nodes, strict=True):
            view.put(each, node)
        children = parent.children.added(names[-1])
        view.put(above, Node(parent.value, base, children))
        return (nodes[1] if len(nodes) > 1 else parent), nodes[0]

    def _check_size(
        self, caller: Caller, path: str, node: Node, growth: int, more: int = 0
    ) -> None:
        """Hold a node that is to be written, with `more` bytes of names, to the caller's quota."""
        if caller.privileged:
            return
        domain = caller.domain
        quota = domain.quota
        size = self._node_header + PERM_SIZE * len(node.perms) + len(node.value)
        if size + node.children.size + more > quota.node_size + self._node_size_slack:
            raise XenStoreError(XEN_ENOSPC, path)
        if growth > 0 and domain.memory + growth >= quota.memory:
            raise XenStoreError(XEN_ENOMEM, path)

    def rm(self, caller: Caller, transaction: Transaction | None, path: str) -> None:
        """Remove `path` and all below it; a missing node is fine if its parent exists.

        Raises XenStoreError: ENOENT, EACCES, EINVAL for "/".
        """
        view = transaction or self.tree
        if self.find(caller, view, path, XS_PERM_WRITE) is None:
            if view.get(parent_path(path)) is None:
                raise XenStoreError(XEN_ENOENT, path)
            return
        if path == "/":
            raise XenStoreError(XEN_EINVAL, path)
        self.remove_subtree(caller, transaction, path)

    def remove_subtree(self, caller: Caller, transaction: Transaction | None, path: str) -> None:
        """Remove an existing `path` and all below it, children first, without a check."""
        view = transaction or self.tree
        above = parent_path(path)
        parent = view.get(above)
        stack = [path]
        order: list[tuple[str, Node]] = []
        while stack:
            current = stack.pop()
            node = view.get(current)
            if node is not None:
                order.append((current, node))
                stack.extend([f"{current}/{name}" for name in node.children.names])
        # Reversed pre-order with reversed children: children first, in order of creation.
        for current, node in reversed(order):
            match = Match.SUBTREE if current == path else Match.EXACT
            directory = parent if current == path else view.get(parent_path(current))
            self.changed(caller, transaction, current, node, directory, match)
            view.remove(current)
        if parent is not None:
            children = parent.children.removed(base_name(path))
            view.put(above, Node(parent.value, self.current_perms(parent), children))

    def named(self, caller: Caller, perms: Perms) -> Perms:
        """The permissions with entries of unknown domains marked; raises ENOENT for the owner."""
        perms = tuple([self._heard_of(caller, perm) for perm in perms])
        if perms[0].bits & XS_PERM_IGNORE:
            raise XenStoreError(XEN_ENOENT)
        return perms

    def set_perms(
        self, caller: Caller, transaction: Transaction | None, path: str, perms: Perms
    ) -> None:
        """Set the permissions of a node that `caller` owns. Raises XenStoreError: ENOENT (also if
        the new owner does not exist), EACCES, EPERM, ENOSPC, ENOMEM.
        """
        perms = self.named(caller, perms)
        special = path.startswith("@") and not self.special_in_tree
        if special:
            transaction = None
        view = transaction or self.tree
        node = self.find(caller, view, path, XS_PERM_WRITE | XS_PERM_OWNER)
        if node is None:
            raise XenStoreError(XEN_ENOENT, path)
        if not caller.privileged and not special and perms[0].domid != node.perms[0].domid:
            raise XenStoreError(XEN_EPERM, path)
        new = Node(node.value, perms, node.children)
        try:
            self._check_size(caller, path, new, 0)
        except XenStoreError:
            if transaction is not None:
                transaction.failed = True
            raise
        old, generation = node.perms, node.generation
        view.put(path, new)
        if not special:
            self.changed(caller, transaction, path, new, None, Match.SUBTREE, (old, generation))

    # Transactions

    def transaction_start(self, caller: Caller, number: int) -> Transaction:
        """Open transaction `number` of `caller`. Raises XenStoreError(ENOSPC)."""
        domain = caller.domain
        if not caller.privileged and domain.transactions > domain.quota.transactions:
            raise XenStoreError(XEN_ENOSPC)
        return Transaction(self.tree, caller, number)

    def transaction_commit(self, transaction: Transaction) -> None:
        """Commit and fire watches. Raises XenStoreError; see Transaction.commit."""
        caller = transaction.caller
        for seen in transaction.accessed.values():
            if seen.modified and seen.node is not None:
                # Its commit makes the node younger than a domain that has come meanwhile.
                seen.node.perms = self.current_perms(seen.node)
        for path, seen in transaction.commit(self.domains):
            match = Match.EXACT if seen.exact else Match.SUBTREE
            old = None if seen.perms is None else (seen.perms, seen.generation)
            self.changed(caller, None, path, seen.node, None, match, old)

    # Watches

    def add_watch(self, watch: Watch) -> None:
        """Enter a watch; its first event is the caller's to send. Raises XenStoreError: EEXIST,
        E2BIG.
        """
        caller = watch.caller
        if (watch.path, watch.token) in caller.watches:
            raise XenStoreError(XEN_EEXIST, watch.path)
        if not caller.privileged:
            domain = caller.domain
            if domain.watches > domain.quota.watches:
                raise XenStoreError(XEN_E2BIG, watch.path)
            if domain.memory + len(watch.path) + len(watch.token) >= domain.quota.memory:
                raise XenStoreError(XEN_ENOMEM, watch.path)
        self.watches.add(watch)

    def changed(
        self,
        caller: Caller,
        transaction: Transaction | None,
        path: str,
        node: Node | None,
        parent: Node | None,
        match: Match = Match.SUBTREE,
        old: tuple[Perms, int] | None = None,
    ) -> None:
        """Tell the watchers of `path` that may know of it; in a transaction, at its commit.

        `old`: earlier permissions, and their generation, that let a watcher know as well.
        `parent` saves looking it up.
        """
        if transaction is not None:
            transaction.queue_watch(path, match is Match.EXACT)
            return
        request = caller.request
        watcher: Caller | None = None
        permitted = False
        for watch in self.watches.matching(path, match):
            if watch.caller is not watcher:
                watcher = watch.caller
                permitted = self._may_know(watcher, path, node, parent, old)
            if permitted:
                watcher.send_event(watch, path[watch.prefix :], request)

    def _may_know(
        self,
        watcher: Caller,
        path: str,
        node: Node | None,
        parent: Node | None,
        old: tuple[Perms, int] | None,
    ) -> bool:
        if watcher.privileged:
            return node is not None or old is not None
        if old is not None and self.rights(watcher, *old) & XS_PERM_READ:
            return True
        if node is None:
            return False
        if self.rights(watcher, node.perms, node.generation) & XS_PERM_READ:
            return True
        if parent is None:
            parent = self.tree.get(parent_path(path))
        return (
            parent is not None
            and self.rights(watcher, parent.perms, parent.generation) & XS_PERM_READ != 0
        )
