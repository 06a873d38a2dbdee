"""Proves the backend of a network interface with a frontend that does what a test says: frames both
ways, offloads, several queues, multicast, hashing, room that ends, and each way to lie.

Cannot see real drivers; tests/system has Linux's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvmlite.abi import netif as n
from hvmlite.backends.net.control import HashSettings, toeplitz
from hvmlite.backends.net.frame import Frame
from hvmlite.toolstack.host import Host

from ...toolstack.conftest import Make
from ..frontend import FrontRing
from .netfront import (
    CLOSED,
    CLOSING,
    CONNECTED,
    INIT_WAIT,
    MAC,
    OTHER,
    NetFront,
    RecordedVif,
    Recorder,
    ethernet,
    gso,
    tx,
)
from .packets import tcp, udp

OKAY, ERROR, NULL = n.NETIF_RSP_OKAY, n.NETIF_RSP_ERROR, n.NETIF_RSP_NULL
MCAST = bytes.fromhex("01005e000001")


class Rig:
    def __init__(self, host: Host, make: Make, **options: Any) -> None:
        self.end = Recorder(finished=options.pop("finished", False))
        self.front = NetFront(
            host, make(memory=24 << 20), RecordedVif(endpoint=self.end, **options)
        )

    @property
    def sent(self) -> list[bytes]:
        return [frame.data() for frame in self.end.frames]


@pytest.fixture
def rig(host: Host, make: Make) -> Rig:
    return Rig(host, make)


@pytest.fixture
def front(rig: Rig) -> NetFront:
    rig.front.connect()
    return rig.front


# ---- what should be -----------------------------------------------------------------------------


def test_nodes(rig: Rig) -> None:
    front = rig.front
    assert front.backend_state() == INIT_WAIT
    for name, value in {
        "feature-sg": "1", "feature-gso-tcpv4": "1", "feature-gso-tcpv6": "1",
        "feature-ipv6-csum-offload": "1", "feature-rx-copy": "1", "feature-xdp-headroom": "1",
        "feature-rx-flip": "0", "feature-multicast-control": "1",
        "feature-dynamic-multicast-control": "1", "feature-split-event-channels": "1",
        "multi-queue-max-queues": "2", "feature-ctrl-ring": "1", "handle": "0", "type": "vif",
        "hotplug-status": "connected", "mac": MAC.hex(":"),
    }.items():  # fmt: skip
        assert front.backend(name) == value, name


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("size", [14, 60, 4096, 4097, 9000, 65535])
def test_frames_both_ways(rig: Rig, split: bool, size: int) -> None:
    front = rig.front
    front.connect(split=split)
    assert front.backend_state() == CONNECTED
    data = ethernet(bytes(i * 31 & 0xFF for i in range(size - 14)))
    slots = front.send(data)
    assert [status for _, status in front.go()] == [OKAY] * slots
    assert rig.sent == [data]
    front.post(20)
    assert front.deliver(Frame([data], size)) == 1
    assert [each for each, _, _ in front.received()] == [data]
    assert front.pending(front.rx_ports[0])
    assert front.grants_in_use() == 2
    assert front.messages == []


def test_marks_of_use_are_gone(front: NetFront) -> None:
    front.send(ethernet(b"x" * 5000))
    front.go()
    front.post(20)
    front.deliver(Frame([ethernet(b"y" * 9000)], 9014))
    table = front.domain.incarnation.domain.grants
    for ref in front.pages:
        assert table.frames[ref // 512].u32[ref % 512 * 2] & 0x18 == 0


def test_many_frames_that_wrap(rig: Rig, front: NetFront) -> None:
    for start in range(0, 1200, 100):
        for i in range(start, start + 100):
            front.send(ethernet(struct.pack("<I", i) * 20))
        assert len(front.go()) == 100
    assert [struct.unpack_from("<I", data, 14)[0] for data in rig.sent] == list(range(1200))


def test_offloads_pass(rig: Rig, front: NetFront) -> None:
    data = tcp(4, bytes(9000))
    front.send(data, n.NETTXF_csum_blank | n.NETTXF_data_validated, [gso(1448)])
    assert [status for _, status in front.go()] == [OKAY, NULL, OKAY, OKAY]
    (frame,) = rig.end.frames
    assert (frame.gso_size, frame.gso_type, frame.csum_blank) == (1448, 1, True)
    front.post(20)
    assert front.deliver(frame) == 1
    ((got, flags, extra),) = front.received()
    assert got == data
    assert flags & n.NETRXF_csum_blank
    assert flags & n.NETRXF_data_validated
    info = n.netif_extra_info.unpack(extra[0])
    assert info.type == n.XEN_NETIF_EXTRA_TYPE_GSO
    assert n.netif_extra_gso.unpack(info.u).size == 1448


def test_offloads_of_an_endpoint_that_has_none(host: Host, make: Make) -> None:
    rig = Rig(host, make, finished=True)
    front = rig.front
    front.connect()
    front.send(udp(4, b"hello"), n.NETTXF_csum_blank)
    front.send(tcp(6, bytes(5000)), n.NETTXF_csum_blank, [gso(2000, 2)])
    front.go()
    assert rig.sent[0] == udp(4, b"hello", filled=True)
    assert [len(data) for data in rig.sent[1:]] == [2074, 2074, 1074]
    # One that has room for a part of a frame only gets the rest of it later.
    rig.end.room = 1
    front.send(tcp(4, bytes(5000)), n.NETTXF_csum_blank, [gso(2000)])
    front.send(ethernet(b"last" * 20))
    assert len(front.go()) == 3
    assert len(rig.end.frames) == 5
    rig.end.room = 100
    host.call(rig.end.has_room)
    front.settle()
    assert [len(data) for data in rig.sent[4:]] == [2054, 2054, 1054, 94]


def test_offloads_of_a_guest_that_has_none(rig: Rig) -> None:
    front = rig.front
    front.connect(
        feature_sg=0, feature_gso_tcpv4=0, feature_gso_tcpv6=0, feature_no_csum_offload=1,
        feature_ipv6_csum_offload=0,
    )  # fmt: skip
    front.post(20)
    blank = udp(6, b"hello")
    frames = [
        Frame([blank], len(blank), csum_blank=True),
        Frame([tcp(4, bytes(5000))], 5054, csum_blank=True, gso_type=1, gso_size=1400),
        Frame([ethernet(bytes(6000))], 6014),
    ]
    assert front.deliver(*frames) == 3
    got = front.received()
    assert got[0][0] == udp(6, b"hello", filled=True)
    assert [len(data) for data, _, _ in got[1:]] == [1454, 1454, 1454, 854]
    assert not any(flags & n.NETRXF_csum_blank for _, flags, _ in got)


def test_room_that_ends_on_the_way_out(rig: Rig, front: NetFront, host: Host) -> None:
    rig.end.room = 3
    for i in range(5):
        front.send(ethernet(bytes([i]) * 50))
    assert len(front.go()) == 3
    rig.end.room = 10
    host.call(rig.end.has_room)
    front.settle()
    assert [data[14] for data in rig.sent] == [0, 1, 2, 3, 4]
    assert len(front.tx[0].take()) == 2


def test_room_that_ends_on_the_way_in(rig: Rig, front: NetFront) -> None:
    frames = [Frame([ethernet(bytes([i]) * 9000)], 9014) for i in range(4)]
    front.post(7)
    rig.end.resumed = 0
    assert front.deliver(*frames) == 2
    front.post(1)
    assert rig.end.resumed == 0
    front.post(1)
    assert rig.end.resumed == 1
    assert front.deliver(*frames[2:]) == 1
    assert [data[14] for data, _, _ in front.received()] == [0, 1, 2]


def test_queues(rig: Rig, host: Host) -> None:
    front = rig.front
    front.connect(2)
    for queue in (0, 1):
        front.send(ethernet(bytes([queue]) * 50), queue=queue)
        assert front.go(queue) == [(1, OKAY)]
        front.post(120, queue)
    assert [data[14] for data in rig.sent] == [0, 1]

    def flow(version: int, port: int, sequence: int) -> bytes:
        data = tcp(version, b"x", sequence=sequence)
        at = 34 if version == 4 else 54
        return data[:at] + port.to_bytes(2, "big") + data[at + 2 :]

    for version in (4, 6):
        sent = [flow(version, i % 20, i) for i in range(80)]
        assert front.deliver(*[Frame([data], len(data)) for data in sent]) == 80
        found = [[data for data, _, _ in front.received(queue)] for queue in (0, 1)]
        assert sum(map(len, found)) == 80
        at = 34 if version == 4 else 54
        flows = [{data[at : at + 2] for data in each} for each in found]
        assert all(flows)
        assert not flows[0] & flows[1]
        front.post(80, 0)
        front.post(80, 1)


def test_headroom_for_a_program(rig: Rig, front: NetFront) -> None:
    front.write(xdp_headroom=256)
    front.state(7)
    assert front.backend_state() == 8
    front.state(CONNECTED)
    assert front.backend_state() == CONNECTED
    front.post(3)
    data = ethernet(bytes(range(256)) * 20)
    assert front.deliver(Frame([data], len(data))) == 1
    assert front.rx[0].pages[0].u8[64 + 2] | front.rx[0].pages[0].u8[64 + 3] << 8 == 256
    assert front.received()[0][0] == data


def test_reconnection(rig: Rig) -> None:
    front = rig.front
    for _ in range(3):
        front.connect()
        front.send(ethernet(b"x" * 50))
        assert front.go() == [(1, OKAY)]
        front.state(CLOSING)
        front.state(CLOSED)
        assert front.grants_in_use() == 0
    assert front.deliver(Frame([ethernet(b"x" * 50)], 64)) == 1
    assert front.domain.detach("vif", 0)
    assert rig.end.closed


# ---- multicast ----------------------------------------------------------------------------------


def mcast(add: bool, address: bytes, flags: int = 0) -> bytes:
    kind = n.XEN_NETIF_EXTRA_TYPE_MCAST_ADD if add else n.XEN_NETIF_EXTRA_TYPE_MCAST_DEL
    return n.netif_extra_info(kind, flags, n.netif_extra_mcast(address).pack()).pack()


def test_multicast(rig: Rig) -> None:
    front = rig.front
    front.connect(request_multicast_control=1)
    front.post(60)

    def heard(to: bytes) -> bool:
        front.deliver(Frame([ethernet(b"x" * 50, to)], 64))
        return bool(front.received())

    def ask(add: bool, address: bytes) -> int:
        front.put(tx(0, 0, n.NETTXF_extra_info), mcast(add, address))
        (_, status), (_, null) = front.go()
        assert null == NULL
        return status

    assert heard(OTHER)
    assert heard(b"\xff" * 6)
    assert not heard(MCAST)
    assert ask(True, MCAST) == OKAY
    assert heard(MCAST)
    assert ask(False, MCAST) == OKAY
    assert not heard(MCAST)
    front.write(request_multicast_control=0)
    assert heard(MCAST)
    front.write(request_multicast_control=1)
    assert not heard(MCAST)
    for i in range(64):
        assert ask(True, bytes([1, 0, 0x5E, 0, 0, i])) == OKAY
    assert ask(True, bytes([1, 0, 0x5E, 0, 1, 0])) == ERROR
    assert ask(True, bytes([1, 0, 0x5E, 0, 0, 5])) == OKAY
    assert rig.sent == []


# ---- hashing ------------------------------------------------------------------------------------

RSS_KEY = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)


@pytest.mark.parametrize(
    ("source", "target", "with_ports", "plain"),
    [
        ("66.9.149.187:2794", "161.142.100.80:1766", 0x51CCC178, 0x323E8FC2),
        ("199.92.111.2:14230", "65.69.140.83:4739", 0xC626B0EA, 0xD718262A),
    ],
)
def test_toeplitz_as_published(source: str, target: str, with_ports: int, plain: int) -> None:
    """The verification suite of Microsoft's receive-side scaling."""
    addresses = b"".join(
        bytes(int(x) for x in end.partition(":")[0].split(".")) for end in (source, target)
    )
    ports = b"".join(int(end.partition(":")[2]).to_bytes(2, "big") for end in (source, target))
    assert toeplitz(RSS_KEY, addresses) == plain
    assert toeplitz(RSS_KEY, addresses + ports) == with_ports


