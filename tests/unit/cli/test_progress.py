"""Proves when `hvmlite run` says how far it has come, and that a plain run says nothing.

Cannot see how it looks.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from hvmlite.cli import progress as module
from hvmlite.cli.progress import ProgressLine, watcher
from hvmlite.errors import UserError
from hvmlite.toolstack.builder import Payload
from hvmlite.toolstack.kernel import load_kernel
from hvmlite.toolstack.progress import STEP, in_steps

MIB = 1 << 20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_what_is_quick_needs_no_word(clock: list[float]) -> None:
    stream = Terminal()
    line = ProgressLine(stream)
    for done in range(10):
        line("reading x", done, 10)
        clock[0] += 0.04
    line("reading x", 10, 10)
    assert stream.getvalue() == ""


def test_on_a_terminal(clock: list[float]) -> None:
    stream = Terminal()
    line = ProgressLine(stream)
    for done in (0, 100 * MIB, 100 * MIB + 1, 200 * MIB):
        line("reading\x1b x", done, 300 * MIB + 1)
        clock[0] += 0.02 if done == 100 * MIB else 0.6
    line("reading\x1b x", 300 * MIB + 1, 300 * MIB + 1)
    assert stream.getvalue() == (
        "\rhvmlite: reading\\x1b x: 100 of 301 MiB\x1b[K"
        "\rhvmlite: reading\\x1b x: 200 of 301 MiB\x1b[K"
        "\r\x1b[K"
    )


def test_elsewhere_a_line_for_each_tenth(clock: list[float]) -> None:
    stream = io.StringIO()
    line = ProgressLine(stream)
    for done in range(0, 1000, 5):
        line("copying x", done * MIB, 1000 * MIB)
        clock[0] += 1
    line("copying x", 1000 * MIB, 1000 * MIB)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[3] == "hvmlite: copying x: 300 of 1000 MiB"


def test_who_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, found in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr(module.sys, "stderr", stream)
        assert (watcher(None) is not None) is found
        assert watcher(True) is not None
        assert watcher(False) is None


def test_reading_and_copying_in_steps(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []

    def tell(what: str, done: int, size: int) -> None:
        told.append((what, done, size))

    path = tmp_path / "ramdisk"
    data = bytes(range(256)) * (2 * STEP // 256) + b"end"
    path.write_bytes(data)
    assert Payload.read(path, "ramdisk", 1 << 30, tell).data == data
    what = f"reading ramdisk {path}"
    assert told == [(what, at, len(data)) for at in (0, STEP, 2 * STEP, len(data))]
    told.clear()
    assert list(in_steps("x", STEP, tell)) == [(0, STEP)]
    assert list(in_steps("x", 5 * STEP, None)) == [(0, 5 * STEP)]
    assert told == []
    with pytest.raises(UserError, match="larger than the domain's memory"):
        Payload.read(path, "ramdisk", STEP)


def test_unpacking(tmp_path: Path) -> None:
    import gzip

    from ..toolstack.kernel.build import Elf

    path = tmp_path / "kernel.gz"
    path.write_bytes(gzip.compress(Elf().build()))
    told: list[tuple[str, int, int]] = []
    load_kernel(path, lambda *each: told.append(each)).close()
    # A plain gzip file does not say beforehand how much is in it.
    assert told == []
