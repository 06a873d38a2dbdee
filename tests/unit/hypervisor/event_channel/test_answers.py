"""Proves that event channels answer as real Xen 4.17 did, question by question, in its order.

Each check names the recorded question (evtchn.*, upcall.*, fifo.*, reset.*, sched.poll.*). What
the recording's guest did between two questions is reconstructed from their names. Cannot see the
delivery of an upcall to a running vCPU, nor what SCHEDOP_poll does around the check of a port.
"""

from __future__ import annotations

import pytest

from hvmlite.abi import event_channel as abi

SELF = 0x7FF0
OPS_ASKED = (0, 3, 4, 7, 9, 10, 13, 14)


class Recording:
    """Collects answers by name, so that one assertion shows all that differ."""

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}

    def __setitem__(self, name: str, answer: object) -> None:
        self.answers[name] = str(answer)

    def check(self, expected: str) -> None:
        wanted = dict(line.split(maxsplit=1) for line in expected.strip().splitlines())
        assert self.answers == {name.strip(): answer.strip() for name, answer in wanted.items()}


@pytest.fixture
def guest(domain):
    """The domain as the toolstack leaves it: store and console ports connected to domain 0."""
    store = domain.evtchn.alloc_for_backend(lambda: None)
    console = domain.evtchn.alloc_for_backend(lambda: None)
    assert (store.port, console.port) == (1, 2)
    assert store.local_port
    assert console.local_port
    return domain


def test_initial_and_binding(guest):
    q = Recording()
    for port in range(4):
        q[f"evtchn.initial.{port}"] = guest.status(port)

    rc, first = guest.op("alloc_unbound", dom=SELF, remote_dom=0)
    q["evtchn.alloc.self_dom0"] = rc
    q["evtchn.alloc.first_port"] = first.port
    rc, second = guest.op("alloc_unbound", dom=SELF, remote_dom=SELF)
    q["evtchn.alloc.self_self"] = rc
    q["evtchn.alloc.second_minus_first"] = second.port - first.port
    q["evtchn.status.unbound_self"] = guest.status(second.port)
    q["evtchn.alloc.owndomid"] = guest.rc("alloc_unbound", dom=guest.domid, remote_dom=0)
    q["evtchn.alloc.dom4444"] = guest.rc("alloc_unbound", dom=4444, remote_dom=0)
    q["evtchn.alloc.remote4444"] = guest.rc("alloc_unbound", dom=SELF, remote_dom=4444)
    q["evtchn.alloc.remote_io"] = guest.rc("alloc_unbound", dom=SELF, remote_dom=0x7FF1)
    q["evtchn.alloc.remote_ffff"] = guest.rc("alloc_unbound", dom=SELF, remote_dom=0xFFFF)

    b = guest.new_port("alloc_unbound", dom=SELF, remote_dom=SELF)
    rc, bound = guest.op("bind_interdomain", remote_dom=SELF, remote_port=b)
    c = bound.local_port
    q["evtchn.inter.loop"] = rc
    q["evtchn.inter.port_minus_b"] = c - b
    q["evtchn.status.inter_c"] = guest.status(c)
    q["evtchn.status.inter_b"] = guest.status(b)
    guest.set_mask(c, True)
    # The recording shows a selector and an upcall left over from before the first question.
    guest.vcpus[0].selector = guest.vcpus[0].upcall_pending = 1
    q["evtchn.inter.bits_local"] = guest.bits(c)
    for name, dom, port in [
        ("badport", SELF, 4000),
        ("port0", SELF, 0),
        ("dom0_port0", 0, 0),
        ("dom0_port1", 0, 1),
        ("unbound_for_dom0", SELF, first.port),
    ]:
        q[f"evtchn.inter.{name}"] = guest.rc("bind_interdomain", remote_dom=dom, remote_port=port)

    q["evtchn.unmask.pending"] = guest.rc("unmask", port=c)
    guest.clear(c)
    q["evtchn.send.unmasked"] = guest.rc("send", port=b)
    q["evtchn.send.unmasked.bits"] = guest.bits(c)
    q["evtchn.send.selbit"] = "nonzero" if guest.vcpus[0].selector else "zero"
    guest.set_pending(c, False)
    guest.vcpus[0].upcall_pending = 0
    # The selector is set already: the guest has not looked yet, no second upcall.
    q["evtchn.send.pending_sel_cleared"] = guest.rc("send", port=b)
    q["evtchn.send.sel_already.bits"] = guest.bits(c)
    guest.clear(c)
    guest.set_mask(b, True)
    guest.rc("send", port=c)
    q["evtchn.send.reverse.bits"] = guest.bits(b)
    q["evtchn.unmask.port0"] = guest.rc("unmask", port=0)
    q["evtchn.send.port0"] = guest.rc("send", port=0)
    q["evtchn.send.null"] = guest.call(abi.EVTCHNOP_send, 0)
    q.check(
        """
        evtchn.initial.0 0 status=0 vcpu=0
        evtchn.initial.1 0 status=2 vcpu=0 dom=0 port=nonzero
        evtchn.initial.2 0 status=2 vcpu=0 dom=0 port=nonzero
        evtchn.initial.3 0 status=0 vcpu=0
        evtchn.alloc.self_dom0 0
        evtchn.alloc.first_port 3
        evtchn.alloc.self_self 0
        evtchn.alloc.second_minus_first 1
        evtchn.status.unbound_self 0 status=1 vcpu=0 dom=own
        evtchn.alloc.owndomid 0
        evtchn.alloc.dom4444 -3
        evtchn.alloc.remote4444 0
        evtchn.alloc.remote_io 0
        evtchn.alloc.remote_ffff 0
        evtchn.inter.loop 0
        evtchn.inter.port_minus_b 1
        evtchn.status.inter_c 0 status=2 vcpu=0 dom=own port=nonzero
        evtchn.status.inter_b 0 status=2 vcpu=0 dom=own port=nonzero
        evtchn.inter.bits_local pend=1 mask=1 sel=1 up=1
        evtchn.inter.badport -22
        evtchn.inter.port0 -22
        evtchn.inter.dom0_port0 -22
        evtchn.inter.dom0_port1 -22
        evtchn.inter.unbound_for_dom0 -22
        evtchn.unmask.pending 0
        evtchn.send.unmasked 0
        evtchn.send.unmasked.bits pend=1 mask=0 sel=1 up=1
        evtchn.send.selbit nonzero
        evtchn.send.pending_sel_cleared 0
        evtchn.send.sel_already.bits pend=1 mask=0 sel=1 up=0
        evtchn.send.reverse.bits pend=1 mask=1 sel=0 up=0
        evtchn.unmask.port0 0
        evtchn.send.port0 -22
        evtchn.send.null -14
        """
    )


