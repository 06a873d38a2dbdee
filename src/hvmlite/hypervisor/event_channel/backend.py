"""The other end of a guest's event channel, where that end is in this process.

Our backends, xenstore and the console daemon play domain 0 (or a driver domain) with it. Holds no
rules of binding: those are in channels.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hvmlite.hypervisor.event_channel.channels import EventChannels
    from hvmlite.hypervisor.event_channel.interface import Callback
    from hvmlite.hypervisor.event_channel.ports import Port


class BackendPort:
    """A port of `domid`, connected to a guest's port or waiting for the guest to connect again.

    Made by `EventChannels.alloc_for_backend` and `EventChannels.bind_backend`.
    """

    __slots__ = ("_callback", "_channels", "domid", "local_port", "peer")

    def __init__(
        self, channels: EventChannels, domid: int, local_port: int, callback: Callback
    ) -> None:
        self._channels = channels
        self.domid = domid
        self.local_port = local_port
        """The number of this side, never 0."""
        self._callback = callback
        self.peer: Port | None = None

    @property
    def callback(self) -> Callback:
        """Called while the guest's EVTCHNOP_send runs; may be replaced at any time."""
        return self._callback

    @callback.setter
    def callback(self, callback: Callback) -> None:
        self._callback = callback
        peer = self.peer
        if peer is not None and peer.consumer is None:
            peer.signal = callback

    @property
    def port(self) -> int:
        """The number of the guest's side; 0 while the guest's side is closed."""
        peer = self.peer
        return 0 if peer is None else peer.number

    @property
    def bound(self) -> bool:
        """Whether the guest's side is connected."""
        return self.peer is not None

    def notify(self) -> None:
        """Raise the event in the guest; nothing happens while its side is closed."""
        peer = self.peer
        if peer is not None:
            peer.deliver(peer)

    def close(self) -> None:
        """Close this side: the guest's becomes unbound, for another backend. Can be repeated."""
        self._channels.close_backend(self)
