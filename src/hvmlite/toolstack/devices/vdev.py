"""The numbers of virtual block devices: xvda, sda1, hdc, d1p2, 0xca00.

Facts: docs/man/xen-vbd-interface.7.pandoc.
"""

from __future__ import annotations

import re

from hvmlite.errors import UserError

_LETTERS = re.compile(r"(xvd|hd|sd)([a-z]{1,5})([0-9]{0,3})")
_NUMBERS = re.compile(r"d([0-9]{1,7})(?:p([0-9]{1,3}))?")
_PLAIN = re.compile(r"0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10}")
_EXTENDED = 1 << 28
_MOST_DISKS = 1 << 20
_XVD, _SD, _HD, _HD2 = 202 << 8, 8 << 8, 3 << 8, 22 << 8


def device_number(vdev: str) -> int:
    """The number that xenstore has for a device's name; raises UserError for what is none."""
    if _PLAIN.fullmatch(vdev):
        octal = len(vdev) > 1 and vdev[0] == "0" and vdev[1] not in "xX"
        try:
            number = int(vdev, 8 if octal else 0)
        except ValueError:
            raise _no_device(vdev) from None
        if not 0 <= number < 2 * _EXTENDED:
            raise _no_device(vdev)
        return number
    if match := _NUMBERS.fullmatch(vdev):
        return _xvd(vdev, int(match[1]), int(match[2] or "0"))
    match = _LETTERS.fullmatch(vdev)
    if match is None or match[3].startswith("0"):
        raise _no_device(vdev)
    disk, partition = _disk_index(match[2]), int(match[3] or "0")
    if match[1] == "xvd":
        return _xvd(vdev, disk, partition)
    if match[1] == "sd" and disk < 16 and partition < 16:
        return _SD | disk << 4 | partition
    if match[1] == "hd" and disk < 4 and partition < 64:
        return (_HD if disk < 2 else _HD2) | (disk & 1) << 6 | partition
    raise _no_device(vdev)


def _xvd(vdev: str, disk: int, partition: int) -> int:
    if disk < 16 and partition < 16:
        return _XVD | disk << 4 | partition
    if disk < _MOST_DISKS and partition < 256:
        return _EXTENDED | disk << 8 | partition
    raise _no_device(vdev)


def _disk_index(letters: str) -> int:
    """a is 0, z 25, aa 26."""
    index = 0
    for letter in letters:
        index = index * 26 + ord(letter) - ord("a") + 1
    return index - 1


def _no_device(vdev: str) -> UserError:
    return UserError(
        f"disk: vdev {vdev[:40]!r} is no virtual device: write xvda, sda1, hdc or d0p1"
    )