def test_vcpus_ipis_and_virqs(guest):
    q = Recording()
    _b, c = guest.loop()
    closed = guest.new_port("bind_ipi", vcpu=0)
    guest.rc("close", port=closed)
    guest.rc("bind_vcpu", port=c, vcpu=1)
    q["evtchn.vcpu.inter.status"] = guest.status(c)
    q["evtchn.vcpu.badvcpu"] = guest.rc("bind_vcpu", port=c, vcpu=2)
    q["evtchn.vcpu.hugevcpu"] = guest.rc("bind_vcpu", port=c, vcpu=0xFFFFFFFF)
    q["evtchn.vcpu.closed"] = guest.rc("bind_vcpu", port=closed, vcpu=0)
    q["evtchn.vcpu.bad"] = guest.rc("bind_vcpu", port=4000, vcpu=0)

    ipi = guest.new_port("bind_ipi", vcpu=0)
    guest.clear(c, 0)
    guest.clear(c, 1)
    q["evtchn.ipi.send"] = guest.rc("send", port=ipi)
    q["evtchn.ipi.bits"] = guest.bits(ipi)
    q["evtchn.ipi.bind_vcpu"] = guest.rc("bind_vcpu", port=ipi, vcpu=1)
    ipi1 = guest.new_port("bind_ipi", vcpu=1)
    q["evtchn.status.ipi1"] = guest.status(ipi1)
    q["evtchn.ipi.vcpu1.send"] = guest.rc("send", port=ipi1)
    q["evtchn.ipi.vcpu1.bits"] = (
        f"pend={guest.pending(ipi1)} sel0={guest.vcpus[0].selector}"
        f" up0={guest.vcpus[0].upcall_pending} sel1={guest.vcpus[1].selector}"
        f" up1={guest.vcpus[1].upcall_pending}"
    )
    q["evtchn.ipi.vcpu_max"] = guest.rc("bind_ipi", vcpu=2)

    rc, timer = guest.op("bind_virq", virq=0, vcpu=0)
    q["evtchn.virq.timer"] = rc
    q["evtchn.status.virq"] = guest.status(timer.port)
    timer1 = guest.new_port("bind_virq", virq=0, vcpu=1)
    q["evtchn.status.virq1"] = guest.status(timer1)
    q["evtchn.virq.send"] = guest.rc("send", port=timer.port)
    q["evtchn.virq.timer.bind_vcpu"] = guest.rc("bind_vcpu", port=timer.port, vcpu=1)
    debug = guest.new_port("bind_virq", virq=1, vcpu=0)
    q["evtchn.virq.debug.bind_vcpu"] = guest.rc("bind_vcpu", port=debug, vcpu=1)
    assert guest.rc("bind_virq", virq=1, vcpu=0) == -17
    guest.rc("close", port=debug)
    for virq, questions in {
        1: "vcpu0 vcpu1",
        3: "bind_vcpu1",
        5: "bind_vcpu1",
        6: "vcpu0 bind_vcpu1 vcpu1",
        7: "vcpu0 vcpu1",
        8: "bind_vcpu1",
        10: "bind_vcpu1",
        12: "vcpu0 vcpu1",
        13: "vcpu0 bind_vcpu1 vcpu1",
        14: "vcpu0 vcpu1",
        15: "vcpu0 bind_vcpu1 vcpu1",
        16: "bind_vcpu1",
        18: "vcpu0 bind_vcpu1 vcpu1",
        19: "vcpu0 vcpu1",
        20: "vcpu0 bind_vcpu1 vcpu1",
        21: "vcpu0 vcpu1",
        23: "bind_vcpu1",
    }.items():
        rc0, on0 = guest.op("bind_virq", virq=virq, vcpu=0)
        answers = {
            "vcpu0": rc0,
            "bind_vcpu1": guest.rc("bind_vcpu", port=on0.port, vcpu=1),
            "vcpu1": guest.rc("bind_virq", virq=virq, vcpu=1),
        }
        for question in questions.split():
            q[f"evtchn.virq.{virq}.{question}"] = answers[question]
    for pirq in (1, 16, 0):
        q[f"evtchn.pirq.{pirq}"] = guest.rc("bind_pirq", pirq=pirq)
    q.check(
        """
        evtchn.vcpu.inter.status 0 status=2 vcpu=1 dom=own port=nonzero
        evtchn.vcpu.badvcpu -2
        evtchn.vcpu.hugevcpu -2
        evtchn.vcpu.closed -22
        evtchn.vcpu.bad -22
        evtchn.ipi.send 0
        evtchn.ipi.bits pend=1 mask=1 sel=0 up=0
        evtchn.ipi.bind_vcpu -22
        evtchn.status.ipi1 0 status=5 vcpu=1
        evtchn.ipi.vcpu1.send 0
        evtchn.ipi.vcpu1.bits pend=1 sel0=0 up0=0 sel1=0 up1=0
        evtchn.ipi.vcpu_max -2
        evtchn.virq.timer 0
        evtchn.status.virq 0 status=4 vcpu=0 virq=0
        evtchn.status.virq1 0 status=4 vcpu=1 virq=0
        evtchn.virq.send -22
        evtchn.virq.timer.bind_vcpu -22
        evtchn.virq.debug.bind_vcpu -22
        evtchn.virq.1.vcpu0 0
        evtchn.virq.1.vcpu1 0
        evtchn.virq.3.bind_vcpu1 0
        evtchn.virq.5.bind_vcpu1 0
        evtchn.virq.6.vcpu0 0
        evtchn.virq.6.bind_vcpu1 0
        evtchn.virq.6.vcpu1 -22
        evtchn.virq.7.vcpu0 0
        evtchn.virq.7.vcpu1 0
        evtchn.virq.8.bind_vcpu1 0
        evtchn.virq.10.bind_vcpu1 0
        evtchn.virq.12.vcpu0 0
        evtchn.virq.12.vcpu1 -22
        evtchn.virq.13.vcpu0 0
        evtchn.virq.13.bind_vcpu1 -22
        evtchn.virq.13.vcpu1 0
        evtchn.virq.14.vcpu0 0
        evtchn.virq.14.vcpu1 -22
        evtchn.virq.15.vcpu0 0
        evtchn.virq.15.bind_vcpu1 0
        evtchn.virq.15.vcpu1 -22
        evtchn.virq.16.bind_vcpu1 0
        evtchn.virq.18.vcpu0 0
        evtchn.virq.18.bind_vcpu1 0
        evtchn.virq.18.vcpu1 -22
        evtchn.virq.19.vcpu0 0
        evtchn.virq.19.vcpu1 -22
        evtchn.virq.20.vcpu0 0
        evtchn.virq.20.bind_vcpu1 0
        evtchn.virq.20.vcpu1 -22
        evtchn.virq.21.vcpu0 0
        evtchn.virq.21.vcpu1 -22
        evtchn.virq.23.bind_vcpu1 0
        evtchn.pirq.1 0
        evtchn.pirq.16 0
        evtchn.pirq.0 0
        """
    )


