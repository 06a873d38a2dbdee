"""A domain without a hypervisor around it: real pages and calls, fake vCPUs, and a guest's hand.

Tests take the `worlds` fixture, make a World and act in it as a guest (op, send) or as dom0.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hvmlite.abi import event_channel as abi
from hvmlite.abi.layout import Abi, Struct
from hvmlite.abi.xen import shared_info, vcpu_info
from hvmlite.engine.memory import MachineMemory
from hvmlite.hypervisor.call import Call, XenError
from hvmlite.hypervisor.event_channel import OPS, EventChannels
from hvmlite.hypervisor.frames import FrameTable
from hvmlite.hypervisor.memory import GuestAccessError, Page
from hvmlite.hypervisor.physmap import P2mType
from hvmlite.hypervisor.release import RELEASES

ARG = 0x2000
"""Where a guest keeps the argument of its hypercalls (identity-mapped)."""
OP_NUMBERS = {info.name: number for number, info in OPS.items()}


class FakeMemory:
    """Guest-physical memory with pages where a test put them."""

    def __init__(self) -> None:
        self.pages: dict[int, Page] = {}

    def page(self, gfn: int) -> Page:
        if gfn not in self.pages:
            raise GuestAccessError(gfn << 12, 4096)
        return self.pages[gfn]

    def read(self, gpa: int, size: int) -> bytes:
        return self.page(gpa >> 12).read(gpa & 0xFFF, size)

    def write(self, gpa: int, data: bytes) -> None:
        self.page(gpa >> 12).write(gpa & 0xFFF, data)


class FakePhysmap:
    """All of a fake domain's pages are RAM, but those that a test gave another type."""

    def __init__(self, memory: FakeMemory) -> None:
        self._memory = memory
        self.types: dict[int, P2mType] = {}

    def lookup(self, gfn: int) -> tuple[int, P2mType] | None:
        page = self._memory.pages.get(gfn)
        return None if page is None else (page.frame, self.types.get(gfn, P2mType.RAM_RW))


class FakeEngine:
    def translate(self, address: int, *, write: bool) -> int:
        return address


