"""Proves the receive queue that carries our writes: chains, wrap-around, back-pressure and failure.

The peer is a virtio-net device written from the VIRTIO specification, in a thread. Cannot see
whether QEMU behaves like it, nor that translated code is dropped; the engine's tests do.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvmlite.engine.memory import MachineMemory
from hvmlite.engine.tcg import dma
from hvmlite.engine.tcg import layout as L
from hvmlite.engine.tcg.dma import DmaDevice
from hvmlite.errors import EngineError

MIB = 1 << 20
AREA = 0x10_0000
NEXT, WRITE = 1, 2


class Peer:
    """The device's end: takes a chain for each datagram, stores the header and the data."""

    def __init__(self, memory: MachineMemory, channel: socket.socket, index: int = 0) -> None:
        self._memory = memory
        self._channel = channel
        self._taken = index
        self.interrupts: list[tuple[int, int]] = []
        self.chains: list[tuple[int, int]] = []
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        if self._thread.ident is not None:
            self._thread.join(timeout=5)
        self._channel.close()

    def _serve(self) -> None:
        try:
            while data := self._channel.recv(1 << 17):
                self._take(data)
        except OSError:
            return
        except BaseException as error:
            self.failure = error

    def _take(self, data: bytes) -> None:
        u8 = self._memory.u8
        avail, used = AREA + L.RING_AVAIL, AREA + L.RING_USED
        flags, index = struct.unpack_from("<HH", u8, avail)
        assert flags == 1, "the driver wants no interrupts"
        assert 1 <= (index - self._taken) & 0xFFFF <= L.RING_ENTRIES // 2
        (head,) = struct.unpack_from("<H", u8, avail + 4 + 2 * (self._taken % L.RING_ENTRIES))
        buffers = []
        at: int | None = head
        while at is not None:
            address, length, flags, following = struct.unpack_from(
                "<QIHH", u8, AREA + L.RING_DESC + 16 * at
            )
            assert flags & WRITE
            buffers.append((address, length))
            at = following if flags & NEXT else None
        (scratch, header), (target, room) = buffers
        assert (scratch, header) == (AREA + L.SCRATCH, 12)
        assert len(data) == room, "the datagram fills its buffer"
        if target >= L.MSI_BASE:
            self.interrupts.append((target, int.from_bytes(data, "little")))
        else:
            u8[target : target + len(data)] = data
        self.chains.append((target, len(data)))
        entry = used + 4 + 8 * (self._taken % L.RING_ENTRIES)
        struct.pack_into("<II", u8, entry, head, 12 + len(data))
        self._taken = (self._taken + 1) & 0xFFFF
        struct.pack_into("<H", u8, used + 2, self._taken)


class Rig:
    """A device over a pool of its own, and its peer."""

    def __init__(self) -> None:
        self.memory = MachineMemory(4 * MIB)
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ours.setblocking(False)
        self.peer = Peer(self.memory, theirs)
        self.dead: str | None = None
        self.device = DmaDevice(self.memory, AREA, self.ours, self.check_alive)

    def check_alive(self) -> None:
        if self.dead:
            raise EngineError(self.dead)

    def close(self) -> None:
        self.peer.stop()
        self.device.close()
        self.memory.close()
        assert self.peer.failure is None, self.peer.failure


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dma, "_TIMEOUT", 0.2)


# --- ordinary work ---------------------------------------------------------------------------


def test_a_write_is_there_when_it_returns(rig: Rig) -> None:
    rig.peer.start()
    rig.device.write(0x20_0123, b"hello")
    assert bytes(rig.memory.u8[0x20_0122:0x20_0129]) == b"\0hello\0"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_long_writes_go_in_pieces(rig: Rig, kind: type) -> None:
    rig.peer.start()
    data = bytes(range(256)) * 1025
    rig.device.write(0x20_0001, kind(data))
    assert rig.memory.u8[0x20_0001 : 0x20_0001 + len(data)] == data
    assert [length for _, length in rig.peer.chains] == [0x10000] * 4 + [256]


def test_nothing_to_write(rig: Rig) -> None:
    rig.device.write(0x20_0000, b"")


def test_an_interrupt_is_a_message(rig: Rig) -> None:
    rig.peer.start()
    for cpu in (0, 1, 3, 255):
        rig.device.interrupt(cpu, 0x30)
    rig.device.write(0x20_0000, b"x")
    assert rig.peer.interrupts == [(0xFEE0_0000 | cpu << 12, 0x30) for cpu in (0, 1, 3, 255)]


