"""A disk with a scripted frontend, for tests of the block backend."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvmlite.abi.layout import Abi
from hvmlite.hypervisor.memory import Page
from hvmlite.toolstack.devices.disk import DiskSpec
from hvmlite.toolstack.domain import Domain
from hvmlite.toolstack.host import Host

from ...toolstack.conftest import Make, engine, host, kernel, make
from ..frontend import Frontend, FrontRing

__all__ = ["engine", "host", "kernel", "make"]

INITIALISING, INIT_WAIT, INITIALISED, CONNECTED, CLOSING, CLOSED = 1, 2, 3, 4, 5, 6
READ, WRITE, BARRIER, FLUSH, RESERVED, DISCARD, INDIRECT = range(7)
OKAY, ERROR, EOPNOTSUPP = 0, -1, -2
SIZE = 1 << 20
PATTERN = bytes(i * 7 + (i >> 8) & 0xFF for i in range(SIZE))
Segment = tuple[int, int, int]


class Disk:
    """One vbd of a domain, its image, and the frontend's side of it."""

    def __init__(self, host: Host, domain: Domain, spec: DiskSpec) -> None:
        self.host = host
        self.domain = domain
        self.messages: list[str] = []
        domain.on_message = self.messages.append
        kind, devid = domain.attach(spec)
        self.front = Frontend(host, domain, kind, devid)
        self.rings: list[FrontRing] = []
        self.ports: list[int] = []
        self.abi = Abi.X86_64

    def connect(
        self,
        *,
        abi: Abi = Abi.X86_64,
        pages: int = 1,
        queues: int = 1,
        persistent: bool = False,
    ) -> None:
        front = self.front
        front.state(INITIALISING)
        self.abi = abi
        self.rings, self.ports = [], []
        entry = 112 if abi is Abi.X86_64 else 108
        for i in range(queues):
            where = f"queue_{i}/" if queues > 1 else ""
            own = [front.page() for _ in range(pages)]
            self.rings.append(FrontRing(own, entry))
            refs = [front.grant(page) for page in own]
            self.ports.append(front.port())
            names = ["ring_ref"] if pages == 1 else [f"ring_ref{n}" for n in range(pages)]
            front.write(**{where + name: ref for name, ref in zip(names, refs, strict=True)})
            front.write(**{where + "event_channel": self.ports[-1]})
        if pages > 1:
            front.write(ring_page_order=pages.bit_length() - 1)
        if queues > 1:
            front.write(multi_queue_num_queues=queues)
        front.write(
            protocol="x86_64-abi" if abi is Abi.X86_64 else "x86_32-abi",
            feature_persistent=int(persistent),
        )
        front.state(INITIALISED)

    def put(self, request: bytes, queue: int = 0) -> None:
        self.rings[queue].put(request)

    def kick(self, queue: int = 0) -> None:
        self.rings[queue].push()
        self.front.kick(self.ports[queue])

    def answers(self, count: int, queue: int = 0) -> dict[int, tuple[int, int]]:
        """Waits for so many answers: by id, operation and status."""
        found: dict[int, tuple[int, int]] = {}

        def look() -> bool:
            for answer in self.rings[queue].take():
                ident, operation, status = struct.unpack_from("<QBxh", answer)
                found[ident] = operation, status
            return len(found) >= count

        self.front.wait(look)
        return found

    def ask(self, *requests: bytes, queue: int = 0) -> dict[int, tuple[int, int]]:
        for request in requests:
            self.put(request, queue)
        self.kick(queue)
        return self.answers(len(requests), queue)

    def request(
        self, operation: int, ident: int, sector: int, segments: list[Segment], count: int = -1
    ) -> bytes:
        head = "<BBHxxxxQQ" if self.abi is Abi.X86_64 else "<BBHQQ"
        count = len(segments) if count < 0 else count
        body = b"".join(struct.pack("<IBBxx", *segment) for segment in segments)
        return struct.pack(head, operation, count, 0, ident, sector) + body

    def indirect(
        self,
        operation: int,
        ident: int,
        sector: int,
        segments: list[Segment],
        count: int = -1,
    ) -> bytes:
        page = self.front.page()
        for i, segment in enumerate(segments):
            page.u8[i * 8 : i * 8 + 8] = struct.pack("<IBBxx", *segment)
        ref = self.front.grant(page, readonly=True)
        count = len(segments) if count < 0 else count
        if self.abi is Abi.X86_64:
            head = struct.pack("<BBHxxxxQQHxx", INDIRECT, operation, count, ident, sector, 0)
        else:
            head = struct.pack("<BBHQQHxx", INDIRECT, operation, count, ident, sector, 0)
        return head + struct.pack("<8I", ref, *[0] * 7)

    def discard(self, ident: int, sector: int, sectors: int, flag: int = 0) -> bytes:
        head = "<BBHxxxxQQQ" if self.abi is Abi.X86_64 else "<BBHQQQ"
        return struct.pack(head, DISCARD, flag, 0, ident, sector, sectors)

    def pages(self, count: int, *, readonly: bool = False) -> tuple[list[Page], list[int]]:
        own = [self.front.page() for _ in range(count)]
        return own, [self.front.grant(page, readonly=readonly) for page in own]


Attach = Callable[..., Disk]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(PATTERN)
    return path


@pytest.fixture
def attach(host: Host, make: Make, image: Path) -> Iterator[Attach]:
    """Makes disks: `attach(readonly=True)`."""

    def build(**options: object) -> Disk:
        spec = DiskSpec(**{"target": str(image), "vdev": "xvda", **options})  # type: ignore[arg-type]
        return Disk(host, make(), spec)

    return build
