"""Transactions: a private view of the nodes touched, and the check at its end.

Optimistic: nothing is locked. At the end every node that was touched (a missing one too) must
still have the generation it had at first touch, else the whole is dropped and the caller told to
try again (EAGAIN). Costs what it touches. Behaviour: docs/misc/xenstore.txt, tools/xenstored.
"""

from __future__ import annotations

from hvmlite.abi.errno import XEN_EAGAIN, XEN_ENOMEM, XEN_ENOSPC
from hvmlite.xenstore.domains import DOM0, Caller, Domain
from hvmlite.xenstore.errors import XenStoreError
from hvmlite.xenstore.tree import NO_GENERATION, Node, Perms, Tree, account


class Accessed:
    """One node touched: as it was (`generation`, `perms`), and as the transaction sees it."""

    __slots__ = ("exact", "fire", "generation", "modified", "node", "perms")

    def __init__(self, node: Node | None) -> None:
        self.node = node
        self.generation = NO_GENERATION if node is None else node.generation
        self.perms: Perms | None = None if node is None else node.perms
        self.modified = False
        self.fire = False
        self.exact = False


class Transaction:
    """One open transaction of `caller`; the same get, put and remove as Tree."""

    def __init__(self, tree: Tree, caller: Caller, number: int) -> None:
        self.caller = caller
        self.number = number
        self.accessed: dict[str, Accessed] = {}
        self.owned: dict[int, int] = {}
        """Nodes that each domain owns more (or fewer) in this view."""
        self.created = False
        self.failed = False
        self._tree = tree
        self._memory = 0
        self._limit = None if caller.privileged else caller.domain.quota.transaction_nodes
        caller.transactions[number] = self
        caller.domain.transactions += 1

    def get(self, path: str) -> Node | None:
        """The node as this transaction sees it. Raises XenStoreError(ENOSPC) past the quota."""
        seen = self.accessed.get(path)
        if seen is not None:
            return seen.node
        if self._limit is not None and len(self.accessed) >= self._limit:
            self.failed = True
            raise XenStoreError(XEN_ENOSPC, path)
        node = self._tree.get(path)
        if node is not None:
            node.children.shared = True
        self.accessed[path] = Accessed(node)
        return node

    def put(self, path: str, node: Node) -> None:
        """Make `node` the node at `path` in this view; `path` must have been read."""
        tree = self._tree
        tree.generation += 1
        node.generation = tree.generation
        seen = self.accessed[path]
        account(self._charge, path, seen.node, node)
        seen.node = node
        seen.modified = True

    def remove(self, path: str) -> None:
        """Drop the node at `path` from this view; `path` must have been read."""
        seen = self.accessed[path]
        account(self._charge, path, seen.node, None)
        seen.node = None
        seen.modified = True

    def _charge(self, domid: int, nodes: int, size: int) -> None:
        if nodes:
            self.owned[domid] = self.owned.get(domid, 0) + nodes
        # What a transaction holds is its caller's, whoever is to own the nodes. Removals give
        # nothing back before the end.
        if size > 0:
            self._memory += size
            self.caller.domain.memory += size

    def queue_watch(self, path: str, exact: bool) -> None:
        """Fire watches for `path` at commit; a whole-subtree event outdoes an exact one."""
        seen = self.accessed[path]
        seen.exact = exact and (seen.exact or not seen.fire)
        seen.fire = True

    def discard(self) -> None:
        """End the transaction without effect."""
        if self.caller.transactions.pop(self.number, None) is self:
            self.caller.domain.transactions -= 1
            self.caller.domain.memory -= self._memory

    def _conflict(self) -> str | None:
        """A node that has changed since it was first touched; None if there is none."""
        for path, seen in self.accessed.items():
            node = self._tree.get(path)
            if (NO_GENERATION if node is None else node.generation) != seen.generation:
                return path
        return None

    def _orphans(self, domains: dict[int, Domain]) -> bool:
        """Whether a node would belong to a domain that has gone meanwhile."""
        return any(count > 0 and domid not in domains for domid, count in self.owned.items())

    def doomed(self, domains: dict[int, Domain]) -> bool:
        """Whether a commit now would be refused for good."""
        return self.failed or self._orphans(domains) or self._conflict() is not None

    def commit(self, domains: dict[int, Domain]) -> list[tuple[str, Accessed]]:
        """End the transaction and put its changes into the tree; returns what to fire watches for.

        Raises XenStoreError: ENOMEM if an earlier request in it failed half way or a node's owner
        is gone, ENOSPC for the node quota, EAGAIN if a node it touched has changed since; nothing
        is changed then.
        """
        self.discard()
        if self.failed:
            raise XenStoreError(XEN_ENOMEM)
        if self._orphans(domains):
            raise XenStoreError(XEN_ENOMEM)
        if self.created and not self.caller.privileged:
            for domid, count in self.owned.items():
                domain = domains.get(domid)
                if domid != DOM0 and domain and domain.nodes + count >= domain.quota.nodes:
                    raise XenStoreError(XEN_ENOSPC)
        conflict = self._conflict()
        if conflict is not None:
            raise XenStoreError(XEN_EAGAIN, conflict)
        tree = self._tree
        events = []
        for path, seen in self.accessed.items():
            if not seen.modified:
                continue
            if seen.node is not None:
                tree.put(path, seen.node)
            elif seen.generation != NO_GENERATION:
                tree.remove(path)
            if seen.fire:
                events.append((path, seen))
        return events
