"""One virtual CPU of the embedded engine: its VMCB and the decoding of its exits.

Facts: AMD64 APM volume 2, chapter 15 and appendices B and C.  QEMU specifics (nRIP is never set,
EFER.SVME must stay) are in the project's engine notes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from hvmlite.engine import base as b
from hvmlite.engine.atomics import ORDERED_STORES
from hvmlite.engine.paging import PageFault, PagingMode, translate
from hvmlite.engine.tcg import layout as L
from hvmlite.engine.tcg.control_registers import ControlRegisters
from hvmlite.engine.tcg.delivery import Delivery
from hvmlite.engine.tcg.emulate import (
    StringIo,
    begin_string,
    emulate_mmio,
    inject_page_fault,
    tsc_instruction,
)
from hvmlite.engine.tcg.stub_cpu import StubCpu

if TYPE_CHECKING:
    from hvmlite.engine.tcg.partition import TcgPartition

_MASK32 = 0xFFFF_FFFF
_MASK64 = 0xFFFF_FFFF_FFFF_FFFF
_VMCALL = b"\x0f\x01\xc1"
_VMCALL_LENGTH = 3
_UD = 6
_SEGMENT = struct.Struct("<HHIQ")
_CALL_REGISTERS = struct.Struct("<QQQ8xQ8xQ")
"""From rdx in the mailbox: rdx, rsi, rdi, r8, r10."""
_LONG_MODE_CODE = 0x0200_0000
"""CS.L where the access rights are the upper half of a word."""
_WRITABLE_EFER = 0xFFFF_FFFF_FFFF_FFFF & ~(L.EFER_SVME | L.EFER_LMA)
_SAVED_SEGMENTS = frozenset(("fs", "gs", "ldtr", "tr"))

# Guest state that VMLOAD and VMSAVE switch, and what else the stub never touches: straight through.
_PASS_MSRS = (
    0x174, 0x175, 0x176, 0x277, 0xDA0,
    0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084,
    0xC0000100, 0xC0000101, 0xC0000102, 0xC0000103,
)  # fmt: skip
_X2APIC_EOI = 0x80B


def msr_map(*, eoi: bool = True) -> bytearray:
    """The MSR permission map: everything exits but the MSRs named above.

    So does the TSC, which QEMU reads as 0.  `eoi`: whether writing the x2APIC's EOI exits; QEMU
    ignores the write.
    """
    table = bytearray(b"\xff" * L.MSR_MAP_SIZE)
    for msr in _PASS_MSRS:
        base, index = (0, msr) if msr < 0x2000 else (0x800, msr - 0xC0000000)
        table[base + index // 4] &= ~(3 << (2 * (index % 4)))
    if not eoi:
        table[_X2APIC_EOI // 4] &= ~(2 << (2 * (_X2APIC_EOI % 4)))
    return table


class TcgVcpu(StubCpu, b.EngineVcpu):
    """A vCPU that a stub runs under VMRUN."""

    def __init__(self, partition: TcgPartition, index: int, area: int) -> None:
        super().__init__(partition, index, area)
        mailbox, vmcb = self._mailbox, self._vmcb
        self._delivery = Delivery(partition.memory, vmcb)
        self._flags = (mailbox + L.FLAGS) // 4
        self._rbx = (mailbox + L.GENERAL["rbx"]) // 8
        self._rdx_offset = mailbox + L.GENERAL["rdx"]
        self._cpl = vmcb + L.CPL
        self._efer = (vmcb + L.CONTROL["efer"]) // 8
        self._cs_access = (vmcb + L.SEGMENTS["cs"]) // 4
        self._rax = (vmcb + L.CONTROL["rax"]) // 8
        self._rip = (vmcb + L.CONTROL["rip"]) // 8
        self._code = (vmcb + L.EXIT_CODE) // 8
        self._int_info = (vmcb + L.EXIT_INT_INFO) // 8
        self._inject = (vmcb + L.EVENT_INJECT) // 8
        self._int_state = (vmcb + L.INT_STATE) // 4
        self._tlb_control = (vmcb + L.TLB_CONTROL) // 4
        self._msr_map = (vmcb + L.MSR_MAP_ADDRESS) // 8
        self._eoi_passing = False
        self._flushing = False
        self.flush_next = True
        """Whether the next run begins with an empty TLB."""
        self._registers = {name: (mailbox + off) // 8 for name, off in L.GENERAL.items()}
        self._registers |= {name: (vmcb + off) // 8 for name, off in L.CONTROL.items()}
        self._next_rip = 0
        self._string: StringIo | None = None
        self._started = False
        self._saved = True
        self._decoders: dict[int, Callable[[], b.Exit | None]] = {
            L.EXIT_VMMCALL: self._hypercall,
            L.EXIT_EXCEPTION + L.UD_VECTOR: self._undefined,
            L.EXIT_CPUID: self._cpuid,
            L.EXIT_MSR: self._msr,
            L.EXIT_IO: self._port,
            L.EXIT_NPF: self._nested_fault,
            L.EXIT_HLT: self._halt,
            L.EXIT_INTR: self._interrupted,
            L.EXIT_NMI: self._interrupted,
            L.EXIT_VINTR: self._can_take_interrupt,
            L.EXIT_SHUTDOWN: self._shut_down,
            L.EXIT_INVD: self._skip_two,
            L.EXIT_RDTSC: self._tsc,
            L.EXIT_RDTSCP: self._tsc,
            L.EXIT_INVALID: self._invalid,
            L.EXIT_CR0_WRITE: self._control_write,
            L.EXIT_CR4_WRITE: self._control_write,
            L.EXIT_CR0_SELECTIVE: self._control_write,
        }
        for code in range(L.EXIT_VMRUN, L.EXIT_SKINIT + 1):
            self._decoders.setdefault(code, self._no_svm)
        self._exit_hypercall = b.Hypercall()
        self._exit_cpuid = b.Cpuid()
        self._exit_msr = b.Msr()
        self._exit_port = b.PortIo()
        self._exit_tsc = b.Tsc()
        self._tsc_found = False, 0
        self._exit_mmio = b.Mmio()
        self._exit_halt = b.Halt()
        self._exit_shutdown = b.Shutdown()
        self._exit_kicked = b.Kicked()
        self._exit_window = b.Window()
        self._exit_failure = b.Failure()
        self._control = ControlRegisters(self)
        self._initialise()

    def _initialise(self) -> None:
        u32, u64, vmcb = self._u32, self._u64, self._vmcb
        area = self._partition.area
        u32[self._flags] = L.FLAG_LOAD | L.FLAG_CPUID
        u32[(vmcb + L.INTERCEPT_EXCEPTIONS) // 4] = 1 << L.UD_VECTOR
        u32[(vmcb + L.INTERCEPT_1) // 4] = (
            L.INTERCEPT_INTR | L.INTERCEPT_NMI | L.INTERCEPT_CPUID | L.INTERCEPT_INVD
            | L.INTERCEPT_HLT | L.INTERCEPT_IO | L.INTERCEPT_MSR | L.INTERCEPT_SHUTDOWN
        )  # fmt: skip
        u32[(vmcb + L.INTERCEPT_2) // 4] = L.INTERCEPT_SVM
        u64[(vmcb + L.IO_MAP_ADDRESS) // 8] = area + L.IO_MAP
        u64[(vmcb + L.MSR_MAP_ADDRESS) // 8] = area + L.MSR_MAP
        u32[(vmcb + L.ASID) // 4] = 1
        u64[(vmcb + L.NESTED_CONTROL) // 8] = 1
        u64[(vmcb + L.NESTED_CR3) // 8] = self._partition.nested.root_address

    def intercept_tsc(self) -> None:
        """Has RDTSC and RDTSCP exit."""
        self._u32[(self._vmcb + L.INTERCEPT_1) // 4] |= L.INTERCEPT_RDTSC
        self._u32[(self._vmcb + L.INTERCEPT_2) // 4] |= L.INTERCEPT_RDTSCP

    def use_nested(self, address: int) -> None:
        """Runs on the nested tables with that root (physical address) from now on."""
        self._u64[(self._vmcb + L.NESTED_CR3) // 8] = address
        self.flush_next = True

    def hardware_cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """See `EngineVcpu.hardware_cpuid`."""
        return self.command(L.CMD_CPUID, leaf, subleaf)

    def read_tsc(self) -> int:
        """See `EngineVcpu.read_tsc`."""
        return self.command(L.CMD_RDTSC)[0]

    def set_constant_cpuid(
        self, leaves: Mapping[int, b.CpuidAnswer | Sequence[b.CpuidAnswer | None]]
    ) -> None:
        """See `EngineVcpu.set_constant_cpuid`."""
        entry = struct.Struct(L.CPUID_ENTRY)
        table = bytearray(L.CPU_CPUID_SIZE)
        free = len(L.CPUID_GROUPS) * L.CPUID_LEAVES * entry.size
        for leaf, answer in leaves.items():
            group, index = L.CPUID_GROUPS[leaf >> 28], leaf & 0x0FFF_FFFF
            if index >= L.CPUID_LEAVES:
                continue
            at = (group * L.CPUID_LEAVES + index) * entry.size
            if answer and isinstance(answer[0], int):
                kind = L.CPUID_OSXSAVE if leaf == 1 else L.CPUID_CONSTANT
                entry.pack_into(table, at, kind, *answer)
            elif free + len(answer) * entry.size <= len(table):
                entry.pack_into(table, at, L.CPUID_SUBLEAVES, free, len(answer), 0, 0)
                for sub in answer:
                    if isinstance(sub, tuple):
                        entry.pack_into(table, free, L.CPUID_CONSTANT, *sub)
                    free += entry.size
        start = self._vmcb - L.CPU_VMCB + L.CPU_CPUID
        self._u8[start : start + len(table)] = table

    # ---- run ----------------------------------------------------------------------------------

    def start(self) -> None:
        """See `EngineVcpu.start`."""
        self._prepare()
        self._post(L.CMD_RUN)

    def start_spinning(self) -> None:
        """See `EngineVcpu.start_spinning`."""
        self._prepare()
        if ORDERED_STORES:
            # No barrier between the command and the look at the sleep flag: `set_bell` makes up for
            # it in the rare case that it was needed.
            u32 = self._u32
            u32[self._state] = L.CMD_RUN
            if u32[self._asleep]:
                self._partition.interrupt(self)
        else:
            self._post(L.CMD_RUN)

    def _prepare(self) -> None:
        self._started = True
        self._saved = False
        if self.flush_next:
            self.flush_next = False
            self._flushing = True
            self._u32[self._tlb_control] = 1
        if self._delivery.wanted:
            self._delivery.prepare()
        # What an earlier kick was for has been seen to by now.
        self._u32[self._stop] = 0

    def take_exit(self) -> b.Exit | None:
        """See `EngineVcpu.take_exit`."""
        u64 = self._u64
        self._started = False
        if self._flushing:
            self._flushing = False
            self._u32[self._tlb_control] = 0
        delivery = self._delivery
        info = u64[self._int_info]
        if info & L.EVENT_VALID:
            delivery.interrupted(info)
        if delivery.wanted:
            delivery.settle()
        code = u64[self._code]
        decoder = self._decoders.get(code)
        if decoder is None:
            self._exit_failure.reason = f"unexpected #VMEXIT code {code:#x}"
            return self._exit_failure
        return decoder()

    def kick(self) -> None:
        """See `EngineVcpu.kick`."""
        if self._started and self._u32[self._state]:
            self.stop()

    # ---- exits ----------------------------------------------------------------------------------

    def advance(self, length: int) -> None:
        """Moves past an instruction of `length` bytes that was carried out."""
        self._u64[self._rip] += length
        self._u32[self._int_state] = 0

    def _hypercall(self) -> b.Exit:
        self._u64[self._rip] += _VMCALL_LENGTH
        self._u32[self._int_state] = 0
        return self._exit_hypercall

    def _undefined(self) -> b.Exit | None:
        # VMCALL is undefined on a CPU with SVM: a guest that took us for Intel used it.
        code = self.fetch(_VMCALL_LENGTH)
        if code == _VMCALL:
            return self._hypercall()
        self.inject_exception(_UD)
        return None

    def _cpuid(self) -> b.Exit:
        exit_ = self._exit_cpuid
        exit_.leaf = self._u64[self._rax] & _MASK32
        exit_.subleaf = self._u64[self._rbx + 1] & _MASK32
        return exit_

    def _msr(self) -> b.Exit | None:
        exit_ = self._exit_msr
        u64 = self._u64
        exit_.index = u64[self._rbx + 1] & _MASK32
        exit_.write = bool(u64[self._code + 1] & 1)
        exit_.value = (u64[self._rax] & _MASK32) | (u64[self._rbx + 2] & _MASK32) << 32
        return exit_

    def _tsc(self) -> b.Exit | None:
        # QEMU has one exit code for both.
        found = tsc_instruction(self)
        if found is None:
            # Another vCPU has changed it meanwhile: what is there now runs.
            return None
        self._tsc_found = found
        return self._exit_tsc

    def _port(self) -> b.Exit | None:
        exit_ = self._exit_port
        info = self._u64[self._code + 1]
        self._next_rip = self._u64[self._code + 2]
        exit_.port = info >> 16 & 0xFFFF
        exit_.size = info >> 4 & 7
        exit_.write = not info & 1
        exit_.string = bool(info & 4)
        if exit_.string:
            self._string = begin_string(self, self._partition, exit_, info)
            return exit_ if self._string is not None else None
        exit_.value = self._u64[self._rax] & ((1 << 8 * exit_.size) - 1) if exit_.write else 0
        return exit_

    def _nested_fault(self) -> b.Exit | None:
        info = self._u64[self._code + 1]
        gpa = self._u64[self._code + 2]
        fetch = bool(info & L.NPF_FETCH)
        if fetch and self._partition.nested.make_executable(gpa >> 12):
            return None
        exit_ = self._exit_mmio
        exit_.gpa = gpa
        exit_.write = bool(info & L.NPF_WRITE)
        exit_.fetch = fetch
        return exit_

    def _halt(self) -> b.Exit:
        self.advance(1)
        return self._exit_halt

    def _interrupted(self) -> b.Exit:
        return self._exit_kicked

    def _can_take_interrupt(self) -> b.Exit | None:
        # What there is to deliver is asked for at the next entry.
        return self._exit_window if self._delivery.window else None

    def _shut_down(self) -> b.Exit:
        return self._exit_shutdown

    def _control_write(self) -> None:
        self._control.carry_out_write()

    def _skip_two(self) -> None:
        self.advance(2)

    def _no_svm(self) -> None:
        self.inject_exception(_UD)

    def _invalid(self) -> b.Exit:
        self._exit_failure.reason = "VMRUN refuses this state (VMEXIT_INVALID)"
        return self._exit_failure

    # ---- answers ----------------------------------------------------------------------------

    def hypercall_registers(self) -> tuple[int, int, int, tuple[int, int, int, int, int]]:
        """See `EngineVcpu.hypercall_registers`."""
        u64 = self._u64
        cpl = self._u8[self._cpl]
        if self._u32[self._cs_access] & _LONG_MODE_CODE and u64[self._efer] & L.EFER_LMA:
            rdx, rsi, rdi, r8, r10 = _CALL_REGISTERS.unpack_from(self._u8, self._rdx_offset)
            return 64, cpl, u64[self._rax], (rdi, rsi, rdx, r10, r8)
        first = self._rbx
        # Mailbox order from rbx: rbx rcx rdx rsi rdi.
        return (
            self.mode, cpl, u64[self._rax] & _MASK32,
            (
                u64[first] & _MASK32, u64[first + 1] & _MASK32, u64[first + 2] & _MASK32,
                u64[first + 3] & _MASK32, u64[first + 4] & _MASK32,
            ),
        )  # fmt: skip

    def set_rax(self, value: int) -> None:
        """See `EngineVcpu.set_rax`."""
        self._u64[self._rax] = value

    def request_interrupt(self, vector: int, lasting: bool = False) -> None:
        """See `EngineVcpu.request_interrupt`."""
        self._delivery.request(vector, lasting)

    def interrupt_taken(self) -> bool:
        """See `EngineVcpu.interrupt_taken`."""
        return self._delivery.taken

    def watch_window(self) -> bool:
        """See `EngineVcpu.watch_window`."""
        return self._delivery.watch()

    def request_window(self) -> None:
        """See `EngineVcpu.request_window`."""
        # Not `kick`, whose stop word could keep the guest from beginning at all.
        self._partition.interrupt(self)

    def pass_eoi(self, wanted: bool) -> None:
        """See `EngineVcpu.pass_eoi`."""
        if wanted != self._eoi_passing and self.eoi_passes:
            self._eoi_passing = wanted
            self._u64[self._msr_map] = self._partition.area + (
                L.EOI_MSR_MAP if wanted else L.MSR_MAP
            )

    def inject_exception(self, vector: int, error_code: int | None = None) -> None:
        """See `EngineVcpu.inject_exception`."""
        event = vector | L.EVENT_EXCEPTION | L.EVENT_VALID
        if error_code is not None:
            event |= L.EVENT_ERROR_CODE | error_code << 32
        self._u64[self._inject] = event

    def inject_nmi(self) -> None:
        """See `EngineVcpu.inject_nmi`."""
        self._u64[self._inject] = 2 | L.EVENT_NMI | L.EVENT_VALID

    def complete_cpuid(self, eax: int, ebx: int, ecx: int, edx: int) -> None:
        """See `EngineVcpu.complete_cpuid`."""
        self._u64[self._rax] = eax
        self._u64[self._rbx] = ebx
        self._u64[self._rbx + 1] = ecx
        self._u64[self._rbx + 2] = edx
        self.advance(2)

    def complete_rdmsr(self, value: int) -> None:
        """See `EngineVcpu.complete_rdmsr`."""
        self._u64[self._rax] = value & _MASK32
        self._u64[self._rbx + 2] = value >> 32 & _MASK32
        self.advance(2)

    def complete_wrmsr(self) -> None:
        """See `EngineVcpu.complete_wrmsr`."""
        self.advance(2)

    def complete_tsc(self, value: int) -> None:
        """See `EngineVcpu.complete_tsc`."""
        with_aux, length = self._tsc_found
        self._u64[self._rax] = value & _MASK32
        self._u64[self._rbx + 2] = value >> 32 & _MASK32
        if with_aux:
            self._u64[self._rbx + 1] = self.command(L.CMD_RDTSC)[1] & _MASK32
        self.advance(length)

    def complete_in(self, value: int) -> None:
        """See `EngineVcpu.complete_in`."""
        exit_ = self._exit_port
        if exit_.string:
            self._finish_string(value)
            return
        if exit_.size == 4:
            self._u64[self._rax] = value & _MASK32
        else:
            mask = (1 << 8 * exit_.size) - 1
            self._u64[self._rax] = self._u64[self._rax] & ~mask & _MASK64 | value & mask
        self._finish_port()

    def complete_out(self) -> None:
        """See `EngineVcpu.complete_out`."""
        if self._exit_port.string:
            self._finish_string(None)
        else:
            self._finish_port()

    def _finish_port(self) -> None:
        self._u64[self._rip] = self._next_rip
        self._u32[self._int_state] = 0

    def _finish_string(self, value: int | None) -> None:
        string = self._string
        assert string is not None
        if value is not None:
            try:
                string.store(value)
            except PageFault as fault:
                inject_page_fault(self, fault)
                return
        string.step("rsi" if value is None else "rdi")
        if string.finished:
            self._finish_port()

    def emulate_mmio(
        self, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        """See `EngineVcpu.emulate_mmio`."""
        exit_ = self._exit_mmio
        emulate_mmio(self, self._partition, exit_.gpa, exit_.write, read, write)

    # ---- state --------------------------------------------------------------------------------

    def load(self, state: b.CpuState) -> None:
        """See `EngineVcpu.load`."""
        self._saved = True
        for name in b.GENERAL_REGISTERS:
            self.set(name, state.general.get(name, 0))
        for name in b.SEGMENT_REGISTERS:
            self.set_segment(name, state.segments.get(name, b.Segment()))
        for name in ("rip", "rflags", "cr0", "cr3", "cr4", "efer", "dr6", "dr7"):
            self.set(name, getattr(state, name))
        self.set("cr2", 0)
        self._u64[(self._vmcb + L.GUEST_PAT) // 8] = state.pat
        # FS and GS base, the syscall MSRs and KernelGSBase follow in VMLOAD.
        for offset in range(0x600, 0x640, 8):
            self._u64[(self._vmcb + offset) // 8] = 0
        self._u8[self._vmcb + L.CPL] = 0
        self._u64[self._inject] = 0
        self._u64[self._int_info] = 0
        self._u32[self._int_state] = 0
        self._u32[self._flags] |= L.FLAG_LOAD
        self._delivery.forget()

    def get(self, name: str) -> int:
        """See `EngineVcpu.get`."""
        return self._control.efer if name == "efer" else self._u64[self._registers[name]]

    def set(self, name: str, value: int) -> None:
        """See `EngineVcpu.set`."""
        if name == "efer":
            self._control.efer = value
        else:
            self._u64[self._registers[name]] = value & _MASK64

    def raw(self, name: str) -> int:
        """A register as it is in the VMCB or mailbox."""
        return self._u64[self._registers[name]]

    def set_raw(self, name: str, value: int) -> None:
        """Sets a register in the VMCB or mailbox."""
        self._u64[self._registers[name]] = value & _MASK64

    def set_intercepts(self, *, control_writes: int, selective_cr0: bool) -> None:
        """Chooses the intercepts of control register writes."""
        self._u32[(self._vmcb + L.INTERCEPT_CR) // 4] = control_writes
        at = (self._vmcb + L.INTERCEPT_1) // 4
        other = self._u32[at] & ~L.INTERCEPT_CR0_SELECTIVE
        self._u32[at] = other | (L.INTERCEPT_CR0_SELECTIVE if selective_cr0 else 0)

    def segment(self, name: str) -> b.Segment:
        """See `EngineVcpu.segment`."""
        if name in _SAVED_SEGMENTS and not self._saved:
            # VMRUN and #VMEXIT leave these in the CPU.
            self.command(L.CMD_VMSAVE)
            self._saved = True
        selector, access, limit, base = _SEGMENT.unpack_from(
            self._u8, self._vmcb + L.SEGMENTS[name]
        )
        return b.Segment(selector, base, limit, access)

    def set_segment(self, name: str, value: b.Segment) -> None:
        """See `EngineVcpu.set_segment`."""
        if name in _SAVED_SEGMENTS:
            self.segment(name)
            self._u32[self._flags] |= L.FLAG_LOAD
        _SEGMENT.pack_into(
            self._u8, self._vmcb + L.SEGMENTS[name],
            value.selector, value.access, value.limit, value.base,
        )  # fmt: skip

    @property
    def cpl(self) -> int:
        """See `EngineVcpu.cpl`."""
        return self._u8[self._cpl]

    @property
    def mode(self) -> int:
        """See `EngineVcpu.mode`."""
        access = self._u32[self._cs_access] >> 16
        if self._u64[self._efer] & L.EFER_LMA and access & 0x200:
            return 64
        return 32 if access & 0x400 else 16

    def translate(self, address: int, *, write: bool = False) -> int:
        """See `EngineVcpu.translate`."""
        u64, registers = self._u64, self._registers
        mode = PagingMode(
            u64[registers["cr0"]], u64[registers["cr3"]],
            u64[registers["cr4"]], u64[registers["efer"]],
        )  # fmt: skip
        return translate(mode, address, self._partition.read_physical64, write=write)

    def fetch(self, size: int) -> bytes:
        """See `EngineVcpu.fetch`."""
        rip = self._u64[self._rip]
        if self.mode != 64:
            rip = (rip + self.segment("cs").base) & _MASK32
        return self._partition.read_linear(self, rip, size)
