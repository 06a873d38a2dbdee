"""Guests with disks: Debian's kernel with blkfront and ext4 in the ramdisk."""

from __future__ import annotations

from pathlib import Path

from hvmlite import DomainConfig
from hvmlite.testing import assets
from hvmlite.testing.programs import module_loader
from hvmlite.toolstack.devices.disk import parse

from .guests import QUIET, Shell, shell_ramdisk


def disk_ramdisk() -> bytes:
    """A ramdisk for `DiskShell`."""
    files, loads = module_loader(assets.modules("debian", "xen-blkfront", "ext4", "crc32c_generic"))
    return shell_ramdisk({**files, "load": ("set -e\n" + loads).encode()})


class DiskShell(Shell):
    """A Linux guest with the disks of these specifications, ready to use."""

    def __init__(self, kernel: Path, ramdisk: Path, *disks: str) -> None:
        config = DomainConfig(kernel=kernel, ramdisk=ramdisk, cmdline=QUIET, memory=256 << 20)
        config.devices += [parse(disk) for disk in disks]
        self.messages: list[str] = []
        super().__init__(config)
        self.domain.on_message = self.messages.append
        try:
            self.ready()
            self.run("sh /load")
            for spec in config.devices:
                self.run(f"until [ -b /dev/{spec.vdev} ]; do usleep 20000; done")  # type: ignore[attr-defined]
        except BaseException:
            self.close()
            raise
