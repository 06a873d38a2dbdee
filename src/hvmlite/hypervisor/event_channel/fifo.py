"""The FIFO ABI: one word per event in the guest's event array, queues linked through these words.

Only moves bits: what a port is bound to is not its business. Nothing the guest writes is ever
followed: of a tail's word only LINKED is believed, the tails themselves are kept here.
Facts: public/event_channel.h and the design document of the FIFO-based event channel ABI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi.errno import XEN_EINVAL
from hvmlite.abi.event_channel import (
    EVTCHN_FIFO_BUSY,
    EVTCHN_FIFO_LINK_MASK,
    EVTCHN_FIFO_LINKED,
    EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_MAX_QUEUES,
    EVTCHN_FIFO_NR_CHANNELS,
    EVTCHN_FIFO_PENDING,
    EVTCHN_FIFO_PRIORITY_DEFAULT,
    EVTCHN_FIFO_PRIORITY_MIN,
    evtchn_fifo_control_block,
)
from hvmlite.hypervisor.call import XenError
from hvmlite.hypervisor.event_channel.ports import mark_events_pending, wake_pollers

if TYPE_CHECKING:
    from hvmlite.hypervisor.event_channel.interface import Domain, Page, Vcpu
    from hvmlite.hypervisor.event_channel.ports import Port

PENDING = 1 << EVTCHN_FIFO_PENDING
MASKED = 1 << EVTCHN_FIFO_MASKED
LINKED = 1 << EVTCHN_FIFO_LINKED
BUSY = 1 << EVTCHN_FIFO_BUSY

EVENT_WORDS_PER_PAGE = 1024
MAX_EVENT_ARRAY_PAGES = EVTCHN_FIFO_NR_CHANNELS // EVENT_WORDS_PER_PAGE

_LOCKED_LINK_ATTEMPTS = 4
"""With BUSY set a guest that keeps the rules can change the word this often, no more."""


class Queue:
    """The queue of one vCPU and priority. `control` is None until the vCPU has a control block."""

    __slots__ = ("control", "head_index", "ready_bit", "ready_index", "tail", "vcpu")

    def __init__(self, vcpu: Vcpu, priority: int) -> None:
        self.vcpu = vcpu
        self.control: Page | None = None
        self.head_index = 0
        self.ready_index = 0
        self.ready_bit = 1 << priority
        self.tail: Port | None = None


class Fifo:
    """Port operations of the FIFO ABI, from the first control block to the next reset."""

    max_ports = EVTCHN_FIFO_NR_CHANNELS

    def __init__(self, domain: Domain, polling: set[Vcpu]) -> None:
        self._queues = [
            [Queue(vcpu, priority) for priority in range(EVTCHN_FIFO_MAX_QUEUES)]
            for vcpu in domain.vcpus
        ]
        self._pages: list[Page] = []
        self._frames = domain.host.frames
        self._held: list[int] = []
        self._polling = polling

    def map_control_block(self, vcpu: Vcpu, page: Page, offset: int) -> None:
        """Give a vCPU its control block, `offset` bytes into `page` (checked by the caller)."""
        self._hold(page)
        head = evtchn_fifo_control_block.offsetof("head")
        ready = evtchn_fifo_control_block.offsetof("ready")
        for priority, queue in enumerate(self._queues[vcpu.id]):
            queue.head_index = (offset + head >> 2) + priority
            queue.ready_index = offset + ready >> 2
            queue.control = page

    def has_control_block(self, vcpu: Vcpu) -> bool:
        """Whether a vCPU has its control block."""
        return self._queues[vcpu.id][0].control is not None

    @property
    def array_full(self) -> bool:
        """Whether the event array has a word for every port there can be."""
        return len(self._pages) >= MAX_EVENT_ARRAY_PAGES

    def add_page(self, page: Page, ports: list[Port]) -> None:
        """Add a page to the event array (not full) and deliver what its ports have waiting."""
        first = len(self._pages) * EVENT_WORDS_PER_PAGE
        self._hold(page)
        self._pages.append(page)
        for port in ports[first : first + EVENT_WORDS_PER_PAGE]:
            port.page = page
            port.word = port.number % EVENT_WORDS_PER_PAGE
            if port.saved_pending:
                port.saved_pending = False
                port.deliver(port)

    def release(self) -> None:
        """Let go of the guest's pages; the object is of no use after it."""
        while self._held:
            self._frames.put(self._held.pop())

    def _hold(self, page: Page) -> None:
        # The guest may give the page away while events still go there.
        self._frames.get(page.frame)
        self._held.append(page.frame)

    def place(self, port: Port) -> None:
        """Give a port its word, if the array reaches that far, and its queue."""
        slot, port.word = divmod(port.number, EVENT_WORDS_PER_PAGE)
        port.page = self._pages[slot] if slot < len(self._pages) else None
        port.priority = EVTCHN_FIFO_PRIORITY_DEFAULT
        vcpu_id = port.vcpu.id if port.usable else 0
        port.queue = port.last_queue = self._queues[vcpu_id][port.priority]

    def bound(self, port: Port) -> None:
        """Start with the default priority."""
        port.priority = EVTCHN_FIFO_PRIORITY_DEFAULT
        self.retarget(port)

    def retarget(self, port: Port) -> None:
        """Send events to come to the queue of the port's vCPU and priority."""
        port.queue = self._queues[port.vcpu.id][port.priority]

    def set_pending(self, port: Port) -> None:
        """Set PENDING; link the event to its queue unless it is masked or linked already."""
        page = port.page
        if page is None:
            port.saved_pending = True
            return
        queue = port.queue
        control = queue.control
        if control is None:
            # The guest must not unmask an event before its vCPU has a control block.
            return
        word = port.word
        old = page.fetch_or32(word, PENDING)
        if not old & (MASKED | LINKED) and not page.fetch_or32(word, LINKED) & LINKED:
            # A tail that was unlinked in the meantime must not be linked to later.
            last = port.last_queue
            if last.tail is port:
                last.tail = None
            port.last_queue = queue
            tail = queue.tail
            queue.tail = port
            if tail is None or not self._set_link(tail, port.number):
                control.u32[queue.head_index] = port.number
                bit = queue.ready_bit
                if not control.fetch_or32(queue.ready_index, bit) & bit:
                    mark_events_pending(queue.vcpu)
        if self._polling and not old & PENDING:
            wake_pollers(self._polling, port)

    def clear_pending(self, port: Port) -> None:
        """Clear PENDING; a linked event stays linked, the guest unlinks and ignores it."""
        port.saved_pending = False
        if port.page is not None:
            port.page.fetch_and32(port.word, ~PENDING & 0xFFFFFFFF)

    def unmask(self, port: Port) -> None:
        """Clear MASKED; link the event if it is pending."""
        page = port.page
        if page is None:
            return
        if page.fetch_and32(port.word, ~MASKED & 0xFFFFFFFF) & PENDING:
            self.set_pending(port)

    def is_pending(self, port: Port) -> bool:
        """Whether PENDING is set."""
        return port.page is not None and port.page.u32[port.word] & PENDING != 0

    def is_masked(self, port: Port) -> bool:
        """Whether MASKED is set; a port without a word counts as masked."""
        return port.page is None or port.page.u32[port.word] & MASKED != 0

    def is_busy(self, port: Port) -> bool:
        """Whether the guest has yet to unlink the port from a queue."""
        return port.page is not None and port.page.u32[port.word] & LINKED != 0

    def set_priority(self, port: Port, priority: int) -> None:
        """Set the priority of events to come; a linked event stays where it is.

        Raises XenError(EINVAL) for one that does not exist.
        """
        if priority > EVTCHN_FIFO_PRIORITY_MIN:
            raise XenError(XEN_EINVAL)
        port.priority = priority
        self.retarget(port)

    def describe(self, port: Port) -> str:
        """The flags and the link of the port's word."""
        if port.page is None:
            return "no event array page"
        word = port.page.u32[port.word]
        return (
            f"priority={port.priority} linked={int(word & LINKED != 0)}"
            f" busy={int(word & BUSY != 0)} link={word & EVTCHN_FIFO_LINK_MASK}"
        )

    @staticmethod
    def _set_link(tail: Port, number: int) -> bool:
        """Link `tail` to a port if `tail` is still linked itself; False: its queue is empty."""
        page = tail.page
        if page is None:
            return False
        index = tail.word
        word = page.u32[index]
        if not word & LINKED:
            return False
        old = page.cmpxchg32(index, word, word & ~(BUSY | EVTCHN_FIFO_LINK_MASK) | number)
        if old == word:
            return True
        # BUSY keeps the guest from unmasking, which bounds how often the word changes under us.
        page.fetch_or32(index, BUSY)
        word = page.u32[index]
        for _ in range(_LOCKED_LINK_ATTEMPTS):
            if not word & LINKED:
                page.fetch_and32(index, ~BUSY & 0xFFFFFFFF)
                return False
            old = page.cmpxchg32(index, word, word & ~(BUSY | EVTCHN_FIFO_LINK_MASK) | number)
            if old == word:
                return True
            word = old
        # The guest breaks the rules; what it loses is its own event.
        page.fetch_and32(index, ~BUSY & 0xFFFFFFFF)
        return True
