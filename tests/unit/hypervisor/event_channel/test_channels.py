"""Proves what the recorded answers do not cover: backends, other domains, limits, both layouts.

Also the hooks for vCPUs (polling, a moved vcpu_info) and that a domain leaves nothing behind.
Cannot see that the vCPU and the hypercall entry call these hooks.
"""

from __future__ import annotations

import pytest

from hvmlite.abi import event_channel as abi
from hvmlite.abi.layout import Abi
from hvmlite.abi.xen import VIRQ_CONSOLE, VIRQ_TIMER
from hvmlite.hypervisor.call import XenError
from hvmlite.hypervisor.event_channel import NR_PIRQS, OPS, PortState
from hvmlite.hypervisor.physmap import P2mType
from hvmlite.hypervisor.release import RELEASES

SELF = 0x7FF0


class Bell:
    """A backend's callback that counts."""

    def __init__(self) -> None:
        self.rung = 0

    def __call__(self) -> None:
        self.rung += 1


def errno_of(function, *arguments) -> int:
    with pytest.raises(XenError) as caught:
        function(*arguments)
    return caught.value.errno


def test_every_operation_of_the_header_is_there():
    public = {
        name: number for name, number in vars(abi).items() if name.startswith("EVTCHNOP_")
    } | {"EVTCHNOP_reset_cont": 14}
    assert {info.name: number for number, info in OPS.items()} == public
    assert all(info.since for info in OPS.values())


class TestBackend:
    def test_the_guest_sends_and_the_backend_hears_at_once(self, domain):
        bell = Bell()
        port = domain.evtchn.alloc_for_backend(bell)
        assert domain.rc("send", port=port.port) == 0
        assert bell.rung == 1

    def test_the_backend_notifies_and_the_guest_hears(self, domain):
        port = domain.evtchn.alloc_for_backend(Bell())
        domain.rc("unmask", port=port.port)
        port.notify()
        assert domain.bits(port.port) == "pend=1 mask=0 sel=1 up=1"
        assert domain.vcpus[0].upcalls == 1
        port.notify()
        assert domain.vcpus[0].upcalls == 1

    def test_a_port_that_the_guest_offers_is_bound(self, domain):
        number = domain.new_port("alloc_unbound", dom=SELF, remote_dom=0)
        assert domain.rc("send", port=number) == 0
        bell = Bell()
        port = domain.evtchn.bind_backend(number, bell)
        assert (port.port, bell.rung) == (number, 0)
        assert domain.status(number) == "0 status=2 vcpu=0 dom=0 port=nonzero"
        domain.rc("send", port=number)
        assert bell.rung == 1
        assert not domain.pending(number)

    def test_only_the_domain_it_is_offered_to_binds_it(self, domain):
        number = domain.new_port("alloc_unbound", dom=SELF, remote_dom=5)
        assert errno_of(domain.evtchn.bind_backend, number, Bell()) == 22
        assert errno_of(domain.evtchn.bind_backend, 0, Bell()) == 22
        assert errno_of(domain.evtchn.bind_backend, 5000, Bell()) == 22
        port = domain.evtchn.bind_backend(number, Bell(), 5)
        assert domain.status(number) == "0 status=2 vcpu=0 dom=5 port=nonzero"
        assert errno_of(domain.evtchn.bind_backend, number, Bell(), 5) == 22
        assert port.domid == 5

    def test_when_the_backend_closes_the_port_waits_for_another(self, domain):
        first = domain.evtchn.alloc_for_backend(Bell())
        number = first.port
        first.close()
        first.close()
        assert (first.bound, first.port) == (False, 0)
        first.notify()
        assert not domain.pending(number)
        assert domain.status(number) == "0 status=1 vcpu=0 dom=0"
        assert domain.rc("send", port=number) == 0
        bell = Bell()
        domain.evtchn.bind_backend(number, bell)
        domain.rc("send", port=number)
        assert bell.rung == 1

    def test_when_the_guest_closes_it_may_connect_again(self, domain):
        bell = Bell()
        port = domain.evtchn.alloc_for_backend(bell)
        number = port.port
        assert domain.rc("close", port=number) == 0
        assert not port.bound
        port.notify()
        assert not domain.pending(number)
        rc = domain.rc("bind_interdomain", remote_dom=0, remote_port=port.local_port + 1)
        assert rc == -22
        again = domain.new_port("bind_interdomain", remote_dom=0, remote_port=port.local_port)
        assert (port.port, domain.pending(again)) == (again, 1)
        rc = domain.rc("bind_interdomain", remote_dom=0, remote_port=port.local_port)
        assert rc == -22, "it is bound"
        domain.rc("send", port=again)
        assert bell.rung == 1

    def test_the_callback_can_be_replaced(self, domain):
        port = domain.evtchn.alloc_for_backend(Bell())
        bell = port.callback = Bell()
        domain.rc("send", port=port.port)
        assert (bell.rung, port.callback) == (1, bell)

    def test_a_callback_may_notify_and_close(self, domain):
        def answer():
            port.notify()
            port.close()

        port = domain.evtchn.alloc_for_backend(answer)
        number = port.port
        assert domain.rc("send", port=number) == 0
        assert domain.pending(number)
        assert domain.rc("send", port=number) == 0

    def test_local_ports_are_reused_lowest_first(self, domain):
        ports = [domain.evtchn.alloc_for_backend(Bell()) for _ in range(3)]
        assert [port.local_port for port in ports] == [1, 2, 3]
        ports[1].close()
        assert domain.evtchn.alloc_for_backend(Bell()).local_port == 2

    def test_a_driver_domain_of_this_process_is_known_by_its_ports(self, domain):
        port = domain.evtchn.alloc_for_backend(Bell(), 7)
        domain.rc("close", port=port.port)
        rc = domain.rc("bind_interdomain", remote_dom=0, remote_port=port.local_port)
        assert rc == -22
        assert domain.rc("bind_interdomain", remote_dom=8, remote_port=port.local_port) == -3
        domain.new_port("bind_interdomain", remote_dom=7, remote_port=port.local_port)
        assert port.bound


