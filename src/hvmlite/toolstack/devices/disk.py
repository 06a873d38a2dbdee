"""Disks: xl's disk specification, and what is made of it.

Facts: docs/man/xl-disk-configuration.5, tools/libs/util/libxlu_disk_l.l for the order in which
words are taken; `snapshot` and the formats vmdk and vdi are ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hvmlite.backends.block.backend import BlockBackend, BlockOptions
from hvmlite.errors import UserError
from hvmlite.toolstack.devices.spec import DeviceSpec
from hvmlite.toolstack.devices.vdev import device_number

if TYPE_CHECKING:
    from hvmlite.backends.block.image import Image
    from hvmlite.backends.device import Backend, Device

FORMATS = {
    "raw": "raw",
    "qcow2": "qcow2",
    "qcow": "qcow",
    "vhd": "vpc",
    "qed": "qed",
    "vmdk": "vmdk",
    "vdi": "vdi",
}
"""What `format` may be, and QEMU's name for it."""
_READONLY = {"r": True, "ro": True, "w": False, "rw": False, "": False}
_REMOTE = re.compile(r"(nbd|nbd\+unix|https?|ftps?)://.+")
_PREFIX = re.compile(r"([a-z][a-z0-9]*):(?![a-z0-9]*://|//)")
_IGNORED_PREFIXES = ("tapdisk", "tap", "tap2", "aio", "ioemu", "file", "phy")
_FORMAT_PREFIXES = ("raw", "qcow", "qcow2", "vhd")
_SCRIPT_PREFIXES = ("iscsi", "nbd", "enbd", "drbd")
_COLO = ("colo-host", "colo-port", "colo-export", "active-disk", "hidden-disk")


@dataclass(slots=True)
class DiskSpec(DeviceSpec):
    """One disk by the names of xl: `target` (a path or the address of a remote image), `format`,
    `vdev`, whether it is read-only.  `snapshot`: what the guest writes is thrown away at its end.
    """

    kind = "vbd"

    target: str
    vdev: str
    format: str = "raw"
    readonly: bool = False
    cdrom: bool = False
    discard: bool = True
    trusted: bool = True
    snapshot: bool = False
    persistent: bool = False
    devid: int = -1

    def __post_init__(self) -> None:
        self.devid = device_number(self.vdev)
        if not self.target:
            raise UserError(
                f"disk {self.vdev}: a drive without a medium is not supported: name a target"
            )
        if "\0" in self.target:
            raise UserError(f"disk {self.vdev}: target with a zero byte")
        if self.format not in FORMATS:
            raise UserError(
                f"disk {self.vdev}: unknown format {self.format[:40]!r}: {', '.join(FORMATS)}"
            )

    @property
    def remote(self) -> bool:
        """Whether the target is an address, not a path."""
        return _REMOTE.fullmatch(self.target) is not None

    @property
    def path(self) -> str:
        """The target; one without a slash at its start may also be below /dev, as for xl."""
        device = os.path.join("/dev", self.target)
        return device if not os.path.exists(self.target) and os.path.exists(device) else self.target

    def frontend_nodes(self, devid: int) -> Mapping[str, str]:
        """See `DeviceSpec.frontend_nodes`."""
        return {
            "virtual-device": str(devid),
            "device-type": self._type,
            "trusted": str(int(self.trusted)),
        }

    def backend_nodes(self, devid: int) -> Mapping[str, str]:
        """See `DeviceSpec.backend_nodes`."""
        return {
            "params": self.target,
            "removable": str(int(self.cdrom)),
            "bootable": "1",
            "dev": self.vdev,
            "type": "phy" if self._direct else "qdisk",
            "mode": "r" if self.readonly else "w",
            "device-type": self._type,
            "discard-enable": str(int(self.discard)),
            "specification": "xen",
            "physical-device-path": self.target,
            "hotplug-status": "connected",
        }

    @property
    def _type(self) -> str:
        return "cdrom" if self.cdrom else "disk"

    @property
    def _direct(self) -> bool:
        """Whether the image is read and written by this process."""
        return self.format == "raw" and not self.remote and not self.snapshot

    def make(self, device: Device) -> Backend:
        """See `DeviceSpec.make`."""
        options = BlockOptions(self.readonly, self.cdrom, self.discard, self.persistent)
        return BlockBackend(device, self._open(device), options)

    def _open(self, device: Device) -> Image:
        if self._direct:
            from hvmlite.backends.block.raw import RawImage  # noqa: PLC0415

            return RawImage(self.path, device.workers, readonly=self.readonly)
        from hvmlite.backends.block.storage_daemon import open_image  # noqa: PLC0415

        return open_image(
            self.target if self.remote else self.path,
            FORMATS[self.format],
            device.control.host,
            readonly=self.readonly,
            remote=self.remote,
            snapshot=self.snapshot,
        )

    def describe(self) -> str:
        """See `DeviceSpec.describe`."""
        words = [
            *(["CD-ROM"] if self.cdrom else []),
            *([self.format] if self.format != "raw" else []),
            *(["read-only"] if self.readonly and not self.cdrom else []),
            *(["changes thrown away"] if self.snapshot else []),
        ]
        return f"disk {self.vdev}: {self.target}" + (f" ({', '.join(words)})" if words else "")


