"""Which engine to use on this machine."""

from __future__ import annotations

from hvmlite.engine.base import Engine, Partition
from hvmlite.engine.memory import MachineMemory
from hvmlite.engine.tcg.engine import TcgEngine
from hvmlite.errors import EngineError, UserError

ENGINES = ("auto", "tcg")


def open_engine(name: str = "auto") -> Engine:
    """Returns the engine of that name; "auto" takes the best that works here (tcg)."""
    if name not in ENGINES:
        raise UserError(f"no engine {name!r}: choose from {', '.join(ENGINES)}")
    return TcgEngine()


class EarlyEngine(Engine):
    """An engine whose first partition begins to start at once, before anybody asks for it.

    For whoever has other things to do meanwhile.  `memory` is the machine memory that it is for.
    Make it in a thread that lives as long as the partition is needed.
    """

    def __init__(self, engine: Engine, memory_size: int, vcpus: int) -> None:
        """`memory_size` in bytes; EngineError only where no memory can be had."""
        self.name = engine.name
        self.memory = MachineMemory(memory_size)
        self._engine = engine
        self._vcpus = vcpus
        self._early: Partition | None = None
        try:
            self._early = engine.create(self.memory, vcpus)
        except EngineError:
            # Whoever asks for a partition gets to know.
            return

    def create(self, memory: MachineMemory, vcpus: int) -> Partition:
        """See `Engine.create`."""
        early, self._early = self._early, None
        if early is not None:
            if memory is self.memory and vcpus == self._vcpus:
                return early
            early.close()
        return self._engine.create(memory, vcpus)

    def close(self) -> None:
        """See `Engine.close`."""
        early, self._early = self._early, None
        if early is not None:
            early.close()
        self._engine.close()
