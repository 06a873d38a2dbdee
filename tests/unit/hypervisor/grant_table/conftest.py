"""A guest's hand on its grant table: fixture `granting` wraps a Guest of the conftest above."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hvmlite.abi import grant_table as abi
from hvmlite.abi import memory
from hvmlite.abi.layout import Abi, Struct
from hvmlite.abi.xen import DOMID_SELF

GRANT_TABLE_OP = 20
MEMORY_OP = 12
TABLE = 0xE0000
"""The guest frame where a guest maps its table, and TABLE + 0x100 for the status frames."""
STATUS = TABLE + 0x100
UNMAPPED = 0xFFFF_8000_0000_0000


class Granting:
    """What a guest does with grants."""

    def __init__(self, guest: Any, frames: int = 2) -> None:
        self.guest = guest
        self.domid: int = guest.domain.domid
        self.version = 1
        for i in range(frames):
            assert self.place(i, TABLE + i) == 0

    def place(self, idx: int, gpfn: int) -> int:
        arg = memory.xen_add_to_physmap(
            domid=DOMID_SELF, space=memory.XENMAPSPACE_grant_table, idx=idx, gpfn=gpfn
        )
        address = self.guest.place(arg.pack(self.guest.abi))
        result: int = self.guest.hypercall(MEMORY_OP, memory.XENMEM_add_to_physmap, address)
        return result

    # -- the shared table, as the CPU sees it

    def _at(self, ref: int) -> int:
        return (TABLE << 12) + ref * (8 if self.version == 1 else 16)

    def entry(self, ref: int, flags: int, domid: int, gfn: int) -> None:
        """Writes a whole-page entry."""
        at = self._at(ref)
        assert self.guest.write32(at + (4 if self.version == 1 else 8), gfn)
        assert self.guest.write32(at, flags | domid << 16)

    def raw(self, ref: int, entry: Struct) -> None:
        """Writes a version 2 entry of any kind."""
        data = entry.pack()
        for i in range(0, len(data), 4):
            self.guest.write32(self._at(ref) + i, int.from_bytes(data[i : i + 4], "little"))

    def flags(self, ref: int) -> int:
        """The flags of an entry."""
        return self.guest.read32(self._at(ref)) & 0xFFFF

    def status(self, ref: int) -> int:
        """The status word of version 2."""
        return self.guest.read32((STATUS << 12) + ref // 2 * 4) >> 16 * (ref & 1) & 0xFFFF

    # -- operations

    def op(self, number: int, address: int, count: int = 1) -> int:
        result: int = self.guest.hypercall(GRANT_TABLE_OP, number, address, count)
        return result

    def one(self, number: int, arg: Struct) -> Any:
        """One operation; the result and the struct afterwards."""
        address = self.guest.place(arg.pack(self.guest.abi))
        result = self.op(number, address)
        return result, self.guest.get(address, type(arg))

    def map(self, ref: int, gfn: int, flags: int = abi.GNTMAP_host_map, dom: int = -1) -> Any:
        """Maps a grant; returns the struct afterwards."""
        arg = abi.gnttab_map_grant_ref(gfn << 12, flags, ref, self.domid if dom < 0 else dom)
        result, arg = self.one(abi.GNTTABOP_map_grant_ref, arg)
        assert result == 0
        return arg

    def unmap(self, handle: int, gfn: int, dev_bus_addr: int = 0) -> int:
        """Unmaps; returns the status."""
        arg = abi.gnttab_unmap_grant_ref(gfn << 12, dev_bus_addr, handle, status=77)
        result, arg = self.one(abi.GNTTABOP_unmap_grant_ref, arg)
        assert result == 0
        return int(arg.status)

    def copy(
        self,
        source: tuple[str, int, int],
        dest: tuple[str, int, int],
        size: int,
        domids: tuple[int, int] = (DOMID_SELF, DOMID_SELF),
        flags: int = 0,
    ) -> int:
        """Copies between ("ref" or "gfn", number, offset); returns the status."""
        sides = []
        for i, (kind, number, offset) in enumerate((source, dest)):
            side: Struct = abi.gnttab_copy_gmfn(number)
            if kind == "ref":
                side, flags = abi.gnttab_copy_ref(number), flags | 1 << i
            sides.append(abi.gnttab_copy_ptr(side.pack(self.guest.abi), domids[i], offset))
        arg = abi.gnttab_copy(sides[0], sides[1], size, flags, 77)
        result, arg = self.one(abi.GNTTABOP_copy, arg)
        assert result == 0
        return int(arg.status)

    def set_version(self, version: int) -> tuple[int, int]:
        """Changes the version; the result and the version in force."""
        result, arg = self.one(abi.GNTTABOP_set_version, abi.gnttab_set_version(version))
        if arg.version == 2 and self.version == 1:
            for i in range(len(self.guest.domain.grants.status)):
                assert self.place(i | memory.XENMAPIDX_grant_table_status, STATUS + i) == 0
        self.version = arg.version
        return result, arg.version


@pytest.fixture
def granting(guests: Callable[..., Any]) -> Callable[..., Granting]:
    """Makes guests with a mapped grant table."""
    return lambda frames=2, **options: Granting(guests(**options), frames)


@pytest.fixture(params=[Abi.X86_64, Abi.X86_32], ids=["64", "32"])
def grants(request: pytest.FixtureRequest, granting: Callable[..., Granting]) -> Granting:
    """One such guest, of either width."""
    return granting(abi=request.param)


@pytest.fixture(scope="session")
def wrap() -> type[Granting]:
    """The wrapper itself, for tests that make their own hosts."""
    return Granting
