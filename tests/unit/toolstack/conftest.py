"""Hosts whose guests do what a test says: the whole toolstack over a scripted engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvmlite.engine import base as b
from hvmlite.engine.memory import MachineMemory
from hvmlite.toolstack import host as host_module
from hvmlite.toolstack.config import DomainConfig
from hvmlite.toolstack.domain import Domain
from hvmlite.toolstack.host import Host

from ..hypervisor.fakes import ScriptedPartition, ScriptedVcpu
from .kernel.build import Elf

MIB = 1 << 20


class RecordingEngine(b.Engine):
    """Keeps the partitions that it made."""

    name = "scripted"

    def __init__(self) -> None:
        self.partitions: list[ScriptedPartition] = []
        self.failure: Exception | None = None

    def create(self, memory: MachineMemory, vcpus: int) -> ScriptedPartition:
        partition = ScriptedPartition(memory, vcpus)
        self.partitions.append(partition)
        if self.failure is not None:
            failure = self.failure

            def fail() -> None:
                raise failure

            partition.wait_ready = fail  # type: ignore[method-assign]
        return partition


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> RecordingEngine:
    made = RecordingEngine()
    monkeypatch.setattr(host_module, "open_engine", lambda _name: made)
    return made


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """The smallest kernel that boots."""
    path = tmp_path / "kernel"
    path.write_bytes(Elf().build())
    return path


@pytest.fixture
def host(engine: RecordingEngine) -> Iterator[Host]:
    with Host(64 * MIB) as made:
        yield made
    for partition in engine.partitions:
        assert partition.closed


Make = Callable[..., Domain]


@pytest.fixture
def make(host: Host, kernel: Path) -> Make:
    """Makes domains of 4 MiB: `make(on_reboot="destroy")`."""

    def build(**options: object) -> Domain:
        config = DomainConfig(**{"kernel": kernel, "memory": 4 * MIB, **options})  # type: ignore[arg-type]
        return host.create(config)

    return build


def vcpu_of(domain: Domain, index: int = 0) -> ScriptedVcpu:
    """What plays a domain's vCPU."""
    found = domain.incarnation.domain.vcpus[index].engine
    assert isinstance(found, ScriptedVcpu)
    return found
