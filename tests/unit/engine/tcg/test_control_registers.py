"""Proves that a guest never runs with EFER.LME but neither paging nor CR4.PAE, and sees the
registers that it wrote all the same.

A model of the architecture does every write beside the code; writes that are not intercepted are
done to the VMCB as QEMU does them. Cannot see whether QEMU intercepts what it is asked to.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvmlite.engine import base as b
from hvmlite.engine.tcg import layout as L

from .fakes import Machine

PE, MP, EM, TS, ET, NE, WP = (1 << bit for bit in (0, 1, 2, 3, 4, 5, 16))
NW, CD, PG = 1 << 29, 1 << 30, 1 << 31
PSE, PAE, PGE, OSXSAVE, LA57 = 1 << 4, 1 << 5, 1 << 7, 1 << 18, 1 << 12
SCE, LME, LMA, NXE = 1, 1 << 8, 1 << 10, 1 << 11
GP = 1 << 31 | 1 << 11 | 3 << 8 | 13
CODE64 = b.Segment(0, 0, 0xFFFF_FFFF, 0xA9B)

MOV_CR0_EAX, MOV_CR4_EBX = b"\x0f\x22\xc0", b"\x0f\x22\xe3"
CLTS, LMSW_CX = b"\x0f\x06", b"\x0f\x01\xf1"
RIP = 0x1000


@dataclass
class Model:
    """What the architecture says that the guest has."""

    cr0: int = PE | ET
    cr4: int = 0
    efer: int = 0

    def write_cr0(self, value: int) -> bool:
        lme = self.efer & LME
        if (
            (value & PG and not value & PE)
            or (value & NW and not value & CD)
            or (value & PG and not self.cr0 & PG and lme and not self.cr4 & PAE)
        ):
            return False
        self.cr0 = value | ET
        if value & PG and lme:
            self.efer |= LMA
        elif not value & PG:
            self.efer &= ~LMA
        return True

    def write_cr4(self, value: int) -> bool:
        if value & (LA57 | 1 << 13 | 1 << 31) or (not value & PAE and self.efer & LMA):
            return False
        self.cr4 = value
        return True

    def write_efer(self, value: int) -> bool:
        if (value ^ self.efer) & LME and self.cr0 & PG:
            return False
        self.efer = value & ~LMA | self.efer & LMA
        return True


def dangerous(machine: Machine) -> bool:
    raw = machine.vcpu.raw
    return bool(raw("efer") & LME and not raw("cr0") & PG and not raw("cr4") & PAE)


def intercepted(machine: Machine, register: int, value: int) -> bool:
    """Whether the VMCB has this write exit."""
    vcpu = machine.vcpu
    if machine.vmcb(vcpu, L.INTERCEPT_CR, 4) & 1 << 16 + register:
        return True
    selective = machine.vmcb(vcpu, L.INTERCEPT_1, 4) & 1 << 5
    return bool(register == 0 and selective and (value ^ vcpu.raw("cr0")) & ~(TS | MP))


def execute(machine: Machine, code: bytes, exit_code: int) -> bool:
    """Has an intercepted instruction carried out; False if it raised #GP."""
    vcpu = machine.vcpu
    start = machine.partition.frame_at(RIP) << 12
    machine.partition.memory.u8[start : start + len(code)] = code
    vcpu.set("rip", RIP)
    machine.vmcb(vcpu, L.EVENT_INJECT, 8, 0)
    assert machine.run(exit_code) is None
    event = machine.vmcb(vcpu, L.EVENT_INJECT, 8)
    assert event in (0, GP)
    assert vcpu.get("rip") == RIP + (0 if event else len(code))
    return not event


def write_cr(machine: Machine, register: int, value: int, model: Model) -> None:
    """The guest writes CR0 or CR4."""
    vcpu = machine.vcpu
    before = model.cr0, model.cr4, model.efer
    allowed = model.write_cr0(value) if register == 0 else model.write_cr4(value)
    if intercepted(machine, register, value):
        vcpu.set("rax" if register == 0 else "rbx", value | 0xFFFF_FFFF << 32)
        code = MOV_CR0_EAX if register == 0 else MOV_CR4_EBX
        selective = not machine.vmcb(vcpu, L.INTERCEPT_CR, 4)
        exit_code = L.EXIT_CR0_SELECTIVE if selective else L.EXIT_CR0_WRITE + register
        assert execute(machine, code, exit_code) is allowed
    elif allowed:
        # The CPU does it, by the EFER that it knows.
        vcpu.set_raw("cr0" if register == 0 else "cr4", value | (ET if register == 0 else 0))
        efer = vcpu.raw("efer")
        if register == 0:
            active = value & PG and efer & LME
            vcpu.set_raw("efer", efer & ~LMA | (LMA if active else 0))
    if not allowed:
        assert (model.cr0, model.cr4, model.efer) == before


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("cr0"),
            st.sampled_from((PE, PE | PG, PE | PG | WP, PG, PE | NW, PE | TS | NE, PE | CD | NW)),
        ),
        st.tuples(
            st.just("cr4"),
            st.sampled_from((0, PAE, PAE | PGE, PSE, PAE | OSXSAVE, LA57 | PAE, 1 << 31)),
        ),
        st.tuples(st.just("efer"), st.sampled_from((0, LME, LME | NXE, SCE | NXE, LME | SCE))),
    ),
    max_size=14,
)


