"""Where Xen writes a vCPU's run state and time besides vcpu_info: areas that the guest registered.

By guest-virtual address (walked anew at each write: the guest may change its tables) or, since
4.18, by guest-physical one.  Facts: public/vcpu.h; the order of the writes is real Xen's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from hvmlite.abi.layout import Abi
from hvmlite.abi.vcpu import XEN_RUNSTATE_UPDATE, vcpu_runstate_info
from hvmlite.abi.xen import VMASST_TYPE_runstate_update_flag, vcpu_time_info
from hvmlite.hypervisor.call import Call
from hvmlite.hypervisor.memory import GuestAccessError, Page

if TYPE_CHECKING:
    from hvmlite.hypervisor.host import Host
    from hvmlite.hypervisor.vcpu import Vcpu

_UPDATE_FLAG = 1 << VMASST_TYPE_runstate_update_flag
# The byte of state_entry_time that holds XEN_RUNSTATE_UPDATE.
_FLAG_BYTE = {abi: vcpu_runstate_info.offsetof("state_entry_time", abi) + 7 for abi in Abi}
_VERSION_SIZE = 4


class Area(Protocol):
    """A range of guest memory."""

    def write(self, offset: int, data: bytes) -> None:
        """Stores bytes at an offset; raises GuestAccessError."""


class VirtualArea:
    """An area by its linear address in whatever tables the vCPU runs with."""

    __slots__ = ("_address", "_call")

    def __init__(self, vcpu: Vcpu, address: int) -> None:
        self._call = Call(vcpu, Abi.X86_64, ())
        self._address = address

    def write(self, offset: int, data: bytes) -> None:
        """Stores bytes at an offset; the vCPU must be stopped.  Raises GuestAccessError."""
        self._call.write_guest(self._address + offset, data)


class PhysicalArea:
    """An area within one page, which cannot be reused until `release`."""

    __slots__ = ("_host", "_offset", "_page", "abi")

    def __init__(self, host: Host, page: Page, offset: int, abi: Abi) -> None:
        self._host = host
        self._page = page
        self._offset = offset
        self.abi = abi
        host.frames.get(page.frame)

    def write(self, offset: int, data: bytes) -> None:
        """Stores bytes at an offset."""
        self._page.write(self._offset + offset, data)

    def release(self) -> None:
        """Lets the page go."""
        self._host.frames.put(self._page.frame)


class Areas:
    """The areas of one vCPU; `runstate` and `time` say whether there are any to keep up."""

    __slots__ = ("_physical", "_vcpu", "_virtual", "runstate", "time")

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self._virtual: dict[type, VirtualArea] = {}
        self._physical: dict[type, PhysicalArea] = {}
        self.runstate = False
        self.time = False

    def set_virtual(self, kind: type, address: int) -> None:
        """Sets the area for a vcpu_runstate_info or vcpu_time_info; address 0 takes it away."""
        if address:
            self._virtual[kind] = VirtualArea(self._vcpu, address)
        else:
            self._virtual.pop(kind, None)
        self._update()

    def set_physical(self, kind: type, area: PhysicalArea | None) -> None:
        """The same by guest-physical address."""
        old = self._physical.pop(kind, None)
        if old is not None:
            old.release()
        if area is not None:
            self._physical[kind] = area
        self._update()

    def _update(self) -> None:
        kinds = self._virtual.keys() | self._physical.keys()
        self.runstate = vcpu_runstate_info in kinds
        self.time = vcpu_time_info in kinds

    def release(self) -> None:
        """Forgets all areas."""
        for area in self._physical.values():
            area.release()
        self._virtual.clear()
        self._physical.clear()
        self._update()

    def write_runstate(self) -> None:
        """Writes the run state, as of its last change, to where the guest wants it."""
        virtual = self._virtual.get(vcpu_runstate_info)
        if virtual is not None:
            self._write_runstate(virtual, self._vcpu.domain.abi)
        physical = self._physical.get(vcpu_runstate_info)
        if physical is not None:
            self._write_runstate(physical, physical.abi)

    def _write_runstate(self, area: Area, abi: Abi) -> None:
        runstate = self._vcpu.runstate
        info = vcpu_runstate_info(runstate.state, runstate.entered, tuple(runstate.times))
        try:
            if not self._vcpu.domain.vm_assist & _UPDATE_FLAG:
                area.write(0, info.pack(abi))
                return
            info.state_entry_time |= XEN_RUNSTATE_UPDATE
            data, at = info.pack(abi), _FLAG_BYTE[abi]
            area.write(at, data[at : at + 1])
            area.write(0, data)
            area.write(at, bytes((data[at] & 0x7F,)))
        except GuestAccessError:
            # Xen drops an update that the guest's tables do not let through.
            return

    def write_time(self) -> None:
        """Writes the time record to where the guest wants it; version odd while it changes."""
        calibration = self._vcpu.domain.calibration
        version = 2 * calibration.generation & 0xFFFF_FFFF
        data = calibration.record(version + 1 & 0xFFFF_FFFF).pack()
        for area in (self._virtual.get(vcpu_time_info), self._physical.get(vcpu_time_info)):
            if area is None:
                continue
            try:
                area.write(0, data[:_VERSION_SIZE])
                area.write(_VERSION_SIZE, data[_VERSION_SIZE:])
                area.write(0, (version + 2 & 0xFFFF_FFFF).to_bytes(_VERSION_SIZE, "little"))
            except GuestAccessError:
                continue
