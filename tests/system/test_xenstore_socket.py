"""`hvmlite run --xenstore-socket` and Host.listen_xenstore: the socket's life, and the Python face.

Proves how the socket comes and goes, that a guest that never rests does not starve it, and that
the store can be used from threads and asyncio while a guest runs. What clients can do there:
test_xenstore_tools.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from hvmlite import DomainConfig, Host, UserError
from hvmlite.toolstack.config import boot_memory

from .command import Command, hvmlite, wait_until
from .guests import SPIN, STORM, Shell, machine_code
from .store_tools import store_tools


@pytest.fixture
def spinning(tmp_path: Path) -> Path:
    """A kernel that does nothing, for as long as it is let."""
    return machine_code(tmp_path / "spin", SPIN)


def read(path: Path, node: str) -> str:
    done = subprocess.run(
        ["xenstore-read", node],
        env={**os.environ, "XENSTORED_PATH": str(path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout


needs_tools = pytest.mark.skipif(not store_tools(), reason="needs xenstore-utils")


@needs_tools
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_socket_lives_as_long_as_the_run(spinning: Path, tmp_path: Path, end: int) -> None:
    path = tmp_path / "run" / "socket"
    with Command(spinning, "--xenstore-socket", path, "--name", "spinner") as command:
        assert wait_until(path.exists, 30)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        command.wait_for_engine()
        assert wait_until(lambda: path_answers(path), 30)
        assert read(path, "/local/domain/1/name") == "spinner\n"
        os.kill(command.pid, end)
        command.finish()
    assert not path.parent.exists()


def path_answers(path: Path) -> bool:
    return (
        subprocess.run(
            ["xenstore-exists", "/local/domain/1/name"],
            env={**os.environ, "XENSTORED_PATH": str(path)},
            timeout=30,
            check=False,
            capture_output=True,
        ).returncode
        == 0
    )


@needs_tools
def test_socket_of_a_killed_run_is_replaced(spinning: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Command(spinning, "--xenstore-socket", path) as command:
        assert wait_until(lambda: path.exists() and path_answers(path), 30)
        os.kill(command.pid, signal.SIGKILL)
        command.finish()
    assert path.is_socket()
    with Command(spinning, "--xenstore-socket", path, "--name", "next") as command:
        assert wait_until(lambda: path_answers(path), 30)
        assert read(path, "/local/domain/1/name") == "next\n"
        os.kill(command.pid, signal.SIGTERM)
        command.finish()
    assert not path.exists()


def test_socket_in_use_is_refused_in_one_line(spinning: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        finished = hvmlite(spinning, "--xenstore-socket", path)
        assert finished.status == 2
        assert finished.messages == (
            f"hvmlite: xenstore socket {path}: in use by another process\n"
        )
        assert path.is_socket()


def test_impossible_socket_is_refused_in_one_line(spinning: Path, tmp_path: Path) -> None:
    finished = hvmlite(spinning, "--xenstore-socket", tmp_path / "a" / "b" / "socket")
    assert finished.status == 2
    assert finished.messages.count("\n") == 1
    assert "No such file or directory" in finished.messages


def test_help_names_the_variable() -> None:
    assert "XENSTORED_PATH" in hvmlite("--help").output


@needs_tools
def test_a_guest_that_never_rests_does_not_starve_the_socket(tmp_path: Path) -> None:
    """One hypercall after the other, without an end."""
    config = DomainConfig(kernel=machine_code(tmp_path / "storm", STORM), memory=32 << 20)
    with Host(boot_memory(config)) as host:
        domain = host.create(config)
        path = tmp_path / "socket"
        host.listen_xenstore(path)
        domain.start()
        for _ in range(5):
            assert read(path, "/local/domain/1/domid") == "1\n"
        assert domain.wait(0) is None


@pytest.mark.parametrize("version", ["4.17", "4.21"])
def test_store_is_that_of_the_release(version: str) -> None:
    with Host(64 << 20, xen_version=version) as host:
        assert ".".join(map(str, host.store.daemon.xen_version)) == version


def test_unknown_release() -> None:
    with pytest.raises(UserError, match=r"4\.9"):
        Host(64 << 20, xen_version="4.9")


def test_two_sockets_and_their_end(tmp_path: Path) -> None:
    with Host(64 << 20) as host:
        for name in ("one", "two"):
            host.listen_xenstore(tmp_path / name)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for client, name in zip(clients, ("one", "two"), strict=True):
            client.connect(str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []
    for client in clients:
        client.settimeout(20)
        assert client.recv(1) == b""
        client.close()


def test_asyncio_sees_what_the_guest_writes(debian: Shell) -> None:
    base = f"/local/domain/{debian.domain.id}/data/async"

    async def main() -> list[str]:
        seen = []
        async with debian.host.xenstore.watch(base) as watch:
            async for path in watch:
                seen.append(path)
                if len(seen) == 3:
                    break
                command = f"xenstore-write data/async/{len(seen)} x"
                await asyncio.to_thread(debian.run, command)
        return seen

    if not store_tools():
        pytest.skip("needs xenstore-utils")
    # A write makes the parents that are missing, and one event is of the node that was written.
    assert asyncio.run(asyncio.wait_for(main(), 60)) == [base, f"{base}/1", f"{base}/2"]


def test_threads_and_transactions_beside_a_guest(debian: Shell) -> None:
    store = debian.host.xenstore
    path = f"/local/domain/{debian.domain.id}/data/threads"
    store.write(path, "0")
    with store.transaction() as tx:
        tx.write(path, str(int(tx.read(path) or b"") + 1))
    assert store.transact(lambda tx: int(tx.read(path) or b"")) == 1
    assert debian.host.call(store.read, path) == b"1"
    store.rm(path)


def test_watch_ends_with_its_host() -> None:
    with Host(64 << 20) as host:
        watch = host.xenstore.watch("/local")
        assert watch.get(20) == "/local"
    assert list(watch) == []
    watch.close()
