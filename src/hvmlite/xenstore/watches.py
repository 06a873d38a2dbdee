"""Watches: who asked to be told about which path, and which of them a change concerns.

Whether the watcher may know is core.py's question, delivery the caller's. Matching rules:
docs/misc/xenstore.txt of Xen (depth: from 4.22 on).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hvmlite.xenstore.connection import Connection
    from hvmlite.xenstore.domains import Caller, Domain


class Match(Enum):
    """How an event finds its watches."""

    SUBTREE = 0
    """Watches on the path and on all its parents: the path was written."""
    EXACT = 1
    """Watches on the path itself: it went away with a parent."""
    NODEPTH = 2
    """As EXACT, but only watches without a depth: the plain special events."""
    DEPTH = 3
    """Watches on the path, or above it with a depth: special events that name a domain."""


class Request:
    """A guest's request, from its start until its reply and all events it caused are delivered.

    As long as it is not, it counts against the domain's quota of outstanding requests.
    """

    __slots__ = ("connection", "events", "replied")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.events = 0
        self.replied = False

    def reply_delivered(self) -> None:
        """The reply has been carried away."""
        self.replied = True
        if not self.events:
            self.connection.request_done()

    def event_delivered(self) -> None:
        """One of the events has been carried away, or dropped with its connection."""
        self.events -= 1
        if self.replied and not self.events:
            self.connection.request_done()


class Watch:
    """One watch; `depth` is the number of levels below `path` that it covers, None for all."""

    __slots__ = ("callback", "caller", "depth", "path", "prefix", "sequence", "token")

    def __init__(
        self,
        caller: Caller,
        path: str,
        token: bytes,
        relative: bool,
        depth: int | None,
        callback: Callable[[str], None] | None,
    ) -> None:
        self.caller = caller
        self.path = path
        self.token = token
        self.prefix = len(caller.domain.home) + 1 if relative else 0
        self.depth = depth
        self.callback = callback
        self.sequence = 0


class WatchTable:
    """All watches of the store, by path."""

    def __init__(self) -> None:
        self._by_path: dict[str, dict[Watch, None]] = {}
        self._next = 0

    def add(self, watch: Watch) -> None:
        """Enter a watch that its caller does not have yet."""
        watch.sequence = self._next
        self._next += 1
        self._by_path.setdefault(watch.path, {})[watch] = None
        watch.caller.watches[watch.path, watch.token] = watch
        _charge(watch.caller.domain, watch, 1)

    def remove(self, watch: Watch) -> None:
        """Forget a watch."""
        del watch.caller.watches[watch.path, watch.token]
        same_path = self._by_path[watch.path]
        del same_path[watch]
        if not same_path:
            del self._by_path[watch.path]
        _charge(watch.caller.domain, watch, -1)

    def matching(self, path: str, match: Match) -> list[Watch]:
        """The watches that an event at `path` concerns: by connection, oldest first."""
        by_path = self._by_path
        if not by_path:
            return []
        here = by_path.get(path)
        hits = list(here) if here else []
        if match is Match.NODEPTH:
            hits = [watch for watch in hits if watch.depth is None]
        elif match is not Match.EXACT:
            level = 1
            cut = path.rfind("/")
            while cut > 0:
                above = by_path.get(path[:cut])
                if above:
                    hits += _within(above, level, match)
                level += 1
                cut = path.rfind("/", 0, cut)
            if path != "/" and match is Match.SUBTREE:
                above = by_path.get("/")
                if above:
                    hits += _within(above, level, match)
        if len(hits) > 1:
            hits.sort(key=_order)
        return hits


def _within(watches: dict[Watch, None], level: int, match: Match) -> list[Watch]:
    if match is Match.DEPTH:
        return [watch for watch in watches if watch.depth is not None and watch.depth >= level]
    return [watch for watch in watches if watch.depth is None or watch.depth >= level]


def _order(watch: Watch) -> tuple[int, int]:
    return watch.caller.sequence, watch.sequence


def _charge(domain: Domain, watch: Watch, sign: int) -> None:
    domain.watches += sign
    domain.memory += sign * (len(watch.path) + len(watch.token))
