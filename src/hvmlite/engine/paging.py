"""Walks a guest's own page tables, as the CPU would, for accesses made on the guest's behalf.

Covers no paging, 32-bit (with and without 4 MiB pages), PAE and 4-level long mode; five-level
paging is never offered to a guest.  Facts: Intel SDM volume 3, chapter 4.
"""

from __future__ import annotations

from collections.abc import Callable

from hvmlite.records import record

CR0_PG = 1 << 31
CR0_WP = 1 << 16
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
EFER_LMA = 1 << 10

_PRESENT = 1
_WRITE = 2
_USER = 4
_LARGE = 0x80
_ADDRESS = 0x000F_FFFF_FFFF_F000
_MASK32 = 0xFFFF_FFFF


class PageFault(Exception):
    """A linear address that the guest's tables do not let this access reach.

    `present` tells a protection violation from a missing page.
    """

    def __init__(self, address: int, *, write: bool, present: bool) -> None:
        super().__init__(f"page fault at linear address {address:#x}")
        self.address = address
        self.write = write
        self.present = present

    @property
    def error_code(self) -> int:
        """The error code of a supervisor data access."""
        return self.present | self.write << 1


@record
class PagingMode:
    """The registers that decide how linear addresses are translated."""

    cr0: int
    cr3: int
    cr4: int
    efer: int


def translate(
    mode: PagingMode,
    address: int,
    read64: Callable[[int], int | None],
    *,
    write: bool = False,
    user: bool = False,
) -> int:
    """Returns the guest-physical address behind a linear one.

    `read64(gpa)` returns the 8 aligned bytes at a guest-physical address, None where there is no
    memory.  Raises PageFault.
    """
    shifts: tuple[int, ...]
    if not mode.cr0 & CR0_PG:
        return address & _MASK32
    if mode.efer & EFER_LMA:
        if address + (1 << 47) & 0xFFFF_FFFF_FFFF_FFFF >= 1 << 48:
            raise PageFault(address, write=write, present=False)
        table, shifts, bits = mode.cr3 & _ADDRESS, (39, 30, 21, 12), 9
    elif mode.cr4 & CR4_PAE:
        address &= _MASK32
        entry = read64(mode.cr3 & 0xFFFF_FFE0 | address >> 30 << 3)
        if entry is None or not entry & _PRESENT:
            raise PageFault(address, write=write, present=False)
        table, shifts, bits = entry & _ADDRESS, (21, 12), 9
    else:
        address &= _MASK32
        table, shifts, bits = mode.cr3 & 0xFFFF_F000, (22, 12), 10
    allowed = _WRITE | _USER
    found, large = 0, False
    for shift in shifts:
        index = address >> shift & ((1 << bits) - 1)
        if bits == 9:
            entry = read64(table | index << 3)
        else:
            pair = read64(table | index >> 1 << 3)
            entry = None if pair is None else pair >> (index & 1) * 32 & _MASK32
        if entry is None or not entry & _PRESENT:
            raise PageFault(address, write=write, present=False)
        found = entry
        allowed &= found
        large = bool(found & _LARGE) and shift not in (12, 39)
        if bits == 10 and not mode.cr4 & CR4_PSE:
            large = False
        if shift == 12 or large:
            break
        table = found & _ADDRESS
    if (write and not allowed & _WRITE and (user or mode.cr0 & CR0_WP)) or (
        user and not allowed & _USER
    ):
        raise PageFault(address, write=write, present=True)
    low = (1 << shift) - 1
    if large and bits == 10:
        # PSE-36: bits 13-20 of a 4 MiB entry are bits 32-39 of the address.
        return found & 0xFFC0_0000 | (found >> 13 & 0xFF) << 32 | address & low
    return found & _ADDRESS & ~low | address & low
