"""Proves the console's backend over its ring: order, wrap-around, back-pressure, and that indexes
of a hostile guest cost it its own bytes and nothing else.

The guest is a model of the frontend; the page is a real one between two others that must not
change. Cannot see barriers, nor a guest that runs at the same moment.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.backends.console import INPUT_LIMIT, ConsoleBackend
from hvmlite.engine.memory import MachineMemory
from hvmlite.hypervisor.memory import Page

IN, OUT = 0, 1024
IN_SIZE, OUT_SIZE = 1024, 2048
IN_CONS, IN_PROD, OUT_CONS, OUT_PROD = 768, 769, 770, 771
M32 = 0xFFFF_FFFF


class Guest:
    """A frontend, and the backend that it talks to."""

    def __init__(self, memory: MachineMemory) -> None:
        self.memory = memory
        self.first = memory.allocate(3)
        self.page = Page(memory, self.first + 1)
        self.output: list[bytes] = []
        self.kicks = 0
        self.backend = ConsoleBackend(self.page, self._kick, self.output.append)

    def _kick(self) -> None:
        self.kicks += 1

    def close(self) -> None:
        for frame in (self.first, self.first + 2):
            assert not any(self.memory.u8[frame * 4096 : frame * 4096 + 4096])
        # Nothing lies behind the indexes but the connection state, which is the toolstack's.
        assert not any(self.page.u8[3088:])
        self.memory.release(self.first, 3)

    def start_at(self, out: int = 0, in_: int = 0) -> None:
        words = self.page.u32
        words[OUT_CONS] = words[OUT_PROD] = out & M32
        words[IN_CONS] = words[IN_PROD] = in_ & M32

    def write(self, data: bytes) -> int:
        """Puts what fits in the ring; returns how much did."""
        words = self.page.u32
        producer = words[OUT_PROD]
        room = OUT_SIZE - (producer - words[OUT_CONS] & M32)
        for byte in data[:room]:
            self.page.u8[OUT + producer % OUT_SIZE] = byte
            producer = producer + 1 & M32
        words[OUT_PROD] = producer
        return min(room, len(data))

    def read(self, limit: int = 1 << 20) -> bytes:
        """Takes what is in the input ring."""
        words = self.page.u32
        consumer = words[IN_CONS]
        waiting = words[IN_PROD] - consumer & M32
        assert waiting <= IN_SIZE
        data = bytearray()
        for _ in range(min(waiting, limit)):
            data.append(self.page.u8[IN + consumer % IN_SIZE])
            consumer = consumer + 1 & M32
        words[IN_CONS] = consumer
        return bytes(data)

    @property
    def said(self) -> bytes:
        return b"".join(self.output)


@pytest.fixture(scope="module")
def memory() -> Iterator[MachineMemory]:
    pool = MachineMemory(2 << 20)
    yield pool
    pool.close()


@pytest.fixture
def guest(memory: MachineMemory) -> Iterator[Guest]:
    made = Guest(memory)
    yield made
    made.close()


# --- output ----------------------------------------------------------------------------------


def test_output(guest: Guest) -> None:
    guest.write(b"Hello, ")
    guest.backend.on_event()
    guest.write(b"world\n")
    guest.backend.on_event()
    assert guest.output == [b"Hello, ", b"world\n"]
    assert guest.page.u32[OUT_CONS] == guest.page.u32[OUT_PROD] == 13


def test_a_kick_without_output(guest: Guest) -> None:
    guest.backend.on_event()
    assert (guest.output, guest.kicks) == ([], 0)
    assert guest.backend.drain() == 0


@pytest.mark.parametrize("start", [0, 1, 2047, 2048 - 10, M32 - 5, M32 - 4000, 1 << 31])
@pytest.mark.parametrize("size", [1, 11, 2047, 2048])
def test_output_wraps(guest: Guest, start: int, size: int) -> None:
    guest.start_at(out=start)
    data = bytes(i * 7 & 0xFF for i in range(size))
    assert guest.write(data) == size
    assert guest.backend.drain() == size
    assert guest.said == data
    assert guest.page.u32[OUT_CONS] == (start + size) & M32


def test_only_a_guest_that_may_wait_for_room_is_kicked(guest: Guest) -> None:
    guest.write(b"short")
    guest.backend.on_event()
    assert guest.kicks == 0
    assert guest.write(bytes(3000)) == OUT_SIZE
    guest.backend.on_event()
    assert guest.kicks == 1


@pytest.mark.parametrize("extra", [OUT_SIZE + 1, 5000, 1 << 31, M32])
@pytest.mark.parametrize("start", [0, 100, M32])
def test_output_indexes_that_cannot_be(guest: Guest, start: int, extra: int) -> None:
    guest.page.u32[OUT_CONS] = start
    guest.page.u32[OUT_PROD] = start + extra & M32
    guest.backend.on_event()
    assert guest.output == []
    # In step again: what it writes from now on is heard.
    guest.write(b"sane")
    guest.backend.on_event()
    assert guest.output == [b"sane"]


# --- input -----------------------------------------------------------------------------------


def test_input(guest: Guest) -> None:
    guest.backend.feed(b"ls\n")
    assert guest.kicks == 1
    assert guest.read() == b"ls\n"
    guest.backend.feed(b"")
    assert guest.kicks == 1


@pytest.mark.parametrize("start", [0, 1, 1023, 1024 - 10, M32 - 5, 1 << 31])
@pytest.mark.parametrize("size", [1, 11, 1023, 1024])
def test_input_wraps(guest: Guest, start: int, size: int) -> None:
    guest.start_at(in_=start)
    data = bytes(i * 7 & 0xFF for i in range(size))
    guest.backend.feed(data)
    assert guest.read() == data
    assert guest.backend.input_room == INPUT_LIMIT


def test_input_waits_for_a_guest_that_does_not_read(guest: Guest) -> None:
    data = bytes(i * 7 & 0xFF for i in range(5000))
    guest.backend.feed(data)
    assert guest.kicks == 1
    seen = guest.read(100)
    guest.backend.feed(b"more")
    assert guest.kicks == 2
    while piece := guest.read(300):
        seen += piece
        guest.backend.on_event()
    assert seen == data + b"more"


def test_a_full_ring_is_no_reason_to_kick(guest: Guest) -> None:
    guest.backend.feed(bytes(IN_SIZE))
    assert guest.kicks == 1
    guest.backend.feed(b"x")
    guest.backend.on_event()
    assert guest.kicks == 1


@pytest.mark.parametrize("room", [1, 2])
def test_the_last_byte_of_room_is_used(guest: Guest, room: int) -> None:
    guest.backend.feed(bytes(IN_SIZE - room))
    guest.backend.feed(b"xy")
    assert guest.read() == bytes(IN_SIZE - room) + b"xy"[:room]


def test_input_has_a_limit(guest: Guest) -> None:
    guest.backend.feed(bytes(1 << 20))
    assert guest.backend.input_room == IN_SIZE
    guest.backend.feed(bytes(1 << 20))
    guest.backend.feed(b"dropped")
    assert guest.backend.input_room == 0
    taken = 0
    while piece := guest.read():
        taken += len(piece)
        guest.backend.on_event()
    assert taken == IN_SIZE + INPUT_LIMIT


@pytest.mark.parametrize(
    ("consumer", "producer"), [(1, 0), (0, 1025), (0, M32), (M32, M32 - 1), (5, 1 << 31)]
)
def test_input_indexes_that_cannot_be(guest: Guest, consumer: int, producer: int) -> None:
    guest.page.u32[IN_CONS], guest.page.u32[IN_PROD] = consumer, producer
    guest.backend.feed(b"text")
    assert not any(guest.page.u8[:3072])
    assert guest.kicks == 0
    guest.start_at()
    guest.backend.on_event()
    assert guest.read() == b"text"


def test_after_the_end_nothing_is_touched(guest: Guest) -> None:
    """Input that is still on its way when the guest's pages go to somebody else."""
    guest.backend.feed(bytes(2000))
    guest.backend.close()
    before = guest.page.read(0, 4096)
    guest.page.u32[IN_CONS] = guest.page.u32[IN_PROD]
    guest.page.u32[OUT_PROD] = 5
    changed = guest.page.read(0, 4096)
    guest.backend.feed(b"late")
    guest.backend.on_event()
    assert guest.backend.drain() == 0
    assert guest.page.read(0, 4096) == changed != before
    assert (guest.output, guest.kicks) == ([], 1)


