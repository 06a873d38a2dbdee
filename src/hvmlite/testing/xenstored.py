"""Xen's own xenstored without Xen, to be compared with: in tests and in benchmarks.

The program is Debian's, unmodified; a small library of ours (xenstored_shim.c) stands in for the
hypervisor calls that it makes. Needs gcc, libxen-dev and what scripts/fetch_xen_tools.py fetches.
"""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from hvmlite.errors import EngineError, UserError
from hvmlite.testing import assets

SHIM = Path(__file__).with_name("xenstored_shim.c")
_START_LIMIT = 10.0
_FIRST_PORT = 1000
PAGE_SIZE = 4096


class Xenstored:
    """A running xenstored; `path` is its socket.

    Raises:
        UserError: it, or gcc, or Xen's headers are missing.
        EngineError: it does not start.
    """

    def __init__(self, *options: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="hvmlite-xenstored-"))
        self.path = self._folder / "socket"
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start(options)
        except BaseException:
            self.close()
            raise

    def _start(self, options: tuple[str, ...]) -> None:
        program = assets.xen_tool("xenstored")
        if shutil.which("gcc") is None:
            raise UserError("xenstored: no gcc to build its shim with")
        shim = self._folder / "shim.so"
        done = subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O1", "-o", shim, SHIM],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise UserError(f"xenstored: its shim does not compile: {done.stderr.strip()}")
        os.mkfifo(self._folder / "kicks")
        (self._folder / "port").write_text("1\n")
        self.page(0)
        env = os.environ | {
            "HVMLITE_SHIM": str(self._folder),
            "LD_PRELOAD": str(shim),
            "XENSTORED_RUNDIR": str(self._folder),
            "XENSTORED_ROOTDIR": str(self._folder),
            "XENSTORED_PATH": str(self.path),
        }
        pid_file = self._folder / "pid"
        self._process = subprocess.Popen(
            [program, "--no-fork", "--internal-db", "--pid-file", pid_file, *options],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._kicks = os.open(self._folder / "kicks", os.O_RDWR | os.O_NONBLOCK)
        deadline = time.monotonic() + _START_LIMIT
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(os.fspath(self.path))
                except OSError:
                    if time.monotonic() > deadline or self._process.poll() is not None:
                        raise EngineError("xenstored does not start") from None
                    time.sleep(0.01)
                else:
                    return

    @property
    def pid(self) -> int:
        """Its process number."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process is not None and self._process.poll() is None

    def page(self, domid: int) -> mmap.mmap:
        """The xenstore page of a domain, empty; to be made before the domain is introduced."""
        path = self._folder / f"ring-{domid}"
        path.write_bytes(bytes(PAGE_SIZE))
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), PAGE_SIZE)

    def kick(self, domid: int) -> None:
        """Send the event of a domain that has written into its page."""
        os.write(self._kicks, struct.pack("=I", _FIRST_PORT + domid))

    def close(self) -> None:
        """End it and remove its files."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            os.close(self._kicks)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
