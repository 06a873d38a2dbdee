"""Writes and interrupts that reach the guest the way a device's would: by QEMU's own DMA.

QEMU's translator does not see stores that another process makes to guest memory, so code that the
host rewrites would run on in its old translation.  Stores by a QEMU device are seen.  A virtio-net
receive queue is such a device: its buffers say where, a datagram says what.  A four-byte buffer at
0xfee00000 and up is a message-signalled interrupt, which is how a running vCPU is kicked.

Facts: VIRTIO 1.1 sections 2.6 (split queues), 4.2 (MMIO), 5.1 (network); Intel SDM volume 3,
section 10.11 (message-signalled interrupts).
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable

from hvmlite.engine.memory import MachineMemory
from hvmlite.engine.tcg import layout as L
from hvmlite.errors import EngineError

_HEADER_SIZE = 12
_CHUNK = 0x10000
_F_NEXT = 1
_F_WRITE = 2
_NO_INTERRUPT = 1
_TIMEOUT = 10.0
_STUCK = "QEMU does not take DMA: its main loop is stuck"

_MAGIC = 0x74726976
_NET_DEVICE = 1
_FEATURES_OK = 8
_DRIVER_OK = 4
_REG_DEVICE_ID = 0x08
_REG_FEATURES_SEL = 0x24
_REG_FEATURES = 0x20
_REG_QUEUE_SEL = 0x30
_REG_QUEUE_NUM = 0x38
_REG_QUEUE_READY = 0x44
_REG_STATUS = 0x70
_REG_DESC = 0x80
_REG_AVAIL = 0x90
_REG_USED = 0xA0


class DmaDevice:
    """The receive queue of one engine process.

    Use it from one thread.  `area` is the byte offset of the process's private area in machine
    memory (below LOW_RAM_END, so that it is also its physical address).
    """

    def __init__(
        self,
        memory: MachineMemory,
        area: int,
        channel: socket.socket,
        check_alive: Callable[[], None],
    ) -> None:
        self._u8 = memory.u8
        self._u16 = memory.u8.cast("H")
        self._u64 = memory.u64
        self._area = area
        self._channel = channel
        self._writable = select.poll()
        self._writable.register(channel, select.POLLOUT)
        self._check_alive = check_alive
        self._desc = (area + L.RING_DESC) // 8
        self._avail = (area + L.RING_AVAIL) // 2
        self._used_index = (area + L.RING_USED) // 2 + 1
        self._posted = 0
        scratch = area + L.SCRATCH
        # Every chain is two descriptors: the virtio-net header to scratch, then the target.
        for i in range(0, L.RING_ENTRIES, 2):
            self._u64[self._desc + 2 * i] = scratch
            self._u64[self._desc + 2 * i + 1] = (
                _HEADER_SIZE | (_F_WRITE | _F_NEXT) << 32 | (i + 1) << 48
            )
        self._u16[self._avail] = _NO_INTERRUPT
        self._chains = L.RING_ENTRIES // 2

    def set_up(self, read32: Callable[[int], int], write32: Callable[[int, int], None]) -> None:
        """Finds the device and starts its receive queue; the callables reach L1's MMIO."""
        for slot in range(L.VIRTIO_MMIO_SLOTS - 1, -1, -1):
            base = L.VIRTIO_MMIO_BASE + slot * L.VIRTIO_MMIO_STRIDE
            if read32(base) == _MAGIC and read32(base + _REG_DEVICE_ID) == _NET_DEVICE:
                break
        else:
            raise EngineError("QEMU has no virtio-net device on its virtio-mmio bus")
        write32(base + _REG_STATUS, 0)
        write32(base + _REG_STATUS, 3)
        write32(base + _REG_FEATURES_SEL, 0)
        write32(base + _REG_FEATURES, 0)
        write32(base + _REG_FEATURES_SEL, 1)
        write32(base + _REG_FEATURES, 1)
        write32(base + _REG_STATUS, 3 | _FEATURES_OK)
        write32(base + _REG_QUEUE_SEL, 0)
        write32(base + _REG_QUEUE_NUM, L.RING_ENTRIES)
        for register, offset in (
            (_REG_DESC, L.RING_DESC), (_REG_AVAIL, L.RING_AVAIL), (_REG_USED, L.RING_USED),
        ):  # fmt: skip
            write32(base + register, self._area + offset)
            write32(base + register + 4, 0)
        write32(base + _REG_QUEUE_READY, 1)
        write32(base + _REG_STATUS, 3 | _FEATURES_OK | _DRIVER_OK)

    def _post(self, target: int, length: int) -> None:
        head = self._posted % self._chains * 2
        index = self._desc + 2 * (head + 1)
        self._u64[index] = target
        self._u64[index + 1] = length | _F_WRITE << 32
        self._u16[self._avail + 2 + self._posted % L.RING_ENTRIES] = head
        self._posted += 1
        self._u16[self._avail + 1] = self._posted & 0xFFFF

    def _in_flight(self) -> int:
        return (self._posted - self._u16[self._used_index]) & 0xFFFF

    def _send(self, data: bytes | memoryview) -> None:
        deadline = time.monotonic() + _TIMEOUT
        while True:
            try:
                self._channel.send(data)
                return
            except (BlockingIOError, InterruptedError):
                self._check_alive()
                if time.monotonic() > deadline:
                    raise EngineError(_STUCK) from None
                self._writable.poll(100)
            except OSError as error:
                self._check_alive()
                raise EngineError(f"QEMU's DMA channel failed: {error}") from error

    def _wait(self, below: int) -> None:
        """Returns once fewer than `below` chains are in flight."""
        spins = 0
        deadline = 0.0
        while self._in_flight() >= below:
            spins += 1
            if spins % 1000 == 0:
                self._check_alive()
                now = time.monotonic()
                deadline = deadline or now + _TIMEOUT
                if now > deadline:
                    raise EngineError(_STUCK)
                time.sleep(0.0001)

    def write(self, target: int, data: bytes | bytearray | memoryview) -> None:
        """Stores `data` at the physical address `target`; returns when it is there."""
        view = memoryview(data)
        for start in range(0, len(view), _CHUNK):
            part = view[start : start + _CHUNK]
            self._wait(self._chains)
            self._post(target + start, len(part))
            self._send(part)
        self._wait(1)

    def interrupt(self, cpu: int, vector: int) -> None:
        """Sends an edge-triggered interrupt to the CPU with that APIC id."""
        self._wait(self._chains)
        self._post(L.MSI_BASE | cpu << L.MSI_DESTINATION_SHIFT, 4)
        self._send(struct.pack("<I", vector))

    def close(self) -> None:
        """Drops the views."""
        self._u16.release()
        self._channel.close()
