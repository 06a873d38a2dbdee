"""Proves for the FIFO ABI, against a model of its queues, that events come once and in order.

A simulated guest unlinks events one by one as Linux's events_fifo.c does, while others are raised,
masked, moved between vCPUs and priorities, closed and bound anew; after each step the words in
guest memory must be exactly the model's queues. One thread: for races see test_races.py.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.abi.event_channel import (
    EVTCHN_FIFO_BUSY,
    EVTCHN_FIFO_LINK_MASK,
    EVTCHN_FIFO_LINKED,
    EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_PENDING,
    EVTCHN_FIFO_PRIORITY_DEFAULT,
    evtchn_fifo_control_block,
)

PENDING, MASKED = 1 << EVTCHN_FIFO_PENDING, 1 << EVTCHN_FIFO_MASKED
LINKED, BUSY = 1 << EVTCHN_FIFO_LINKED, 1 << EVTCHN_FIFO_BUSY
PORTS = 6
OFFSETS = (0, 4096 - evtchn_fifo_control_block.sizeof())


class Port:
    """What the model knows of one port of the guest."""

    def __init__(self, number: int, vcpu: int) -> None:
        self.number = number
        self.vcpu = vcpu
        self.priority = EVTCHN_FIFO_PRIORITY_DEFAULT
        self.sent = False


class Guest:
    def __init__(self, domain) -> None:
        self.domain = domain
        self.channels = domain.evtchn
        self.control = [domain.add_page(0x100), domain.add_page(0x101)]
        self.array = domain.add_page(0x110)
        self.array.write(0, MASKED.to_bytes(4, "little") * 1024)
        for v, offset in enumerate(OFFSETS):
            rc = domain.rc("init_control", control_gfn=0x100 + v, offset=offset, vcpu=v)
            assert rc == 0
        assert domain.rc("expand_array", array_gfn=0x110) == 0
        # The model: which ports are in which queue, in order; flags are read from the words.
        self.queues: dict[tuple[int, int], list[int]] = {}
        self.ports: list[Port] = []
        for n in range(PORTS):
            self._bind(n % 2)
        # The guest's own state: heads it has yet to follow, ready bits it has yet to look at.
        self.heads = [[0] * 16, [0] * 16]
        self.ready = [0, 0]
        self.told = [0, 0]
        self.events = 0

    def _bind(self, vcpu: int) -> None:
        taken = {port.number for port in self.ports} | {0} | self.linked()
        number = self.channels.bind_ipi(vcpu)
        assert number == min(set(range(1, 64)) - taken)
        self.ports.append(Port(number, vcpu))
        self.unmask(len(self.ports) - 1)

    def linked(self) -> set[int]:
        return {number for queue in self.queues.values() for number in queue}

    def _word(self, field: str, v: int, index: int = 0) -> int:
        return (OFFSETS[v] + evtchn_fifo_control_block.offsetof(field)) // 4 + index

    # -- what can happen

    def _link(self, port: Port) -> None:
        if not self.array.u32[port.number] & MASKED and port.number not in self.linked():
            self.queues.setdefault((port.vcpu, port.priority), []).append(port.number)

    def raise_(self, n: int) -> None:
        port = self.ports[n]
        port.sent = True
        self._link(port)
        assert self.channels.send(port.number) == 0
        assert self.channels.is_pending(port.number)

    def mask(self, n: int) -> None:
        self.array.fetch_or32(self.ports[n].number, MASKED)

    def unmask(self, n: int) -> None:
        port = self.ports[n]
        if self.array.u32[port.number] & PENDING:
            self.array.fetch_and32(port.number, ~MASKED & 0xFFFFFFFF)
            self._link(port)
            self.array.fetch_or32(port.number, MASKED)
        assert self.domain.rc("unmask", port=port.number) == 0

    def move(self, n: int) -> None:
        # Refused for an IPI; MovableGuest has ports that can.
        port = self.ports[n]
        if self.domain.rc("bind_vcpu", port=port.number, vcpu=1 - port.vcpu) == 0:
            port.vcpu = 1 - port.vcpu

    def priority(self, n: int, priority: int) -> None:
        port = self.ports[n]
        port.priority = priority
        assert self.domain.rc("set_priority", port=port.number, priority=priority) == 0

    def rebind(self, n: int) -> None:
        port = self.ports.pop(n)
        assert self.domain.rc("close", port=port.number) == 0
        assert not self.array.u32[port.number] & PENDING
        self._bind(port.vcpu)

    def step(self, v: int) -> None:
        """Begin to handle events if told to, or handle the next one."""
        vcpu, control = self.domain.vcpus[v], self.control[v]
        ready_word = self._word("ready", v)
        if not self.ready[v]:
            if vcpu.upcalls == self.told[v]:
                return
            self.told[v] = vcpu.upcalls
            vcpu.upcall_pending = 0
        ready = self.ready[v] | control.exchange32(ready_word, 0)
        if ready:
            priority = (ready & -ready).bit_length() - 1
            number = self.heads[v][priority] or control.u32[self._word("head", v, priority)]
            waiting = [queue for (on, _), queue in sorted(self.queues.items()) if on == v and queue]
            assert number == waiting[0].pop(0), "not the first of the highest priority"
            word = self.array.fetch_and32(number, ~(LINKED | EVTCHN_FIFO_LINK_MASK) & 0xFFFFFFFF)
            self.heads[v][priority] = word & EVTCHN_FIFO_LINK_MASK
            if not self.heads[v][priority]:
                ready &= ~(1 << priority)
            if word & PENDING and not word & MASKED:
                self._handle(number)
        self.ready[v] = ready

    def _handle(self, number: int) -> None:
        self.array.fetch_and32(number, ~PENDING & 0xFFFFFFFF)
        (port,) = [port for port in self.ports if port.number == number]
        assert port.sent, f"port {number} was never raised"
        port.sent = False
        self.events += 1

    # -- what must hold

    def check(self) -> None:
        linked = self.linked()
        for number in range(1, 64):
            word = self.array.u32[number]
            assert bool(word & LINKED) == (number in linked)
            assert not word & BUSY
        for (v, priority), queue in self.queues.items():
            number = self.heads[v][priority]
            if queue and not number:
                number = self.control[v].u32[self._word("head", v, priority)]
            walked = []
            while number and len(walked) <= len(queue):
                walked.append(number)
                number = self.array.u32[number] & EVTCHN_FIFO_LINK_MASK
            assert walked == queue
            ready = self.control[v].u32[self._word("ready", v)] | self.ready[v]
            assert bool(ready >> priority & 1) == bool(queue)

    def finish(self) -> None:
        for n in range(PORTS):
            self.unmask(n)
        for v in (0, 1):
            for _ in range(3 * PORTS):
                self.step(v)
        self.check()
        assert not self.linked()
        assert not any(port.sent for port in self.ports)


PORT = st.integers(0, PORTS - 1)
ACTIONS = st.one_of(
    st.tuples(st.just("raise_"), PORT),
    st.tuples(st.just("raise_"), PORT),
    st.tuples(st.just("step"), st.integers(0, 1)),
    st.tuples(st.just("step"), st.integers(0, 1)),
    st.tuples(st.sampled_from(["mask", "unmask", "move", "rebind"]), PORT),
    st.tuples(st.just("priority"), PORT, st.sampled_from([0, 3, 7, 15])),
)


class MovableGuest(Guest):
    """The same with interdomain ports, which can change their vCPU."""

    def _bind(self, vcpu: int) -> None:
        taken = {port.number for port in self.ports} | {0} | self.linked()
        number = self.channels.alloc_unbound(0)
        assert number == min(set(range(1, 64)) - taken)
        backend = self.channels.bind_backend(number, lambda: None)
        port = Port(number, vcpu)
        port.backend = backend
        self.ports.append(port)
        self.channels.bind_vcpu(number, vcpu)
        self.unmask(len(self.ports) - 1)

    def raise_(self, n: int) -> None:
        port = self.ports[n]
        port.sent = True
        self._link(port)
        port.backend.notify()
        assert self.channels.is_pending(port.number)


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from([Guest, MovableGuest]), actions=st.lists(ACTIONS, min_size=20, max_size=80)
)
def check_against_model(worlds, kind, actions):
    guest = kind(worlds().new_domain())
    for name, *arguments in actions:
        getattr(guest, name)(*arguments)
        guest.check()
    guest.finish()


def test_queues_are_those_of_the_model(worlds):
    check_against_model(worlds)


def test_a_raised_priority_overtakes_and_a_lowered_one_waits(worlds):
    guest = MovableGuest(worlds().new_domain(vcpus=2))
    for n in range(0, PORTS, 2):
        guest.raise_(n)
    guest.priority(1, 0)
    guest.move(1)
    guest.raise_(1)
    guest.priority(0, 15)
    guest.raise_(0)
    order = []
    guest._handle = order.append
    for _ in range(PORTS):
        guest.step(0)
    # Port 0 was linked before its priority fell: it keeps its place.
    assert order == [guest.ports[n].number for n in (1, 0, 2, 4)]


def test_a_former_tail_that_moved_is_not_linked_to(worlds):
    guest = MovableGuest(worlds().new_domain())
    guest.raise_(0)
    guest.step(0)
    guest.priority(0, 3)
    guest.raise_(0)
    guest.check()
    guest.raise_(2)
    guest.check()
    guest.finish()
    assert guest.events == 3