def test_closing_limits_and_upcalls(guest):
    q = Recording()
    a = guest.new_port("alloc_unbound", dom=SELF, remote_dom=0)
    b, c = guest.loop()
    timer = guest.new_port("bind_virq", virq=0, vcpu=0)
    q["evtchn.close.a"] = guest.rc("close", port=a)
    q["evtchn.status.closed"] = guest.status(a)
    q["evtchn.close.bad"] = guest.rc("close", port=4000)
    q["evtchn.close.null"] = guest.call(abi.EVTCHNOP_close, 0)
    q["evtchn.close.inter_c"] = guest.rc("close", port=c)
    q["evtchn.status.peer_closed"] = guest.status(b)
    ipi = guest.new_port("bind_ipi", vcpu=0)
    guest.set_mask(ipi, False)
    guest.rc("send", port=ipi)
    q["evtchn.close.pending"] = guest.rc("close", port=ipi)
    q["evtchn.close.pending.bits"] = guest.bits(ipi)
    freed = [guest.new_port("bind_ipi", vcpu=0) for _ in range(4)]
    for port in (freed[2], freed[0], freed[3]):
        guest.rc("close", port=port)
    again = [guest.new_port("bind_ipi", vcpu=0) for _ in range(3)]
    lowest_first = again == [freed[0], freed[2], freed[3]]
    q["evtchn.reuse.order"] = "lowest-first" if lowest_first else again
    q["evtchn.status.dom4444"] = guest.status(1, dom=4444)
    q["evtchn.status.null"] = guest.call(abi.EVTCHNOP_status, 0)
    for op in OPS_ASKED:
        q[f"evtchn.op.{op}.null"] = guest.call(op, 0)
    q["evtchn.op.99"] = guest.call(99, guest.arg)
    last = 0
    while (result := guest.op("bind_ipi", vcpu=0))[0] == 0:
        last = result[1].port
    q["evtchn.limit.errno"] = result[0]
    q["evtchn.limit.last_port"] = last
    q["evtchn.limit.inter"] = guest.rc("bind_interdomain", remote_dom=SELF, remote_port=b)
    q["evtchn.2l.expand_array"] = guest.rc("expand_array", array_gfn=0x10)

    # The upcall's delivery is the vCPU's; that it is asked for once, and when, is shown here.
    vcpu = guest.vcpus[0]
    guest.clear(last)
    vcpu.upcalls = 0
    guest.set_mask(last, False)
    guest.rc("send", port=last)
    guest.rc("send", port=last)
    q["upcall.callback.once"] = vcpu.upcalls
    guest.clear(last)
    guest.set_mask(last, True)
    vcpu.upcalls = 0
    guest.rc("send", port=last)
    q["upcall.callback.masked"] = vcpu.upcalls
    guest.rc("unmask", port=last)
    q["upcall.callback.unmasked"] = vcpu.upcalls
    q["evtchn.close.timer"] = guest.rc("close", port=timer)
    q.check(
        """
        evtchn.close.a 0
        evtchn.status.closed 0 status=0 vcpu=0
        evtchn.close.bad -22
        evtchn.close.null -14
        evtchn.close.inter_c 0
        evtchn.status.peer_closed 0 status=1 vcpu=0 dom=own
        evtchn.close.pending 0
        evtchn.close.pending.bits pend=0 mask=0 sel=1 up=1
        evtchn.reuse.order lowest-first
        evtchn.status.dom4444 -3
        evtchn.status.null -14
        evtchn.op.0.null -14
        evtchn.op.3.null -14
        evtchn.op.4.null -14
        evtchn.op.7.null -14
        evtchn.op.9.null -14
        evtchn.op.10.null -14
        evtchn.op.13.null -14
        evtchn.op.14.null -14
        evtchn.op.99 -38
        evtchn.limit.errno -28
        evtchn.limit.last_port 1023
        evtchn.limit.inter -28
        evtchn.2l.expand_array -95
        upcall.callback.once 1
        upcall.callback.masked 0
        upcall.callback.unmasked 1
        evtchn.close.timer 0
        """
    )


