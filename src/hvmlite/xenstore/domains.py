"""Who uses the store: the accounts of domains, their quotas, and what a caller is.

Quota names, values and error numbers are xenstored's (tools/xenstored of Xen).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from hvmlite.records import record

if TYPE_CHECKING:
    from hvmlite.xenstore.connection import Connection
    from hvmlite.xenstore.transactions import Transaction
    from hvmlite.xenstore.watches import Request, Watch

DOM0: Final = 0

PERM_SIZE: Final = 8
"""Bytes that one permission counts in the size of a node."""


UNLIMITED: Final = 1 << 62
"""Value of a quota that is switched off; 0 on the wire."""


@record
class Quota:
    """What one unprivileged domain may use. Domain 0 is exempt.

    nodes: nodes owned. watches, transactions: one more than the number is let through, as by
    xenstored. transaction_nodes: nodes touched in one transaction. outstanding: requests whose
    reply or watch events are not yet delivered. node_permissions: entries on a node. node_size,
    path_max, memory: bytes.
    """

    nodes: int = 1000
    watches: int = 128
    transactions: int = 10
    transaction_nodes: int = 1024
    outstanding: int = 20
    node_permissions: int = 5
    node_size: int = 2048
    path_max: int = 2048
    memory: int = 2560 * 1024


QUOTA_NAMES: Final = {
    "nodes": ("nodes", "nodes a domain may own"),
    "watches": ("watches", "watches a domain may have"),
    "transactions": ("transactions", "transactions a domain may have open"),
    "outstanding": ("outstanding", "requests of a domain not yet delivered"),
    "transaction-nodes": ("transaction_nodes", "nodes a transaction may touch"),
    "memory": ("memory", "bytes held for a domain"),
    "node-size": ("node_size", "bytes of a node"),
    "path-max": ("path_max", "bytes of a path"),
    "permissions": ("node_permissions", "permissions of a node"),
}
"""Name on the wire: (attribute of Quota, description)."""

QUOTA_ALIASES: Final = {"node-permissions": "permissions"}
"""Names from 4.18 on that differ from 4.17's."""


class Domain:
    """The account of one domain id.

    It exists from the first time the store hears of the domain until the domain is released;
    `generation` is the store's at that time, so that a permission older than the domain is
    known to mean an earlier domain of the same id.
    """

    __slots__ = (
        "connection",
        "domid",
        "features",
        "generation",
        "home",
        "introduced",
        "memory",
        "nodes",
        "outstanding",
        "port",
        "quota",
        "shutdown",
        "target",
        "transactions",
        "watches",
    )

    def __init__(self, domid: int, generation: int, quota: Quota, features: int) -> None:
        self.domid = domid
        self.generation = generation
        self.quota = quota
        self.features = features
        self.home = f"/local/domain/{domid}"
        self.introduced = False
        self.shutdown = False
        self.port = 0
        self.target: int | None = None
        self.connection: Connection | None = None
        self.nodes = 0
        self.watches = 0
        self.transactions = 0
        self.outstanding = 0
        self.memory = 0

    @property
    def stalled(self) -> bool:
        """Whether the domain must wait before its next request is served."""
        quota = self.quota
        return self.outstanding >= quota.outstanding or self.memory >= quota.memory


class Caller(ABC):
    """Someone who makes requests: a connection, or the Python side acting as domain 0."""

    def __init__(self, domain: Domain, sequence: int) -> None:
        self.domain = domain
        self.domid = domain.domid
        self.privileged = domain.domid == DOM0
        self.sequence = sequence
        self.request: Request | None = None
        self.watches: dict[tuple[str, bytes], Watch] = {}
        self.transactions: dict[int, Transaction] = {}

    @abstractmethod
    def send_event(self, watch: Watch, path: str, request: Request | None) -> None:
        """Deliver one watch event; `request` is the guest's request that caused it, if any."""