def test_interrupts_may_queue_up_to_the_ring(rig: Rig) -> None:
    queue = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    count = min(L.RING_ENTRIES // 2, queue)
    for _ in range(count):
        rig.device.interrupt(0, 0x30)
    rig.peer.start()
    rig.device.write(0x20_0000, b"x")
    assert len(rig.peer.interrupts) == count


def test_the_indexes_wrap_around(rig: Rig) -> None:
    start = 0x10000 - 100
    rig.device._posted = start
    for ring in (L.RING_AVAIL, L.RING_USED):
        struct.pack_into("<H", rig.memory.u8, AREA + ring + 2, start)
    rig.peer._taken = start
    rig.peer.start()
    for i in range(300):
        rig.device.write(0x20_0000 + i, bytes([i % 251 + 1]))
    assert bytes(rig.memory.u8[0x20_0000 : 0x20_0000 + 300]) == bytes(
        i % 251 + 1 for i in range(300)
    )


@given(
    st.lists(
        st.tuples(st.integers(0, MIB), st.binary(min_size=1, max_size=300), st.booleans()),
        max_size=20,
    )
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_writes_against_a_bytearray(writes: list[tuple[int, bytes, bool]]) -> None:
    rig = Rig()
    rig.peer.start()
    model = bytearray(2 * MIB)
    for at, data, kick in writes:
        if kick:
            rig.device.interrupt(1, 0x30)
        rig.device.write(0x20_0000 + at, data)
        model[at : at + len(data)] = data
        assert bytes(rig.memory.u8[0x20_0000 + at : 0x20_0000 + at + len(data)]) == data
    assert rig.memory.u8[0x20_0000:0x40_0000] == model
    rig.close()


# --- failures --------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
def test_a_device_that_takes_nothing_is_reported(rig: Rig) -> None:
    start = time.monotonic()
    with pytest.raises(EngineError, match="does not take DMA"):
        rig.device.write(0x20_0000, b"x")
    assert time.monotonic() - start < 5


@pytest.mark.usefixtures("impatient")
def test_a_full_channel_is_reported(rig: Rig) -> None:
    start = time.monotonic()
    with pytest.raises(EngineError, match="does not take DMA"):
        rig.device.write(0x20_0000, bytes(MIB))
    assert time.monotonic() - start < 5


@pytest.mark.usefixtures("impatient")
def test_a_ring_full_of_interrupts_is_reported(rig: Rig) -> None:
    with pytest.raises(EngineError, match="does not take DMA"):
        for _ in range(L.RING_ENTRIES):
            rig.device.interrupt(0, 0x30)


def test_a_process_that_ended_is_reported_at_once(rig: Rig) -> None:
    rig.dead = "QEMU ended by signal 9: it printed nothing"
    start = time.monotonic()
    with pytest.raises(EngineError, match="ended by signal 9"):
        rig.device.write(0x20_0000, b"x")
    assert time.monotonic() - start < 5


def test_a_closed_channel_is_reported(rig: Rig) -> None:
    rig.peer.stop()
    with pytest.raises(EngineError, match="QEMU's DMA channel failed: "):
        rig.device.write(0x20_0000, b"x")
    rig.dead = "QEMU ended with status 1: no luck"
    with pytest.raises(EngineError, match="no luck"):
        rig.device.write(0x20_0000, b"x")


@pytest.mark.usefixtures("impatient")
def test_many_open_files_are_no_obstacle() -> None:
    """A host with many domains has descriptors beyond what select() can name."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1100:
        pytest.skip("may not open that many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1100), hard))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    os.dup2(ours.fileno(), 1050)
    ours.close()
    memory = MachineMemory(2 * MIB)
    channel = socket.socket(fileno=1050)
    try:
        channel.setblocking(False)
        device = DmaDevice(memory, AREA, channel, lambda: None)
        with pytest.raises(EngineError, match="does not take DMA"):
            device.write(0, bytes(MIB))
        device.close()
    finally:
        channel.close()
        theirs.close()
        memory.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- setting it up ---------------------------------------------------------------------------


class Registers:
    """The virtio-mmio registers of eight slots, one of which has a network device."""

    def __init__(self, slot: int | None, device: int = 1) -> None:
        self.slot = slot
        self.device = device
        self.writes: list[tuple[int, int]] = []

    def read32(self, address: int) -> int:
        slot, register = divmod(address - L.VIRTIO_MMIO_BASE, L.VIRTIO_MMIO_STRIDE)
        assert 0 <= slot < L.VIRTIO_MMIO_SLOTS
        if register == 0:
            return 0x74726976
        assert register == 8
        return self.device if slot == self.slot else 0

    def write32(self, address: int, value: int) -> None:
        assert self.slot is not None
        register = address - L.VIRTIO_MMIO_BASE - self.slot * L.VIRTIO_MMIO_STRIDE
        assert 0 <= register < 0x100
        self.writes.append((register, value))


@pytest.mark.parametrize("slot", [0, 5, 7])
def test_set_up_in_the_order_of_the_specification(rig: Rig, slot: int) -> None:
    registers = Registers(slot)
    rig.device.set_up(registers.read32, registers.write32)
    assert [value for register, value in registers.writes if register == 0x70] == [0, 3, 11, 15]
    # VERSION_1 (bit 32) is the one feature.
    at = registers.writes.index((0x24, 0))
    assert registers.writes[at : at + 4] == [(0x24, 0), (0x20, 0), (0x24, 1), (0x20, 1)]
    assert registers.writes[at + 4] == (0x70, 11)
    state = dict(registers.writes)
    assert (state[0x30], state[0x38], state[0x44]) == (0, L.RING_ENTRIES, 1)
    assert (state[0x80], state[0x84]) == (AREA + L.RING_DESC, 0)
    assert (state[0x90], state[0x94]) == (AREA + L.RING_AVAIL, 0)
    assert (state[0xA0], state[0xA4]) == (AREA + L.RING_USED, 0)
    order = [register for register, _ in registers.writes]
    assert order.index(0x44) > max(map(order.index, (0x38, 0x80, 0x90, 0xA0)))
    assert registers.writes[-1] == (0x70, 15)


@pytest.mark.parametrize(("slot", "device"), [(None, 1), (3, 2)])
def test_without_a_network_device(rig: Rig, slot: int | None, device: int) -> None:
    registers = Registers(slot, device)
    with pytest.raises(EngineError, match="no virtio-net device"):
        rig.device.set_up(registers.read32, registers.write32)