class FakeVcpu:
    def __init__(self, domain: FakeDomain, number: int) -> None:
        self.domain = domain
        self.id = number
        self.engine = FakeEngine()
        self.info_page = domain.shared_info
        self.info_offset = number * vcpu_info.sizeof()
        self.upcalls = 0
        self.poll_ports: tuple[int, ...] = ()
        self.heard: list[int] = []

    def event_pending(self) -> None:
        self.upcalls += 1

    def wake_poll(self, port: int) -> None:
        self.heard.append(port)
        if port in self.poll_ports:
            self.domain.evtchn.polling.discard(self)

    # -- the guest's view of its vcpu_info

    def _word(self, field: str) -> int:
        return self.info_offset + vcpu_info.offsetof(field, self.domain.abi)

    @property
    def upcall_pending(self) -> int:
        return self.info_page.u8[self._word("evtchn_upcall_pending")]

    @upcall_pending.setter
    def upcall_pending(self, value: int) -> None:
        self.info_page.u8[self._word("evtchn_upcall_pending")] = value

    @property
    def selector(self) -> int:
        view = self.info_page.u64 if self.domain.abi is Abi.X86_64 else self.info_page.u32
        return view[self._word("evtchn_pending_sel") // self.domain.abi.word]

    @selector.setter
    def selector(self, value: int) -> None:
        view = self.info_page.u64 if self.domain.abi is Abi.X86_64 else self.info_page.u32
        view[self._word("evtchn_pending_sel") // self.domain.abi.word] = value


class FakeDomain:
    """A domain, and what its guest does."""

    def __init__(self, world: World, domid: int, layout: Abi, vcpus: int) -> None:
        self.world = world
        self.host = world
        self.domid = domid
        self.release = RELEASES[4, 17]
        self.abi = layout
        self.max_evtchn_port = 1023
        self.memory = FakeMemory()
        self.physmap = FakePhysmap(self.memory)
        self.memory.pages[ARG >> 12] = world.new_page()
        self.shared_info = world.new_page()
        self.vcpus = [FakeVcpu(self, number) for number in range(vcpus)]
        self.evtchn = EventChannels(self)
        self.arg = ARG

    def add_page(self, gfn: int) -> Page:
        """Put RAM at a guest frame."""
        page = self.memory.pages[gfn] = self.world.new_page()
        return page

    def call(self, cmd: int, address: int) -> int:
        """The hypercall as its entry treats it."""
        call = Call(self.vcpus[0], self.abi, (cmd, address, 0, 0, 0))
        try:
            return self.evtchn.dispatch(call)
        except XenError as error:
            return -error.errno
        except GuestAccessError:
            return -14

    def op(self, name: str, **fields: int) -> tuple[int, Any]:
        """EVTCHNOP_<name> with the fields of its struct: the result and the struct afterwards."""
        kind: type[Struct] = getattr(abi, f"evtchn_{name}")
        self.memory.write(ARG, kind(**fields).pack(self.abi))
        result = self.call(OP_NUMBERS[f"EVTCHNOP_{name}"], ARG)
        return result, kind.unpack(self.memory.read(ARG, kind.sizeof(self.abi)), self.abi)

    def rc(self, name: str, **fields: int) -> int:
        return self.op(name, **fields)[0]

    def new_port(self, name: str, **fields: int) -> int:
        """Do a binding that must succeed; returns the port."""
        result, arg = self.op(name, **fields)
        assert result == 0
        return arg.local_port if name == "bind_interdomain" else arg.port

    def loop(self) -> tuple[int, int]:
        """An interdomain channel from the domain to itself: the unbound end, then the other."""
        first = self.new_port("alloc_unbound", dom=0x7FF0, remote_dom=0x7FF0)
        second = self.new_port("bind_interdomain", remote_dom=0x7FF0, remote_port=first)
        return first, second

    def status(self, port: int, dom: int = 0x7FF0) -> str:
        """EVTCHNOP_status in the words of the recorded answers."""
        result, arg = self.op("status", dom=dom, port=port)
        if result:
            return str(result)
        text = f"{result} status={arg.status} vcpu={arg.vcpu}"
        if arg.status in (abi.EVTCHNSTAT_unbound, abi.EVTCHNSTAT_interdomain):
            remote = abi.evtchn_status_interdomain.unpack(arg.u, self.abi)
            text += f" dom={'own' if remote.dom == self.domid else remote.dom}"
            if arg.status == abi.EVTCHNSTAT_interdomain:
                text += f" port={'nonzero' if remote.port else 'zero'}"
        elif arg.status == abi.EVTCHNSTAT_virq:
            text += f" virq={struct.unpack_from('<I', arg.u)[0]}"
        return text

    # -- the 2-level words as the guest sees them

    def _bit(self, field: str, port: int) -> tuple[int, int]:
        return shared_info.offsetof(field, self.abi) // 4 + port // 32, 1 << (port % 32)

    def pending(self, port: int) -> int:
        index, bit = self._bit("evtchn_pending", port)
        return int(self.shared_info.u32[index] & bit != 0)

    def masked(self, port: int) -> int:
        index, bit = self._bit("evtchn_mask", port)
        return int(self.shared_info.u32[index] & bit != 0)

    def set_pending(self, port: int, on: bool) -> None:
        index, bit = self._bit("evtchn_pending", port)
        self.shared_info.u32[index] = self.shared_info.u32[index] & ~bit | (bit if on else 0)

    def set_mask(self, port: int, on: bool) -> None:
        index, bit = self._bit("evtchn_mask", port)
        self.shared_info.u32[index] = self.shared_info.u32[index] & ~bit | (bit if on else 0)

    def mask_all(self) -> None:
        """What every guest does first."""
        start = shared_info.offsetof("evtchn_mask", self.abi)
        self.shared_info.write(start, b"\xff" * (self.abi.word * self.abi.word * 8))

    def clear(self, port: int, vcpu: int = 0) -> None:
        """Forget what is pending on a port and a vCPU."""
        self.set_pending(port, False)
        self.vcpus[vcpu].selector = 0
        self.vcpus[vcpu].upcall_pending = 0

    def bits(self, port: int, vcpu: int = 0) -> str:
        """The four bits in the words of the recorded answers."""
        v = self.vcpus[vcpu]
        selected = v.selector >> (port // (8 * self.abi.word)) & 1
        return (
            f"pend={self.pending(port)} mask={self.masked(port)}"
            f" sel={selected} up={v.upcall_pending}"
        )


class World:
    """A host with domains."""

    def __init__(self, machine: MachineMemory, page_type: type[Page] = Page) -> None:
        self.machine = machine
        self.page_type = page_type
        self.frames = FrameTable(machine)
        self.allocated: list[int] = []
        self.domains: dict[int, FakeDomain] = {}

    def new_page(self) -> Page:
        frame = self.machine.allocate(1)
        self.allocated.append(frame)
        return self.page_type(self.machine, frame)

    def new_domain(self, layout: Abi = Abi.X86_64, vcpus: int = 2) -> FakeDomain:
        domid = len(self.domains) + 1
        domain = self.domains[domid] = FakeDomain(self, domid, layout, vcpus)
        return domain

    def domain(self, domid: int) -> FakeDomain | None:
        return self.domains.get(domid)

    def close(self) -> None:
        for domain in self.domains.values():
            domain.evtchn.destroy()
        assert not any(self.frames.references(frame) for frame in self.allocated)
        for frame in self.allocated:
            self.machine.release(frame)


@pytest.fixture(scope="session")
def worlds() -> Iterator[Callable[..., World]]:
    """Makes Worlds. Function-scoped fixtures do not go with hypothesis, hence the factory."""
    machine = MachineMemory(64 << 20)
    made: list[World] = []

    def make(page_type: type[Page] = Page) -> World:
        while made:
            made.pop().close()
        made.append(World(machine, page_type))
        return made[0]

    yield make
    while made:
        made.pop().close()
    machine.close()


@pytest.fixture
def domain(worlds: Callable[..., World]) -> FakeDomain:
    """A 64-bit domain with two vCPUs and all ports masked, as a booted guest has it."""
    guest = worlds().new_domain()
    guest.mask_all()
    return guest
