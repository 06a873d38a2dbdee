"""Proves that no argument and no content of a shared page gets more out of us than an errno.

Random hypercalls with random arguments alternate with random bytes in all shared pages. That the
answers are Xen's is test_answers.py's business.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.abi import errno as errnos
from hvmlite.abi.layout import Abi
from hvmlite.abi.xen import VIRQ_TIMER

ERRNOS = {-value for name, value in vars(errnos).items() if name.startswith("XEN_E")}
SMALL = st.integers(0, 70)
WORD = st.one_of(SMALL, st.sampled_from([0x7FF0, 0x7FF1, 0x100, 0x110, 0xFFFFFFFF]))
PAGES = ("shared_info", 0x100, 0x110, 0x111)
STEPS = st.one_of(
    st.tuples(st.just("call"), st.integers(0, 15), st.lists(WORD, min_size=6, max_size=6)),
    st.tuples(st.just("scribble"), st.sampled_from(PAGES), SMALL, st.integers(0, 0xFFFFFFFF)),
    st.tuples(st.just("fill"), st.sampled_from(PAGES), st.integers(0, 255)),
    st.tuples(st.just("notify")),
    st.tuples(st.just("timer"), st.integers(0, 1)),
    st.tuples(st.just("dump")),
)


def page_of(domain, where):
    return domain.shared_info if where == "shared_info" else domain.memory.pages[where]


@settings(max_examples=120, deadline=None)
@given(
    layout=st.sampled_from(list(Abi)),
    fifo=st.booleans(),
    steps=st.lists(STEPS, min_size=10, max_size=50),
)
def check(worlds, layout, fifo, steps):
    domain = worlds().new_domain(layout)
    for gfn in PAGES[1:]:
        domain.add_page(gfn)
    bystander = domain.add_page(0x112)
    bystander.write(0, b"\xa5" * 4096)
    backend = domain.evtchn.alloc_for_backend(lambda: None)
    domain.evtchn.bind_virq(VIRQ_TIMER, 0)
    if fifo:
        domain.evtchn.init_control(0, 0x100, 0)
        domain.evtchn.expand_array(0x110)
    for name, *arguments in steps:
        match name:
            case "call":
                op, words = arguments
                for i, word in enumerate(words):
                    domain.memory.write(domain.arg + 4 * i, word.to_bytes(4, "little"))
                result = domain.call(op, domain.arg)
                assert result == 0 or result in ERRNOS
            case "scribble":
                where, index, value = arguments
                page_of(domain, where).u32[index] = value
            case "fill":
                where, value = arguments
                page_of(domain, where).write(0, bytes([value]) * 4096)
            case "notify":
                backend.notify()
            case "timer":
                domain.evtchn.send_virq(domain.vcpus[arguments[0]], VIRQ_TIMER)
            case "dump":
                list(domain.evtchn.ports())
    assert bystander.read(0, 4096) == b"\xa5" * 4096


def test_nothing_a_guest_does_raises(worlds):
    check(worlds)


@settings(max_examples=60, deadline=None)
@given(op=st.integers(0, 2**64 - 1), address=st.integers(0, 2**64 - 1))
def check_addresses(worlds, op, address):
    result = worlds().new_domain().call(op, address)
    assert result == 0 or result in ERRNOS


def test_any_operation_with_any_pointer(worlds):
    check_addresses(worlds)
