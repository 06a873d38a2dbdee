"""VCPUOP_*: the answers recorded from real Xen 4.17 (vcpu.*, timer.*), timers, areas, vcpu_info.

Time is a clock that the test moves.  Cannot see a vCPU run: what VCPUOP_initialise loads is
compared with what the context says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hvmlite.abi import vcpu as abi
from hvmlite.abi import xen
from hvmlite.abi.layout import Abi

VCPU_OP = xen.Hypercall.vcpu_op
SET_TIMER = xen.Hypercall.set_timer_op
UNMAPPED = 0x800
MS = 1_000_000
NULL = {
    (0, 0): -14, (3, 0): 1, (4, 1): -14, (5, 0): -14, (6, 0): -14, (6, 1): -14, (7, 1): 0,
    (8, 0): -14, (8, 1): -22, (9, 0): 0, (9, 1): -22, (10, 1): -14, (11, 0): 0, (12, 0): -22,
    (13, 1): -14, (14, 0): -38, (15, 1): -38, (16, 1): -38, (17, 0): -38, (99, 0): -38,
}  # fmt: skip
PENDING_OFFSET = xen.shared_info.offsetof("evtchn_pending")


def pending(guest: Any, port: int) -> bool:
    """Takes a port's pending bit (2-level), and the flags that would hold back the next one."""
    page = guest.domain.shared_info
    byte, bit = PENDING_OFFSET + port // 8, 1 << port % 8
    was = bool(page.u8[byte] & bit)
    page.u8[byte] &= ~bit & 0xFF
    page.u8[:16] = bytes(16)
    return was


@pytest.mark.parametrize("layout", Abi)
def test_null_pointers_and_missing_vcpus(setup: Callable[..., Any], layout: Abi) -> None:
    guest = setup(abi=layout)
    assert {key: guest.call(VCPU_OP, *key, 0) for key in NULL} == NULL
    assert {guest.call(VCPU_OP, op, vcpu, 0) for op in range(20) for vcpu in (2, 9, 99)} == {-2}
    assert guest.call(VCPU_OP, 11, 0, 1) == -22
    assert guest.vcpu().nmi_pending
    # Both are 32-bit numbers: upper halves do not count.
    if layout is Abi.X86_64:
        assert guest.call(VCPU_OP, 1 << 32 | 3, 1 << 32, 0) == 1


# ---- up and down


def test_up_and_down(setup: Callable[..., Any]) -> None:
    guest = setup()
    second = guest.vcpu(1)
    assert guest.call(VCPU_OP, abi.VCPUOP_up, 1) == -22
    second.initialised = True
    assert guest.call(VCPU_OP, abi.VCPUOP_up, 1) == 0
    assert guest.call(VCPU_OP, abi.VCPUOP_is_up, 1) == 1
    assert guest.call(VCPU_OP, abi.VCPUOP_up, 1) == 0
    assert guest.call(VCPU_OP, abi.VCPUOP_down, 1) == 0
    assert guest.call(VCPU_OP, abi.VCPUOP_down, 1) == 0
    assert guest.call(VCPU_OP, abi.VCPUOP_is_up, 1) == 0
    assert guest.domain.shutdown_code == -1
    assert guest.call(VCPU_OP, abi.VCPUOP_down, 0) == 0
    assert guest.domain.shutdown_code == 0


def test_a_vcpu_taken_down_while_it_waits_goes_on_waiting(setup: Callable[..., Any]) -> None:
    guest = setup()
    second = guest.vcpu(1)
    second.initialised = True
    second.bring_up()
    second.running = False
    second.block()
    assert guest.call(VCPU_OP, abi.VCPUOP_down, 1) == 0
    assert guest.call(VCPU_OP, abi.VCPUOP_up, 1) == 0
    assert second.blocked
    assert not second.running
    assert guest.call(VCPU_OP, abi.VCPUOP_down, 1) == 0
    guest.domain.evtchn.send(guest.domain.evtchn.bind_ipi(1))
    assert second.runstate.state == abi.RUNSTATE_offline
    assert not second.running
    assert guest.call(VCPU_OP, abi.VCPUOP_up, 1) == 0
    assert second.running


# ---- timers


@pytest.fixture
def timed(setup: Callable[..., Any]) -> tuple[Any, int]:
    guest = setup()
    return guest, guest.domain.evtchn.bind_virq(xen.VIRQ_TIMER, 0)


def singleshot(guest: Any, deadline: int, flags: int = 0) -> int:
    at = guest.place(abi.vcpu_set_singleshot_timer(deadline & (1 << 64) - 1, flags))
    result: int = guest.call(VCPU_OP, abi.VCPUOP_set_singleshot_timer, 0, at)
    return result


