"""A guest's transactions through /dev/xen/xenbus while the host changes the same nodes.

Proves that each is committed whole or answered with EAGAIN, the latter exactly when the host came
in between, that no state in between is ever seen, and that the guest's own xenstore-ls and
xenstore-watch agree. Whether the host interferes is decided by a random number, not by timing; a
second thread that interferes whenever it can is let loose in the last test. Cannot see more than
two parties.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvmlite import DomainConfig
from hvmlite.testing import ramdisk
from hvmlite.xenstore.client import StoreClient
from hvmlite.xenstore.server import Accessor

from .guests import QUIET, Shell, shell_ramdisk
from .store_tools import store_tools

SOURCE = Path(__file__).with_name("xenstore_conflict.c")
NAMES = ("counter", "left", "right")


class Race:
    """The nodes that both sides change, and what the host did to them."""

    def __init__(self, guest: Shell) -> None:
        self.guest = guest
        self.base = f"/local/domain/{guest.domain.id}/data/race"
        self.store: StoreClient = guest.host.xenstore
        self.interfered = 0
        self.torn: list[dict[str, bytes | None]] = []
        self.seen = 0

    def values(self, accessor: Accessor) -> dict[str, bytes | None]:
        return {name: accessor.read(f"{self.base}/{name}") for name in NAMES}

    def reset(self) -> None:
        def body(transaction: Accessor) -> None:
            for name in NAMES:
                path = f"{self.base}/{name}"
                transaction.write(path, "0", [f"n{self.guest.domain.id}"])

        self.store.transact(body)

    def increment(self, transaction: Accessor) -> None:
        """What the guest does too."""
        value = int(transaction.read(f"{self.base}/counter") or b"0") + 1
        for name in NAMES:
            transaction.write(f"{self.base}/{name}", str(value))

    def look(self, _path: str) -> None:
        """In the host's thread, after each change: a transaction is all there or not at all."""
        self.seen += 1
        values = self.values(self.guest.host.store)
        if len(set(values.values())) != 1:
            self.torn.append(values)

    def run(self, count: int, poked: Callable[[str], None]) -> tuple[int, int]:
        """Let the guest run `count` transactions; returns how many were committed, and not."""
        host = self.guest.host
        self.reset()
        watches = [
            host.call(host.store.watch, f"{self.base}/{name}", callback)
            for name, callback in (("poke", poked), ("counter", self.look), ("right", self.look))
        ]
        try:
            output = self.guest.run(f"xenstore_conflict {count}", timeout=400)
        finally:
            for watch in watches:
                host.call(host.store.unwatch, watch)
        match = re.fullmatch(r"committed (\d+) again (\d+)\n", output)
        assert match, output
        return int(match[1]), int(match[2])

    def check(self, counter: int) -> None:
        """The tree is sound and holds this count, as the host and the guest see it."""
        values = self.guest.call(lambda: self.values(self.guest.host.store))
        assert values == dict.fromkeys(NAMES, str(counter).encode())
        assert self.torn == []
        assert self.guest.call(self.guest.host.store.check) == []
        daemon = self.guest.host.store.daemon
        assert self.guest.call(lambda: daemon.domains[self.guest.domain.id].transactions) == 0
        lines = self.guest.run("xenstore-ls data/race").splitlines()
        assert {f'{name} = "{counter}"' for name in NAMES} <= set(lines)


@pytest.fixture(scope="module")
def race(linux: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Race]:
    if not store_tools() or shutil.which("gcc") is None:
        pytest.skip("needs xenstore-utils and gcc")
    folder = tmp_path_factory.mktemp("race")
    program = folder / "xenstore_conflict"
    subprocess.run(["gcc", "-static", "-O2", "-Wall", "-o", program, SOURCE], check=True)
    initrd = folder / "initrd.cpio"
    files = store_tools() | {
        "usr/bin/xenstore_conflict": ramdisk.regular(program.read_bytes(), 0o755)
    }
    initrd.write_bytes(shell_ramdisk(files))
    guest = Shell(DomainConfig(kernel=linux, ramdisk=initrd, cmdline=QUIET, memory=256 << 20))
    try:
        guest.ready()
        yield Race(guest)
    finally:
        guest.close()


def interfere(race: Race, count: int) -> None:
    """The host comes in between in half of the transactions, picked at random."""
    rng = random.Random(count)
    race.interfered = 0
    host = race.guest.host

    def poked(_path: str) -> None:
        if rng.random() < 0.5:
            race.interfered += 1
            host.store.transact(race.increment)

    race.seen = 0
    committed, again = race.run(count, poked)
    # The watch fires once when it is set, before the guest has begun.
    before = race.interfered - again
    assert before in {0, 1}
    assert committed + again == count
    assert committed > count // 4
    assert again > count // 4
    assert race.seen >= committed + again
    race.check(committed + race.interfered)


def test_interference_is_what_makes_a_transaction_fail(race: Race) -> None:
    interfere(race, 200)


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_10000_conflicting_transactions(race: Race) -> None:
    interfere(race, 10_000)


def test_watch_in_the_guest_sees_both_sides(race: Race) -> None:
    race.reset()
    race.guest.run("xenstore-watch data/race/counter > /tmp/fired 2> /dev/null & watcher=$!")
    race.guest.run("until [ -s /tmp/fired ]; do sleep 0.01; done")
    race.guest.run("xenstore_conflict 5")
    race.guest.run("until [ $(wc -l < /tmp/fired) -ge 2 ]; do sleep 0.01; done")
    before = int(race.guest.run("wc -l < /tmp/fired"))
    race.store.transact(race.increment)
    race.guest.run(f"until [ $(wc -l < /tmp/fired) -gt {before} ]; do sleep 0.01; done")
    assert set(race.guest.run("kill $watcher; cat /tmp/fired").splitlines()) == {
        "data/race/counter"
    }
    race.check(6)


@pytest.mark.parametrize(
    "count", [200, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(480)])]
)
def test_two_sides_at_full_speed(race: Race, count: int) -> None:
    """No increment is lost, whoever comes first; how many conflict is left to chance."""
    stop = threading.Event()
    added = 0

    def work() -> None:
        nonlocal added
        while not stop.wait(0.0005):
            race.store.transact(race.increment)
            added += 1

    race.reset()
    worker = threading.Thread(target=work)

    def poked(_path: str) -> None:
        if not worker.ident:
            worker.start()

    try:
        committed, again = race.run(count, poked)
    finally:
        stop.set()
        worker.join()
    assert committed + again == count
    assert added > 0
    race.check(committed + added)
