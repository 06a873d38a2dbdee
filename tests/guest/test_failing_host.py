"""What a running guest notices when the host fails it: an image, a network, or time for it.

Proves that errors reach the guest as I/O errors and the user as one line, that nothing stays without
an answer, and that a guest that asks without end leaves others their turn; with real hypercalls,
files, passt and qemu-storage-daemon. Cannot see what Linux's drivers make of it.
"""

from __future__ import annotations

import gc
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvmlite.backends.block import backend
from hvmlite.toolstack.config import MIB, DomainConfig
from hvmlite.toolstack.devices import disk, vif
from hvmlite.toolstack.devices.spec import DeviceSpec
from hvmlite.toolstack.domain import Domain
from hvmlite.toolstack.host import Host

from .run import Verdict, run_guest, verdict_of
from .test_guests import build_or_skip
from .test_liar import image

pytestmark = [pytest.mark.engine, pytest.mark.timeout(60)]
Start = Callable[..., Domain]


@pytest.fixture
def messages() -> list[str]:
    return []


@pytest.fixture
def host() -> Iterator[Host]:
    with Host(256 * MIB) as host:
        yield host


@pytest.fixture
def start(host: Host, messages: list[str]) -> Start:
    """Starts a guest with devices and waits until it has begun."""

    def make(guest: str, *devices: DeviceSpec, cmdline: str = "", begun: str = "begun") -> Domain:
        domain = host.create(
            DomainConfig(
                kernel=build_or_skip(guest, "hvm64"),
                cmdline=cmdline,
                memory=64 * MIB,
                devices=list(devices),
            )
        )
        domain.on_message = messages.append
        domain.start()
        domain.console.expect(begun, 20)
        return domain

    return make


def ends_well(domain: Domain) -> None:
    assert domain.wait(40) is not None, domain.console.output
    console = domain.console.output.decode()
    assert verdict_of(console, 0) is Verdict.SUCCESS, console


def said(messages: list[str]) -> list[str]:
    return [line for line in messages if "attached" not in line]


def eventually(condition: Callable[[], bool]) -> None:
    """What another process does may take its time."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def only_child(program: str) -> int:
    (found,) = [
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
        if program in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    ]
    return found


# ---- images -------------------------------------------------------------------------------------


def test_an_image_that_is_removed_and_cut_short(
    start: Start, messages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the new size might be noticed before the next read, which is then beyond the end.
    monkeypatch.setattr(backend, "_SIZE_NS", 3600 * 10**9)
    path = image(tmp_path / "disk")
    domain = start("steady_blk", disk.parse(f"{path},raw,xvda,rw"))
    with path.open("r+b") as file:
        path.unlink()
        file.truncate(512 * 1024)
    ends_well(domain)
    assert said(messages) == [
        f"vbd 51712 of domain {domain.id} has an I/O error at sector 2040: Input/output error"
    ]


def test_a_storage_daemon_that_is_killed(start: Start, messages: list[str], tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    domain = start("steady_blk", disk.parse(f"{path},qcow2,xvda,rw"), cmdline="lost=1")
    os.kill(only_child("qemu-storage-daemon"), signal.SIGKILL)
    ends_well(domain)
    (line,) = said(messages)
    assert line.startswith(f"vbd 51712 of domain {domain.id} has an I/O error at sector ")
    assert line.endswith(": the program that serves the image has gone")


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_full_file_system(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a mount namespace of its own, so that nothing of it is left."""
    small = tmp_path / "small"
    small.mkdir()
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    probe = [*unshare, "mount", "-t", "tmpfs", "none", str(small)]
    if (
        shutil.which("unshare") is None
        or subprocess.run(probe, capture_output=True, check=False).returncode
    ):
        pytest.skip("no user namespaces here")
    script = tmp_path / "run"
    script.write_text(
        f"""set -e
        mount -t tmpfs -o size=768k none {small}
        qemu-img create -q -f {form} {small}/disk 2M
        exec {shlex.quote(sys.executable)} -m hvmlite.cli.main run "$@"
        """
    )
    monkeypatch.setenv("HVMLITE_GUEST_RUNNER", shlex.join([*unshare, "sh", str(script)]))
    options = ["--disk", f"{small}/disk,{form},xvda,rw", "--cmdline", "write=1"]
    run = run_guest(build_or_skip("steady_blk", "hvm64"), options)
    assert run.verdict is Verdict.SUCCESS, run.report()
    (line,) = said(run.messages.splitlines())
    assert line.startswith("hvmlite: vbd 51712 of domain 1 has an I/O error at sector "), line
    assert line.endswith(": No space left on device"), line


# ---- networks -----------------------------------------------------------------------------------


def tell(host: Host, domain: Domain, node: str) -> None:
    host.call(lambda: host.store.write(f"/local/domain/{domain.id}/data/{node}", "1"))