# --- any guest -------------------------------------------------------------------------------

HONEST = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.binary(max_size=300)),
        st.tuples(st.just("burst"), st.integers(0, 4000)),
        st.tuples(st.just("feed"), st.binary(max_size=300)),
        st.tuples(st.just("flood"), st.integers(0, 3000)),
        st.tuples(st.just("read"), st.integers(0, 2000)),
        st.tuples(st.just("kick"), st.just(0)),
    ),
    max_size=40,
)


@given(HONEST, st.integers(0, M32), st.integers(0, M32))
@settings(max_examples=50, deadline=None)
def test_nothing_is_lost_either_way(
    memory: MachineMemory, steps: list[tuple[str, bytes | int]], out: int, in_: int
) -> None:
    guest = Guest(memory)
    guest.start_at(out, in_)
    written, sent, seen = b"", b"", b""
    for kind, value in steps:
        if kind in ("write", "burst"):
            data = value if isinstance(value, bytes) else bytes(i & 0xFF for i in range(value))
            written += data[: guest.write(data)]
        elif kind in ("feed", "flood"):
            data = value if isinstance(value, bytes) else bytes(i & 0xFF for i in range(value))
            guest.backend.feed(data)
            sent += data
        elif kind == "read":
            assert isinstance(value, int)
            seen += guest.read(value)
        else:
            guest.backend.on_event()
    guest.backend.on_event()
    assert guest.said == written
    while piece := guest.read():
        seen += piece
        guest.backend.on_event()
    assert seen == sent
    guest.close()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from((IN_CONS, IN_PROD, OUT_CONS, OUT_PROD)), st.integers(0, M32)),
            st.tuples(st.just(-1), st.integers(0, 5000)),
        ),
        max_size=40,
    )
)
@settings(max_examples=60, deadline=None)
def test_a_hostile_guest_harms_nobody(memory: MachineMemory, steps: list[tuple[int, int]]) -> None:
    guest = Guest(memory)
    for index, value in steps:
        if index >= 0:
            guest.page.u32[index] = value
        else:
            guest.backend.feed(bytes(value))
        guest.backend.on_event()
        assert all(len(piece) <= OUT_SIZE for piece in guest.output)
        assert 0 <= guest.backend.input_room <= INPUT_LIMIT
    guest.close()