class Control:
    def __init__(self, front: NetFront) -> None:
        self.front = front
        page = front.page()
        self.ring = FrontRing([page], 16)
        self.port = front.port()
        front.write(ctrl_ring_ref=front.grant(page), event_channel_ctrl=self.port)

    def ask(self, kind: int, *data: int) -> tuple[int, int]:
        self.ring.put(n.xen_netif_ctrl_request(7, kind, (*data, 0, 0, 0)[:3]).pack())
        if self.ring.push():
            self.front.kick(self.port)
        self.front.settle()
        (raw,) = self.ring.take()
        answer = n.xen_netif_ctrl_response.unpack(raw)
        assert (answer.id, answer.type) == (7, kind)
        return answer.status, answer.data


def test_control_ring(rig: Rig) -> None:
    front = rig.front
    control = Control(front)
    front.connect(2)
    good, bad, none = 0, 2, 1
    assert control.ask(n.XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS) == (good, 15)
    assert control.ask(n.XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, 16) == (bad, 0)
    assert control.ask(n.XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, 15) == (good, 0)
    assert control.ask(n.XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, 9) == (bad, 0)
    assert control.ask(n.XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, 1) == (good, 0)
    key = front.data(RSS_KEY)
    assert control.ask(n.XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, key, 41) == (3, 0)
    assert control.ask(n.XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, 9999, 40) == (bad, 0)
    assert control.ask(n.XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, key, 40) == (good, 0)
    assert control.ask(n.XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE) == (good, 128)
    assert control.ask(n.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE, 0) == (bad, 0)
    assert control.ask(n.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE, 129) == (bad, 0)
    assert control.ask(n.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE, 4) == (good, 0)
    mapping = front.data(struct.pack("<4I", 1, 1, 1, 1))
    assert control.ask(n.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, mapping, 4, 1) == (bad, 0)
    assert control.ask(n.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, mapping, 4, 0) == (good, 0)
    wrong = front.data(struct.pack("<I", 2))
    assert control.ask(n.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, wrong, 1, 0) == (bad, 0)
    assert control.ask(n.XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE) == (none, 0)
    assert control.ask(99) == (none, 0)
    front.post(10, 1)
    data = tcp(4, b"hashed", filled=True)
    assert front.deliver(Frame([data], len(data))) == 1
    ((got, _, extra),) = front.received(1)
    assert got == data
    info = n.netif_extra_info.unpack(extra[0])
    assert info.type == n.XEN_NETIF_EXTRA_TYPE_HASH
    value = n.netif_extra_hash.unpack(info.u)
    expected = toeplitz(RSS_KEY, data[26:38])
    assert (value.type, value.algorithm) == (1, 1)
    assert int.from_bytes(value.value, "little") == expected


