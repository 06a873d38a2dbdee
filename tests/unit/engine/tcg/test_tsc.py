"""RDTSC and RDTSCP that exit: the intercepts, telling the two apart, and the answer.

Cannot see whether QEMU takes the exits; tests/system/test_tsc.py does.
"""

from __future__ import annotations

import pytest

from hvmlite.engine import base as b
from hvmlite.engine.tcg import layout as L

from .fakes import Machine

CODE32 = b.Segment(0, 0, 0xFFFF_FFFF, 0xC9B)
AT = 0x5000
VALUE = 0x0123_4567_89AB_CDEF
AUX = 0x1_0000_0FED
CODES = [
    (b"\x0f\x31", 2, False),
    (b"\x0f\x01\xf9", 3, True),
    (b"\x66\x0f\x31", 3, False),
    (b"\x2e\x67\xf3\x0f\x31", 5, False),
    (b"\x65\x0f\x01\xf9", 4, True),
    (b"\x48\x0f\x01\xf9", 4, True),
    (b"\x66" * 13 + b"\x0f\x31", 15, False),
]


def run(machine: Machine, code: bytes, exit_code: int) -> b.Exit | None:
    machine.place(AT, code.ljust(16, b"\x90"))
    machine.vcpu.load(b.CpuState(rip=AT, cr0=0x11, segments={"cs": CODE32}))
    for name in ("rax", "rdx", "rcx"):
        machine.vcpu.set(name, 0xFFFF_FFFF_FFFF_FFFF)
    return machine.run(exit_code)


def test_the_intercepts(machine: Machine) -> None:
    vcpu = machine.vcpu
    bits = machine.vmcb(vcpu, L.INTERCEPT_1, 4), machine.vmcb(vcpu, L.INTERCEPT_2, 4)
    assert not bits[0] & 1 << 14
    assert not bits[1] & 1 << 7
    machine.partition.intercept_tsc()
    assert machine.vmcb(vcpu, L.INTERCEPT_1, 4) == bits[0] | 1 << 14
    assert machine.vmcb(vcpu, L.INTERCEPT_2, 4) == bits[1] | 1 << 7
    # Those of control register writes are set anew now and then.
    vcpu.set_intercepts(control_writes=0, selective_cr0=True)
    assert machine.vmcb(vcpu, L.INTERCEPT_1, 4) & 1 << 14


@pytest.mark.parametrize(("code", "length", "with_aux"), CODES)
@pytest.mark.parametrize("exit_code", [0x6E, 0x87])
def test_answer(machine: Machine, code: bytes, length: int, with_aux: bool, exit_code: int) -> None:
    assert isinstance(run(machine, code, exit_code), b.Tsc)
    vcpu = machine.vcpu
    machine.tsc_aux = AUX
    vcpu.complete_tsc(VALUE)
    assert vcpu.get("rip") == AT + length
    assert vcpu.get("rax") == 0x89AB_CDEF
    assert vcpu.get("rdx") == 0x0123_4567
    assert vcpu.get("rcx") == (AUX & 0xFFFF_FFFF if with_aux else 0xFFFF_FFFF_FFFF_FFFF)


@pytest.mark.parametrize(
    "code", [b"\x90", b"\x0f\x30", b"\x0f\x01\xf8", b"\x66" * 14 + b"\x0f\x31"]
)
def test_an_instruction_that_has_changed_runs_again(machine: Machine, code: bytes) -> None:
    assert run(machine, code, 0x6E) is None
    assert machine.vcpu.get("rip") == AT
