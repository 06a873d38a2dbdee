"""The local APICs of a domain, as a PVH guest sees them: xAPIC by MMIO and x2APIC by MSR.

They hold interrupts until a vCPU takes them; they know no vCPU, no event channel and no address
map. Facts: Intel SDM volume 3, chapter "APIC"; AMD APM volume 2, chapter 16; where a domU sees
something else, Xen's arch/x86/hvm/vlapic.c.
"""

from collections.abc import Callable
from typing import Final

from hvmlite.errors import UserError
from hvmlite.hypervisor.fault import GeneralProtection
from hvmlite.platform.apic_bus import ApicBus
from hvmlite.platform.apicdef import (
    APIC_BASE_ADDR_MASK,
    APIC_BASE_BSP,
    APIC_BASE_ENABLE,
    APIC_BASE_EXTD,
    APIC_DEFAULT_PHYS_BASE,
    APIC_DEST_SELF,
    APIC_DFR,
    APIC_DFR_CLUSTER,
    APIC_DFR_FLAT,
    APIC_DM_FIXED,
    APIC_DM_MASK,
    APIC_DM_NMI,
    APIC_EOI,
    APIC_ESR,
    APIC_ESR_RECVILL,
    APIC_ESR_SENDILL,
    APIC_ICR,
    APIC_ICR2,
    APIC_ICR_BUSY,
    APIC_ID,
    APIC_ISR,
    APIC_LDR,
    APIC_LVR,
    APIC_LVT_MASKED,
    APIC_LVTERR,
    APIC_LVTT,
    APIC_PROCPRI,
    APIC_SELF_IPI,
    APIC_SPIV,
    APIC_SPIV_APIC_ENABLED,
    APIC_TASKPRI,
    APIC_TDCR,
    APIC_TIMER_MODE_SHIFT,
    APIC_TMCCT,
    APIC_TMICT,
    APIC_VECTOR_MASK,
    FIRST_VECTOR,
    LVT_WRITABLE,
    MSR_APIC_BASE,
    MSR_TSC_DEADLINE,
    MSR_X2APIC_FIRST,
    MSR_X2APIC_LAST,
    X2APIC_READABLE,
    X2APIC_WRITABLE,
)
from hvmlite.platform.lapic_timer import STOPPED, ApicTimer, TimerMode, TimerQueue
from hvmlite.records import record

__all__ = ("VLAPIC_VERSION", "ApicBus", "LapicState", "LocalApic")

VLAPIC_VERSION: Final = 0x0005_0014
"""Version 0x14, six LVT entries, no directed EOI."""

_U32: Final = 0xFFFF_FFFF
_ALL_VECTORS: Final = (1 << 256) - (1 << FIRST_VECTOR)


@record(frozen=True)
class LapicState:
    """What a save records of one LocalApic."""

    apic_base: int
    regs: tuple[int, ...]
    """The 32-bit registers without ISR, TMR and IRR, by offset >> 4."""
    isr: int
    tmr: int
    irr: int
    pending_esr: int
    tsc_deadline: int
    timer_elapsed_ns: int
    """Nanoseconds since the count was loaded; STOPPED if the timer does not count."""


