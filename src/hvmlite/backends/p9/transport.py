"""The backend's side of one ring of the 9pfs transport: whole messages off it and onto it.

Our own indexes are kept here, not read back from the page. Facts: docs/misc/9pfs.pandoc, io/9pfs.h.
"""

from __future__ import annotations

from hvmlite.abi.layout import Abi
from hvmlite.abi.xen_9pfs import xen_9pfs_data_intf, xen_9pfs_header
from hvmlite.backends.device import Device, DeviceError
from hvmlite.hypervisor.memory import Page, Window

MAX_RINGS = 4
MAX_ORDER = 9
"""The most that one page of grant references names: 512 pages."""
_IN_CONS = xen_9pfs_data_intf.offsetof("in_cons") // 4
_IN_PROD = xen_9pfs_data_intf.offsetof("in_prod") // 4
_OUT_CONS = xen_9pfs_data_intf.offsetof("out_cons") // 4
_OUT_PROD = xen_9pfs_data_intf.offsetof("out_prod") // 4
_ORDER = xen_9pfs_data_intf.offsetof("ring_order") // 4
_REFS = xen_9pfs_data_intf.sizeof(Abi.X86_64) // 4
_HEADER = xen_9pfs_header.sizeof()
_MASK32 = 0xFFFF_FFFF


class MessageRing:
    """One ring of a frontend: `ref` grants its page of indexes.  Raises DeviceError, GrantError.

    `size` is that of each direction, in bytes.
    """

    def __init__(self, device: Device, ref: int) -> None:
        self._indexes: Page = device.map(ref).page
        words = self._indexes.u32
        order = words[_ORDER]
        if not 1 <= order <= MAX_ORDER:
            raise DeviceError(f"its ring_order is {order}, not 1 to {MAX_ORDER}")
        refs = list(words[_REFS : _REFS + (1 << order)])
        self._window: Window = device.window(refs)
        self.size = len(self._window.u8) // 2
        self._consumed = words[_OUT_CONS]
        self._produced = words[_IN_PROD]

    def take(self, limit: int) -> bytes | None:
        """The next request, header and all, as a copy; None if none is there.

        `limit` is the longest that is allowed, in bytes.
        """
        waiting = self._indexes.u32[_OUT_PROD] - self._consumed & _MASK32
        if waiting > self.size:
            raise DeviceError(f"ring indexes that cannot be: {waiting} bytes in {self.size}")
        if waiting < _HEADER:
            if waiting:
                raise DeviceError(f"a request of {waiting} bytes")
            return None
        # Copied once with its length, which the frontend may change meanwhile.
        size = xen_9pfs_header.unpack(self._read(_HEADER)).size
        if not _HEADER <= size <= limit:
            raise DeviceError(f"a request of {size} bytes, not {_HEADER} to {limit}")
        if size > waiting:
            raise DeviceError(f"a request of {size} bytes of which {waiting} are there")
        message = size.to_bytes(4, "little") + self._read(size)[4:]
        self._consumed = self._consumed + size & _MASK32
        self._indexes.exchange32(_OUT_CONS, self._consumed)
        return message

    def _read(self, size: int) -> bytes:
        """Bytes from where the next request begins."""
        start = self._consumed & self.size - 1
        first = min(size, self.size - start)
        at = self.size + start
        u8 = self._window.u8
        return bytes(u8[at : at + first]) + bytes(u8[self.size : self.size + size - first])

    def put(self, answer: bytes) -> bool:
        """Puts an answer onto the ring; False if there is no room for it yet."""
        unread = self._produced - self._indexes.u32[_IN_CONS] & _MASK32
        if unread > self.size:
            raise DeviceError(f"ring indexes that cannot be: {unread} bytes in {self.size}")
        if len(answer) > self.size - unread:
            return False
        start = self._produced & self.size - 1
        first = min(len(answer), self.size - start)
        u8 = self._window.u8
        u8[start : start + first] = answer[:first]
        u8[: len(answer) - first] = answer[first:]
        self._produced = self._produced + len(answer) & _MASK32
        self._indexes.exchange32(_IN_PROD, self._produced)
        return True
