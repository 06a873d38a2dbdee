"""The control ring: the frontend says how the flows that it receives are spread over its queues.

Facts: io/netif.h, "Control Ring"; the hash is Microsoft's Toeplitz, for receive-side scaling.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from hvmlite.abi import netif as n
from hvmlite.backends.net.frame import ETH_HLEN
from hvmlite.backends.net.headers import TCP, parse
from hvmlite.backends.ring import BackRing

if TYPE_CHECKING:
    from hvmlite.hypervisor.event_channel import BackendPort
    from hvmlite.hypervisor.grant_table import Lease
    from hvmlite.hypervisor.memory import Window

ENTRY = max(n.xen_netif_ctrl_request.sizeof(), n.xen_netif_ctrl_response.sizeof())
MOST_KEY = 40
MOST_MAPPING = 128
"""Bytes of a key and entries of a mapping (Linux: the same)."""
_MOST_FLOWS = 1024
_IPV4, _IPV4_TCP = n.XEN_NETIF_CTRL_HASH_TYPE_IPV4, n.XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP
_IPV6, _IPV6_TCP = n.XEN_NETIF_CTRL_HASH_TYPE_IPV6, n.XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP
_TYPES = _IPV4 | _IPV4_TCP | _IPV6 | _IPV6_TCP
_ALGORITHMS = (
    n.XEN_NETIF_CTRL_HASH_ALGORITHM_NONE,
    n.XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
)
_OK = n.XEN_NETIF_CTRL_STATUS_SUCCESS
_BAD = n.XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER
_TOO_LONG = n.XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW

Hash = tuple[int, int, bytes]
"""Type (a bit's number), algorithm, and the value as four bytes."""


def toeplitz(key: bytes, data: bytes) -> int:
    """The Toeplitz hash of `data`: 32 bits of the key for each bit that is set."""
    bits = 8 * len(data)
    window = int.from_bytes(key.ljust(len(data) + 4, b"\0")[: len(data) + 4], "big")
    value = int.from_bytes(data, "big")
    result = 0
    for i in range(bits):
        if value >> (bits - 1 - i) & 1:
            result ^= window >> (bits - i) & 0xFFFF_FFFF
    return result


class HashSettings:
    """What a frontend has said about hashing."""

    def __init__(self) -> None:
        self.algorithm = n.XEN_NETIF_CTRL_HASH_ALGORITHM_NONE
        self.types = 0
        self.key = bytes(MOST_KEY)
        self.mapping = [0]
        self._known: OrderedDict[tuple[int, bytes], Hash] = OrderedDict()

    def changed(self) -> None:
        """The key is another."""
        self._known.clear()

    def hash(self, head: bytes) -> Hash | None:
        """The hash of a frame that begins in this way; None for one of no type that is hashed."""
        found = self._flow(head)
        if found is None:
            return None
        known = self._known
        hashed = known.get(found)
        if hashed is None:
            value = toeplitz(self.key, found[1]).to_bytes(4, "little")
            hashed = known[found] = (found[0], self.algorithm, value)
            if len(known) > _MOST_FLOWS:
                known.popitem(last=False)
        return hashed

    def _flow(self, head: bytes) -> tuple[int, bytes] | None:
        headers = parse(head)
        if headers is not None:
            version, at = headers.version, headers.network
        else:
            at = ETH_HLEN
            version = {b"\x08\x00": 4, b"\x86\xdd": 6}.get(head[12:14], 0)
        if version == 4 and len(head) >= at + 20:
            addresses = head[at + 12 : at + 20]
            plain, with_ports = _IPV4, _IPV4_TCP
        elif version == 6 and len(head) >= at + 40:
            addresses = head[at + 8 : at + 40]
            plain, with_ports = _IPV6, _IPV6_TCP
        else:
            return None
        if headers is not None and headers.protocol == TCP and self.types & with_ports:
            ports = head[headers.transport : headers.transport + 4]
            return with_ports.bit_length() - 1, addresses + ports
        return (plain.bit_length() - 1, addresses) if self.types & plain else None

    def queue(self, flow: Hash | None) -> int:
        """The queue that a flow belongs to."""
        if flow is None:
            return 0
        return self.mapping[int.from_bytes(flow[2], "little") % len(self.mapping)]


class ControlRing:
    """The backend's side of one control ring.  `queues()`: how many queues there are."""

    def __init__(
        self, window: Window, settings: HashSettings, lease: Lease, queues: Callable[[], int]
    ) -> None:
        self._ring = BackRing(window, ENTRY)
        self._settings = settings
        self._lease = lease
        self._queues = queues
        self.port: BackendPort | None = None
        self._handlers: dict[int, Callable[[tuple[int, ...]], tuple[int, int]]] = {
            n.XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS: lambda _: (_OK, _TYPES),
            n.XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS: self._set_flags,
            n.XEN_NETIF_CTRL_TYPE_SET_HASH_KEY: self._set_key,
            n.XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE: lambda _: (_OK, MOST_MAPPING),
            n.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE: self._set_mapping_size,
            n.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING: self._set_mapping,
            n.XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM: self._set_algorithm,
        }

    def serve(self) -> bool:
        """Answers what is on the ring, a ring full at most.

        Returns whether there is more by then; if not, an event comes.
        """
        ring = self._ring
        for raw in ring.take(ring.size):
            request = n.xen_netif_ctrl_request.unpack(raw)
            handler = self._handlers.get(request.type)
            status, data = n.XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED, 0
            if handler is not None:
                status, data = handler(request.data)
            answer = n.xen_netif_ctrl_response(request.id, request.type, status, data)
            ring.respond(answer.pack())
        if ring.push() and self.port is not None:
            self.port.notify()
        return not ring.idle()

    def _set_flags(self, data: tuple[int, ...]) -> tuple[int, int]:
        if data[0] & ~_TYPES:
            return _BAD, 0
        self._settings.types = data[0]
        return _OK, 0

    def _set_algorithm(self, data: tuple[int, ...]) -> tuple[int, int]:
        if data[0] not in _ALGORITHMS:
            return _BAD, 0
        self._settings.algorithm = data[0]
        self._settings.changed()
        return _OK, 0

    def _set_key(self, data: tuple[int, ...]) -> tuple[int, int]:
        ref, size = data[0], data[1]
        if size > MOST_KEY:
            return _TOO_LONG, 0
        key = self._copy(ref, 0, size)
        if key is None:
            return _BAD, 0
        self._settings.key = key.ljust(MOST_KEY, b"\0")
        self._settings.changed()
        return _OK, 0

    def _set_mapping_size(self, data: tuple[int, ...]) -> tuple[int, int]:
        if not 0 < data[0] <= MOST_MAPPING:
            return _BAD, 0
        self._settings.mapping = [0] * data[0]
        return _OK, 0

    def _set_mapping(self, data: tuple[int, ...]) -> tuple[int, int]:
        ref, count, offset = data
        mapping = self._settings.mapping
        if offset + count > len(mapping):
            return _BAD, 0
        raw = self._copy(ref, 0, 4 * count)
        if raw is None:
            return _BAD, 0
        entries = list(memoryview(raw).cast("I"))
        if any(entry >= max(self._queues(), 1) for entry in entries):
            return _BAD, 0
        mapping[offset : offset + count] = entries
        return _OK, 0

    def _copy(self, ref: int, offset: int, size: int) -> bytes | None:
        lease = self._lease
        try:
            (start,) = lease.take([(ref, offset, size)])
            return None if start < 0 else bytes(lease.memory[start : start + size])
        finally:
            lease.release()
