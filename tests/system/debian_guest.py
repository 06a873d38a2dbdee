"""A whole Debian on a disk, used by root at its console as a person would."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from hvmlite.testing.apt import FetchError
from hvmlite.testing.rootfs import CMDLINE, PASSWORD, Rootfs, debian_rootfs

from .command import Command, Finished

BOOT_LIMIT = 180.0
"""Seconds from the start to a login prompt: a good boot takes 20, but the machine may be busy."""
SHUTDOWN_LIMIT = 120.0
INTERFACE = "enX0"
"""What udev calls the first PV network interface."""


def rootfs_or_skip() -> Rootfs:
    """The root file system; the test is skipped where it cannot be made."""
    try:
        return debian_rootfs()
    except FetchError as error:
        pytest.skip(str(error))


class DebianGuest:
    """`hvmlite run` of the root file system on the given disk; use it in a `with` statement.

    `disks` are the values of --disk; further `options` go to the command as they are.
    """

    def __init__(
        self,
        rootfs: Rootfs,
        disks: Sequence[str],
        *options: str | Path,
        memory: str = "1G",
        cmdline: str = "",
    ) -> None:
        self._command = Command(
            rootfs.kernel,
            *("--ramdisk", rootfs.ramdisk),
            *("--cmdline", f"{CMDLINE} {cmdline}".rstrip()),
            *("--memory", memory),
            *(word for disk in disks for word in ("--disk", disk)),
            *options,
            stdin=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        self._command.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._command.__exit__(kind, value, traceback)

    @property
    def boot_log(self) -> str:
        """All that its console has shown."""
        return self._command.output.decode(errors="backslashreplace")

    def login(self) -> None:
        """Waits for the login prompt and logs in as root, at a shell that neither echoes nor edits."""
        command = self._command
        command.expect(rb"debian login: ", BOOT_LIMIT)
        command.write(b"root\n")
        command.expect(rb"Password: ", BOOT_LIMIT)
        command.write(PASSWORD.encode() + b"\n")
        command.expect(rb"root@debian:~# ", BOOT_LIMIT)
        command.write(b"TERM=dumb PAGER=cat SYSTEMD_COLORS=0 PS1='#dash# ' exec dash\n")
        command.expect(rb"[\r\n]#dash# ")
        command.write(b"PS1= PS2=; stty -echo -onlcr; dmesg -n 1; echo '[ready]'\n")
        command.expect(rb"[\r\n]\[ready\]\r?\n")

    def attempt(self, line: str, timeout: float = 60.0) -> tuple[int, str]:
        """Runs a command line in the guest; returns its status and output, stderr included."""
        self._command.write(f'{{ {line}\n}} </dev/null 2>&1; echo "[status $?]"\n'.encode())
        begin = self._command.position
        found = self._command.expect(rb"\[status (\d+)\]\n", timeout)
        output = bytes(self._command.output[begin : found.start()])
        return int(found[1]), output.decode(errors="backslashreplace").replace("\r\n", "\n")

    def run(self, line: str, timeout: float = 60.0) -> str:
        """Runs a command line in the guest, which must succeed; returns its output."""
        status, output = self.attempt(line, timeout)
        assert status == 0, f"{line!r} ends with status {status}: {output}"
        return output

    def power_off(self) -> Finished:
        """Shuts it down in good order; returns how the command ended."""
        self._command.write(b"systemctl poweroff\n")
        return self._command.finish(timeout=SHUTDOWN_LIMIT)


def network_address(guest: DebianGuest) -> tuple[str, str]:
    """Waits until the guest has its address by DHCP; returns it and that of its gateway."""
    tests = f"ip -4 route show default dev {INTERFACE} | grep -q via"
    status, _ = guest.attempt(
        f"for i in $(seq 120); do {tests} && break; sleep 0.5; done; {tests}", 90
    )
    assert status == 0, guest.run("ip address; journalctl -b -u 'ifup@*' -u networking --no-pager")
    address = guest.run(f"ip -4 address show dev {INTERFACE} scope global")
    found = re.search(r"inet ([\d.]+)/\d+", address)
    gateway = re.search(r"default via ([\d.]+)", guest.run("ip -4 route show default"))
    assert found, address
    assert gateway
    return found[1], gateway[1]
