"""The back end of a further PV console or channel: a console ring by grant, and a stream behind it.

The first console's page is the toolstack's and no such device. Facts: public/io/console.h;
docs/misc/console.txt and channel.txt; what Linux's hvc_xen driver writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi.console import XENCONS_IN_SIZE, XENCONS_OUT_SIZE, xencons_interface
from hvmlite.backends.console import ConsoleBackend
from hvmlite.backends.device import Backend, Device, DeviceError

if TYPE_CHECKING:
    from hvmlite.backends.stream import Stream
    from hvmlite.hypervisor.memory import Page

_IN_CONS = xencons_interface.offsetof("in_cons") // 4
_IN_PROD = xencons_interface.offsetof("in_prod") // 4
_OUT_CONS = xencons_interface.offsetof("out_cons") // 4
_OUT_PROD = xencons_interface.offsetof("out_prod") // 4
_MASK32 = 0xFFFF_FFFF
_MAX_PORT = (1 << 17) - 1


class ConsoleDevice(Backend):
    """One console.  `log`, if there is one, gets a copy of the output."""

    kind = "console"

    def __init__(self, device: Device, stream: Stream, log: Stream | None = None) -> None:
        super().__init__(device)
        self._stream = stream
        self._log = log
        self._ring: ConsoleBackend | None = None
        self._page: Page

    def connect(self) -> None:
        """Takes up the ring that the nodes ring-ref and port name."""
        device = self.device
        self._page = device.map(device.read_int("ring-ref", 0, _MASK32)).page
        port = device.bind(device.read_int("port", 1, _MAX_PORT), self._serve)
        self._ring = ConsoleBackend(self._page, port.notify, self._output)
        self._stream.connect(self._feed, self._input_room, lambda: self.device.guarded(self._serve))
        self._serve()

    def disconnect(self) -> None:
        """Lets go of the ring; the stream stays."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        self._stream.disconnect()

    def close(self) -> None:
        """Ends the stream too."""
        self._stream.close()
        if self._log is not None:
            self._log.close()

    def _output(self, data: bytes) -> None:
        self._stream.write(data)
        if self._log is not None:
            self._log.write(data)

    def _feed(self, data: bytes) -> None:
        if self._ring is not None:
            self._ring.feed(data)

    def _input_room(self) -> int:
        return 0 if self._ring is None else self._ring.input_room

    def _serve(self) -> None:
        ring = self._ring
        if ring is None:
            return
        words = self._page.u32
        written = words[_OUT_PROD] - words[_OUT_CONS] & _MASK32
        unread = words[_IN_PROD] - words[_IN_CONS] & _MASK32
        if written > XENCONS_OUT_SIZE or unread > XENCONS_IN_SIZE:
            raise DeviceError(
                f"ring indexes that cannot be: {written} bytes written, {unread} not read"
            )
        if self._stream.room >= XENCONS_OUT_SIZE:
            ring.on_event()
        else:
            # The output waits in the guest's ring until the stream goes on; input need not.
            ring.feed(b"")
        self._stream.resume()
