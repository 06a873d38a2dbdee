"""Proves the backends' fast way to granted pages: that it takes what an ordinary claim takes and
nothing else, and that the marks of use are there meanwhile and gone afterwards.

Cannot see a guest that changes an entry at the same moment; the operations are those of claims.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvmlite.hypervisor.grant_table import Lease
from hvmlite.hypervisor.memory import Gfn
from hvmlite.toolstack.host import Host

from ...toolstack.conftest import Make, engine, host, kernel, make

__all__ = ["engine", "host", "kernel", "make"]
GFN = 0x200
IN_USE = 0x18


class Rig:
    def __init__(self, host: Host, make: Make) -> None:
        self.host = host
        self.domain = make().incarnation.domain
        self.table = self.domain.grants

    def entry(self, ref: int, flags: int, domid: int = 0, gfn: int = GFN) -> None:
        self.table.frames[0].write(8 * ref, struct.pack("<HHI", flags, domid, gfn))

    def flags(self, ref: int) -> int:
        return self.table.frames[0].u32[2 * ref] & 0xFFFF

    def lease(self, *, readonly: bool = True) -> Lease:
        return self.host.control.lease(self.domain, readonly=readonly)

    def start(self, gfn: int = GFN) -> int:
        return self.domain.memory.page(Gfn(gfn)).frame << 12


@pytest.fixture
def rig(host: Host, make: Make) -> Rig:
    return Rig(host, make)


@pytest.mark.parametrize(("readonly", "marks"), [(True, 8), (False, 24)])
def test_marks(rig: Rig, readonly: bool, marks: int) -> None:
    rig.entry(8, 1)
    rig.entry(9, 1, gfn=GFN + 1)
    lease = rig.lease(readonly=readonly)
    assert lease.take([(8, 100, 10), (9, 0, 4096), (8, 0, 0)]) == [
        rig.start() + 100, rig.start(GFN + 1), rig.start(),
    ]  # fmt: skip
    assert rig.flags(8) & IN_USE == marks
    lease.release()
    assert rig.flags(8) == rig.flags(9) == 1
    lease.release()


def test_copies(rig: Rig) -> None:
    rig.entry(8, 1)
    into, out = rig.lease(readonly=False), rig.lease()
    (start,) = into.take([(8, 4090, 6)])
    into.write(start, b"hello!")
    into.release()
    (start,) = out.take([(8, 4090, 6)])
    assert bytes(out.memory[start : start + 6]) == b"hello!"
    out.release()


@pytest.mark.parametrize(
    ("ref", "entry", "offset", "size"),
    [
        (8, (0, 0, GFN), 0, 1),
        (8, (1, 3, GFN), 0, 1),
        (8, (5, 0, GFN), 0, 1),
        (8, (2, 0, GFN), 0, 1),
        (8, (3, 0, GFN), 0, 1),
        (8, (1, 0, 0x0FFF_FFFF), 0, 1),
        (8, (1, 0, GFN), 4095, 2),
        (8, (1, 0, GFN), 5000, 0),
        (600, (1, 0, GFN), 0, 1),
        (0xFFFF_FFFF, (1, 0, GFN), 0, 1),
    ],
)
def test_refusals(rig: Rig, ref: int, entry: tuple[int, int, int], offset: int, size: int) -> None:
    rig.entry(8, *entry)
    rig.entry(9, 1)
    lease = rig.lease(readonly=False)
    assert lease.take([(ref, offset, size), (9, 0, 1)]) == [-1, rig.start()]
    lease.release()
    assert rig.flags(8) == entry[0]
    assert not rig.table.pins


def test_beside_a_mapping(rig: Rig) -> None:
    rig.entry(8, 1)
    mapping = rig.host.control.map_grant(rig.domain, 8)
    lease = rig.lease()
    assert lease.take([(8, 0, 1)]) == [rig.start()]
    lease.release()
    assert rig.flags(8) & IN_USE == IN_USE
    mapping.close()
    assert rig.flags(8) == 1


def test_version_2(rig: Rig) -> None:
    assert rig.table.set_version(2) == 0
    rig.table.frames[0].write(16 * 8, struct.pack("<HHIQ", 1, 0, 0, GFN))
    rig.table.frames[0].write(16 * 9, struct.pack("<HHHHQ", 1 | 1 << 8, 0, 16, 16, GFN))
    rig.table.frames[0].write(16 * 10, struct.pack("<HHHHI", 3, 0, 1, 0, 8))
    lease = rig.lease()
    pieces = [(8, 0, 4096), (9, 16, 16), (9, 0, 16), (10, 0, 1)]
    assert lease.take(pieces) == [rig.start(), rig.start() + 16, -1, -1]
    lease.release()
    assert not rig.table.pins
    assert not any(rig.table.status[0].u8[:64])


@given(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 5000), st.integers(0, 5000))))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_as_claims_do(rig: Rig, pieces: list[tuple[int, int, int]]) -> None:
    for ref in range(8, 64):
        rig.entry(ref, (ref * 7) & 0x7, ref & 1, GFN + ref % 16)
    before = bytes(rig.table.frames[0].u8)
    for readonly in (True, False):
        lease = rig.lease(readonly=readonly)
        got = [start >= 0 for start in lease.take(pieces)]
        lease.release()
        for piece, good in zip(pieces, got, strict=True):
            assert good is _claims(rig, piece, readonly)
    assert bytes(rig.table.frames[0].u8) == before


def _claims(rig: Rig, piece: tuple[int, int, int], readonly: bool) -> bool:
    ref, offset, size = piece
    try:
        claim = rig.table.claim(ref, 0, readonly=readonly)
    except Exception:
        return False
    try:
        claim.check(offset, size)
    except Exception:
        return False
    finally:
        claim.release()
    return True
