"""A PV device of one's own: random numbers for a guest, over a ring.

    python examples/vrng.py KERNEL        # tests/guest/vrng.c is a kernel that has its driver

Explained line by line in docs/devices.md.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from hvmlite import DomainConfig, Host
from hvmlite.abi.layout import Struct, s32, u16, u32, u64
from hvmlite.backends.device import Backend, Device, DeviceError
from hvmlite.backends.ring import BackRing
from hvmlite.hypervisor.grant_table import BackendMapping
from hvmlite.toolstack.devices.spec import DeviceSpec


class vrng_request(Struct):
    """Fill `size` bytes at `offset` of the page that `ref` grants."""

    id: u64
    ref: u32
    offset: u16
    size: u16


class vrng_response(Struct):
    """`status` is 0."""

    id: u64
    status: s32


class VrngBackend(Backend):
    """The device: whatever its frontend does wrong raises, and cuts it off."""

    kind = "vrng"
    most = 4096

    def offer(self) -> Mapping[str, str | int]:
        return {"max-request-size": self.most}

    def connect(self) -> None:
        device = self.device
        ring = BackRing(device.window(device.ring_refs(1)), vrng_request.sizeof())
        self.ring: BackRing | None = ring
        self.port = device.bind(device.read_int("event-channel", 1, 131071), self.serve)
        self.serve()

    def serve(self) -> None:
        if (ring := self.ring) is None:
            return
        for raw in ring.take(ring.size):
            request = vrng_request.unpack(raw)
            if not 0 < request.size <= self.most - request.offset:
                raise DeviceError(f"{request.size} bytes at {request.offset} are not in one page")
            self.fill(ring, request, self.device.map(request.ref))
        if not ring.idle():
            # More came meanwhile; others get their turn first.
            self.device.soon(self.serve)

    def fill(self, ring: BackRing, request: vrng_request, page: BackendMapping) -> None:
        def done(data: bytes | None, error: BaseException | None) -> None:
            if error is not None:
                raise error
            if ring is not self.ring or data is None:
                return  # the frontend has gone meanwhile, and its page with it
            page.write(request.offset, data)
            self.device.unmap(page)
            ring.respond(vrng_response(request.id, 0).pack())
            if ring.push():
                self.port.notify()

        # May wait for entropy: in another thread.
        self.device.work(lambda: os.getrandom(request.size), done)

    def disconnect(self) -> None:
        self.ring = None


class VrngSpec(DeviceSpec):
    """What the toolstack attaches."""

    kind = "vrng"

    def backend_nodes(self, devid: int) -> Mapping[str, str]:
        return {}

    def make(self, device: Device) -> Backend:
        return VrngBackend(device)

    def describe(self) -> str:
        return "random numbers"


def main() -> None:
    with Host() as host:
        domain = host.create(DomainConfig(kernel=Path(sys.argv[1]), devices=[VrngSpec()]))
        domain.on_message = lambda text: print(text, file=sys.stderr)
        domain.start()
        domain.wait()
        print(domain.console.output.decode(errors="replace"), end="")


if __name__ == "__main__":
    main()
