"""Proves the way by which a block backend takes up many pages at once: that it takes what mapping
each of them takes and nothing else, that an entry is marked whenever a guest could look, also if
the guest revokes it that very moment, and that nothing is left behind.

Cannot see a guest on another processor; a change in between is made by the test.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvmlite.engine import atomics
from hvmlite.hypervisor import host as host_module
from hvmlite.hypervisor.grant_table import GrantError, Loan
from hvmlite.hypervisor.memory import Gfn
from hvmlite.toolstack.host import Host

from ...toolstack.conftest import Make, engine, host, kernel, make

__all__ = ["engine", "host", "kernel", "make"]
GFN = 0x200
IN_USE = 0x18
RUN_OR_NOT = pytest.mark.parametrize("guests_run", [False, True])


class Rig:
    def __init__(self, host: Host, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = host
        self.domain = make().incarnation.domain
        self.table = self.domain.grants
        self.loans = host.control.loans(self.domain)
        self._monkeypatch = monkeypatch

    def guests_run(self, run: bool) -> None:
        self._monkeypatch.setattr(host_module.Host, "guests_run", run)

    def entry(self, ref: int, flags: int, domid: int = 0, gfn: int = GFN) -> None:
        self.table.frames[ref // 512].write(8 * (ref % 512), struct.pack("<HHI", flags, domid, gfn))

    def flags(self, ref: int) -> int:
        return self.table.frames[ref // 512].u32[2 * (ref % 512)] & 0xFFFF

    def frame(self, gfn: int = GFN) -> int:
        return self.domain.memory.page(Gfn(gfn)).frame

    def take(self, *refs: int, readonly: bool = False) -> Loan:
        return self.loans.take(refs, readonly=readonly)

    def nothing_left(self) -> None:
        assert not self.table.pins
        assert not self.host.control.host.frames._extra.keys() & set(
            range(self.frame(), self.frame() + 64)
        )


@pytest.fixture
def rig(host: Host, make: Make, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(host, make, monkeypatch)


@pytest.mark.parametrize(("readonly", "marks"), [(True, 8), (False, 24)])
def test_marks_while_a_guest_runs(rig: Rig, readonly: bool, marks: int) -> None:
    rig.guests_run(True)
    for ref in (8, 9):
        rig.entry(ref, 1, gfn=GFN + ref)
    loan = rig.take(9, 8, readonly=readonly)
    assert loan.frames == [rig.frame(GFN + 9), rig.frame(GFN + 8)]
    assert rig.flags(8) & IN_USE == rig.flags(9) & IN_USE == marks
    loan.release()
    loan.release()
    assert rig.flags(8) == rig.flags(9) == 1
    rig.nothing_left()


def test_no_marks_while_nobody_can_look(rig: Rig) -> None:
    rig.guests_run(False)
    rig.entry(8, 1)
    loan = rig.take(8)
    assert rig.flags(8) == 1
    loan.release()


@RUN_OR_NOT
def test_what_is_kept_is_pinned(rig: Rig, guests_run: bool) -> None:
    """The guest sees that it is in use, and may give the page away: it is not reused."""
    rig.guests_run(guests_run)
    rig.entry(8, 1)
    rig.entry(9, 1, gfn=GFN + 1)
    frame = rig.frame()
    loan = rig.take(8, 9, 8)
    loan.keep()
    loan.keep()
    rig.guests_run(True)
    assert loan.frames == [frame, frame + 1, frame]
    assert rig.flags(8) & IN_USE == rig.flags(9) & IN_USE == IN_USE
    rig.entry(9, 0)
    assert rig.domain.pages.free(GFN) == 0
    rig.domain.pages.settle()
    free = rig.host.control.host.machine.free_frames
    loan.release()
    loan.release()
    assert rig.host.control.host.machine.free_frames == free + 1
    assert rig.flags(8) == 1
    assert rig.flags(9) == 0
    assert not rig.table.pins


def test_the_guest_changes_an_entry_before_it_is_kept(rig: Rig) -> None:
    rig.guests_run(True)
    for ref in (8, 9, 10):
        rig.entry(ref, 1)
    loan = rig.take(8, 9, 10)
    rig.entry(9, 0)
    with pytest.raises(GrantError):
        loan.keep()
    loan.release()
    assert [rig.flags(ref) for ref in (8, 9, 10)] == [1, 0, 1]
    rig.nothing_left()


@pytest.mark.parametrize("change", ["revoked", "to another domain", "made read-only", "elsewhere"])
def test_the_guest_changes_an_entry_that_very_moment(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """After we looked at it, and before it is marked."""
    rig.guests_run(True)
    for ref in (8, 9, 10):
        rig.entry(ref, 1)
    real = atomics.fetch_or32
    calls = 0

    def fetch_or(address: int, mask: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            rig.entry(
                9,
                {"revoked": 0, "made read-only": 5}.get(change, 1),
                1 if change == "to another domain" else 0,
                GFN + 7 if change == "elsewhere" else GFN,
            )
        return real(address, mask)

    monkeypatch.setattr(atomics, "fetch_or32", fetch_or)
    if change == "elsewhere":
        loan = rig.take(8, 9, 10)
        assert loan.frames == [rig.frame(), rig.frame(GFN + 7), rig.frame()]
        loan.release()
    else:
        with pytest.raises(GrantError):
            rig.take(8, 9, 10)
    assert rig.flags(8) == rig.flags(10) == 1
    assert not rig.flags(9) & IN_USE
    rig.nothing_left()


@RUN_OR_NOT
@pytest.mark.parametrize(
    ("ref", "entry"),
    [
        (8, (0, 0, GFN)),
        (8, (1, 3, GFN)),
        (8, (5, 0, GFN)),
        (8, (2, 0, GFN)),
        (8, (3, 0, GFN)),
        (8, (1 | 1 << 8, 0, GFN)),
        (8, (1, 0, 0x0FFF_FFFF)),
        (600, (1, 0, GFN)),
        (0xFFFF_FFFF, (1, 0, GFN)),
    ],
)
def test_refusals(rig: Rig, guests_run: bool, ref: int, entry: tuple[int, int, int]) -> None:
    """Of one bad reference in the middle nothing is left, of the others neither."""
    rig.guests_run(guests_run)
    rig.entry(8, *entry)
    rig.entry(9, 1)
    rig.entry(10, 1, gfn=GFN + 1)
    with pytest.raises(GrantError):
        rig.take(9, ref, 10)
    assert [rig.flags(each) for each in (8, 9, 10)] == [entry[0], 1, 1]
    rig.nothing_left()


@RUN_OR_NOT
def test_beside_a_mapping(rig: Rig, guests_run: bool) -> None:
    """The mapping's marks outlive the loan, and a loan that is kept outlives the mapping."""
    rig.guests_run(guests_run)
    rig.entry(8, 1)
    mapping = rig.host.control.map_grant(rig.domain, 8)
    rig.take(8).release()
    assert rig.flags(8) & IN_USE == IN_USE
    loan = rig.take(8, readonly=True)
    mapping.close()
    assert rig.flags(8) & IN_USE == 8
    loan.release()
    assert rig.flags(8) == 1
    rig.nothing_left()


