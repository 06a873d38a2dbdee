"""Proves the store's face for other threads: requests, transactions that are tried again, watches
as iterators for threads and for asyncio.

The store's thread is played by a queue; that Host.call is as good is for tests/unit/toolstack.
"""

from __future__ import annotations

import asyncio
import queue
import threading

import pytest

from hvmlite.abi.errno import XEN_EAGAIN, XEN_EINVAL, XEN_ENOENT
from hvmlite.errors import EngineError
from hvmlite.xenstore import client as client_module
from hvmlite.xenstore.client import StoreClient, TransactionConflictError
from hvmlite.xenstore.errors import XenStoreError
from hvmlite.xenstore.server import XenStore


class Owner:
    """A thread that owns a store, like a host's."""

    def __init__(self):
        self.store = XenStore()
        self._queue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.stopped = False

    def _run(self):
        while (work := self._queue.get()) is not None:
            work()

    def call(self, function, *args, **kwargs):
        if threading.current_thread() is self._thread:
            return function(*args, **kwargs)
        if self.stopped:
            raise EngineError("the host is closed")
        done = threading.Event()
        result = []

        def work():
            try:
                result.append((True, function(*args, **kwargs)))
            except BaseException as error:
                result.append((False, error))
            done.set()

        self._queue.put(work)
        assert done.wait(20)
        good, value = result[0]
        if not good:
            raise value
        return value

    def stop(self):
        self.stopped = True
        self._queue.put(None)
        self._thread.join()


@pytest.fixture
def owner():
    owner = Owner()
    yield owner
    owner.stop()


@pytest.fixture
def client(owner):
    return StoreClient(owner.store, owner.call)


def test_requests(client):
    client.write("/a/b", "value", ["n0", "r3"])
    client.mkdir("/a/c")
    assert client.read("/a/b") == b"value"
    assert client.list("/a") == ["b", "c"]
    assert client.get_perms("/a/b") == ["n0", "r3"]
    client.set_perms("/a/b", ["n0"])
    assert client.get_perms("/a/b") == ["n0"]
    assert client.exists("/a/c")
    client.rm("/a/c")
    assert not client.exists("/a/c")
    assert client.read("/a/c") is None


def test_errors_come_out(client):
    with pytest.raises(XenStoreError) as caught:
        client.list("/none")
    assert caught.value.errno == XEN_ENOENT
    with pytest.raises(XenStoreError) as caught:
        client.watch("//")
    assert caught.value.errno == XEN_EINVAL


