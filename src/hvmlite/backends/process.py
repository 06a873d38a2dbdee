"""Programs that serve a device beside us: they end when we do, however that happens.

Facts: prctl(2) for PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence

from hvmlite.errors import UserError

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def die_with_parent(parent: int) -> Callable[[], None]:
    """For the child between fork and exec: be killed when the parent's thread ends."""
    prctl, getppid, leave = _libc.prctl, os.getppid, os._exit
    kill = int(signal.SIGKILL)

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, kill, 0, 0, 0)
        # The parent may have died before the request took effect.
        if getppid() != parent:
            leave(1)

    return prepare


class HelperProcess:
    """A program without input; what it prints is kept for `last_words`.

    Start it from the host loop's thread: the kernel kills it with that thread.  Raises UserError,
    naming the Debian `package`, if there is no such program.
    """

    def __init__(self, arguments: Sequence[str], package: str, fds: Sequence[int] = ()) -> None:
        self.name = arguments[0]
        path = shutil.which(self.name)
        if path is None:
            raise UserError(f"{self.name} not found: install the package {package}")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [path, *arguments[1:]],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=fds,
                # Only prctl and getppid, loaded beforehand: no lock can be taken in the child.
                preexec_fn=die_with_parent(os.getpid()),  # noqa: PLW1509
                process_group=0,
            )
        except OSError as error:
            self._log.close()
            raise UserError(f"cannot start {path}: {error.strerror}") from error

    def last_words(self) -> str:
        """Waits a moment for its end; the last line that it printed, or how it ended."""
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return f"{self.name} does not answer"
        self._log.seek(0)
        lines = self._log.read(65536).decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"{self.name} ended with status {status}"

    def close(self) -> None:
        """Kills and reaps it; safe to call twice."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
        self._log.close()
