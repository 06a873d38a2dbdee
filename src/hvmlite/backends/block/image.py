"""What a block device's data lies in, as its backend uses it.

What can be done at once is done at once, in the host loop's thread; the rest is started and says
when it is done. An image knows nothing of rings and grants.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Buffer = memoryview | bytearray


class Operation(enum.Enum):
    """What a job does."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"
    DISCARD = "discard"


@dataclass(slots=True)
class Job:
    """One piece of work: `size` bytes from `offset`; a flush has neither.

    `views` together hold `size` bytes to read into or to write.  `done(error)` is called in the
    host loop's thread.
    """

    operation: Operation
    offset: int
    size: int
    views: Sequence[Buffer]
    done: Callable[[OSError | None], None]


class Image(ABC):
    """An open image.  The caller keeps offsets and sizes within `size`.

    Everything is called in the host loop's thread.
    """

    size: int
    """Bytes."""
    physical_block: int = 4096
    """Bytes that are best written together."""
    discards: bool = False
    """Whether DISCARD does something."""
    discard_granularity: int = 4096
    flush_at_end: bool = False
    """Whether a write that was done may be lost if no flush comes before `close`."""

    def read_now(self, views: Sequence[Buffer], offset: int, size: int) -> bool:
        """Reads if that need not wait for anything; raises OSError."""
        return False

    def write_now(self, views: Sequence[Buffer], offset: int, size: int) -> bool:
        """Writes if that need not wait for anything; raises OSError."""
        return False

    @abstractmethod
    def start(self, job: Job) -> None:
        """Starts a job.  Several are under way at a time, in any order.

        A flush makes durable all writes that were done when it was started.  A discard that the
        image is not able to do ends in EOPNOTSUPP.
        """

    def refresh(self) -> bool:
        """Looks whether somebody changed the size; returns whether it is another one now."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Gives up what the image holds; no job is under way."""
