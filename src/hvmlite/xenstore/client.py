"""The store for other threads and for asyncio: `Host.xenstore`.

Every request is one call into the thread that owns the store; what comes back is plain data. The
store itself (server.py) takes no lock and knows nothing of this module.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

from hvmlite.abi.errno import XEN_EAGAIN
from hvmlite.errors import HvmliteError
from hvmlite.xenstore.errors import XenStoreError
from hvmlite.xenstore.server import Accessor, XenStore
from hvmlite.xenstore.tree import Perm
from hvmlite.xenstore.watches import Watch

T = TypeVar("T")

MAX_PENDING: Final = 1024
"""Different paths that wait in one StoreWatch; beyond that, one event stands for all of them."""


class Call(Protocol):
    """Runs a function in the thread of the store and returns its result, like Host.call."""

    def __call__(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """The result, or what the function raised."""


class TransactionConflictError(XenStoreError):
    """Somebody changed what a transaction had read, so that it was dropped (EAGAIN)."""

    def __init__(self, path: str) -> None:
        super().__init__(XEN_EAGAIN, path)


class _Requests:
    """The requests of a client or of a transaction; `_ask` says how one reaches the store.

    As domain 0: no quota, all permissions. Relative paths start at /local/domain/0. All raise
    XenStoreError, with EINVAL for a malformed path.
    """

    def _ask(self, name: str, *arguments: Any) -> Any:
        raise AssertionError

    def read(self, path: str) -> bytes | None:
        """The value at `path`; None if there is no such node."""
        value: bytes | None = self._ask("read", path)
        return value

    def exists(self, path: str) -> bool:
        """Whether there is a node at `path`."""
        return self.read(path) is not None

    def list(self, path: str) -> builtins.list[str]:
        """The names of the children of `path`, in order of creation. Raises ENOENT."""
        names: list[str] = self._ask("list", path)
        return names

    def get_perms(self, path: str) -> builtins.list[str]:
        """The permissions of `path`, such as ["n0", "r4"]. Raises ENOENT."""
        perms: list[str] = self._ask("get_perms", path)
        return perms

    def write(
        self, path: str, value: bytes | str, perms: Sequence[Perm | str] | None = None
    ) -> None:
        """Store `value` at `path`, with missing parents; then set `perms` if given.

        Raises E2BIG if a guest could not read the value back.
        """
        self._ask("write", path, value, perms)

    def mkdir(self, path: str, perms: Sequence[Perm | str] | None = None) -> None:
        """Ensure that `path` exists; then set `perms` if given."""
        self._ask("mkdir", path, perms)

    def rm(self, path: str) -> None:
        """Remove `path` and all below it. A missing node is fine if its parent exists (ENOENT)."""
        self._ask("rm", path)

    def set_perms(self, path: str, perms: Sequence[Perm | str]) -> None:
        """Set the permissions of `path`. Raises ENOENT, also for an impossible owner."""
        self._ask("set_perms", path, perms)


class StoreTransaction(_Requests):
    """What `StoreClient.transaction` gives to its `with` block."""

    def __init__(self, call: Call, accessor: Accessor) -> None:
        self._call = call
        self._accessor = accessor
        self._done: list[tuple[str, tuple[Any, ...], object]] = []

    def _ask(self, name: str, *arguments: Any) -> Any:
        answer = self._call(_answer, self._accessor, name, arguments)
        self._done.append((name, arguments, answer))
        if isinstance(answer, XenStoreError):
            raise answer
        return answer

    def repeat(self, accessor: Accessor) -> None:
        """Do it all again in another transaction; raises TransactionConflictError where an answer
        is not what it was.
        """
        for name, arguments, answer in self._done:
            again = _answer(accessor, name, arguments)
            if not _same(answer, again):
                raise TransactionConflictError(str(arguments[0]))


def _answer(accessor: Accessor, name: str, arguments: tuple[Any, ...]) -> object:
    try:
        return getattr(accessor, name)(*arguments)
    except XenStoreError as error:
        return error


def _same(one: object, other: object) -> bool:
    if isinstance(one, XenStoreError) and isinstance(other, XenStoreError):
        return one.errno == other.errno
    return one == other


class StoreClient(_Requests):
    """A store as other threads use it. `call` runs a function in the store's thread.

    In that thread itself (a watch's callback, a Host.call) the methods work too, but for waiting
    on a StoreWatch.
    """

    def __init__(self, store: XenStore, call: Call) -> None:
        self._store = store
        self._call = call
        self._watches: set[StoreWatch] = set()

    def _ask(self, name: str, *arguments: Any) -> Any:
        return self._call(getattr(self._store, name), *arguments)

    def watch(self, path: str, depth: int | None = None) -> StoreWatch:
        """A watch on `path` and all below it, or `depth` levels below; its first event is due at
        once. Special paths are @introduceDomain and @releaseDomain. Raises EINVAL.
        """
        return StoreWatch(self, path, depth)

    @contextmanager
    def transaction(self) -> Iterator[StoreTransaction]:
        """A transaction around a `with` block: committed at its end, discarded on an exception.

        If others have changed a node that it touched, it is tried again: all that the block asked
        is asked again, in one go, and committed if every answer is still the same. If one is not,
        the block has worked on what is no longer true and only its author can run it again:
        TransactionConflictError. `transact` does that.
        """
        manager = self._store.transaction()
        accessor = self._call(manager.__enter__)
        transaction = StoreTransaction(self._call, accessor)
        try:
            yield transaction
        except BaseException as error:
            # The host may be gone; the block's own exception is what counts.
            with contextlib.suppress(HvmliteError):
                self._call(_discard, manager, error)
            raise
        self._call(self._commit, manager, transaction)

    def _commit(
        self, manager: contextlib.AbstractContextManager[Accessor], transaction: StoreTransaction
    ) -> None:
        try:
            manager.__exit__(None, None, None)
        except XenStoreError as error:
            if error.errno != XEN_EAGAIN:
                raise
            self._alone(self._repeat, transaction)

    def _repeat(self, transaction: StoreTransaction) -> None:
        with self._store.transaction() as accessor:
            transaction.repeat(accessor)

    def _alone(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function in the store's thread with nobody else's request or callback between."""
        daemon = self._store.daemon
        outer = daemon.enter()
        try:
            return function(*arguments)
        finally:
            daemon.leave(outer)

    def transact(self, body: Callable[[Accessor], T]) -> T:
        """Run `body(transaction)` in the store's thread and commit; returns its result.

        Nobody else has a turn meanwhile, so there is no conflict and no second run: guests wait,
        so `body` must not. What it raises discards the transaction and comes out here.
        """

        def run() -> T:
            return self._store.transact(body)

        result: T = self._call(self._alone, run)
        return result

    def close(self) -> None:
        """End all watches; in the store's thread, when the host closes."""
        for watch in list(self._watches):
            watch.end()

    # For StoreWatch, in the store's thread

    def begin(self, watch: StoreWatch, path: str, depth: int | None) -> Watch:
        """Start to deliver to `watch`."""
        handle = self._store.watch(path, watch.deliver, depth)
        self._watches.add(watch)
        return handle

    def finish(self, watch: StoreWatch, handle: Watch) -> None:
        """Deliver no more to `watch`."""
        self._watches.discard(watch)
        self._store.unwatch(handle)

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function in the store's thread."""
        return self._call(function, *arguments)


def _discard(manager: contextlib.AbstractContextManager[Accessor], error: BaseException) -> None:
    with contextlib.suppress(BaseException):
        manager.__exit__(type(error), error, None)


class StoreWatch:
    """Events of one watch, as an iterator and as an async iterator of paths.

        async with host.xenstore.watch("device") as watch:
            async for path in watch:
                ...

    An event says that the node at that path may have changed, appeared or gone; one that is
    waiting already is not entered twice. If more than MAX_PENDING paths wait, a single event of
    the watched path stands for them: look at everything below. The iteration ends with close(),
    with the `with` block, or when the host closes. One consumer at a time.
    """

    def __init__(self, client: StoreClient, path: str, depth: int | None) -> None:
        self.path = path
        self._client = client
        self._pending: dict[str, None] = {}
        self._changed = threading.Condition()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._ended = False
        self._handle: Watch | None = client.run(client.begin, self, path, depth)

    def deliver(self, path: str) -> None:
        """One event, in the store's thread."""
        with self._changed:
            pending = self._pending
            if path not in pending and len(pending) >= MAX_PENDING:
                pending.clear()
                path = self.path
            pending[path] = None
            self._wake()

    def end(self) -> None:
        """No event will come any more, in the store's thread."""
        with self._changed:
            self._ended = True
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._waiter is not None:
            loop, event = self._waiter
            # A loop that was closed has nobody waiting.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        """End the watch; safe to repeat, from any thread."""
        handle, self._handle = self._handle, None
        if handle is not None and not self._ended:
            # A host that is closed has ended all watches.
            with contextlib.suppress(HvmliteError):
                self._client.run(self._client.finish, self, handle)
        self.end()

    def get(self, timeout: float | None = None) -> str | None:
        """The next event's path; None after `timeout` seconds without one, or at the end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._pending and not self._ended:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)
            return self._take()

    def _take(self) -> str | None:
        if not self._pending:
            return None
        path = next(iter(self._pending))
        del self._pending[path]
        return path

    def __iter__(self) -> Iterator[str]:
        while (path := self.get()) is not None:
            yield path

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        event = asyncio.Event()
        with self._changed:
            self._waiter = (asyncio.get_running_loop(), event)
        try:
            while True:
                with self._changed:
                    path = self._take()
                    if path is not None:
                        return path
                    if self._ended:
                        raise StopAsyncIteration
                    event.clear()
                await event.wait()
        finally:
            self._waiter = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
