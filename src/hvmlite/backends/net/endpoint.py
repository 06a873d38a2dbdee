"""What is at the other end of a guest's interface: a user-mode network, a tap, a socket, a switch.

An endpoint takes frames and hands frames over, in the host loop's thread. Neither side may make the
other keep what it has no room for: both say how many they took.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from hvmlite.backends.net.frame import Frame


class Endpoint(ABC):
    """Carries frames to and from one interface.

    `csum_blank`, `gso`: whether `send` takes frames that are not finished in that way; the caller
    finishes them otherwise.
    """

    csum_blank = False
    gso = False

    def __init__(self) -> None:
        self.receive: Callable[[Sequence[Frame]], int] = _drop
        """Set by the interface: takes frames for the guest, returns how many of the first.

        Of the others the endpoint hears by `resume`, when there is room again.
        """
        self.has_room: Callable[[], None] = _nothing
        """Set by the interface: called when `send` can go on after it did not take all."""

    @abstractmethod
    def send(self, frames: Sequence[Frame]) -> int:
        """Takes frames from the guest; returns how many of the first, the others wait.

        Their parts are gone when this returns.
        """

    def resume(self) -> None:  # noqa: B027 (not every endpoint waits)
        """The guest has room again for frames that `receive` did not take."""

    @abstractmethod
    def close(self) -> None:
        """Ends it; nothing is called any more."""


def _drop(frames: Sequence[Frame]) -> int:
    return len(frames)


def _nothing() -> None:
    pass
