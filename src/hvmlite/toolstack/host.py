"""`Host`: a machine for PVH guests inside this process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

from hvmlite.engine.memory import PAGE_SHIFT
from hvmlite.engine.select import EarlyEngine, open_engine
from hvmlite.errors import EngineError, UserError
from hvmlite.hypervisor.control import Control
from hvmlite.hypervisor.host import Host as Hypervisor
from hvmlite.hypervisor.release import DEFAULT, find_release
from hvmlite.toolstack.builder import BootPlan
from hvmlite.toolstack.config import DomainConfig, parse_size
from hvmlite.toolstack.domain import Domain
from hvmlite.toolstack.kernel import load_kernel
from hvmlite.toolstack.store import prepare_store
from hvmlite.xenstore.server import XenStore

if TYPE_CHECKING:
    from hvmlite.backends.workers import WorkerPool
    from hvmlite.toolstack.devices.manager import Devices
    from hvmlite.toolstack.progress import Progress
    from hvmlite.xenstore.client import StoreClient
    from hvmlite.xenstore.socket import SocketServer

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_MEMORY = 8 << 30
_PATIENCE = 10.0
"""Seconds for a disk to take what was written; one that is remote may never."""


class Host:
    """Machine memory, an engine, a xenstore, and any number of domains.

        with Host() as host:
            domain = host.create(DomainConfig(kernel=Path("vmlinuz"), cmdline="console=hvc0"))
            domain.start()
            print(domain.wait().reason)

    `memory` is what all domains together may have, in bytes or as "8G"; it costs nothing until it
    is used.  `engine` is the name of one, or one that has been started already with memory of its
    own.  `xen_version` is the release whose xenstore is presented, to all domains alike.  One
    thread of its own serves all domains; the methods may be called from any thread.
    Raises EngineError where no guest can run, UserError for a bad argument.
    """

    def __init__(
        self,
        memory: int | str = DEFAULT_MEMORY,
        *,
        engine: str | EarlyEngine = "auto",
        xen_version: str = "{}.{}".format(*DEFAULT),
    ) -> None:
        release = find_release(xen_version)
        if isinstance(engine, EarlyEngine):
            self._hypervisor = Hypervisor(engine, engine.memory)
        else:
            size = parse_size(memory) if isinstance(memory, str) else memory
            if size <= 0:
                raise UserError(f"memory of {size} bytes is none")
            self._hypervisor = Hypervisor(open_engine(engine), size)
        self.control = Control(self._hypervisor)
        self.store = XenStore(release.pair)
        """The store itself, for use in the host's thread; see `xenstore` for other threads."""
        prepare_store(self.store)
        self._store_client: StoreClient | None = None
        self._sockets: list[SocketServer] = []
        self.domains: dict[int, Domain] = {}
        self._workers: WorkerPool | None = None
        self.leaving: set[Devices] = set()
        """Devices of domains that are gone, with something under way; in the host's thread."""
        self._closed = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="hvmlite-host", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self._hypervisor.run()
        except BaseException as error:
            self._failure = error
            for domain in list(self.domains.values()):
                domain.fail(error)
        finally:
            for server in self._sockets:
                server.close()
            if self._store_client is not None:
                self._store_client.close()
            self._hypervisor.close()

    @property
    def workers(self) -> WorkerPool:
        """Threads for what may block, made when first asked for (in the host's thread)."""
        if self._workers is None:
            from hvmlite.backends.workers import WorkerPool  # noqa: PLC0415

            self._workers = WorkerPool(self._hypervisor.call_soon)
        return self._workers

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs a function in the host's thread and returns its result."""
        if threading.current_thread() is self._thread:
            return function(*args, **kwargs)
        if self._closed or not self._thread.is_alive():
            raise EngineError(f"the host is closed{f': {self._failure}' if self._failure else ''}")
        # Not a concurrent.futures.Future: that module and what it needs cost every start.
        done = threading.Event()
        results: list[R] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(function(*args, **kwargs))
            except BaseException as error:
                errors.append(error)
            done.set()

        self._hypervisor.call_soon(run)
        while not done.wait(1.0):
            if not self._thread.is_alive() and not done.is_set():
                raise EngineError(f"the host stopped: {self._failure}")
        if errors:
            raise errors.pop()
        return results[0]

    def soon(self, function: Callable[[], None]) -> None:
        """Runs a function in the host's thread without waiting for it."""
        self._hypervisor.call_soon(function)

    @property
    def loop(self) -> Hypervisor:
        """The loop, for file descriptors (`add_reader` and so on); use it in the host's thread."""
        return self._hypervisor

    @property
    def xenstore(self) -> StoreClient:
        """The store for any thread, and for asyncio: reads, writes, watches, transactions."""
        return self._store_client or self.call(self._make_store_client)

    def _make_store_client(self) -> StoreClient:
        if self._store_client is None:
            # Loaded when needed: it costs every start otherwise.
            from hvmlite.xenstore.client import StoreClient  # noqa: PLC0415

            self._store_client = StoreClient(self.store, self.call)
        return self._store_client

    def listen_xenstore(self, path: str | os.PathLike[str]) -> None:
        """Offers the store to xenstore-ls and other clients at a Unix socket until `close`.

        They find it by XENSTORED_PATH; /run/xenstored/socket is where they look on their own.  The
        socket is for this user alone, and whoever connects may do what domain 0 may.
        Raises UserError if the socket cannot be made or another process listens there.
        """
        from hvmlite.xenstore.socket import SocketServer  # noqa: PLC0415

        def listen() -> None:
            self._sockets.append(SocketServer(self.store, self._hypervisor, path))

        self.call(listen)

    def create(self, config: DomainConfig, progress: Progress | None = None) -> Domain:
        """Builds a domain, ready for `Domain.start`; `progress` hears of what takes long.

        Raises UserError (KernelError and others) for what cannot be built.
        """
        config.check()
        with load_kernel(config.kernel, progress) as image:
            plan = BootPlan.make(config, image, progress)
            free = self._hypervisor.machine.free_frames << PAGE_SHIFT
            full = UserError(
                f"{config.title} takes {-(-plan.machine_memory >> 20)} MiB of memory in all, "
                f"the host has {free >> 20} MiB left"
            )
            if plan.machine_memory > free:
                raise full
            try:
                return self.call(Domain, self, plan)
            except MemoryError:
                raise full from None

    def wait_for_devices(self, patience: float) -> None:
        """Waits up to `patience` seconds until disks have what gone domains have written."""
        if threading.current_thread() is self._thread:
            # It is this thread that would see them go.
            return
        deadline = time.monotonic() + patience
        while self.leaving and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)

    def close(self) -> None:
        """Destroys all domains and ends the thread; safe to repeat."""
        if self._closed:
            return
        for domain in list(self.domains.values()):
            domain.destroy()
        self.wait_for_devices(_PATIENCE)
        self._closed = True
        if self._workers is not None:
            # What is under way ends first: a guest's flush, a write into what was its memory.
            self._workers.close()
        self._hypervisor.stop()
        self._thread.join(timeout=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