@given(st.binary(max_size=120))
def test_hash_of_anything(data: bytes) -> None:
    settings_ = HashSettings()
    settings_.types = 15
    flow = settings_.hash(data)
    assert 0 <= settings_.queue(flow) < 1


# ---- rate ---------------------------------------------------------------------------------------


def test_rate(host: Host, make: Make) -> None:
    rig = Rig(host, make, rate="1MB/s@100ms")
    front = rig.front
    front.connect()
    for _ in range(30):
        front.send(ethernet(bytes(9986)))
    assert len(front.go()) == 30
    assert len(rig.sent) == 10
    front.wait(lambda: len(rig.sent) == 30)
    assert len(front.tx[0].take()) == 60


# ---- frontends that lie -------------------------------------------------------------------------

Lie = Callable[[NetFront], None]


def chain(count: int, size: int = 100) -> Lie:
    def lie(front: NetFront) -> None:
        ref = front.data(b"x" * size)
        front.put(tx(ref, size * count, n.NETTXF_more_data))
        for i in range(1, count):
            front.put(tx(ref, size, n.NETTXF_more_data if i + 1 < count else 0))

    return lie


def extra(kind: int, flags: int = 0) -> bytes:
    return n.netif_extra_info(kind, flags, b"").pack()


def slots(*made: bytes) -> Lie:
    def lie(front: NetFront) -> None:
        front.put(*made)

    return lie


