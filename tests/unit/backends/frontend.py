"""A frontend driver that does what a test says: pages, grants, ports and xenstore nodes of a domain
whose vCPUs never run.

Everything happens in the host's thread (`Host.call`), as it does for a guest.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import TypeVar

from hvmlite.abi.ring import sring
from hvmlite.hypervisor.memory import Gfn, Page
from hvmlite.toolstack.domain import Domain
from hvmlite.toolstack.host import Host

T = TypeVar("T")
FIRST_GFN = 0x200
"""Well above what the smallest kernel takes."""
FIRST_REF = 8
GTF_PERMIT_ACCESS = 1
GTF_READONLY = 4


class Frontend:
    """The guest's side of one device."""

    def __init__(self, host: Host, domain: Domain, kind: str, devid: int) -> None:
        self.host = host
        self.domain = domain
        self.home = f"/local/domain/{domain.id}/device/{kind}/{devid}"
        self.there = f"/local/domain/0/backend/{kind}/{domain.id}/{devid}"
        self.events: dict[int, int] = {}
        self._gfn = FIRST_GFN
        self._ref = FIRST_REF

    def call(self, function: Callable[[], T]) -> T:
        return self.host.call(function)

    # ---- xenstore -------------------------------------------------------------------------------

    def write(self, **nodes: object) -> None:
        def do() -> None:
            for name, value in nodes.items():
                self.host.store.write(f"{self.home}/{name.replace('_', '-')}", str(value))

        self.call(do)

    def remove(self, name: str) -> None:
        self.call(
            lambda: self.host.store.exists(self.home) and self.host.store.rm(f"{self.home}/{name}")
        )

    def state(self, state: int) -> None:
        self.write(state=state)

    def backend(self, name: str) -> str | None:
        """A node of the backend's."""
        value = self.call(lambda: self.host.store.read(f"{self.there}/{name}"))
        return None if value is None else value.decode()

    def backend_state(self) -> int:
        return int(self.backend("state") or 0)

    def wait(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """For what comes from other threads."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.002)

    # ---- memory ---------------------------------------------------------------------------------

    def page(self) -> Page:
        """A page of the guest's that nobody used; `gfn` finds its number."""
        gfn = self._gfn
        self._gfn += 1
        return self.call(lambda: self.domain.incarnation.domain.memory.page(Gfn(gfn)))

    def grant(self, page: Page, *, readonly: bool = False, domid: int = 0) -> int:
        """Grants a page (the one behind that frame) to the backend's domain."""
        ref = self._ref
        self._ref += 1
        flags = GTF_PERMIT_ACCESS | (GTF_READONLY if readonly else 0)
        self.set_entry(ref, flags, domid, self.gfn(page))
        return ref

    def gfn(self, page: Page) -> int:
        return self.call(lambda: self.domain.incarnation.domain.physmap.find(page.frame))

    def set_entry(self, ref: int, flags: int, domid: int, gfn: int) -> None:
        def do() -> None:
            table = self.domain.incarnation.domain.grants
            while ref // 512 >= len(table.frames):
                assert table.grow(len(table.frames) + 1)
            table.frames[ref // 512].write(ref % 512 * 8, struct.pack("<HHI", flags, domid, gfn))

        self.call(do)

    def in_use(self, ref: int) -> bool:
        """Whether somebody has the grant mapped."""
        return ref in self.domain.incarnation.domain.grants.pins

    def grants_in_use(self) -> int:
        return len(self.domain.incarnation.domain.grants.pins)

    # ---- event channels -------------------------------------------------------------------------

    def port(self) -> int:
        """A port for the backend to bind."""
        return self.call(lambda: self.domain.incarnation.domain.evtchn.alloc_unbound(0))

    def kick(self, port: int) -> None:
        self.call(lambda: self.domain.incarnation.domain.evtchn.send(port))

    def ports_in_use(self) -> int:
        """Backends' ends of this domain's ports."""
        return len(self.domain.incarnation.domain.evtchn._backends)

    def pending(self, port: int) -> bool:
        """Whether the backend sent an event; takes it."""

        def do() -> bool:
            page = self.domain.incarnation.domain.shared_info
            word = page.u64[(0x800 + port // 64 * 8) // 8]
            page.u64[(0x800 + port // 64 * 8) // 8] = word & ~(1 << port % 64)
            return bool(word >> port % 64 & 1)

        return self.call(do)


class FrontRing:
    """The frontend's side of a ring over pages that follow each other."""

    def __init__(self, pages: list[Page], entry_size: int) -> None:
        self.pages = pages
        self.entry = entry_size
        room = (4096 * len(pages) - sring.sizeof()) // entry_size
        self.size = 1 << (room.bit_length() - 1)
        self.req_prod = 0
        self.rsp_cons = 0
        header = pages[0].u32
        header[0], header[1], header[2], header[3] = 0, 1, 0, 1

    def _bytes(self, at: int, data: bytes | None, size: int) -> bytes:
        out = bytearray()
        for i in range(size):
            page, offset = self.pages[(at + i) >> 12], (at + i) & 4095
            if data is not None:
                page.u8[offset] = data[i]
            out.append(page.u8[offset])
        return bytes(out)

    def put(self, request: bytes) -> None:
        at = sring.sizeof() + self.req_prod % self.size * self.entry
        self._bytes(at, request, len(request))
        self.req_prod += 1

    def push(self) -> bool:
        """Shows the requests; whether the backend wants an event."""
        header = self.pages[0].u32
        old = header[0]
        header[0] = self.req_prod & 0xFFFF_FFFF
        return (self.req_prod - header[1]) & 0xFFFF_FFFF < (self.req_prod - old) & 0xFFFF_FFFF

    def take(self) -> list[bytes]:
        """The responses so far."""
        header = self.pages[0].u32
        found = []
        while self.rsp_cons & 0xFFFF_FFFF != header[2]:
            at = sring.sizeof() + self.rsp_cons % self.size * self.entry
            found.append(self._bytes(at, None, self.entry))
            self.rsp_cons += 1
        header[3] = self.rsp_cons + 1 & 0xFFFF_FFFF
        return found
