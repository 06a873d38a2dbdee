"""Proves the block backend against a scripted frontend: both ABIs, rings of one and more pages,
several queues, every operation, persistent grants, errors of the image, the order of flush and
barrier; and that each way to break the protocol ends the device with a reason and nothing else.

Cannot see a real driver, nor speed; tests/system and benchmarks/block.py have them.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvmlite.abi.layout import Abi
from hvmlite.abi.sched import SHUTDOWN_reboot
from hvmlite.backends.block import grants, queue, raw
from hvmlite.backends.block.backend import BlockBackend
from hvmlite.errors import UserError
from hvmlite.toolstack.devices.disk import DiskSpec

from .conftest import (
    BARRIER,
    CLOSED,
    CLOSING,
    CONNECTED,
    DISCARD,
    EOPNOTSUPP,
    ERROR,
    FLUSH,
    INDIRECT,
    INIT_WAIT,
    OKAY,
    PATTERN,
    READ,
    SIZE,
    WRITE,
    Attach,
    Disk,
)

ABIS = [Abi.X86_64, Abi.X86_32]


def backend_of(disk: Disk) -> BlockBackend:
    devices = disk.domain.incarnation.devices
    assert devices is not None
    backend = devices._devices["vbd", 51712].backend
    assert isinstance(backend, BlockBackend)
    return backend


def test_nodes(attach: Attach) -> None:
    disk = attach()
    front = disk.front
    assert front.backend_state() == INIT_WAIT
    expected = {
        "feature-max-indirect-segments": "256",
        "max-ring-page-order": "4",
        "feature-persistent": "0",
        "feature-flush-cache": "1",
        "feature-barrier": "1",
        "feature-discard": "1",
        "dev": "xvda",
        "type": "phy",
        "mode": "w",
        "device-type": "disk",
    }
    assert {name: front.backend(name) for name in expected} == expected
    disk.connect()
    assert front.backend_state() == CONNECTED
    assert front.backend("sectors") == str(SIZE // 512)
    assert front.backend("sector-size") == "512"
    assert front.backend("info") == "0"


@pytest.mark.parametrize("abi", ABIS)
@pytest.mark.parametrize("persistent", [False, True])
def test_reads_and_writes(attach: Attach, image: Path, abi: Abi, persistent: bool) -> None:
    disk = attach(persistent=persistent)
    disk.connect(abi=abi, persistent=True)
    own, refs = disk.pages(3)
    segments = [(refs[0], 0, 7), (refs[1], 2, 5), (refs[2], 7, 7)]
    assert disk.ask(disk.request(READ, 77, 9, segments)) == {77: (READ, OKAY)}
    data = PATTERN[9 * 512 : 22 * 512]
    assert own[0].read(0, 4096) == data[:4096]
    assert own[1].read(0, 4096) == bytes(1024) + data[4096:6144] + bytes(1024)
    assert own[2].read(3584, 512) == data[6144:]
    own[0].write(0, b"\xaa" * 4096)
    answer = disk.ask(disk.request(WRITE, 1 << 63, 100, [(refs[0], 1, 3)]))
    assert answer == {1 << 63: (WRITE, OKAY)}
    assert image.read_bytes() == PATTERN[:51200] + b"\xaa" * 1536 + PATTERN[52736:]
    assert disk.front.grants_in_use() == 1 + (3 if persistent else 0)
    disk.front.state(CLOSING)
    assert disk.front.grants_in_use() == 0
    assert disk.messages == []


@pytest.mark.parametrize("abi", ABIS)
@pytest.mark.parametrize("operation", [READ, WRITE])
def test_indirect(attach: Attach, image: Path, abi: Abi, operation: int) -> None:
    """The answer names the operation inside, as Linux's driver wants it."""
    disk = attach()
    disk.connect(abi=abi)
    own, refs = disk.pages(40)
    for i, page in enumerate(own):
        page.write(0, bytes([i]) * 4096)
    segments = [(ref, 0, 7) for ref in refs]
    assert disk.ask(disk.indirect(operation, 5, 16, segments)) == {5: (operation, OKAY)}
    found = b"".join(page.read(0, 4096) for page in own)
    assert found == image.read_bytes()[8192 : 8192 + 40 * 4096]


