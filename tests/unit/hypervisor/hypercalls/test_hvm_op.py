"""HVMOP_* and HVM parameters: the answers recorded from real Xen 4.17 (hvm.*), and their effects.

Cannot see whether an interrupt is taken by a CPU, or what HVMOP_get_time says under a real TSC.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hvmlite.abi import hvm as abi
from hvmlite.abi import xen
from hvmlite.abi.layout import Abi
from hvmlite.abi.xen import DOMID_SELF
from hvmlite.hypervisor.physmap import P2mType

HVM_OP = xen.Hypercall.hvm_op
UNMAPPED = 0x800
DEPRECATED = {4, 13, 20, 21, 22, 23, 24, 25, 26, 30, 39, 40, 41, 43, 44}
READABLE = {0, 1, 2, 15, 17, 18, 19, 34, 35, 36, 37}
WRITABLE = {0, 2, 15, 18, 34, 36}


def get_param(guest: Any, index: int, domid: int = DOMID_SELF) -> tuple[int, int]:
    at = guest.place(abi.xen_hvm_param(domid=domid, index=index))
    result = guest.call(HVM_OP, abi.HVMOP_get_param, at)
    return result, guest.get(at, abi.xen_hvm_param).value


def set_param(guest: Any, index: int, value: int, domid: int = DOMID_SELF) -> int:
    at = guest.place(abi.xen_hvm_param(domid=domid, index=index, value=value))
    result: int = guest.call(HVM_OP, abi.HVMOP_set_param, at)
    return result


def vector(number: int) -> int:
    return abi.HVM_PARAM_CALLBACK_TYPE_VECTOR << 56 | number


@pytest.mark.parametrize("layout", Abi)
def test_which_parameters_may_be_read_and_written(setup: Callable[..., Any], layout: Abi) -> None:
    guest = setup(abi=layout)
    for index in range(48):
        refused = -22 if index in DEPRECATED or index >= abi.HVM_NR_PARAMS else -1
        assert get_param(guest, index) == (0 if index in READABLE else refused, 0)
        if index not in (19, 37):
            assert set_param(guest, index, 0) == (0 if index in WRITABLE else refused)
    assert set_param(guest, 19, 1) == -19
    assert guest.domain.shutdown_code == -1


def test_a_write_can_be_read_back(setup: Callable[..., Any]) -> None:
    guest = setup()
    guest.domain.params.values |= {1: 77, 2: 1}
    assert get_param(guest, 1) == (0, 77)
    assert get_param(guest, 2, guest.domain.domid) == (0, 1)
    assert set_param(guest, 1, 78) == -1
    assert set_param(guest, 2, 2) == 0
    assert get_param(guest, 2) == (0, 2)
    assert set_param(guest, 34, 0x1234_5678_9ABC_DEF0) == 0
    assert get_param(guest, 34) == (0, 0x1234_5678_9ABC_DEF0)
    assert set_param(guest, 36, 5) == -22
    assert set_param(guest, 36, 8) == 0


def test_altp2m_is_fixed_since_4_19(setup: Callable[..., Any]) -> None:
    assert set_param(setup(release=(4, 18)), 35, 1) == -1
    assert set_param(setup(release=(4, 19)), 35, 1) == -17


def test_whose_parameters(setup: Callable[..., Any]) -> None:
    guest, other = setup(), setup()
    assert get_param(guest, 2, 999)[0] == -3
    assert set_param(guest, 2, 1, 0) == -22
    assert set_param(guest, 2, 1, other.domain.domid) == -1
    assert set_param(guest, 99, 1, 999) == -22
    for op in (abi.HVMOP_get_param, abi.HVMOP_set_param):
        assert guest.call(HVM_OP, op, 0) == -14
        assert guest.call(HVM_OP, op, UNMAPPED) == -14


def test_tss_for_real_mode(setup: Callable[..., Any]) -> None:
    guest = setup()
    assert set_param(guest, 15, 0xFEFF_C000) == 0
    assert get_param(guest, 15) == (0, 0xFEFF_C000)
    assert get_param(guest, 37) == (0, 128 << 32 | 0xFEFF_C000)
    assert set_param(guest, 37, 0xFFFF_FFFF << 32 | 0x1000) == 0
    assert get_param(guest, 37) == (0, 0x2089 << 32 | 0x1000)
    assert set_param(guest, 37, 0x67 << 32) == -22
    assert guest.domain.shutdown_code == 3
    other = setup()
    assert set_param(other, 15, 1 << 32) == -22
    assert other.domain.shutdown_code == 3


def test_callback(setup: Callable[..., Any]) -> None:
    guest = setup()
    assert guest.domain.callback_vector == -1
    assert set_param(guest, 0, vector(0x2F3)) == 0
    assert guest.domain.callback_vector == 0xF3
    # What is no vector is remembered, and changes nothing.
    for value in (5, 1 << 56 | 11 << 11, 3 << 56, 0xFF << 56, 0):
        assert set_param(guest, 0, value) == 0
        assert get_param(guest, 0) == (0, value)
        assert guest.domain.callback_vector == 0xF3
    assert set_param(guest, 0, vector(0xF)) == 0
    assert guest.domain.callback_vector == 0xF


def test_callback_takes_what_is_pending_and_the_bitness(setup: Callable[..., Any]) -> None:
    guest = setup()
    first, second = guest.vcpu(0), guest.vcpu(1)
    second.initialised = True
    second.bring_up()
    second.running = False
    second.block()
    guest.domain.shared_info.u8[64] = 1
    guest.guest.abi = Abi.X86_32
    assert set_param(guest, 0, vector(0xF3)) == 0
    assert not second.blocked
    assert guest.domain.abi is Abi.X86_32
    assert first.pending_interrupt() == -1
    assert second.pending_interrupt() == 0xF3


def test_upcall_vector(setup: Callable[..., Any]) -> None:
    guest = setup()

    def ask(vcpu: int, number: int) -> int:
        at = guest.place(abi.xen_hvm_evtchn_upcall_vector(vcpu, number))
        result: int = guest.call(HVM_OP, abi.HVMOP_set_evtchn_upcall_vector, at)
        return result

    assert [ask(0, n) for n in (0, 15)] == [-22, -22]
    assert ask(1, 0x40) == 0
    assert ask(2, 0x40) == -2
    assert ask(2, 0) == -22
    assert guest.call(HVM_OP, abi.HVMOP_set_evtchn_upcall_vector, 0) == -14
    guest.domain.shared_info.u8[0] = 1
    assert ask(0, 0x50) == 0
    assert guest.vcpu(0).pending_interrupt() == 0x50
    # A vCPU that is down hears nothing of it.
    guest.domain.shared_info.u8[64] = 1
    assert ask(1, 0x41) == 0
    assert guest.vcpu(1).pending_interrupt() == -1


def test_the_rest(setup: Callable[..., Any]) -> None:
    guest = setup()
    some = guest.place(abi.xen_hvm_param(domid=DOMID_SELF, index=0xFFFF_FFFF))
    missing = guest.place(abi.xen_hvm_param(domid=999))
    assert guest.call(HVM_OP, abi.HVMOP_flush_tlbs, 0) == 0
    assert guest.guest.partition.flushes
    assert guest.call(HVM_OP, abi.HVMOP_flush_tlbs, some) == -22
    assert guest.call(HVM_OP, abi.HVMOP_pagetable_dying, some) == -22
    assert guest.call(HVM_OP, abi.HVMOP_pagetable_dying, missing) == -3
    assert guest.call(HVM_OP, abi.HVMOP_pagetable_dying, 0) == -14
    assert guest.call(HVM_OP, abi.HVMOP_guest_request_vm_event, 0) == 0
    assert guest.call(HVM_OP, abi.HVMOP_guest_request_vm_event, some) == -22
    assert guest.call(HVM_OP, abi.HVMOP_altp2m, some) == -95
    for op in (2, 3, 4, 6, 7, 8, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 26, 27, 29, 30, 1000):
        assert guest.call(HVM_OP, op, some) == -38
    assert guest.call(HVM_OP, 1 << 32 | abi.HVMOP_get_time, some) == -38
    for event, size, answer in ((0xFFF, 28, 0), (0x1000, 0, -22), (0, 29, -22)):
        trace = guest.place(abi.xen_hvm_xentrace(event, size))
        assert guest.call(HVM_OP, abi.HVMOP_xentrace, trace) == answer


def test_get_mem_type(setup: Callable[..., Any]) -> None:
    guest = setup()
    physmap = guest.domain.physmap
    frame = physmap.lookup(1)[0]
    for gfn, kind in enumerate((P2mType.RAM_RO, P2mType.GRANT_RO, P2mType.FOREIGN), start=500):
        physmap.set(gfn, frame, kind)
    asked = {1: 0, 500: 1, 501: 1, 502: 2, 0xFFFFF: 2, (1 << 64) - 1: 2}
    for pfn, answer in asked.items():
        at = guest.place(abi.xen_hvm_get_mem_type(domid=DOMID_SELF, pfn=pfn))
        assert guest.call(HVM_OP, abi.HVMOP_get_mem_type, at) == 0
        assert guest.get(at, abi.xen_hvm_get_mem_type).mem_type == answer
    for domid, result in ((0, -1), (999, -3)):
        at = guest.place(abi.xen_hvm_get_mem_type(domid=domid))
        assert guest.call(HVM_OP, abi.HVMOP_get_mem_type, at) == result
    for gfn in (500, 501, 502):
        physmap.clear(gfn)


def test_get_time_is_by_the_guests_own_clock(setup: Callable[..., Any]) -> None:
    guest = setup()
    guest.domain.resync_time(guest.vcpu())
    calibration, engine = guest.domain.calibration, guest.vcpu().engine
    at = guest.place(abi.xen_hvm_get_time())
    before = calibration.ns_at(engine.read_tsc())
    assert guest.call(HVM_OP, abi.HVMOP_get_time, at) == 0
    assert before <= guest.get(at, abi.xen_hvm_get_time).now <= calibration.ns_at(engine.read_tsc())
    assert guest.call(HVM_OP, abi.HVMOP_get_time, 0) == -14
