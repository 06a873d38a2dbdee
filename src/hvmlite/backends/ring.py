"""The backend's side of the shared rings of PV devices: requests in, responses out.

A request is copied in once before anybody looks at it. Knows nothing of what requests mean.
Facts: public/io/ring.h.
"""

from __future__ import annotations

from hvmlite.abi.ring import RING_SIZE, sring
from hvmlite.backends.device import DeviceError
from hvmlite.hypervisor.memory import Window

_REQ_PROD = sring.offsetof("req_prod") // 4
_REQ_EVENT = sring.offsetof("req_event") // 4
_RSP_PROD = sring.offsetof("rsp_prod") // 4
_RSP_EVENT = sring.offsetof("rsp_event") // 4
_HEADER = sring.sizeof()
_MASK32 = 0xFFFF_FFFF


class BackRing:
    """One ring over granted pages; `entry_size` (bytes) is that of request or response, the larger.

    A frontend that had responses before (it lives on, only the backend is new) is gone on with, as
    BACK_RING_ATTACH does.  Raises DeviceError wherever the frontend's indexes cannot be.
    """

    __slots__ = ("_entry", "_mask", "_u8", "_u32", "_window", "req_cons", "rsp_prod", "size")

    def __init__(self, window: Window, entry_size: int) -> None:
        self._window = window
        self._u8 = window.u8
        self._u32 = window.u32
        self._entry = entry_size
        self.size = RING_SIZE(entry_size, len(window.u8))
        """Entries, a power of two."""
        self._mask = self.size - 1
        self.rsp_prod = self._u32[_RSP_PROD]
        """The next response's index."""
        self.req_cons = self.rsp_prod
        """The next request's index."""
        self.pending()

    def pending(self) -> int:
        """How many requests wait to be taken."""
        count = self._u32[_REQ_PROD] - self.req_cons & _MASK32
        if count > self.size - (self.req_cons - self.rsp_prod & _MASK32):
            raise DeviceError(
                f"ring indexes that cannot be: {count} more requests in a ring of {self.size}"
            )
        return count

    def take(self, limit: int) -> list[bytes]:
        """Takes up to `limit` requests off the ring, as copies."""
        count = min(self.pending(), limit)
        u8, size, mask, first = self._u8, self._entry, self._mask, self.req_cons
        requests = []
        for index in range(first, first + count):
            at = _HEADER + (index & mask) * size
            requests.append(bytes(u8[at : at + size]))
        self.req_cons = first + count & _MASK32
        return requests

    def take_raw(self, limit: int) -> bytes:
        """Takes up to `limit` requests off the ring, as one copy: an entry's size each."""
        count = min(self.pending(), limit)
        u8, size, first = self._u8, self._entry, self.req_cons & self._mask
        self.req_cons = self.req_cons + count & _MASK32
        start = _HEADER + first * size
        if first + count <= self.size:
            return bytes(u8[start : start + count * size])
        rest = first + count - self.size
        end = _HEADER + self.size * size
        return bytes(u8[start:end]) + bytes(u8[_HEADER : _HEADER + rest * size])

    def put_back(self, count: int) -> None:
        """Leaves the last `count` requests that were taken, and not answered, on the ring."""
        if count > self.req_cons - self.rsp_prod & _MASK32:
            raise AssertionError("more requests put back than were taken")
        self.req_cons = self.req_cons - count & _MASK32

    def respond_raw(self, responses: bytes, count: int) -> None:
        """Puts `count` responses on the ring, an entry's size each."""
        if count > self.req_cons - self.rsp_prod & _MASK32:
            raise AssertionError("responses without a request")
        u8, size, first = self._u8, self._entry, self.rsp_prod & self._mask
        self.rsp_prod = self.rsp_prod + count & _MASK32
        start = _HEADER + first * size
        if first + count <= self.size:
            u8[start : start + count * size] = responses
            return
        here = (self.size - first) * size
        u8[start : start + here] = responses[:here]
        u8[_HEADER : _HEADER + len(responses) - here] = responses[here:]

    def respond(self, response: bytes) -> None:
        """Puts a response on the ring; the frontend sees it after `push`."""
        if self.rsp_prod == self.req_cons:
            raise AssertionError("a response without a request")
        at = _HEADER + (self.rsp_prod & self._mask) * self._entry
        self._u8[at : at + len(response)] = response
        self.rsp_prod = self.rsp_prod + 1 & _MASK32

    @property
    def unpushed(self) -> int:
        """Responses that the frontend does not see yet."""
        return self.rsp_prod - self._u32[_RSP_PROD] & _MASK32

    def push(self) -> bool:
        """Shows the responses to the frontend; returns whether it wants an event for them."""
        new = self.rsp_prod
        # A full barrier: the frontend sets rsp_event and then looks at rsp_prod.
        old = self._window.exchange32(_RSP_PROD, new)
        since = new - self._u32[_RSP_EVENT] & _MASK32
        return since < (new - old & _MASK32)

    def idle(self) -> bool:
        """Asks for an event at the next request; False if there is one already."""
        return self.wait_for(1)

    def wait_for(self, count: int) -> bool:
        """Asks for an event once `count` requests wait; False if they do already."""
        if self.pending() >= count:
            return False
        self._window.exchange32(_REQ_EVENT, self.req_cons + count & _MASK32)
        return self.pending() < count
