"""A PV device as its backend sees it: the xenbus state machine, and what it holds of the guest's.

A new kind of device is one subclass of `Backend`; everything that goes wrong on the frontend's
side ends in `Device.fail`, which cuts this device off and nothing else. What the nodes hold is the
toolstack's business. Facts: public/io/xenbus.h, docs/misc/xenbus... as Linux's drivers act on them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, TypeVar

from hvmlite.abi.layout import Abi
from hvmlite.abi.xenbus import XEN_IO_PROTO_ABI_X86_32, XEN_IO_PROTO_ABI_X86_64, XenbusState
from hvmlite.errors import EngineError, HvmliteError
from hvmlite.hypervisor.call import XenError
from hvmlite.hypervisor.grant_table import BackendMapping, GrantError
from hvmlite.hypervisor.memory import GuestAccessError, Window
from hvmlite.xenstore.errors import XenStoreError

if TYPE_CHECKING:
    from hvmlite.backends.workers import Workers
    from hvmlite.hypervisor.control import Control, Domain
    from hvmlite.hypervisor.event_channel import BackendPort
    from hvmlite.xenstore.server import XenStore

T = TypeVar("T")
_S = XenbusState
_PROTOCOLS = {XEN_IO_PROTO_ABI_X86_64: Abi.X86_64, XEN_IO_PROTO_ABI_X86_32: Abi.X86_32}
_REPORTS = 10
"""Messages about one device that the user gets; a guest could cause any number."""
_LONGEST_NUMBER = 20


class DeviceError(HvmliteError):
    """The frontend did what no frontend may do; the message says what."""


_FRONTEND_ERRORS = (DeviceError, GrantError, GuestAccessError, XenError, XenStoreError)
"""What a guest can cause while a backend works for it."""


class Backend(ABC):
    """One device's backend: what it offers, and what it does while a frontend is connected.

    All methods are called in the host loop's thread.  Any of them may raise DeviceError (and let
    GrantError and the like pass): the device is then cut off with that reason.
    """

    kind: ClassVar[str]
    """Its name in xenstore's paths, such as "vbd"."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def offer(self) -> Mapping[str, str | int]:
        """Nodes to write before a frontend looks: features, sizes."""
        return {}

    @abstractmethod
    def connect(self) -> None:
        """The frontend has written its nodes: maps rings and binds ports, by `self.device`.

        Nodes that it writes here are there before the state is Connected.
        """

    def reconfigure(self) -> None:  # noqa: B027
        """The frontend changed nodes while it is connected, and waits for us."""

    def disconnect(self) -> None:  # noqa: B027 (not every backend holds something)
        """The frontend goes: forgets rings and ports, which the device gives up afterwards.

        Also called after a `connect` that failed half-way.

        Work in other threads goes on (`Device.work`); what it needs stays until it is done.
        """

    def close(self) -> None:  # noqa: B027
        """The device is gone for good: closes files and the like; nothing is in work any more."""


