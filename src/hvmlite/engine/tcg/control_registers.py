"""Keeps a guest out of the one state that breaks QEMU: EFER.LME set, paging and CR4.PAE off.

There QEMU (7.2 and later) fails to turn our own paging back on at the next #VMEXIT, and the stub
would run on in guest-influenced memory.  So LME is held back from the VMCB until PAE is on, and the
few writes of control registers that could lead into that state are intercepted and carried out
here.  An ordinary kernel meets this a handful of times while it starts.

Facts: AMD64 APM volume 2, sections 3.1 (control registers), 14.6 (entering long mode), 15.8
(intercepting control register writes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.engine.base import GENERAL_REGISTERS
from hvmlite.engine.paging import CR0_PG, CR4_PAE
from hvmlite.engine.tcg import layout as L

if TYPE_CHECKING:
    from iced_x86 import Register_

    from hvmlite.engine.tcg.vcpu import TcgVcpu

_CR0_PE = 1
_CR0_MP_EM_TS = 0xE
_CR0_TS = 8
_CR0_ET = 0x10
_CR0_NW = 1 << 29
_CR0_CD = 1 << 30
_CR4_UNSUPPORTED = ~0x0077_0FFF | 1 << 13
_GP = 13
_MACHINE_STATUS = 0xF
_LONGEST_INSTRUCTION = 15
_MOV_TO_CR = b"\x0f\x22"
_REX = 0x40
"""A REX prefix whose R bit (a control register above 7) is clear, in the bits 0xF4."""
_REX_B = 1


class ControlRegisters:
    """The guest's view of EFER, and the intercepts that keep it true."""

    def __init__(self, vcpu: TcgVcpu) -> None:
        self._vcpu = vcpu
        self.held_back = False
        """Whether the guest has LME set and the VMCB has not."""

    @property
    def efer(self) -> int:
        """EFER as the guest reads it."""
        value = self._vcpu.raw("efer") & ~L.EFER_SVME
        return value | L.EFER_LME if self.held_back else value

    @efer.setter
    def efer(self, value: int) -> None:
        vcpu = self._vcpu
        paging = vcpu.raw("cr0") & CR0_PG
        self.held_back = bool(value & L.EFER_LME and not paging and not vcpu.raw("cr4") & CR4_PAE)
        if self.held_back:
            value &= ~L.EFER_LME
        vcpu.set_raw("efer", value | L.EFER_SVME)
        self._set_intercepts(bool(value & L.EFER_LME) or self.held_back, bool(paging))

    def _set_intercepts(self, lme: bool, paging: bool) -> None:
        entering = lme and not paging
        self._vcpu.set_intercepts(
            control_writes=L.INTERCEPT_CR0_WRITE | L.INTERCEPT_CR4_WRITE if entering else 0,
            selective_cr0=lme and paging,
        )

    def carry_out_write(self) -> None:
        """Carries out the intercepted MOV to CR0 or CR4, LMSW or CLTS at rip."""
        vcpu = self._vcpu
        code = vcpu.fetch(_LONGEST_INSTRUCTION)
        # Nearly always a plain MOV, which every kernel meets as it starts: loading a decoder for it
        # takes longer than all else that its start costs us.
        rex = code[0] if vcpu.mode == 64 and code[:1] and code[0] & 0xF4 == _REX else 0
        at = 1 if rex else 0
        if code[at : at + 2] == _MOV_TO_CR and len(code) > at + 2:
            modrm = code[at + 2]
            source = modrm & 7 | (8 if rex & _REX_B else 0)
            value = vcpu.raw(GENERAL_REGISTERS[source])
            if vcpu.mode != 64:
                value &= 0xFFFF_FFFF
            self._write(modrm >> 3 & 7, value, at + 3)
        else:
            self._decode_and_write(code)

    def _write(self, number: int, value: int, length: int) -> None:
        done = self._write_cr4(value) if number == 4 else self._write_cr0(value)
        if done:
            self._vcpu.advance(length)
        else:
            self._vcpu.inject_exception(_GP, 0)

    def _decode_and_write(self, code: bytes) -> None:
        from iced_x86 import Decoder, Mnemonic, Register  # noqa: PLC0415

        vcpu = self._vcpu
        decoder = Decoder(vcpu.mode, code, ip=vcpu.raw("rip"))
        instruction = decoder.decode()
        cr0 = vcpu.raw("cr0")
        number, value = 0, cr0
        if instruction.mnemonic == Mnemonic.MOV:
            number = instruction.op0_register - Register.CR0
            value = vcpu.raw(GENERAL_REGISTERS[_register_number(instruction.op1_register)])
            if vcpu.mode != 64:
                value &= 0xFFFF_FFFF
        elif instruction.mnemonic == Mnemonic.CLTS:
            value = cr0 & ~_CR0_TS
        elif instruction.mnemonic == Mnemonic.LMSW:
            # LMSW cannot clear PE, and no kernel that enters long mode uses it with memory.
            source = vcpu.raw(GENERAL_REGISTERS[_register_number(instruction.op0_register)])
            value = cr0 & ~_CR0_MP_EM_TS | source & _MACHINE_STATUS
        self._write(number, value, instruction.len)

    def _write_cr0(self, value: int) -> bool:
        vcpu = self._vcpu
        efer, cr4 = self.efer, vcpu.raw("cr4")
        paging = value & CR0_PG
        if (
            value >> 32
            or (paging and not value & _CR0_PE)
            or (value & _CR0_NW and not value & _CR0_CD)
            or (paging and efer & L.EFER_LME and not cr4 & CR4_PAE)
            or (not paging and vcpu.mode == 64)
        ):
            return False
        if paging and efer & L.EFER_LME:
            efer |= L.EFER_LMA
        elif not paging:
            efer &= ~L.EFER_LMA
        vcpu.set_raw("cr0", value | _CR0_ET)
        self.efer = efer
        return True

    def _write_cr4(self, value: int) -> bool:
        vcpu = self._vcpu
        if value & _CR4_UNSUPPORTED or (not value & CR4_PAE and vcpu.raw("efer") & L.EFER_LMA):
            return False
        vcpu.set_raw("cr4", value)
        self.efer = self.efer
        return True


def _register_number(register: Register_) -> int:
    """The encoding of a general register of any size; 0 for what is none (memory)."""
    from iced_x86 import Register, RegisterInfo  # noqa: PLC0415

    full = RegisterInfo(register).full_register if register else Register.RAX
    return max(0, min(full - Register.RAX, len(GENERAL_REGISTERS) - 1))
