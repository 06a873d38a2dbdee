"""What each exit of the engine means for a domain: the hot path.

No allocation, logging or lock that is not needed here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hvmlite.abi.errno import XEN_EFAULT, XEN_ENOMEM, XEN_ENOSYS, XEN_EPERM
from hvmlite.abi.layout import Abi
from hvmlite.engine import base as b
from hvmlite.engine.memory import PAGE_SHIFT
from hvmlite.hypervisor.call import XenError
from hvmlite.hypervisor.fault import GeneralProtection
from hvmlite.hypervisor.hypercalls.registry import note
from hvmlite.hypervisor.hypercalls.table import HYPERCALLS
from hvmlite.hypervisor.memory import Gpa, GuestAccessError
from hvmlite.hypervisor.msr import read_msr, write_msr
from hvmlite.hypervisor.physmap import allows

if TYPE_CHECKING:
    from hvmlite.hypervisor.vcpu import Vcpu

_MASK32 = 0xFFFF_FFFF
_MASK64 = 0xFFFF_FFFF_FFFF_FFFF
_GP = 13
_WIDE, _NARROW = Abi.X86_64, Abi.X86_32
_IF = 1 << 9
DEBUG_PORT = 0xE9


def hypercall(vcpu: Vcpu, _exit: b.Exit) -> None:
    """Dispatches by the number in (r/e)ax and puts the result there."""
    engine = vcpu.engine
    mode, cpl, number, args = engine.hypercall_registers()
    wide = mode == 64
    # A 64-bit caller's number is the whole of rax.
    entry = HYPERCALLS.get(number if wide else number & _MASK32)
    call = vcpu.call
    if cpl:
        result = -XEN_EPERM
    elif entry is None:
        result = -XEN_ENOSYS
        note(call, f"hypercall {number}")
    else:
        call.abi = _WIDE if wide else _NARROW
        call.args = args
        try:
            result = entry(call)
        except GuestAccessError:
            result = -XEN_EFAULT
        except XenError as error:
            result = -error.errno
        except MemoryError:
            result = -XEN_ENOMEM
    engine.set_rax(result & (_MASK64 if wide else _MASK32))
    vcpu.recent_calls.append((number, args, result))


def cpuid(vcpu: Vcpu, exit_: b.Cpuid) -> None:
    """Answers by the domain's CPUID policy."""
    vcpu.engine.complete_cpuid(*vcpu.domain.cpuid.answer(vcpu, exit_.leaf, exit_.subleaf))


def msr(vcpu: Vcpu, exit_: b.Msr) -> None:
    """Reads or writes a model-specific register; what is not there is a #GP."""
    engine = vcpu.engine
    try:
        if exit_.write:
            write_msr(vcpu, exit_.index, exit_.value)
            engine.complete_wrmsr()
        else:
            engine.complete_rdmsr(read_msr(vcpu, exit_.index))
    except GeneralProtection:
        engine.inject_exception(_GP, 0)


def tsc(vcpu: Vcpu, _exit: b.Exit) -> None:
    """The TSC of a domain whose TSC is emulated."""
    vcpu.engine.complete_tsc(vcpu.domain.calibration.read(vcpu.engine))


def port_io(vcpu: Vcpu, exit_: b.PortIo) -> None:
    """A PVH domU has no ports but the debug console: all ones, and writes vanish."""
    if not exit_.write:
        vcpu.engine.complete_in(_MASK32)
        return
    write = vcpu.domain.hooks.console_write
    if exit_.port == DEBUG_PORT and write is not None:
        write(exit_.data[:: exit_.size] if exit_.string else bytes((exit_.value & 0xFF,)))
    vcpu.engine.complete_out()


def mmio(vcpu: Vcpu, exit_: b.Mmio) -> None:
    """An address without RAM: a device if the toolstack put one there, else all ones.

    What is written there, or to memory that is read-only (a grant), is lost.
    """
    domain, gpa = vcpu.domain, exit_.gpa
    entry = domain.physmap.lookup(gpa >> PAGE_SHIFT)
    if entry is not None and allows(entry[1], write=exit_.write, fetch=exit_.fetch):
        # Another vCPU has mapped it since: the guest tries again.
        return
    if exit_.fetch:
        # Xen's emulator finds no code there and gives up.
        vcpu.engine.inject_exception(_GP, 0)
        return

    def read(address: int, size: int) -> int:
        for device in domain.mmio_devices:
            if device.start <= address < device.end:
                return device.read(vcpu, address, size)
        if entry is not None:
            with contextlib.suppress(GuestAccessError):
                return int.from_bytes(domain.memory.read(Gpa(address), size), "little")
        return (1 << 8 * size) - 1

    def write(address: int, size: int, value: int) -> None:
        for device in domain.mmio_devices:
            if device.start <= address < device.end:
                device.write(vcpu, address, size, value)
                return

    vcpu.engine.emulate_mmio(read, write)


def halt(vcpu: Vcpu, _exit: b.Exit) -> None:
    """HLT waits for an event; with interrupts disabled nothing can come, so the vCPU goes down."""
    if vcpu.engine.get("rflags") & _IF or vcpu.nmi_pending:
        vcpu.block()
    else:
        vcpu.take_down()


def shutdown(vcpu: Vcpu, _exit: b.Exit) -> None:
    """A triple fault counts as a crash, so that its reason is told (under Xen: as a reboot)."""
    vcpu.domain.crash("triple fault", vcpu)


def kicked(_vcpu: Vcpu, _exit: b.Exit) -> None:
    """Nothing to do: what the kick was for is seen at the next entry."""


def window(vcpu: Vcpu, _exit: b.Exit) -> None:
    """The guest has enabled interrupts, which somebody wanted to know."""
    vcpu.eoi_habit.enabled_interrupts()


def failure(vcpu: Vcpu, exit_: b.Failure) -> None:
    """The engine cannot go on with this vCPU."""
    vcpu.domain.crash(exit_.reason, vcpu)


HANDLERS: dict[type[b.Exit], Callable[[Any, Any], None]] = {
    b.Hypercall: hypercall,
    b.Cpuid: cpuid,
    b.Msr: msr,
    b.Tsc: tsc,
    b.PortIo: port_io,
    b.Mmio: mmio,
    b.Halt: halt,
    b.Shutdown: shutdown,
    b.Kicked: kicked,
    b.Window: window,
    b.Failure: failure,
}
"""Who acts on an exit of a vCPU, by its class."""
