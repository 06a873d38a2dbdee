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
from hvmlite.abi.ring import XEN_PAGE_SHIFT
from hvmlite.backends.block.grants import (
    MomentaryPages,
    Pages,
    PageSource,
    Parts,
    PersistentPages,
    Spans,
    count_sectors,
    spans,
)
from hvmlite.backends.block.image import Buffer, Job, Operation
from hvmlite.backends.device import DeviceError
from hvmlite.backends.ring import BackRing

if TYPE_CHECKING:
    from hvmlite.backends.block.backend import BlockBackend
    from hvmlite.hypervisor.clock import Timer

MAX_INDIRECT_SEGMENTS = 256
"""Fewer than one page of segments holds."""
_WHOLE = [
    ((0,) * n, (SECTORS_PER_PAGE - 1,) * n, SECTORS_PER_PAGE * n)
    for n in range(MAX_INDIRECT_SEGMENTS + 1)
]
"""For requests of whole pages: all first_sect, all last_sect, the sum of sectors."""
_TURNS = 8
"""How many times a ring is gone on with before the rest of the host gets its turn."""
_SECTORS_AT_ONCE = 1 << 11
"""How much is moved before the rest of the host gets its turn; a full ring may ask for 512 MiB."""
_TOGETHER = 32
"""Answers that a frontend gets although it puts further requests."""
_POLL_NS = 10_000
_QUIET_NS = 400_000
"""Without a further request for so long, a frontend waits for answers."""
_PATIENCE_NS = 2_000_000
"""How long an answer waits at most while further requests keep coming."""
_SOON_NS = 200_000
"""A frontend that was answered puts its next request, or ends the interrupt, within that time."""
_VAIN = 3
"""So many answers in a row that were held back for nothing, and requests are answered at once."""
_FIRST_DIRECT = 16
_MOST_DIRECT = 64
"""How many requests are answered at once before it is tried again to hold answers back."""


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
        self._loans = device.control.loans(device.domain)
        self._memory = self._loans.memory
        self._pages: PageSource = PersistentPages(device) if persistent else MomentaryPages(device)
        self._taken: deque[bytes] = deque()
        self._under_way = 0
        self._drained: Callable[[], None] | None = None
        """What is to be done once nothing is under way; no request is begun before."""
        self._waiting: Pages | None = None
        """The pages of the request that waits for that."""
        self._blocked = False
        self._moved = 0
        """Sectors of the requests of this turn."""
        self._soon = False
        self._live = True
        self._vcpus = device.domain.vcpus
        self._timers = device.control.host.timers
        self._now = self._timers.now
        self._poll: Timer | None = None
        self._stay_awake = device.control.host.stay_awake
        self._tick = lambda: device.guarded(self._gather)
        self._direct = _FIRST_DIRECT
        """Events that are still to be answered at once."""
        self._next_direct = 1
        self._vain = 0
        self._gathered = 0
        """Requests since answers were last shown to the frontend."""
        self._first_request = 0
        self._last_request = 0
        window = device.window(device.ring_refs(max_pages, where))
        self._ring = BackRing(window, REQUEST_SIZE[abi])
        port = device.read_int(f"{where}event-channel", 1, 0xFFFF_FFFF)
        self._port = device.bind(port, self._on_event)

    def close(self) -> None:
        """The frontend has gone: what is under way ends without an answer."""
        self._live = False
        self._drained = None
        if self._waiting is not None:
            self._waiting.release()
        if self._poll is not None:
            self._poll.cancel()

    def rotate(self) -> None:
        """Gives up pages that were not used for long, if nothing is under way."""
        if not self._under_way:
            self._pages.rotate()

    # ---- the ring -------------------------------------------------------------------------------

    def _on_event(self) -> None:
        """The frontend has put requests into a ring that nobody looked at."""
        if self._direct:
            self._direct -= 1
            self.serve()
            self._stay_awake(_SOON_NS)
        elif self._poll is None:
            self._gathered = 0
            self._last_request = self._now()
            self._poll_at(self._last_request)

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
            self._poll = self._timers.at(moment, self._tick)

    def _gather(self) -> None:
        """Takes requests while the frontend goes on, and answers once it waits for that."""
        self._poll = None
        if not self._live:
            return
        ring, now = self._ring, self._now()
        requests = ring.take(ring.size)
        self._taken += requests
        # Also those that were left behind a barrier, which may be over by now.
        self._do_taken()
        if requests:
            if not self._gathered:
                self._first_request = now
            self._gathered += len(requests)
            self._last_request = now
            if ring.unpushed >= _TOGETHER or now - self._first_request > _PATIENCE_NS:
                self._push()
                self._gathered = 0
        elif self._taken:
            # The rest has to wait for its turn, or for what goes before it.
            if self._blocked:
                self._push()
                return
        elif ring.unpushed:
            idle = self._frontend_idle()
            if idle or now - self._last_request > _QUIET_NS:
                self._push()
                self._last_request = now
                if not self._was_worth_it(self._gathered > 1) and ring.idle():
                    return
                self._gathered = 0
        elif (
            self._under_way or now - self._last_request > _QUIET_NS or self._frontend_idle()
        ) and (self._blocked or ring.idle()):
            return
        self._poll_at(now + _POLL_NS)

    def _was_worth_it(self, worth: bool) -> bool:
        """Learns from whether answers were held back for nothing; returns whether to go on."""
        if worth:
            self._vain = 0
            self._next_direct = 1
            return True
        self._vain += 1
        if self._vain < _VAIN:
            return True
        self._vain = 0
        self._direct = self._next_direct = min(2 * self._next_direct, _MOST_DIRECT)
        return False

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
        start = pages.frames[0] << XEN_PAGE_SHIFT
        segments: tuple[int, ...] = packed_segments(count).unpack_from(self._memory, start)
        pages.release()
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
        rest: Parts = None
        if first != all_first or last != all_last:
            rest = first, last
            sectors = count_sectors(first, last)
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
        status = BLKIF_RSP_OKAY
        pages = self._pages.find(refs, readonly=operation != 0)
        try:
            if flush:
                pages.keep()
                where = spans(pages.frames, rest)
                answer = self._answer(ident, operation, sector, pages)
                self._with_flush(offset, size, self._views(where), pages, answer)
                return
            if not self._at_once(operation, offset, size, spans(pages.frames, rest), pages.frames):
                self._later(operation, ident, sector, pages, rest, size)
                return
        except OSError as error:
            backend.image_failed(sector, error)
            status = BLKIF_RSP_ERROR
        except BaseException:
            pages.release()
            raise
        pages.release()
        self._respond(ident, operation, status)

    def _views(self, where: Spans) -> Sequence[Buffer]:
        memory = self._memory
        return [memory[start : start + size] for start, size in where]

    def _at_once(
        self, operation: int, offset: int, size: int, where: Spans, frames: Sequence[int]
    ) -> bool:
        """Reads or writes what need not wait for anything; raises OSError."""
        if operation:
            return self._image.write_now(self._views(where), offset, size)
        executed = self._executed
        if any(map(executed, frames)):
            buffer = bytearray(size)
            if not self._image.read_now([buffer], offset, size):
                return False
            self._put(where, buffer)
        elif not self._image.read_now(self._views(where), offset, size):
            return False
        elif any(map(executed, frames)):
            self._stored(where)
        return True

    def _put(self, where: Spans, data: bytearray) -> None:
        """Writes what was read into pages of which some hold code."""
        view, at = memoryview(data), 0
        for start, size in where:
            self._loans.write(start, view[at : at + size])
            at += size

    def _stored(self, where: Spans) -> None:
        """Pages were read into, and some of them were executed meanwhile."""
        for start, size in where:
            self._loans.stored(start, size)

    def _later(
        self,
        operation: int,
        ident: int,
        sector: int,
        pages: Pages,
        rest: Parts,
        size: int,
    ) -> None:
        """Has a read or a write done that has to wait."""
        pages.keep()
        frames = pages.frames
        where = spans(frames, rest)
        answer = self._answer(ident, operation, sector, pages)
        offset = sector * SECTOR_SIZE
        if operation:
            self._start(Operation.WRITE, offset, size, self._views(where), answer)
            return
        executed = self._executed
        buffer = bytearray(size) if any(map(executed, frames)) else None

        def read(error: OSError | None) -> None:
            try:
                if error is not None:
                    return
                if buffer is not None:
                    self._put(where, buffer)
                elif any(map(executed, frames)):
                    self._stored(where)
            finally:
                answer(error)

        views = self._views(where) if buffer is None else [buffer]
        self._start(Operation.READ, offset, size, views, read)

    def _with_flush(
        self,
        offset: int,
        size: int,
        views: Sequence[Buffer],
        pages: Pages,
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
        self._waiting = pages
        self._check_drained()

    def _check_drained(self) -> None:
        if not self._under_way and (drained := self._drained) is not None:
            self._drained = self._waiting = None
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
                pages.release()
            if error is not None:
                self._backend.image_failed(sector, error)
            if self._live:
                self._respond(
                    ident, operation, BLKIF_RSP_OKAY if error is None else BLKIF_RSP_ERROR
                )
                self._serve_soon()

        return answer
