"""What the tests of the embedded engine share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvmlite.engine.memory import MachineMemory
from hvmlite.engine.tcg import partition as partition_module
from hvmlite.engine.tcg.partition import TcgPartition
from hvmlite.engine.tcg.process import ENVIRONMENT, find_qemu
from hvmlite.engine.tcg.selftest import flat_state
from hvmlite.errors import EngineError

from .fakes import FakeDma, FakeProcess, Machine

MIB = 1 << 20


def children() -> set[int]:
    """The processes that this one has started and not reaped, zombies included."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= set(map(int, (task / "children").read_text().split()))
    return found


def descriptors() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def memory() -> Iterator[MachineMemory]:
    """A pool; nothing of it, no process and no file may be left in use."""
    before = children(), descriptors()
    pool = MachineMemory(8 * MIB)
    free = pool.free_frames
    yield pool
    assert pool.free_frames == free
    pool.close()
    # Fewer descriptors than before: the garbage of an earlier test went meanwhile.
    assert children() == before[0]
    assert descriptors() <= before[1]


@pytest.fixture
def fake_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a shell script in QEMU's place."""

    def make(script: str) -> Path:
        path = tmp_path / "qemu"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv(ENVIRONMENT, str(path))
        return path

    return make


@pytest.fixture(scope="session")
def qemu() -> str:
    """The path of a real QEMU; skips where there is none."""
    try:
        return find_qemu()
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture
def machines(
    memory: MachineMemory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Machine]]:
    """Makes partitions without a QEMU: `machines(vcpus=2)`."""
    monkeypatch.setattr(partition_module, "QemuProcess", FakeProcess)
    monkeypatch.setattr(partition_module, "DmaDevice", FakeDma)
    made: list[TcgPartition] = []

    def make(vcpus: int = 1) -> Machine:
        partition = TcgPartition(memory, vcpus)
        made.append(partition)
        return Machine(partition)

    yield make
    for partition in made:
        partition.close()


@pytest.fixture
def machine(machines: Callable[..., Machine]) -> Machine:
    """A partition of one vCPU without a QEMU, its vCPU in flat protected mode at 0x1000."""
    made = machines()
    made.vcpu.load(flat_state(0x1000))
    return made
