"""Proves the 9pfs device: rings that wrap and fill, many requests at once, and frontends that lie.

The frontend is scripted. Cannot see Linux's driver (tests/system/test_p9.py).
"""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import pytest

from hvmlite.abi import p9
from hvmlite.abi.xen_9pfs import xen_9pfs_header
from hvmlite.errors import UserError
from hvmlite.hypervisor.memory import Page
from hvmlite.toolstack.devices.p9 import P9Spec, parse
from hvmlite.toolstack.domain import Domain
from hvmlite.toolstack.host import Host

from ...toolstack.conftest import Make
from ..frontend import Frontend
from .client import message
from .client import parse as parse_answer

INITIALISING, INIT_WAIT, INITIALISED, CONNECTED, CLOSING, CLOSED = 1, 2, 3, 4, 5, 6
IN_CONS, IN_PROD, OUT_CONS, OUT_PROD, ORDER, REFS = 0, 1, 16, 17, 32, 33
MSIZE = 4096


class Ring:
    """The frontend's side of one ring."""

    def __init__(self, front: Frontend, order: int, start: int = 0) -> None:
        self.front = front
        self.intf = front.page()
        self.pages: list[Page] = [front.page() for _ in range(1 << order)]
        self.size = 2048 << order
        words = self.intf.u32
        words[IN_CONS] = words[IN_PROD] = words[OUT_CONS] = words[OUT_PROD] = start
        words[ORDER] = order
        for i, page in enumerate(self.pages):
            words[REFS + i] = front.grant(page)
        self.ref = front.grant(self.intf)
        self.port = front.port()

    def _byte(self, at: int) -> tuple[memoryview, int]:
        return self.pages[at >> 12].u8, at & 4095

    def send(self, *messages: bytes) -> None:
        words = self.intf.u32
        produced = words[OUT_PROD]
        for byte in b"".join(messages):
            page, at = self._byte(self.size + produced % self.size)
            page[at] = byte
            produced = produced + 1 & 0xFFFFFFFF
        words[OUT_PROD] = produced
        self.front.kick(self.port)

    def answers(self) -> list[bytes]:
        words = self.intf.u32
        consumed = words[IN_CONS]
        data = bytearray()
        while consumed != words[IN_PROD]:
            page, at = self._byte(consumed % self.size)
            data.append(page[at])
            consumed = consumed + 1 & 0xFFFFFFFF
        words[IN_CONS] = consumed
        self.front.kick(self.port)
        found = []
        while data:
            size = xen_9pfs_header.unpack(bytes(data[:7])).size
            found.append(bytes(data[:size]))
            del data[:size]
        return found

    def ask(self, name: str, *values: object, tag: int = 1) -> tuple[object, ...]:
        self.send(message(name, *values, tag=tag))
        found: list[bytes] = []
        self.front.wait(lambda: bool(found.extend(self.answers()) or found))
        (answer,) = found
        return parse_answer(name, answer)


class Rig:
    def __init__(self, host: Host, domain: Domain, share: Path) -> None:
        self.host = host
        self.domain = domain
        self.messages: list[str] = []
        domain.on_message = self.messages.append
        self.spec = P9Spec("tag", share)
        kind, devid = domain.attach(self.spec)
        self.front = Frontend(host, domain, kind, devid)
        self.rings: list[Ring] = []

    def nodes(self, rings: int = 2, order: int = 1, start: int = 0) -> None:
        front = self.front
        front.state(INITIALISING)
        self.rings = [Ring(front, order, start) for _ in range(rings)]
        front.write(version=1, num_rings=rings)
        for i, ring in enumerate(self.rings):
            front.write(**{f"ring_ref{i}": ring.ref, f"event_channel_{i}": ring.port})

    def connect(self, rings: int = 2, order: int = 1, start: int = 0) -> Ring:
        self.nodes(rings, order, start)
        self.front.state(INITIALISED)
        assert self.front.backend_state() == CONNECTED, self.messages
        ring = self.rings[0]
        assert ring.ask("version", MSIZE, b"9P2000.L")[1] == b"9P2000.L"
        ring.ask("attach", 0, p9.P9_NOFID, b"", b"", 0)
        return ring


@pytest.fixture
def share(tmp_path: Path) -> Path:
    folder = tmp_path / "share"
    folder.mkdir()
    (folder / "file").write_bytes(b"0123456789" * 1000)
    return folder


@pytest.fixture
def rig(host: Host, make: Make, share: Path) -> Rig:
    return Rig(host, make(), share)