def parse(text: str) -> DiskSpec:
    """What `--disk TEXT` or an entry of xl's `disk` list says; raises UserError."""
    return _Parser(text).finish()


class _Parser:
    """Takes a specification apart, word by word."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._values: dict[str, str] = {}
        self._flags: dict[str, bool] = {}
        self._prefixed = False
        self._access_given = False
        rest = text.lstrip(" \t\n")
        while rest:
            if rest.startswith("target="):
                self._set("target", rest.removeprefix("target=").removesuffix(","))
                break
            rest = self._prefix(rest)
            word, _, rest = rest.partition(",")
            self._word(word)
            rest = rest.lstrip(" \t\n")

    def _wrong(self, what: str) -> UserError:
        return UserError(f"disk {self._text[:80]!r}: {what}")

    # ---- words ----------------------------------------------------------------------------------

    def _prefix(self, rest: str) -> str:
        """Takes off what older releases wrote before a path: file:, phy:, tap:aio:, qcow2:."""
        while not self._values.get("target") and "target" not in self._values:
            match = _PREFIX.match(rest)
            if match is None or "=" in rest[: match.end()]:
                break
            name = match[1]
            if name in _FORMAT_PREFIXES:
                self._set("format", name)
            elif name in _SCRIPT_PREFIXES:
                raise self._wrong(f"scripts are not run: {name}: is not supported")
            elif name not in _IGNORED_PREFIXES:
                raise self._wrong(f"unknown prefix {name}:")
            self._prefixed = True
            rest = rest[match.end() :]
        return rest

    def _word(self, word: str) -> None:
        flag = _FLAGS.get(word)
        if flag is not None:
            flag(self)
        elif "=" in word:
            key, _, value = word.partition("=")
            setter = _KEYS.get(key)
            if setter is None:
                raise self._wrong(f"unknown key {key[:40]!r}")
            setter(self, value)
        else:
            self._positional(word)

    def _positional(self, word: str) -> None:
        values = self._values
        if "target" not in values:
            values["target"] = word
        elif not self._prefixed and "format" not in values:
            if not values["target"] and self._vdev_and_type(word):
                values["format"] = "raw"
            else:
                self._set("format", word or "raw")
        elif "vdev" not in values:
            if not self._vdev_and_type(word):
                self._set("vdev", word)
        elif not self._access_given:
            self._access_given = True
            self._set_access(word)
        else:
            raise self._wrong(f"too many words: {word[:40]!r}")

    def _vdev_and_type(self, word: str) -> bool:
        """The old way to write both: hdc:cdrom."""
        vdev, colon, kind = word.rpartition(":")
        if not colon:
            return False
        self._set("vdev", vdev)
        self._set_type(kind)
        return True

    # ---- values ---------------------------------------------------------------------------------

    def _set(self, key: str, value: str) -> None:
        if self._values.get(key, value) not in {"", value}:
            raise self._wrong(f"{key} is given twice")
        self._values[key] = value

    def _set_format(self, value: str) -> None:
        self._set("format", value or "raw")

    def _set_access(self, value: str) -> None:
        if value not in _READONLY:
            raise self._wrong(f"unknown access {value[:40]!r}: r, ro, w or rw")
        if value:
            self._flag("readonly", _READONLY[value])

    def _set_type(self, value: str) -> None:
        if value not in {"cdrom", "disk"}:
            raise self._wrong(f"unknown devtype {value[:40]!r}: cdrom or disk")
        self._flag("cdrom", value == "cdrom")

    def _flag(self, name: str, value: bool) -> None:
        self._flags[name] = value

    def _set_backend(self, value: str) -> None:
        if value not in {"", "0", "Domain-0"}:
            raise self._wrong(f"backend={value[:40]}: there is no driver domain")

    def _set_backendtype(self, value: str) -> None:
        # phy, qdisk, tap: which program serves the disk. Here it is always ours.
        if value not in {"", "phy", "qdisk", "tap"}:
            raise self._wrong(f"backendtype={value[:40]} is not supported: phy, qdisk or tap")

    def _set_specification(self, value: str) -> None:
        if value not in {"", "xen"}:
            raise self._wrong(f"specification={value[:40]} is not supported: xen")

    def _set_script(self, value: str) -> None:
        if value:
            raise self._wrong(f"script={value[:40]}: scripts are not run")

    def _set_grant_usage(self, value: str) -> None:
        # Of meaning for specification=virtio alone; grants are always used.
        if value not in {"0", "1"}:
            raise self._wrong(f"grant_usage={value[:40]} is not 0 or 1")

    def _set_snapshot(self, value: str) -> None:
        if value not in {"0", "1"}:
            raise self._wrong(f"snapshot={value[:40]} is not 0 or 1")
        self._flag("snapshot", value == "1")

    def _no_colo(self, _value: str = "") -> None:
        raise self._wrong("colo (replication) is not supported")

    def finish(self) -> DiskSpec:
        """The disk, with xl's defaults."""
        values, flags = self._values, self._flags
        if not values.get("vdev"):
            raise self._wrong("no vdev: write TARGET,,xvda or vdev=xvda,target=TARGET")
        cdrom = flags.get("cdrom", False)
        return DiskSpec(
            target=values.get("target", ""),
            vdev=values["vdev"],
            format=values.get("format") or "raw",
            # A CD-ROM is read-only, whatever else is asked for: nothing can write one.
            readonly=cdrom or flags.get("readonly", False),
            cdrom=cdrom,
            discard=flags.get("discard", True),
            trusted=flags.get("trusted", True),
            snapshot=flags.get("snapshot", False),
            persistent=flags.get("persistent", False),
        )