class TestOtherDomains:
    def test_events_pass_between_two_guests(self, worlds):
        world = worlds()
        a, b = world.new_domain(), world.new_domain(Abi.X86_32)
        offered = a.new_port("alloc_unbound", dom=SELF, remote_dom=b.domid)
        assert b.rc("bind_interdomain", remote_dom=a.domid, remote_port=offered + 1) == -22
        bound = b.new_port("bind_interdomain", remote_dom=a.domid, remote_port=offered)
        assert b.pending(bound)
        assert a.status(offered) == f"0 status=2 vcpu=0 dom={b.domid} port=nonzero"
        assert b.status(bound) == f"0 status=2 vcpu=0 dom={a.domid} port=nonzero"
        b.clear(bound)
        a.rc("send", port=offered)
        b.rc("send", port=bound)
        assert (a.pending(offered), b.pending(bound)) == (1, 1)
        b.rc("close", port=bound)
        assert a.status(offered) == f"0 status=1 vcpu=0 dom={b.domid}"
        assert a.rc("send", port=offered) == 0

    def test_a_third_domain_cannot_take_an_offered_port(self, worlds):
        world = worlds()
        a, b, c = (world.new_domain() for _ in range(3))
        offered = a.new_port("alloc_unbound", dom=SELF, remote_dom=b.domid)
        assert c.rc("bind_interdomain", remote_dom=a.domid, remote_port=offered) == -22

    def test_a_guest_names_no_domain_but_itself(self, worlds):
        world = worlds()
        a, b = world.new_domain(), world.new_domain()
        for dom, errno in [(b.domid, -1), (0, -1), (99, -3), (0x7FF4, -3)]:
            assert a.rc("alloc_unbound", dom=dom, remote_dom=0) == errno
            assert a.status(1, dom=dom) == str(errno)
            assert a.rc("reset", dom=dom) == errno

    def test_a_destroyed_domain_leaves_its_peers_unbound(self, worlds):
        world = worlds()
        a, b = world.new_domain(), world.new_domain()
        offered = a.new_port("alloc_unbound", dom=SELF, remote_dom=b.domid)
        b.new_port("bind_interdomain", remote_dom=a.domid, remote_port=offered)
        backend = b.evtchn.alloc_for_backend(Bell())
        b.evtchn.bind_virq(VIRQ_TIMER, 0)
        b.evtchn.destroy()
        assert a.status(offered) == f"0 status=1 vcpu=0 dom={b.domid}"
        assert not backend.bound
        assert list(b.evtchn.ports()) == []
        for pointless in (
            backend.notify,
            backend.close,
            lambda: b.evtchn.send_virq(b.vcpus[0], VIRQ_TIMER),
            b.evtchn.destroy,
        ):
            pointless()
        assert errno_of(b.evtchn.bind_ipi, 0) == 22
        assert a.rc("send", port=offered) == 0


