"""Proves that the self-test refuses an engine in which a guest sees the wrong memory, does not come
back, or ends in another way; that it leaves the map alone; and which engine is chosen by name.

QEMU is played by the test. That a real one passes, and a real one with its nested tables put out of
force does not, is in test_engine.py.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hvmlite.engine.memory import MachineMemory
from hvmlite.engine.select import ENGINES, open_engine
from hvmlite.engine.tcg import layout as L
from hvmlite.engine.tcg import selftest
from hvmlite.engine.tcg.selftest import (
    check_kick,
    check_nested_paging,
    check_writes,
    code_reporting,
    flat_state,
    run,
)
from hvmlite.engine.tcg.vcpu import TcgVcpu
from hvmlite.errors import EngineError, UserError

from .fakes import Machine


def code_at(machine: Machine, gpa: int, *, nested: bool) -> bytes:
    """What is at a guest-physical address by the nested tables in force, or without them."""
    memory = machine.partition.memory
    if not nested:
        return bytes(memory.u8[gpa : gpa + 16])
    table = machine.vmcb(machine.vcpu, L.NESTED_CR3, 8) >> 12
    for level in (3, 2, 1, 0):
        entry = memory.u64[table * 512 + (gpa >> 12 + 9 * level & 511)]
        assert entry & 1, "not mapped"
        table = L.frame_of(entry)
    start = table << 12 | gpa & 0xFFF
    return bytes(memory.u8[start : start + 16])


def hypercall_guest(machine: Machine, *, nested: bool = True, stale: bool = False) -> None:
    """Plays a CPU that runs what code_reporting() writes."""
    first: dict[int, bytes] = {}

    def guest(vcpu: TcgVcpu) -> None:
        rip = vcpu.get("rip")
        code = code_at(machine, rip, nested=nested)
        if stale:
            code = first.setdefault(rip, code)
        assert code[:1] == b"\xb8"
        vcpu.set("rax", struct.unpack_from("<I", code, 1)[0])
        vcpu.set("rip", rip + 5)
        machine.exit(vcpu, L.EXIT_VMMCALL)

    machine.guest = guest


@pytest.fixture
def named(machine: Machine, fake_qemu: Callable[[str], Path]) -> Machine:
    """A machine whose QEMU says that it is version 8.2.2."""
    path = fake_qemu("echo QEMU emulator version 8.2.2")
    machine.process.path = str(path)
    return machine


def test_a_good_engine_passes_and_is_as_before(machine: Machine) -> None:
    hypercall_guest(machine)
    root = machine.vmcb(machine.vcpu, L.NESTED_CR3, 8)
    free = machine.partition.memory.free_frames
    check_nested_paging(machine.partition)
    check_writes(machine.partition)
    assert machine.vmcb(machine.vcpu, L.NESTED_CR3, 8) == root
    assert machine.partition.nested.entry(selftest._TEST_GFN) == 0
    assert free - machine.partition.memory.free_frames <= 3  # tables of the map, kept


def test_an_engine_that_ignores_nested_paging_is_refused(named: Machine) -> None:
    hypercall_guest(named, nested=False)
    with pytest.raises(EngineError) as caught:
        check_nested_paging(named.partition)
    assert str(caught.value) == (
        f"QEMU 8.2.2 ({named.process.path}) ignores nested paging: 7.2, 10.0 and 11.1 are known "
        "to work; Debian 12 has 7.2, its backports have 10.0"
    )


@pytest.mark.parametrize("code", [L.EXIT_SHUTDOWN, L.EXIT_INVALID, L.EXIT_HLT, 0x1234])
def test_an_engine_that_cannot_run_guests_is_refused(named: Machine, code: int) -> None:
    named.guest = lambda vcpu: named.exit(vcpu, code)
    root = named.vmcb(named.vcpu, L.NESTED_CR3, 8)
    free = named.partition.memory.free_frames
    with pytest.raises(EngineError, match=r"^QEMU 8\.2\.2 \(.*\) cannot run guests \(\w+\("):
        check_nested_paging(named.partition)
    assert named.vmcb(named.vcpu, L.NESTED_CR3, 8) == root
    assert named.partition.memory.free_frames == free


def test_a_wrong_answer_is_refused(named: Machine) -> None:
    named.guest = lambda vcpu: (vcpu.set("rax", 77), named.exit(vcpu, L.EXIT_VMMCALL))[1]
    with pytest.raises(EngineError, match="cannot run guests"):
        check_nested_paging(named.partition)


def test_a_guest_that_does_not_come_back(machine: Machine) -> None:
    machine.vcpu.load(flat_state(0x1000))
    begin = time.monotonic()
    with pytest.raises(EngineError, match="does not come back from VMRUN"):
        run(machine.vcpu, wait=0.05)
    assert time.monotonic() - begin < 5


def test_stale_code_is_noticed(machine: Machine) -> None:
    hypercall_guest(machine, stale=True)
    with pytest.raises(EngineError, match="runs in its old translation"):
        check_writes(machine.partition)


def test_a_kick_that_does_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_TIMEOUT", 0.05)
    with pytest.raises(EngineError, match="cannot be kicked"):
        check_kick(machine.partition)


def test_another_exit_than_a_kicks(machine: Machine) -> None:
    machine.guest = lambda vcpu: machine.exit(vcpu, L.EXIT_HLT)
    with pytest.raises(EngineError, match="exits for another reason"):
        check_kick(machine.partition)


def test_reporting_code() -> None:
    assert code_reporting(0x1234_5678).hex(" ") == "b8 78 56 34 12 0f 01 d9 eb f6"


def test_engines_by_name() -> None:
    for name in ENGINES:
        assert open_engine(name).name == "tcg"
    for name in ("", "TCG", "kvm", "auto "):
        with pytest.raises(UserError) as caught:
            open_engine(name)
        assert str(caught.value) == f"no engine {name!r}: choose from auto, tcg"


def test_naming_an_engine_starts_nothing(memory: MachineMemory) -> None:
    open_engine("tcg")
    assert memory.free_frames == memory.frames - 0x100
