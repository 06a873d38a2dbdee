"""A guest whose clock a test sets, and whose vCPUs have features and remember what was loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from hvmlite.abi.layout import Abi
from hvmlite.engine.base import CpuState
from hvmlite.hypervisor.clock import Clock
from hvmlite.hypervisor.domain import Domain
from hvmlite.hypervisor.release import RELEASES
from hvmlite.hypervisor.vcpu import Vcpu

IF = 1 << 9
START = 1_000_000_000_000
UNMAPPED = 0x800
"""An address in the page that the fake tables leave out."""
NO_RAM = 0xD000_0000


class ManualClock(Clock):
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.time = START

    def now(self) -> int:
        return self.time


class Features:
    """A CPUID policy that offers everything but what is in `missing`: (leaf, register, bit)."""

    def __init__(self) -> None:
        self.missing: set[tuple[int, int, int]] = set()

    def answer(self, _vcpu: Vcpu, leaf: int, _subleaf: int) -> tuple[int, ...]:
        return tuple(
            0xFFFF_FFFF
            & ~sum(1 << bit for at, r, bit in self.missing if (at, r) == (leaf, register))
            for register in range(4)
        )


@dataclass
class Setup:
    """One guest and the ends of it that a test holds."""

    guest: Any
    clock: ManualClock
    features: Features
    loaded: dict[int, CpuState] = field(default_factory=dict)

    @property
    def domain(self) -> Domain:
        domain: Domain = self.guest.domain
        return domain

    def vcpu(self, index: int = 0) -> Vcpu:
        return self.domain.vcpus[index]

    def call(self, number: int, *args: int, vcpu: int = 0) -> int:
        """Issues a hypercall; the vCPU is stopped meanwhile, as after an exit."""
        self.domain.vcpus[vcpu].running = False
        result: int = self.guest.hypercall(number, *args, vcpu=vcpu)
        return result

    def place(self, value: Any) -> int:
        """Puts a struct (in the guest's layout) or bytes in its memory."""
        data = value if isinstance(value, bytes) else value.pack(self.guest.abi)
        address: int = self.guest.place(data)
        return address

    def get(self, address: int, kind: Any) -> Any:
        return self.guest.get(address, kind)

    def pass_time(self, ns: int) -> None:
        """Moves the clock on, stopping at each timer that is due on the way."""
        end = self.clock.time + ns
        timers = self.guest.host.timers
        while timers.next <= end:
            self.clock.time = max(self.clock.time, timers.next)
            timers.run(self.clock.time)
        self.clock.time = end


@pytest.fixture
def setup(guests: Callable[..., Any]) -> Callable[..., Setup]:
    """Makes guests: `setup(abi=..., vcpus=..., release=(4, 18))`."""

    def make(abi: Abi = Abi.X86_64, vcpus: int = 2, release: tuple[int, int] = (4, 17)) -> Setup:
        guest = guests(abi=abi, vcpus=vcpus)
        clock, features = ManualClock(), Features()
        guest.domain.clock = clock
        guest.domain.cpuid = features
        guest.domain.release = RELEASES[release]
        guest.domain.abi = abi
        guest.domain.evtchn.abi_changed()
        made = Setup(guest, clock, features)
        for vcpu in guest.domain.vcpus:
            vcpu.runstate.entered = clock.time
            vcpu.engine.load = lambda state, index=vcpu.id: made.loaded.update({index: state})
        guest.domain.vcpus[0].initialised = True
        guest.domain.vcpus[0].bring_up()
        return made

    return make
