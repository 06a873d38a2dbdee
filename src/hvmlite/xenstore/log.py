"""The store's log: what CONTROL "log on" asks for and what a check finds.

Python's logging is loaded when there is something to say: it would cost every start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logging import Logger


def logger() -> Logger:
    """The logger "hvmlite.xenstore"."""
    import logging  # noqa: PLC0415

    return logging.getLogger("hvmlite.xenstore")