def test_nodes(rig: Rig, share: Path) -> None:
    front = rig.front
    assert front.backend_state() == INIT_WAIT
    assert front.backend("versions") == "1"
    assert int(front.backend("max-rings") or 0) >= 2
    assert front.backend("max-ring-page-order") == "9"
    assert front.backend("path") == str(share)
    assert front.backend("security_model") == "none"
    assert rig.host.call(lambda: rig.host.store.read(f"{front.home}/tag")) == b"tag"


@pytest.mark.parametrize("start", [0, 0xFFFF_FF00])
def test_rings_that_wrap(rig: Rig, start: int) -> None:
    ring = rig.connect(start=start)
    ring.ask("walk", 0, 1, [b"file"])
    ring.ask("lopen", 1, 0)
    for offset in range(0, 10_000, 997):
        # Either ring serves the same client.
        answer = rig.rings[offset % 2].ask("read", 1, offset, 1500)
        assert answer == ((b"0123456789" * 1000)[offset : offset + 1500],)
    rig.front.state(CLOSED)
    assert rig.front.grants_in_use() == 0


def test_many_at_once(rig: Rig) -> None:
    ring = rig.connect()
    ring.ask("walk", 0, 1, [b"file"])
    ring.ask("lopen", 1, 0)
    got: dict[int, bytes] = {}
    asked = {tag: message("read", 1, tag * 3, 100, tag=tag) for tag in range(100, 200)}
    waiting = list(asked.values())

    def more() -> bool:
        while waiting:
            words = ring.intf.u32
            used = words[OUT_PROD] - words[OUT_CONS] & 0xFFFFFFFF
            if used + len(waiting[0]) > ring.size:
                break
            ring.send(waiting.pop(0))
        for answer in ring.answers():
            got[struct.unpack_from("<H", answer, 5)[0]] = answer
        return len(got) == 100

    rig.front.wait(more)
    for tag, answer in got.items():
        assert parse_answer("read", answer)[0] == (b"0123456789" * 90)[tag * 3 :][:100]


def test_answers_wait_for_room(rig: Rig) -> None:
    ring = rig.connect(1)
    ring.ask("walk", 0, 1, [b"file"])
    ring.ask("lopen", 1, 0)
    ring.send(*(message("read", 1, 0, 1500, tag=tag) for tag in range(10)))
    rig.front.wait(lambda: ring.intf.u32[IN_PROD] - ring.intf.u32[IN_CONS] > 3000)
    found: list[bytes] = []
    rig.front.wait(lambda: len(found) == 10 or bool(found.extend(ring.answers())))
    assert all(len(each) == 1511 for each in found)


def test_a_client_that_comes_again(rig: Rig) -> None:
    for _ in range(3):
        ring = rig.connect()
        ring.ask("walk", 0, 1, [b"file"])
        ring.send(message("getattr", 1, 0), message("walk", 1, 2, []))
    rig.front.state(CLOSED)
    rig.front.wait(lambda: rig.front.grants_in_use() == 0)
    assert rig.messages == []
    assert rig.domain.detach("9pfs", 0)


def test_a_detachment_while_a_file_is_slow(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    gate = threading.Event()
    real = os.pread

    def pread(fd: int, count: int, offset: int) -> bytes:
        gate.wait(10)
        return real(fd, count, offset)

    monkeypatch.setattr(os, "pread", pread)
    ring = rig.connect()
    ring.ask("walk", 0, 1, [b"file"])
    ring.ask("lopen", 1, 0)
    ring.send(*(message("read", 1, 0, 10, tag=tag) for tag in range(8)))
    rig.front.state(CLOSED)
    assert rig.front.backend_state() == CONNECTED
    gate.set()
    rig.front.wait(lambda: rig.front.backend_state() == CLOSED)
    assert rig.front.grants_in_use() == 0
    rig.connect()


# ---- frontends that lie -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ({"version": 2}, "its version is '2', not '1'"),
        ({"num_rings": 0}, "its node num-rings is '0'"),
        ({"num_rings": 5}, "its node num-rings is '5'"),
        ({"num_rings": 3}, "its node ring-ref2 is missing"),
        ({"ring_ref1": 4000}, "there is no reference 4000"),
        ({"event_channel_1": "x"}, "its node event-channel-1 is 'x'"),
        ({"event_channel_1": 1}, ""),
    ],
)
def test_nodes_that_lie(rig: Rig, nodes: dict[str, object], said: str) -> None:
    rig.nodes()
    rig.front.write(**nodes)
    ports = rig.front.ports_in_use()
    rig.front.state(INITIALISED)
    assert rig.front.backend_state() == CLOSING
    assert rig.front.grants_in_use() == 0
    assert rig.front.ports_in_use() == ports
    assert len(rig.messages) == 1 and said in rig.messages[0]
    rig.connect()