def test_rings_that_wrap(attach: Attach) -> None:
    disk = attach()
    disk.connect(pages=2)
    own, refs = disk.pages(1)
    for sector in range(0, 2048, 8):
        assert disk.ask(disk.request(READ, sector, sector, [(refs[0], 0, 7)])) == {
            sector: (READ, OKAY)
        }
        assert own[0].read(0, 4096) == PATTERN[sector * 512 : sector * 512 + 4096]


def test_full_rings(attach: Attach, image: Path) -> None:
    """More than the ring holds, put while answers are gathered."""
    disk = attach()
    disk.connect()
    own, refs = disk.pages(32)
    for turn in range(8):
        requests = []
        for i, ref in enumerate(refs):
            own[i].write(0, bytes([turn * 32 + i & 0xFF]) * 4096)
            requests.append(disk.request(WRITE, i, i * 8, [(ref, 0, 7)]))
        answers = disk.ask(*requests)
        assert answers == dict.fromkeys(range(32), (WRITE, OKAY))
    assert image.read_bytes()[: 32 * 4096] == b"".join(
        bytes([224 + i & 0xFF]) * 4096 for i in range(32)
    )


def test_single_requests_for_long(attach: Attach) -> None:
    """Some of the events are used to look for a frontend that puts more."""
    disk = attach()
    disk.connect()
    _, refs = disk.pages(1)
    for i in range(200):
        assert disk.ask(disk.request(READ, i, 0, [(refs[0], 0, 0)])) == {i: (READ, OKAY)}


def test_more_queues(attach: Attach, make: Any, host: Any, image: Path) -> None:
    from hvmlite.toolstack.devices.disk import DiskSpec

    disk = Disk(host, make(vcpus=4), DiskSpec(target=str(image), vdev="xvda"))
    assert disk.front.backend("multi-queue-max-queues") == "4"
    disk.connect(queues=3)
    own, refs = disk.pages(3)
    for i in range(3):
        request = disk.request(READ, i, i * 8, [(refs[i], 0, 7)])
        assert disk.ask(request, queue=i) == {i: (READ, OKAY)}
        assert own[i].read(0, 4096) == PATTERN[i * 4096 : i * 4096 + 4096]


def test_pages_that_hold_code(attach: Attach) -> None:
    """They are written by the engine, which sees to it that the guest runs what is there now."""
    disk = attach()
    disk.connect()
    own, refs = disk.pages(2)
    partition = disk.domain.incarnation.domain.partition
    written = []
    real = partition.write

    def write(frame: int, offset: int, data: Any) -> None:
        written.append((frame, offset, len(data)))
        real(frame, offset, data)

    partition.write = write  # type: ignore[method-assign]
    partition.executed_frames[own[1].frame] = 1  # type: ignore[index]
    answer = disk.ask(disk.request(READ, 1, 0, [(refs[0], 0, 7), (refs[1], 4, 7)]))
    assert answer == {1: (READ, OKAY)}
    assert own[0].read(0, 4096) + own[1].read(2048, 2048) == PATTERN[:6144]
    assert (own[1].frame, 2048, 2048) in written


def test_persistent_grants_are_bounded_and_given_up(
    attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants, "MOST_KEPT", 4)
    disk = attach(persistent=True)
    disk.connect(persistent=True)
    _, refs = disk.pages(6)
    for i, ref in enumerate(refs):
        assert disk.ask(disk.request(READ, i, i, [(ref, 0, 0)])) == {i: (READ, OKAY)}
    assert disk.front.grants_in_use() == 1 + 4
    backend = backend_of(disk)
    disk.front.call(backend._rotate)
    disk.ask(disk.request(READ, 1, 1, [(refs[0], 0, 0)]))
    disk.front.call(backend._rotate)
    assert disk.front.grants_in_use() == 1 + 1


