"""Boots Debian's unmodified kernel under `hvmlite run` and shows what it says, as a user would.

With a terminal on both ends the guest offers a shell; otherwise it reports and powers off. Exits 0
only if the guest's own lines said that it ran as a Xen guest and ended well.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from hvmlite.errors import UserError
from hvmlite.testing import assets, ramdisk

ROOT = Path(__file__).resolve().parents[1]
# What the guest prints, in this order.
EXPECTED = (
    ramdisk.DEMO_USERSPACE.encode(),
    b"hypervisor type: xen",
    b"hypervisor version: ",
    ramdisk.DEMO_END.encode(),
)
TIME_LIMIT_S = 120


class Session:
    """The guest's console output so far, as far as the demo has to know it."""

    def __init__(self) -> None:
        self.userspace_after_s: float | None = None
        self._awaited = list(EXPECTED)
        self._tail = b""

    def feed(self, data: bytes, elapsed_s: float) -> None:
        """Take in more output, which came ``elapsed_s`` seconds after the start."""
        self._tail += data
        while self._awaited and (at := self._tail.find(self._awaited[0])) >= 0:
            self._tail = self._tail[at + len(self._awaited.pop(0)) :]
            if self.userspace_after_s is None:
                self.userspace_after_s = elapsed_s
        self._tail = self._tail[-256:]

    @property
    def missing(self) -> str | None:
        """The first line that was expected and did not come."""
        return self._awaited[0].decode() if self._awaited else None


def command(interactive: bool, initrd: Path) -> list[str]:
    """Return the `hvmlite run` command that the demo is about."""
    # Beside the interpreter: where pip put it.
    argv = [_short(Path(sys.executable).parent / "hvmlite"), "run", _short(assets.kernel())]
    argv += ["--ramdisk", _short(initrd), "--cmdline", "console=hvc0 loglevel=3"]
    if not interactive:
        argv += ["--timeout", str(TIME_LIMIT_S)]
    return argv


def run(argv: list[str], interactive: bool) -> tuple[int, Session]:
    """Run ``argv``, passing the guest's output through; return its status and what was seen."""
    session = Session()
    start = time.perf_counter()
    with subprocess.Popen(
        argv,
        stdin=None if interactive else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        try:
            while data := process.stdout.read(65536):
                session.feed(data, time.perf_counter() - start)
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            status = process.wait()
        except BaseException:
            process.terminate()
            raise
    return status, session


def main() -> int:
    """Run the demo."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    initrd = ROOT / "build" / "demo" / "initrd.cpio"
    try:
        content = ramdisk.demo(interactive=interactive, term=os.environ.get("TERM", "vt100"))
        initrd.parent.mkdir(parents=True, exist_ok=True)
        initrd.write_bytes(content)
        argv = command(interactive, initrd)
        print(f"$ {shlex.join(argv)}", flush=True)
        status, session = run(argv, interactive)
    except (OSError, UserError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 1
    if session.userspace_after_s is not None:
        print(f"demo: userspace {session.userspace_after_s:.1f} s after the command's start")
    if status != 0:
        print(f"demo: hvmlite ended with status {status}", file=sys.stderr)
        return 1
    if session.missing is not None:
        print(f"demo: the guest never printed {session.missing!r}", file=sys.stderr)
        return 1
    print("demo: the guest ran as a Xen guest and powered itself off")
    return 0


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
