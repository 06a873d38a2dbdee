"""Proves for the 2-level ABI, against a model, that no event is lost and none is made up.

A simulated guest handles events as Linux's events_2l.c does, only when its vCPU was told to, while
ports are masked, unmasked and moved at random. One thread: cannot see a guest that changes a word
between two of our own accesses (test_races.py does, for the FIFO ABI).
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.abi.layout import Abi
from hvmlite.abi.xen import VIRQ_CONSOLE, VIRQ_TIMER

NUMBERS = (3, 31, 33, 64, 130, 700)
"""Ports in different words, and under different selector bits."""


class Guest:
    def __init__(self, domain) -> None:
        self.domain = domain
        domain.mask_all()
        channels = domain.evtchn
        self.vcpus = domain.vcpus
        self.raisers = []
        self.where = []
        for n, number in enumerate(NUMBERS):
            self._fill(number)
            vcpu = self.vcpus[n % 2]
            kind = n % 4
            if kind == 0:
                backend = channels.alloc_for_backend(lambda: None)
                port, raiser, where = backend.port, backend.notify, 0
            elif kind == 1:
                port = channels.bind_ipi(vcpu.id)
                raiser, where = (lambda port=port: channels.send(port)), vcpu.id
            elif kind == 2:
                port = channels.bind_virq(VIRQ_CONSOLE + n, 0)
                raiser, where = (lambda n=n: channels.send_guest_global_virq(VIRQ_CONSOLE + n)), 0
            else:
                port = channels.bind_virq(VIRQ_TIMER, vcpu.id)
                raiser = lambda vcpu=vcpu: channels.send_virq(vcpu, VIRQ_TIMER)  # noqa: E731
                where = vcpu.id
            assert port == number
            self.raisers.append(raiser)
            self.where.append(where)
        self.sent = [False] * len(NUMBERS)
        self.told = [0, 0]
        self.events = 0

    def _fill(self, number: int) -> None:
        while self.domain.evtchn.bind_ipi(0) != number:
            pass
        self.domain.evtchn.close(number)

    def raise_(self, n: int) -> None:
        self.sent[n] = True
        self.raisers[n]()

    def mask(self, n: int) -> None:
        self.domain.set_mask(NUMBERS[n], True)

    def unmask(self, n: int) -> None:
        assert self.domain.rc("unmask", port=NUMBERS[n]) == 0

    def move(self, n: int) -> None:
        """As Linux does: masked while the port changes sides."""
        was_masked = self.domain.masked(NUMBERS[n])
        self.mask(n)
        if self.domain.rc("bind_vcpu", port=NUMBERS[n], vcpu=1 - self.where[n]) == 0:
            self.where[n] = 1 - self.where[n]
        if not was_masked:
            self.unmask(n)

    def upcall(self, v: int) -> None:
        vcpu = self.vcpus[v]
        if vcpu.upcalls == self.told[v]:
            return
        self.told[v] = vcpu.upcalls
        vcpu.upcall_pending = 0
        selector, vcpu.selector = vcpu.selector, 0
        bits = 8 * self.domain.abi.word
        for n, port in enumerate(NUMBERS):
            mine = selector >> (port // bits) & 1 and self.where[n] == v
            if mine and self.domain.pending(port) and not self.domain.masked(port):
                self.domain.set_pending(port, False)
                assert self.sent[n], f"port {port} was never raised"
                self.sent[n] = False
                self.events += 1

    def run(self, action: str, n: int) -> None:
        getattr(self, action)(n % 2 if action == "upcall" else n)

    def finish(self) -> None:
        for n in range(len(NUMBERS)):
            self.unmask(n)
        self.upcall(0)
        self.upcall(1)
        assert self.sent == [False] * len(NUMBERS)
        assert not any(self.domain.pending(port) for port in NUMBERS)


ACTIONS = st.tuples(
    st.sampled_from(["raise_", "raise_", "upcall", "upcall", "mask", "unmask", "move"]),
    st.integers(0, len(NUMBERS) - 1),
)


@pytest.mark.parametrize("layout", list(Abi))
def test_no_event_is_lost_or_made_up(worlds, layout):
    @settings(max_examples=100, deadline=None)
    @given(st.lists(ACTIONS, min_size=20, max_size=80))
    def run(actions):
        guest = Guest(worlds().new_domain(layout))
        for action, n in actions:
            guest.run(action, n)
        guest.finish()

    run()


def test_every_raised_event_arrives_once_when_nothing_is_masked(worlds):
    guest = Guest(worlds().new_domain())
    for n in range(len(NUMBERS)):
        guest.unmask(n)
    for n in range(len(NUMBERS)):
        guest.raise_(n)
        guest.raise_(n)
    guest.finish()
    assert guest.events == len(NUMBERS)
