"""One hypercall in progress: its arguments, and copies to and from the caller's memory.

Everything a guest hands over is copied in once and checked before use.  Pointers are linear
addresses in the caller's own paging mode, as for every HVM and PVH guest.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from hvmlite.abi.layout import Abi, Struct
from hvmlite.engine.memory import PAGE_SIZE
from hvmlite.engine.paging import PageFault
from hvmlite.hypervisor.memory import Gpa, GuestAccessError

if TYPE_CHECKING:
    from hvmlite.hypervisor.domain import Domain
    from hvmlite.hypervisor.vcpu import Vcpu

S = TypeVar("S", bound=Struct)

COPY_LIMIT = 1 << 20
"""Bytes that one copy may have: no hypercall of a guest needs more, and it bounds our work."""

_CANONICAL = (0, 0x1FFFF)
_HIGH = 0xFFFF_0000_0000_0000


_TOP = {Abi.X86_64: 1 << 64, Abi.X86_32: 1 << 32}


class XenError(Exception):
    """A hypercall fails: `errno` is one of abi.errno (positive)."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = int(errno)


class Call:
    """The caller's view of a hypercall.

    `args` are the five argument registers, truncated to 32 bits for a 32-bit caller; `abi` is the
    struct layout that the caller uses.  `rest` is what is left to do of a call inside a multicall:
    its number and arguments (hypercalls/continuation.py).
    """

    __slots__ = ("_memory", "_translate", "abi", "args", "domain", "rest", "vcpu")

    def __init__(self, vcpu: Vcpu, abi: Abi, args: tuple[int, ...]) -> None:
        self.vcpu = vcpu
        self.domain: Domain = vcpu.domain
        self.abi = abi
        self.args = args
        self.rest: tuple[int, ...] = ()
        self._memory = vcpu.domain.memory
        self._translate = vcpu.engine.translate

    def _gpa(self, address: int, size: int, *, write: bool) -> Gpa:
        if address >> 47 not in _CANONICAL:
            # Xen walks the tables by the low 48 bits, whatever is above.
            address = address & (1 << 48) - 1 | -(address >> 47 & 1) & _HIGH
        try:
            return Gpa(self._translate(address, write=write))
        except PageFault as fault:
            raise GuestAccessError(address, size, str(fault)) from None

    def read_guest(self, address: int, size: int) -> bytes:
        """Copies `size` bytes in; raises GuestAccessError."""
        if 0 < size <= PAGE_SIZE - (address & (PAGE_SIZE - 1)) and address < _TOP[self.abi]:
            return self._memory.read(self._gpa(address, size, write=False), size)
        return b"".join(
            self._memory.read(self._gpa(at, step, write=False), step)
            for at, step in self._split(address, size)
        )

    def write_guest(self, address: int, data: bytes) -> None:
        """Copies bytes out; raises GuestAccessError (pages before the bad one are written).

        What would go to a page that is read-only to the guest (a grant) is lost, as on Xen.
        """
        done = 0
        for at, step in self._split(address, len(data)):
            gpa = self._gpa(at, step, write=True)
            try:
                self._memory.write(gpa, data[done : done + step])
            except GuestAccessError:
                if not self._memory.is_readonly(gpa):
                    raise
            done += step

    def _split(self, address: int, size: int) -> list[tuple[int, int]]:
        if not size:
            # Xen does not look at the address of nothing.
            return []
        if not 0 <= size <= COPY_LIMIT or address < 0 or address + size > _TOP[self.abi]:
            raise GuestAccessError(address, size, "no such range")
        end = address + size
        cuts = [address, *range((address | (PAGE_SIZE - 1)) + 1, end, PAGE_SIZE), end]
        return [(at, to - at) for at, to in pairwise(cuts)]

    def copy_from(self, address: int, kind: type[S]) -> S:
        """Copies a struct in, in the caller's layout; raises GuestAccessError."""
        abi = self.abi
        return kind.unpack(self.read_guest(address, kind.sizeof(abi)), abi)

    def copy_to(self, address: int, value: Struct) -> None:
        """Copies a struct out, in the caller's layout; raises GuestAccessError."""
        self.write_guest(address, value.pack(self.abi))

    def copy_field_to(self, address: int, kind: type[Struct], name: str, value: object) -> None:
        """Copies one field of the struct at `address` out; raises GuestAccessError."""
        data = kind.pack_field(name, value, self.abi)
        self.write_guest(address + kind.offsetof(name, self.abi), data)

    def read_array(self, address: int, code: str, count: int) -> tuple[int, ...]:
        """Copies `count` integers in; `code` is H, I or Q as in the struct module."""
        layout = struct.Struct(f"<{count}{code}")
        values: tuple[int, ...] = layout.unpack(self.read_guest(address, layout.size))
        return values

    @property
    def pfn_code(self) -> str:
        """The struct-module code of an xen_pfn_t or unsigned long of the caller."""
        return "Q" if self.abi is Abi.X86_64 else "I"
