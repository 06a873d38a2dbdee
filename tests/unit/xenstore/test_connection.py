"""Proves framing, back-pressure and the ways a connection ends, at the byte level.

Cannot see a real transport (test_ring, test_socket).
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.abi.xs_wire import (
    XENSTORE_ERROR_PROTO,
    XS_READ,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from hvmlite.xenstore import connection as connection_module
from hvmlite.xenstore.server import XenStore


class Recorder:
    """A transport that carries nothing and notes what it is told."""

    def __init__(self):
        self.calls = []

    def output_ready(self):
        self.calls.append("output")

    def reset(self):
        self.calls.append("reset")

    def failed(self, error):
        self.calls.append(("failed", error))

    def closed(self):
        self.calls.append("closed")


@given(st.lists(st.integers(1, 40), max_size=30))
@settings(max_examples=60)
def test_framing_does_not_depend_on_how_bytes_arrive(cuts):
    store = XenStore()
    connection = store.connect()
    data = b"".join(
        [
            b"\x0b\0\0\0\1\0\0\0\0\0\0\0\5\0\0\0/x\0ab",
            b"\x02\0\0\0\2\0\0\0\0\0\0\0\3\0\0\0/x\0",
            b"\x02\0\0\0\3\0\0\0\0\0\0\0\0\0\0\0",
        ]
    )
    at = 0
    for cut in cuts:
        connection.feed(data[at : at + cut])
        at += cut
    connection.feed(data[at:])
    expected = (
        b"\x0b\0\0\0\1\0\0\0\0\0\0\0\3\0\0\0OK\0"
        b"\x02\0\0\0\2\0\0\0\0\0\0\0\2\0\0\0ab"
        b"\x10\0\0\0\3\0\0\0\0\0\0\0\7\0\0\0EINVAL\0"
    )
    assert connection.pending_output == expected


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40))
@settings(max_examples=60)
def test_output_can_be_carried_in_any_pieces(pieces):
    store = XenStore()
    connection = store.connect()
    connection.feed(b"\x02\0\0\0\1\0\0\0\0\0\0\0\6\0\0\0/tool\0" * 5)
    whole = connection.pending_output
    carried = b""
    for piece in pieces:
        part = connection.peek_output(piece)
        assert len(part) == min(piece, connection.output_size)
        carried += part
        connection.consume_output(len(part))
    assert carried + connection.pending_output == whole
    assert connection.peek_output(0) == b""


def test_ids_are_echoed_in_replies_and_errors(dom0):
    for payload in (b"/tool\0", b"junk"):
        dom0.connection.feed(dom0.message(XS_READ, payload, tx=0, req_id=0xDEADBEEF))
        ((_, req_id, tx_id, _),) = dom0.messages()
        assert (req_id, tx_id) == (0xDEADBEEF, 0)
    dom0.connection.feed(dom0.message(XS_READ, payload, tx=0x1234, req_id=7))
    ((_, req_id, tx_id, _),) = dom0.messages()
    assert (req_id, tx_id) == (7, 0x1234)


class TestTooLong:
    def test_longest_payload_is_served(self, guest, refused):
        with refused("EINVAL"):
            guest.raw(XS_READ, b"x" * 4096)

    def test_one_more_ends_the_connection(self, store, guest, dom0):
        recorder = guest.connection.transport = Recorder()
        guest.watch("data", "t")
        guest.start()
        guest.connection.feed(b"\x02\0\0\0" + bytes(8) + b"\1\x10\0\0")
        assert recorder.calls[-1] == ("failed", XENSTORE_ERROR_PROTO)
        assert not guest.connection.wants_input
        assert guest.connection.watches == {}
        assert guest.connection.transactions == {}
        guest.connection.feed(guest.message(XS_READ, b"data\0"))
        assert guest.connection.pending_output == b""
        assert dom0.read("/local/domain/1/data") == b""
        domain = store.daemon.domains[1]
        assert domain.introduced
        assert (domain.outstanding, domain.watches, domain.transactions) == (0, 0, 0)

    def test_what_came_before_is_served(self, guest, store):
        good = guest.message(XS_WRITE, b"data/x\x001")
        guest.connection.feed(good + b"\x02\0\0\0" + bytes(8) + b"\xff\xff\xff\xff" + good)
        assert store.read("/local/domain/1/data/x") == b"1"
        assert not guest.connection.active


class TestOutstanding:
    def test_stalls_at_twenty_and_goes_on_when_read(self, guest):
        connection = guest.connection
        connection.feed(guest.message(XS_READ, b"data\0") * 30)
        assert connection.output_size == 20 * 16
        assert not connection.wants_input
        connection.consume_output(15)
        assert connection.output_size == 20 * 16 - 15
        connection.consume_output(1)
        assert connection.output_size == 20 * 16
        connection.consume_output(20 * 16)
        assert connection.output_size == 9 * 16
        assert connection.wants_input

    def test_transport_is_told_when_input_is_wanted_again(self, guest):
        recorder = guest.connection.transport = Recorder()
        guest.connection.feed(guest.message(XS_READ, b"data\0") * 20)
        assert not guest.connection.wants_input
        recorder.calls.clear()
        guest.connection.consume_output(16)
        assert recorder.calls == ["output"]
        assert guest.connection.wants_input

    def test_events_at_others_count_until_they_are_delivered(self, store, guest, other):
        store.set_perms("/local/domain/1/data", ["n1", "r2"])
        other.watch("/local/domain/1/data", "t")
        other.take_events()
        for index in range(30):
            guest.connection.feed(guest.message(XS_WRITE, b"data/%d\0" % index))
            guest.messages()
        assert store.list("/local/domain/1/data") == [str(i) for i in range(20)]
        assert not guest.connection.wants_input
        # Each event that is carried away lets one more request through.
        assert other.connection.output_size == 20 * 41 + 10
        other.connection.consume_output(41)
        assert len(store.list("/local/domain/1/data")) == 21
        assert len(other.take_events()) == 29
        assert len(store.list("/local/domain/1/data")) == 30
        guest.messages()
        assert store.daemon.domains[1].outstanding == 0

    def test_events_that_go_with_their_connection_do_not_count(self, store, guest, other):
        store.set_perms("/local/domain/1/data", ["n1", "r2"])
        other.watch("/local/domain/1/data", "t")
        other.take_events()
        for index in range(20):
            guest.write(f"data/{index}", b"")
        assert not guest.connection.wants_input
        store.release_domain(2)
        assert guest.connection.wants_input
        assert store.daemon.domains[1].outstanding == 0

    def test_domain_0_is_not_held_back_by_it(self, dom0):
        dom0.connection.feed(dom0.message(XS_READ, b"/tool\0") * 500)
        assert len(dom0.messages()) == 500


class TestUnreadOutput:
    def test_tool_that_does_not_read_is_not_served(self, dom0, store):
        store.write("/x", b"v" * 4000)
        connection = dom0.connection
        connection.feed(dom0.message(XS_READ, b"/x\0") * 1000)
        assert not connection.wants_input
        assert connection.output_size < connection_module.OUTPUT_HIGH + 4200
        assert len(dom0.messages()) == 1000

    def test_tool_that_never_reads_events_is_dropped(self, dom0, store, monkeypatch):
        monkeypatch.setattr(connection_module, "OUTPUT_MAX", 10000)
        recorder = dom0.connection.transport = Recorder()
        dom0.watch("/w", "token")
        for index in range(1000):
            store.write(f"/w/{index}", b"")
        assert not dom0.connection.is_open
        assert recorder.calls[-1] == "closed"
        store.write("/w/more", b"")

    def test_guest_that_never_reads_events_loses_some(self, guest, store):
        store.set_quota(1, "memory", 5000)
        guest.watch("data", "token")
        for index in range(1000):
            store.write(f"/local/domain/1/data/{index}", b"")
        assert guest.connection.output_size < 5100
        assert not guest.connection.wants_input
        assert all(m[0] == XS_WATCH_EVENT for m in guest.messages())


class TestTransport:
    def test_told_of_output_once_per_batch(self, dom0):
        recorder = dom0.connection.transport = Recorder()
        dom0.connection.feed(dom0.message(XS_READ, b"/tool\0") * 10)
        assert recorder.calls == ["output"]

    def test_told_of_an_event(self, dom0, store):
        dom0.watch("/w", "t")
        recorder = dom0.connection.transport = Recorder()
        store.write("/w", b"")
        assert recorder.calls == ["output"]

    def test_told_of_the_end(self, store, guest):
        recorder = guest.connection.transport = Recorder()
        store.release_domain(1)
        assert recorder.calls == ["closed"]

    def test_told_of_a_new_start(self, store, guest):
        recorder = guest.connection.transport = Recorder()
        store.introduce_domain(1)
        assert recorder.calls == ["reset"]

    def test_an_exception_in_one_does_not_lose_the_work_of_others(self, store, dom0, connect):
        second = connect(store)
        for peer in (dom0, second):
            peer.watch("/w", "t")
            peer.take_events()

        class Broken(Recorder):
            def output_ready(self):
                raise ZeroDivisionError

        dom0.connection.transport = Broken()
        recorder = second.connection.transport = Recorder()
        with pytest.raises(ZeroDivisionError):
            store.write("/w", b"")
        store.write("/elsewhere", b"")
        assert recorder.calls == ["output"]
