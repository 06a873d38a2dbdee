"""A tap device of the host's, with its offloads, and if wanted as a port of a bridge.

Needs the right to make interfaces (CAP_NET_ADMIN), or a tap that somebody made for this user.
Facts: Linux's Documentation/networking/tuntap.rst, linux/if_tun.h,
linux/virtio_net.h, netdevice(7).
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hvmlite.abi.layout import Struct, u8, u16
from hvmlite.abi.netif import XEN_NETIF_GSO_TYPE_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6
from hvmlite.backends.net.endpoint import Endpoint
from hvmlite.backends.net.frame import ETH_HLEN, LONGEST, Frame
from hvmlite.backends.net.headers import LONGEST as HEADERS
from hvmlite.backends.net.headers import parse
from hvmlite.errors import UserError

if TYPE_CHECKING:
    from hvmlite.hypervisor.host import Host

_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6 = 1, 2, 4
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCSIFMTU = 0x8922
_SIOCGIFINDEX = 0x8933
_SIOCBRADDIF = 0x89A2
_IFF_UP = 1
_IFREQ = struct.Struct("16s24x")
_IFREQ_SHORT = struct.Struct("16sH22x")
_IFREQ_INT = struct.Struct("16si20x")

_NEEDS_CSUM, _DATA_VALID = 1, 2
_GSO_TCPV4, _GSO_TCPV6, _GSO_ECN = 1, 4, 0x80
_GSO_FROM_XEN = {XEN_NETIF_GSO_TYPE_TCPV4: _GSO_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6: _GSO_TCPV6}
_GSO_TO_XEN = {theirs: ours for ours, theirs in _GSO_FROM_XEN.items()}
_ROUND = 64
"""Frames that are read before others have their turn."""


class virtio_net_hdr(Struct):
    """What goes before each frame of a tap with IFF_VNET_HDR (linux/virtio_net.h)."""

    flags: u8 = 0
    gso_type: u8 = 0
    hdr_len: u16 = 0
    gso_size: u16 = 0
    csum_start: u16 = 0
    csum_offset: u16 = 0


_HEADER = virtio_net_hdr.sizeof()
_PLAIN = virtio_net_hdr().pack()


def to_virtio(frame: Frame) -> bytes | None:
    """The header for a frame; None if the frame cannot be what it claims."""
    if not frame.csum_blank and not frame.gso_size:
        return virtio_net_hdr(_DATA_VALID).pack() if frame.validated else _PLAIN
    headers = parse(frame.head(HEADERS))
    if headers is None:
        return None
    made = virtio_net_hdr(
        _NEEDS_CSUM,
        0,
        headers.end,
        frame.gso_size,
        headers.transport,
        headers.checksum - headers.transport,
    )
    if frame.gso_size:
        made.gso_type = _GSO_FROM_XEN[frame.gso_type]
    return made.pack()


class Tap(Endpoint):
    """One tap; `name` "" lets the kernel choose.  Raises UserError.

    `bridge` is made its master.  It goes with us unless somebody made it persistent.
    """

    csum_blank = True
    gso = True

    def __init__(self, host: Host, *, name: str = "", bridge: str = "", mtu: int = 0) -> None:
        super().__init__()
        self._host = host
        try:
            self._fd = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"vif: cannot open {_DEVICE}: {error.strerror}") from error
        try:
            self.name = self._create(name)
            self._set_up(bridge, mtu)
        except OSError as error:
            os.close(self._fd)
            what = f"tap {name}" if name else "a tap"
            where = f" on bridge {bridge}" if bridge else ""
            raise UserError(f"vif: cannot make {what}{where}: {error.strerror}") from error
        self._buffer = bytearray(_HEADER + LONGEST)
        self._held: Frame | None = None
        self.before_close: Callable[[], None] | None = None
        """Called while the tap is still there."""
        host.add_reader(self._fd, self._readable)

    def _create(self, name: str) -> str:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        answer = fcntl.ioctl(self._fd, _TUNSETIFF, _IFREQ_SHORT.pack(name.encode(), flags))
        fcntl.ioctl(self._fd, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6)
        chosen: bytes = _IFREQ.unpack(answer)[0]
        return chosen.rstrip(b"\0").decode()

    def _set_up(self, bridge: str, mtu: int) -> None:
        name = self.name.encode()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            answer = fcntl.ioctl(control, _SIOCGIFFLAGS, _IFREQ_SHORT.pack(name, 0))
            flags = _IFREQ_SHORT.unpack(answer)[1]
            # Somebody else's tap may be as it should, and not ours to change.
            if mtu:
                fcntl.ioctl(control, _SIOCSIFMTU, _IFREQ_INT.pack(name, mtu))
            if bridge:
                answer = fcntl.ioctl(control, _SIOCGIFINDEX, _IFREQ_INT.pack(name, 0))
                index = _IFREQ_INT.unpack(answer)[1]
                fcntl.ioctl(control, _SIOCBRADDIF, _IFREQ_INT.pack(bridge.encode(), index))
            if not flags & _IFF_UP:
                fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ_SHORT.pack(name, flags | _IFF_UP))

    def send(self, frames: Sequence[Frame]) -> int:
        """See `Endpoint.send`."""
        for count, frame in enumerate(frames):
            header = to_virtio(frame)
            if header is None:
                continue
            try:
                os.writev(self._fd, [header, *frame.parts])
            except BlockingIOError:
                self._host.add_writer(self._fd, self._writable)
                return count
            except OSError:
                # The kernel does not like this one (or the interface is down): it is lost.
                continue
        return len(frames)

    def _writable(self) -> None:
        self._host.remove_writer(self._fd)
        self.has_room()

    def _readable(self) -> None:
        for _ in range(_ROUND):
            if self._held is not None:
                return
            try:
                size = os.readv(self._fd, [self._buffer])
            except BlockingIOError:
                return
            except OSError:
                # It was set down; it is quiet until it is up again.
                return
            frame = self._frame(size)
            if frame is not None and not self.receive([frame]):
                self._held = frame.copy()
                self._host.remove_reader(self._fd)

    def _frame(self, size: int) -> Frame | None:
        header = virtio_net_hdr.unpack(self._buffer)
        data = memoryview(self._buffer)[_HEADER:size]
        if len(data) < ETH_HLEN:
            return None
        gso = header.gso_type & ~_GSO_ECN
        return Frame(
            [data],
            len(data),
            csum_blank=bool(header.flags & _NEEDS_CSUM),
            validated=bool(header.flags & _DATA_VALID),
            gso_type=_GSO_TO_XEN.get(gso, 0),
            gso_size=header.gso_size if gso in _GSO_TO_XEN else 0,
        )

    def resume(self) -> None:
        """See `Endpoint.resume`."""
        held = self._held
        if held is not None and self.receive([held]):
            self._held = None
            self._host.add_reader(self._fd, self._readable)

    def close(self) -> None:
        """See `Endpoint.close`."""
        if self._fd >= 0:
            if self.before_close is not None:
                self.before_close()
            self._host.remove_reader(self._fd)
            self._host.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1
