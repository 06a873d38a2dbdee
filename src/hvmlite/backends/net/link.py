"""A switch between the interfaces of one host's domains: what shares a link's name shares it.

Frames go from page to page, unfinished ones as they are. Facts: IEEE 802.1D for learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from hvmlite.backends.net.endpoint import Endpoint
from hvmlite.backends.net.frame import Frame
from hvmlite.hypervisor.clock import Timer

if TYPE_CHECKING:
    from hvmlite.hypervisor.host import Host

MOST_ADDRESSES = 4096
"""Addresses that a switch remembers."""
PATIENCE_NS = 1_000_000_000
"""How long frames wait for an interface that takes nothing before they are lost instead."""
_EARNED_NS = PATIENCE_NS // 256
"""So much of the time that was waited for it each frame makes up for that it takes.  One that takes
a frame now and then would else hold up for ever what its senders have for others."""
_GROUP = 1
_switches: WeakKeyDictionary[Host, dict[str, Switch]] = WeakKeyDictionary()


class Switch:
    """One link: its ports, and who is where."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.ports: list[Port] = []
        self.where: dict[bytes, Port] = {}

    def learn(self, address: bytes, port: Port) -> None:
        """A frame with that source came from a port."""
        where = self.where
        if where.get(address) is port or address[0] & _GROUP:
            return
        if len(where) >= MOST_ADDRESSES and address not in where:
            # A guest may make addresses up: the oldest go, and are learned anew.
            del where[next(iter(where))]
        where[address] = port

    def forget(self, port: Port) -> None:
        """A port goes."""
        self.ports.remove(port)
        self.where = {address: at for address, at in self.where.items() if at is not port}


class Port(Endpoint):
    """An interface's place on a link, which is made when it has its first."""

    csum_blank = True
    gso = True

    def __init__(self, host: Host, name: str) -> None:
        super().__init__()
        links = _switches.setdefault(host, {})
        self._links, self._name = links, name
        self._switch = links.setdefault(name, Switch(host))
        self._switch.ports.append(self)
        self._waiting: set[Port] = set()
        """Ports whose frames for this one wait."""
        self._full_since = 0
        """Since when they wait; 0 if none do."""
        self._patience = PATIENCE_NS
        """How long they may."""
        self._timer: Timer | None = None
        self._closed = False

    def send(self, frames: Sequence[Frame]) -> int:
        """See `Endpoint.send`."""
        switch = self._switch
        count = 0
        while count < len(frames):
            head = frames[count].head(12)
            switch.learn(head[6:12], self)
            target = None if head[0] & _GROUP else switch.where.get(head[:6])
            if target is None:
                for port in list(switch.ports):
                    if port is not self:
                        # Nobody waits for those that do not listen.
                        port.receive(frames[count : count + 1])
                count += 1
                continue
            if target is self:
                count += 1
                continue
            end = count + 1
            # What goes to one place goes together.
            while end < len(frames) and frames[end].head(12) == head:
                end += 1
            taken = target.receive(frames[count:end])
            target._earn(taken)
            count += taken
            if count < end and not target._is_stalled(self):
                return count
            count = end
        return count

    def _earn(self, frames: int) -> None:
        if self._patience < PATIENCE_NS:
            self._patience = min(PATIENCE_NS, self._patience + frames * _EARNED_NS)

    def _is_stalled(self, sender: Port) -> bool:
        """There was no room for a frame of the sender's: does it wait, or is it lost?"""
        host = self._switch.host
        now = host.clock.now()
        if not self._full_since:
            self._full_since = now
        if now - self._full_since >= self._patience:
            self.resume()
            return True
        self._waiting.add(sender)
        if self._timer is None:
            self._timer = host.timers.at(self._full_since + self._patience, self._give_up)
        return False

    def _end_wait(self) -> None:
        if self._full_since:
            waited = self._switch.host.clock.now() - self._full_since
            self._patience = max(0, self._patience - waited)
            self._full_since = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        self.resume()

    def resume(self) -> None:
        """See `Endpoint.resume`."""
        self._end_wait()
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for port in waiting:
            port.has_room()

    def close(self) -> None:
        """See `Endpoint.close`."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        switch = self._switch
        switch.forget(self)
        for port in switch.ports:
            port._waiting.discard(self)
        self._wake()
        if not switch.ports:
            del self._links[self._name]
