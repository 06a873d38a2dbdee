"""Frames to a guest: the receive ring of one queue, by copies into the pages that it granted.

Facts: io/netif.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING

from hvmlite.abi import netif as n
from hvmlite.abi.layout import Abi
from hvmlite.backends.net.frame import PAGE_SIZE, Frame
from hvmlite.backends.ring import BackRing

if TYPE_CHECKING:
    from hvmlite.hypervisor.event_channel import BackendPort
    from hvmlite.hypervisor.grant_table import Lease
    from hvmlite.hypervisor.memory import Window

_REQUEST = n.netif_rx_request.layout(Abi.X86_64).codec
_RESPONSE = n.netif_rx_response.layout(Abi.X86_64)
ENTRY = max(_REQUEST.size, _RESPONSE.size)


@lru_cache(maxsize=512)
def _responses(count: int) -> Struct:
    return Struct("<" + _RESPONSE.format * count)


def extras(frame: Frame, hashed: bool) -> list[bytes]:
    """The slots of extra information that a frame needs."""
    found = []
    if frame.gso_size:
        gso = n.netif_extra_gso(frame.gso_size, frame.gso_type)
        found.append(n.netif_extra_info(n.XEN_NETIF_EXTRA_TYPE_GSO, 0, gso.pack()))
    if hashed and frame.hash is not None:
        value = n.netif_extra_hash(*frame.hash)
        found.append(n.netif_extra_info(n.XEN_NETIF_EXTRA_TYPE_HASH, 0, value.pack()))
    for extra in found[:-1]:
        extra.flags = n.XEN_NETIF_EXTRA_FLAG_MORE
    return [extra.pack().ljust(ENTRY, b"\0") for extra in found]


class RxQueue:
    """The receive ring of one queue.  `headroom`: bytes to leave free at the start of each page."""

    def __init__(self, window: Window, lease: Lease) -> None:
        self._ring = BackRing(window, ENTRY)
        self._lease = lease
        self.port: BackendPort | None = None
        """Raised for responses; set before the first frame."""
        self.headroom = 0
        self.hashed = False
        """Whether the guest gets the hashes of flows."""
        self.waiting = False
        """Whether a frame waits for the guest to give pages."""

    def receive(self, frames: Sequence[Frame]) -> int:
        """Hands finished frames to the guest; returns how many of the first it had room for.

        An event comes when it has room for the others.
        """
        done = 0
        while True:
            done += self._receive(frames[done:] if done else frames)
            if done == len(frames):
                self.waiting = False
                return done
            if self._ring.wait_for(self._slots(frames[done])):
                self.waiting = True
                return done

    def receive_all(self, frames: Sequence[Frame]) -> bool:
        """Hands over all of some frames, or none of them if there is no room for all."""
        needed = sum([self._slots(frame) for frame in frames])
        if needed > self._ring.size:
            # They go as the ring has room; what a guest does not take in time is lost.
            self.receive(frames)
            return True
        while self._ring.pending() < needed:
            if self._ring.wait_for(needed):
                self.waiting = True
                return False
        self.waiting = False
        self._receive(frames)
        return True

    def _slots(self, frame: Frame) -> int:
        room = PAGE_SIZE - self.headroom
        return (
            -(-frame.size // room)
            + (1 if frame.gso_size else 0)
            + (1 if self.hashed and frame.hash is not None else 0)
        )

    def _receive(self, frames: Sequence[Frame]) -> int:
        ring = self._ring
        free = ring.pending()
        total = count = 0
        for frame in frames:
            slots = self._slots(frame)
            if total + slots > free:
                break
            total += slots
            count += 1
        if not count:
            return 0
        raw = ring.take_raw(total)
        try:
            responses = self._fill(frames[:count], list(_REQUEST.iter_unpack(raw)))
        finally:
            self._lease.release()
        ring.respond_raw(responses, total)
        if ring.push() and self.port is not None:
            self.port.notify()
        return count

    def _fill(self, frames: Sequence[Frame], requests: list[tuple[int, int, int]]) -> bytes:
        """Copies frames into the pages of as many requests; returns the responses."""
        room, headroom = PAGE_SIZE - self.headroom, self.headroom
        pieces: list[tuple[int, int, int]] = []
        plan: list[tuple[Frame, list[bytes], int]] = []
        at = 0
        for frame in frames:
            extra = extras(frame, self.hashed) if frame.gso_size or frame.hash else []
            plan.append((frame, extra, at))
            left = frame.size
            while left > 0:
                size = room if left > room else left
                pieces.append((requests[at][2], headroom, size))
                left -= size
                at += 1
                if extra and at == plan[-1][2] + 1:
                    at += len(extra)
        starts = self._lease.take(pieces)
        answers: list[int] = []
        out: list[bytes] = []
        piece = 0
        for frame, extra, first in plan:
            slots = -(-frame.size // room)
            good = self._copy(frame, pieces[piece : piece + slots], starts[piece : piece + slots])
            flags = n.NETRXF_more_data
            if frame.csum_blank:
                flags |= n.NETRXF_csum_blank | n.NETRXF_data_validated
            elif frame.validated:
                flags |= n.NETRXF_data_validated
            if extra:
                flags |= n.NETRXF_extra_info
            at = first
            for i in range(slots):
                if i == slots - 1:
                    flags &= ~n.NETRXF_more_data
                size = pieces[piece + i][2] if good else n.NETIF_RSP_ERROR
                answers += (requests[at][0], headroom, flags, size)
                at += 1
                if i == 0:
                    flags = n.NETRXF_more_data
                    if extra:
                        out.append(_responses(len(answers) // 4).pack(*answers))
                        answers.clear()
                        out += extra
                        at += len(extra)
            piece += slots
        if answers:
            out.append(_responses(len(answers) // 4).pack(*answers))
        return out[0] if len(out) == 1 else b"".join(out)

    def _copy(self, frame: Frame, pieces: list[tuple[int, int, int]], starts: list[int]) -> bool:
        """Copies one frame; False if a page that it needs is not the guest's to give."""
        if min(starts) < 0:
            return False
        write = self._lease.write
        source = frame.parts[0] if len(frame.parts) == 1 else frame.data()
        view = memoryview(source)
        done = 0
        for (_, _, size), start in zip(pieces, starts, strict=True):
            write(start, view[done : done + size])
            done += size
        return True
