"""Which engine to use on this machine."""

from __future__ import annotations

from hvmlite.engine.base import Engine
from hvmlite.engine.tcg.engine import TcgEngine
from hvmlite.errors import UserError

ENGINES = ("auto", "tcg")


def open_engine(name: str = "auto") -> Engine:
    """Returns the engine of that name; "auto" takes the best that works here (tcg)."""
    if name not in ENGINES:
        raise UserError(f"no engine {name!r}: choose from {', '.join(ENGINES)}")
    return TcgEngine()