class TestXenConsumer:
    @pytest.fixture
    def port(self, domain):
        self.bell = Bell()
        return domain.evtchn.alloc_unbound_xen_event_channel(1, 0, self.bell)

    def test_the_guest_sees_it_and_cannot_touch_it(self, domain, port):
        assert domain.status(port) == "0 status=1 vcpu=1 dom=0"
        for op, fields in [("send", {}), ("close", {}), ("bind_vcpu", {"vcpu": 0})]:
            assert domain.rc(op, port=port, **fields) == -22
        assert domain.rc("unmask", port=port) == 0
        assert domain.evtchn.poll(port) == -22
        assert domain.rc("reset", dom=SELF) == 0
        assert domain.status(port) == "0 status=1 vcpu=1 dom=0"

    def test_both_sides_are_heard(self, domain, port):
        emulator = Bell()
        domain.evtchn.notify_via_xen_event_channel(port)
        other = domain.evtchn.bind_backend(port, emulator)
        other.notify()
        domain.evtchn.notify_via_xen_event_channel(port)
        assert (self.bell.rung, emulator.rung) == (1, 1)
        assert domain.rc("send", port=port) == -22
        assert not domain.pending(port)

    def test_a_guest_on_the_other_side(self, worlds):
        world = worlds()
        a, b = world.new_domain(), world.new_domain()
        bell = Bell()
        port = a.evtchn.alloc_unbound_xen_event_channel(0, b.domid, bell)
        bound = b.new_port("bind_interdomain", remote_dom=a.domid, remote_port=port)
        b.clear(bound)
        b.rc("send", port=bound)
        a.evtchn.notify_via_xen_event_channel(port)
        assert (bell.rung, b.pending(bound)) == (1, 1)
        b.rc("close", port=bound)
        assert a.rc("send", port=port) == -22

    def test_xen_closes_it(self, domain, port):
        other = domain.evtchn.bind_backend(port, Bell())
        domain.evtchn.free_xen_event_channel(port)
        assert not other.bound
        ipi = domain.new_port("bind_ipi", vcpu=0)
        assert ipi == port
        domain.rc("send", port=ipi)
        assert (domain.pending(ipi), self.bell.rung) == (1, 0)
        assert errno_of(domain.evtchn.free_xen_event_channel, ipi) == 22


