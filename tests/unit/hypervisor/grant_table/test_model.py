"""Grants against a small model: random operations of two guests and a backend, step by step.

The model knows pages by name, who has each where, and how often each grant is in use.  Cannot see
changes of an entry while it is in use (test_version2, test_between_domains), or a wrong order.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.abi import grant_table as abi
from hvmlite.abi import memory
from hvmlite.abi.xen import DOMID_SELF
from hvmlite.hypervisor.grant_table import GrantError

RAM = range(0x200, 0x204)
HOLES = range(0xD0000, 0xD0004)
PLACES = [*RAM, *HOLES]
REFS = range(8, 11)
ONES = 0xFFFFFFFF

USERS = (0, 1, 2, 0, 1, 2, -1)

guest_numbers = st.integers(0, 1)
places = st.sampled_from(PLACES)
refs = st.sampled_from(REFS)
steps = st.one_of(
    st.tuples(st.just("grant"), guest_numbers, refs, st.sampled_from(USERS), places, st.booleans()),
    st.tuples(st.just("map"), guest_numbers, guest_numbers, refs, places, st.booleans()),
    st.tuples(st.just("map"), guest_numbers, guest_numbers, refs, places, st.booleans()),
    st.tuples(st.just("unmap"), guest_numbers, st.integers(0, 5)),
    st.tuples(st.just("open"), guest_numbers, refs, st.booleans()),
    st.tuples(st.just("close"), st.integers(0, 5)),
    st.tuples(st.just("copy"), guest_numbers, guest_numbers, refs, st.booleans()),
    st.tuples(st.just("free"), guest_numbers, places),
    st.tuples(st.just("version"), guest_numbers, st.integers(1, 2)),
)


@dataclass
class Entry:
    user: int = -1
    """Who may use it: a guest's number, 2 for domain 0, -1 for nobody."""
    gfn: int = 0
    readonly: bool = False


@dataclass
class Use:
    user: int
    page: str
    readers: int = 0
    writers: int = 0


@dataclass
class Model:
    own: list[dict[int, str]]
    """Guest frame -> page of its own."""
    mapped: list[dict[int, tuple[str, bool]]]
    """Guest frame -> (page, read-only) of a mapped grant."""
    entries: dict[tuple[int, int], Entry]
    uses: dict[tuple[int, int], Use] = field(default_factory=dict)
    handles: list[dict[int, tuple[int, int, int, bool]]] = field(default_factory=lambda: [{}, {}])
    freed: set[str] = field(default_factory=set)

    def owner(self, page: str) -> int:
        return int(page[0])

    def granted(self, guest: int, gfn: int, readonly: bool) -> tuple[str, int]:
        """The page that a guest can grant there, and the status."""
        if gfn in self.own[guest]:
            return self.own[guest][gfn], 0
        page, ro = self.mapped[guest].get(gfn, ("", False))
        return (page, 0) if page and (readonly or not ro) else ("", -9)

    def take(self, grantor: int, ref: int, user: int, readonly: bool, mapping: bool) -> int:
        """Counts a use of a grant; returns the status."""
        entry, use = self.entries[grantor, ref], self.uses.get((grantor, ref))
        if use is not None and use.user != user:
            return -1
        if use is None or (not readonly and not use.writers):
            if use is None and entry.user != user:
                return -1
            if not readonly and entry.readonly:
                return -1
            if use is None:
                page, status = self.granted(grantor, entry.gfn, readonly)
                if status:
                    return status
                if mapping and self.owner(page) != grantor:
                    return -1
                use = self.uses[grantor, ref] = Use(user, page)
            elif not mapping and self.granted(grantor, entry.gfn, readonly)[1]:
                return -9
        use.readers += readonly
        use.writers += not readonly
        return 0

    def drop(self, grantor: int, ref: int, readonly: bool) -> None:
        use = self.uses[grantor, ref]
        use.readers -= readonly
        use.writers -= not readonly
        if not use.readers + use.writers:
            del self.uses[grantor, ref]

    def in_use(self, page: str) -> bool:
        return any(use.page == page for use in self.uses.values())

    def pages(self, guest: int, start: int) -> int:
        gone = [p for p in self.freed if self.owner(p) == guest and not self.in_use(p)]
        return start - len(gone)