class Device:
    """One device of one domain.

    `report(text)` tells the user what a frontend was cut off for; `on_gone(device)` is called when
    the device has been detached.
    """

    def __init__(
        self,
        control: Control,
        store: XenStore,
        domain: Domain,
        devid: int,
        paths: tuple[str, str],
        workers: Workers,
        *,
        report: Callable[[str], None],
        on_gone: Callable[[Device], None],
    ) -> None:
        self.control = control
        self.store = store
        self.domain = domain
        self.devid = devid
        self.frontend_path, self.backend_path = paths
        self.error_path = self.backend_path.replace("/backend/", "/error/backend/", 1)
        """Where the store has why it was cut off."""
        self.state = _S.XenbusStateInitialising
        """The backend's state."""
        self.workers = workers
        """For what may block and does not touch the guest's pages; see `work`."""
        self._report = report
        self._reports = 0
        self._on_gone = on_gone
        self._seen: XenbusState | None = None
        self._connected = False
        self._generation = 0
        self._in_work = 0
        self._then: Callable[[], None] | None = None
        self._gone = False
        self._mappings: set[BackendMapping] = set()
        self._windows: list[tuple[Window, list[BackendMapping]]] = []
        self._ports: list[BackendPort] = []
        self._reactions = {
            _S.XenbusStateInitialising: self._frontend_initialising,
            _S.XenbusStateInitialised: self._frontend_ready,
            _S.XenbusStateConnected: self._frontend_ready,
            _S.XenbusStateClosing: self._frontend_closing,
            _S.XenbusStateClosed: self._frontend_closed,
            _S.XenbusStateReconfiguring: self._frontend_reconfiguring,
        }

    def start(self, backend: Backend) -> None:
        """Takes up the backend, whose nodes are in the store, and watches the frontend."""
        self.backend = backend
        self._watches = [
            self.store.watch(f"{self.frontend_path}/state", self._frontend_changed, 0),
            self.store.watch(f"{self.backend_path}/state", self._backend_changed, 0),
        ]

    @property
    def name(self) -> str:
        """As messages call it: kind and number."""
        return f"{self.backend.kind} {self.devid}"

    @property
    def in_use(self) -> bool:
        """Whether a frontend is connected or takes its leave."""
        return self._connected or self._then is not None

    # ---- nodes ----------------------------------------------------------------------------------

    def read(self, name: str) -> str | None:
        """A node of the frontend's; None if there is none.  Raises DeviceError for binary ones."""
        value = self.store.read(f"{self.frontend_path}/{name}")
        if value is None:
            return None
        if not value.isascii():
            raise DeviceError(f"its node {name} is no text")
        return value.decode("ascii")

    def read_int(self, name: str, least: int, most: int, default: int | None = None) -> int:
        """A number of the frontend's between two bounds; raises DeviceError for any other."""
        text = self.read(name)
        if text is None:
            if default is None:
                raise DeviceError(f"its node {name} is missing")
            return default
        if len(text) > _LONGEST_NUMBER or not text.isdigit() or not least <= int(text) <= most:
            raise DeviceError(f"its node {name} is {text[:40]!r}, not {least} to {most}")
        return int(text)

    def protocol(self) -> Abi:
        """The layout that the frontend's `protocol` node names."""
        name = self.read("protocol")
        if name is None:
            return Abi.X86_64
        if name not in _PROTOCOLS:
            raise DeviceError(f"its protocol is {name[:40]!r}")
        return _PROTOCOLS[name]

    def write(self, name: str, value: str | int) -> None:
        """Sets a node of the backend's."""
        self.store.write(f"{self.backend_path}/{name}", str(value))

    def _set_state(self, state: XenbusState) -> None:
        self.state = state
        if self.store.exists(f"{self.backend_path}/state"):
            self.write("state", int(state))

    @staticmethod
    def _parse_state(value: bytes | None) -> XenbusState:
        try:
            return _S(int(value or b"0"))
        except ValueError:
            return _S.XenbusStateUnknown

    # ---- the guest's memory and events ----------------------------------------------------------

    def map(self, ref: int, *, readonly: bool = False) -> BackendMapping:
        """Maps a page that the guest granted; raises GrantError.  Given up at the disconnection."""
        mapping = self.control.map_grant(self.domain, ref, readonly=readonly)
        self._mappings.add(mapping)
        return mapping

    def unmap(self, mapping: BackendMapping) -> None:
        """Gives a mapping up; also after the disconnection."""
        self._mappings.discard(mapping)
        mapping.close()

    def window(self, refs: list[int]) -> Window:
        """Maps granted pages one behind the other, for a ring; raises GrantError."""
        mappings: list[BackendMapping] = []
        try:
            # One by one: what was mapped before a bad one has to be given up.
            for ref in refs:
                mappings.append(self.control.map_grant(self.domain, ref))
            window = Window(self.control.host.machine, [each.page.frame for each in mappings])
        except BaseException:
            for mapping in mappings:
                mapping.close()
            raise
        self._windows.append((window, mappings))
        return window

    def ring_refs(self, limit: int, where: str = "") -> list[int]:
        """The grants of a ring of up to `limit` pages: ring-ref, or ring-page-order and more.

        `where` is the directory of one queue of many, such as "queue-1/"; the order is for all.
        """
        order = self.read_int("ring-page-order", 0, limit.bit_length() - 1, -1)
        if order < 0 or (order == 0 and self.read(f"{where}ring-ref0") is None):
            return [self.read_int(f"{where}ring-ref", 0, 0xFFFF_FFFF)]
        return [self.read_int(f"{where}ring-ref{i}", 0, 0xFFFF_FFFF) for i in range(1 << order)]

    def bind(
        self, port: int, handler: Callable[[], None], *, deferred: bool = False
    ) -> BackendPort:
        """Binds an event channel that the guest allocated for us; raises DeviceError for any other.

        `handler()` is called for its events: within the guest's hypercall, or, if `deferred`, soon
        after the vCPU went on, once for all events until then.
        """
        waiting = False

        def run() -> None:
            nonlocal waiting
            waiting = False
            handler()

        def on_event() -> None:
            nonlocal waiting
            if not deferred:
                self.guarded(handler)
            elif not waiting:
                waiting = True
                self.soon(run)

        try:
            bound = self.control.bind_port(self.domain, port, on_event)
        except XenError as error:
            raise DeviceError(f"event channel {port} is none that waits for us") from error
        self._ports.append(bound)
        return bound

    def guarded(self, function: Callable[[], None]) -> None:
        """Calls a function; what the frontend did wrong on the way cuts the device off.

        So does a bug of ours: the guest's other devices and all other guests go on.
        """
        try:
            function()
        except _FRONTEND_ERRORS as error:
            self.fail(str(error))
        except EngineError:
            # The guest's end, not the device's.
            raise
        except Exception as error:
            self._bug(error)
            self.fail(f"internal error: {type(error).__name__}: {error}")

    def _bug(self, error: Exception) -> None:
        self.control.host.report_bug(error)

    def soon(self, function: Callable[[], None]) -> None:
        """Has a function called by the loop, unless the frontend has gone by then.  Any thread."""
        generation = self._generation

        def run() -> None:
            if generation == self._generation:
                self.guarded(function)

        self.control.host.call_soon(run)

    def work(
        self, function: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        """Has `function()` called in another thread, then `done(result, error)` in the loop's.

        `done` is called also if the frontend has gone meanwhile; mappings last until then.
        """
        self.hold()

        def finish(result: T | None, error: BaseException | None) -> None:
            try:
                self.guarded(lambda: done(result, error))
            finally:
                self.unhold()

        self.workers.submit(function, finish)

    def hold(self) -> None:
        """Something goes on beyond this call with the guest's pages: they last until `unhold`."""
        self._in_work += 1

    def unhold(self) -> None:
        """Ends one `hold`; in the loop's thread."""
        self._in_work -= 1
        self._settle()

    # ---- the frontend's states ------------------------------------------------------------------

    def _frontend_changed(self, _path: str) -> None:
        if self._gone or self._then is not None:
            return
        state = self._parse_state(self.store.read(f"{self.frontend_path}/state"))
        if state is not self._seen:
            self._seen = state
            reaction = self._reactions.get(state)
            if reaction is not None:
                self.guarded(reaction)

    def _frontend_initialising(self) -> None:
        if self._connected:
            # It begins anew (kexec, a reloaded driver) and said no good-bye.
            self._leave(self._offer)
        else:
            self._offer()

    def _offer(self) -> None:
        if self._online():
            for name, value in self.backend.offer().items():
                self.write(name, value)
            self._set_state(_S.XenbusStateInitWait)

    def _frontend_ready(self) -> None:
        if self.state is _S.XenbusStateReconfigured:
            self._set_state(_S.XenbusStateConnected)
            return
        if self.state is not _S.XenbusStateInitWait:
            return
        self._connected = True
        self.backend.connect()
        self._set_state(_S.XenbusStateConnected)

    def _frontend_reconfiguring(self) -> None:
        if self._connected:
            self.backend.reconfigure()
            self._set_state(_S.XenbusStateReconfigured)

    def _frontend_closing(self) -> None:
        self._leave(lambda: self._set_state(_S.XenbusStateClosing))

    def _frontend_closed(self) -> None:
        self._leave(self._closed)

    def _closed(self) -> None:
        self._set_state(_S.XenbusStateClosed)
        if not self._online():
            self._end()

    def _online(self) -> bool:
        return self.store.read(f"{self.backend_path}/online") == b"1"

    def tell(self, text: str) -> None:
        """Tells the user something about the device, unless there was too much of it already."""
        self._reports += 1
        if self._reports <= _REPORTS:
            last = " (further messages about it are left out)" if self._reports == _REPORTS else ""
            self._report(f"{self.name} of domain {self.domain.domid} {text}{last}")

    # ---- the end of a connection ----------------------------------------------------------------

    def fail(self, reason: str) -> None:
        """Cuts the frontend off, for a reason that the user and the store get to know."""
        if self._gone or self._then is not None:
            return
        self.tell(f"is cut off: {reason}")
        self.store.write(
            f"{self.error_path}/error", reason.encode("ascii", "backslashreplace")[:200]
        )
        self._leave(lambda: self._set_state(_S.XenbusStateClosing))

    def _leave(self, then: Callable[[], None]) -> None:
        """Ends the connection if there is one; `then()` once nothing is in work any more."""
        self._then = then
        if self._connected:
            self._connected = False
            self._generation += 1
            for port in self._ports:
                port.close()
            self._ports.clear()
            try:
                self.backend.disconnect()
            except Exception as error:
                self._bug(error)
        self._settle()

    def _settle(self) -> None:
        then = self._then
        if then is None or self._in_work:
            return
        for window, mappings in self._windows:
            window.close()
            for mapping in mappings:
                mapping.close()
        self._windows.clear()
        for mapping in self._mappings:
            mapping.close()
        self._mappings.clear()
        self._then = None
        self.guarded(then)
        # What the frontend said meanwhile was not heard.
        self._frontend_changed("")

    # ---- the toolstack's wishes -----------------------------------------------------------------

    def _backend_changed(self, _path: str) -> None:
        """Somebody else wrote our state: xl detaches a device by Closing, with `online` 0."""
        if self._gone:
            return
        state = self._parse_state(self.store.read(f"{self.backend_path}/state"))
        if state is _S.XenbusStateClosing and state is not self.state and not self._online():
            self._begin_detach()

    def detach(self) -> None:
        """Asks the frontend to let go of the device; `on_gone` is called when it has."""
        self.write("online", 0)
        self._begin_detach()

    def _begin_detach(self) -> None:
        if self._connected or self._seen is _S.XenbusStateClosing:
            self._set_state(_S.XenbusStateClosing)
        else:
            self._leave(self._closed)

    def _end(self) -> None:
        """Nothing of the guest's is held any more."""
        if not self._gone:
            self._gone = True
            for watch in self._watches:
                self.store.unwatch(watch)
            try:
                self.backend.close()
            except Exception as error:
                self._bug(error)
            self._on_gone(self)

    def remove(self) -> None:
        """Ends the device whatever its frontend does (the domain is destroyed)."""
        if not self._gone:
            self._leave(self._end)
