"""The devices of one domain: their nodes in xenstore, as xl writes them, and their backends.

Used in the host loop's thread. Facts: docs/misc/xenstore-paths.pandoc, a listing recorded from
real Xen 4.17 with xl.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hvmlite.abi.xenbus import XenbusState
from hvmlite.backends.device import Device
from hvmlite.backends.workers import WorkerPool
from hvmlite.errors import UserError
from hvmlite.xenstore.errors import XenStoreError

if TYPE_CHECKING:
    from hvmlite.hypervisor.control import Control, Domain
    from hvmlite.toolstack.devices.spec import DeviceSpec
    from hvmlite.xenstore.server import Accessor, XenStore

Key = tuple[str, int]
_KEPT_LEVELS = "/local/domain/0/backend".count("/")
_STATE = str(int(XenbusState.XenbusStateInitialising))


class Devices:
    """What is attached to one domain, by kind and number.

    `report(text)` tells the user why a device was cut off.
    """

    def __init__(
        self,
        control: Control,
        store: XenStore,
        domain: Domain,
        workers: WorkerPool,
        report: Callable[[str], None],
    ) -> None:
        self._control = control
        self._store = store
        self._domain = domain
        self._workers = workers
        self._report = report
        self._devices: dict[Key, Device] = {}
        self._waiting: dict[Key, list[Callable[[], None]]] = {}
        self._when_gone: list[Callable[[], None]] = []

    def __contains__(self, key: Key) -> bool:
        return key in self._devices

    def keys(self) -> list[Key]:
        """Kind and number of all that is attached."""
        return [*self._devices]

    def attach(self, spec: DeviceSpec) -> Key:
        """Attaches a device to the domain, running or not; raises UserError."""
        kind, domid = spec.kind, self._domain.domid
        devid = spec.devid if spec.devid >= 0 else self._free(kind, spec.first_devid)
        key = kind, devid
        if key in self._devices:
            raise UserError(f"domain {domid} has a {kind} {devid} already")
        frontend = f"/local/domain/{domid}/device/{kind}/{devid}"
        backend = f"/local/domain/0/backend/{kind}/{domid}/{devid}"
        device = Device(
            self._control,
            self._store,
            self._domain,
            devid,
            (frontend, backend),
            self._workers.share(),
            report=self._report,
            on_gone=lambda gone: self._gone(key, gone),
        )
        made = spec.make(device)
        try:
            self._store.transact(
                lambda store: _write(store, domid, (frontend, backend), spec, devid)
            )
            device.start(made)
        except XenStoreError as error:
            # A name that is longer than any node, or a store that is full.
            made.close()
            raise UserError(f"{kind} {devid}: {error}") from error
        except BaseException:
            made.close()
            raise
        self._devices[key] = device
        # A restart of the domain finds it under the same number.
        spec.devid = devid
        return key

    def _free(self, kind: str, devid: int) -> int:
        while (kind, devid) in self._devices:
            devid += 1
        return devid

    def detach(self, kind: str, devid: int, done: Callable[[], None]) -> None:
        """Asks the guest to let go of a device; `done()` once it has.  Raises UserError."""
        key = kind, devid
        device = self._devices.get(key)
        if device is None:
            raise UserError(f"domain {self._domain.domid} has no {kind} {devid}")
        self._waiting.setdefault(key, []).append(done)
        device.detach()

    def remove(self, kind: str, devid: int) -> None:
        """Takes a device away whatever the guest does with it."""
        device = self._devices.get((kind, devid))
        if device is not None:
            device.remove()

    def _gone(self, key: Key, device: Device) -> None:
        del self._devices[key]
        for path in (device.frontend_path, device.backend_path, device.error_path):
            self._prune(path)
        for done in self._waiting.pop(key, ()):
            done()
        if not self._devices:
            when_gone, self._when_gone = self._when_gone, []
            for callback in when_gone:
                callback()

    def _prune(self, path: str) -> None:
        """Takes a device's directory away, and those above that are empty then, as xl does."""
        store = self._store
        if not store.exists(path):
            return
        store.rm(path)
        # Up to "/local/domain/N/device", ".../backend" or "/local/domain/0/error".
        while (path := path.rpartition("/")[0]).count("/") > _KEPT_LEVELS:
            if not store.exists(path) or store.list(path):
                return
            store.rm(path)

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Has `callback()` called once all that were closed are gone, at once if they are.

        What was under way when the domain ended may last: until then an image is still open.
        """
        if self._devices:
            self._when_gone.append(callback)
        else:
            callback()

    def close(self) -> None:
        """Ends all of them; the domain is about to be destroyed."""
        for device in list(self._devices.values()):
            device.remove()


def _write(
    store: Accessor, domid: int, paths: tuple[str, str], spec: DeviceSpec, devid: int
) -> None:
    frontend, backend = paths
    ours, theirs = ["n0", f"r{domid}"], [f"n{domid}", "r0"]
    store.mkdir(backend, ours)
    for name, value in {
        "frontend": frontend,
        "frontend-id": str(domid),
        "online": "1",
        "state": _STATE,
        **spec.backend_nodes(devid),
    }.items():
        store.write(f"{backend}/{name}", _bytes(value), ours)
    store.mkdir(frontend, theirs)
    for name, value in {
        "backend": backend,
        "backend-id": "0",
        "state": _STATE,
        **spec.frontend_nodes(devid),
    }.items():
        store.write(f"{frontend}/{name}", _bytes(value), theirs)
    for name, value in spec.readonly_nodes(devid).items():
        store.write(f"{frontend}/{name}", _bytes(value), ours)


def _bytes(value: str) -> bytes:
    """As it stood on the command line: a file's name need not be UTF-8."""
    return value.encode("utf-8", "surrogateescape")
