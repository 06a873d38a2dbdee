"""What a domain is made from: the names and defaults of xl.cfg(5) where it has them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from hvmlite.errors import UserError
from hvmlite.records import field, record

if TYPE_CHECKING:
    from hvmlite.toolstack.devices.console import Connection
    from hvmlite.toolstack.devices.spec import DeviceSpec

MIB = 1 << 20
_SIZE = re.compile(r"([0-9]{1,20})\s*(?:([kmgt])(?:i?b)?)?", re.IGNORECASE)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_UNITS = {"": MIB, "k": 1 << 10, "m": MIB, "g": 1 << 30, "t": 1 << 40}
MAX_VCPUS = 32
MAX_MEMORY = 1 << 40
MIN_MEMORY = MIB
ACTIONS = ("destroy", "restart")
TSC_MODES = ("default", "always_emulate", "native")
"""By the number that Xen has for each (XEN_CPUID_TSC_MODE_*)."""
LIMITS = {
    # Console and xenstore take one each; FIFO event channels end here.
    "max_event_channels": (2, 131071),
    "max_grant_frames": (1, 1 << 16),
    "max_maptrack_frames": (0, 1 << 16),
    "max_grant_version": (1, 2),
}
"""Keys that limit what the guest may use, and between what they may lie."""


def parse_size(text: str) -> int:
    """Bytes in a size such as 512, 512M or 2G; a bare number is MiB, as in xl.cfg."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UserError(f"{text[:40]!r} is no size: write 512M or 2G")
    return int(match[1]) * _UNITS[(match[2] or "").lower()]


@record
class DomainConfig:
    """A domain's configuration.

    `memory` is in bytes (xl.cfg: MiB; `parse_size` reads both).  `on_reboot`, `on_poweroff` and
    `on_crash` are "destroy" or "restart".  `timer_slack` (ns): how late a busy guest's next tick
    may be; an idle guest's is on time.  Of `maxvcpus` (0: as many as `vcpus`) the guest starts with
    `vcpus`, and may bring up the rest when xenstore says that they are online.

    `devices` are the PV devices that it starts with (toolstack/devices).

    `console` connects the first console to a terminal, socket or file besides `Domain.console`;
    `console_log` is a file that gets a copy of its output, behind what is there.  (Under Xen both
    are xenconsoled's business.)

    Not of xl.cfg: `argo` lets the guest use Argo, `argo_mac_permissive` also with rings that every
    domain may send to; for real Xen both are on its own command line (argo=1,mac-permissive=1).
    """

    kernel: Path
    name: str = ""
    ramdisk: Path | None = None
    modules: list[Path] = field(default_factory=list)
    cmdline: str = ""
    memory: int = 512 * MIB
    vcpus: int = 1
    maxvcpus: int = 0
    lapic: bool = True
    acpi: bool = True
    x2apic: bool = True
    xen_version: str = "4.17"
    on_poweroff: str = "destroy"
    on_reboot: str = "restart"
    on_crash: str = "destroy"
    uuid: str = ""
    max_event_channels: int = 1023
    max_grant_frames: int = 64
    max_maptrack_frames: int = 1024
    max_grant_version: int = 2
    tsc_mode: str = "default"
    argo: bool = False
    argo_mac_permissive: bool = False
    timer_slack: int = 10_000_000
    devices: list[DeviceSpec] = field(default_factory=list)
    console: Connection | None = None
    console_log: Path | None = None

    def check(self) -> None:
        """Raises UserError for a value that cannot be."""
        if not 1 <= self.vcpus <= MAX_VCPUS:
            raise UserError(f"vcpus={self.vcpus} is not between 1 and {MAX_VCPUS}")
        if self.maxvcpus and not self.vcpus <= self.maxvcpus <= MAX_VCPUS:
            raise UserError(
                f"maxvcpus={self.maxvcpus} is not between vcpus={self.vcpus} and {MAX_VCPUS}"
            )
        if not MIN_MEMORY <= self.memory <= MAX_MEMORY:
            raise UserError(
                f"memory of {self.memory} bytes is not between 1 MiB and {MAX_MEMORY >> 40} TiB"
            )
        if self.memory % 4096:
            raise UserError(f"memory of {self.memory} bytes is not a multiple of a page (4 KiB)")
        for key in ("on_poweroff", "on_reboot", "on_crash"):
            if getattr(self, key) not in ACTIONS:
                raise UserError(
                    f"{key}={getattr(self, key)!r} is not supported: {' or '.join(ACTIONS)}"
                )
        for key, (least, most) in LIMITS.items():
            if not least <= getattr(self, key) <= most:
                raise UserError(f"{key}={getattr(self, key)} is not between {least} and {most}")
        if self.uuid and not _UUID.fullmatch(self.uuid):
            raise UserError(f"uuid={self.uuid!r} is no UUID")
        if self.tsc_mode not in TSC_MODES:
            raise UserError(
                f"tsc_mode={self.tsc_mode!r} is not supported: {' or '.join(TSC_MODES)}"
            )
        if self.argo_mac_permissive and not self.argo:
            raise UserError("argo_mac_permissive without argo has no meaning")

    @property
    def all_vcpus(self) -> int:
        """Virtual CPUs that the guest may ever have."""
        return self.maxvcpus or self.vcpus

    @property
    def title(self) -> str:
        """The domain's name; by default that of its kernel."""
        return self.name or self.kernel.name


def boot_memory(config: DomainConfig) -> int:
    """Machine memory in bytes that a host for just this domain needs (with room for a restart)."""
    config.check()
    grant_tables = 2 * config.max_grant_frames << 12
    own = (24 << 20) + config.all_vcpus * (1 << 20) + grant_tables
    return config.memory + config.memory // 128 + own