def with_data(**what: int) -> Lie:
    def lie(front: NetFront) -> None:
        front.put(tx(front.data(b"x" * 4096), **{"size": 64, **what}))

    return lie


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (with_data(offset=4095), "leaves its page"),
        (with_data(size=4097), "leaves its page"),
        (with_data(size=100, flags=n.NETTXF_more_data), "has no end"),
        (chain(21), "more than 20 slots"),
        (chain(200), "more than 20 slots"),
        (slots(tx(8, 64, n.NETTXF_extra_info)), "information is missing"),
        (slots(tx(8, 64, n.NETTXF_extra_info), extra(0)), "of type 0"),
        (slots(tx(8, 64, n.NETTXF_extra_info), extra(5)), "of type 5"),
        (slots(tx(8, 64, n.NETTXF_extra_info), extra(255, 1), extra(1)), "of type 255"),
        (slots(tx(8, 64, n.NETTXF_extra_info), gso(0)), "GSO size of 0"),
        (slots(tx(8, 64, n.NETTXF_extra_info), gso(1000, 3)), "GSO type of 3"),
        (slots(tx(8, 64, n.NETTXF_extra_info), gso(1000, 1, 1)), "information is missing"),
        (
            slots(tx(8, 9000, n.NETTXF_more_data), tx(8, 4096, offset=1)),
            "leaves its page",
        ),
    ],
)
def test_lies_that_cut_off(rig: Rig, front: NetFront, lie: Lie, said: str) -> None:
    lie(front)
    front.go()
    assert front.backend_state() == CLOSING
    assert len(front.messages) == 1
    assert said in front.messages[0]
    assert rig.sent == []
    assert front.grants_in_use() == 0
    front.connect()
    front.send(ethernet(b"x" * 50))
    assert front.go() == [(1, OKAY)]


