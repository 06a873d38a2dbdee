"""Proves that tools' failures are clear errors and that none of them, nor what they start, is left.

Cannot see daemons that leave their process group: fakeroot's is ended by fakeroot itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hvmlite.testing import tools
from hvmlite.testing.apt import FetchError

LIMIT = 10.0


def ends(pid: int) -> bool:
    """Whether the process ends, or has; a zombie whom nobody has waited for has ended."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_input(tmp_path: Path) -> None:
    tools.run("sh", "-c", 'cat >"$0"', tmp_path / "copy", data="some text")
    assert (tmp_path / "copy").read_text() == "some text"


def test_a_failure_says_what_was_printed() -> None:
    with pytest.raises(FetchError, match=r"^sh: exit status 3\none\ntwo$"):
        tools.run("sh", "-c", "echo one; echo two >&2; exit 3")


def test_no_such_tool() -> None:
    with pytest.raises(FetchError, match=r"^none-such not found \(run 'make setup'\)$"):
        tools.run("none-such")


def test_a_limit_ends_the_whole_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_GRACE", 0.1)
    note = tmp_path / "pid"
    with pytest.raises(FetchError, match="timed out"):
        tools.run("sh", "-c", 'sleep 60 & echo $! >"$0"; wait', note, limit=1.0)
    assert ends(int(note.read_text()))


def test_who_ignores_an_interrupt_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "_GRACE", 0.1)
    note = tmp_path / "pid"
    with pytest.raises(FetchError, match="timed out"):
        tools.run("sh", "-c", 'trap "" INT; echo $$ >"$0"; sleep 60; sleep 60', note, limit=1.0)
    assert ends(int(note.read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_our_end_is_theirs(tmp_path: Path, number: signal.Signals) -> None:
    note = tmp_path / "pid"
    program = (
        "import signal, sys; from hvmlite.testing.tools import run; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "run('sh', '-c', 'echo $$ >$0.new; mv $0.new $0; exec sleep 60', sys.argv[1])"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, note], stderr=subprocess.DEVNULL, env=dict(os.environ)
    )
    deadline = time.monotonic() + LIMIT
    while not note.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(number)
    child.wait(LIMIT)
    assert ends(int(note.read_text()))
