"""Interrupts on their way into a guest: what VMRUN is told about them, and what became of it.

By V_IRQ always but for one case: QEMU remembers the vector of an interrupt that is injected as one,
and may deliver it a second time when something else stops the CPU.  Facts: AMD64 APM volume 2,
chapter 15, "Virtual Interrupts" and "Event Injection".
"""

from __future__ import annotations

from hvmlite.engine.memory import MachineMemory
from hvmlite.engine.tcg import layout as L

_FIRST_INTERRUPT = 32
"""Vectors below are exceptions'."""
_VECTOR = 0xFF
_IF = 1 << 9
_PENDING = L.V_INTR_MASKING | L.V_IRQ | L.V_IGN_TPR | L.V_INTR_PRIO


class Delivery:
    """What is to be delivered to one vCPU; `vmcb` is where that lies in machine memory.

    `wanted`: `prepare` and `settle` have something to do for the next run, or the present one.
    """

    __slots__ = (
        "_cpl",
        "_inject",
        "_injecting",
        "_int_control",
        "_int_state",
        "_int_vector",
        "_intercept",
        "_lasting",
        "_requested",
        "_rflags",
        "_u8",
        "_u32",
        "_u64",
        "_watched",
        "taken",
        "wanted",
        "window",
    )

    def __init__(self, memory: MachineMemory, vmcb: int) -> None:
        self._u8, self._u32, self._u64 = memory.u8, memory.u32, memory.u64
        self._cpl = vmcb + L.CPL
        self._inject = (vmcb + L.EVENT_INJECT) // 8
        self._int_control = (vmcb + L.INT_CONTROL) // 4
        self._int_vector = (vmcb + L.INT_VECTOR) // 4
        self._int_state = (vmcb + L.INT_STATE) // 4
        self._intercept = (vmcb + L.INTERCEPT_1) // 4
        self._rflags = (vmcb + L.CONTROL["rflags"]) // 8
        self._u32[self._int_control] = L.V_INTR_MASKING
        self.forget()

    def forget(self) -> None:
        """Nothing is to be delivered: the vCPU starts anew."""
        self._requested = -1
        self._lasting = self._watched = self.wanted = False
        # The vector of an injected interrupt, until it is known to have come.
        self._injecting = -1
        self.taken = False
        """Whether what was requested for the last run was delivered in it."""
        self.window = False
        """Whether an exit because an interrupt can be taken is for who watches (`watch`)."""

    def request(self, vector: int, lasting: bool) -> None:
        """See `EngineVcpu.request_interrupt`."""
        self._requested = vector
        self._lasting = lasting
        self.wanted = True

    def watch(self) -> bool:
        """See `EngineVcpu.watch_window`."""
        if self._requested >= 0:
            if not self._deliverable():
                # The run ends once it is: the next one can be watched.
                self._lasting = False
                return False
            if self._u8[self._cpl]:
                # The gate's DPL would count for what is injected by `prepare`.
                return False
        self._watched = self.wanted = True
        return True

    def _deliverable(self) -> bool:
        u64 = self._u64
        return (
            u64[self._rflags] & _IF != 0
            and not self._u32[self._int_state] & 1
            and not u64[self._inject] & L.EVENT_VALID
        )

    def prepare(self) -> None:
        """Before a run: has it deliver what was requested, or end once it can be."""
        u32, vector = self._u32, self._requested
        if vector < 0 and not self._watched:
            return
        if not self._u64[self._inject] & L.EVENT_VALID:
            self._injecting = -1
        if self._watched:
            if vector >= 0:
                # As the interrupt of an INT, which QEMU delivers once.
                self._u64[self._inject] = vector | L.EVENT_SOFTWARE | L.EVENT_VALID
                self._injecting = vector
            else:
                vector = _FIRST_INTERRUPT
            u32[self._intercept] |= L.INTERCEPT_VINTR
        elif self._lasting or self._deliverable():
            u32[self._intercept] &= ~L.INTERCEPT_VINTR
        else:
            u32[self._intercept] |= L.INTERCEPT_VINTR
        u32[self._int_vector] = vector
        u32[self._int_control] = _PENDING

    def settle(self) -> None:
        """After a run: finds out what became of it."""
        u32 = self._u32
        if self._requested < 0 and not self._watched:
            self.taken = self.wanted = False
            return
        if self._watched:
            # What is injected comes, in this run or the next.
            self.taken = self._requested >= 0
            self.window = True
            self._watched = False
        else:
            self.taken = not u32[self._int_control] & L.V_IRQ
            self.window = False
        u32[self._int_control] = L.V_INTR_MASKING
        self._requested = -1
        # What was taken in this run was not in the next.
        self.wanted = self.taken

    def interrupted(self, info: int) -> None:
        """The exit came in the middle of a delivery (EXITINTINFO): has it delivered again.

        Comes before `settle`.  An interrupt that was not injected is still in V_IRQ then, and an
        INT of the guest's own is executed anew.
        """
        vector = info & _VECTOR
        if vector < _FIRST_INTERRUPT or vector == self._injecting:
            self._u64[self._inject] = info