def test_poll(guest):
    poll = guest.evtchn.poll
    port = guest.new_port("bind_ipi", vcpu=0)
    assert poll(4000) == -22  # sched.poll.badport
    assert poll(0) == -22  # sched.poll.port0
    assert poll(port) == 0
    guest.rc("send", port=port)
    assert poll(port) == 1  # masked, and pending all the same


class Words:
    """The FIFO words of a guest, in the words of the recorded answers."""

    def __init__(self, guest) -> None:
        self.guest = guest
        self.control = guest.add_page(0x100)
        self.array = [guest.add_page(0x110 + n) for n in range(3)]
        for page in self.array:
            page.write(0, (1 << abi.EVTCHN_FIFO_MASKED).to_bytes(4, "little") * 1024)

    def __call__(self, port: int) -> str:
        word = self.array[port // 1024].u32[port % 1024]
        flags = " ".join(
            f"{name}={word >> bit & 1}"
            for name, bit in [("P", 31), ("M", 30), ("L", 29), ("B", 28)]
        )
        link = word & abi.EVTCHN_FIFO_LINK_MASK
        return f"{flags} link={'set' if link else 0} up={self.guest.vcpus[0].upcall_pending}"

    def link(self, port: int) -> int:
        return self.array[0].u32[port] & abi.EVTCHN_FIFO_LINK_MASK

    def head(self, priority: int) -> int:
        return self.control.u32[2 + priority]

    @property
    def ready(self) -> str:
        return f"{self.control.u32[0]:08x}"

    def set_mask(self, port: int, on: bool) -> None:
        bit = 1 << abi.EVTCHN_FIFO_MASKED
        if on:
            self.array[0].fetch_or32(port, bit)
        else:
            self.array[0].fetch_and32(port, ~bit & 0xFFFFFFFF)

    def consume(self) -> list[int]:
        """Take all that is queued, highest priority first; returns the ports in order."""
        self.guest.vcpus[0].upcall_pending = 0
        ready, self.control.u32[0] = self.control.u32[0], 0
        order = []
        for priority in range(16):
            port = self.head(priority) if ready >> priority & 1 else 0
            while port and len(order) < 1024:
                word = self.array[0].u32[port]
                self.array[0].u32[port] = word & (1 << abi.EVTCHN_FIFO_MASKED)
                order.append(port)
                port = word & abi.EVTCHN_FIFO_LINK_MASK
        return order


def test_fifo(guest):
    q = Recording()
    words = Words(guest)
    pend, expander = guest.loop()[1], guest.new_port("bind_ipi", vcpu=0)
    q["fifo.init.off8192"] = guest.rc("init_control", control_gfn=0x100, offset=8192, vcpu=0)
    q["fifo.init.hole"] = guest.rc("init_control", control_gfn=0x999, offset=0, vcpu=0)
    q["fifo.init.null"] = guest.call(abi.EVTCHNOP_init_control, 0)
    assert guest.rc("init_control", control_gfn=0x100, offset=4, vcpu=0) == -22
    assert guest.rc("init_control", control_gfn=0x100, offset=0, vcpu=2) == -2
    assert not guest.evtchn.fifo
    q["fifo.before.2l"] = guest.bits(pend)
    rc, arg = guest.op("init_control", control_gfn=0x100, offset=0, vcpu=0)
    assert arg.link_bits == 17
    q["fifo.init.0"] = rc
    q["fifo.init.0.again"] = guest.rc("init_control", control_gfn=0x100, offset=0, vcpu=0)
    q["fifo.init.1"] = guest.rc("init_control", control_gfn=0x100, offset=256, vcpu=1)
    q["fifo.noarray.unmask"] = guest.rc("unmask", port=expander)
    q["fifo.noarray.alloc"] = guest.rc("bind_ipi", vcpu=0)
    q["fifo.expand.hole"] = guest.rc("expand_array", array_gfn=0x999)
    q["fifo.expand.null"] = guest.call(abi.EVTCHNOP_expand_array, 0)
    q["fifo.expand.0"] = guest.rc("expand_array", array_gfn=0x110)
    q["fifo.migrated.ready"] = words.ready
    assert guest.evtchn.is_pending(pend)
    q["fifo.expand.1"] = guest.rc("expand_array", array_gfn=0x111)
    q["fifo.expand.2"] = guest.rc("expand_array", array_gfn=0x112)
    guest.rc("close", port=pend)
    q["fifo.close.pending_masked"] = words(pend)

    # A closed port that is still linked is passed over.
    ports = [guest.new_port("bind_ipi", vcpu=0)]
    linked = guest.new_port("bind_ipi", vcpu=0)
    words.set_mask(linked, False)
    guest.rc("send", port=linked)
    guest.rc("close", port=linked)
    ports += [guest.new_port("bind_ipi", vcpu=0) for _ in range(6)]
    assert linked not in ports
    consecutive = ports == list(range(ports[0], ports[0] + 7))
    q["fifo.ports.consecutive"] = "yes" if consecutive else "no"
    assert words.consume() == [linked]
    q["fifo.fresh"] = words(ports[0])
    words.set_mask(ports[0], False)
    guest.rc("send", port=ports[0])
    q["fifo.send.default.word"] = words(ports[0])
    q["fifo.send.default.ready"] = words.ready
    q["fifo.send.default.head7"] = "yes" if words.head(7) == ports[0] else "no"
    q["fifo.send.again"] = guest.rc("send", port=ports[0])
    for port in ports[1:3]:
        words.set_mask(port, False)
        guest.rc("send", port=port)
    q["fifo.three.third"] = words(ports[2])
    q["fifo.three.order"] = "yes" if words.consume() == ports[:3] else "no"

    prio = dict(zip(ports[3:], (0, 3, 15, 3), strict=True))
    for port, name in zip(prio, ("0", "3", "15", "3.b"), strict=True):
        rc = guest.rc("set_priority", port=port, priority=prio[port])
        q[f"fifo.priority.set.{name}"] = rc
        words.set_mask(port, False)
    q["fifo.priority.16"] = guest.rc("set_priority", port=ports[0], priority=16)
    q["fifo.priority.max"] = guest.rc("set_priority", port=ports[0], priority=0xFFFFFFFF)
    q["fifo.priority.badport"] = guest.rc("set_priority", port=100000, priority=0)
    q["fifo.priority.port0"] = guest.rc("set_priority", port=0, priority=0)
    # Five ports on the way: the default priority twice, 0, 3 twice and 15.
    p0, p3, p15, p3b = ports[3:]
    for port in (ports[0], p15, p3, ports[1], p3b, p0):
        guest.rc("send", port=port)
    q["fifo.prio.head0"] = "yes" if words.head(0) == p0 else "no"
    q["fifo.prio.link0"] = "yes" if words.link(p0) == 0 else "no"
    q["fifo.prio.head3"] = "yes" if words.head(3) == p3 else "no"
    q["fifo.prio.link3"] = "yes" if words.link(p3) == p3b else "no"
    q["fifo.prio.head15"] = "yes" if words.head(15) == p15 else "no"
    q["fifo.prio.word.4"] = words(p3)
    q["fifo.prio.word.5"] = words(ports[0])
    assert words.consume() == [p0, p3, p3b, ports[0], ports[1], p15]

    words.set_mask(ports[0], True)
    q["fifo.masked.send"] = guest.rc("send", port=ports[0])
    q["fifo.masked.word"] = words(ports[0])
    q["fifo.masked.ready"] = words.ready
    guest.rc("unmask", port=ports[0])
    q["fifo.unmasked.ready"] = words.ready
    words.array[0].fetch_and32(ports[0], ~(1 << 31) & 0xFFFFFFFF)
    guest.vcpus[0].upcall_pending = 0
    upcalls = guest.vcpus[0].upcalls
    q["fifo.linked.resend"] = guest.rc("send", port=ports[0])
    q["fifo.linked.resend.word"] = words(ports[0])
    assert guest.vcpus[0].upcalls == upcalls
    words.consume()
    guest.rc("send", port=ports[0])
    q["fifo.upcall"] = guest.vcpus[0].upcall_pending
    guest.rc("send", port=ports[1])
    q["fifo.upcall.once"] = guest.vcpus[0].upcalls - upcalls
    q["fifo.close.linked"] = guest.rc("close", port=ports[1])
    q["fifo.close.linked.word"] = words(ports[1])
    q["fifo.status.closed"] = guest.status(ports[1])
    while (rc := guest.rc("bind_ipi", vcpu=0)) == 0:
        pass
    q["fifo.limit.errno"] = rc
    q.check(
        """
        fifo.init.off8192 -22
        fifo.init.hole -22
        fifo.init.null -14
        fifo.before.2l pend=1 mask=1 sel=0 up=0
        fifo.init.0 0
        fifo.init.0.again -22
        fifo.init.1 0
        fifo.noarray.unmask 0
        fifo.noarray.alloc 0
        fifo.expand.hole -22
        fifo.expand.null -14
        fifo.expand.0 0
        fifo.migrated.ready 00000000
        fifo.expand.1 0
        fifo.expand.2 0
        fifo.close.pending_masked P=0 M=1 L=0 B=0 link=0 up=0
        fifo.ports.consecutive no
        fifo.fresh P=0 M=1 L=0 B=0 link=0 up=0
        fifo.send.default.word P=1 M=0 L=1 B=0 link=0 up=1
        fifo.send.default.ready 00000080
        fifo.send.default.head7 yes
        fifo.send.again 0
        fifo.three.third P=1 M=0 L=1 B=0 link=0 up=1
        fifo.three.order yes
        fifo.priority.set.0 0
        fifo.priority.set.3 0
        fifo.priority.set.15 0
        fifo.priority.set.3.b 0
        fifo.priority.16 -22
        fifo.priority.max -22
        fifo.priority.badport -22
        fifo.priority.port0 -13
        fifo.prio.head0 yes
        fifo.prio.link0 yes
        fifo.prio.head3 yes
        fifo.prio.link3 yes
        fifo.prio.head15 yes
        fifo.prio.word.4 P=1 M=0 L=1 B=0 link=set up=1
        fifo.prio.word.5 P=1 M=0 L=1 B=0 link=set up=1
        fifo.masked.send 0
        fifo.masked.word P=1 M=1 L=0 B=0 link=0 up=0
        fifo.masked.ready 00000000
        fifo.unmasked.ready 00000080
        fifo.linked.resend 0
        fifo.linked.resend.word P=1 M=0 L=1 B=0 link=0 up=0
        fifo.upcall 1
        fifo.upcall.once 1
        fifo.close.linked 0
        fifo.close.linked.word P=0 M=0 L=1 B=0 link=0 up=1
        fifo.status.closed 0 status=0 vcpu=0
        fifo.limit.errno -28
        """
    )


def test_reset(guest):
    q = Recording()
    words = Words(guest)
    assert guest.rc("init_control", control_gfn=0x100, offset=0, vcpu=0) == 0
    assert guest.rc("expand_array", array_gfn=0x110) == 0
    q["reset.dom0"] = guest.rc("reset", dom=0)
    q["reset.null"] = guest.call(abi.EVTCHNOP_reset, 0)
    assert guest.rc("reset", dom=4444) == -3
    q["reset.self"] = guest.rc("reset", dom=SELF)
    q["reset.store.status"] = guest.status(1)
    rc, arg = guest.op("alloc_unbound", dom=SELF, remote_dom=SELF)
    q["reset.rebind.console"] = rc
    q["reset.rebind.port"] = arg.port
    other = guest.new_port("bind_interdomain", remote_dom=SELF, remote_port=arg.port)
    guest.clear(other)
    guest.set_mask(other, False)
    before = words.array[0].read(0, 4096), words.control.read(0, 4096)
    q["reset.2l.send"] = guest.rc("send", port=arg.port)
    q["reset.2l.bits"] = guest.bits(other)
    assert before == (words.array[0].read(0, 4096), words.control.read(0, 4096))
    q.check(
        """
        reset.dom0 -1
        reset.null -14
        reset.self 0
        reset.store.status 0 status=0 vcpu=0
        reset.rebind.console 0
        reset.rebind.port 1
        reset.2l.send 0
        reset.2l.bits pend=1 mask=0 sel=1 up=1
        """
    )
