"""Proves that linking an event copes with a guest that changes the tail's word at that moment.

The page runs a scripted change by the guest between our read of a word and our exchange of it.
Cannot see the memory ordering of a real second CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.abi.event_channel import (
    EVTCHN_FIFO_BUSY,
    EVTCHN_FIFO_LINK_MASK,
    EVTCHN_FIFO_LINKED,
    EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_PENDING,
)
from hvmlite.hypervisor.memory import Page

PENDING, MASKED = 1 << EVTCHN_FIFO_PENDING, 1 << EVTCHN_FIFO_MASKED
LINKED, BUSY = 1 << EVTCHN_FIFO_LINKED, 1 << EVTCHN_FIFO_BUSY

# What a guest may do to the word of a linked event, and some that it may not.
LEGAL = {
    "mask": lambda word: word | MASKED,
    "unmask": lambda word: word if word & BUSY else word & ~MASKED,
    "clear": lambda word: word & ~PENDING,
    "unlink": lambda word: word & ~(LINKED | EVTCHN_FIFO_LINK_MASK),
}
ILLEGAL = {
    "busy": lambda word: word | BUSY,
    "link": lambda word: word ^ 0x15555,
    "linked": lambda word: word ^ LINKED,
    "zero": lambda word: 0,
    "ones": lambda word: 0xFFFFFFFF,
    "reserved": lambda word: word ^ (1 << 20),
}


class RacyPage(Page):
    """A page whose guest acts right before each of our exchanges, as long as the script lasts."""

    script: list[Callable[[int], int]]
    exchanges: int

    def cmpxchg32(self, index: int, expected: int, new: int) -> int:
        self.exchanges = getattr(self, "exchanges", 0) + 1
        script = getattr(self, "script", [])
        if script:
            self.u32[index] = script.pop(0)(self.u32[index]) & 0xFFFFFFFF
        return super().cmpxchg32(index, expected, new)


@pytest.fixture
def fifo(worlds):
    """Two events on the default queue's word page; the first is linked and is the tail."""

    def make():
        domain = worlds(RacyPage).new_domain()
        control, array = domain.add_page(0x100), domain.add_page(0x110)
        assert domain.rc("init_control", control_gfn=0x100, offset=0, vcpu=0) == 0
        assert domain.rc("expand_array", array_gfn=0x110) == 0
        first, second = domain.evtchn.bind_ipi(0), domain.evtchn.bind_ipi(0)
        domain.evtchn.send(first)
        control.u32[0] = 0
        array.exchanges = 0
        return domain, control, array, first, second

    return make


def link_of(word: int) -> int:
    return word & EVTCHN_FIFO_LINK_MASK


@pytest.mark.parametrize("name", ["mask", "clear"])
def test_a_change_of_flags_is_kept_and_the_event_linked(fifo, name):
    domain, control, array, first, second = fifo()
    array.script = [LEGAL[name]]
    domain.evtchn.send(second)
    assert array.u32[first] == LEGAL[name](PENDING | LINKED) | second
    assert control.u32[0] == 0, "the queue was not empty: nothing new to tell"


def test_busy_left_behind_by_the_guest_is_cleared(fifo):
    domain, _control, array, first, second = fifo()
    array.fetch_or32(first, BUSY)
    domain.evtchn.send(second)
    assert array.u32[first] == PENDING | LINKED | second


def test_a_tail_that_the_guest_unlinks_makes_the_event_the_head(fifo):
    domain, control, array, first, second = fifo()
    array.script = [LEGAL["unlink"]]
    domain.evtchn.send(second)
    assert array.u32[first] == PENDING
    assert control.u32[0] == 1 << 7
    assert control.u32[2 + 7] == second


def test_a_tail_that_is_unlinked_after_the_word_was_locked(fifo):
    domain, control, array, first, second = fifo()
    array.script = [LEGAL["mask"], LEGAL["unlink"]]
    domain.evtchn.send(second)
    assert array.u32[first] == PENDING | MASKED
    assert control.u32[2 + 7] == second


@settings(max_examples=100, deadline=None)
@given(names=st.lists(st.sampled_from(sorted(LEGAL)), max_size=4))
def check_legal(make, names):
    domain, control, array, first, second = make()
    array.script = [LEGAL[name] for name in names]
    domain.evtchn.send(second)
    word = array.u32[first]
    assert not word & BUSY
    if word & LINKED:
        assert link_of(word) == second
        assert not control.u32[0]
    else:
        assert link_of(word) == 0
        assert control.u32[0] == 1 << 7
        assert control.u32[2 + 7] == second
    assert array.u32[second] == PENDING | LINKED


def test_no_legal_race_loses_the_event(fifo):
    check_legal(fifo)


@settings(max_examples=100, deadline=None)
@given(names=st.lists(st.sampled_from(sorted(LEGAL | ILLEGAL)), max_size=30))
def check_hostile(make, names):
    domain, _control, array, _first, second = make()
    array.script = [(LEGAL | ILLEGAL)[name] for name in names]
    assert domain.evtchn.send(second) == 0
    assert array.exchanges <= 5


def test_a_guest_that_breaks_the_rules_costs_five_exchanges_at_most(fifo):
    check_hostile(fifo)


def test_a_word_that_changes_for_ever_is_given_up(fifo):
    domain, control, array, first, second = fifo()
    array.script = [ILLEGAL["reserved"]] * 100
    domain.evtchn.send(second)
    assert array.exchanges == 5
    assert not array.u32[first] & BUSY
    assert control.u32[0] == 0