class LocalApic:
    """The local APIC of one vCPU; its APIC id is twice the vCPU's number, as on Xen.

    `x2apic`: it starts in x2APIC mode (real Xen starts a PVH domU in xAPIC mode).
    `x2apic_available`: the guest's CPUID offers x2APIC; without it, entering that mode is #GP.
    `tsc_to_ns` turns a TSC value of this vCPU into the time of `timers`; by default both began at
    0 and the TSC runs at `tsc_khz`.
    irr, isr and tmr hold vector v in bit v.
    """

    __slots__ = (
        "_again",
        "_apic_base",
        "_bus",
        "_enabled",
        "_offered",
        "_pending",
        "apic_id",
        "irr",
        "isr",
        "pending_esr",
        "regs",
        "timer",
        "tmr",
        "vcpu_id",
        "x2apic_available",
    )

    def __init__(
        self,
        vcpu_id: int,
        bus: ApicBus,
        timers: TimerQueue,
        tsc_khz: int,
        x2apic: bool = False,
        *,
        tsc_to_ns: Callable[[int], int] | None = None,
        x2apic_available: bool = True,
    ) -> None:
        def default_tsc_to_ns(tsc: int) -> int:
            return tsc * 1_000_000 // tsc_khz

        self.vcpu_id = vcpu_id
        self.apic_id = 2 * vcpu_id
        self.x2apic_available = x2apic_available or x2apic
        self._bus = bus
        self.timer = ApicTimer(timers, tsc_to_ns or default_tsc_to_ns, self._timer_expired)
        self.regs = [0] * 0x40
        self.reset()
        bus.attach(self)
        if x2apic:
            self.apic_base |= APIC_BASE_EXTD

    def reset(self) -> None:
        """Return to the power-on state: xAPIC mode, enabled in APIC_BASE, disabled in SPIV."""
        self._apic_base = APIC_DEFAULT_PHYS_BASE | APIC_BASE_ENABLE
        if self.vcpu_id == 0:
            self._apic_base |= APIC_BASE_BSP
        self.regs[APIC_ID >> 4] = self.apic_id << 24 & _U32
        self.init()

    def init(self) -> None:
        """Return to the state after INIT: the mode, the id and (in x2APIC mode) the LDR stay."""
        regs = self.regs
        kept = regs[APIC_ID >> 4], regs[APIC_LDR >> 4] if self.in_x2apic_mode else 0
        regs[:] = [0] * len(regs)
        regs[APIC_ID >> 4], regs[APIC_LDR >> 4] = kept
        regs[APIC_LVR >> 4] = VLAPIC_VERSION
        regs[APIC_DFR >> 4] = APIC_DFR_FLAT
        regs[APIC_SPIV >> 4] = APIC_VECTOR_MASK
        for offset in LVT_WRITABLE:
            regs[offset >> 4] = APIC_LVT_MASKED
        self.irr = self.isr = self.tmr = self.pending_esr = 0
        self._offered = -1
        self._again = False
        self.timer.reset()
        self._enabled = False
        self._pending = -1

    # ---- mode --------------------------------------------------------------------------------

    @property
    def in_x2apic_mode(self) -> bool:
        """Whether registers are reached by MSR."""
        return bool(self._apic_base & APIC_BASE_EXTD)

    @property
    def in_xapic_mode(self) -> bool:
        """Whether registers are reached in the page at APIC_DEFAULT_PHYS_BASE."""
        return self._apic_base & (APIC_BASE_ENABLE | APIC_BASE_EXTD) == APIC_BASE_ENABLE

    @property
    def apic_base(self) -> int:
        """MSR APIC_BASE. Setting it raises GeneralProtection for a transition that is not one.

        As in recent Xen, the xAPIC page may not be moved (4.17 let it, and it then did not work).
        """
        return self._apic_base

    @apic_base.setter
    def apic_base(self, value: int) -> None:
        extd = APIC_BASE_EXTD if self.x2apic_available else 0
        if value & ~(APIC_BASE_ADDR_MASK | APIC_BASE_ENABLE | APIC_BASE_BSP | extd):
            raise GeneralProtection
        mode = value & (APIC_BASE_ENABLE | APIC_BASE_EXTD)
        if mode == APIC_BASE_EXTD:
            raise GeneralProtection
        if mode == APIC_BASE_ENABLE and value & APIC_BASE_ADDR_MASK != APIC_DEFAULT_PHYS_BASE:
            raise GeneralProtection
        old = self._apic_base & (APIC_BASE_ENABLE | APIC_BASE_EXTD)
        if mode != old:
            if not old:
                if mode != APIC_BASE_ENABLE:
                    raise GeneralProtection
                self.reset()
            elif not mode:
                self._apic_base = value
                self.init()
            elif old != APIC_BASE_ENABLE:
                raise GeneralProtection
        self._apic_base = value
        if mode & APIC_BASE_EXTD:
            self._set_x2apic_id()
        self._bus.ids_changed()

    def _set_x2apic_id(self) -> None:
        self.regs[APIC_ID >> 4] = self.apic_id
        self.regs[APIC_LDR >> 4] = (self.apic_id & ~0xF) << 12 | 1 << (self.apic_id & 0xF)

    # ---- interrupts --------------------------------------------------------------------------

    @property
    def enabled(self) -> bool:
        """Whether it delivers interrupts: enabled in APIC_BASE and in SPIV."""
        return self._enabled

    def pending_vector(self) -> int:
        """The vector to deliver now, or -1: the highest requested one above the PPR's class."""
        return self._pending

    def set_irq(self, vector: int, level: bool = False) -> None:
        """Request an interrupt; one that is already requested merges with it.

        `level`: the EOI is announced to the bus (`on_eoi`).
        """
        bit = 1 << vector
        if vector < FIRST_VECTOR:
            self._error(APIC_ESR_RECVILL)
            return
        if level:
            self.tmr |= bit
        else:
            self.tmr &= ~bit
        if not self.irr & bit:
            self.irr |= bit
            if vector > self._pending:
                self._evaluate()
        elif vector == self._offered and not self._again:
            # It may have been taken already: who knows?  The owner, once the CPU has stopped.
            self._again = True
            self._bus.on_interrupt(self.vcpu_id)

    def offer(self, vector: int) -> bool:
        """The CPU runs and may take the pending vector at any moment, until `settle`.

        Returns whether nothing would come of that interrupt's EOI: nothing else is in service or
        requested, nobody waits for it, and it is written to an MSR.
        """
        self._offered = vector
        bit = 1 << vector
        return (
            self.irr == bit
            and not self.isr
            and not self.tmr & bit
            and self._apic_base & APIC_BASE_EXTD != 0
        )

    def settle(self, *, taken: bool, ended: bool) -> None:
        """The CPU has stopped and has `taken` the offered vector or not.

        One that was requested again meanwhile is taken once more: rather twice than never.
        `ended`: the EOI of what was taken goes unseen, and counts as written.
        """
        vector, again = self._offered, self._again
        self._offered = -1
        self._again = False
        if taken and vector >= 0:
            self.acknowledge(vector)
            if ended:
                self.isr &= ~(1 << vector)
            if again:
                self.irr |= 1 << vector
            if ended or again:
                self._evaluate()

    def acknowledge(self, vector: int) -> int:
        """The vCPU takes the interrupt that `pending_vector` named; returns the vector to enter.

        That is the spurious one if the request has been withdrawn meanwhile.
        """
        bit = 1 << vector
        if not self.irr & bit:
            return self.regs[APIC_SPIV >> 4] & APIC_VECTOR_MASK
        self.irr ^= bit
        self.isr |= bit
        self._evaluate()
        return vector

    def eoi(self) -> None:
        """End the highest interrupt in service, if any."""
        isr = self.isr
        if not isr:
            return
        vector = isr.bit_length() - 1
        self.isr = isr ^ 1 << vector
        if self.tmr >> vector & 1:
            self._bus.on_eoi(vector)
        self._evaluate()

    def set_tpr(self, value: int) -> None:
        """Set the task priority register (CR8 is its bits 4-7)."""
        self.regs[APIC_TASKPRI >> 4] = value & 0xFF
        self._evaluate()

    def ppr(self) -> int:
        """The processor priority register."""
        tpr = self.regs[APIC_TASKPRI >> 4]
        in_service = self.isr.bit_length() - 1 & 0xF0 if self.isr else 0
        return tpr if tpr & 0xF0 >= in_service else in_service

    def raise_lvt(self, offset: int) -> None:
        """Raise the local interrupt of an LVT register (APIC_LVT0 and so on), if not masked.

        Delivery modes but fixed and NMI have no effect: a PVH guest has no SMM and no PIC.
        """
        lvt = self.regs[offset >> 4]
        if lvt & APIC_LVT_MASKED:
            return
        if lvt & APIC_DM_MASK == APIC_DM_FIXED:
            self.set_irq(lvt & APIC_VECTOR_MASK)
        elif lvt & APIC_DM_MASK == APIC_DM_NMI:
            self._bus.on_nmi(self.vcpu_id)

    def _timer_expired(self) -> None:
        self.raise_lvt(APIC_LVTT)

    def _evaluate(self) -> None:
        vector = -1
        irr = self.irr
        if irr and self._enabled:
            highest = irr.bit_length() - 1
            if highest >> 4 > self.ppr() >> 4:
                vector = highest
        if vector != self._pending:
            self._pending = vector
            if vector >= 0:
                self._bus.on_interrupt(self.vcpu_id)

    def _error(self, bit: int) -> None:
        if self.pending_esr & bit:
            return
        self.pending_esr |= bit
        lvt = self.regs[APIC_LVTERR >> 4]
        if lvt & APIC_LVT_MASKED:
            return
        if lvt & APIC_VECTOR_MASK >= FIRST_VECTOR:
            self.set_irq(lvt & APIC_VECTOR_MASK)
        else:
            self.pending_esr |= APIC_ESR_RECVILL

    # ---- registers ---------------------------------------------------------------------------

    def mmio_read(self, offset: int, size: int = 4) -> int:
        """Read `size` bytes at an offset (0-0xfff) of the xAPIC page.

        An access that does not lie within one register reads 0; outside xAPIC mode there is no
        page, and it reads all ones.
        """
        if not self.in_xapic_mode:
            return (1 << 8 * size) - 1
        within = offset & 0xF
        if within + size > 4 or offset > APIC_TDCR + 3:
            return 0
        return self._read(offset & ~0xF) >> 8 * within & (1 << 8 * size) - 1

    def mmio_write(self, offset: int, value: int, size: int = 4) -> None:
        """Write `size` bytes at an offset (0-0xfff) of the xAPIC page.

        An access that does not lie within one register, or comes outside xAPIC mode, does nothing.
        """
        within = offset & 0xF
        if not self.in_xapic_mode or within + size > 4 or offset > APIC_TDCR + 3:
            return
        offset &= ~0xF
        value &= (1 << 8 * size) - 1
        if size != 4:
            mask = (1 << 8 * size) - 1 << 8 * within
            value = self._read(offset) & ~mask | value << 8 * within
        if offset == APIC_EOI:
            self.eoi()
        elif offset == APIC_ICR:
            self._write_icr(value, self.regs[APIC_ICR2 >> 4] >> 24)
        elif offset == APIC_ICR2:
            self.regs[APIC_ICR2 >> 4] = value & 0xFF00_0000
        elif offset == APIC_ID:
            self.regs[APIC_ID >> 4] = value & 0xFF00_0000
            self._bus.ids_changed()
        elif offset == APIC_LDR:
            self.regs[APIC_LDR >> 4] = value & 0xFF00_0000
        elif offset == APIC_DFR:
            self.regs[APIC_DFR >> 4] = value | 0x0FFF_FFFF
        else:
            self._write(offset, value)

    def msr_read(self, index: int) -> int:
        """Read APIC_BASE, TSC_DEADLINE or an x2APIC MSR. Raises GeneralProtection."""
        if MSR_X2APIC_FIRST <= index <= MSR_X2APIC_LAST and self._apic_base & APIC_BASE_EXTD:
            offset = index - MSR_X2APIC_FIRST << 4
            if offset == APIC_ICR:
                return self.regs[APIC_ICR2 >> 4] << 32 | self.regs[APIC_ICR >> 4]
            if offset in X2APIC_READABLE:
                return self._read(offset)
        elif index == MSR_APIC_BASE:
            return self._apic_base
        elif index == MSR_TSC_DEADLINE:
            return self.timer.tsc_deadline
        raise GeneralProtection

    def msr_write(self, index: int, value: int) -> None:
        """Write APIC_BASE, TSC_DEADLINE or an x2APIC MSR (64 bits). Raises GeneralProtection."""
        if MSR_X2APIC_FIRST <= index <= MSR_X2APIC_LAST and self._apic_base & APIC_BASE_EXTD:
            offset = index - MSR_X2APIC_FIRST << 4
            writable = X2APIC_WRITABLE.get(offset)
            if writable is None or value & ~writable:
                raise GeneralProtection
            if offset == APIC_EOI:
                self.eoi()
            elif offset == APIC_ICR:
                self.regs[APIC_ICR2 >> 4] = value >> 32
                self._write_icr(value & _U32, value >> 32)
            elif offset == APIC_SELF_IPI:
                self._write_icr(APIC_DEST_SELF | value, 0)
            else:
                self._write(offset, value & _U32)
        elif index == MSR_APIC_BASE:
            self.apic_base = value
        elif index == MSR_TSC_DEADLINE:
            if self._apic_base & APIC_BASE_ENABLE:
                self.timer.set_tsc_deadline(value)
        else:
            raise GeneralProtection

    def _read(self, offset: int) -> int:
        if APIC_ISR <= offset < APIC_ESR:
            bits = (self.isr, self.tmr, self.irr)[offset - APIC_ISR >> 7]
            return bits >> 2 * (offset & 0x70) & _U32
        if offset == APIC_PROCPRI:
            return self.ppr()
        if offset == APIC_TMCCT:
            return self.timer.read_current_count()
        if offset == APIC_TMICT:
            return self.timer.read_initial_count()
        if offset == APIC_TDCR:
            return self.timer.divide_config
        return self.regs[offset >> 4]

    def _write(self, offset: int, value: int) -> None:
        if offset == APIC_TASKPRI:
            self.set_tpr(value)
        elif offset == APIC_TMICT:
            self.timer.set_initial_count(value)
        elif offset == APIC_TDCR:
            self.timer.set_divide_config(value)
        elif offset == APIC_SPIV:
            self._write_spiv(value)
        elif offset == APIC_ESR:
            self.regs[APIC_ESR >> 4] = self.pending_esr
            self.pending_esr = 0
        elif offset in LVT_WRITABLE:
            value &= LVT_WRITABLE[offset]
            if not self.regs[APIC_SPIV >> 4] & APIC_SPIV_APIC_ENABLED:
                value |= APIC_LVT_MASKED
            if offset == APIC_LVTT:
                # An expiry that is due happens before the write, so under the old vector.
                self.timer.set_mode(TimerMode(value >> APIC_TIMER_MODE_SHIFT & 3))
            self.regs[offset >> 4] = value

    def _write_spiv(self, value: int) -> None:
        self.regs[APIC_SPIV >> 4] = value & 0x3FF
        self._enabled = bool(value & APIC_SPIV_APIC_ENABLED)
        if not self._enabled:
            for offset in LVT_WRITABLE:
                self.regs[offset >> 4] |= APIC_LVT_MASKED
        self._evaluate()
        if self._enabled:
            self._bus.on_software_enable(self.vcpu_id)

    def _write_icr(self, low: int, destination: int) -> None:
        low &= ~APIC_ICR_BUSY
        self.regs[APIC_ICR >> 4] = low
        self._bus.route(self, low, destination)

    # ---- destinations ------------------------------------------------------------------------

    def physical_id(self) -> int:
        """The id that a physical destination names."""
        return self.regs[APIC_ID >> 4] if self.in_x2apic_mode else self.regs[APIC_ID >> 4] >> 24

    def matches_logical(self, destination: int) -> bool:
        """Whether a logical destination means this APIC, among others."""
        logical_id = self.regs[APIC_LDR >> 4]
        if self.in_x2apic_mode:
            return logical_id >> 16 == destination >> 16 and bool(logical_id & destination & 0xFFFF)
        logical_id >>= 24
        destination &= 0xFF
        if self.regs[APIC_DFR >> 4] == APIC_DFR_FLAT:
            return bool(logical_id & destination)
        if self.regs[APIC_DFR >> 4] == APIC_DFR_CLUSTER:
            return logical_id >> 4 == destination >> 4 and bool(logical_id & destination & 0xF)
        return False

    def send_illegal_vector(self) -> None:
        """An IPI that this APIC sends has a vector that none may have."""
        self._error(APIC_ESR_SENDILL)

    # ---- save and restore --------------------------------------------------------------------

    def save(self) -> LapicState:
        """What `load` needs to go on from here."""
        regs = self.regs.copy()
        regs[APIC_TMICT >> 4] = self.timer.initial_count
        regs[APIC_TDCR >> 4] = self.timer.divide_config
        return LapicState(
            apic_base=self._apic_base,
            regs=tuple(regs),
            isr=self.isr,
            tmr=self.tmr,
            irr=self.irr,
            pending_esr=self.pending_esr,
            tsc_deadline=self.timer.tsc_deadline,
            timer_elapsed_ns=self.timer.elapsed_ns(),
        )

    def load(self, state: LapicState) -> None:
        """Take over a saved state; a timer that counted goes on from where it was.

        Bits that no guest could have set are dropped. Raises UserError for a mode that is none.
        """
        mode = state.apic_base & (APIC_BASE_ENABLE | APIC_BASE_EXTD)
        if mode == APIC_BASE_EXTD or (mode & APIC_BASE_EXTD and not self.x2apic_available):
            raise UserError(f"saved local APIC of vCPU {self.vcpu_id}: no such mode: {mode:#x}")
        if len(state.regs) != len(self.regs):
            raise UserError(
                f"saved local APIC of vCPU {self.vcpu_id}: expected {len(self.regs)} registers, "
                f"got {len(state.regs)}"
            )
        self.reset()
        regs = self.regs
        regs[APIC_ID >> 4] = state.regs[APIC_ID >> 4] & 0xFF00_0000
        regs[APIC_LDR >> 4] = state.regs[APIC_LDR >> 4] & 0xFF00_0000
        for offset in (APIC_ICR, APIC_ICR2, APIC_ESR):
            regs[offset >> 4] = state.regs[offset >> 4] & _U32
        regs[APIC_DFR >> 4] = (state.regs[APIC_DFR >> 4] | 0x0FFF_FFFF) & _U32
        regs[APIC_TASKPRI >> 4] = state.regs[APIC_TASKPRI >> 4] & 0xFF
        regs[APIC_SPIV >> 4] = state.regs[APIC_SPIV >> 4] & 0x3FF
        for offset, writable in LVT_WRITABLE.items():
            regs[offset >> 4] = state.regs[offset >> 4] & writable
        self.isr = state.isr & _ALL_VECTORS
        self.tmr = state.tmr & _ALL_VECTORS
        self.irr = state.irr & _ALL_VECTORS
        self.pending_esr = state.pending_esr & 0xFF
        self.timer.set_mode(TimerMode(regs[APIC_LVTT >> 4] >> APIC_TIMER_MODE_SHIFT & 3))
        self.timer.set_divide_config(state.regs[APIC_TDCR >> 4])
        self.timer.initial_count = state.regs[APIC_TMICT >> 4] & _U32
        if self.timer.mode is TimerMode.TSC_DEADLINE:
            self.timer.set_tsc_deadline(state.tsc_deadline)
        elif state.timer_elapsed_ns != STOPPED and self.timer.initial_count:
            self.timer.resume(max(state.timer_elapsed_ns, 0))
        self._apic_base = APIC_DEFAULT_PHYS_BASE | mode | state.apic_base & APIC_BASE_BSP
        if mode & APIC_BASE_EXTD:
            self._set_x2apic_id()
        self._bus.ids_changed()
        self._enabled = mode != 0 and bool(regs[APIC_SPIV >> 4] & APIC_SPIV_APIC_ENABLED)
        self._evaluate()