def test_passt_that_is_killed(host: Host, start: Start, messages: list[str]) -> None:
    if shutil.which("passt") is None:
        pytest.skip("no passt")
    domain = start("steady_net", vif.parse("type=user"))
    os.kill(only_child("passt"), signal.SIGKILL)
    eventually(lambda: bool(said(messages)))
    tell(host, domain, "changed")
    domain.console.expect("100 frames since", 20)
    tell(host, domain, "stop")
    ends_well(domain)
    assert said(messages) == [
        f"vif 0 of domain {domain.id} lost its network: passt was ended by signal 9"
    ]


class Peer:
    """The other end of an interface's socket, which takes frames only when it is told to."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self.taken = 0

    def accept(self) -> None:
        self.connection, _ = self._listener.accept()
        self._listener.close()

    def take(self) -> None:
        while more := self.connection.recv(1 << 16):
            self.taken += len(more)

    def close(self) -> None:
        self.connection.close()


def test_a_network_that_takes_nothing(
    host: Host, start: Start, messages: list[str], tmp_path: Path
) -> None:
    """The guest has to wait, and nothing piles up in the host; then it goes on."""
    peer = Peer(tmp_path / "socket")
    domain = start(
        "steady_net", vif.parse(f"type=socket,path={tmp_path / 'socket'}"), begun="kept waiting"
    )
    peer.accept()
    thread = threading.Thread(target=peer.take, daemon=True)
    thread.start()
    domain.console.expect("goes on", 20)
    tell(host, domain, "stop")
    ends_well(domain)
    thread.join(10)
    assert peer.taken
    peer.close()
    assert said(messages) == []


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", ""),
        (struct.pack(">I", 5) + b"short", "it sent a frame of 5 bytes"),
        (struct.pack(">I", 1 << 31), "it sent a frame of 2147483648 bytes"),
    ],
    ids=["closed", "short", "huge"],
)
def test_a_peer_that_goes_or_lies(
    host: Host, start: Start, messages: list[str], tmp_path: Path, frame: bytes, reason: str
) -> None:
    """Also for one that was kept waiting until then: what it sends is lost, not stuck."""
    peer = Peer(tmp_path / "socket")
    domain = start(
        "steady_net", vif.parse(f"type=socket,path={tmp_path / 'socket'}"), begun="kept waiting"
    )
    peer.accept()
    if frame:
        peer.connection.sendall(frame)
    else:
        peer.close()
    domain.console.expect("goes on", 20)
    tell(host, domain, "stop")
    ends_well(domain)
    peer.close()
    (line,) = said(messages)
    assert line.startswith(f"vif 0 of domain {domain.id} lost its network: the peer at "), line
    assert line.endswith(reason), line


# ---- time for others ----------------------------------------------------------------------------


@pytest.mark.parametrize("liar", ["liar_blk", "liar_net"])
def test_requests_without_end_of_another_domain(
    start: Start, messages: list[str], tmp_path: Path, liar: str
) -> None:
    if liar == "liar_blk":
        device: DeviceSpec = disk.parse(f"{image(tmp_path / 'theirs')},raw,xvda,rw")
    else:
        device = vif.parse("type=domain,link=link")
    endless = start(liar, device, cmdline="endless=1")
    own = disk.parse(f"{image(tmp_path / 'ours')},raw,xvda,rw")
    ends_well(start("steady_blk", own, cmdline="count=300 lost=0", begun="steady: begun"))
    assert endless.wait(0) is None
    endless.destroy()
    assert said(messages) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("liar", ["liar_blk", "liar_net"])
def test_random_words_leave_nothing(
    host: Host, messages: list[str], tmp_path: Path, liar: str
) -> None:
    """As many objects and descriptors after a thousand rounds as after a few."""
    letters = "abcdefghijklm"

    def devices() -> list[DeviceSpec]:
        if liar == "liar_net":
            # What is random also goes to passt, which has to bear it.
            last = "type=user" if shutil.which("passt") else "type=domain,link=b"
            own = [vif.parse(f"type=domain,link=a,devid={i}") for i in range(10)]
            return [*own, vif.parse(f"{last},devid=100")]
        access = {each: "ro" if each == "m" else "rw" for each in letters}
        return [
            disk.parse(f"{image(tmp_path / each)},raw,xvd{each},{access[each]},persistent")
            for each in letters
        ]

    def run(rounds: int, seed: int) -> tuple[int, int]:
        domain = host.create(
            DomainConfig(
                kernel=build_or_skip(liar, "hvm64"),
                cmdline=f"rounds={rounds} seed={seed} outside=1",
                memory=64 * MIB,
                vcpus=2,
                devices=devices(),
            )
        )
        domain.on_message = messages.append
        domain.start()
        ends_well(domain)
        gc.collect()
        return len(gc.get_objects()), len(os.listdir("/proc/self/fd"))

    run(20, 1)
    objects, descriptors = run(20, 2)
    for seed in (3, 4):
        now = run(700, seed)
        assert now[0] < objects + 500
        assert now[1] == descriptors
        messages_of_bugs = [line for line in messages if "internal error" in line]
        assert messages_of_bugs == []
        messages.clear()
