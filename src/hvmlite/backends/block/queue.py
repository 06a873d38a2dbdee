"""One ring of a block device: takes requests, has the image carry them out, answers.

What the image does at once is answered within the frontend's own event. A request is copied once,
checked, then used; one that no frontend may send raises DeviceError. Facts: public/io/blkif.h.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hvmlite.abi.blkif import (
    BLKIF_DISCARD_SECURE,
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
    INDIRECT_GREFS,
    INDIRECT_GREFS_OFFSET,
    NR_SECTORS,
    NR_SECTORS_OFFSET,
    REQUEST_HEAD,
    REQUEST_SIZE,
    RESPONSE,
    SECTOR_SIZE,
    SECTORS_PER_PAGE,
    SEGMENTS_OFFSET,
    packed_segments,
)
from hvmlite.abi.layout import Abi
from hvmlite.backends.block.grants import GrantedPages, Pages
from hvmlite.backends.block.image import Buffer, Job, Operation
from hvmlite.backends.device import DeviceError
from hvmlite.backends.ring import BackRing

if TYPE_CHECKING:
    from hvmlite.backends.block.backend import BlockBackend
    from hvmlite.hypervisor.clock import Timer

MAX_INDIRECT_SEGMENTS = 256
"""Fewer than one page of segments holds."""
_LAST = SECTORS_PER_PAGE - 1
_WHOLE = [((0,) * n, (_LAST,) * n, SECTORS_PER_PAGE * n) for n in range(MAX_INDIRECT_SEGMENTS + 1)]
"""For requests of whole pages: all first_sect, all last_sect, the sum of sectors."""
_TURNS = 8
"""How many times a ring is gone on with before the rest of the host gets its turn."""
_SECTORS_AT_ONCE = 8 << 11
"""How much is moved before the rest of the host gets its turn; a full ring may ask for 512 MiB."""
_PROBE = 64
"""Of so many events of a frontend that has single requests, one is used to look for more."""
_TOGETHER = 8
"""Answers that a frontend gets although it puts further requests."""
_POLL_NS = 20_000
_QUIET_NS = 400_000
"""Without a further request for so long, a frontend waits for answers."""


class Queue:
    """One ring, its event channel and the pages that its requests use.

    `where` is its directory among the frontend's nodes: "" or "queue-0/" and so on.
    """

    def __init__(
        self, backend: BlockBackend, where: str, abi: Abi, *, max_pages: int, persistent: bool
    ) -> None:
        device = backend.device
        self._device = device
        self._backend = backend
        self._image = backend.image
        self._executed = device.domain.partition.executed_frames.__getitem__
        self._head = REQUEST_HEAD[abi].unpack_from
        self._segments_at = SEGMENTS_OFFSET[abi]
        self._grefs_at = INDIRECT_GREFS_OFFSET[abi]
        self._nr_sectors_at = NR_SECTORS_OFFSET[abi]
        self._response = RESPONSE[abi].pack
        self._pages = GrantedPages(device, persistent=persistent)
        self._taken: deque[bytes] = deque()
        self._under_way = 0
        self._drained: Callable[[], None] | None = None
        """What is to be done once nothing is under way; no request is begun before."""
        self._blocked = False
        self._moved = 0
        """Sectors of the requests of this turn."""
        self._soon = False
        self._live = True
        self._vcpus = device.domain.vcpus
        self._timers = device.control.host.timers
        self._now = self._timers.now
        self._poll: Timer | None = None
        self._events = 0
        self._gathering = False
        self._gathered = 0
        self._last_request = 0
        window = device.window(device.ring_refs(max_pages, where))
        self._ring = BackRing(window, REQUEST_SIZE[abi])
        port = device.read_int(f"{where}event-channel", 1, 0xFFFF_FFFF)
        self._port = device.bind(port, self._on_event)

    def close(self) -> None:
        """The frontend has gone: what is under way ends without an answer."""
        self._live = False
        self._drained = None
        if self._poll is not None:
            self._poll.cancel()

    def rotate(self) -> None:
        """Gives up pages that were not used for long, if nothing is under way."""
        if not self._under_way:
            self._pages.rotate()

    # ---- the ring -------------------------------------------------------------------------------

    def _on_event(self) -> None:
        """The frontend has put requests into an empty ring.

        One that has a single request under way is answered at once, before its vCPU goes on. One
        that goes on to put more is let go on: its requests are gathered, and answered together.
        """
        self._events += 1
        if self._gathering or not self._events % _PROBE:
            self._gathered = 0
            self._last_request = self._now()
            self._poll_at(self._last_request)
        else:
            self.serve()

    def serve(self) -> None:
        """Takes what is in the ring and answers what was done at once."""
        if self._poll is not None:
            return
        ring = self._ring
        for _ in range(_TURNS):
            self._do_taken()
            self._push()
            if self._blocked:
                return
            if self._taken:
                break
            if ring.idle():
                return
            self._taken += ring.take(ring.size)
        self._serve_soon()

    def _do_taken(self) -> None:
        taken = self._taken
        self._moved = 0
        while taken and not self._blocked and self._moved < _SECTORS_AT_ONCE:
            self._request(taken.popleft())

    def _push(self) -> None:
        if self._ring.push():
            self._port.notify()

    def _serve_soon(self) -> None:
        # What was under way may end when the ring is gone.
        if self._live and not self._soon:
            self._soon = True
            self._device.soon(self._go_on)

    def _go_on(self) -> None:
        self._soon = False
        self.serve()

    def _poll_at(self, moment: int) -> None:
        if self._poll is None:
            self._poll = self._timers.at(moment, lambda: self._device.guarded(self._gather))

    def _gather(self) -> None:
        """Takes requests without asking for an event, for as long as more keep coming."""
        self._poll = None
        if not self._live:
            return
        ring, now = self._ring, self._now()
        requests = ring.take(ring.size)
        self._taken += requests
        # Also those that were left behind a barrier, which may be over by now.
        self._do_taken()
        if requests:
            self._gathered += len(requests)
            self._last_request = now
            if ring.unpushed >= _TOGETHER:
                self._push()
        elif self._taken:
            # The rest has to wait for its turn, or for what goes before it.
            self._push()
            if self._blocked:
                return
        elif now - self._last_request > _QUIET_NS or self._frontend_idle():
            self._gathering = self._gathered > 1
            self._push()
            if self._blocked or ring.idle():
                return
        self._poll_at(now + _POLL_NS)

    def _frontend_idle(self) -> bool:
        return all(vcpu.blocked or not vcpu.up for vcpu in self._vcpus)

    def _respond(self, ident: int, operation: int, status: int) -> None:
        self._ring.respond(self._response(ident, operation, status))

    def _request(self, request: bytes) -> None:
        operation, count, wide, ident, sector = self._head(request)
        if operation <= BLKIF_OP_FLUSH_DISKCACHE:
            if count > BLKIF_MAX_SEGMENTS_PER_REQUEST:
                raise DeviceError(f"a request of {count} segments")
            segments = packed_segments(count).unpack_from(request, self._segments_at)
            self._transfer(operation, ident, sector, segments, count)
        elif operation == BLKIF_OP_INDIRECT:
            if count > BLKIF_OP_WRITE:
                raise DeviceError(f"an indirect request for operation {count}")
            segments = self._indirect(request, wide)
            # The answer is to the operation inside.
            self._transfer(count, ident, sector, segments, wide)
        elif operation == BLKIF_OP_DISCARD:
            sectors = NR_SECTORS.unpack_from(request, self._nr_sectors_at)[0]
            self._discard(ident, sector, sectors, secure=bool(count & BLKIF_DISCARD_SECURE))
        else:
            self._respond(ident, operation, BLKIF_RSP_EOPNOTSUPP)

    def _indirect(self, request: bytes, count: int) -> tuple[int, ...]:
        if not 0 < count <= MAX_INDIRECT_SEGMENTS:
            raise DeviceError(f"an indirect request of {count} segments")
        refs = INDIRECT_GREFS.unpack_from(request, self._grefs_at)
        pages = self._pages.find(refs[:1], readonly=True)
        segments: tuple[int, ...] = packed_segments(count).unpack_from(pages.views[0])
        self._pages.release(pages.own)
        return segments

    # ---- data -----------------------------------------------------------------------------------

    def _transfer(
        self,
        operation: int,
        ident: int,
        sector: int,
        segments: Sequence[int],
        count: int,
    ) -> None:
        """READ, WRITE, and the two operations that may have data beside their flush."""
        refs, first, last = segments[::3], segments[1::3], segments[2::3]
        all_first, all_last, sectors = _WHOLE[count]
        whole = first == all_first and last == all_last
        if not whole:
            sectors = _count_sectors(first, last)
        backend = self._backend
        flush = operation > BLKIF_OP_WRITE
        if flush and not count:
            self._start(Operation.FLUSH, 0, 0, (), self._answer(ident, operation, sector, None))
            return
        if not count or sector + sectors > backend.sectors or (operation and backend.spec.readonly):
            self._respond(ident, operation, BLKIF_RSP_ERROR)
            return
        self._moved += sectors
        offset, size = sector * SECTOR_SIZE, sectors * SECTOR_SIZE
        pages = self._pages.find(refs, readonly=operation != 0)
        views: Sequence[Buffer] = pages.views
        if not whole:
            views = [
                view[start * SECTOR_SIZE : (end + 1) * SECTOR_SIZE]
                for view, start, end in zip(views, first, last, strict=True)
            ]
        try:
            if flush:
                self._with_flush(offset, size, views, self._answer(ident, operation, sector, pages))
                return
            if operation:
                if not self._image.write_now(views, offset, size):
                    done = self._answer(ident, operation, sector, pages)
                    self._start(Operation.WRITE, offset, size, views, done)
                    return
            elif any(map(self._executed, pages.frames)):
                self._read_apart(ident, sector, pages, first, last, size)
                return
            elif not self._image.read_now(views, offset, size):
                answer = self._answer(ident, operation, sector, pages)

                def read(error: OSError | None) -> None:
                    if error is None and any(map(self._executed, pages.frames)):
                        pages.stored(first, last)
                    answer(error)

                self._start(Operation.READ, offset, size, views, read)
                return
            elif any(map(self._executed, pages.frames)):
                pages.stored(first, last)
        except OSError as error:
            self._backend.image_failed(sector, error)
            self._respond(ident, operation, BLKIF_RSP_ERROR)
        else:
            self._respond(ident, operation, BLKIF_RSP_OKAY)
        self._pages.release(pages.own)

    def _read_apart(
        self,
        ident: int,
        sector: int,
        pages: Pages,
        first: Sequence[int],
        last: Sequence[int],
        size: int,
    ) -> None:
        """A read into pages of which some hold code: by way of a buffer."""
        buffer = bytearray(size)

        def done(error: OSError | None) -> None:
            if error is None:
                self._device.guarded(lambda: pages.put(memoryview(buffer), first, last))
            answer(error)

        answer = self._answer(ident, BLKIF_OP_READ, sector, pages)
        offset = sector * SECTOR_SIZE
        try:
            if self._image.read_now([buffer], offset, size):
                pages.put(memoryview(buffer), first, last)
                self._respond(ident, BLKIF_OP_READ, BLKIF_RSP_OKAY)
                self._pages.release(pages.own)
                return
        except OSError as error:
            answer(error)
            return
        self._start(Operation.READ, offset, size, [buffer], done)

    def _with_flush(
        self,
        offset: int,
        size: int,
        views: Sequence[Buffer],
        done: Callable[[OSError | None], None],
    ) -> None:
        """A write that comes after all that was asked before and is durable before what follows."""

        def finish(error: OSError | None) -> None:
            self._blocked = False
            done(error)
            self._serve_soon()

        def flush(error: OSError | None) -> None:
            if error is None:
                self._start(Operation.FLUSH, 0, 0, (), finish)
            else:
                finish(error)

        def write(error: OSError | None) -> None:
            if error is None:
                self._start(Operation.WRITE, offset, size, views, flush)
            else:
                finish(error)

        self._blocked = True
        self._drained = lambda: self._start(Operation.FLUSH, 0, 0, (), write)
        self._check_drained()

    def _check_drained(self) -> None:
        if not self._under_way and (drained := self._drained) is not None:
            self._drained = None
            drained()

    def _discard(self, ident: int, sector: int, sectors: int, *, secure: bool) -> None:
        backend = self._backend
        if secure or not backend.discards:
            self._respond(ident, BLKIF_OP_DISCARD, BLKIF_RSP_EOPNOTSUPP)
        elif sector + sectors > backend.sectors or not sectors:
            self._respond(ident, BLKIF_OP_DISCARD, BLKIF_RSP_ERROR)
        else:
            answer = self._answer(ident, BLKIF_OP_DISCARD, sector, None)
            offset, size = sector * SECTOR_SIZE, sectors * SECTOR_SIZE

            def done(error: OSError | None) -> None:
                if error is None or error.errno != errno.EOPNOTSUPP:
                    answer(error)
                elif self._live:
                    # Not every file system can; a driver that hears so does not ask again.
                    self._respond(ident, BLKIF_OP_DISCARD, BLKIF_RSP_EOPNOTSUPP)
                    self._serve_soon()

            self._start(Operation.DISCARD, offset, size, (), done)

    # ---- what takes longer ----------------------------------------------------------------------

    def _start(
        self,
        operation: Operation,
        offset: int,
        size: int,
        views: Sequence[Buffer],
        done: Callable[[OSError | None], None],
    ) -> None:
        """Has the image do something, then `done(error)`; pages last until then."""

        def finish(error: OSError | None) -> None:
            self._under_way -= 1
            try:
                self._device.guarded(lambda: done(error))
            finally:
                self._device.unhold()
            self._check_drained()

        self._device.hold()
        self._under_way += 1
        self._image.start(Job(operation, offset, size, views, finish))

    def _answer(
        self, ident: int, operation: int, sector: int, pages: Pages | None
    ) -> Callable[[OSError | None], None]:
        """What answers a request when its work is done."""

        def answer(error: OSError | None) -> None:
            if pages is not None:
                self._pages.release(pages.own)
            if error is not None:
                self._backend.image_failed(sector, error)
            if self._live:
                self._respond(
                    ident, operation, BLKIF_RSP_OKAY if error is None else BLKIF_RSP_ERROR
                )
                self._serve_soon()

        return answer


def _count_sectors(first: Sequence[int], last: Sequence[int]) -> int:
    """Sectors of a request's segments; raises DeviceError for one that cannot be."""
    for start, end in zip(first, last, strict=True):
        if not start <= end <= _LAST:
            raise DeviceError(f"a segment of sectors {start} to {end} of a page")
    return sum(last) - sum(first) + len(first)
