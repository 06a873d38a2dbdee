"""Proves further consoles, and the first one on a socket or terminal, with Linux's own driver.

Cannot see other systems' drivers, nor xenstore clients that look for a channel by its name.
"""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path

import pytest

from hvmlite.toolstack.devices.console import ChannelSpec, Connection

from .command import Command, wait_until
from .conftest import Boot
from .guests import QUIET, Shell


def read(peer: socket.socket, until: bytes) -> bytes:
    data = b""
    while not re.search(until + rb"\r?\n\Z", data):
        more = peer.recv(1 << 16)
        assert more, data
        data += more
    return data


def test_channels(linux: Path, shell_cpio: Path, uvm: Boot, tmp_path: Path) -> None:
    """A socket whose clients come and go, and a file; then one that comes while the guest runs."""
    path, log = tmp_path / "s", tmp_path / "log"
    guest = uvm(
        linux,
        shell=True,
        ramdisk=shell_cpio,
        cmdline=QUIET,
        memory=256 << 20,
        devices=[
            ChannelSpec(Connection("socket", path, log), "org.test.one"),
            ChannelSpec(Connection("file", tmp_path / "two"), "two"),
        ],
    )
    assert isinstance(guest, Shell)
    # A closed line forgets its settings.
    line = "< /dev/hvc1 > /dev/hvc1"
    answer = 'while read -r word; do echo "<$word>"; done'
    guest.run(f"(stty raw -echo; touch /tmp/raw; {answer}) {line} &")
    guest.run("until [ -e /tmp/raw ]; do sleep 0.05; done")
    for word in (b"one", b"two", b"three"):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(20)
            peer.connect(str(path))
            peer.sendall(word + b"\n")
            assert read(peer, b">") == b"<" + word + b">\n"
    guest.run("(stty raw; seq 1 5000) < /dev/hvc2 > /dev/hvc2")
    numbers = "".join(f"{i}\n" for i in range(1, 5001)).encode()
    assert wait_until(lambda: (tmp_path / "two").read_bytes() == numbers, 20)
    assert log.read_bytes() == b"<one>\n<two>\n<three>\n"
    late = ChannelSpec(Connection("file", tmp_path / "late"), "late")
    assert guest.domain.attach(late) == ("console", 3)
    there = "/sys/bus/xen/devices/console-3"
    guest.run(f"until [ -e {there}/driver ]; do sleep 0.05; done")
    guest.run("(stty raw; echo hi) < /dev/hvc3 > /dev/hvc3")
    assert wait_until(lambda: (tmp_path / "late").read_bytes() == b"hi\n", 20)
    assert guest.domain.detach("console", 3)
    guest.run(f"while [ -e {there} ]; do sleep 0.05; done")
    assert guest.run("cat /sys/class/tty/console/active") == "hvc0\n"


@pytest.mark.slow
def test_the_first_console_by_the_command(linux: Path, shell_cpio: Path, tmp_path: Path) -> None:
    path, log = tmp_path / "s", tmp_path / "log"
    with Command(
        linux, "--ramdisk", shell_cpio, "--cmdline", QUIET, "--console",
        f"connection=socket,path={path}", "--console-log", log, stdin=subprocess.DEVNULL,
    ) as command:  # fmt: skip
        assert wait_until(path.exists, 20)
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(60)
            peer.connect(str(path))
            read(peer, b"shell guest is ready")
            peer.sendall(b"echo $((6 * 7))\n")
            assert read(peer, rb"\[status 0\]") == b"42\n[status 0]\n"
            peer.sendall(b"poweroff -f\n")
            run = command.finish(timeout=20)
    assert run.status == 0, run
    assert run.output == ""
    assert run.lines == [f"hvmlite: console: socket {path}"]
    assert b"ready\n42\n[status 0]\n" in log.read_bytes()
    assert not path.exists()
