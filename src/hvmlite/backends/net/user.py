"""A network of the user's own, without any rights: the program passt, one process an interface.

passt gives the guest an address by DHCP, DNS, and the host's own connections; the guest finds the
host's loopback interface at the gateway's address. Facts: passt(1) for the command line.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hvmlite.backends.net.stream import StreamEndpoint, enlarge
from hvmlite.backends.process import die_with_parent
from hvmlite.errors import UserError

if TYPE_CHECKING:
    from hvmlite.hypervisor.host import Host

ENVIRONMENT = "HVMLITE_PASST"
MTU = 65516
"""What passt tells the guest by default: the most that Linux's netfront takes (it keeps room for a
VLAN tag in 65535 bytes), in words of 4 bytes.  Few long frames cost both sides least."""
_WORDS = 65536


@dataclass(frozen=True)
class Forward:
    """A port of the host's that leads into the guest; `address` "" is all of the host's."""

    protocol: str
    address: str
    port: int
    guest_port: int

    @property
    def option(self) -> list[str]:
        """What passt calls it."""
        where = f"{self.address}/" if self.address else ""
        flag = "-t" if self.protocol == "tcp" else "-u"
        return [flag, f"{where}{self.port}:{self.guest_port}"]

    def check(self) -> None:
        """Raises UserError if the port cannot be had."""
        kind = socket.SOCK_STREAM if self.protocol == "tcp" else socket.SOCK_DGRAM
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.address, self.port))
            except OSError as error:
                where = self.address or "any address"
                raise UserError(
                    f"cannot forward {self.protocol} port {self.port} of {where}: {error.strerror}"
                ) from error


def find_passt() -> str:
    """Returns the path of passt: $HVMLITE_PASST, else the one in PATH; raises UserError."""
    wanted = os.environ.get(ENVIRONMENT, "passt")
    path = shutil.which(wanted)
    if path is None:
        raise UserError(f"{wanted} not found, which type=user needs: install the package passt")
    return path


class UserNetwork(StreamEndpoint):
    """passt and the connection to it.  `options` are further ones of passt's; raises UserError."""

    # passt looks at no checksum that a guest made, and takes TCP segments of any length: what they
    # hold goes into a socket of the host's, whose kernel makes its own segments.
    csum_blank = True
    gso = True
    # What comes from passt has been received by the host's kernel, and its checksums are made anew.
    validated = True

    def __init__(
        self,
        host: Host,
        report: Callable[[str], None],
        *,
        mtu: int = MTU,
        forwards: Sequence[Forward] = (),
        options: Sequence[str] = (),
    ) -> None:
        super().__init__(host, report)
        path = find_passt()
        for forward in forwards:
            forward.check()
        ours, theirs = socket.socketpair()
        self._log = os.memfd_create("hvmlite-passt-log", os.MFD_CLOEXEC)
        try:
            with theirs:
                with contextlib.suppress(OSError):
                    enlarge(theirs)
                arguments = [path, "-f", "-q", "-e", "-m", str(mtu), *options]
                for forward in forwards:
                    arguments += forward.option
                self._process = subprocess.Popen(
                    [*arguments, "--fd", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    pass_fds=(theirs.fileno(),),
                    # Void where passt gives up root; but it also ends when its connection does.
                    preexec_fn=die_with_parent(os.getpid()),  # noqa: PLW1509
                    process_group=0,
                )
        except BaseException:
            ours.close()
            os.close(self._log)
            raise
        self.pid = self._process.pid
        self.connect(ours)

    def ended(self, reason: str) -> None:
        """passt died: says why, in its own last words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        status = self._process.poll()
        if status is not None and status < 0:
            # What it said before has nothing to do with that.
            self._report(f"lost its network: passt was ended by signal {-status}")
        else:
            self._report(f"lost its network: passt ended: {self._last_words() or reason}")

    def _last_words(self) -> str:
        os.lseek(self._log, 0, os.SEEK_SET)
        text = os.read(self._log, _WORDS).decode(errors="replace")
        lines = [line for line in text.splitlines() if line and "syslog" not in line]
        return lines[-1] if lines else ""

    def close(self) -> None:
        """Ends passt."""
        super().close()
        if self._log < 0:
            return
        if self._process.poll() is None:
            # As root it is another user's process by now, which ends with its connection.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                self._process.kill()
            self._process.wait()
        os.close(self._log)
        self._log = -1