@RUN_OR_NOT
def test_the_same_page_twice(rig: Rig, guests_run: bool) -> None:
    rig.guests_run(guests_run)
    rig.entry(8, 1)
    loan = rig.take(8, 8)
    assert loan.frames == [rig.frame()] * 2
    loan.release()
    assert rig.flags(8) == 1
    rig.nothing_left()


def test_version_2(rig: Rig) -> None:
    assert rig.table.set_version(2) == 0
    rig.table.frames[0].write(16 * 8, struct.pack("<HHIQ", 1, 0, 0, GFN))
    rig.table.frames[0].write(16 * 9, struct.pack("<HHHHQ", 1 | 1 << 8, 0, 16, 16, GFN))
    rig.table.frames[0].write(16 * 10, struct.pack("<HHHHI", 3, 0, 1, 0, 8))
    loan = rig.take(8)
    assert loan.frames == [rig.frame()]
    assert rig.table.status[0].u8[16] == IN_USE
    loan.release()
    for ref in (9, 10):
        with pytest.raises(GrantError):
            rig.take(8, ref)
    assert not any(rig.table.status[0].u8[:64])
    rig.nothing_left()


def test_a_table_that_grows(rig: Rig) -> None:
    rig.entry(8, 1)
    rig.take(8).release()
    assert rig.table.grow(3)
    rig.entry(1300, 1, gfn=GFN + 1)
    loan = rig.take(1300, 8)
    assert loan.frames == [rig.frame(GFN + 1), rig.frame()]
    loan.release()


def test_pages_that_moved(rig: Rig) -> None:
    """A frame of the guest's own that it mapped elsewhere, and a hole in its memory."""
    frame = rig.frame(GFN + 5)
    assert rig.domain.pages.place(GFN, frame, 0) == 0
    rig.domain.pages.settle()
    rig.entry(8, 1)
    rig.entry(9, 1, gfn=GFN + 5)
    loan = rig.take(8)
    assert loan.frames == [frame]
    loan.release()
    with pytest.raises(GrantError):
        rig.take(8, 9)
    assert rig.flags(8) == rig.flags(9) == 1


def test_the_guest_is_destroyed(rig: Rig) -> None:
    rig.entry(8, 1)
    loan = rig.take(8)
    loan.keep()
    loans, frame = rig.loans, loan.frames[0]
    rig.host.control.destroy_domain(rig.domain)
    loans.write(frame << 12, memoryview(b"late"))
    loans.stored(frame << 12, 4)
    loan.release()
    with pytest.raises(GrantError):
        loans.take((8,), readonly=True)


def _pin_all(rig: Rig, refs: Sequence[int], readonly: bool) -> list[int] | None:
    frames: list[int] = []
    pinned = []
    try:
        for ref in refs:
            frames.append(rig.table.pin(ref, 0, readonly=readonly).frame)
            pinned.append(ref)
    except GrantError:
        return None
    finally:
        for ref in pinned:
            rig.table.unpin(ref, readonly=readonly)
    return frames


@given(
    refs=st.lists(st.integers(8, 66), min_size=1, max_size=12),
    flags=st.lists(st.sampled_from([1] * 12 + [0, 2, 3, 5, 5, 257]), min_size=56, max_size=56),
    guests_run=st.booleans(),
    keep=st.booleans(),
)
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_as_mappings_do(
    rig: Rig, refs: list[int], flags: list[int], guests_run: bool, keep: bool
) -> None:
    rig.guests_run(guests_run)
    for ref, flag in enumerate(flags, 8):
        rig.entry(ref, flag, ref % 17 == 3, GFN + ref % 16)
    before = bytes(rig.table.frames[0].u8)
    for readonly in (True, False):
        expected = _pin_all(rig, refs, readonly)
        try:
            loan = rig.loans.take(refs, readonly=readonly)
        except GrantError:
            assert expected is None
        else:
            if keep:
                loan.keep()
            assert loan.frames == expected
            loan.release()
        assert bytes(rig.table.frames[0].u8) == before
        rig.nothing_left()