def test_singleshot(timed: tuple[Any, int]) -> None:
    guest, port = timed
    deadline = guest.clock.now() + MS
    for flags in (0, abi.VCPU_SSHOTTMR_future):
        assert singleshot(guest, deadline, flags) == 0
        guest.pass_time(MS - 1)
        assert not pending(guest, port)
        guest.pass_time(1)
        assert pending(guest, port)
        guest.pass_time(10 * MS)
        assert not pending(guest, port)
        deadline = guest.clock.now() + MS


def test_singleshot_in_the_past_fires_at_once(timed: tuple[Any, int]) -> None:
    guest, port = timed
    for deadline in (0, 1, guest.clock.now(), -1, -(1 << 63)):
        for flags in (0, abi.VCPU_SSHOTTMR_future):
            assert singleshot(guest, guest.clock.now() + MS) == 0
            assert singleshot(guest, deadline, flags) == 0
            assert pending(guest, port)
            guest.pass_time(2 * MS)
            assert not pending(guest, port)


def test_singleshot_can_be_stopped(timed: tuple[Any, int]) -> None:
    guest, port = timed
    assert singleshot(guest, (1 << 63) - 1) == 0
    assert singleshot(guest, guest.clock.now() + MS) == 0
    assert guest.call(VCPU_OP, abi.VCPUOP_stop_singleshot_timer, 0, 0) == 0
    guest.pass_time(2 * MS)
    assert not pending(guest, port)


@pytest.mark.parametrize("layout", Abi)
def test_set_timer_op(setup: Callable[..., Any], layout: Abi) -> None:
    guest = setup(abi=layout)
    port = guest.domain.evtchn.bind_virq(xen.VIRQ_TIMER, 0)
    vcpu = guest.vcpu()

    def ask(deadline: int) -> None:
        deadline &= (1 << 64) - 1
        args = (deadline,) if layout is Abi.X86_64 else (deadline & 0xFFFF_FFFF, deadline >> 32)
        assert guest.call(SET_TIMER, *args) == 0

    now = guest.clock.now()
    ask(now + MS)
    assert vcpu.singleshot is not None
    assert vcpu.singleshot.deadline == now + MS
    ask(0)
    assert vcpu.singleshot is None
    ask(now - 5)
    assert vcpu.singleshot is None
    assert guest.domain.evtchn.is_pending(port)
    # What looks like a mistake comes in a tenth of a second: negative, or 13 days ahead.
    for odd in (-1, now + (1 << 50)):
        ask(odd)
        assert vcpu.singleshot is not None
        assert vcpu.singleshot.deadline == now + 100 * MS
    ask(now + (1 << 50) - 1)
    assert vcpu.singleshot is not None
    assert vcpu.singleshot.deadline == now + (1 << 50) - 1


