"""Proves that guest memory is reached within its bounds only, and written all or nothing, against a
bytearray; and what a page lets its holder do.

The engine only stores. That it also makes a running guest see new code is in its own tests; that
atomic operations lose nothing is in test_atomics.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvmlite.hypervisor.memory import GuestAccessError, GuestMemory, Page
from hvmlite.hypervisor.physmap import P2mType

from .fakes import Rig

PAGE = 4096
RAM = 8 * PAGE


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(ram=8)
    yield made
    made.close()


@pytest.fixture
def memory(rig: Rig) -> GuestMemory:
    return rig.domain.memory


@pytest.fixture
def page(memory: GuestMemory) -> Page:
    return memory.page(3)


Writes = list[tuple[int, int, bytes]]


@pytest.fixture
def writes(rig: Rig) -> Writes:
    """What goes to the engine: frame, offset, data."""
    seen: Writes = []
    real = rig.partition.write

    def write(frame: int, offset: int, data: bytes) -> None:
        seen.append((frame, offset, bytes(data)))
        real(frame, offset, data)

    rig.partition.write = write  # type: ignore[method-assign, assignment]
    return seen


# --- bounds ----------------------------------------------------------------------------------

OUTSIDE = [
    (RAM, 1),
    (RAM - 1, 2),
    (RAM - PAGE, PAGE + 1),
    (0, RAM + 1),
    (0xD000_0000, 8),
    ((1 << 52) - 1, 2),
    (1 << 52, 1),
    ((1 << 64) - 8, 8),
    ((1 << 64) - 4, 8),
    (1 << 80, 4),
    (-1, 1),
    (-8, 4096),
    (-PAGE, 8),
]


@pytest.mark.parametrize(("gpa", "size"), OUTSIDE)
def test_outside_of_memory(memory: GuestMemory, gpa: int, size: int) -> None:
    before = memory.read(0, RAM)
    with pytest.raises(GuestAccessError) as caught:
        memory.read(gpa, size)
    assert str(caught.value).startswith("invalid guest access: address ")
    with pytest.raises(GuestAccessError):
        memory.write(gpa, b"\xff" * size)
    assert memory.read(0, RAM) == before, "a write that fails writes nothing"


def test_a_negative_size(memory: GuestMemory) -> None:
    with pytest.raises(GuestAccessError):
        memory.read(0, -1)


def test_the_error_names_address_and_size(memory: GuestMemory) -> None:
    with pytest.raises(GuestAccessError) as caught:
        memory.read(0xD000_0010, 8)
    assert str(caught.value) == (
        "invalid guest access: address 0xd0000010, 8 bytes: no memory there"
    )
    assert (caught.value.gpa, caught.value.size) == (0xD000_0010, 8)


def test_both_ends(memory: GuestMemory) -> None:
    memory.write(0, b"first")
    memory.write(RAM - 4, b"last")
    assert memory.read(0, 5) == b"first"
    assert memory.read(RAM - 4, 4) == b"last"
    assert len(memory.read(0, RAM)) == RAM


def test_read_only_memory(rig: Rig, memory: GuestMemory) -> None:
    frame = rig.host.machine.allocate(1)
    rig.domain.physmap.set(20, frame, P2mType.GRANT_RO)
    assert memory.read(20 * PAGE, 4) == bytes(4)
    with pytest.raises(GuestAccessError, match="read-only"):
        memory.write(20 * PAGE, b"x")
    with pytest.raises(GuestAccessError, match="read-only"):
        memory.page(20)
    rig.domain.physmap.clear(20)
    rig.host.machine.release(frame)


# --- scattered frames ------------------------------------------------------------------------


@pytest.fixture
def scattered(rig: Rig, memory: GuestMemory) -> Iterator[dict[int, int]]:
    """Guest frames 20 to 29, on machine frames in no order, with a hole at 26."""
    machine = rig.host.machine
    base = machine.allocate(12)
    places = {20: 3, 21: 4, 22: 5, 23: 0, 24: 9, 25: 8, 27: 6, 28: 7, 29: 11}
    for gfn, offset in places.items():
        rig.domain.physmap.set(gfn, base + offset, P2mType.GRANT_RW)
    yield {gfn: base + offset for gfn, offset in places.items()}
    for gfn in places:
        rig.domain.physmap.clear(gfn)
    machine.release(base, 12)


def test_what_lies_together_is_written_at_once(
    rig: Rig, memory: GuestMemory, scattered: dict[int, int], writes: Writes
) -> None:
    data = bytes(i * 7 & 0xFF for i in range(5 * PAGE + 200))
    memory.write(20 * PAGE + 100, data)
    assert [(frame, offset, len(piece)) for frame, offset, piece in writes] == [
        (scattered[20], 100, 3 * PAGE - 100),
        (scattered[23], 0, PAGE),
        (scattered[24], 0, PAGE),
        (scattered[25], 0, len(data) - 5 * PAGE + 100),
    ]
    assert memory.read(20 * PAGE + 100, len(data)) == data


def test_a_hole_in_the_middle_stops_all_of_it(
    memory: GuestMemory, scattered: dict[int, int], writes: Writes
) -> None:
    with pytest.raises(GuestAccessError):
        memory.write(25 * PAGE, bytes(2 * PAGE))
    assert writes == []
    with pytest.raises(GuestAccessError):
        memory.read(25 * PAGE, 2 * PAGE)


@given(st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_against_a_bytearray(
    memory: GuestMemory, scattered: dict[int, int], data: st.DataObject
) -> None:
    present = {*range(8), *scattered}
    model = bytearray(32 * PAGE)
    for gfn in present:
        model[gfn * PAGE : (gfn + 1) * PAGE] = memory.read(gfn * PAGE, PAGE)
    for _ in range(data.draw(st.integers(1, 12))):
        gpa = data.draw(st.one_of(st.integers(0, 9 * PAGE), st.integers(19 * PAGE, 31 * PAGE)))
        size = data.draw(st.one_of(st.integers(0, 64), st.integers(0, 4 * PAGE)))
        inside = set(range(gpa // PAGE, max(gpa, gpa + size - 1) // PAGE + 1)) <= present
        if data.draw(st.booleans()):
            value = bytes([data.draw(st.integers(0, 255)), 0x5A]) * (size // 2 + 1)
            value = value[:size]
            if not inside:
                with pytest.raises(GuestAccessError):
                    memory.write(gpa, value)
                continue
            kind = data.draw(st.sampled_from((bytes, bytearray, memoryview)))
            memory.write(gpa, kind(value))
            model[gpa : gpa + size] = value
        elif inside:
            assert memory.read(gpa, size) == model[gpa : gpa + size]
        else:
            with pytest.raises(GuestAccessError):
                memory.read(gpa, size)
    for gfn in present:
        assert memory.read(gfn * PAGE, PAGE) == model[gfn * PAGE : (gfn + 1) * PAGE]


# --- pages -----------------------------------------------------------------------------------


def test_a_page_is_the_guests_memory(memory: GuestMemory, page: Page) -> None:
    page.u32[5] = 0x1234_5678
    assert memory.read(3 * PAGE + 20, 4) == bytes.fromhex("78563412")
    memory.write(3 * PAGE + 8, b"\xff" * 8)
    assert page.u64[1] == (1 << 64) - 1
    assert page.u8[4095] == 0
    assert (len(page.u8), len(page.u32), len(page.u64)) == (4096, 1024, 512)


@pytest.mark.parametrize("gfn", [8, 1 << 36, 0xD0000])
def test_there_is_no_page(memory: GuestMemory, gfn: int) -> None:
    with pytest.raises(GuestAccessError):
        memory.page(gfn)


@pytest.mark.parametrize(
    ("offset", "size"), [(4096, 1), (4095, 2), (0, 4097), (-1, 1), (-1, 2), (0, -1), (5000, 0)]
)
def test_a_page_ends(page: Page, offset: int, size: int) -> None:
    with pytest.raises(IndexError):
        page.read(offset, size)
    if size >= 0:
        with pytest.raises(IndexError):
            page.write(offset, bytes(size))


def test_reads_and_writes_of_a_page(page: Page) -> None:
    page.write(4090, b"abcdef")
    assert page.read(4090, 6) == b"abcdef"
    assert page.read(4096, 0) == b""
    page.write(0, memoryview(bytearray(b"view")))
    copy = page.read(0, 4)
    page.write(0, b"....")
    assert copy == b"view"


OPERATIONS: dict[str, tuple[int, Callable[[Page, int], int]]] = {
    "fetch_or8": (1, lambda page, i: page.fetch_or8(i, 1)),
    "fetch_and16": (2, lambda page, i: page.fetch_and16(i, 1)),
    "fetch_or32": (4, lambda page, i: page.fetch_or32(i, 1)),
    "fetch_and32": (4, lambda page, i: page.fetch_and32(i, 1)),
    "fetch_or64": (8, lambda page, i: page.fetch_or64(i, 1)),
    "fetch_and64": (8, lambda page, i: page.fetch_and64(i, 1)),
    "exchange32": (4, lambda page, i: page.exchange32(i, 1)),
    "cmpxchg16": (2, lambda page, i: page.cmpxchg16(i, 0, 1)),
    "cmpxchg32": (4, lambda page, i: page.cmpxchg32(i, 0, 1)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_atomic_operations_stay_in_the_page(rig: Rig, page: Page, name: str) -> None:
    size, operation = OPERATIONS[name]
    last = PAGE // size - 1
    before = rig.domain.memory.read(2 * PAGE, 3 * PAGE)
    for index in (-1, last + 1, 1 << 40):
        with pytest.raises(IndexError, match="is not in the page"):
            operation(page, index)
    assert rig.domain.memory.read(2 * PAGE, 3 * PAGE) == before
    page.write(PAGE - size, b"\xff" * size)
    assert operation(page, last) == (1 << 8 * size) - 1
    assert operation(page, 0) == 0


def test_atomic_operations_change_their_word(page: Page) -> None:
    page.u32[10] = 0xF0F0_F0F0
    assert page.fetch_or32(10, 0x0F) == 0xF0F0_F0F0
    assert page.fetch_and32(10, 0xFF) == 0xF0F0_F0FF
    assert page.exchange32(10, 5) == 0xFF
    assert page.cmpxchg32(10, 4, 9) == 5
    assert page.cmpxchg32(10, 5, 9) == 5
    assert page.u32[10] == 9
    page.u64[3] = 1 << 63
    assert page.fetch_or64(3, 1) == 1 << 63
    assert page.fetch_and64(3, 1) == 1 << 63 | 1
    assert page.u64[3] == 1
    page.u8[7] = 0x80
    assert page.fetch_or8(7, 1) == 0x80
    assert page.u8[7] == 0x81
    page.write(100, b"\x34\x12")
    assert page.cmpxchg16(50, 0x1234, 0xFFFF) == 0x1234
    assert page.fetch_and16(50, 0x00FF) == 0xFFFF
    assert page.read(100, 2) == b"\xff\x00"
