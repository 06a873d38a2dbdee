"""The backend of a PV block device: what it offers, its queues, and its image.

Facts: public/io/blkif.h for the nodes, a listing recorded from real Xen 4.17.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hvmlite.abi.blkif import SECTOR_SIZE, VDISK_CDROM, VDISK_READONLY
from hvmlite.backends.block.image import Image, Job, Operation
from hvmlite.backends.block.queue import MAX_INDIRECT_SEGMENTS, Queue
from hvmlite.backends.device import Backend, Device

if TYPE_CHECKING:
    from hvmlite.hypervisor.clock import Timer

MAX_RING_PAGE_ORDER = 4
MAX_QUEUES = 8
_UNUSED_PAGES_NS = 60_000_000_000
"""How often pages that a frontend has not used since the last time are given up."""
_SIZE_NS = 1_000_000_000
"""How often the image is asked for its size."""
_ERRORS_NS = 10_000_000_000
"""The user hears of errors of one kind once in that time."""


@dataclass(frozen=True, slots=True)
class BlockOptions:
    """How a disk is presented."""

    readonly: bool = False
    cdrom: bool = False
    discard: bool = True
    persistent: bool = False
    """Whether the frontend is offered persistent grants: it copies, and grants once."""


class BlockBackend(Backend):
    """One virtual block device."""

    kind = "vbd"

    def __init__(self, device: Device, image: Image, spec: BlockOptions) -> None:
        super().__init__(device)
        self.image = image
        self.spec = spec
        self.sectors = image.size // SECTOR_SIZE
        """Of 512 bytes, whatever the image's own are."""
        self._queues: list[Queue] = []
        self._timers: list[Timer] = []
        self._told: dict[int, int] = {}

    @property
    def discards(self) -> bool:
        """Whether the frontend may discard."""
        return self.spec.discard and self.image.discards and not self.spec.readonly

    @property
    def most_queues(self) -> int:
        """How many queues the frontend may have."""
        return min(len(self.device.domain.vcpus), MAX_QUEUES)

    def offer(self) -> Mapping[str, str | int]:
        """See `Backend.offer`."""
        discard = int(self.discards)
        nodes: dict[str, str | int] = {
            "feature-max-indirect-segments": MAX_INDIRECT_SEGMENTS,
            "multi-queue-max-queues": self.most_queues,
            "max-ring-page-order": MAX_RING_PAGE_ORDER,
            "feature-persistent": int(self.spec.persistent),
            "feature-flush-cache": 1,
            "feature-barrier": 1,
            "feature-discard": discard,
        }
        if discard:
            nodes["discard-granularity"] = self.image.discard_granularity
            nodes["discard-alignment"] = 0
            nodes["discard-secure"] = 0
        return nodes

    def connect(self) -> None:
        """See `Backend.connect`."""
        device = self.device
        self.image.refresh()
        self.sectors = self.image.size // SECTOR_SIZE
        info = (VDISK_READONLY if self.spec.readonly else 0) | (
            VDISK_CDROM if self.spec.cdrom else 0
        )
        device.write("sectors", self.sectors)
        device.write("info", info)
        device.write("sector-size", SECTOR_SIZE)
        device.write("physical-sector-size", self.image.physical_block)
        abi = device.protocol()
        # Linux's driver says that it can even if it was not asked to.
        can = device.read_int("feature-persistent", 0, 1, 0)
        persistent = self.spec.persistent and bool(can)
        queues = device.read_int("multi-queue-num-queues", 1, self.most_queues, 1)
        for i in range(queues):
            where = f"queue-{i}/" if queues > 1 else ""
            queue = Queue(
                self, where, abi, max_pages=1 << MAX_RING_PAGE_ORDER, persistent=persistent
            )
            self._queues.append(queue)
        self._every(_UNUSED_PAGES_NS, self._rotate)
        self._every(_SIZE_NS, self._look_at_size)
        for queue in self._queues:
            # What came before we listened.
            device.soon(queue.serve)

    def disconnect(self) -> None:
        """See `Backend.disconnect`."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for queue in self._queues:
            queue.close()
        self._queues.clear()
        if self.image.flush_at_end:
            # A guest that is destroyed has no power cut: what was answered is in the image.
            self.device.hold()
            self.image.start(Job(Operation.FLUSH, 0, 0, (), self._flushed))

    def _flushed(self, error: OSError | None) -> None:
        if error is not None:
            self.image_failed(0, error)
        self.device.unhold()

    def close(self) -> None:
        """See `Backend.close`."""
        self.image.close()

    # ---- from time to time ----------------------------------------------------------------------

    def _every(self, period: int, function: Callable[[], None]) -> None:
        timers = self.device.control.host.timers

        def arm() -> Timer:
            return timers.at(timers.now() + period, run)

        def run() -> None:
            self._timers[place] = arm()
            self.device.guarded(function)

        place = len(self._timers)
        self._timers.append(arm())

    def _rotate(self) -> None:
        for queue in self._queues:
            queue.rotate()

    def _look_at_size(self) -> None:
        if self.image.refresh():
            self.resized()

    def resized(self) -> None:
        """Tells the guest the image's new size; its driver looks when the state is written."""
        self.sectors = self.image.size // SECTOR_SIZE
        self.device.write("sectors", self.sectors)
        self.device.write("state", int(self.device.state))

    # ---- for the queues -------------------------------------------------------------------------

    def image_failed(self, sector: int, error: OSError) -> None:
        """Tells the user, not too often, that the image did not do what the guest asked."""
        now = self.device.control.host.timers.now()
        number = error.errno or 0
        if number not in self._told or now - self._told[number] >= _ERRORS_NS:
            self._told[number] = now
            self.device.tell(f"has an I/O error at sector {sector}: {error.strerror or error}")