@given(STEPS)
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_against_the_architecture(machine: Machine, steps: list[tuple[str, int]]) -> None:
    vcpu = machine.vcpu
    if machine.partition.frame_at(RIP) < 0:
        machine.place(RIP, bytes(16))
    # With paging on, the code would need tables: it is found without.
    vcpu.translate = lambda address, **_: address  # type: ignore[method-assign]
    model = Model()
    vcpu.load(b.CpuState(cr0=model.cr0, segments={"cs": b.Segment(0, 0, 0xFFFF_FFFF, 0xC9B)}))
    for register, value in steps:
        if register == "efer":
            if model.write_efer(value):
                vcpu.set("efer", model.efer)
        else:
            write_cr(machine, 0 if register == "cr0" else 4, value, model)
        assert not dangerous(machine), (register, hex(value))
        assert vcpu.get("cr0") == model.cr0
        assert vcpu.get("cr4") == model.cr4
        assert vcpu.get("efer") == model.efer
        assert vcpu.raw("efer") & 1 << 12


def test_a_kernel_that_never_enters_long_mode_pays_nothing(machine: Machine) -> None:
    vcpu = machine.vcpu
    vcpu.set("efer", NXE)
    assert machine.vmcb(vcpu, L.INTERCEPT_CR, 4) == 0
    assert not machine.vmcb(vcpu, L.INTERCEPT_1, 4) & 1 << 5


def test_in_long_mode_only_leaving_it_exits(machine: Machine) -> None:
    vcpu = machine.vcpu
    vcpu.load(b.CpuState(cr0=PE | PG | ET, cr4=PAE, efer=LME | LMA))
    assert machine.vmcb(vcpu, L.INTERCEPT_CR, 4) == 0
    assert machine.vmcb(vcpu, L.INTERCEPT_1, 4) & 1 << 5


def test_lme_first_is_held_back(machine: Machine) -> None:
    vcpu = machine.vcpu
    vcpu.set("efer", LME)
    assert (vcpu.get("efer"), vcpu.raw("efer")) == (LME, 1 << 12)
    machine.place(RIP, MOV_CR4_EBX)
    vcpu.set("rbx", PAE)
    assert execute(machine, MOV_CR4_EBX, L.EXIT_CR4_WRITE)
    assert (vcpu.get("efer"), vcpu.raw("efer")) == (LME, LME | 1 << 12)


def test_clts_and_lmsw(machine: Machine) -> None:
    vcpu = machine.vcpu
    machine.place(RIP, bytes(4))
    vcpu.set("efer", LME)
    vcpu.set_raw("cr0", PE | TS | EM | ET)
    assert execute(machine, CLTS, L.EXIT_CR0_WRITE)
    assert vcpu.get("cr0") == PE | EM | ET
    vcpu.set("rcx", 0xFFFF_FFF0 | TS | MP)
    assert execute(machine, LMSW_CX, L.EXIT_CR0_WRITE)
    assert vcpu.get("cr0") == PE | TS | MP | ET


@pytest.mark.parametrize("value", [1 << 32 | PE | PG, 1 << 63 | PE | PG, PE])
def test_what_64_bit_code_may_not_write(machine: Machine, value: int) -> None:
    """Bits beyond 31, and leaving paging."""
    vcpu = machine.vcpu
    machine.place(RIP, bytes(4))
    vcpu.set_segment("cs", CODE64)
    vcpu.set_raw("cr4", PAE)
    vcpu.set_raw("cr0", PE | PG | ET)
    vcpu.set("efer", LME | LMA)
    assert vcpu.mode == 64
    vcpu.translate = lambda address, **_: address  # type: ignore[method-assign]
    vcpu.set("rax", value)
    assert not execute(machine, MOV_CR0_EAX, L.EXIT_CR0_SELECTIVE)
    assert vcpu.get("cr0") == PE | PG | ET


@pytest.mark.parametrize(
    ("code", "register"),
    [
        (b"\x0f\x22\xc0", "rax"),
        (b"\x0f\x22\xc4", "rsp"),
        (b"\x41\x0f\x22\xc7", "r15"),
    ],
)
def test_any_register_may_be_the_source(machine: Machine, code: bytes, register: str) -> None:
    vcpu = machine.vcpu
    machine.place(RIP, bytes(4))
    vcpu.set_segment("cs", CODE64)
    vcpu.set_raw("cr4", PAE)
    vcpu.set_raw("cr0", PE | PG | ET)
    vcpu.set("efer", LME | LMA)
    vcpu.translate = lambda address, **_: address  # type: ignore[method-assign]
    vcpu.set(register, PE | PG | WP | ET)
    assert execute(machine, code, L.EXIT_CR0_SELECTIVE)
    assert vcpu.get("cr0") == PE | PG | WP | ET


@pytest.mark.parametrize("code", [b"", b"\xff\xff\xff", b"\x90", b"\x89\xd8", b"\x0f\x20\xc0"])
def test_other_code_at_rip_by_now_does_no_harm(machine: Machine, code: bytes) -> None:
    """Another vCPU may have changed the code since the exit."""
    vcpu = machine.vcpu
    if code:
        machine.place(RIP, code)
    vcpu.set("efer", LME)
    vcpu.set("rax", PE | 1 << 20)
    vcpu.set("rip", RIP)
    assert machine.run(L.EXIT_CR0_WRITE) is None
    assert not dangerous(machine)
