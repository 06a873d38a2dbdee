"""The stub's side of one virtual CPU: commands in its mailbox, kicks, the doorbell.

Facts: stub/stub.S and the project's engine notes, docs/engine.md.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from hvmlite.engine import atomics
from hvmlite.engine import base as b
from hvmlite.engine.tcg import layout as L

if TYPE_CHECKING:
    from hvmlite.engine.tcg.partition import TcgPartition

_MASK32 = 0xFFFF_FFFF
_COMMAND_TIMEOUT = 10.0
_TURNS = range(12)
_PATIENCE = 2_000_000
"""Nanoseconds until the interrupt of a kick is sent again, at first: many times what it takes."""
_LONGEST_PATIENCE = 100_000_000
SPIN_LIMIT = 20000
"""Polls of an idle stub before it sleeps: about 50 µs, longer than most exits take to answer."""


class StubCpu:
    """A CPU of the QEMU machine, which waits for commands in its mailbox and carries them out."""

    def __init__(self, partition: TcgPartition, index: int, area: int) -> None:
        self.index = index
        self._partition = partition
        memory = partition.memory
        self._u8, self._u32, self._u64 = memory.u8, memory.u32, memory.u64
        start = area + L.CPU_AREAS + index * L.CPU_STRIDE
        self._mailbox = mailbox = start + L.CPU_MAILBOX
        self._vmcb = vmcb = start + L.CPU_VMCB
        # Word indexes of what every exit touches.
        self._state = (mailbox + L.STATE) // 4
        self._state_address = memory.address + mailbox + L.STATE
        self._kicked = (mailbox + L.KICKED) // 4
        self._kicked_address = memory.address + mailbox + L.KICKED
        self._asleep = (mailbox + L.ASLEEP) // 4
        self._stop = (mailbox + L.STOP) // 4
        self._stop_address = memory.address + mailbox + L.STOP
        self._patience = _PATIENCE
        self._remind_at = 0
        self._u32[(mailbox + L.INDEX) // 4] = index
        # A sleeping stub needs kicks, which need the DMA device, which the stub sets up.
        self._u32[(mailbox + L.SPIN) // 4] = _MASK32
        self._u64[(mailbox + L.VMCB_ADDRESS) // 8] = vmcb
        self._u64[(mailbox + L.HSAVE_ADDRESS) // 8] = start + L.CPU_HSAVE
        self._u64[(mailbox + L.CPUID_ADDRESS) // 8] = start + L.CPU_CPUID
        # The stub starts with a command of its own: getting ready.
        self._u32[self._state] = _MASK32

    def allow_sleep(self) -> None:
        """Lets the stub sleep while it has nothing to do; kicks must work from now on."""
        self._u32[(self._mailbox + L.SPIN) // 4] = SPIN_LIMIT

    # ---- commands ---------------------------------------------------------------------------

    def _post(self, command: int) -> None:
        # The exchange orders the command before the look at the sleep flag; the stub does the same
        # the other way round, so one of the two always sees the other.
        atomics.exchange32(self._state_address, command)
        if self._u32[self._asleep]:
            self._partition.interrupt(self)

    def wait(self) -> None:
        """Returns when the stub has carried out its command; only for short commands."""
        state, u32, spins, deadline = self._state, self._u32, 0, 0.0
        while u32[state]:
            spins += 1
            if spins & 0x3FF == 0:
                self._partition.check_alive()
                now = time.monotonic()
                deadline = deadline or now + _COMMAND_TIMEOUT
                if now > deadline:
                    raise self._partition.failed(f"vCPU {self.index} of QEMU does not answer")
                self.nudge()
                time.sleep(0 if spins < 0x8000 else 0.0002)

    def command(self, command: int, *arguments: int) -> tuple[int, int, int, int]:
        """Has the stub carry out a command; returns its four result words."""
        first = (self._mailbox + L.ARGUMENTS) // 8
        for i, argument in enumerate(arguments):
            self._u64[first + i] = argument
        self._post(command)
        self.wait()
        words = self._u64[first : first + 4]
        return words[0], words[1], words[2], words[3]

    def read32(self, address: int) -> int:
        """Reads an L1-physical address (devices of the QEMU machine)."""
        return self.command(L.CMD_READ32, address)[1] & _MASK32

    def write32(self, address: int, value: int) -> None:
        """Writes an L1-physical address (devices of the QEMU machine)."""
        self.command(L.CMD_WRITE32, address, value)

    def measure_exits(self, count: int) -> int:
        """TSC ticks that `count` bare VMRUN/#VMEXIT pairs take; the guest must loop on VMMCALL."""
        return self.command(L.CMD_MEASURE, count)[1]

    # ---- runs ---------------------------------------------------------------------------------

    def exited(self) -> bool:
        """See `EngineVcpu.exited`."""
        return not self._u32[self._state]

    def spin(self) -> bool:
        """See `EngineVcpu.spin`."""
        u32, state = self._u32, self._state
        for _ in _TURNS:  # noqa: SIM110 - any() with a generator is no spinning
            if not u32[state]:
                return True
        return False

    def stop(self) -> None:
        """Has the stub leave the guest, or not begin to run it."""
        atomics.exchange32(self._stop_address, 1)
        self._partition.interrupt(self)

    def mark_kicked(self) -> bool:
        """Notes that an interrupt is on its way; False if one already is."""
        if atomics.exchange32(self._kicked_address, 1):
            return False
        self._patience = _PATIENCE
        self._remind_at = time.monotonic_ns() + _PATIENCE
        return True

    def set_bell(self, wanted: int) -> None:
        """Has the stub ring when it is done with what it is doing."""
        atomics.exchange32(self._state_address + L.BELL - L.STATE, wanted)
        # The exchange was the barrier that `start_spinning` did without: now one of the two, the
        # stub or we, has seen the other's word.
        if wanted:
            self.nudge()

    def nudge(self) -> int:
        """See `EngineVcpu.nudge`."""
        u32 = self._u32
        if not u32[self._state]:
            return b.NO_NUDGE
        if u32[self._kicked]:
            return self._remind()
        if u32[self._asleep]:
            self._partition.interrupt(self)
            return self._patience
        return b.NO_NUDGE

    def _remind(self) -> int:
        """Sends the interrupt of a kick again after a while: QEMU can lose one.

        VMRUN and #VMEXIT change the CPU's word of pending interrupts without the lock that the main
        loop holds when it sets a bit there.  The bit is set anew whenever the interrupt comes.
        """
        now = time.monotonic_ns()
        if now >= self._remind_at:
            self._patience = min(2 * self._patience, _LONGEST_PATIENCE)
            self._remind_at = now + self._patience
            self._partition.send_interrupt(self)
        return self._remind_at - now
