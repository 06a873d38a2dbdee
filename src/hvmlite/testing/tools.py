"""Runs the host's tools of which tests' images are made; none outlives us or is left half ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from hvmlite.backends.process import die_with_parent
from hvmlite.testing.apt import FetchError

_LIMIT = 900.0
_GRACE = 5.0
"""Seconds that a tool has to end what it started itself."""
_TOLD = 4000
"""Characters of a failed tool's output that the error repeats."""


def environment() -> dict[str, str]:
    """Return our own environment, with the tools that lie where only root's PATH goes."""
    return dict(os.environ, LC_ALL="C", PATH=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def run(
    *argv: str | Path,
    data: str = "",
    env: Mapping[str, str] | None = None,
    output: Path | None = None,
    limit: float = _LIMIT,
) -> None:
    """Run a command with ``data`` as its input, for ``limit`` seconds at most.

    ``output`` is the file that its standard output goes to. ``env`` replaces `environment`. Call it
    from the main thread: the kernel kills the command with the thread that started it.

    Raises:
        FetchError: there is no such command, it failed (with the end of what it printed), or it
            took too long.
    """
    command = [str(each) for each in argv]
    env = environment() if env is None else env
    if shutil.which(command[0], path=env["PATH"]) is None:
        raise FetchError(f"{command[0]} not found (run 'make setup')")
    with contextlib.ExitStack() as files:
        target: int | IO[bytes] = subprocess.PIPE
        if output is not None:
            target = files.enter_context(output.open("wb"))
        try:
            process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.PIPE,
                stdout=target,
                stderr=subprocess.STDOUT if output is None else subprocess.PIPE,
                process_group=0,
                # Only prctl and getppid, loaded beforehand: no lock can be taken in the child.
                preexec_fn=die_with_parent(os.getpid()),  # noqa: PLW1509
            )
        except OSError as error:
            raise FetchError(str(error)) from error
        with process:
            try:
                streams = process.communicate(data.encode(), timeout=limit)
            except subprocess.TimeoutExpired as error:
                _end(process)
                raise FetchError(str(error)) from error
            except BaseException:
                _end(process)
                raise
    if process.returncode != 0:
        said = b"".join(filter(None, streams)).decode(errors="backslashreplace")
        status = f"{command[0]}: exit status {process.returncode}"
        raise FetchError(f"{status}\n{said[-_TOLD:]}".rstrip())


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command and its process group, at first as Ctrl-C does: fakeroot ends its daemon."""
    group = process.pid
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGINT)
        deadline = time.monotonic() + _GRACE
        while time.monotonic() < deadline and _runs(group):
            time.sleep(0.05)
        # The command is not waited for yet, so that its group's number is nobody else's.
        os.killpg(group, signal.SIGKILL)
    process.wait()


def _runs(group: int) -> bool:
    """Return whether any process of the group has not ended (proc(5): stat)."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return True
    return False