@settings(max_examples=80, deadline=None)
@given(script=st.lists(steps, min_size=5, max_size=40))
def test_short(hosts: Any, wrap: Any, script: list[tuple[Any, ...]]) -> None:
    """What hypothesis can shrink."""
    with hosts() as guests:
        run(wrap(guests(vcpus=1)), wrap(guests(vcpus=1)), script)


@pytest.mark.parametrize("seed", range(4))
def test_long(hosts: Any, wrap: Any, seed: int) -> None:
    """Long runs, in which most mappings come to their end."""
    source = random.Random(seed)

    def step() -> tuple[Any, ...]:
        guest, other, nth = source.randrange(2), source.randrange(2), source.randrange(6)
        ref, gfn, flag = source.choice(REFS), source.choice(PLACES), source.random() < 0.4
        return source.choice(
            [
                ("grant", guest, ref, source.choice(USERS), gfn, flag),
                *[("map", guest, other, ref, gfn, flag)] * 4,
                *[("unmap", guest, nth)] * 3,
                ("open", guest, ref, flag),
                ("close", nth),
                ("copy", guest, other, ref, flag),
                *[("free", guest, gfn)] * (source.random() < 0.1),
                *[("version", guest, 1 + other)] * (source.random() < 0.1),
            ]
        )

    with hosts() as guests:
        run(wrap(guests(vcpus=1)), wrap(guests(vcpus=1)), [step() for _ in range(400)])


