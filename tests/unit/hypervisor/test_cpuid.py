"""Proves what a domain's CPUID shows: the policy over the engine's CPU, and Xen's own leaves as
recorded from real Xen 4.17 (cpuid.4000000*).

The engine's CPU is one that has every feature bit set. Cannot see what a real engine's CPU has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvmlite.hypervisor.cpuid import CpuidPolicy, apic_id
from hvmlite.hypervisor.vcpu import Vcpu

from .fakes import Rig

M32 = 0xFFFF_FFFF
ALL = (M32, M32, M32, M32)
EAX, EBX, ECX, EDX = range(4)
AMD = (0x10, 0x68747541, 0x444D4163, 0x69746E65)


@pytest.fixture
def rigs() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(vcpus: int = 1, policy: CpuidPolicy | None = None, **options: tuple[int, int]) -> Rig:
        rig = Rig(vcpus, **options)
        made.append(rig)
        if policy is not None:
            rig.domain.cpuid = policy
        for i in range(vcpus):
            cpuid = rig.engine(i).cpuid
            for leaf in range(0x20):
                cpuid[leaf, -1] = cpuid[0x8000_0000 + leaf, -1] = ALL
            cpuid[0, -1] = AMD
            cpuid[0x8000_0000, -1] = (0x8000_001F, *AMD[1:])
        return rig

    yield make
    for rig in made:
        rig.close()


@pytest.fixture
def rig(rigs: Callable[..., Rig]) -> Rig:
    return rigs()


def ask(rig: Rig, leaf: int, subleaf: int = 0, index: int = 0) -> tuple[int, int, int, int]:
    return rig.domain.cpuid.answer(rig.domain.vcpus[index], leaf, subleaf)


def bit(rig: Rig, leaf: int, register: int, number: int) -> bool:
    return bool(ask(rig, leaf)[register] >> number & 1)


# --- the CPU under the policy ----------------------------------------------------------------


def test_the_vendor_is_the_cpus(rig: Rig) -> None:
    assert ask(rig, 0) == (0xD, *AMD[1:])
    assert ask(rig, 0x8000_0000) == (0x8000_001F, *AMD[1:])


def test_a_smaller_cpu_is_not_made_larger(rig: Rig) -> None:
    rig.engine().cpuid[0, -1] = (7, 1, 2, 3)
    assert ask(rig, 0) == (7, 1, 2, 3)
    assert ask(rig, 0xB) == (0, 0, 0, 0)


def test_leaves_beyond_the_last_are_zero(rigs: Callable[..., Rig]) -> None:
    rig = rigs(2)
    for leaf in (0xE, 0x1F, 0x20, 0x3FFF_FFFF, 0x4000_0100, 0x7FFF_FFFF):
        assert ask(rig, leaf, 0, 1) == (0, 0, 0, 0), hex(leaf)
    for leaf in (0x8000_0020, 0xC000_0000, M32):
        assert ask(rig, leaf, 0, 1) == (0, 0, 0, 0), hex(leaf)


HIDDEN = {
    "MONITOR": (1, ECX, 3),
    "DS_CPL": (1, ECX, 4),
    "VMX": (1, ECX, 5),
    "EST": (1, ECX, 7),
    "TM2": (1, ECX, 8),
    "PDCM": (1, ECX, 15),
    "PCID": (1, ECX, 17),
    "TSC_DEADLINE": (1, ECX, 24),
    "MCE": (1, EDX, 7),
    "MCA": (1, EDX, 14),
    "IBRS": (7, EDX, 26),
    "STIBP": (7, EDX, 27),
    "ARCH_CAPABILITIES": (7, EDX, 29),
    "SSBD": (7, EDX, 31),
    "SVM": (0x8000_0001, ECX, 2),
    "EXTAPIC": (0x8000_0001, ECX, 3),
    "IBS": (0x8000_0001, ECX, 10),
    "SKINIT": (0x8000_0001, ECX, 12),
    "WDT": (0x8000_0001, ECX, 13),
    "TOPOEXT": (0x8000_0001, ECX, 22),
    "AMD IBPB": (0x8000_0008, EBX, 12),
    "AMD IBRS": (0x8000_0008, EBX, 14),
    "AMD STIBP": (0x8000_0008, EBX, 15),
    "AMD SSBD": (0x8000_0008, EBX, 24),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_a_guest_must_not_find(rig: Rig, name: str) -> None:
    assert not bit(rig, *HIDDEN[name])


SHOWN = {
    "SSE3": (1, ECX, 0),
    "AVX": (1, ECX, 28),
    "hypervisor": (1, ECX, 31),
    "FPU": (1, EDX, 0),
    "APIC": (1, EDX, 9),
    "MTRR": (1, EDX, 12),
    "HTT": (1, EDX, 28),
    "FSGSBASE": (7, EBX, 0),
    "SYSCALL": (0x8000_0001, EDX, 11),
    "RDTSCP": (0x8000_0001, EDX, 27),
    "long mode": (0x8000_0001, EDX, 29),
    "invariant TSC": (0x8000_0007, EDX, 8),
}


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_guest_finds(rig: Rig, name: str) -> None:
    assert bit(rig, *SHOWN[name])


def test_what_xen_adds_whatever_the_cpu_has(rig: Rig) -> None:
    for leaf in range(1, 0x20):
        rig.engine().cpuid[leaf, -1] = rig.engine().cpuid[0x8000_0000 + leaf, -1] = (0, 0, 0, 0)
    for name in ("hypervisor", "APIC", "HTT", "invariant TSC"):
        assert bit(rig, *SHOWN[name])
    for name in ("SSE3", "AVX", "FSGSBASE"):
        assert not bit(rig, *SHOWN[name])


@pytest.mark.parametrize("leaf", [5, 6, 0xA, 0x8000_000A])
def test_power_performance_and_svm_leaves_are_empty(rig: Rig, leaf: int) -> None:
    assert ask(rig, leaf) == (0, 0, 0, 0)


def test_osxsave_follows_the_guest(rig: Rig) -> None:
    assert not bit(rig, 1, ECX, 27)
    rig.engine().set("cr4", 1 << 18)
    assert bit(rig, 1, ECX, 27)
    rig.engine().set("cr4", 0)
    assert not bit(rig, 1, ECX, 27)


def test_extended_state_is_asked_of_the_cpu_each_time(rig: Rig) -> None:
    cpuid = rig.engine().cpuid
    for sub, size in ((0, 0x240), (1, 0x340), (2, 0x100), (9, 0x40)):
        cpuid[0xD, sub] = (7, size, size + 1, 0)
    for sub, size in ((0, 0x240), (1, 0x340), (2, 0x100), (9, 0x40)):
        assert ask(rig, 0xD, sub) == (7, size, size + 1, 0)
    cpuid[0xD, 0] = (7, 0x340, 0x341, 0)
    assert ask(rig, 0xD, 0) == (7, 0x340, 0x341, 0)


@pytest.mark.parametrize("leaf", [4, 7, 0x8000_001D])
def test_subleaves_are_told_apart(rig: Rig, leaf: int) -> None:
    rig.engine().cpuid.update({(leaf, i): (i, i, i, 0) for i in range(4)})
    for i in (2, 1, 3, 2):
        assert ask(rig, leaf, i)[:3] == (i, i, i)


@pytest.mark.parametrize("leaf", [0, 1, 2, 0x8000_0002, 0x8000_0008])
def test_other_leaves_ignore_the_subleaf(rig: Rig, leaf: int) -> None:
    assert ask(rig, leaf, 77) == ask(rig, leaf, 0)


def test_bits_that_the_toolstack_takes_away(rigs: Callable[..., Rig]) -> None:
    rig = rigs(policy=CpuidPolicy(clear={(1, ECX): 1 << 28, (7, EBX): 1 << 5 | 1}))
    assert not bit(rig, 1, ECX, 28)
    assert bit(rig, 1, ECX, 0)
    assert not bit(rig, 7, EBX, 5)
    assert bit(rig, 7, EBX, 1)


# --- APICs and topology ----------------------------------------------------------------------


def test_apic_ids_are_even(rigs: Callable[..., Rig]) -> None:
    rig = rigs(3)
    assert [apic_id(i) for i in range(4)] == [0, 2, 4, 6]
    for i in range(3):
        assert ask(rig, 1, 0, i)[EBX] >> 24 == 2 * i
        assert [ask(rig, 0xB, sub, i)[EDX] for sub in range(3)] == [2 * i] * 3
        assert ask(rig, 0x8000_001E, 0, i)[EAX] == 2 * i


@pytest.mark.parametrize(("vcpus", "width"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (32, 6)])
def test_one_package_that_holds_all_ids(rigs: Callable[..., Rig], vcpus: int, width: int) -> None:
    rig = rigs(vcpus)
    highest = apic_id(vcpus - 1)
    assert highest >> width == 0
    threads, cores, beyond = (ask(rig, 0xB, sub) for sub in range(3))
    assert threads[:3] == (1, 1, 0x100)
    assert cores[:3] == (width, vcpus, 0x201)
    assert beyond[:3] == (0, 0, 2)
    assert ask(rig, 0xB, 0x1234_5678)[:3] == (0, 0, 0x78)
    assert ask(rig, 1)[EBX] >> 16 & 0xFF > highest
    cores_of_amd = ask(rig, 0x8000_0008)[ECX]
    assert cores_of_amd & 0xFF >= highest
    assert cores_of_amd >> 12 & 0xF == width


@pytest.mark.parametrize(
    ("lapic", "x2apic", "seen"),
    [(True, True, (True, True)), (True, False, (True, False)), (False, True, (False, False))],
)
def test_local_apics_are_the_toolstacks_choice(
    rigs: Callable[..., Rig], lapic: bool, x2apic: bool, seen: tuple[bool, bool]
) -> None:
    rig = rigs(policy=CpuidPolicy(lapic=lapic, x2apic=x2apic, tsc_deadline=True))
    assert (bit(rig, 1, EDX, 9), bit(rig, 1, ECX, 21)) == seen
    assert bit(rig, 0x8000_0001, EDX, 9) is lapic
    assert bit(rig, 1, ECX, 24) is lapic
    # Whether it is virtualized by hardware: only Intel's could be.
    assert not ask(rig, 0x4000_0004)[EAX] & 3


# --- Xen's leaves ----------------------------------------------------------------------------

RECORDED = {
    (0x4000_0000, 0): (0x4000_0005, 0x566E_6558, 0x6558_4D4D, 0x4D4D_566E),
    (0x4000_0001, 0): (4 << 16 | 17, 0, 0, 0),
    (0x4000_0002, 0): (1, 0x4000_0000, 0, 0),
    (0x4000_0002, 1): (1, 0x4000_0000, 0, 0),
    (0x4000_0002, 3): (1, 0x4000_0000, 0, 0),
    (0x4000_0003, 3): (0, 0, 0, 0),
    (0x4000_0005, 0): (0, 0, 0, 0),
    (0x4000_0005, 1): (0, 0, 0, 0),
    (0x4000_0005, 3): (0, 0, 0, 0),
    (0x4000_0006, 0): (0, 0, 0, 0),
    (0x4000_0007, 0): (0, 0, 0, 0),
    (0x4000_00FF, 0): (0, 0, 0, 0),
}


@pytest.mark.parametrize("leaf", RECORDED, ids=lambda leaf: f"{leaf[0]:x}.{leaf[1]}")
def test_recorded_leaves(rig: Rig, leaf: tuple[int, int]) -> None:
    assert ask(rig, *leaf) == RECORDED[leaf]


def test_the_signature_reads_as_text(rig: Rig) -> None:
    words = ask(rig, 0x4000_0000)[1:]
    assert b"".join(word.to_bytes(4, "little") for word in words) == b"XenVMMXenVMM"


@pytest.mark.parametrize("release", [(4, 17), (4, 18), (4, 19), (4, 20), (4, 21)])
def test_the_release(rigs: Callable[..., Rig], release: tuple[int, int]) -> None:
    rig = rigs(release=release)
    assert ask(rig, 0x4000_0001)[EAX] == release[0] << 16 | release[1]
    # 4.17 is the first with XEN_HVM_CPUID_UPCALL_VECTOR; no bit came since.
    assert ask(rig, 0x4000_0004)[EAX] == 0x5C


def test_features_and_identity(rigs: Callable[..., Rig]) -> None:
    rig = rigs(3)
    for i in range(3):
        eax, ebx, ecx, edx = ask(rig, 0x4000_0004, 0, i)
        # IOMMU mappings, vCPU id present, domid present; 5 is never set.
        assert eax & 0x3C == 0x1C
        assert (ebx, ecx, edx) == (i, rig.domain.domid, 0)
    assert ask(rig, 0x4000_0004, 1) == (0, 0, 0, 0)


def test_time(rig: Rig) -> None:
    calibration = rig.domain.calibration
    calibration.khz, calibration.mul, calibration.shift = 2_700_000, 0xBDA1_2F68, -1
    assert ask(rig, 0x4000_0003, 0) == (6, 0, 2_700_000, 1)
    # cpuid.40000003.1: ebx zero, edx nonzero
    assert ask(rig, 0x4000_0003, 1) == (0, 0, 0xBDA1_2F68, M32)
    assert ask(rig, 0x4000_0003, 2) == (2_700_000, 0, 0, 0)


# --- what the engine answers by itself, and hostile guests -----------------------------------


def test_the_engine_answers_what_we_would(rigs: Callable[..., Rig]) -> None:
    rig = rigs(2)
    rig.domain.cpuid.hand_to_engine(rig.domain)
    for i, vcpu in enumerate(rig.domain.vcpus):
        constant = rig.engine(i).constant
        assert {0, 1, 4, 7, 0xB, 0xD, 0x4000_0000, 0x8000_0000} <= set(constant)
        for leaf, answer in constant.items():
            if isinstance(answer, tuple):
                assert answer == rig.domain.cpuid.answer(vcpu, leaf, 0), hex(leaf)
                continue
            for sub, each in enumerate(answer):
                assert each is None or each == rig.domain.cpuid.answer(vcpu, leaf, sub)
        # What depends on the guest's state, or on time, exits.
        assert constant[0xD][:2] == [None, None]
        assert not {0x4000_0003, 0x4000_0004} & set(constant)


def test_no_question_costs_memory_for_good(rig: Rig) -> None:
    vcpu: Vcpu = rig.domain.vcpus[0]
    for i in range(5000):
        for leaf in (0xB, 4, 7, i, 0x8000_0000 + i, 0x1000_0000 + 7 * i):
            rig.domain.cpuid.answer(vcpu, leaf, i * 77_777)
    assert len(rig.domain.cpuid._cache) < 1000
    rig.engine().log.clear()


@given(st.integers(0, M32), st.integers(0, M32))
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_question_has_an_answer(rig: Rig, leaf: int, subleaf: int) -> None:
    answer = ask(rig, leaf, subleaf)
    assert len(answer) == 4
    assert all(0 <= register <= M32 for register in answer)
    assert answer == ask(rig, leaf, subleaf)