# --- flush, barrier, discard -----------------------------------------------------------------


def test_a_flush_comes_after_what_was_answered(
    attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[bytes] = []
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        flushed.append(os.pread(fd, 512, 0))
        real(fd)

    monkeypatch.setattr(raw.os, "fdatasync", fdatasync)
    disk = attach()
    disk.connect()
    own, refs = disk.pages(1)
    own[0].write(0, b"\x55" * 512)
    assert disk.ask(disk.request(FLUSH, 1, 0, [])) == {1: (FLUSH, OKAY)}
    assert flushed == []  # nothing was written
    assert disk.ask(disk.request(WRITE, 2, 0, [(refs[0], 0, 0)])) == {2: (WRITE, OKAY)}
    assert disk.ask(disk.request(FLUSH, 3, 0, [])) == {3: (FLUSH, OKAY)}
    assert flushed == [b"\x55" * 512]


def test_a_flush_that_fails(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    def fdatasync(fd: int) -> None:
        raise OSError(errno.EIO, "no more disk")

    monkeypatch.setattr(raw.os, "fdatasync", fdatasync)
    disk = attach()
    disk.connect()
    _, refs = disk.pages(1)
    disk.ask(disk.request(WRITE, 1, 0, [(refs[0], 0, 0)]))
    assert disk.ask(disk.request(FLUSH, 2, 0, [])) == {2: (FLUSH, ERROR)}
    # It is not forgotten that something was to be flushed.
    assert disk.ask(disk.request(FLUSH, 3, 0, [])) == {3: (FLUSH, ERROR)}
    # Linux says so once, and the next fdatasync succeeds though the data is gone.
    monkeypatch.setattr(raw.os, "fdatasync", lambda _fd: None)
    disk.ask(disk.request(WRITE, 4, 0, [(refs[0], 0, 0)]))
    assert disk.ask(disk.request(FLUSH, 5, 0, [])) == {5: (FLUSH, ERROR)}
    assert disk.messages == [
        f"vbd 51712 of domain {disk.domain.id} has an I/O error at sector 0: no more disk"
    ]


@pytest.mark.parametrize("operation", [BARRIER, FLUSH])
def test_a_write_with_a_barrier(
    attach: Attach, image: Path, operation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    monkeypatch.setattr(raw.os, "fdatasync", lambda fd: log.append(str(os.pread(fd, 1, 0)[0])))
    disk = attach()
    disk.connect()
    own, refs = disk.pages(3)
    for i, page in enumerate(own):
        page.write(0, bytes([i + 1]) * 512)
    requests = [
        disk.request(WRITE, 1, 0, [(refs[0], 0, 0)]),
        disk.request(operation, 2, 0, [(refs[1], 0, 0)]),
        disk.request(WRITE, 3, 0, [(refs[2], 0, 0)]),
    ]
    answers = disk.ask(*requests)
    assert answers == {1: (WRITE, OKAY), 2: (operation, OKAY), 3: (WRITE, OKAY)}
    assert log == ["1", "2"]
    assert image.read_bytes()[:512] == b"\3" * 512


def test_discard(attach: Attach, image: Path) -> None:
    disk = attach()
    disk.connect()
    assert disk.ask(disk.discard(1, 8, 16)) == {1: (DISCARD, OKAY)}
    assert image.read_bytes() == PATTERN[:4096] + bytes(8192) + PATTERN[12288:]
    assert disk.ask(disk.discard(2, 8, 16, flag=1)) == {2: (DISCARD, EOPNOTSUPP)}
    assert disk.ask(disk.discard(3, SIZE // 512 - 1, 2)) == {3: (DISCARD, ERROR)}
    assert disk.ask(disk.discard(4, 1, (1 << 64) - 1)) == {4: (DISCARD, ERROR)}


def test_no_discard(attach: Attach, image: Path) -> None:
    disk = attach(discard=False)
    disk.connect()
    assert disk.front.backend("feature-discard") == "0"
    assert disk.ask(disk.discard(1, 8, 16)) == {1: (DISCARD, EOPNOTSUPP)}
    assert image.read_bytes() == PATTERN


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_discard(
    attach: Attach, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The driver hears that it need not ask again; for the user that is no error."""

    def punch(image: raw.RawImage, offset: int, size: int) -> None:
        raise OSError(number, os.strerror(number))

    disk = attach()
    disk.connect()
    monkeypatch.setattr(raw.RawImage, "_punch", punch)
    assert disk.ask(disk.discard(1, 8, 16)) == {1: (DISCARD, EOPNOTSUPP)}
    assert disk.messages == []


# --- what a disk refuses ---------------------------------------------------------------------


def test_read_only(attach: Attach, image: Path) -> None:
    disk = attach(readonly=True, cdrom=True)
    disk.connect()
    assert disk.front.backend("info") == "5"
    assert disk.front.backend("mode") == "r"
    assert disk.front.backend("device-type") == "cdrom"
    own, refs = disk.pages(1)
    own[0].write(0, bytes(4096))
    assert disk.ask(disk.request(WRITE, 1, 0, [(refs[0], 0, 7)])) == {1: (WRITE, ERROR)}
    assert disk.ask(disk.request(BARRIER, 2, 0, [(refs[0], 0, 7)])) == {2: (BARRIER, ERROR)}
    assert disk.ask(disk.request(READ, 3, 0, [(refs[0], 0, 7)])) == {3: (READ, OKAY)}
    assert image.read_bytes() == PATTERN


@pytest.mark.parametrize("sector", [SIZE // 512 - 7, SIZE // 512, 1 << 40, (1 << 64) - 1])
def test_beyond_the_end(attach: Attach, image: Path, sector: int) -> None:
    disk = attach()
    disk.connect()
    _, refs = disk.pages(1)
    for operation in (READ, WRITE, BARRIER):
        answer = disk.ask(disk.request(operation, 1, sector, [(refs[0], 0, 7)]))
        assert answer == {1: (operation, ERROR)}
    assert image.read_bytes() == PATTERN


def test_unknown_operations_and_empty_requests(attach: Attach) -> None:
    disk = attach()
    disk.connect()
    for operation in (4, 7, 255):
        assert disk.ask(disk.request(operation, 1, 0, [])) == {1: (operation, EOPNOTSUPP)}
    assert disk.ask(disk.request(READ, 1, 0, [])) == {1: (READ, ERROR)}
    assert disk.messages == []


def test_errors_of_the_image_reach_guest_and_user(
    attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwritev(fd: int, views: object, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk = attach()
    disk.connect()
    _, refs = disk.pages(1)
    monkeypatch.setattr(raw.os, "pwritev", pwritev)
    for _ in range(20):
        assert disk.ask(disk.request(WRITE, 1, 3, [(refs[0], 0, 7)])) == {1: (WRITE, ERROR)}
    monkeypatch.undo()
    assert disk.messages == [
        f"vbd 51712 of domain {disk.domain.id} has an I/O error at sector 3: "
        "No space left on device"
    ]
    assert disk.ask(disk.request(WRITE, 1, 3, [(refs[0], 0, 7)])) == {1: (WRITE, OKAY)}


def test_a_file_that_was_cut_off(attach: Attach, image: Path) -> None:
    disk = attach()
    disk.connect()
    _, refs = disk.pages(1)
    backend = backend_of(disk)
    backend._look_at_size = lambda: None  # type: ignore[method-assign]
    os.truncate(image, 4096)
    assert disk.ask(disk.request(READ, 1, 64, [(refs[0], 0, 7)])) == {1: (READ, ERROR)}


def test_resize(attach: Attach, image: Path) -> None:
    disk = attach()
    disk.connect()
    os.truncate(image, 2 * SIZE)
    states: list[int] = []
    watch = disk.front.call(
        lambda: disk.host.store.watch(
            f"{disk.front.there}/state", lambda _path: states.append(1), 0
        )
    )
    disk.front.call(backend_of(disk)._look_at_size)
    assert disk.front.backend("sectors") == str(2 * SIZE // 512)
    assert disk.front.backend_state() == CONNECTED
    assert states
    disk.front.call(lambda: disk.host.store.unwatch(watch))
    _, refs = disk.pages(1)
    request = disk.request(READ, 1, 2 * SIZE // 512 - 8, [(refs[0], 0, 7)])
    assert disk.ask(request) == {1: (READ, OKAY)}


# --- what threads do -------------------------------------------------------------------------


def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is in the page cache, and the disk answers when the event is set."""
    gate = threading.Event()
    real = os.preadv

    def preadv(fd: int, views: Any, offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError
        assert gate.wait(10)
        return real(fd, views, offset)

    monkeypatch.setattr(raw.os, "preadv", preadv)
    return gate


def test_what_waits_for_the_disk(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = slow(monkeypatch)
    disk = attach()
    disk.connect()
    own, refs = disk.pages(2)
    disk.put(disk.request(READ, 1, 0, [(refs[0], 0, 7)]))
    disk.put(disk.request(WRITE, 2, 64, [(refs[1], 0, 7)]))
    disk.kick()
    assert disk.answers(1) == {2: (WRITE, OKAY)}
    gate.set()
    assert disk.answers(1) == {1: (READ, OKAY)}
    assert own[0].read(0, 4096) == PATTERN[:4096]
    disk.front.wait(lambda: disk.front.grants_in_use() == 1)


def test_a_frontend_that_goes_meanwhile(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = slow(monkeypatch)
    disk = attach()
    disk.connect()
    _, refs = disk.pages(1)
    disk.put(disk.request(READ, 1, 0, [(refs[0], 0, 7)]))
    disk.put(disk.request(BARRIER, 2, 0, [(refs[0], 0, 7)]))
    disk.kick()
    disk.front.state(CLOSED)
    # The page is the backend's until the disk has written it.
    assert disk.front.in_use(refs[0])
    gate.set()
    disk.front.wait(lambda: disk.front.backend_state() == CLOSED)
    assert disk.front.grants_in_use() == 0
    disk.connect()
    assert disk.ask(disk.request(FLUSH, 1, 0, [])) == {1: (FLUSH, OKAY)}


def test_a_grant_revoked_while_the_disk_works(
    attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest sees that the page is in use; if it does not care, the page stays what it was."""
    gate = slow(monkeypatch)
    disk = attach()
    disk.connect()
    own, refs = disk.pages(3)
    disk.put(disk.request(READ, 1, 0, [(ref, 0, 7) for ref in refs]))
    disk.kick()
    table = disk.domain.incarnation.domain.grants
    assert [table.frames[0].u32[2 * ref] & 0xFFFF for ref in refs] == [0x19] * 3
    disk.front.set_entry(refs[1], 0, 0, 0)
    assert disk.front.grants_in_use() == 1 + 3
    gate.set()
    assert disk.answers(1) == {1: (READ, OKAY)}
    assert b"".join(page.read(0, 4096) for page in own) == PATTERN[: 3 * 4096]
    assert [table.frames[0].u32[2 * ref] & 0xFFFF for ref in refs] == [1, 0, 1]
    assert disk.front.grants_in_use() == 1


@pytest.mark.parametrize("executed", [False, True])
def test_pages_that_hold_code_when_the_disk_has_answered(
    attach: Attach, monkeypatch: pytest.MonkeyPatch, executed: bool
) -> None:
    """Pages that hold code when a read begins, and such that only do when it ends."""
    gate = slow(monkeypatch)
    disk = attach()
    disk.connect()
    own, refs = disk.pages(3)
    partition = disk.domain.incarnation.domain.partition
    written: list[tuple[int, int, int]] = []
    partition.write = lambda frame, offset, data: written.append(  # type: ignore[method-assign]
        (frame, offset, len(data))
    )
    partition.contents_replaced = lambda frame, offset, size: written.append(  # type: ignore[method-assign]
        (frame, offset, size)
    )
    partition.executed_frames[own[1].frame] = executed  # type: ignore[index]
    disk.put(disk.request(READ, 1, 0, [(refs[0], 0, 7), (refs[1], 4, 7), (refs[2], 0, 7)]))
    disk.kick()
    assert written == []
    partition.executed_frames[own[1].frame] = True  # type: ignore[index]
    gate.set()
    assert disk.answers(1) == {1: (READ, OKAY)}
    assert (own[1].frame, 2048, 2048) in written


def test_answers_are_held_back_while_that_is_worth_it(
    attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frontend that goes on without a further request gets its answer late a few times only."""
    monkeypatch.setattr(queue.Queue, "_frontend_idle", lambda _queue: False)
    monkeypatch.setattr(queue, "_QUIET_NS", 2_000_000)
    disk = attach()
    disk.connect()
    _, refs = disk.pages(8)
    block = backend_of(disk)._queues[0]
    block._direct = 0
    learned = []
    for i in range(100):
        disk.ask(disk.request(READ, i, 0, [(refs[0], 0, 0)]))
        learned.append(block._next_direct)
    assert learned[0] == 1
    assert learned == sorted(learned)
    assert learned[-1] >= 16
    # Several at a time teach it otherwise.
    for _ in range(70):
        disk.ask(*[disk.request(READ, i, 0, [(ref, 0, 7)]) for i, ref in enumerate(refs)])
    assert block._next_direct == 1
    assert block._direct == 0


# --- frontends that lie ----------------------------------------------------------------------

Lie = Callable[[Disk], bytes]
LIES: dict[str, tuple[Lie, str]] = {
    "too many segments": (lambda d: d.request(READ, 1, 0, [], 12), "a request of 12 segments"),
    "no page has so many sectors": (
        lambda d: d.request(READ, 1, 0, [(d.pages(1)[1][0], 0, 8)]),
        "a segment of sectors 0 to 8",
    ),
    "first after last": (
        lambda d: d.request(WRITE, 1, 0, [(d.pages(1)[1][0], 5, 4)]),
        "a segment of sectors 5 to 4",
    ),
    "a grant that is none": (lambda d: d.request(READ, 1, 0, [(500, 0, 7)]), "grant not usable"),
    "a grant beyond the table": (
        lambda d: d.request(READ, 1, 0, [(0xFFFF_FFFF, 0, 7)]),
        "grant not usable",
    ),
    "a grant that is none in the middle": (
        lambda d: d.request(
            READ, 1, 0, [(ref, 0, 7) for ref in (d.pages(1)[1][0], 500, d.pages(1)[1][0])]
        ),
        "grant not usable",
    ),
    "an indirect request with a grant that is another domain's": (
        lambda d: d.indirect(
            WRITE,
            1,
            0,
            [
                (ref, 0, 7)
                for ref in (
                    *d.pages(20)[1],
                    d.front.grant(d.front.page(), domid=3),
                    *d.pages(3)[1],
                )
            ],
        ),
        "grant not usable",
    ),
    "read into what is granted for reading": (
        lambda d: d.request(READ, 1, 0, [(d.pages(1, readonly=True)[1][0], 0, 7)]),
        "read-only",
    ),
    "indirect of nothing": (lambda d: d.indirect(READ, 1, 0, []), "of 0 segments"),
    "indirect of too much": (lambda d: d.indirect(READ, 1, 0, [], 257), "of 257 segments"),
    "indirect of another kind": (
        lambda d: d.indirect(FLUSH, 1, 0, [(0, 0, 0)]),
        "an indirect request for operation 3",
    ),
    "indirect in indirect": (
        lambda d: d.indirect(INDIRECT, 1, 0, [(0, 0, 0)]),
        "an indirect request for operation 6",
    ),
    "segments in a page that is not granted": (
        lambda d: d.indirect(READ, 1, 0, [(0, 0, 0)])[:-32] + b"\xee" * 32,
        "grant not usable",
    ),
    "segments that are no grants": (
        lambda d: d.indirect(READ, 1, 0, [(0xFFFFFF, 0, 7)]),
        "grant not usable",
    ),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("persistent", [False, True])
def test_a_lie_ends_the_device(attach: Attach, image: Path, lie: str, persistent: bool) -> None:
    disk = attach(persistent=persistent)
    disk.connect(persistent=persistent)
    _, refs = disk.pages(1)
    disk.ask(disk.request(READ, 1, 0, [(refs[0], 0, 7)]))
    build, reason = LIES[lie]
    disk.put(build(disk))
    disk.kick()
    disk.front.wait(lambda: disk.front.backend_state() == CLOSING)
    assert len(disk.messages) == 1
    assert reason in disk.messages[0]
    assert disk.front.grants_in_use() == 0
    assert image.read_bytes() == PATTERN
    # A driver that begins anew is served again.
    disk.front.state(CLOSED)
    disk.connect()
    _, refs = disk.pages(1)
    assert disk.ask(disk.request(READ, 1, 0, [(refs[0], 0, 7)])) == {1: (READ, OKAY)}


@pytest.mark.parametrize(
    "nodes",
    [
        {"ring_ref": 12345},
        {"ring_ref": "x"},
        {"event_channel": 0},
        {"event_channel": 77},
        {"protocol": "ia64-abi"},
        {"multi_queue_num_queues": 9},
        {"multi_queue_num_queues": 0},
        {"ring_page_order": 5},
        {"ring_page_order": -1},
        {"feature_persistent": 2},
    ],
    ids=str,
)
def test_nodes_that_lie(attach: Attach, nodes: dict[str, object]) -> None:
    disk = attach()
    disk.connect()
    disk.front.state(CLOSED)
    disk.front.state(1)
    disk.front.write(event_channel=disk.front.port())
    disk.front.write(**nodes)
    disk.front.state(3)
    assert disk.front.backend_state() == CLOSING
    assert len(disk.messages) == 1
    assert disk.front.grants_in_use() == 0


def test_ring_indexes_that_cannot_be(attach: Attach) -> None:
    disk = attach()
    disk.connect()
    disk.rings[0].pages[0].u32[0] = 33
    disk.front.kick(disk.ports[0])
    assert "ring indexes" in disk.messages[0]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.binary(min_size=112, max_size=112), min_size=1, max_size=4))
def test_any_bytes(attach: Attach, image: Path, requests: list[bytes]) -> None:
    """Whatever is in the ring: the host lives, and no byte of the image that was not asked for."""
    disk = attach()
    disk.connect()
    for request in requests:
        disk.put(request)
    disk.kick()
    disk.front.call(lambda: None)
    assert disk.front.backend_state() in {CONNECTED, CLOSING}
    disk.front.state(CLOSED)
    disk.front.wait(lambda: disk.front.backend_state() == CLOSED)
    assert disk.front.grants_in_use() == 0
    disk.domain.destroy()


def test_limits_fit_each_other() -> None:
    assert queue.MAX_INDIRECT_SEGMENTS <= 4096 // 8


# --- what went wrong once ------------------------------------------------------------------------


def test_what_lies_behind_a_barrier_while_answers_are_gathered(
    attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The barrier ends while its queue polls for more requests, and none comes any more."""
    monkeypatch.setattr(queue, "_QUIET_NS", 300_000_000)
    monkeypatch.setattr(queue.Queue, "_frontend_idle", lambda _queue: False)
    disk = attach()
    disk.connect()
    _, refs = disk.pages(1)
    block = backend_of(disk)._queues[0]
    block._direct = 0
    for ident, operation in enumerate((BARRIER, READ, READ)):
        disk.put(disk.request(operation, ident, 0, [(refs[0], 0, 7)]))
    disk.kick()
    assert disk.answers(3) == {0: (BARRIER, OKAY), 1: (READ, OKAY), 2: (READ, OKAY)}


def test_a_frontend_that_goes_in_the_middle_of_a_barrier(
    attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        assert gate.wait(10)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    disk = attach()
    disk.connect()
    _, refs = disk.pages(1)
    disk.ask(disk.request(WRITE, 0, 0, [(refs[0], 0, 7)]))
    disk.put(disk.request(BARRIER, 1, 0, [(refs[0], 0, 7)]))
    disk.put(disk.request(READ, 2, 0, [(refs[0], 0, 7)]))
    disk.kick()
    disk.front.state(CLOSING)
    gate.set()
    disk.front.wait(lambda: disk.front.backend_state() == CLOSING)
    # Whatever was put off has been called by then.
    for _ in range(3):
        disk.host.call(lambda: None)
    assert disk.messages == []
    disk.connect()
    assert disk.ask(disk.request(READ, 3, 0, [(refs[0], 0, 7)])) == {3: (READ, OKAY)}


def test_a_restart_waits_for_what_is_under_way(
    attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old run of the guest has the image locked until the disk has answered."""
    gate = slow(monkeypatch)
    disk = attach()
    domain = disk.domain
    domain.config.on_reboot = "restart"
    disk.connect()
    _, refs = disk.pages(1)
    disk.put(disk.request(READ, 1, 0, [(refs[0], 0, 7)]))
    disk.kick()
    first, ended = domain.id, domain.wait
    disk.host.call(lambda: domain.incarnation.domain.shutdown(SHUTDOWN_reboot))
    disk.host.call(lambda: None)
    assert ended(0) is None
    with pytest.raises(UserError, match="restarts"):
        domain.attach(DiskSpec(target="/dev/null", vdev="xvdb"))
    gate.set()
    disk.front.wait(lambda: domain.id != first)
    assert ended(0) is None
    assert domain.incarnation.devices is not None
    assert domain.incarnation.devices.keys() == [("vbd", 51712)]


def test_a_guest_that_is_destroyed_while_its_restart_waits(
    attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = slow(monkeypatch)
    disk = attach()
    domain = disk.domain
    domain.config.on_reboot = "restart"
    disk.connect()
    _, refs = disk.pages(1)
    disk.put(disk.request(READ, 1, 0, [(refs[0], 0, 7)]))
    disk.kick()
    disk.host.call(lambda: domain.incarnation.domain.shutdown(SHUTDOWN_reboot))
    domain.destroy()
    gate.set()
    outcome = domain.wait(10)
    assert outcome is not None
    assert outcome.reason == "destroyed"
    disk.front.wait(lambda: not disk.host.call(lambda: disk.host.domains))


@pytest.mark.parametrize("gathering", [False, True])
def test_others_get_their_turn(
    attach: Attach, monkeypatch: pytest.MonkeyPatch, gathering: bool
) -> None:
    """A full ring of long requests is not carried out in one go."""
    disk = attach()
    disk.connect()
    host, block = disk.host, backend_of(disk)._queues[0]
    log: list[str] = []
    read_now = block._image.read_now

    def logged(views: Any, offset: int, size: int) -> bool:
        log.append("read")
        host.soon(lambda: log.append("other"))
        return read_now(views, offset, size)

    monkeypatch.setattr(block._image, "read_now", logged)
    monkeypatch.setattr(queue, "_SECTORS_AT_ONCE", 32)
    block._direct = 0 if gathering else 64
    _, refs = disk.pages(1)
    requests = [disk.request(READ, i, 0, [(refs[0], 0, 7)]) for i in range(32)]
    assert len(disk.ask(*requests)) == 32
    assert max(len(run) for run in " ".join(log).replace("other", ";").split(";")) < 5 * 5
