"""Shared folders by xl's p9 syntax.

Facts: xl.cfg(5), "p9"; libxl's nodes of 9pfs devices.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hvmlite.backends.p9.device import P9Device
from hvmlite.backends.p9.files import open_root
from hvmlite.errors import UserError
from hvmlite.toolstack.devices.keys import parse_keys
from hvmlite.toolstack.devices.spec import DeviceSpec

if TYPE_CHECKING:
    from hvmlite.backends.device import Backend, Device

MAX_FIDS = 1 << 16
_LEFT_FOR_OTHERS = 1024
"""Descriptors of the process that shared folders do not use."""
_FEWEST = 64
_DAEMONS = {"max-files", "max-space", "auto-delete"}
"""Keys that only the daemon xen-9pfsd carries out."""


class P9Spec(DeviceSpec):
    """A folder of the host that the guest mounts by its tag: `mount -t 9p -o trans=xen TAG /mnt`.

    `max_open_files` 0 leaves it to the process's limit.
    """

    kind: ClassVar[str] = "9pfs"

    def __init__(
        self, tag: str, path: Path, *, readonly: bool = False, max_open_files: int = 0
    ) -> None:
        if not tag:
            raise UserError("a shared folder needs a tag")
        self.tag = tag
        self.path = path
        self.readonly = readonly
        self.max_open_files = max_open_files

    def frontend_nodes(self, devid: int) -> Mapping[str, str]:
        """Nodes of the frontend."""
        return {"tag": self.tag}

    def backend_nodes(self, devid: int) -> Mapping[str, str]:
        """Nodes of the backend."""
        return {"path": str(self.path), "security_model": "none"}

    def make(self, device: Device) -> Backend:
        """Opens the folder."""
        most = _descriptors() // 2
        if most < _FEWEST:
            raise UserError("the limit on open files is too low for shared folders (ulimit -n)")
        try:
            root = open_root(str(self.path))
        except OSError as error:
            raise UserError(f"shared folder {self.path}: {error.strerror}") from error
        if not os.access("/proc/self/fd", os.X_OK):
            root.release()
            raise UserError(f"shared folders need /proc: {os.strerror(errno.ENOENT)}")
        fids = min(MAX_FIDS, most)
        return P9Device(
            device,
            root,
            readonly=self.readonly,
            max_fids=fids,
            max_open=min(self.max_open_files or fids, fids),
        )

    def describe(self) -> str:
        """What is attached."""
        return f"folder {self.path} as {self.tag!r}{', read-only' if self.readonly else ''}"


def _descriptors() -> int:
    """How many descriptors shared folders may use; raises our own limit as far as we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MAX_FIDS + _LEFT_FOR_OTHERS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return (wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)) - _LEFT_FOR_OTHERS


def parse(text: str) -> P9Spec:
    """What `--p9` says: xl.cfg's tag=, path=, security_model=, type=, backend=, max-open-files=,
    and our readonly=."""
    known = {"tag", "path", "security_model", "backend", "type", "max-open-files", "readonly"}
    # A bare "readonly" is ours alone, as with other options of this kind.
    text = ",".join(f"{p}=1" if p.strip() == "readonly" else p for p in text.split(","))
    keys = parse_keys(text, known | _DAEMONS, what="p9")
    if found := sorted(_DAEMONS & keys.keys()):
        raise UserError(f"p9 {text!r}: {found[0]}= is for Xen's own daemon, which is not there")
    for key in ("tag", "path"):
        if not keys.get(key):
            raise UserError(f"p9 {text!r} lacks {key}=")
    if keys.get("security_model", "none") != "none":
        raise UserError(f"security_model={keys['security_model']!r} is not supported: none")
    if keys.get("type", "qemu") not in {"qemu", "xen_9pfsd"}:
        raise UserError(f"p9 {text!r}: type={keys['type']!r} is not qemu or xen_9pfsd")
    if keys.get("backend", "0") not in {"0", "Domain-0"}:
        raise UserError(f"backend={keys['backend']}: back ends are in domain 0 only")
    if keys.get("readonly", "0") not in {"0", "1"}:
        raise UserError(f"p9 {text!r}: readonly={keys['readonly']!r} is not 0 or 1")
    most = keys.get("max-open-files", "0")
    if not most.isdecimal() or not most.isascii() or len(most) > 9:
        raise UserError(f"p9 {text!r}: max-open-files={most!r} is no number")
    return P9Spec(
        keys["tag"],
        Path(keys["path"]),
        readonly=keys.get("readonly") == "1",
        max_open_files=int(most),
    )
