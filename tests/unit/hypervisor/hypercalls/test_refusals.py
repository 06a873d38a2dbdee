"""What a domU is refused, with the errno of real Xen 4.17, by number and by argument.

The recorded answers (hc.nr.*, xsm_op.*, argo_op.*, sysctl.*, domctl.*, platform_op.*, physdev.*,
dm_op.*, ...) and the order of checks that they show.  Cannot see other releases' real answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hvmlite.abi import domctl, platform, sysctl, xen
from hvmlite.abi.dm_op import xen_dm_op_buf
from hvmlite.abi.layout import Abi
from hvmlite.abi.physdev import physdev_map_pirq, physdev_unmap_pirq
from hvmlite.hypervisor.hypercalls.registry import NOTED
from hvmlite.hypervisor.hypercalls.table import FAMILIES, HYPERCALLS

ONES = (1 << 64) - 1
ZEROS = {
    2: -38, 3: -38, 4: -38, 5: -38, 8: -38, 9: -38, 10: -38, 11: -38, 16: -38, 17: 262161,
    22: -38, 23: -38, 24: -14, 25: -38, 28: -38, 32: -14, 33: -38, 34: -14, 35: -14, 38: -38,
    39: -38, 40: -95, 41: -61, 46: -38, 47: -38, 50: -38, 51: -38, 56: -38, 57: -38, 62: -38,
    63: -38,
}  # fmt: skip
ALL_ONES = {
    0: -38, 3: -38, 4: -38, 7: -14, 9: -38, 11: -38, 12: -38, 16: -38, 18: -1, 20: -38, 23: -38,
    24: -2, 27: -38, 29: -38, 30: -38, 33: -38, 34: -38, 37: -38, 39: -38, 40: -95, 43: -38,
    44: -38, 47: -38, 49: -14, 50: -38, 53: -38, 54: -38, 57: -38, 59: -38, 61: -38, 62: -38,
}  # fmt: skip
BEYOND = (64, 127, 0x3FFFFFFF, 0x40000000, 1 << 32 | 17)


def test_every_number_with_zeros_and_with_ones(setup: Callable[..., Any]) -> None:
    guest = setup()
    zeros = {number: guest.call(number, 0, 0, 0, 0, 0) for number in ZEROS}
    ones = {number: guest.call(number, *(ONES,) * 5) for number in ALL_ONES}
    assert zeros == ZEROS
    assert ones == ALL_ONES


@pytest.mark.parametrize("number", BEYOND)
def test_numbers_that_do_not_exist(setup: Callable[..., Any], number: int) -> None:
    assert setup().call(number) == -38


def test_the_upper_half_of_a_32_bit_callers_rax_does_not_count(setup: Callable[..., Any]) -> None:
    guest = setup(abi=Abi.X86_32)
    assert guest.call(17, 0, 0) == 0x40011


@pytest.mark.parametrize(
    ("number", "args", "answer"),
    [
        (xen.Hypercall.console_io, (0, 6, 0x100000), -1),
        (xen.Hypercall.console_io, (2, 6, 0x100000), -1),
        (xen.Hypercall.xsm_op, (0,), -38),
        (xen.Hypercall.argo_op, (4,), -38),
        (xen.Hypercall.tmem_op, (0,), -38),
        (xen.Hypercall.kexec_op, (1,), -38),
        (xen.Hypercall.nmi_op, (0,), -38),
        (xen.Hypercall.callback_op, (1,), -38),
        (xen.Hypercall.xenpmu_op, (0,), -95),
        (xen.Hypercall.hypfs_op, (0,), -1),
        (xen.Hypercall.event_channel_op, (99,), -38),
        (xen.Hypercall.sched_op_compat, (0,), -38),
        *((xen.Hypercall.physdev_op, (op, 0x100000), -38) for op in range(34)),
        *((xen.Hypercall.vm_assist, (0, kind), -22) for kind in (0, 1, 2, 3, 4, 6, 32, 63, 64)),
        (xen.Hypercall.vm_assist, (0, 5), 0),
        (xen.Hypercall.vm_assist, (1, 5), 0),
        (xen.Hypercall.vm_assist, (2, 5), -38),
    ],
)
def test_refused(
    setup: Callable[..., Any], number: int, args: tuple[int, ...], answer: int
) -> None:
    assert setup().call(number, *args) == answer


@pytest.mark.parametrize(
    ("release", "versions"),
    [((4, 17), (0x15, 0x15)), ((4, 19), (0x15, 0x17)), ((4, 21), (0x16, 0x17))],
)
def test_control_calls_look_at_their_version_first(
    setup: Callable[..., Any], release: tuple[int, int], versions: tuple[int, int]
) -> None:
    guest = setup(release=release)
    own = guest.domain.domid
    for number, kind, version in (
        (xen.Hypercall.sysctl, sysctl.xen_sysctl, versions[0]),
        (xen.Hypercall.domctl, domctl.xen_domctl, versions[1]),
        (xen.Hypercall.platform_op, platform.xen_platform_op, 0x03000001),
        (xen.Hypercall.arch_1, domctl.xen_domctl, versions[1]),
    ):
        assert guest.call(number, 0) == -14
        assert guest.call(number, guest.place(kind())) == -13
        assert guest.call(number, guest.place(kind(3, version))) == -1
        assert guest.call(number, guest.place(kind(3, version + 1))) == -13
    for domid, answer in ((own, -1), (0, -1), (0x7FF0, -3), (4444, -3)):
        call = domctl.xen_domctl(domctl.XEN_DOMCTL_getdomaininfo, versions[1], domid)
        assert guest.call(xen.Hypercall.domctl, guest.place(call)) == answer
    create = domctl.xen_domctl(domctl.XEN_DOMCTL_createdomain, versions[1], 4444)
    assert guest.call(xen.Hypercall.domctl, guest.place(create)) == -1


def test_dm_op(setup: Callable[..., Any]) -> None:
    guest, other = setup(), setup()
    buffers = guest.place(xen_dm_op_buf(0x100000, 8).pack(guest.guest.abi) * 2)
    assert guest.call(xen.Hypercall.dm_op, 0, 0, 0) == -61
    assert guest.call(xen.Hypercall.dm_op, 0, 3, buffers) == -7
    assert guest.call(xen.Hypercall.dm_op, 0, 1, 0) == -14
    assert guest.call(xen.Hypercall.dm_op, 0, 2, buffers) == -22
    assert guest.call(xen.Hypercall.dm_op, 0x7FF0, 1, buffers) == -3
    assert guest.call(xen.Hypercall.dm_op, guest.domain.domid, 1, buffers) == -1
    assert guest.call(xen.Hypercall.dm_op, other.domain.domid, 1, buffers) == -1


def test_mmuext_op(setup: Callable[..., Any]) -> None:
    guest = setup()
    own = guest.domain.domid
    for domid, answer in ((0x7FF0, -22), (own, -3), (0, -1), (4444, -3), (0x7FF1, -1)):
        assert guest.call(xen.Hypercall.mmuext_op, 0x100000, 1, 0, domid) == answer
    assert guest.call(xen.Hypercall.mmuext_op, 0, 1 << 31, 0, ONES) == -1
    compat = setup(abi=Abi.X86_32)
    assert compat.call(xen.Hypercall.mmuext_op, 0, 0, 0, 0x7FF0) == 0
    assert compat.call(xen.Hypercall.mmuext_op, 0, 1, 0, 0x7FF0) == -14
    assert compat.call(xen.Hypercall.mmuext_op, 0x100000, 1, 0, 0x7FF0) == -22


def test_pirqs_pass_the_filter_since_4_20(setup: Callable[..., Any]) -> None:
    for release, answers in (((4, 19), (-38,) * 4), ((4, 20), (-14, -95, -1, -3))):
        guest = setup(release=release)
        for op, kind in ((13, physdev_map_pirq), (14, physdev_unmap_pirq)):
            pointers = (0, *(guest.place(kind(domid)) for domid in (0x7FF0, 0, 4444)))
            got = tuple(guest.call(xen.Hypercall.physdev_op, op, at) for at in pointers)
            assert got == answers
        assert guest.call(xen.Hypercall.physdev_op, 12, 0) == -38


def test_a_guest_cannot_grow_the_counts_of_refused_calls(setup: Callable[..., Any]) -> None:
    guest = setup(vcpus=1)
    for i in range(2 * NOTED):
        guest.call(xen.Hypercall.xen_version, 100 + i)
        guest.call(1000 + i)
        guest.call(xen.Hypercall.event_channel_op, 100 + i)
    assert len(guest.domain.unknown_calls) == NOTED


def test_every_family_is_listed_once() -> None:
    numbers = [family.number for family in FAMILIES]
    assert len(numbers) == len(set(numbers))
    assert set(numbers) == set(HYPERCALLS)
    assert {hypercall for hypercall in xen.Hypercall if hypercall < 48} <= set(numbers)
    for family in FAMILIES:
        for info in family.ops.values():
            assert info.handler is not None or info.why
