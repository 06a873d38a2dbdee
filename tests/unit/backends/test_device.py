"""Proves the part that all PV devices share: xenbus states from both sides, rings, event channels,
grants that are given up, work in other threads, and that a frontend that lies loses its device only.

The device of these tests answers each request of 16 bytes with its complement. Cannot see real
drivers; tests/system has them.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvmlite.abi.sched import SHUTDOWN_reboot
from hvmlite.backends.device import Backend, Device, DeviceError
from hvmlite.backends.ring import BackRing
from hvmlite.errors import UserError
from hvmlite.toolstack.devices.spec import DeviceSpec
from hvmlite.toolstack.domain import Domain
from hvmlite.toolstack.host import Host

from ..toolstack.conftest import Make
from .frontend import Frontend, FrontRing

ENTRY = 16
INITIALISING, INIT_WAIT, INITIALISED, CONNECTED, CLOSING, CLOSED = 1, 2, 3, 4, 5, 6


class Inverter(Backend):
    kind = "inv"

    def __init__(self, device: Device, log: list[str]) -> None:
        super().__init__(device)
        self.log = log
        self.gate: threading.Event | None = None

    def offer(self) -> Mapping[str, str | int]:
        return {"feature-bits": 128}

    def connect(self) -> None:
        device = self.device
        self.ring = BackRing(device.window(device.ring_refs(4)), ENTRY)
        self.port = device.bind(device.read_int("event-channel", 1, 131071), self.serve)
        self.log.append("connect")
        self.serve()

    def serve(self) -> None:
        while True:
            for request in self.ring.take(self.ring.size):
                if request.startswith(b"slow"):
                    self.device.work(lambda request=request: self.slow(request), self.finish)
                    continue
                if request.startswith(b"bug"):
                    raise ZeroDivisionError("a bug of ours")
                if request.startswith(b"bad"):
                    raise DeviceError("a bad request")
                self.ring.respond(bytes(~each & 0xFF for each in request))
            if self.ring.push():
                self.port.notify()
            if self.ring.idle():
                return

    def slow(self, request: bytes) -> bytes:
        assert self.gate is not None
        assert self.gate.wait(10)
        return request

    def finish(self, result: bytes | None, error: BaseException | None) -> None:
        self.log.append("finished")

    def disconnect(self) -> None:
        self.log.append("disconnect")

    def close(self) -> None:
        self.log.append("close")


class InverterSpec(DeviceSpec):
    kind = "inv"

    def __init__(self, devid: int = -1) -> None:
        self.devid = devid
        self.log: list[str] = []
        self.made: list[Inverter] = []

    def frontend_nodes(self, devid: int) -> Mapping[str, str]:
        return {"number": str(devid)}

    def backend_nodes(self, devid: int) -> Mapping[str, str]:
        return {"handle": str(devid)}

    def make(self, device: Device) -> Backend:
        self.made.append(Inverter(device, self.log))
        return self.made[-1]

    def describe(self) -> str:
        return "an inverter"


class Rig:
    """A domain with one inverter and the frontend of it."""

    def __init__(self, host: Host, domain: Domain) -> None:
        self.host = host
        self.domain = domain
        self.messages: list[str] = []
        domain.on_message = self.messages.append
        self.spec = InverterSpec()
        kind, devid = domain.attach(self.spec)
        self.front = Frontend(host, domain, kind, devid)
        self.ring: FrontRing

    def connect(self, pages: int = 1, *, state: int = INITIALISED) -> None:
        front = self.front
        front.state(INITIALISING)
        own = [front.page() for _ in range(pages)]
        self.ring = FrontRing(own, ENTRY)
        self.refs = [front.grant(page) for page in own]
        self.port = front.port()
        if pages == 1:
            front.remove("ring-page-order")
            front.write(ring_ref=self.refs[0])
        else:
            front.write(ring_page_order=pages.bit_length() - 1)
            front.write(**{f"ring_ref{i}": ref for i, ref in enumerate(self.refs)})
        front.write(event_channel=self.port)
        front.state(state)

    def ask(self, *requests: bytes) -> list[bytes]:
        for request in requests:
            self.ring.put(request.ljust(ENTRY))
        if self.ring.push():
            self.front.kick(self.port)
        return self.ring.take()


@pytest.fixture
def rig(host: Host, make: Make) -> Rig:
    return Rig(host, make())


def test_a_device_of_its_own(rig: Rig) -> None:
    front = rig.front
    assert front.backend_state() == INIT_WAIT
    assert front.backend("feature-bits") == "128"
    assert front.backend("handle") == "0"
    rig.connect()
    assert front.backend_state() == CONNECTED
    assert rig.ask(b"\x00\xff" * 8) == [b"\xff\x00" * 8]
    assert front.pending(rig.port)


@pytest.mark.parametrize("pages", [1, 2, 4])
def test_rings_that_wrap(rig: Rig, pages: int) -> None:
    rig.connect(pages, state=CONNECTED)
    for start in range(0, 1000, rig.ring.size - 1):
        asked = [struct.pack("<QQ", i, 0) for i in range(start, start + rig.ring.size - 1)]
        got = rig.ask(*asked)
        assert got == [bytes(~each & 0xFF for each in request) for request in asked]


def test_events_are_only_sent_if_wanted(rig: Rig) -> None:
    rig.connect()
    rig.front.pending(rig.port)
    rig.ring.pages[0].u32[3] = 100
    rig.ask(b"a")
    assert not rig.front.pending(rig.port)


def test_good_byes_and_another_driver(rig: Rig) -> None:
    front = rig.front
    for _ in range(3):
        rig.connect()
        assert rig.ask(b"x" * 16) == [b"\x87" * 16]
        assert front.grants_in_use() == 1
        front.state(CLOSING)
        assert front.backend_state() == CLOSING
        assert front.grants_in_use() == 0
        front.state(CLOSED)
        assert front.backend_state() == CLOSED
    assert rig.spec.log == ["connect", "disconnect"] * 3


def test_a_driver_that_begins_anew_without_a_word(rig: Rig) -> None:
    ports = rig.front.ports_in_use()
    for _ in range(5):
        rig.connect()
        assert rig.front.backend_state() == CONNECTED
        assert rig.front.ports_in_use() == ports + 1
        assert rig.front.grants_in_use() == 1
        assert rig.ask(b"x" * 16) == [b"\x87" * 16]
    assert rig.messages == []


def test_detach(rig: Rig) -> None:
    rig.connect()
    front = rig.front
    done = []
    thread = threading.Thread(target=lambda: done.append(rig.domain.detach("inv", 0)))
    thread.start()
    front.wait(lambda: front.backend_state() == CLOSING)
    assert front.backend("online") == "0"
    front.state(CLOSING)
    front.state(CLOSED)
    thread.join(10)
    assert done == [True]
    assert rig.spec.log == ["connect", "disconnect", "close"]
    assert not rig.host.call(lambda: rig.host.store.exists(front.home))
    assert not rig.host.call(lambda: rig.host.store.exists(front.there))
    assert front.grants_in_use() == 0
    with pytest.raises(UserError, match="has no inv 0"):
        rig.domain.detach("inv", 0)


def test_detach_by_force(rig: Rig) -> None:
    rig.connect()
    assert not rig.domain.detach("inv", 0, timeout=0.05)
    assert rig.front.backend_state() == CLOSING
    rig.domain.detach("inv", 0, timeout=0.05, force=True)
    rig.front.wait(lambda: rig.spec.log[-1] == "close")
    assert rig.front.grants_in_use() == 0


def test_detach_without_a_driver(rig: Rig) -> None:
    assert rig.domain.detach("inv", 0)
    assert rig.spec.log == ["close"]


def test_many_times(rig: Rig) -> None:
    rig.domain.detach("inv", 0)
    nodes = rig.host.call(rig.host.store.check)
    for _ in range(50):
        spec = InverterSpec()
        rig.spec = spec
        assert rig.domain.attach(spec) == ("inv", 0)
        rig.front = Frontend(rig.host, rig.domain, "inv", 0)
        rig.connect()
        rig.front.state(CLOSED)
        assert rig.domain.detach("inv", 0)
    assert rig.front.grants_in_use() == 0
    assert rig.front.ports_in_use() == 2
    assert rig.host.call(rig.host.store.check) == nodes == []


def test_numbers(rig: Rig) -> None:
    assert rig.domain.attach(InverterSpec()) == ("inv", 1)
    with pytest.raises(UserError, match="has a inv 1 already"):
        rig.domain.attach(InverterSpec(1))
    assert rig.domain.attach(InverterSpec(7)) == ("inv", 7)


# ---- frontends that lie -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ({"ring_ref": 4000}, "there is no reference 4000"),
        ({"ring_ref": "x"}, "its node ring-ref is 'x'"),
        ({"ring_ref": "9" * 40}, "its node ring-ref is"),
        ({"ring_ref": -1}, "its node ring-ref is '-1'"),
        ({"ring_page_order": 9}, "its node ring-page-order is '9'"),
        ({"ring_page_order": 2}, "its node ring-ref0 is missing"),
        ({"event_channel": 0}, "its node event-channel is '0'"),
        ({"event_channel": 1}, ""),
        ({"event_channel": 999}, ""),
    ],
)
def test_nodes_that_lie(rig: Rig, nodes: dict[str, object], said: str) -> None:
    front = rig.front
    page = front.page()
    front.write(ring_ref=front.grant(page), event_channel=front.port())
    front.write(**nodes)
    before = front.ports_in_use()
    front.state(INITIALISED)
    assert front.backend_state() == CLOSING
    assert front.grants_in_use() == 0
    assert front.ports_in_use() == before
    assert len(rig.messages) == 1
    assert said in rig.messages[0]
    where = f"/local/domain/0/error/backend/inv/{rig.domain.id}/0/error"
    assert rig.host.call(lambda: rig.host.store.read(where))
    # It may try again.
    rig.connect()
    assert rig.ask(b"x" * 16) == [b"\x87" * 16]


@pytest.mark.parametrize("produced", [257, 1 << 31, 0xFFFF_FFFF])
def test_an_index_that_cannot_be(rig: Rig, produced: int) -> None:
    rig.connect()
    rig.ring.pages[0].u32[0] = produced
    rig.front.kick(rig.port)
    assert rig.front.backend_state() == CLOSING
    assert "ring indexes that cannot be" in rig.messages[0]
    assert rig.front.grants_in_use() == 0
    rig.front.state(CLOSED)
    assert rig.front.backend_state() == CLOSED


def test_a_bad_request_ends_this_device_only(rig: Rig, host: Host, make: Make) -> None:
    other = Rig(host, make())
    other.connect()
    rig.connect()
    rig.ask(b"bad")
    assert rig.messages == [f"inv 0 of domain {rig.domain.id} is cut off: a bad request"]
    assert other.ask(b"x" * 16) == [b"\x87" * 16]


def test_messages_end(rig: Rig) -> None:
    for _ in range(30):
        rig.connect()
        rig.ask(b"bad")
    assert len(rig.messages) == 10
    assert "left out" in rig.messages[-1]


@given(st.lists(st.sampled_from(range(9)), max_size=12), st.booleans())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_sequence_of_states(rig: Rig, states: list[int], nodes: bool) -> None:
    if nodes:
        rig.connect()
    for state in states:
        rig.front.state(state)
    rig.front.state(CLOSED)
    assert rig.front.grants_in_use() == 0
    rig.connect()
    assert rig.ask(b"x" * 16) == [b"\x87" * 16]
    rig.front.state(CLOSED)
    rig.front.state(INITIALISING)


# ---- work in other threads ----------------------------------------------------------------------


def test_what_is_in_work_ends_first(rig: Rig) -> None:
    rig.connect()
    backend = rig.spec.made[0]
    backend.gate = threading.Event()
    rig.ask(b"slow", b"slow")
    rig.front.state(CLOSED)
    # The pages may not go while a thread could still write into them.
    assert rig.front.grants_in_use() == 1
    assert rig.front.backend_state() == CONNECTED
    backend.gate.set()
    rig.front.wait(lambda: rig.front.backend_state() == CLOSED)
    assert rig.front.grants_in_use() == 0
    assert rig.spec.log == ["connect", "disconnect", "finished", "finished"]


def test_a_domain_that_ends_meanwhile(rig: Rig) -> None:
    rig.connect()
    backend = rig.spec.made[0]
    backend.gate = threading.Event()
    rig.ask(b"slow")
    rig.domain.destroy()
    assert rig.spec.log == ["connect", "disconnect"]
    backend.gate.set()
    rig.front.wait(lambda: rig.spec.log[-1] == "close")


def test_a_restart_finds_its_devices(host: Host, make: Make) -> None:
    spec = InverterSpec()
    domain = make(devices=[spec], on_reboot="restart")
    first = domain.id
    host.call(lambda: domain.incarnation.domain.shutdown(SHUTDOWN_reboot))
    Frontend(host, domain, "inv", 0).wait(lambda: domain.id != first)
    assert len(spec.made) == 2
    assert spec.log == ["close"]
    assert Frontend(host, domain, "inv", 0).backend("handle") == "0"


def test_a_bug_of_ours_ends_the_device_alone(
    rig: Rig, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Rig(rig.host, make())
    other.connect()
    rig.connect()
    rig.ask(b"bug")
    assert rig.messages == [
        "inv 0 of domain 1 is cut off: internal error: ZeroDivisionError: a bug of ours"
    ]
    assert rig.front.backend_state() == CLOSING
    assert rig.front.grants_in_use() == 0
    assert "in serve" in capsys.readouterr().err
    assert other.ask(b"x") == [bytes(~each & 0xFF for each in b"x".ljust(ENTRY))]
    rig.connect()
    assert rig.front.backend_state() == CONNECTED


def test_a_bug_at_the_end_of_a_device_leaves_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug() -> None:
        raise ZeroDivisionError

    rig.connect()
    monkeypatch.setattr(rig.spec.made[0], "disconnect", bug)
    monkeypatch.setattr(rig.spec.made[0], "close", bug)
    rig.domain.detach("inv", 0, 0, force=True)
    devices = rig.domain.incarnation.devices
    assert devices is not None
    assert devices.keys() == []
    assert rig.front.grants_in_use() == 0


@pytest.mark.parametrize("value", ["x" * 5000, "a\udcff"])
def test_values_that_are_no_nodes(rig: Rig, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    spec = InverterSpec(1)
    monkeypatch.setattr(spec, "backend_nodes", lambda _devid: {"path": value})
    if len(value) < 10:
        rig.domain.attach(spec)
        assert (
            rig.host.call(
                lambda: rig.host.store.read(f"/local/domain/0/backend/inv/{rig.domain.id}/1/path")
            )
            == b"a\xff"
        )
    else:
        with pytest.raises(UserError, match="inv 1: .*E2BIG"):
            rig.domain.attach(spec)
        assert spec.log == ["close"]


def test_nothing_stays_in_the_store(rig: Rig) -> None:
    store = rig.host.store
    rig.connect()
    rig.ask(b"bad")
    home = f"/local/domain/{rig.domain.id}/device"
    errors = f"/local/domain/0/error/backend/inv/{rig.domain.id}/0"
    assert rig.host.call(lambda: store.exists(f"{errors}/error"))
    rig.domain.detach("inv", 0, 0, force=True)
    found = {
        path: rig.host.call(lambda path=path: store.exists(path) and store.list(path))  # type: ignore[misc]
        for path in (f"{home}/inv", "/local/domain/0/backend/inv", "/local/domain/0/error")
    }
    assert not any(found.values())
    assert rig.host.call(lambda: store.exists(home))
    assert rig.host.call(lambda: store.exists("/local/domain/0/backend"))