class TestLimits:
    def test_a_number_beyond_the_last_bucket_is_not_valid(self, domain):
        assert domain.status(63) == "0 status=0 vcpu=0"
        assert domain.status(64) == "-22"
        assert (domain.rc("unmask", port=63), domain.rc("unmask", port=64)) == (0, -22)
        for _ in range(64):
            domain.evtchn.bind_ipi(0)
        assert domain.status(64) == "0 status=5 vcpu=0"

    @pytest.mark.parametrize(("layout", "ports"), [(Abi.X86_64, 4096), (Abi.X86_32, 1024)])
    def test_the_2_level_abi_ends_the_numbers(self, worlds, layout, ports):
        domain = worlds().new_domain(layout)
        domain.max_evtchn_port = 100_000
        for number in range(1, ports):
            assert domain.evtchn.bind_ipi(0) == number
        assert errno_of(domain.evtchn.bind_ipi, 0) == 28
        assert domain.rc("send", port=ports - 1) == 0
        assert domain.bits(ports - 1) == "pend=1 mask=0 sel=1 up=1"
        domain.rc("close", port=7)
        assert domain.evtchn.bind_ipi(0) == 7
        assert errno_of(domain.evtchn.bind_ipi, 0) == 28

    def test_the_toolstacks_limit_may_fall_anywhere(self, domain):
        domain.max_evtchn_port = 5
        assert [domain.evtchn.bind_ipi(0) for _ in range(5)] == [1, 2, 3, 4, 5]
        assert errno_of(domain.evtchn.bind_ipi, 0) == 28
        domain.rc("close", port=2)
        domain.max_evtchn_port = 70
        assert domain.evtchn.bind_ipi(0) == 2
        assert domain.evtchn.bind_ipi(0) == 6

    def test_fifo_goes_beyond_the_first_array_page(self, domain):
        domain.max_evtchn_port = 131071
        control = domain.add_page(0x100)
        domain.evtchn.init_control(0, 0x100, 0)
        for number in range(1, 2051):
            assert domain.evtchn.bind_ipi(0) == number
        domain.add_page(0x110)
        domain.evtchn.expand_array(0x110)
        # Ports 1024 and up wait for their pages.
        for number in (1024, 2049):
            assert domain.rc("send", port=number) == 0
            assert not domain.evtchn.is_pending(number)
        second = domain.add_page(0x111)
        domain.evtchn.expand_array(0x111)
        assert second.u32[0] >> 28 == 0b1010
        assert control.u32[2 + 7] == 1024
        domain.rc("close", port=2049)
        third = domain.add_page(0x112)
        domain.evtchn.expand_array(0x112)
        assert third.u32[1] == 0, "closed while it waited"
        assert domain.evtchn.bind_ipi(0) == 2049
        domain.rc("send", port=2049)
        assert second.u32[0] & abi.EVTCHN_FIFO_LINK_MASK == 2049

    def test_the_event_array_has_128_pages(self, domain):
        domain.add_page(0x100)
        domain.evtchn.init_control(0, 0x100, 0)
        for gfn in range(0x1000, 0x1000 + 128):
            domain.add_page(gfn)
            domain.evtchn.expand_array(gfn)
        assert errno_of(domain.evtchn.expand_array, 0x1000) == 28

    def test_pirqs(self, domain):
        port = domain.new_port("bind_pirq", pirq=NR_PIRQS - 1)
        assert domain.status(port) == "0 status=3 vcpu=0"
        assert domain.rc("bind_pirq", pirq=NR_PIRQS) == -22
        assert domain.rc("bind_pirq", pirq=NR_PIRQS - 1) == -17
        assert domain.rc("bind_vcpu", port=port, vcpu=1) == 0
        assert domain.rc("send", port=port) == -22
        domain.rc("close", port=port)
        assert domain.new_port("bind_pirq", pirq=NR_PIRQS - 1) == port

    def test_virqs(self, domain):
        assert domain.rc("bind_virq", virq=24, vcpu=0) == -22
        assert domain.rc("bind_virq", virq=0xFFFFFFFF, vcpu=0) == -22
        assert domain.rc("bind_virq", virq=VIRQ_TIMER, vcpu=2) == -2
        port = domain.new_port("bind_virq", virq=VIRQ_TIMER, vcpu=1)
        domain.rc("unmask", port=port)
        domain.evtchn.send_virq(domain.vcpus[0], VIRQ_TIMER)
        assert not domain.pending(port)
        domain.evtchn.send_virq(domain.vcpus[1], VIRQ_TIMER)
        assert domain.bits(port, vcpu=1) == "pend=1 mask=0 sel=1 up=1"
        domain.rc("close", port=port)
        domain.evtchn.send_virq(domain.vcpus[1], VIRQ_TIMER)
        assert not domain.pending(port)
        domain.new_port("bind_virq", virq=VIRQ_TIMER, vcpu=1)

    def test_a_global_virq_follows_its_vcpu_and_is_freed_wherever_it_is(self, domain):
        domain.evtchn.send_guest_global_virq(VIRQ_CONSOLE)
        port = domain.new_port("bind_virq", virq=VIRQ_CONSOLE, vcpu=0)
        domain.rc("unmask", port=port)
        domain.rc("bind_vcpu", port=port, vcpu=1)
        domain.evtchn.send_guest_global_virq(VIRQ_CONSOLE)
        assert domain.bits(port, vcpu=1) == "pend=1 mask=0 sel=1 up=1"
        assert domain.vcpus[0].upcalls == 0
        domain.rc("close", port=port)
        domain.new_port("bind_virq", virq=VIRQ_CONSOLE, vcpu=0)