class TestTransactions:
    def test_committed_whole_at_the_end(self, client):
        with client.transaction() as tx:
            tx.write("/a", "1")
            tx.write("/b", "2")
            assert tx.read("/a") == b"1"
            assert client.read("/a") is None
        assert (client.read("/a"), client.read("/b")) == (b"1", b"2")

    def test_exception_discards(self, client, owner):
        with pytest.raises(ZeroDivisionError), client.transaction() as tx:
            tx.write("/a", "1")
            raise ZeroDivisionError
        assert client.read("/a") is None
        assert not owner.store.daemon.local.transactions

    def test_tried_again_if_the_answers_are_the_same(self, client):
        """A sibling that appears changes the directory, which was touched but not looked at."""
        client.mkdir("/dir")
        with client.transaction() as tx:
            tx.write("/dir/mine", "1")
            client.write("/dir/other", "2")
        assert client.list("/dir") == ["other", "mine"]

    def test_conflict_if_what_was_read_has_changed(self, client, owner):
        client.write("/count", "1")
        with pytest.raises(TransactionConflictError) as caught, client.transaction() as tx:
            value = int(tx.read("/count"))
            client.write("/count", "10")
            tx.write("/count", str(value + 1))
        assert caught.value.errno == XEN_EAGAIN
        assert caught.value.path == "/count"
        assert client.read("/count") == b"10"
        assert not owner.store.daemon.local.transactions

    def test_same_value_written_by_another_is_no_conflict(self, client):
        client.write("/count", "1")
        with client.transaction() as tx:
            value = int(tx.read("/count"))
            client.write("/count", "1")
            tx.write("/count", str(value + 1))
        assert client.read("/count") == b"2"

    @pytest.mark.parametrize(
        ("ask", "interfere"),
        [
            (lambda tx: tx.list("/d"), lambda c: c.mkdir("/d/new")),
            (lambda tx: tx.get_perms("/d"), lambda c: c.set_perms("/d", ["n0", "r1"])),
            (lambda tx: tx.exists("/d/new"), lambda c: c.mkdir("/d/new")),
            (lambda tx: tx.read("/d"), lambda c: c.rm("/d")),
        ],
    )
    def test_every_kind_of_answer_counts(self, client, ask, interfere):
        client.write("/d/x", "1")
        with pytest.raises(TransactionConflictError), client.transaction() as tx:
            ask(tx)
            tx.write("/result", "1")
            interfere(client)
        assert client.read("/result") is None

    def test_refused_requests_are_answers_too(self, client):
        client.mkdir("/d")
        with pytest.raises(TransactionConflictError), client.transaction() as tx:
            with pytest.raises(XenStoreError):
                tx.list("/d/none")
            tx.write("/d/result", "none")
            client.mkdir("/d/none")
        with client.transaction() as tx:
            with pytest.raises(XenStoreError):
                tx.list("/d/never")
            tx.write("/d/result", "never")
            client.mkdir("/d/other")
        assert client.read("/d/result") == b"never"

    def test_transact_never_conflicts(self, client):
        """Many threads, one counter: no increment is lost, and none has to run twice."""
        runs = []

        def increment(tx):
            runs.append(1)
            tx.write("/count", str(int(tx.read("/count") or b"0") + 1))
            return int(tx.read("/count"))

        results = []
        threads = [
            threading.Thread(
                target=lambda: results.extend([client.transact(increment) for _ in range(50)])
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == list(range(1, 201))
        assert len(runs) == 200

    def test_with_blocks_of_many_threads(self, client):
        """Each tries again after a conflict; nothing is lost here either."""
        client.write("/count", "0")

        def work():
            for _ in range(25):
                while True:
                    try:
                        with client.transaction() as tx:
                            tx.write("/count", str(int(tx.read("/count")) + 1))
                    except TransactionConflictError:
                        continue
                    break

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.read("/count") == b"100"

    def test_watches_fire_after_all_of_it(self, client, owner):
        seen = []
        watch = owner.call(
            owner.store.watch, "/a", lambda path: seen.append((path, owner.store.read("/b")))
        )
        client.transact(lambda tx: [tx.write("/a", "1"), tx.write("/b", "2")])
        assert seen == [("/a", None), ("/a", b"2")]
        owner.call(owner.store.unwatch, watch)


class TestWatches:
    def test_iterator(self, client):
        with client.watch("/w") as watch:
            assert watch.get(20) == "/w"
            client.write("/w/x", "1")
            client.write("/w/y", "1")
            events = iter(watch)
            assert next(events) == "/w/x"
            assert next(events) == "/w/y"
            assert watch.get(0) is None
        assert list(watch) == []

    def test_close_lets_a_waiting_thread_go(self, client):
        watch = client.watch("/w")
        assert watch.get(20) == "/w"
        ended = []
        thread = threading.Thread(target=lambda: ended.append(list(watch)))
        thread.start()
        watch.close()
        watch.close()
        thread.join(20)
        assert ended == [[]]

    def test_closed_watch_is_gone_from_the_store(self, client, owner):
        with client.watch("/w"):
            assert len(owner.store.daemon.local.watches) == 1
        assert not owner.store.daemon.local.watches

    def test_depth(self, client):
        with client.watch("/w", depth=0) as watch:
            watch.get(20)
            client.write("/w/x", "1")
            client.write("/w", "1")
            assert list(iter(lambda: watch.get(0), None)) == ["/w"]

    def test_what_waits_is_bounded(self, client, monkeypatch):
        monkeypatch.setattr(client_module, "MAX_PENDING", 10)
        with client.watch("/w") as watch:
            for number in range(100):
                client.write(f"/w/{number}", "")
            waiting = list(iter(lambda: watch.get(0), None))
            assert waiting[0] == "/w"
            assert len(waiting) <= 10

    def test_same_path_waits_once(self, client):
        with client.watch("/w") as watch:
            watch.get(20)
            for number in range(5):
                client.write("/w", str(number))
            assert list(iter(lambda: watch.get(0), None)) == ["/w"]

    def test_end_of_the_host_ends_the_iteration(self, client, owner):
        watch = client.watch("/w")
        ended = []
        thread = threading.Thread(target=lambda: ended.append(list(watch)))
        thread.start()
        owner.call(client.close)
        owner.stopped = True
        thread.join(20)
        assert ended == [["/w"]]
        watch.close()
        with pytest.raises(EngineError):
            client.watch("/w")
        owner.stopped = False

    def test_async_iterator(self, client):
        async def main():
            seen = []
            async with client.watch("/w") as watch:
                async for path in watch:
                    seen.append(path)
                    if len(seen) == 4:
                        break
                    # From another thread, while the loop waits.
                    threading.Timer(0.01, client.write, (f"/w/{len(seen)}", "")).start()
            return seen

        assert asyncio.run(main()) == ["/w", "/w/1", "/w/2", "/w/3"]

    def test_async_wait_may_be_cancelled(self, client):
        async def main():
            async with client.watch("/w") as watch:
                assert await anext(watch) == "/w"
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(watch), 0.01)
                client.write("/w", "1")
                return await asyncio.wait_for(anext(watch), 20)

        assert asyncio.run(main()) == "/w"

    def test_two_async_watches_at_once(self, client):
        async def follow(path, count):
            async with client.watch(path) as watch:
                return [await anext(watch) for _ in range(count)]

        async def main():
            tasks = [asyncio.create_task(follow(path, 2)) for path in ("/a", "/b")]
            await asyncio.sleep(0.01)
            client.write("/a", "")
            client.write("/b", "")
            return await asyncio.wait_for(asyncio.gather(*tasks), 20)

        assert asyncio.run(main()) == [["/a", "/a"], ["/b", "/b"]]

    def test_async_iteration_ends_with_the_host(self, client, owner):
        async def main():
            watch = client.watch("/w")
            threading.Timer(0.02, owner.call, (client.close,)).start()
            return [path async for path in watch]

        assert asyncio.run(main()) == ["/w"]
