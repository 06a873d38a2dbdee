"""The report of `hvmlite check`: complete, as JSON and as text, for good and for bad kernels.

Real kernels are looked at where the machine has them: GRUB's PVH image (package grub-xen-host),
the running system's Linux image.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hvmlite.toolstack.kernel import KernelError, check_kernel, load_kernel

from .build import EM_ARM, ET_CORE, LOAD_ADDRESS, Elf, Load, compressed_bzimage, entry_note, note

GRUB = Path("/usr/lib/grub-xen/grub-i386-xen_pvh.bin")


def test_good_kernel(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    elf = Elf(
        loads=[Load(data=b"\x90" * 100, memsz=0x1000)],
        notes=entry_note() + note(6, b"test\0"),
    ).build()
    path.write_bytes(compressed_bzimage("xz", elf))
    report = check_kernel(path)
    assert report.bootable
    assert report.reasons == ()
    size = path.stat().st_size
    assert report.to_json() == {
        "name": str(path),
        "bootable": True,
        "reasons": [],
        "remarks": [],
        "format": "bzImage",
        "compression": "xz",
        "boot_protocol": "2.15",
        "file_size": size,
        "elf_size": len(elf),
        "elf_class": 64,
        "elf_type": "ET_EXEC",
        "machine": "EM_X86_64",
        "entry": LOAD_ADDRESS,
        "lowest_address": LOAD_ADDRESS,
        "highest_address": LOAD_ADDRESS + 0x1000,
        "segments": [{"paddr": LOAD_ADDRESS, "memsz": 0x1000, "filesz": 100, "access": "R-X"}],
        "notes": [
            {"type": 18, "name": "XEN_ELFNOTE_PHYS32_ENTRY", "value": LOAD_ADDRESS},
            {"type": 6, "name": "XEN_ELFNOTE_GUEST_OS", "value": "test"},
        ],
    }
    assert report.to_text().splitlines() == [
        f"{path}: bzImage (xz), boot protocol 2.15, {size} bytes, {len(elf)} uncompressed",
        "  ELF: 64-bit, EM_X86_64, ET_EXEC",
        "  segment: 0x00100000-0x00101000 R-X, 100 of 4096 bytes from the file",
        "  entry: 0x100000",
        "  note: PHYS32_ENTRY = 0x100000",
        "  note: GUEST_OS = test",
        "  boots as PVH: yes",
    ]


def test_all_reasons_at_once(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    elf = Elf(
        machine=EM_ARM,
        file_type=ET_CORE,
        loads=[Load(memsz=1), Load(offset=1 << 50), Load((1 << 64) - 1)],
        notes=entry_note(5) + note(10, b"!dom0|!x|!y\0"),
    )
    path.write_bytes(elf.build())
    report = check_kernel(path)
    assert not report.bootable
    assert len(report.reasons) == 10
    words = ("EM_ARM", "core", "in memory", "cut short", "wraps", "overlap", "dom0", "entry 0x5")
    for word in words:
        assert any(word in reason for reason in report.reasons)
    text = report.to_text()
    assert "boots as PVH: no" in text
    assert all(f"    {reason}" in text for reason in report.reasons)
    assert json.loads(json.dumps(report.to_json()))["bootable"] is False


def test_no_kernel(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(b"text\n")
    report = check_kernel(path)
    assert report.to_text() == (
        f"{path}: unknown format, 5 bytes\n  boots as PVH: no\n    is not a kernel but a text file"
    )
    assert report.to_json()["format"] is None
    with pytest.raises(KernelError, match="is a directory"):
        check_kernel(tmp_path)


def test_remarks(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(Elf(notes=entry_note() + note(9, b"yes\0 and more")[:-12]).build())
    report = check_kernel(path)
    assert report.bootable
    remark = "its notes at byte 0xf0 are broken: a note is larger than its segment"
    assert report.to_json()["remarks"] == [remark]
    assert f"  remark: {remark}" in report.to_text().splitlines()


def test_damage_explains_why_no_entry_is_found(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    broken = "its notes at byte 0xf0 are broken: a note is larger than its segment"
    path.write_bytes(Elf(notes=entry_note()[:-4]).build())
    assert check_kernel(path).reasons == (broken,)
    path.write_bytes(Elf(notes=note(6, b"GRUB\0") + entry_note()[:-4]).build())
    first, second = check_kernel(path).reasons
    assert first.startswith("has Xen ELF notes, but not XEN_ELFNOTE_PHYS32_ENTRY")
    assert second == broken


def test_long_and_strange_notes_stay_on_their_line(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(Elf(notes=entry_note() + note(6, b"\n" * 5000)).build())
    lines = check_kernel(path).to_text().splitlines()
    assert len(lines) == 7
    assert max(map(len, lines)) < 300


@pytest.mark.skipif(not GRUB.exists(), reason="package grub-xen-host is not installed")
def test_grub() -> None:
    report = check_kernel(GRUB)
    assert report.bootable
    assert report.to_json()["elf_class"] == 32
    with load_kernel(GRUB) as image:
        image.check_fits(32 << 20)
        assert image.segments[0].paddr <= image.entry < image.segments[0].end


@pytest.mark.skipif(not list(Path("/boot").glob("vmlinuz-*")), reason="no Linux image in /boot")
def test_linux() -> None:
    path = sorted(Path("/boot").glob("vmlinuz-*"))[0]
    report = check_kernel(path)
    assert report.to_json()["format"] == "bzImage"
    assert report.to_json()["elf_size"]