@pytest.mark.parametrize("produced", [257, 1 << 31, 0xFFFF_FFFF])
@pytest.mark.parametrize("ring", ["tx", "rx"])
def test_indexes_that_cannot_be(front: NetFront, produced: int, ring: str) -> None:
    (front.tx if ring == "tx" else front.rx)[0].pages[0].u32[0] = produced
    front.kick(front.tx_ports[0])
    front.settle()
    front.deliver(Frame([ethernet(b"x" * 50)], 64))
    assert front.backend_state() == CLOSING
    assert "ring indexes that cannot be" in front.messages[0]
    assert front.grants_in_use() == 0


@pytest.mark.parametrize(
    "lie",
    [
        slots(tx(4000, 64)),
        slots(tx(2, 64)),
        slots(tx(0xFFFF_FFFF, 64)),
        with_data(size=13),
        with_data(size=0),
        chain(19),
        slots(tx(8, 100, n.NETTXF_more_data), tx(8, 200)),
    ],
)
def test_lies_that_cost_the_packet(rig: Rig, front: NetFront, lie: Lie) -> None:
    lie(front)
    front.send(ethernet(b"x" * 50))
    answers = front.go()
    assert {status for _, status in answers[:-1]} == {ERROR}
    assert answers[-1] == (1, OKAY)
    assert rig.sent == [ethernet(b"x" * 50)]
    assert front.backend_state() == CONNECTED


def test_grants_that_are_not_ours(rig: Rig, front: NetFront) -> None:
    page = front.page()
    theirs = front.grant(page, domid=7)
    front.set_entry(300, 1, 0, 1 << 30)
    front.put(tx(theirs, 64), tx(300, 64))
    assert front.go() == [(0, ERROR), (0, ERROR)]
    readonly = front.grant(page, readonly=True)
    for identifier, ref in enumerate((theirs, 300, readonly, 0xFFFF_FFFF)):
        front.rx[0].put(n.netif_rx_request(identifier, 0, ref).pack())
    front.rx[0].push()
    assert front.deliver(*[Frame([ethernet(b"x" * 50)], 64)] * 4) == 4
    raw = front.rx[0].take()
    assert [struct.unpack("<HHHh", each)[3] for each in raw] == [ERROR] * 4
    assert rig.sent == []


@pytest.mark.parametrize(
    "nodes",
    [
        {"request_rx_copy": 0},
        {"tx_ring_ref": 4000},
        {"rx_ring_ref": "x"},
        {"event_channel_tx": 999},
        {"event_channel_rx": 0},
        {"multi_queue_num_queues": 3},
        {"multi_queue_num_queues": 0},
        {"feature_sg": 2},
        {"xdp_headroom": 5000},
        {"ctrl_ring_ref": 4000},
        {"ctrl_ring_ref": 8},
    ],
)
def test_nodes_that_lie(rig: Rig, nodes: dict[str, object]) -> None:
    front = rig.front
    before = front.ports_in_use()
    front.connect(**nodes)  # type: ignore[arg-type]
    assert front.backend_state() == CLOSING
    assert len(front.messages) == 1
    assert front.grants_in_use() == 0
    assert front.ports_in_use() == before


@given(st.lists(st.binary(min_size=12, max_size=12), max_size=40))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_anything_on_the_ring(rig: Rig, raw: list[bytes]) -> None:
    front = rig.front
    front.state(CLOSED)
    front.connect()
    front.put(*raw)
    answers = front.go()
    assert len(answers) == len(raw) or front.backend_state() == CLOSING
    front.state(CLOSED)
    assert front.grants_in_use() == 0