class TestLayouts:
    def test_selectors_of_a_32_bit_guest_cover_32_ports(self, worlds):
        domain = worlds().new_domain(Abi.X86_32)
        while (port := domain.evtchn.bind_ipi(0)) < 70:
            pass
        domain.rc("send", port=port)
        assert domain.vcpus[0].selector == 1 << 2
        assert domain.shared_info.u8[2048 + 70 // 8] == 1 << 70 % 8

    def test_a_change_of_layout_takes_effect_for_bound_ports(self, domain):
        while (port := domain.evtchn.bind_ipi(0)) < 1500:
            domain.max_evtchn_port = 2000
        domain.abi = Abi.X86_32
        domain.evtchn.abi_changed()
        domain.shared_info.write(0, bytes(4096))
        assert domain.rc("send", port=70) == 0
        assert domain.bits(70) == "pend=1 mask=0 sel=1 up=1"
        before = domain.shared_info.read(0, 4096)
        # Out of the 32-bit guest's reach: no bit of another port or field is touched.
        assert domain.rc("send", port=port) == 0
        assert domain.rc("unmask", port=port) == 0
        assert not domain.evtchn.is_pending(port)
        assert domain.evtchn.is_masked(port)
        assert domain.rc("close", port=port) == 0
        assert domain.shared_info.read(0, 4096) == before

    def test_a_change_of_layout_does_not_disturb_fifo(self, domain):
        domain.add_page(0x100)
        array = domain.add_page(0x110)
        domain.evtchn.init_control(0, 0x100, 8)
        domain.evtchn.expand_array(0x110)
        port = domain.evtchn.bind_ipi(0)
        domain.abi = Abi.X86_32
        domain.evtchn.abi_changed()
        domain.rc("send", port=port)
        assert array.u32[port] >> 28 == 0b1010

    @pytest.mark.parametrize("layout", list(Abi))
    def test_status_keeps_the_bytes_it_has_no_use_for(self, worlds, layout):
        domain = worlds().new_domain(layout)
        domain.memory.write(domain.arg, abi.evtchn_status(dom=SELF, u=b"\xee" * 8).pack(layout))
        assert domain.call(abi.EVTCHNOP_status, domain.arg) == 0
        read = domain.memory.read(domain.arg, abi.evtchn_status.sizeof(layout))
        assert abi.evtchn_status.unpack(read, layout).u == b"\xee" * 8


class TestVcpuHooks:
    def test_a_vcpu_hears_once_until_it_looks(self, domain):
        ports = [domain.evtchn.bind_ipi(0) for _ in range(70)]
        vcpu = domain.vcpus[0]
        for port in (ports[0], ports[69]):
            domain.rc("unmask", port=port)
            domain.evtchn.send(port)
        assert (vcpu.selector, vcpu.upcalls) == (0b11, 1)
        domain.clear(ports[0])
        domain.evtchn.send(ports[0])
        assert (vcpu.selector, vcpu.upcalls) == (0b1, 2)

    @pytest.mark.parametrize("layout", list(Abi))
    def test_a_moved_vcpu_info_has_everything_pending(self, worlds, layout):
        domain = worlds().new_domain(layout)
        vcpu = domain.vcpus[1]
        vcpu.info_page, vcpu.info_offset = domain.add_page(0x200), 0x7C0
        domain.evtchn.vcpu_info_moved(vcpu)
        assert vcpu.selector == (1 << 8 * layout.word) - 1
        assert (vcpu.upcall_pending, vcpu.upcalls) == (1, 1)
        written = vcpu.info_page.read(0, 4096)
        assert not any(written[:0x7C0] + written[0x7C0 + 4 + 2 * layout.word :])
        port = domain.evtchn.bind_ipi(1)
        vcpu.selector = vcpu.upcall_pending = 0
        domain.evtchn.send(port)
        assert domain.bits(port, vcpu=1) == "pend=1 mask=0 sel=1 up=1"

    @pytest.mark.parametrize("fifo", [False, True])
    def test_pollers_hear_of_masked_events_once(self, domain, fifo):
        if fifo:
            domain.add_page(0x100)
            domain.add_page(0x110).write(0, (1 << abi.EVTCHN_FIFO_MASKED).to_bytes(4, "little") * 9)
            domain.evtchn.init_control(0, 0x100, 0)
            domain.evtchn.expand_array(0x110)
        a, b = domain.evtchn.bind_ipi(0), domain.evtchn.bind_ipi(0)
        poller, other = domain.vcpus
        poller.poll_ports = (b,)
        domain.evtchn.polling |= {poller, other}
        for port in (a, a, b, b, a):
            domain.evtchn.send(port)
        assert (poller.heard, other.heard) == ([a, b], [a, b])
        assert domain.evtchn.polling == {other}
        assert poller.upcalls == 0


class TestFifoSetUp:
    def test_the_guests_pages_are_held_until_reset(self, domain):
        world = domain.world
        control, array = domain.add_page(0x100), domain.add_page(0x110)
        domain.evtchn.init_control(0, 0x100, 0)
        domain.evtchn.init_control(1, 0x100, 512)
        domain.evtchn.expand_array(0x110)
        frames = world.frames
        assert [frames.references(page.frame) for page in (control, array)] == [2, 1]
        assert domain.rc("reset", dom=SELF) == 0
        assert [frames.references(page.frame) for page in (control, array)] == [0, 0]
        assert not domain.evtchn.fifo
        assert all(domain.evtchn.port(number).page is None for number in range(64))
        domain.evtchn.init_control(0, 0x100, 0)
        assert domain.evtchn.fifo

    @pytest.mark.parametrize("kind", [kind for kind in P2mType if kind is not P2mType.RAM_RW])
    def test_only_ram_of_the_guests_own_is_taken(self, domain, kind):
        domain.add_page(0x100)
        domain.physmap.types[0x100] = kind
        assert domain.rc("init_control", control_gfn=0x100, offset=0, vcpu=0) == -22
        assert not domain.evtchn.fifo

    @pytest.mark.parametrize("gfn", [0x999, 1 << 40, (1 << 52) + 0x100, (1 << 64) - 1])
    def test_no_frame_number_is_too_large_to_refuse(self, domain, gfn):
        domain.add_page(0x100)
        assert domain.rc("init_control", control_gfn=gfn, offset=0, vcpu=0) == -22
        domain.evtchn.init_control(0, 0x100, 0)
        assert domain.rc("expand_array", array_gfn=gfn) == -22

    @pytest.mark.parametrize(("offset", "rc"), [(4024, 0), (4028, -22), (4032, -22), (4, -22)])
    def test_a_control_block_lies_aligned_within_its_page(self, domain, offset, rc):
        domain.add_page(0x100)
        assert domain.rc("init_control", control_gfn=0x100, offset=offset, vcpu=0) == rc

    def test_events_for_a_vcpu_without_control_block_are_dropped(self, domain):
        domain.add_page(0x100)
        array = domain.add_page(0x110)
        domain.evtchn.init_control(0, 0x100, 0)
        domain.evtchn.expand_array(0x110)
        port = domain.evtchn.bind_ipi(1)
        assert domain.rc("send", port=port) == 0
        assert array.u32[port] == 0

    def test_what_was_pending_moves_to_fifo_and_only_that(self, domain):
        pending, idle = domain.evtchn.bind_ipi(0), domain.evtchn.bind_ipi(0)
        domain.rc("send", port=pending)
        control, array = domain.add_page(0x100), domain.add_page(0x110)
        domain.evtchn.init_control(0, 0x100, 0)
        domain.evtchn.expand_array(0x110)
        assert array.u32[pending] >> 28 == 0b1010
        assert control.u32[2 + 7] == pending
        assert array.u32[idle] == 0

    def test_set_priority_needs_fifo(self, domain):
        port = domain.evtchn.bind_ipi(0)
        assert domain.rc("set_priority", port=port, priority=3) == -38
        assert domain.rc("set_priority", port=4000, priority=3) == -22

    def test_a_continued_reset_has_nothing_to_continue(self, domain):
        domain.memory.write(domain.arg, abi.evtchn_reset(dom=SELF).pack())
        assert domain.call(14, domain.arg) == -16


def test_ports_show_what_is_bound(domain):
    channels = domain.evtchn
    backend = channels.alloc_for_backend(Bell())
    first, second = domain.loop()
    channels.bind_virq(VIRQ_TIMER, 1)
    channels.bind_pirq(3)
    channels.alloc_unbound(9)
    channels.alloc_unbound_xen_event_channel(0, 0, Bell())
    shown = {info.port: info for info in channels.ports()}
    assert list(shown) == [1, 2, 3, 4, 5, 6, 7]
    assert shown[1].state is PortState.INTERDOMAIN
    assert (shown[1].remote_domid, shown[1].remote_port) == (0, backend.local_port)
    assert (shown[first].remote_port, shown[second].pending) == (second, True)
    assert (shown[4].virq, shown[4].vcpu, shown[5].pirq) == (VIRQ_TIMER, 1, 3)
    assert (shown[6].remote_domid, shown[6].remote_port) == (9, None)
    assert (shown[7].xen_consumer, shown[7].masked) == (True, True)
    assert shown[1].detail == "sel=0"
    domain.add_page(0x100)
    channels.init_control(0, 0x100, 0)
    assert next(channels.ports()).detail == "no event array page"
    domain.add_page(0x110)
    channels.expand_array(0x110)
    channels.set_priority(second, 2)
    domain.rc("send", port=first)
    details = {info.port: info.detail for info in channels.ports()}
    assert details[second] == "priority=2 linked=1 busy=0 link=0"


@pytest.mark.parametrize("release", RELEASES)
def test_global_virqs_are_for_domain_0_from_4_21_on(domain, release):
    guest = domain
    guest.release = RELEASES[release]
    busy = -16 if release >= (4, 21) else 0
    answers = {virq: guest.rc("bind_virq", virq=virq, vcpu=0) for virq in range(24)}
    own = (0, 1, 7, 11, 13)
    assert answers == {virq: 0 if virq in own else busy for virq in range(24)}
    assert guest.rc("bind_virq", virq=3, vcpu=1) == -22
