"""Proves that what a guest hands to a hypercall is copied in and out within its own memory, by its
own tables, whatever the pointers are. Against a model of a guest's linear address space.

The tables are the test's; the walk of real ones is in the engine's tests.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvmlite.abi.layout import Abi
from hvmlite.abi.memory import xen_memory_reservation
from hvmlite.engine.paging import PageFault
from hvmlite.hypervisor.call import COPY_LIMIT, Call, XenError
from hvmlite.hypervisor.memory import GuestAccessError

from .fakes import Rig

PAGE = 4096
ABIS = list(Abi)
KERNEL = 0xFFFF_8000_0000_0000
# Linear pages: guest frame, which may be missing, and whether it may be written.
TABLES = {
    0x100: (1, True),
    0x101: (5, True),
    0x102: (2, True),
    0x103: (6, False),
    0x14F: (7, True),
    0x150: (3000, True),
    0xFFFFF: (4, True),
    KERNEL >> 12: (3, True),
    (1 << 52) - 1: (0, True),
}


class Tables:
    """The paging of a guest: what is not in TABLES faults."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bool]] = []

    def translate(self, address: int, *, write: bool = False) -> int:
        self.asked.append((address, write))
        assert address >> 47 in (0, 0x1FFFF), "only canonical addresses reach the tables"
        entry = TABLES.get(address >> 12)
        if entry is None or (write and not entry[1]):
            raise PageFault(address, write=write, present=entry is not None)
        return entry[0] << 12 | address & 0xFFF


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(ram=16)
    tables = Tables()
    made.engine().translate = tables.translate  # type: ignore[method-assign]
    yield made
    made.close()


@pytest.fixture
def tables(rig: Rig) -> Tables:
    found = rig.engine().translate.__self__  # type: ignore[attr-defined]
    assert isinstance(found, Tables)
    return found


def call(rig: Rig, abi: Abi = Abi.X86_64) -> Call:
    return Call(rig.domain.vcpus[0], abi, ())


def physical(rig: Rig, gfn: int, offset: int, size: int) -> bytes:
    return rig.domain.memory.read(gfn * PAGE + offset, size)


# --- ordinary copies -------------------------------------------------------------------------


@pytest.mark.parametrize("abi", ABIS)
def test_a_struct_in_and_out(rig: Rig, abi: Abi) -> None:
    value = xen_memory_reservation(0x1122_3344, 5, 9, 0x40, 0x7FF0)
    call(rig, abi).copy_to(0x10_0010, value)
    assert physical(rig, 1, 0x10, value.sizeof(abi)) == value.pack(abi)
    assert call(rig, abi).copy_from(0x10_0010, xen_memory_reservation) == value
    assert value.sizeof(Abi.X86_64) != value.sizeof(Abi.X86_32)


@pytest.mark.parametrize("abi", ABIS)
def test_one_field(rig: Rig, abi: Abi) -> None:
    call(rig, abi).write_guest(0x10_0000, b"\xee" * 64)
    call(rig, abi).copy_field_to(0x10_0010, xen_memory_reservation, "extent_order", 7)
    data = bytearray(b"\xee" * 64)
    at = 0x10 + xen_memory_reservation.offsetof("extent_order", abi)
    data[at : at + 4] = struct.pack("<I", 7)
    assert physical(rig, 1, 0, 64) == data


def test_arrays(rig: Rig) -> None:
    call(rig).write_guest(0x10_0FFC, struct.pack("<3I", 1, 2, 0xFFFF_FFFF))
    assert call(rig).read_array(0x10_0FFC, "I", 3) == (1, 2, 0xFFFF_FFFF)
    assert call(rig).read_array(0x10_0FFC, "H", 2) == (1, 0)
    assert call(rig).read_array(0x10_0FFC, "Q", 1) == (1 | 2 << 32,)
    assert call(rig).read_array(0xDEAD_0000, "Q", 0) == ()
    assert call(rig, Abi.X86_64).pfn_code == "Q"
    assert call(rig, Abi.X86_32).pfn_code == "I"


def test_a_copy_across_pages_follows_the_tables(rig: Rig) -> None:
    data = bytes(i * 11 & 0xFF for i in range(2 * PAGE))
    call(rig).write_guest(0x10_0FCE, data)
    assert physical(rig, 1, 0xFCE, 50) == data[:50]
    assert physical(rig, 5, 0, PAGE) == data[50 : 50 + PAGE]
    assert physical(rig, 2, 0, PAGE - 50) == data[50 + PAGE :]
    with pytest.raises(GuestAccessError):  # this ends in a read-only page
        call(rig).write_guest(0x10_0FCE, data + bytes(PAGE))
    assert call(rig).read_guest(0x10_0FCE, len(data)) == data


def test_reads_ask_for_reading_and_writes_for_writing(rig: Rig, tables: Tables) -> None:
    call(rig).read_guest(0x10_3000, 8)
    with pytest.raises(GuestAccessError, match="page fault at linear address 0x103000"):
        call(rig).write_guest(0x10_3000, bytes(8))
    assert tables.asked == [(0x10_3000, False), (0x10_3000, True)]


@pytest.mark.parametrize("address", [0, 0xDEAD_0000, (1 << 64) - 1, 1 << 63])
def test_nothing_has_any_address(rig: Rig, tables: Tables, address: int) -> None:
    """Real Xen does not look at the pointer of an empty copy."""
    assert call(rig).read_guest(address, 0) == b""
    call(rig).write_guest(address, b"")
    assert tables.asked == []


