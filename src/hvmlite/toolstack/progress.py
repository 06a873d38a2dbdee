"""How far something has come that takes long: for whoever watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is done, how many bytes of it are, and how many there are; from any thread.

Whatever was begun ends with a call where both are equal, unless it fails.
"""

STEP = 16 << 20
"""Bytes between two calls."""


def in_steps(what: str, size: int, progress: Progress | None) -> Iterator[tuple[int, int]]:
    """Cuts `size` bytes into (start, end) and tells of each when the next is asked for."""
    if progress is None or size <= STEP:
        yield 0, size
        return
    for start in range(0, size, STEP):
        progress(what, start, size)
        yield start, min(start + STEP, size)
    progress(what, size, size)
