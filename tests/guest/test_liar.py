"""Guests that lie to their PV devices: each lie ends in a message or an error, and all else goes on.

Proves it with real hypercalls and vCPUs, for consoles, shared folders, disks and networks; what the
lies are is in tables in the guests' sources. Cannot see what the unit tests of each backend set up
with a scripted frontend, such as images that fail.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections import Counter
from pathlib import Path

import pytest

from .run import GuestRun, Verdict, run_guest
from .test_guests import build_or_skip

MESSAGES = 10
"""What the host says about one device at most."""
CAUGHT = re.compile(r"^caught: (\S+ \d+): (.*) \[(.*)\]$", re.MULTILINE)
CUT_OFF = re.compile(r"^hvmlite: (\S+ \d+) of domain 1 is cut off: (.*)$", re.MULTILINE)
SECTORS = 2048
OURS = SECTORS - 8
"""The first of the sectors that liar_blk writes to."""
XVDA = 51712


def check(run: GuestRun, lies: int) -> set[str]:
    """Compares what each lie is said to end in with the host's messages; returns the devices."""
    assert run.verdict is Verdict.SUCCESS, run.report()
    said: dict[str, list[str]] = {}
    for device, reason in CUT_OFF.findall(run.messages):
        said.setdefault(device, []).append(reason)
    caught = CAUGHT.findall(run.console)
    assert len(caught) == lies, run.report()
    number: Counter[str] = Counter()
    for device, what, reason in caught:
        pattern = re.escape(reason).replace(r"\*", ".*")
        message = said[device][number[device]]
        if number[device] == MESSAGES - 1:
            pattern += r" \(further messages about it are left out\)"
        assert re.fullmatch(pattern, message), (device, what, reason, message)
        number[device] += 1
    for device, messages in said.items():
        # Nothing else about them; and about the others, that of random words, not too much.
        assert len(messages) == number[device] or device not in number, run.report()
        assert len(messages) <= MESSAGES
    # One line each, and no bug of ours.
    others = [
        line
        for line in run.messages.splitlines()
        if "attached" not in line and not CUT_OFF.match(line)
    ]
    assert others == [], run.report()
    assert "internal error" not in run.messages, run.report()
    return set(number)


@pytest.mark.engine
@pytest.mark.timeout(60)
@pytest.mark.parametrize("variant", ["hvm64", "hvm32pae"])
def test_consoles_and_folders(variant: str, tmp_path: Path) -> None:
    elf = build_or_skip("liar", variant)
    output = tmp_path / "output"
    folder = tmp_path / "folder"
    folder.mkdir()
    options = ["--channel", f"name=liar,connection=file,path={output}"]
    options += ["--channel", f"name=random,connection=file,path={tmp_path / 'random'}"]
    options += ["--p9", f"tag=liar,path={folder}", "--p9", f"tag=random,path={folder},readonly"]
    check(run_guest(elf, options), 17)
    assert set(output.read_text().splitlines()) == {"honest"}
    assert list(folder.iterdir()) == []


def image(path: Path) -> Path:
    """A disk on which each sector begins with its number."""
    path.write_bytes(b"".join(struct.pack("<Q", number) * 64 for number in range(SECTORS)))
    return path


@pytest.mark.engine
@pytest.mark.timeout(60)
@pytest.mark.parametrize("variant", ["hvm64", "hvm32pae"])
def test_disks(variant: str, tmp_path: Path) -> None:
    elf = build_or_skip("liar_blk", variant)
    letters = "abcdefghijklm"
    disks = {f"vbd {XVDA + 16 * i}": image(tmp_path / each) for i, each in enumerate(letters)}
    options = ["--vcpus", "2"]
    for letter, path in zip(letters, disks.values(), strict=True):
        access = "ro" if letter == letters[-1] else "rw"
        options += ["--disk", f"{path},raw,xvd{letter},{access},persistent"]
    run = run_guest(elf, options)
    lied_to = check(run, 29 + 2 * 26)
    assert len(lied_to) == 9
    untouched = image(tmp_path / "untouched").read_bytes()[: OURS * 512]
    for device, path in disks.items():
        # Random words may be an honest write.
        if f"random: {device}" not in run.console:
            assert path.read_bytes()[: OURS * 512] == untouched, device


class Outside:
    """The other end of an interface's socket: all frames that come out."""

    def __init__(self, path: Path) -> None:
        self.data = b""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while more := connection.recv(1 << 16):
                self.data += more

    def frames(self) -> list[bytes]:
        """Once the other end has gone."""
        self._thread.join(10)
        self._listener.close()
        found, at = [], 0
        while at < len(self.data):
            (size,) = struct.unpack_from(">I", self.data, at)
            found.append(self.data[at + 4 : at + 4 + size])
            at += 4 + size
        return found


@pytest.mark.engine
@pytest.mark.timeout(60)
@pytest.mark.parametrize("variant", ["hvm64", pytest.param("hvm32pae", marks=pytest.mark.slow)])
def test_networks(variant: str, tmp_path: Path) -> None:
    elf = build_or_skip("liar_net", variant)
    outside = Outside(tmp_path / "socket")
    options = ["--vcpus", "2", *["--vif", "type=domain,link=liar"] * 10]
    options += ["--vif", f"type=socket,path={tmp_path / 'socket'},devid=100"]
    run = run_guest(elf, options)
    lied_to = check(run, 37 + 29)
    assert len(lied_to) == 7
    frames = outside.frames()
    # What cannot be finished is lost; the honest frames are not.
    assert frames, run.report()
    for frame in frames:
        assert (len(frame), frame[12:14]) == (100, b"\x88\xb5"), frame
    assert len(frames) == 3
