"""SCHEDOP_*: the answers recorded from real Xen 4.17 (sched.*), waiting, shutting down, watchdogs.

Time is a clock that the test moves.  Cannot see a CPU wait, or how soon it wakes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hvmlite.abi import sched as abi
from hvmlite.abi import xen
from hvmlite.abi.layout import Abi
from hvmlite.abi.vcpu import RUNSTATE_blocked, RUNSTATE_running

SCHED_OP = xen.Hypercall.sched_op
UNMAPPED = 0x800
SECOND = 1_000_000_000
IF = 1 << 9


def poll(guest: Any, ports: list[int], timeout: int = 0, count: int | None = None) -> int:
    at = guest.place(b"".join(port.to_bytes(4, "little") for port in ports) or b"\0" * 4)
    count = len(ports) if count is None else count
    result: int = guest.call(
        SCHED_OP, abi.SCHEDOP_poll, guest.place(abi.sched_poll(at, count, timeout))
    )
    return result


def watchdog(guest: Any, number: int, timeout: int) -> int:
    at = guest.place(abi.sched_watchdog(number, timeout))
    result: int = guest.call(SCHED_OP, abi.SCHEDOP_watchdog, at)
    return result


def test_refusals(setup: Callable[..., Any]) -> None:
    guest = setup()
    assert guest.call(SCHED_OP, abi.SCHEDOP_yield, UNMAPPED) == 0
    for op in (2, 3, 4, 5, 6):
        assert guest.call(SCHED_OP, op, 0) == -14
    assert guest.call(SCHED_OP, abi.SCHEDOP_pin_override, 0) == -1
    for op in (8, 99, 0xFFFF_FFFF):
        assert guest.call(SCHED_OP, op, 0) == -38
    # The command is an int: the upper half does not count.
    assert guest.call(SCHED_OP, 1 << 32, 0) == 0


@pytest.mark.parametrize("layout", Abi)
def test_poll_refuses(setup: Callable[..., Any], layout: Abi) -> None:
    guest = setup(abi=layout)
    assert poll(guest, [0] * 129) == -22
    assert poll(guest, [0]) == -22
    assert poll(guest, [9999]) == -22
    at = guest.place(abi.sched_poll(UNMAPPED, 1, 0))
    assert guest.call(SCHED_OP, abi.SCHEDOP_poll, at) == -14
    at = guest.place(abi.sched_poll(UNMAPPED, 129, 0))
    assert guest.call(SCHED_OP, abi.SCHEDOP_poll, at) == -22
    assert not guest.vcpu().blocked


def mask_all(guest: Any) -> None:
    """Masked events reach a poll, and nothing else."""
    at = xen.shared_info.offsetof("evtchn_mask", guest.guest.abi)
    guest.domain.shared_info.u8[at : at + 64] = b"\xff" * 64


def test_poll_waits_for_its_port(setup: Callable[..., Any]) -> None:
    guest = setup()
    mask_all(guest)
    evtchn, vcpu = guest.domain.evtchn, guest.vcpu()
    one, two = evtchn.bind_ipi(0), evtchn.bind_ipi(0)
    assert poll(guest, [one]) == 0
    assert vcpu.blocked
    assert vcpu.runstate.state == RUNSTATE_blocked
    evtchn.send(two)
    assert vcpu.blocked
    evtchn.send(one)
    assert not vcpu.blocked
    assert vcpu.runstate.state == RUNSTATE_running
    # Both are pending by now: no wait, and what comes after in the list is not looked at.
    assert poll(guest, [one, 9999]) == 0
    assert not vcpu.blocked
    assert poll(guest, [9999, one]) == -22


def test_a_poll_of_several_ports_or_none_ends_with_any_port(setup: Callable[..., Any]) -> None:
    guest = setup()
    evtchn, vcpu = guest.domain.evtchn, guest.vcpu()
    one, two = evtchn.bind_ipi(0), evtchn.bind_ipi(0)
    for ports in ([one, one], []):
        mask_all(guest)
        assert poll(guest, ports) == 0
        assert vcpu.blocked
        evtchn.send(two)
        assert not vcpu.blocked
        guest.domain.shared_info.u8[:] = bytes(4096)


def test_poll_timeouts(setup: Callable[..., Any]) -> None:
    guest = setup()
    vcpu, now = guest.vcpu(), guest.clock.now()
    port = guest.domain.evtchn.bind_ipi(0)
    for past in (1, now, (1 << 64) - 1):
        assert poll(guest, [port], past) == 0
        assert not vcpu.blocked
    assert poll(guest, [], now + 1000) == 0
    guest.pass_time(999)
    assert vcpu.blocked
    guest.pass_time(1)
    assert not vcpu.blocked
    # One that ended otherwise leaves no timer behind.
    assert poll(guest, [], guest.clock.now() + 1000) == 0
    guest.domain.evtchn.send(port)
    assert not vcpu.blocked
    vcpu.running = False
    vcpu.block()
    guest.pass_time(5000)
    assert vcpu.blocked


@pytest.mark.parametrize("op", [abi.SCHEDOP_block, abi.SCHEDOP_poll])
def test_a_pending_event_ends_a_wait_if_the_guest_can_take_it(
    setup: Callable[..., Any], op: int
) -> None:
    guest = setup()
    vcpu = guest.vcpu()
    guest.domain.callback_vector = 0xF3
    guest.domain.shared_info.u8[0] = 1
    at = guest.place(abi.sched_poll())
    vcpu.engine.set("rflags", IF)
    assert guest.call(SCHED_OP, op, at) == 0
    assert not vcpu.blocked
    vcpu.engine.set("rflags", 0)
    assert guest.call(SCHED_OP, op, at) == 0
    assert vcpu.blocked
    vcpu.raise_nmi()
    assert not vcpu.blocked


def test_block_enables_event_delivery(setup: Callable[..., Any]) -> None:
    guest = setup()
    guest.domain.shared_info.u8[1] = 1
    assert guest.call(SCHED_OP, abi.SCHEDOP_block) == 0
    assert guest.domain.shared_info.u8[1] == 0
    assert guest.vcpu().blocked


@pytest.mark.parametrize(
    ("reason", "code"), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (77, 77), (0x105, 5)]
)
def test_shutdown(setup: Callable[..., Any], reason: int, code: int) -> None:
    guest = setup()
    at = guest.place(abi.sched_shutdown(reason))
    assert guest.call(SCHED_OP, abi.SCHEDOP_shutdown, at) == 0
    assert guest.domain.shutdown_code == code
    assert guest.domain.stopped
    crash = guest.domain.crash_info
    assert (crash is not None) == (code == abi.SHUTDOWN_crash)
    assert crash is None or "SHUTDOWN_crash" in crash.reason


def test_a_code_announced_beforehand_goes_first(setup: Callable[..., Any]) -> None:
    guest = setup()
    for reason in (4, 1):
        at = guest.place(abi.sched_shutdown(reason))
        assert guest.call(SCHED_OP, abi.SCHEDOP_shutdown_code, at) == 0
    assert not guest.domain.stopped
    guest.domain.shutdown(abi.SHUTDOWN_poweroff)
    assert guest.domain.shutdown_code == 4


def test_remote_shutdown(setup: Callable[..., Any]) -> None:
    guest, other = setup(), setup()
    own = guest.domain.domid
    for domid, answer in ((0x7FF0, -3), (0, -1), (own, -1), (other.domain.domid, -1), (4444, -3)):
        at = guest.place(abi.sched_remote_shutdown(domid, 0))
        assert guest.call(SCHED_OP, abi.SCHEDOP_remote_shutdown, at) == answer
    assert other.domain.shutdown_code == -1


@pytest.mark.parametrize(("layout", "full"), [(Abi.X86_64, 4294967268), (Abi.X86_32, -28)])
def test_watchdogs(setup: Callable[..., Any], layout: Abi, full: int) -> None:
    guest = setup(abi=layout)
    assert watchdog(guest, 3, 1) == -22
    assert watchdog(guest, 1, 1) == -22
    assert watchdog(guest, 0, 10) == 1
    assert watchdog(guest, 0, 10) == 2
    assert watchdog(guest, 0, 10) == full
    guest.pass_time(9 * SECOND)
    assert watchdog(guest, 1, 10) == 0
    assert watchdog(guest, 2, 0) == 0
    assert watchdog(guest, 2, 0) == -22
    assert watchdog(guest, 2, 9) == -22
    guest.pass_time(10 * SECOND - 1)
    assert guest.domain.shutdown_code == -1
    guest.pass_time(1)
    assert guest.domain.shutdown_code == abi.SHUTDOWN_watchdog


def test_a_watchdog_of_no_time_bites_at_once(setup: Callable[..., Any]) -> None:
    guest = setup()
    assert watchdog(guest, 0, 0) == 1
    guest.pass_time(0)
    assert guest.domain.shutdown_code == abi.SHUTDOWN_watchdog


def test_watchdogs_end_with_the_domain(setup: Callable[..., Any]) -> None:
    guest = setup()
    assert watchdog(guest, 0, 0xFFFF_FFFF) == 1
    guest.domain.destroy()
    heap = guest.guest.host.timers._heap
    assert all(timer.callback is None for when, _, timer in heap if when > guest.clock.now())
