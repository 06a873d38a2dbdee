"""What event channels need of the rest of the hypervisor, as protocols.

Domain, Vcpu and Page satisfy these as they are; nothing here imports them, so that a domain can
own its event channels without an import cycle. Protocols only: no logic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from hvmlite.abi.layout import Abi
    from hvmlite.hypervisor.event_channel.channels import EventChannels
    from hvmlite.hypervisor.memory import Gfn
    from hvmlite.hypervisor.physmap import P2mType
    from hvmlite.hypervisor.release import Release

Callback: TypeAlias = Callable[[], None]
"""Called synchronously when the guest sends on a port that a backend or Xen itself consumes."""


class Page(Protocol):
    """A 4096-byte frame; indexes count 32-bit words, every change is atomic."""

    @property
    def frame(self) -> int:
        """Machine frame number."""

    @property
    def u32(self) -> memoryview:
        """The page as 1024 words of 32 bits."""

    def fetch_or32(self, index: int, mask: int, /) -> int:
        """Set bits; returns the word as it was before."""

    def fetch_and32(self, index: int, mask: int, /) -> int:
        """Clear the bits that are not in `mask`; returns the word as it was before."""

    def cmpxchg32(self, index: int, expected: int, new: int, /) -> int:
        """Store `new` if the word is `expected`; returns the word as it was before."""


class Vcpu(Protocol):
    """A virtual CPU as the target of events."""

    @property
    def id(self) -> int:
        """Index in the domain's list of vCPUs."""

    @property
    def info_page(self) -> Page:
        """The page that holds this vCPU's vcpu_info."""

    @property
    def info_offset(self) -> int:
        """Byte offset of vcpu_info in that page, a multiple of 4."""

    def event_pending(self) -> None:
        """evtchn_upcall_pending went from 0 to 1: wake the vCPU, or kick it if it runs."""

    def wake_poll(self, port: int, /) -> None:
        """`port` became pending while this vCPU is in `EventChannels.polling`.

        The vCPU decides whether it polls this port; if so it leaves the set and wakes.
        """


class Memory(Protocol):
    """Guest-physical memory."""

    def page(self, gfn: Gfn, /) -> Page:
        """The frame behind `gfn`. Raises GuestAccessError if that is not RAM."""


class Physmap(Protocol):
    """What is behind a domain's guest frames."""

    def lookup(self, gfn: int, /) -> tuple[int, P2mType] | None:
        """The machine frame and type behind a guest frame, None for a hole."""


class FrameTable(Protocol):
    """References that keep a frame from being reused."""

    def get(self, frame: int, /) -> None:
        """Takes a reference."""

    def put(self, frame: int, /) -> None:
        """Gives one back."""


class Host(Protocol):
    """The domains of this process."""

    @property
    def frames(self) -> FrameTable:
        """References to machine frames."""

    def domain(self, domid: int, /) -> Domain | None:
        """A domain by its id, or None."""


class Domain(Protocol):
    """The owner of a table of event channels."""

    @property
    def domid(self) -> int:
        """Domain id."""

    @property
    def release(self) -> Release:
        """Which Xen the domain sees."""

    @property
    def abi(self) -> Abi:
        """Layout of shared_info; `EventChannels.abi_changed` is called when it changes."""

    @property
    def vcpus(self) -> Sequence[Vcpu]:
        """All vCPUs, online or not, by id; never changes in length."""

    @property
    def max_evtchn_port(self) -> int:
        """Highest port number the toolstack allows (xl.cfg max_event_channels)."""

    @property
    def host(self) -> Host:
        """Where other domains are found."""

    @property
    def shared_info(self) -> Page:
        """The shared_info frame; exists whether or not the guest has mapped it."""

    @property
    def memory(self) -> Memory:
        """Guest-physical memory."""

    @property
    def physmap(self) -> Physmap:
        """Guest frames to machine frames."""

    @property
    def evtchn(self) -> EventChannels:
        """The domain's event channels (for a peer in another domain)."""
