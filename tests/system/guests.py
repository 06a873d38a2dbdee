"""Guests for the system tests: a Linux that takes commands, and machine code of a few bytes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from hvmlite import Domain, DomainConfig, Host
from hvmlite.testing import ramdisk
from hvmlite.toolstack.config import boot_memory

from ..unit.toolstack.kernel.build import LOAD_ADDRESS, Elf, Load, entry_note

T = TypeVar("T")

BOOT_LIMIT = 60.0
"""Seconds for a boot: a good one takes two, but the machine may be busy."""
QUIET = "console=hvc0 panic=-1 loglevel=0"

SPIN = b"\xeb\xfe"  # jmp .
UD2 = b"\x0f\x0b"  # without an IDT: a triple fault
HLT = b"\xfa\xf4"  # cli; hlt: the vCPU is down for good
# mov $__HYPERVISOR_xen_version, %eax; xor %ebx, %ebx; xor %ecx, %ecx; vmmcall; jmp to the start
STORM = b"\xb8\x11\x00\x00\x00\x31\xdb\x31\xc9\x0f\x01\xd9\xeb\xf2"

_READY = "shell guest is ready"

# Not an interactive shell: it would edit and echo what it reads.
_SHELL_INIT = f"""\
#!/bin/busybox sh
export PATH=/bin:/usr/bin HOME=/
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
stty -echo -onlcr
echo '{_READY}'
while read -r line; do
    eval "$line"
    echo "[status $?]"
done
poweroff -f
"""

# What a user has before him: a prompt, with line editing and echo.
_PROMPT_INIT = """\
#!/bin/busybox sh
export PATH=/bin HOME=/ PS1='guest# '
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
setsid cttyhack sh
poweroff -f
"""


def shell_ramdisk(files: Mapping[str, bytes | ramdisk.Entry] | None = None) -> bytes:
    """A ramdisk that runs each line of its console as a command and says how it ended."""
    return ramdisk.build(_SHELL_INIT, applets=ramdisk.all_applets(), files=files)


def prompt_ramdisk() -> bytes:
    """A ramdisk with a shell for people."""
    return ramdisk.build(_PROMPT_INIT, applets=ramdisk.all_applets())


def script_ramdisk(script: str) -> bytes:
    """A ramdisk that runs a few commands and powers off."""
    mounts = "export PATH=/bin\nmount -t proc proc /proc\nmount -t sysfs sys /sys\n"
    return ramdisk.build(
        f"#!/bin/busybox sh\n{mounts}{script}\npoweroff -f\n", applets=ramdisk.all_applets()
    )


def machine_code(path: Path, code: bytes) -> Path:
    """Writes a kernel that consists of this 32-bit code."""
    elf = Elf(loads=[Load(paddr=LOAD_ADDRESS, data=code)], notes=entry_note())
    path.write_bytes(elf.build())
    return path


class Guest:
    """A booted domain on a host of its own, and short ways to what tests do with it."""

    def __init__(self, config: DomainConfig) -> None:
        self.host = Host(boot_memory(config))
        try:
            self.domain: Domain = self.host.create(config)
            self.console = self.domain.console
            self.domain.start()
        except BaseException:
            self.host.close()
            raise

    def close(self) -> None:
        """Ends the guest and its host."""
        self.host.close()

    def call(self, function: Callable[[], T]) -> T:
        """Runs a function in the host's thread."""
        return self.host.call(function)

    def read(self, address: int, size: int) -> bytes:
        """Guest-physical memory."""
        return self.host.call(self.domain.incarnation.domain.memory.read, address, size)

    def write(self, address: int, data: bytes) -> None:
        """Changes guest-physical memory, as a backend or a debugger would."""
        self.host.call(self.domain.incarnation.domain.memory.write, address, data)


class Shell(Guest):
    """A Linux guest with the ramdisk of `shell_ramdisk`."""

    def ready(self) -> None:
        """Waits until it takes commands."""
        self.console.expect(_READY + "\r?\n", BOOT_LIMIT)

    def run(self, command: str, timeout: float = 30.0) -> str:
        """Runs a command line in the guest; returns its output. The command must succeed."""
        status, output = self.attempt(command, timeout)
        assert status == 0, f"{command!r} ends with status {status}: {output}"
        return output

    def attempt(self, command: str, timeout: float = 30.0) -> tuple[int, str]:
        """Runs a command line in the guest; returns its status and output."""
        self.console.write(command + "\n")
        deadline = time.monotonic() + timeout
        data = b""
        while (found := re.search(rb"\[status (\d+)\]\n\Z", data[-40:])) is None:
            left = deadline - time.monotonic()
            more = self.console.read(left) if left > 0 else b""
            assert more, f"{command!r} does not end; its output: {data[-1000:]!r}"
            data += more
        text = data[: -len(found[0])].decode(errors="backslashreplace")
        return int(found[1]), text.replace("\r\n", "\n")