# --- wild pointers ---------------------------------------------------------------------------

WILD = [
    0,
    1,
    0xF_FFFF,  # ends in a mapped page
    0x15_0000,  # mapped to a frame that does not exist
    0x14_FFFC,  # runs into that
    0xDEAD_BEEF,
    (1 << 47) - 4,
    1 << 63 | 1 << 40,
    (1 << 64) - 2,  # runs over the end of the address space
    (1 << 64) - 1,
]


@pytest.mark.parametrize("address", WILD)
@pytest.mark.parametrize("abi", ABIS)
def test_wild_pointers_are_refused(rig: Rig, abi: Abi, address: int) -> None:
    made = call(rig, abi)
    before = [physical(rig, gfn, 0, PAGE) for gfn in range(16)]
    with pytest.raises(GuestAccessError):
        made.copy_from(address, xen_memory_reservation)
    with pytest.raises(GuestAccessError):
        made.read_array(address, "Q", 2)
    with pytest.raises(GuestAccessError):
        made.copy_to(address, xen_memory_reservation())
    after = [physical(rig, gfn, 0, PAGE) for gfn in range(16)]
    if address == 0x14_FFFC:
        # Pages before the bad one are written, as by Xen.
        assert after[7][:0xFFC] == before[7][:0xFFC]
        after[7] = before[7]
    assert after == before


def test_a_32_bit_caller_ends_at_4_gib(rig: Rig) -> None:
    assert call(rig, Abi.X86_32).read_guest(0xFFFF_FFF8, 8) == bytes(8)
    for address, size in ((0xFFFF_FFF8, 9), (0x1_0000_0000, 4), (KERNEL, 4), (1 << 64, 4)):
        with pytest.raises(GuestAccessError):
            call(rig, Abi.X86_32).read_guest(address, size)
        with pytest.raises(GuestAccessError):
            call(rig, Abi.X86_32).write_guest(address, bytes(size))


@pytest.mark.parametrize("size", [-1, -PAGE, COPY_LIMIT + 1, 1 << 32, 1 << 64])
def test_sizes_have_a_limit(rig: Rig, size: int) -> None:
    with pytest.raises(GuestAccessError):
        call(rig).read_guest(0x10_0000, size)


def test_a_huge_array_is_refused_before_anything_is_read(rig: Rig, tables: Tables) -> None:
    with pytest.raises(GuestAccessError):
        call(rig).read_array(0x10_0000, "Q", COPY_LIMIT // 8 + 1)
    with pytest.raises(GuestAccessError):
        call(rig).write_guest(0x10_0000, bytes(COPY_LIMIT + 1))
    assert tables.asked == []


def test_a_non_canonical_pointer_is_taken_by_its_low_48_bits(rig: Rig) -> None:
    """As Xen's own walk of the tables does."""
    call(rig).write_guest(KERNEL | 0x10, b"kernel")
    assert physical(rig, 3, 0x10, 6) == b"kernel"
    assert call(rig).read_guest(KERNEL & (1 << 48) - 1 | 0x10 | 0x1234 << 48, 6) == b"kernel"
    call(rig).write_guest(0x10_0000, b"low")
    assert call(rig).read_guest(0xABCD << 48 | 0x10_0000, 3) == b"low"


def test_the_last_page_of_the_address_space(rig: Rig) -> None:
    call(rig).write_guest((1 << 64) - PAGE, bytes(range(256)) * 16)
    assert physical(rig, 0, 0, 256) == bytes(range(256))
    with pytest.raises(GuestAccessError):
        call(rig).write_guest((1 << 64) - 8, bytes(9))


@given(st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_range_against_a_model(rig: Rig, data: st.DataObject) -> None:
    abi = data.draw(st.sampled_from(ABIS))
    page = data.draw(st.sampled_from([*TABLES, 0xFF, 0x104, 0]))
    address = (page << 12) + data.draw(st.integers(-40, PAGE + 40))
    address &= (1 << 64) - 1
    size = data.draw(st.one_of(st.integers(1, 100), st.integers(1, 3 * PAGE)))
    write = data.draw(st.booleans())
    top = 1 << (64 if abi is Abi.X86_64 else 32)
    pages = range(address >> 12, (address + size - 1 >> 12) + 1)

    def usable(number: int) -> bool:
        entry = TABLES.get(number)
        return entry is not None and entry[0] < 16 and (entry[1] or not write)

    good = address + size <= top and all(map(usable, pages))
    value = bytes(i * 13 + 1 & 0xFF for i in range(size))
    made = call(rig, abi)
    if not good:
        with pytest.raises(GuestAccessError):
            if write:
                made.write_guest(address, value)
            else:
                made.read_guest(address, size)
        return
    if write:
        made.write_guest(address, value)
    found = made.read_guest(address, size)
    expected = bytearray()
    for at in range(address, address + size, 1) if size < 300 else ():
        expected += physical(rig, TABLES[at >> 12][0], at & 0xFFF, 1)
    assert len(found) == size
    if size < 300:
        assert found == expected
    if write:
        assert found == value


def test_errors_carry_their_errno() -> None:
    assert XenError(22).errno == 22