def test_periodic(timed: tuple[Any, int]) -> None:
    guest, port = timed

    def ask(period: int) -> int:
        at = guest.place(abi.vcpu_set_periodic_timer(period))
        result: int = guest.call(VCPU_OP, abi.VCPUOP_set_periodic_timer, 0, at)
        return result

    assert [ask(n) for n in (0, MS // 2, MS - 1, 1 << 62, (1 << 64) - 1)] == [-22] * 5
    assert ask(MS) == 0
    # The last tick ever was long ago: one is due.
    assert pending(guest, port)
    for _ in range(3):
        guest.pass_time(MS - 1)
        assert not pending(guest, port)
        guest.pass_time(1)
        assert pending(guest, port)
    assert guest.call(VCPU_OP, abi.VCPUOP_stop_periodic_timer, 0, 0) == 0
    guest.pass_time(5 * MS)
    assert not pending(guest, port)


def test_periodic_ticks_wait_while_the_vcpu_does(timed: tuple[Any, int]) -> None:
    guest, port = timed
    vcpu = guest.vcpu()
    vcpu.running = False
    vcpu.set_periodic(MS)
    pending(guest, port)
    vcpu.block()
    guest.pass_time(10 * MS)
    assert vcpu.blocked
    assert not pending(guest, port)
    vcpu.unblock()
    assert pending(guest, port)
    guest.pass_time(MS)
    assert pending(guest, port)


# ---- runstate


@pytest.mark.parametrize("layout", Abi)
def test_runstate_info(setup: Callable[..., Any], layout: Abi) -> None:
    guest = setup(abi=layout)
    guest.pass_time(5000)
    for vcpu, state in ((0, abi.RUNSTATE_running), (1, abi.RUNSTATE_offline)):
        at = guest.place(b"\xff" * abi.vcpu_runstate_info.sizeof(layout))
        assert guest.call(VCPU_OP, abi.VCPUOP_get_runstate_info, vcpu, at) == 0
        info = guest.get(at, abi.vcpu_runstate_info)
        assert info.state == state
        assert sum(info.time) == info.time[state] == 5000
        assert info.state_entry_time == guest.clock.now() - 5000
    assert guest.call(VCPU_OP, abi.VCPUOP_get_runstate_info, 0, UNMAPPED) == -14


@pytest.mark.parametrize("layout", Abi)
def test_runstate_area_by_linear_address(setup: Callable[..., Any], layout: Abi) -> None:
    guest = setup(abi=layout)
    vcpu = guest.vcpu()
    area = guest.place(bytes(48))

    def register(address: int, index: int = 0) -> int:
        at = guest.place(abi.vcpu_register_area_virt(address))
        result: int = guest.call(VCPU_OP, abi.VCPUOP_register_runstate_memory_area, index, at)
        return result

    guest.pass_time(1000)
    assert register(area) == 0
    info = guest.get(area, abi.vcpu_runstate_info)
    assert (info.state, sum(info.time)) == (abi.RUNSTATE_running, 1000)
    vcpu.block()
    info = guest.get(area, abi.vcpu_runstate_info)
    assert (info.state, info.time) == (abi.RUNSTATE_blocked, (1000, 0, 0, 0))
    guest.pass_time(500)
    vcpu.unblock()
    info = guest.get(area, abi.vcpu_runstate_info)
    assert (info.state, info.time) == (abi.RUNSTATE_running, (1000, 0, 500, 0))
    assert info.state_entry_time == guest.clock.now()
    # Nothing is refused, and what cannot be written is not.
    assert [register(address) for address in (UNMAPPED, area, 0)] == [0, 0, 0]
    guest.domain.memory.write(area, bytes(48))
    vcpu.running = False
    vcpu.block()
    assert guest.domain.memory.read(area, 48) == bytes(48)
    assert register(area, 1) == 0
    assert guest.get(area, abi.vcpu_runstate_info).state == abi.RUNSTATE_offline


def test_runstate_updates_announce_themselves_if_asked(
    setup: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = setup()
    area = guest.place(bytes(48))
    assert guest.call(xen.Hypercall.vm_assist, 0, 5) == 0
    at = guest.place(abi.vcpu_register_area_virt(area))
    assert guest.call(VCPU_OP, abi.VCPUOP_register_runstate_memory_area, 0, at) == 0
    seen = []
    memory = guest.domain.memory
    write = memory.write

    def spy(address: int, data: bytes) -> None:
        write(address, data)
        info = guest.get(area, abi.vcpu_runstate_info)
        seen.append((bool(info.state_entry_time & abi.XEN_RUNSTATE_UPDATE), info.state))

    monkeypatch.setattr(memory, "write", spy)
    guest.vcpu().block()
    assert seen == [(True, 0), (True, 2), (False, 2)]


@pytest.mark.parametrize("layout", Abi)
def test_areas_by_physical_address_since_4_18(setup: Callable[..., Any], layout: Abi) -> None:
    guest = setup(abi=layout, release=(4, 18))
    vcpu = guest.vcpu()
    size = abi.vcpu_runstate_info.sizeof(layout)

    def ask(address: int, op: int = abi.VCPUOP_register_runstate_phys_area) -> int:
        result: int = guest.call(VCPU_OP, op, 0, guest.place(abi.vcpu_register_area_phys(address)))
        return result

    page = 0x200000
    crossing = page + 4096 - size + (8 if layout is Abi.X86_64 else 4)
    assert [ask(crossing), ask(page + 2), ask(0xD000_0000)] == [-6, -6, -22]
    assert ask(page + 4) == (-6 if layout is Abi.X86_64 else 0)
    assert ask(page + 4096 - size) == 0
    assert guest.get(page + 4096 - size, abi.vcpu_runstate_info).state == abi.RUNSTATE_running
    vcpu.block()
    assert guest.get(page + 4096 - size, abi.vcpu_runstate_info).state == abi.RUNSTATE_blocked
    vcpu.unblock()
    # The page stays the domain's as long as it is in use, also if the guest gives it away.
    frame = guest.domain.physmap.lookup(page >> 12)[0]
    assert guest.guest.host.frames.references(frame) == 1
    assert ask((1 << 64) - 1) == 0
    assert guest.guest.host.frames.references(frame) == 0
    assert ask(page, abi.VCPUOP_register_vcpu_time_phys_area) == 0
    vcpu.running = False
    vcpu.update_time()
    record = guest.get(page, xen.vcpu_time_info)
    assert record.version
    assert not record.version & 1
    assert record.tsc_to_system_mul == guest.domain.calibration.mul
    assert guest.call(VCPU_OP, abi.VCPUOP_register_vcpu_time_phys_area, 0, UNMAPPED) == -14


def test_time_area_by_linear_address(setup: Callable[..., Any]) -> None:
    guest = setup()
    vcpu = guest.vcpu()
    area = guest.place(bytes(32))
    at = guest.place(abi.vcpu_register_area_virt(area))
    assert guest.call(VCPU_OP, abi.VCPUOP_register_vcpu_time_memory_area, 0, at) == 0
    vcpu.enter()
    record = guest.get(area, xen.vcpu_time_info)
    own = xen.vcpu_info.unpack(guest.domain.shared_info.read(0, 64)).time
    assert record.version
    assert not record.version & 1
    assert (record.tsc_timestamp, record.tsc_to_system_mul, record.tsc_shift) == (
        own.tsc_timestamp, own.tsc_to_system_mul, own.tsc_shift,
    )  # fmt: skip


# ---- vcpu_info


def register_info(guest: Any, gfn: int, offset: int, index: int = 0) -> int:
    at = guest.place(abi.vcpu_register_vcpu_info(gfn, offset))
    result: int = guest.call(VCPU_OP, abi.VCPUOP_register_vcpu_info, index, at)
    return result


def test_vcpu_info(setup: Callable[..., Any]) -> None:
    guest = setup()
    guest.domain.shared_info.u8[1] = 0x77
    assert register_info(guest, 0x200, 4096 - 56) == -6
    assert register_info(guest, 0x200, 4) == -6
    assert register_info(guest, 0x200, 1 << 31) == -6
    assert register_info(guest, 0xD0000, 0) == -22
    assert register_info(guest, (1 << 64) - 1, 0) == -22
    assert register_info(guest, 0x200, 4096 - 64) == 0
    assert register_info(guest, 0x200, 4096 - 64) == -22
    assert register_info(guest, 0x201, 0) == -22
    info = guest.get(0x200FC0, xen.vcpu_info)
    assert info.evtchn_upcall_mask == 0x77
    # What may have been lost on the way is looked for.
    assert info.evtchn_upcall_pending == 1
    assert info.evtchn_pending_sel == (1 << 64) - 1
    vcpu = guest.vcpu()
    vcpu.enter()
    assert guest.get(0x200FC0, xen.vcpu_info).time.tsc_to_system_mul == guest.domain.calibration.mul


def test_vcpu_info_of_others_only_while_they_are_down(setup: Callable[..., Any]) -> None:
    guest = setup()
    guest.vcpu(1).initialised = True
    guest.vcpu(1).bring_up()
    assert register_info(guest, 0x200, 0, 1) == -22
    guest.vcpu(1).running = False
    guest.vcpu(1).take_down()
    assert register_info(guest, 0x200, 0, 1) == 0


def test_vcpu_info_of_a_32_bit_guest_may_lie_on_any_word(setup: Callable[..., Any]) -> None:
    guest = setup(abi=Abi.X86_32)
    assert register_info(guest, 0x200, 2) == -6
    assert register_info(guest, 0x200, 4) == 0
    assert guest.get(0x200004, xen.vcpu_info).evtchn_pending_sel == 0xFFFF_FFFF


def test_vcpu_info_beyond_the_legacy_ones_starts_masked(setup: Callable[..., Any]) -> None:
    guest = setup(vcpus=34)
    assert register_info(guest, 0x200, 64, 33) == 0
    info = guest.get(0x200040, xen.vcpu_info)
    assert (info.evtchn_upcall_pending, info.evtchn_upcall_mask) == (1, 1)


def test_vcpu_info_on_the_shared_info_page(setup: Callable[..., Any]) -> None:
    guest = setup()
    from hvmlite.hypervisor.physmap import P2mType

    guest.domain.physmap.set(0x900, guest.domain.shared_info.frame, P2mType.XENHEAP)
    assert register_info(guest, 0x900, 2048) == 0
    guest.domain.physmap.clear(0x900)


def test_vcpu_info_since_4_18(setup: Callable[..., Any]) -> None:
    guest = setup(release=(4, 18))
    assert register_info(guest, 0x200, 4096) == -22
    assert register_info(guest, 0x200, 4096 - 56) == -6
    assert register_info(guest, 0x200, 4) == -6
    assert register_info(guest, 0xD0000, 0) == -22
    assert register_info(guest, 0x200, 8) == 0
    assert register_info(guest, 0x200, 8) == -16


def test_the_page_of_a_vcpu_info_is_kept(setup: Callable[..., Any]) -> None:
    guest = setup()
    assert register_info(guest, 0x200, 0) == 0
    pages = guest.domain.pages
    frame = guest.domain.physmap.lookup(0x200)[0]
    assert pages.free(0x200) == 0
    pages.settle()
    assert guest.guest.host.frames.references(frame) == 1
    assert pages.owns(frame)
