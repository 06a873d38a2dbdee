"""`hvmlite check`: everything a kernel declares and every reason why it cannot boot as PVH."""

from __future__ import annotations

import os
from typing import Any

from hvmlite.records import record
from hvmlite.toolstack.kernel.image import Inspection, inspect_kernel

_MAX_TEXT = 200


@record(frozen=True)
class KernelReport:
    """The findings on one kernel, for people (`to_text`) and for programs (`to_json`)."""

    inspection: Inspection

    @property
    def bootable(self) -> bool:
        """No reason was found why the kernel cannot boot as PVH."""
        return not self.inspection.reasons

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the kernel cannot boot; each is a phrase that follows the kernel's name."""
        return tuple(self.inspection.reasons)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON types; sizes in bytes, addresses as numbers, None: unknown."""
        found = self.inspection
        elf = found.elf
        segments = elf.segments if elf else ()
        return {
            "name": found.name,
            "bootable": self.bootable,
            "reasons": list(found.reasons),
            "remarks": list(found.remarks),
            "format": found.format,
            "compression": found.compression,
            "boot_protocol": found.boot_protocol,
            "file_size": found.file_size,
            "elf_size": found.elf_size,
            "elf_class": elf.elf_class if elf else None,
            "elf_type": elf.file_type if elf else None,
            "machine": elf.machine if elf else None,
            "entry": found.notes.phys32_entry,
            "lowest_address": min((s.paddr for s in segments), default=None),
            "highest_address": max((s.end for s in segments), default=None),
            "segments": [
                {
                    "paddr": segment.paddr,
                    "memsz": segment.memsz,
                    "filesz": segment.filesz,
                    "access": segment.access,
                }
                for segment in segments
            ],
            "notes": [
                {"type": note.type, "name": note.name, "value": found.notes.value(note)}
                for note in found.notes.raw
            ],
        }

    def to_text(self) -> str:
        """Return the report as lines of text, without a newline at the end."""
        found = self.inspection
        lines = [f"{found.name}: {self._format_line()}"]
        if elf := found.elf:
            lines.append(f"  ELF: {elf.elf_class}-bit, {elf.machine}, {elf.file_type}")
            for segment in elf.segments:
                lines.append(
                    f"  segment: {segment.paddr:#010x}-{segment.end:#010x} {segment.access}, "
                    f"{segment.filesz} of {segment.memsz} bytes from the file"
                )
        if found.notes.phys32_entry is not None:
            lines.append(f"  entry: {found.notes.phys32_entry:#x}")
        for note in found.notes.raw:
            value = found.notes.value(note)
            shown = f"{value:#x}" if isinstance(value, int) else _clip(value)
            lines.append(f"  note: {note.name.removeprefix('XEN_ELFNOTE_')} = {shown}")
        lines.extend(f"  remark: {remark}" for remark in found.remarks)
        if self.bootable:
            lines.append("  boots as PVH: yes")
        else:
            lines.append("  boots as PVH: no")
            lines.extend(f"    {reason}" for reason in found.reasons)
        return "\n".join(lines)

    def _format_line(self) -> str:
        found = self.inspection
        parts = [found.kind if found.format else "unknown format"]
        if found.boot_protocol:
            parts.append(f"boot protocol {found.boot_protocol}")
        parts.append(f"{found.file_size} bytes")
        if found.compression and found.elf_size is not None:
            parts.append(f"{found.elf_size} uncompressed")
        return ", ".join(parts)


def _clip(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."


def check_kernel(path: str | os.PathLike[str]) -> KernelReport:
    """Inspect a kernel. Raises KernelError only if the file cannot be read at all."""
    found = inspect_kernel(path)
    found.source.close()
    return KernelReport(found)
