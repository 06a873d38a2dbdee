"""The bus that joins the local APICs of a domain: it finds who an interrupt message is for.

It resolves destinations and hands on; what NMI, INIT and start-up do to a vCPU is its owner's.
Facts: Intel SDM volume 3, "Issuing Interprocessor Interrupts"; Xen's arch/x86/hvm/vlapic.c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from hvmlite.platform.apicdef import (
    APIC_DEST_ALLINC,
    APIC_DEST_MASK,
    APIC_DEST_NOSHORT,
    APIC_DEST_SELF,
    APIC_DM_FIXED,
    APIC_DM_INIT,
    APIC_DM_LOWEST,
    APIC_DM_MASK,
    APIC_DM_NMI,
    APIC_DM_STARTUP,
    APIC_INT_ASSERT,
    APIC_INT_LEVELTRIG,
    APIC_SHORT_MASK,
    APIC_VECTOR_MASK,
    FIRST_VECTOR,
)

if TYPE_CHECKING:
    from hvmlite.platform.lapic import LocalApic

_BROADCAST_XAPIC: Final = 0xFF
_BROADCAST_X2APIC: Final = 0xFFFF_FFFF


def _ignore(_: int) -> None:
    pass


class ApicBus:
    """The local APICs of one domain, and the way from them to their vCPUs.

    `on_interrupt(vcpu_id)`: another vector has become deliverable; `pending_vector` has it.
    `on_nmi(vcpu_id)`, `on_sipi(vcpu_id, vector)`: that message has arrived.
    `on_init(vcpu_id)`: INIT has arrived; the APIC has been reset already.
    `on_eoi(vector)`: a level-triggered interrupt has ended (what an IO-APIC waits for).
    `on_software_enable(vcpu_id)`: the guest wrote SPIV with the APIC enabled. Xen then requests
    the vCPU's upcall vector if its evtchn_upcall_pending is set.
    """

    __slots__ = (
        "_by_id",
        "_last_lowest",
        "apics",
        "on_eoi",
        "on_init",
        "on_interrupt",
        "on_nmi",
        "on_sipi",
        "on_software_enable",
    )

    def __init__(
        self,
        on_interrupt: Callable[[int], None],
        on_nmi: Callable[[int], None],
        on_init: Callable[[int], None],
        on_sipi: Callable[[int, int], None],
        on_eoi: Callable[[int], None] = _ignore,
        on_software_enable: Callable[[int], None] = _ignore,
    ) -> None:
        self.on_interrupt = on_interrupt
        self.on_nmi = on_nmi
        self.on_init = on_init
        self.on_sipi = on_sipi
        self.on_eoi = on_eoi
        self.on_software_enable = on_software_enable
        self.apics: list[LocalApic] = []
        self._by_id: dict[int, list[LocalApic]] = {}
        self._last_lowest = -1

    def attach(self, apic: LocalApic) -> None:
        """Add an APIC."""
        self.apics.append(apic)
        self.ids_changed()

    def ids_changed(self) -> None:
        """An APIC has another physical id or mode than before."""
        self._by_id = {}
        for apic in self.apics:
            broadcast = _BROADCAST_X2APIC if apic.in_x2apic_mode else _BROADCAST_XAPIC
            for physical_id in {apic.physical_id(), broadcast}:
                self._by_id.setdefault(physical_id, []).append(apic)

    def route(self, source: LocalApic, icr: int, destination: int) -> None:
        """Send what an APIC's ICR says: its low 32 bits, and the destination of its high half."""
        shorthand = icr & APIC_SHORT_MASK
        if shorthand == APIC_DEST_NOSHORT:
            targets = self._destined(destination, bool(icr & APIC_DEST_MASK))
        elif shorthand == APIC_DEST_SELF:
            targets = (source,)
        elif shorthand == APIC_DEST_ALLINC:
            targets = self.apics
        else:
            targets = [apic for apic in self.apics if apic is not source]
        mode = icr & APIC_DM_MASK
        vector = icr & APIC_VECTOR_MASK
        if mode in (APIC_DM_FIXED, APIC_DM_LOWEST) and vector < FIRST_VECTOR:
            source.send_illegal_vector()
        elif mode != APIC_DM_INIT or icr & (APIC_INT_LEVELTRIG | APIC_INT_ASSERT) != (
            APIC_INT_LEVELTRIG
        ):
            # The exception is INIT level de-assert, which has had no effect since the Pentium 4.
            self._deliver(targets, mode, vector, False)

    def send(
        self, destination: int, logical: bool, mode: int, vector: int, level: bool = False
    ) -> None:
        """Send a message that comes from no APIC: a line of an IO-APIC, or an MSI.

        `mode` is a delivery mode in the ICR's place (APIC_DM_FIXED and so on).
        """
        self._deliver(self._destined(destination, logical), mode, vector, level)

    def _destined(self, destination: int, logical: bool) -> Sequence[LocalApic]:
        if logical:
            return [apic for apic in self.apics if apic.matches_logical(destination)]
        return self._by_id.get(destination, ())

    def _deliver(self, targets: Sequence[LocalApic], mode: int, vector: int, level: bool) -> None:
        if mode == APIC_DM_FIXED:
            for apic in targets:
                if apic.enabled:
                    apic.set_irq(vector, level)
        elif mode == APIC_DM_LOWEST:
            lowest = self._lowest_priority(targets)
            if lowest is not None:
                lowest.set_irq(vector, level)
        elif mode == APIC_DM_NMI:
            for apic in targets:
                self.on_nmi(apic.vcpu_id)
        elif mode == APIC_DM_INIT:
            for apic in targets:
                apic.init()
                self.on_init(apic.vcpu_id)
        elif mode == APIC_DM_STARTUP:
            for apic in targets:
                self.on_sipi(apic.vcpu_id, vector)

    def _lowest_priority(self, targets: Sequence[LocalApic]) -> LocalApic | None:
        # Among equals they take turns, beginning behind the one that had the last.
        count = max((apic.vcpu_id for apic in self.apics), default=0) + 1
        candidates = [apic for apic in targets if apic.enabled]
        if not candidates:
            return None
        lowest = min(
            candidates,
            key=lambda apic: (apic.ppr(), (apic.vcpu_id - self._last_lowest - 1) % count),
        )
        self._last_lowest = lowest.vcpu_id
        return lowest