def run(first: Any, second: Any, script: list[tuple[Any, ...]]) -> None:
    both = [first, second]
    domids = [first.domid, second.domid, 0]
    values: dict[str, int] = {}
    for number, each in enumerate(both):
        for gfn in RAM:
            values[f"{number}-{gfn:x}"] = 0x10000 * number + gfn
            each.guest.write32(gfn << 12, 0x10000 * number + gfn)
    model = Model(
        [{gfn: f"{number}-{gfn:x}" for gfn in RAM} for number in range(2)],
        [{}, {}],
        {(number, ref): Entry() for number in range(2) for ref in REFS},
    )
    for (number, ref), entry in model.entries.items():
        # To start with each reference is for another: the guests and domain 0.
        entry.user, entry.gfn = ref - REFS[0], RAM[ref - REFS[0]]
        both[number].entry(ref, abi.GTF_permit_access, domids[entry.user], entry.gfn)
    start = [each.guest.domain.total_pages for each in both]
    backend: list[tuple[int, int, bool, Any]] = []

    for kind, *rest in script:
        if kind == "grant":
            number, ref, user, gfn, readonly = rest
            if (number, ref) in model.uses:
                continue
            model.entries[number, ref] = Entry(user, gfn, readonly)
            flags = abi.GTF_permit_access if user >= 0 else abi.GTF_invalid
            flags |= abi.GTF_readonly if readonly else 0
            both[number].entry(ref, flags, domids[user], gfn)
        elif kind == "map":
            number, grantor, ref, gfn, readonly = rest
            # Mostly by the one who may.
            user = model.entries[grantor, ref].user
            number = user if user in (0, 1) and number else number
            if gfn in model.mapped[number]:
                continue
            flags = abi.GNTMAP_host_map | (abi.GNTMAP_readonly if readonly else 0)
            op = both[number].map(ref, gfn, flags, domids[grantor])
            assert op.status == model.take(grantor, ref, number, readonly, True)
            if op.status == 0:
                page = model.uses[grantor, ref].page
                model.own[number].pop(gfn, None)
                for at in [at for at, there in model.own[number].items() if there == page]:
                    del model.own[number][at]
                model.mapped[number][gfn] = page, readonly
                assert op.handle not in model.handles[number]
                model.handles[number][op.handle] = grantor, ref, gfn, readonly
        elif kind == "unmap":
            number, nth = rest
            if not model.handles[number]:
                continue
            handle = sorted(model.handles[number])[nth % len(model.handles[number])]
            grantor, ref, gfn, readonly = model.handles[number][handle]
            there = model.mapped[number].get(gfn, ("", False))[0]
            same = there == model.uses[grantor, ref].page
            assert both[number].unmap(handle, gfn) == (0 if same else -1)
            if same:
                del model.handles[number][handle], model.mapped[number][gfn]
                model.drop(grantor, ref, readonly)
        elif kind == "open":
            number, ref, readonly = rest
            try:
                mapping = both[number].guest.domain.grants.map_for_backend(ref, readonly=readonly)
                status = 0
            except GrantError as error:
                status = error.status
            assert status == model.take(number, ref, 2, readonly, True)
            if status == 0:
                backend.append((number, ref, readonly, mapping))
        elif kind == "close" and backend:
            number, ref, readonly, mapping = backend.pop(rest[0] % len(backend))
            assert mapping.page.u32[0] == values[model.uses[number, ref].page]
            mapping.close()
            model.drop(number, ref, readonly)
        elif kind == "copy":
            number, grantor, ref, write = rest
            user = model.entries[grantor, ref].user
            number = user if user in (0, 1) and number else number
            side, domid = ("ref", ref, 8), domids[grantor]
            other = ("gfn", 0x300, 8)
            ends = (
                ((other, side), (DOMID_SELF, domid)) if write else ((side, other), (domid, 0x7FF0))
            )
            status = both[number].copy(*ends[0], 4, ends[1])
            assert status == model.take(grantor, ref, number, not write, False)
            if status == 0:
                model.drop(grantor, ref, not write)
        elif kind == "free":
            number, gfn = rest
            page = model.own[number].get(gfn) or model.mapped[number].get(gfn, ("", False))[0]
            good = page != "" and model.owner(page) == number
            arg = memory.xen_memory_reservation(both[number].guest.words(gfn), 1, 0, 0, DOMID_SELF)
            address = both[number].guest.place(arg.pack())
            result = both[number].guest.hypercall(12, memory.XENMEM_decrease_reservation, address)
            assert result == good
            if good:
                model.own[number].pop(gfn, None)
                model.mapped[number].pop(gfn, None)
                model.freed.add(page)
        elif kind == "version":
            number, version = rest
            busy = any(user == number for user, _ in model.uses)
            old = both[number].version
            refused = busy and version != old
            assert both[number].set_version(version)[0] == (-16 if refused else 0)
            if not refused and version != old:
                for ref in REFS:
                    model.entries[number, ref] = Entry()
        check(both, model, start, values)
    for _number, _ref, _readonly, mapping in backend:
        mapping.close()


def check(both: list[Any], model: Model, start: list[int], values: dict[str, int]) -> None:
    for number, each in enumerate(both):
        for gfn in PLACES:
            page = model.own[number].get(gfn) or model.mapped[number].get(gfn, ("", False))[0]
            expected = values[page] if page else ONES
            assert each.guest.read32(gfn << 12) == expected
        for gfn, (_page, readonly) in model.mapped[number].items():
            writable = each.guest.partition.nested[gfn][1] & 2
            assert bool(writable) is not readonly
        for ref in REFS:
            use = model.uses.get((number, ref))
            marks = 0
            if use is not None:
                marks = abi.GTF_reading | (abi.GTF_writing if use.writers else 0)
            found = each.flags(ref) if each.version == 1 else each.status(ref)
            assert found & 0x18 == marks
        assert each.guest.domain.total_pages == model.pages(number, start[number])
