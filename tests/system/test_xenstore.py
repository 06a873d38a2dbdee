"""The guest's side of xenstore: Debian's own tools over the kernel's connection.

Proves that they and the host see one store. Cannot see the protocol's corners: tests/unit does.
"""

from __future__ import annotations

import pytest

from .guests import Shell
from .store_tools import store_tools


@pytest.fixture(scope="module")
def store(debian: Shell) -> Shell:
    if not store_tools():
        pytest.skip("no xenstore programs on this machine: install xenstore-utils")
    return debian


def _home(guest: Shell) -> str:
    return f"/local/domain/{guest.domain.id}"


def test_listing(store: Shell) -> None:
    listing = store.run(f"xenstore-ls -f -p {_home(store)}")
    home = _home(store)
    lines = dict(line.partition(" = ")[::2] for line in listing.splitlines())
    config = store.domain.config
    assert lines[f"{home}/name"].startswith(f'"{config.title}"')
    assert lines[f"{home}/domid"].startswith(f'"{store.domain.id}"')
    assert lines[f"{home}/memory/target"].startswith(f'"{config.memory >> 10}"')
    assert lines[f"{home}/cpu/0/availability"].startswith('"online"')
    assert lines[f"{home}/console/type"].startswith('"xenconsoled"')
    assert f"(n0,r{store.domain.id})" in lines[f"{home}/name"]


def test_listing_below_home_by_relative_path(store: Shell) -> None:
    assert store.run("xenstore-read domid") == f"{store.domain.id}\n"


def test_guest_writes(store: Shell) -> None:
    store.run("xenstore-write data/from-guest 'some words'")
    path = f"{_home(store)}/data/from-guest"
    assert store.call(lambda: store.host.store.read(path)) == b"some words"


def test_host_writes(store: Shell) -> None:
    path = f"{_home(store)}/data/from-host"
    store.call(lambda: store.host.store.write(path, "answer", [f"n{store.domain.id}"]))
    assert store.run("xenstore-read data/from-host") == "answer\n"


def test_guest_may_not_write_what_is_not_its_own(store: Shell) -> None:
    status, output = store.attempt("xenstore-write name other 2>&1")
    assert status != 0, output
    status, output = store.attempt("xenstore-read /local/domain/0/backend 2>&1")
    assert status != 0, output
    name = store.call(lambda: store.host.store.read(f"{_home(store)}/name"))
    assert name == store.domain.config.title.encode()


def test_watch(store: Shell) -> None:
    """The watch fires once when it is set, then for the host's change."""
    path = f"{_home(store)}/data/watched"
    store.run("xenstore-write data/watched 0")
    store.run("xenstore-watch -n 2 data/watched > /tmp/fired 2> /dev/null & sleep 0.2")
    store.call(lambda: store.host.store.write(path, "1"))
    assert store.run("wait; cat /tmp/fired") == "data/watched\n" * 2
