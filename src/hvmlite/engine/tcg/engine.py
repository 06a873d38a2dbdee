"""The embedded engine as a whole: makes partitions, and refuses a QEMU that cannot be trusted."""

from __future__ import annotations

from hvmlite.engine import base as b
from hvmlite.engine.memory import MachineMemory
from hvmlite.engine.tcg.partition import TcgPartition
from hvmlite.engine.tcg.selftest import check_nested_paging


class TcgEngine(b.Engine):
    """Guests on QEMU's TCG, which emulates a CPU with SVM: runs anywhere QEMU 7.2 or newer does."""

    name = "tcg"

    def create(self, memory: MachineMemory, vcpus: int) -> TcgPartition:
        """See `Engine.create`; raises EngineError also if this QEMU fails the self-test."""
        partition = TcgPartition(memory, vcpus)
        try:
            check_nested_paging(partition)
        except BaseException:
            partition.close()
            raise
        return partition
