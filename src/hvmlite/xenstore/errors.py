"""The one error of the store, and its spelling on the wire."""

from __future__ import annotations

from hvmlite.abi import errno as xen_errno
from hvmlite.abi.xs_wire import XSD_ERRORS
from hvmlite.errors import HvmliteError

_NAMES = {getattr(xen_errno, f"XEN_{name}"): name for name in XSD_ERRORS}
_PAYLOADS = {number: name.encode("ascii") + b"\0" for number, name in _NAMES.items()}


class XenStoreError(HvmliteError):
    """A request that the store refused. `errno` is a E* number, `path` the node or ""."""

    def __init__(self, errno: int, path: str = "") -> None:
        super().__init__(errno, path)
        self.errno = errno
        self.path = path

    def __str__(self) -> str:
        name = _NAMES.get(self.errno, str(self.errno))
        return f"xenstore: {self.path}: {name}" if self.path else f"xenstore: {name}"


def wire_payload(error: int) -> bytes:
    """The payload of an ERROR reply: the error's name, NUL-terminated.

    A number that the header's list of names lacks goes out as EINVAL.
    """
    return _PAYLOADS.get(error) or _PAYLOADS[xen_errno.XEN_EINVAL]
