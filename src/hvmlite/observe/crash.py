"""What a kernel developer needs to know of a crashed guest: reason, registers, instruction, calls.

Made from the stopped vCPU at the moment of the crash; nothing here costs a running guest anything.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from hvmlite.abi import xen
from hvmlite.engine.base import CONTROL_REGISTERS, GENERAL_REGISTERS, SEGMENT_REGISTERS
from hvmlite.engine.disasm import instruction_text
from hvmlite.errors import EngineError
from hvmlite.records import field, record

if TYPE_CHECKING:
    from hvmlite.hypervisor.domain import Domain
    from hvmlite.hypervisor.vcpu import Vcpu

_CODE_BYTES = 16
_HYPERCALL_NAMES = {
    value: name.removeprefix("__HYPERVISOR_")
    for name, value in vars(xen).items()
    if name.startswith("__HYPERVISOR_") and isinstance(value, int)
}


@record
class CrashReport:
    """A crash: `str()` is the text for a person."""

    reason: str
    vcpu: int
    registers: dict[str, int] = field(default_factory=dict)
    segments: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    """By name: selector, base, limit in bytes, access."""
    code: bytes = b""
    instruction: str = ""
    calls: list[str] = field(default_factory=list)
    """The vCPU's last hypercalls, the latest last."""

    def __str__(self) -> str:
        """The report, several lines."""
        lines = [f"guest crashed: {self.reason} (vCPU {self.vcpu})"]
        r = self.registers
        if r:
            lines.append(f"  rip {r['rip']:016x}  rflags {r['rflags']:08x}")
            names = list(GENERAL_REGISTERS)
            for start in range(0, len(names), 4):
                row = names[start : start + 4]
                lines.append("  " + "  ".join(f"{n:>3} {r[n]:016x}" for n in row))
            controls = [n for n in CONTROL_REGISTERS if n not in ("rip", "rflags", "dr6", "dr7")]
            lines.append("  " + "  ".join(f"{n} {r[n]:x}" for n in controls))
        for name in ("cs", "ss", "ds", "tr", "gdtr", "idtr"):
            if name in self.segments:
                selector, base, limit, access = self.segments[name]
                lines.append(
                    f"  {name:<4} {selector:04x} base {base:016x} limit {limit:08x} "
                    f"access {access:03x}"
                )
        if self.code:
            lines.append(f"  code at rip: {self.code.hex(' ')}")
        if self.instruction:
            lines.append(f"  instruction: {self.instruction}")
        if self.calls:
            lines.append("  last hypercalls (latest last):")
            lines += [f"    {call}" for call in self.calls]
        return "\n".join(lines)


def _name_call(call: tuple[int, tuple[int, ...], int]) -> str:
    number, args, result = call
    name = _HYPERCALL_NAMES.get(number, f"hypercall {number}")
    return f"{name}({', '.join(f'{arg:#x}' for arg in args[:4])}) = {result}"


def _read(vcpu: Vcpu) -> CrashReport:
    engine = vcpu.engine
    report = CrashReport("", vcpu.id)
    for name in (*GENERAL_REGISTERS, *CONTROL_REGISTERS):
        report.registers[name] = engine.get(name)
    for name in SEGMENT_REGISTERS:
        segment = engine.segment(name)
        report.segments[name] = (segment.selector, segment.base, segment.limit, segment.access)
    report.code = engine.fetch(_CODE_BYTES)
    if report.code:
        report.instruction = instruction_text(report.code, engine.get("rip"), engine.mode)
    report.calls = [_name_call(call) for call in vcpu.recent_calls]
    return report


def make_report(domain: Domain) -> CrashReport:
    """The report of a domain that was just shut down with a crash."""
    info = domain.crash_info
    number = info.vcpu if info is not None and info.vcpu is not None else 0
    vcpu = domain.vcpus[number]
    report = CrashReport("", number)
    if not vcpu.running:
        # Of an engine that died there is less to see.
        with contextlib.suppress(EngineError):
            report = _read(vcpu)
    report.reason = info.reason if info is not None else "SCHEDOP_shutdown, reason crash"
    return report