@pytest.mark.parametrize(
    ("word", "value", "said"),
    [
        (ORDER, 0, "its ring_order is 0"),
        (ORDER, 10, "its ring_order is 10"),
        (ORDER, 0xFFFFFFFF, "its ring_order is 4294967295"),
        # The references behind the last are all 0, the console's: it may not be mapped 508 times.
        (ORDER, 9, "it is in use by another domain or too often"),
        (REFS, 4001, "there is no reference 4001"),
        (OUT_PROD, 4097, "ring indexes that cannot be"),
        (OUT_PROD, 3, "a request of 3 bytes"),
        (OUT_PROD, 7, "a request of 0 bytes"),
    ],
)
def test_a_page_of_indexes_that_lies(rig: Rig, word: int, value: int, said: str) -> None:
    rig.nodes()
    rig.rings[0].intf.u32[word] = value
    rig.front.state(INITIALISED)
    assert rig.front.backend_state() == CLOSING
    assert rig.front.grants_in_use() == 0
    assert len(rig.messages) == 1 and said in rig.messages[0]
    rig.connect()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (struct.pack("<IBH", 6, 110, 1), "a request of 6 bytes"),
        (struct.pack("<IBH", 0xFFFFFFFF, 110, 1), "a request of 4294967295 bytes"),
        (struct.pack("<IBH", 4097, 110, 1), "a request of 4097 bytes"),
        (struct.pack("<IBH", 100, 110, 1), "a request of 100 bytes of which 7 are there"),
        (struct.pack("<IBHIIH", 17, 110, 1, 0, 1, 17), "a malformed request of type 110"),
        (struct.pack("<IBHIIH", 17, 110, 1, 0, 1, 1), "a malformed request of type 110"),
        (struct.pack("<IBHIQI", 23, 118, 1, 0, 0, 1 << 31), "a malformed request of type 118"),
    ],
)
def test_requests_that_lie(rig: Rig, raw: bytes, said: str) -> None:
    rig.connect()
    rig.rings[1].send(raw)
    assert rig.front.backend_state() == CLOSING
    assert len(rig.messages) == 1 and said in rig.messages[0]
    rig.connect()


def test_a_reader_that_lies(rig: Rig) -> None:
    ring = rig.connect()
    ring.intf.u32[IN_CONS] = ring.intf.u32[IN_PROD] + 1
    ring.send(message("clunk", 77))
    assert rig.front.backend_state() == CLOSING
    assert "ring indexes that cannot be" in rig.messages[0]


def test_one_that_asks_without_end(rig: Rig) -> None:
    """Requests that are answered at once: each time only some, then others get their turn."""
    ring = rig.connect(1, 4)
    count = ring.size // 11
    ring.send(b"".join(message("clunk", 77, tag=1) for _ in range(count)))
    assert ring.intf.u32[OUT_PROD] != ring.intf.u32[OUT_CONS]
    found: list[bytes] = []
    rig.front.wait(lambda: len(found) == count or bool(found.extend(ring.answers())))
    assert rig.messages == []


# ---- what the user says -------------------------------------------------------------------------


def test_syntax() -> None:
    spec = parse("tag=t, path=/srv/x, security_model=none, type=xen_9pfsd, max-open-files=7")
    assert (spec.tag, spec.path, spec.readonly, spec.max_open_files) == (
        "t",
        Path("/srv/x"),
        False,
        7,
    )
    assert parse("tag=t,path=x,readonly").readonly
    assert parse("tag=t,path=x,readonly=1").readonly


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lacks tag="),
        ("tag=x", "lacks path="),
        ("tag=x,path=y,security_model=mapped-xattr", "security_model='mapped-xattr' is not"),
        ("tag=x,path=y,backend=1", "domain 0 only"),
        ("tag=x,path=y,type=other", "type='other' is not"),
        ("tag=x,path=y,max-space=5", "max-space= is for Xen's own daemon"),
        ("tag=x,path=y,max-open-files=-1", "is no number"),
        ("tag=x,path=y,readonly=yes", "is not 0 or 1"),
        ("tag=x,path=y,color=red", "no key 'color'"),
    ],
)
def test_bad_syntax(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(text)


def test_a_folder_that_is_none(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        make(devices=[P9Spec("t", tmp_path / "missing")])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Not a directory"):
        make(devices=[P9Spec("t", tmp_path / "file")])