def _setter(key: str) -> Callable[[_Parser, str], None]:
    return lambda parser, value: parser._set(key, value)


_KEYS: dict[str, Callable[[_Parser, str], None]] = {
    "format": _Parser._set_format,
    "vdev": _setter("vdev"),
    "access": _Parser._set_access,
    "devtype": _Parser._set_type,
    "backend": _Parser._set_backend,
    "backendtype": _Parser._set_backendtype,
    "specification": _Parser._set_specification,
    "script": _Parser._set_script,
    "grant_usage": _Parser._set_grant_usage,
    "snapshot": _Parser._set_snapshot,
    **dict.fromkeys(_COLO, _Parser._no_colo),
}
_FLAGS: dict[str, Callable[[_Parser], None]] = {
    "cdrom": lambda parser: parser._flag("cdrom", True),
    # O_DIRECT is never used.
    "direct-io-safe": lambda parser: None,
    "discard": lambda parser: parser._flag("discard", True),
    "no-discard": lambda parser: parser._flag("discard", False),
    "trusted": lambda parser: parser._flag("trusted", True),
    "untrusted": lambda parser: parser._flag("trusted", False),
    "snapshot": lambda parser: parser._flag("snapshot", True),
    "persistent": lambda parser: parser._flag("persistent", True),
    "no-persistent": lambda parser: parser._flag("persistent", False),
    "colo": _Parser._no_colo,
    "no-colo": lambda parser: None,
}
