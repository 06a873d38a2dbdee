"""The embedded engine as a whole: makes partitions, and refuses a QEMU that cannot be trusted."""

from __future__ import annotations

from types import MappingProxyType

from hvmlite.engine import base as b
from hvmlite.engine.memory import MachineMemory
from hvmlite.engine.tcg.partition import TcgPartition
from hvmlite.engine.tcg.selftest import check_nested_paging


class TcgEngine(b.Engine):
    """Guests on QEMU's TCG, which emulates a CPU with SVM: runs anywhere QEMU 7.2 or newer does."""

    name = "tcg"
    # ERMS and FSRM say that REP MOVSB is the fastest way to copy.  TCG does it byte by byte, and
    # REP MOVSQ eight at a time: a Linux without them receives twice as much from its network.
    slow_features = MappingProxyType({(7, 1): 1 << 9, (7, 3): 1 << 4})

    def create(self, memory: MachineMemory, vcpus: int) -> TcgPartition:
        """See `Engine.create`."""
        return CheckedPartition(memory, vcpus)


class CheckedPartition(TcgPartition):
    """A partition that runs no guest before its QEMU has shown that it can be trusted."""

    _checked = False

    def wait_ready(self) -> None:
        """See `Partition.wait_ready`; raises EngineError also if QEMU fails the self-test."""
        super().wait_ready()
        if not self._checked:
            check_nested_paging(self)
            self._checked = True
