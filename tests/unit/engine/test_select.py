"""Proves that a partition started early is the one that is asked for, and never left behind.

Cannot see what the early start saves, nor a real engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from hvmlite.engine.base import Engine, Partition
from hvmlite.engine.memory import MachineMemory
from hvmlite.engine.select import EarlyEngine
from hvmlite.errors import EngineError

MIB = 1 << 20


class Made:
    def __init__(self, memory: MachineMemory, vcpus: int) -> None:
        self.memory, self.vcpus, self.closed = memory, vcpus, False

    def close(self) -> None:
        self.closed = True


class Maker(Engine):
    name = "maker"

    def __init__(self) -> None:
        self.made: list[Made] = []
        self.broken = False

    def create(self, memory: MachineMemory, vcpus: int) -> Partition:
        if self.broken:
            raise EngineError("no engine today")
        self.made.append(Made(memory, vcpus))
        return cast(Any, self.made[-1])


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def early(maker: Maker) -> Iterator[EarlyEngine]:
    engine = EarlyEngine(maker, 4 * MIB, 2)
    yield engine
    engine.close()
    engine.memory.close()


def test_what_was_started_is_taken_once(maker: Maker, early: EarlyEngine) -> None:
    assert (early.name, len(maker.made)) == ("maker", 1)
    first = early.create(early.memory, 2)
    assert cast(Any, first) is maker.made[0]
    assert cast(Any, early.create(early.memory, 2)) is maker.made[1]
    early.close()
    assert not maker.made[0].closed


def test_for_another_purpose_there_is_another(maker: Maker, early: EarlyEngine) -> None:
    other = early.create(early.memory, 3)
    assert cast(Any, other) is maker.made[1]
    assert [each.closed for each in maker.made] == [True, False]


def test_what_nobody_took_is_closed(maker: Maker, early: EarlyEngine) -> None:
    early.close()
    early.close()
    assert maker.made[0].closed


def test_whoever_asks_hears_of_a_failure() -> None:
    maker = Maker()
    maker.broken = True
    early = EarlyEngine(maker, 4 * MIB, 1)
    with pytest.raises(EngineError, match="no engine today"):
        early.create(early.memory, 1)
    early.close()
    early.memory.close()
