"""The 2-level ABI: pending and mask bits in shared_info, a selector word in vcpu_info.

Only moves bits: what a port is bound to is not its business. A 32-bit guest has 32 words of 32
bits (1024 ports), a 64-bit guest 64 of 64 (4096). Facts: public/xen.h and public/event_channel.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi.xen import shared_info, vcpu_info
from hvmlite.hypervisor.event_channel.ports import mark_events_pending, wake_pollers

if TYPE_CHECKING:
    from hvmlite.hypervisor.event_channel.interface import Domain, Vcpu
    from hvmlite.hypervisor.event_channel.ports import Port


class TwoLevel:
    """Port operations of the 2-level ABI in the domain's current layout."""

    def __init__(self, domain: Domain, polling: set[Vcpu]) -> None:
        abi = domain.abi
        self._bits = 8 * abi.word
        self._page = domain.shared_info
        # All offsets in units of 32 bits: bit n of the array is the same bit in either word size.
        self._pending = shared_info.offsetof("evtchn_pending", abi) >> 2
        self._mask = shared_info.offsetof("evtchn_mask", abi) >> 2
        self._select = vcpu_info.offsetof("evtchn_pending_sel", abi) >> 2
        self._polling = polling
        self.max_ports = self._bits * self._bits

    def place(self, port: Port) -> None:
        """Work out the words and bits of a port."""
        number = port.number
        in_reach = number < self.max_ports
        # A port that a change to 32-bit mode left out of reach has no bits: nothing can set it.
        port.bit = 1 << (number & 31) if in_reach else 0
        index = number >> 5 if in_reach else 0
        port.pending_index = self._pending + index
        port.mask_index = self._mask + index
        selector = number // self._bits if in_reach else 0
        port.select_index = self._select + (selector >> 5)
        port.select_bit = 1 << (selector & 31)

    def bound(self, port: Port) -> None:
        """Nothing to do: the bits are as the guest and the last close left them."""

    def retarget(self, port: Port) -> None:
        """Nothing to do: the vCPU is looked up with each event."""

    def set_pending(self, port: Port) -> None:
        """Set the pending bit; if it was clear and is not masked, the selector's and the vCPU's."""
        page = self._page
        bit = port.bit
        if page.fetch_or32(port.pending_index, bit) & bit == bit:
            return
        if not page.u32[port.mask_index] & bit:
            self._select_vcpu(port)
        if self._polling:
            wake_pollers(self._polling, port)

    def clear_pending(self, port: Port) -> None:
        """Clear the pending bit; the selector's stays, the guest finds nothing behind it."""
        self._page.fetch_and32(port.pending_index, ~port.bit & 0xFFFFFFFF)

    def unmask(self, port: Port) -> None:
        """Clear the mask bit; if it was set and an event is pending, deliver it."""
        page = self._page
        bit = port.bit
        if (
            page.fetch_and32(port.mask_index, ~bit & 0xFFFFFFFF) & bit
            and page.u32[port.pending_index] & bit
        ):
            self._select_vcpu(port)

    def is_pending(self, port: Port) -> bool:
        """Whether the pending bit is set."""
        return self._page.u32[port.pending_index] & port.bit != 0

    def is_masked(self, port: Port) -> bool:
        """Whether the mask bit is set; a port out of reach counts as masked."""
        return not port.bit or self._page.u32[port.mask_index] & port.bit != 0

    def is_busy(self, port: Port) -> bool:
        """Never: a closed port leaves nothing behind."""
        return False

    def describe(self, port: Port) -> str:
        """The selector bit that covers the port."""
        vcpu = port.vcpu
        selector = vcpu.info_page.u32[(vcpu.info_offset >> 2) + port.select_index]
        return f"sel={int(selector & port.select_bit != 0)}"

    def vcpu_info_moved(self, vcpu: Vcpu) -> None:
        """Set every selector bit of a vCPU."""
        first = (vcpu.info_offset >> 2) + self._select
        for index in range(first, first + (self._bits >> 5)):
            vcpu.info_page.fetch_or32(index, 0xFFFFFFFF)

    @staticmethod
    def _select_vcpu(port: Port) -> None:
        vcpu = port.vcpu
        bit = port.select_bit
        index = (vcpu.info_offset >> 2) + port.select_index
        if not vcpu.info_page.fetch_or32(index, bit) & bit:
            mark_events_pending(vcpu)
