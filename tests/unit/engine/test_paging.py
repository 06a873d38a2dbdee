"""Proves the walk of a guest's page tables in every mode against tables built from a plain model.

The model is a list of mappings; the builder below writes the tables for it entry by entry. Cannot
see what a CPU's TLB would still hold, nor rights that no data access of ours depends on (execute).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hvmlite.engine.paging import PageFault, PagingMode, translate

PG, WP, PE = 1 << 31, 1 << 16, 1
PSE, PAE = 1 << 4, 1 << 5
LME, LMA, NXE = 1 << 8, 1 << 10, 1 << 11
P, RW, US, PS, NX = 1, 2, 4, 0x80, 1 << 63
CR3 = 0x12_3000
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass
class Tables:
    """Page tables in a sparse memory."""

    levels: tuple[int, ...]
    """Shift of each level, the root's first."""
    wide: bool
    mode: PagingMode
    words: dict[int, int] = field(default_factory=dict)
    next_table: int = 0x50_0000

    def __post_init__(self) -> None:
        self.table_at(self.mode.cr3)

    def table_at(self, address: int) -> None:
        for offset in range(0, 0x1000, 8):
            self.words.setdefault((address & ~7) + offset, 0)

    def read64(self, gpa: int) -> int | None:
        assert gpa % 8 == 0
        return self.words.get(gpa)

    def entry(self, table: int, index: int) -> int:
        if self.wide:
            return self.words[table + 8 * index]
        return self.words[table + index // 2 * 8] >> 32 * (index % 2) & 0xFFFF_FFFF

    def set_entry(self, table: int, index: int, value: int) -> None:
        if self.wide:
            self.words[table + 8 * index] = value
            return
        assert value < 1 << 32
        old, shift = self.words[table + index // 2 * 8], 32 * (index % 2)
        self.words[table + index // 2 * 8] = old & ~(0xFFFF_FFFF << shift) | value << shift

    def map(self, va: int, entry: int, shift: int, upper: int = P | RW | US) -> None:
        """Puts a leaf entry at the level with that shift; tables on the way get `upper`."""
        table = self.mode.cr3
        for level in self.levels:
            top = self.wide and self.levels[0] == 30 and level == 30
            bits = 2 if top else 9 if self.wide else 10
            index = va >> level & ((1 << bits) - 1)
            if level == shift:
                self.set_entry(table, index, entry)
                return
            found = self.entry(table, index)
            if not found & P:
                found = self.next_table | (P if top else upper)
                self.next_table += 0x1000
                self.set_entry(table, index, found)
                self.table_at(found & 0xF_FFFF_FFFF_F000)
            table = found & 0xF_FFFF_FFFF_F000

    def walk(self, va: int, *, write: bool = False, user: bool = False) -> int:
        return translate(self.mode, va, self.read64, write=write, user=user)


def long_mode() -> Tables:
    return Tables((39, 30, 21, 12), True, PagingMode(PG | PE | WP, CR3, PAE, LME | LMA | NXE))


def pae() -> Tables:
    return Tables((30, 21, 12), True, PagingMode(PG | PE | WP, CR3 | 0x20, PAE, 0))


def two_level(pse: bool = True) -> Tables:
    return Tables((22, 12), False, PagingMode(PG | PE | WP, CR3, PSE if pse else 0, 0))


EVERY = [long_mode, pae, two_level]


def fault(tables: Tables, va: int, *, write: bool = False, user: bool = False) -> PageFault:
    with pytest.raises(PageFault) as caught:
        tables.walk(va, write=write, user=user)
    assert caught.value.address == va
    assert caught.value.write is write
    return caught.value


# --- no paging -------------------------------------------------------------------------------


@given(st.integers(0, (1 << 64) - 1))
@settings(max_examples=30)
def test_without_paging_a_linear_address_is_physical(address: int) -> None:
    def no_memory(_gpa: int) -> int | None:
        raise AssertionError("nothing is to be read")

    for efer in (0, LME):
        mode = PagingMode(PE, 0xDEAD_B000, PAE, efer)
        assert translate(mode, address, no_memory, write=True) == address & 0xFFFF_FFFF


# --- every mode against a model --------------------------------------------------------------

LARGE = {long_mode: (30, 21), pae: (21,), two_level: (22,)}
WIDTH = {long_mode: 48, pae: 32, two_level: 32}
PHYSICAL = {long_mode: 52, pae: 52, two_level: 32}


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_against_a_model(data: st.DataObject) -> None:
    make = data.draw(st.sampled_from(EVERY))
    tables = make()
    if data.draw(st.booleans()):
        tables.mode.cr0 &= ~WP
    model: dict[tuple[int, int], tuple[int, int]] = {}
    shifts = (12, *LARGE[make])
    # Few places, so that mappings share tables.
    places = st.integers(0, (1 << WIDTH[make]) - 1)
    for _ in range(data.draw(st.integers(1, 6))):
        shift = data.draw(st.sampled_from(shifts))
        va = data.draw(places) >> shift << shift
        # A leaf may not lie where a table is, nor the other way round.
        assume(all(va >> max(s, shift) != other >> max(s, shift) for other, s in model))
        pa = data.draw(st.integers(0, (1 << PHYSICAL[make]) - 1)) >> shift << shift
        flags = P | data.draw(st.sampled_from((0, RW, US, RW | US)))
        model[va, shift] = (pa, flags)
        accessed = data.draw(st.sampled_from((0, 0x20, 0x60, 0x100, 0xE00)))
        entry = pa | flags | accessed | (PS if shift != 12 else data.draw(st.sampled_from((0, PS))))
        if make is not two_level:
            entry |= data.draw(st.sampled_from((0, NX)))
        tables.map(va, entry, shift)
    probes = [va + data.draw(st.integers(-(1 << shift), 2 << shift)) for va, shift in model] + [
        data.draw(places)
    ]
    for raw in probes:
        va = raw % (1 << WIDTH[make])
        address = va
        if make is long_mode and va >> 47:
            address |= 0xFFFF << 48
        hit = next(
            (
                (pa | va & ((1 << shift) - 1), flags)
                for (start, shift), (pa, flags) in model.items()
                if start >> shift == va >> shift
            ),
            None,
        )
        for write in (False, True):
            for user in (False, True):
                denied = hit is None or (
                    (user and not hit[1] & US)
                    or (write and not hit[1] & RW and (user or bool(tables.mode.cr0 & WP)))
                )
                if denied:
                    caught = fault(tables, address, write=write, user=user)
                    assert caught.present is (hit is not None)
                else:
                    assert hit is not None
                    assert tables.walk(address, write=write, user=user) == hit[0]


# --- what the model leaves out ---------------------------------------------------------------


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("missing", [RW, US])
def test_rights_of_upper_levels_count(make: Callable[[], Tables], missing: int) -> None:
    tables = make()
    tables.map(0x40_0000, 0x9000 | P | RW | US, 12, upper=(P | RW | US) & ~missing)
    assert tables.walk(0x40_0123) == 0x9123
    assert fault(tables, 0x40_0123, write=True, user=True).present
    if missing == US:
        assert fault(tables, 0x40_0123, user=True).present
        assert tables.walk(0x40_0123, write=True) == 0x9123
    else:
        assert tables.walk(0x40_0123, user=True) == 0x9123
        assert fault(tables, 0x40_0123, write=True).present
        tables.mode.cr0 &= ~WP
        assert tables.walk(0x40_0123, write=True) == 0x9123


@pytest.mark.parametrize("make", EVERY)
def test_a_supervisor_write_heeds_wp_only(make: Callable[[], Tables]) -> None:
    tables = make()
    tables.map(0x1000, 0x5000 | P, 12)
    assert fault(tables, 0x1FFF, write=True).error_code == 3
    tables.mode.cr0 &= ~WP
    assert tables.walk(0x1FFF, write=True) == 0x5FFF
    assert fault(tables, 0x1FFF, write=True, user=True).present


@pytest.mark.parametrize("make", EVERY)
def test_error_codes_of_a_missing_page(make: Callable[[], Tables]) -> None:
    tables = make()
    assert fault(tables, 0x1000).error_code == 0
    assert fault(tables, 0x1000, write=True).error_code == 2
    assert str(fault(tables, 0x1234)) == "page fault at linear address 0x1234"


@pytest.mark.parametrize("make", EVERY)
def test_tables_outside_of_memory_are_a_missing_page(make: Callable[[], Tables]) -> None:
    tables = make()
    tables.map(0x1000, 0x5000 | P, 12)
    for gone in list(tables.words):
        word = tables.words.pop(gone)
        if word:
            assert not fault(tables, 0x1000).present
        tables.words[gone] = word
    tables.words.clear()
    assert not fault(tables, 0x1000).present


@pytest.mark.parametrize(
    "address",
    [0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 0x1_0000_0000_0000, 1 << 63, 0x7FFF_8000_0000_0000],
)
def test_a_non_canonical_address_faults(address: int) -> None:
    tables = long_mode()
    for va in (0, 0x7FFF_FFFF_F000, 0x8000_0000_0000, 0xFFFF_FFFF_F000):
        tables.map(va, 0x5000 | P | RW | US, 12)
    assert not fault(tables, address).present


def test_both_ends_of_canonical_space() -> None:
    tables = long_mode()
    tables.map(0x7FFF_FFFF_F000, 0x5000 | P, 12)
    tables.map(0x8000_0000_0000, 0x6000 | P, 12)
    tables.map(0xFFFF_FFFF_F000, 0x7000 | P, 12)
    assert tables.walk(0x7FFF_FFFF_FFFF) == 0x5FFF
    assert tables.walk(0xFFFF_8000_0000_0000) == 0x6000
    assert tables.walk(0xFFFF_FFFF_FFFF_FFFF) == 0x7FFF


@pytest.mark.parametrize("make", [pae, two_level])
def test_legacy_modes_have_32_address_bits(make: Callable[[], Tables]) -> None:
    tables = make()
    tables.map(0xFFFF_F000, 0x5000 | P, 12)
    assert tables.walk(0x7_FFFF_F678) == 0x5678


def test_the_pae_root_lies_on_any_32_bytes() -> None:
    tables = pae()
    tables.map(0xC000_0000, 0x20_0000 | P | PS, 21)
    tables.mode.cr3 |= 0x1F  # ignored bits
    assert tables.walk(0xC01F_FFFF) == 0x3F_FFFF


def test_pae_pointers_have_no_rights() -> None:
    tables = pae()
    tables.map(0x1000, 0x5000 | P | RW | US, 12)
    assert tables.words[CR3 | 0x20] & 0xFFF == P
    assert tables.walk(0x1000, write=True, user=True) == 0x5000


def test_cr3_flags_are_ignored() -> None:
    for make in (long_mode, two_level):
        tables = make()
        tables.map(0x1000, 0x5000 | P, 12)
        tables.mode.cr3 |= 0xFFF
        assert tables.walk(0x1004) == 0x5004


def test_pse_36() -> None:
    tables = two_level()
    # Physical 0x12_3440_0000: bits 32-39 go to bits 13-20 of the entry; bit 12 is PAT, 21 reserved.
    tables.map(0x0040_0000, 0x3440_0000 | 0x12 << 13 | 1 << 12 | PS | P, 22)
    assert tables.walk(0x0065_4321) == 0x12_3465_4321


def test_without_pse_the_large_bit_is_ignored() -> None:
    tables = two_level(pse=False)
    tables.map(0x0040_1000, 0x9000 | P, 12)
    index = 0x0040_1000 >> 22
    tables.set_entry(CR3, index, tables.entry(CR3, index) | PS)
    assert tables.walk(0x0040_1008) == 0x9008


@pytest.mark.parametrize("make", [long_mode, pae])
def test_wide_entries_heed_the_large_bit_without_cr4_pse(make: Callable[[], Tables]) -> None:
    tables = make()
    assert not tables.mode.cr4 & PSE
    tables.map(0x20_0000, 0x40_0000 | PS | P, 21)
    assert tables.walk(0x3F_FFFF) == 0x5F_FFFF


def test_the_root_entry_of_long_mode_is_never_large() -> None:
    tables = long_mode()
    tables.map(0x1000, 0x5000 | P, 12)
    tables.words[CR3] |= PS
    assert tables.walk(0x1010) == 0x5010


def test_pat_bit_of_a_large_page_is_no_address_bit() -> None:
    for make, shift in ((long_mode, 21), (long_mode, 30), (pae, 21)):
        tables = make()
        tables.map(0, 0x4000_0000 | 1 << 12 | PS | P, shift)
        assert tables.walk(0x1234) == 0x4000_1234


def test_bits_above_the_physical_address_are_dropped() -> None:
    tables = long_mode()
    tables.map(0x1000, 0x5000 | P | NX | 0x7FF << 52, 12)
    assert tables.walk(0x1000) == 0x5000


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_tables_end_in_an_address_or_a_fault(data: st.DataObject) -> None:
    make = data.draw(st.sampled_from(EVERY))
    tables = make()
    entries = st.integers(0, (1 << 64) - 1)
    pool = data.draw(st.lists(entries, min_size=1, max_size=8))

    def read64(gpa: int) -> int | None:
        return pool[gpa // 8 % len(pool)] if gpa >> 3 & 7 else None

    try:
        found = translate(tables.mode, data.draw(entries), read64, write=data.draw(st.booleans()))
    except PageFault:
        return
    assert 0 <= found < 1 << 52
