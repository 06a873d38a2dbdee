"""Proves of Argo, against a model, that every message arrives whole, once and in order.

Three domains on one host send to each other at random, read, ask for space and end their rings,
while one of them may scribble over its indexes.  What a scribbler then receives is its own affair;
nobody else's may change.  Cannot see: anything that needs two of our accesses to interleave.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.hypervisor.argo import MAX_RINGS_PER_DOMAIN

from .argo_guest import ANY, HEADER, INDEXES, RING, STRIDE, ArgoGuest

GUESTS = 3
LENGTHS = (48, 64, 240, 4096 - INDEXES, 3 * 4096 - INDEXES, 2 * 4096)
EAGAIN, ENOENT, EEXIST, EMSGSIZE, ECONNREFUSED = -11, -2, -17, -90, -111


def slots(size: int) -> int:
    return HEADER + (size + 15) // 16 * 16


class ModelRing:
    """What a ring holds, without any of its bytes."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.messages: deque[tuple[int, bytes]] = deque()
        self.waiting: dict[int, int] = {}
        self.wild = False

    @property
    def free(self) -> int:
        return self.length - sum(slots(len(data)) for _, data in self.messages)

    @property
    def space(self) -> int:
        return max(0, self.free - 2 * HEADER)


class Model:
    """Three guests with one slot of memory for each partner, and what they should see."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.guests = [ArgoGuest(make(vcpus=1)) for _ in range(GUESTS)]
        self.rings: dict[tuple[int, int], ModelRing] = {}
        self.told = [False] * GUESTS
        self.serial = 0
        self.registered = [0] * GUESTS

    def partner(self, who: int) -> int:
        return ANY if who == GUESTS else self.guests[who].domid

    def target(self, reader: int, sender: int) -> ModelRing | None:
        """The ring that the sender reaches, by the rule of the most specific match."""
        return self.rings.get((reader, sender)) or self.rings.get((reader, GUESTS))

    def see(self) -> None:
        for guest, told in zip(self.guests, self.told, strict=True):
            assert guest.signalled() == told
        self.told = [False] * GUESTS

    # -- what can happen

    def register(self, reader: int, who: int, size: int) -> None:
        guest, length = self.guests[reader], LENGTHS[size % len(LENGTHS)]
        if self.registered[reader] == MAX_RINGS_PER_DOMAIN:
            return
        old = self.rings.get((reader, who))
        slot = who
        if old is None:
            guest.set_rx(0, slot)
            guest.set_tx(0, slot)
        result = guest.register(1, length, self.partner(who), slot=slot)
        if old is not None and old.length != length:
            assert result == EEXIST
            return
        assert result == 0
        self.registered[reader] += 1
        if old is None:
            self.rings[reader, who] = ModelRing(length)

    def unregister(self, reader: int, who: int, _: int) -> None:
        known = self.rings.pop((reader, who), None)
        result = self.guests[reader].unregister(1, self.partner(who))
        assert result == (0 if known else ENOENT)
        self.registered[reader] -= known is not None

    def send(self, sender: int, reader: int, size: int) -> None:
        reader %= GUESTS
        self.serial += 1
        data = bytes((self.serial + i) & 0xFF for i in range(size))
        guest, to = self.guests[sender], self.guests[reader].domid
        cut = self.serial % (size + 1)
        result = guest.send(to, 1, data[:cut], data[cut:], kind=self.serial)
        ring = self.target(reader, sender)
        if ring is None:
            assert result == ECONNREFUSED
        elif ring.length <= slots(size):
            assert result == EMSGSIZE
        elif ring.wild:
            # Whatever its indexes say: it gets it or it does not.
            assert result in (size, EAGAIN)
            self.told[reader] = result >= 0
            if result == EAGAIN:
                ring.waiting[sender] = max(ring.waiting.get(sender, 0), size)
        elif slots(size) >= ring.free:
            assert result == EAGAIN
            ring.waiting[sender] = max(ring.waiting.get(sender, 0), size)
        else:
            assert result == size
            ring.messages.append((self.serial, data))
            self.told[reader] = True

    def receive(self, reader: int, who: int, _: int) -> None:
        ring = self.rings.get((reader, who))
        if ring is None or ring.wild:
            return
        got = self.guests[reader].receive(ring.length, who)
        if not ring.messages:
            assert got is None
        else:
            assert got is not None
            assert got[2:] == ring.messages.popleft()

    def poke(self, reader: int, _: int, __: int) -> None:
        """The reader says that it has read."""
        assert self.guests[reader].notify()[0] == 0
        for (owner, _who), ring in self.rings.items():
            if owner != reader or ring.wild:
                continue
            for sender, size in list(ring.waiting.items()):
                if ring.space and ring.space >= size:
                    del ring.waiting[sender]
                    self.told[sender] = True
        if any(ring.wild for (owner, _who), ring in self.rings.items() if owner == reader):
            self.ignore_signals()

    def ask(self, sender: int, reader: int, size: int) -> None:
        reader %= GUESTS
        result, answers = self.guests[sender].notify((self.guests[reader].domid, 1, size))
        assert result == 0
        self.ignore_signals()
        # To ask is also to say that one has read.
        for (owner, _who), ring in self.rings.items():
            if owner == sender:
                ring.waiting = {
                    who: wanted
                    for who, wanted in ring.waiting.items()
                    if ring.wild or not (ring.space and ring.space >= wanted)
                }
        ring_ = self.target(reader, sender)
        if ring_ is None:
            assert answers == [(0, 0xFFFF_FFFF)]
        elif not ring_.wild:
            largest = ring_.length - 32
            flags = 1 | (2 if (reader, sender) not in self.rings else 0)
            flags |= 4 if not ring_.messages else 0
            if size > largest:
                flags |= 16
            elif ring_.space >= size:
                flags |= 8
                ring_.waiting.pop(sender, None)
            else:
                ring_.waiting[sender] = max(ring_.waiting.get(sender, 0), size)
            assert answers == [(flags, largest)]

    def scribble(self, reader: int, who: int, value: int) -> None:
        """The reader writes nonsense over its indexes; only the first guest does."""
        if reader == 0 and (reader, who) in self.rings:
            self.rings[reader, who].wild = True
            self.guests[reader].set_rx(value * 0x9E3779B1 & 0xFFFF_FFFF, who)
            self.guests[reader].set_tx(value * 0x85EBCA6B & 0xFFFF_FFFF, who)

    def ignore_signals(self) -> None:
        for guest in self.guests:
            guest.signalled()
        self.told = [False] * GUESTS

    def finish(self) -> None:
        for reader, who in list(self.rings):
            while (ring := self.rings[reader, who]).messages and not ring.wild:
                self.receive(reader, who, 0)
            self.unregister(reader, who, 0)
        frames = self.guests[0].guest.host.frames
        for guest in self.guests:
            for who in range(GUESTS + 1):
                entry = guest.guest.domain.physmap.lookup(RING + STRIDE * who)
                assert frames.references(entry[0]) == 0


NAMES = ("register", "unregister", *["send"] * 8, *["receive"] * 6, "poke", "poke", "ask")
SIZES = st.one_of(st.integers(0, 70), st.integers(0, 70), st.integers(0, 9000))


def actions(*names: str) -> Any:
    one = st.tuples(
        st.sampled_from(names), st.integers(0, GUESTS - 1), st.integers(0, GUESTS), SIZES
    )
    return st.lists(one, min_size=60, max_size=160)


def play(model: Model, steps: list[tuple[str, int, int, int]]) -> None:
    for reader in range(GUESTS):
        model.register(reader, GUESTS, reader)
    for name, first, second, size in steps:
        getattr(model, name)(first, second, size)
        model.see()
        for guest in model.guests:
            # Nothing that was handed over is needed any more.
            guest.guest._next = 0x100000
    model.finish()


@pytest.mark.parametrize("hostile", [False, True], ids=["honest", "hostile"])
def test_messages_arrive(hosts: Any, hostile: bool) -> None:
    names = (*NAMES, "scribble", "scribble") if hostile else NAMES

    @settings(max_examples=40, deadline=None)
    @given(actions(*names))
    def run(steps: list[tuple[str, int, int, int]]) -> None:
        with hosts() as make:
            play(Model(make), steps)

    run()
