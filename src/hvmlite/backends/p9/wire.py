"""9P messages to values and back; the letters of layouts are those of abi/p9.py.

Every length that a client gives is checked against what it sent.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from hvmlite.abi.p9 import P9_MAXWELEM

_INTEGERS = {code: struct.Struct("<" + c) for code, c in zip("bhdq", "BHIQ", strict=True)}
_QID = struct.Struct("<BIQ")
_U16, _U32 = _INTEGERS["h"], _INTEGERS["d"]


class MalformedError(Exception):
    """A message that is not of its type's layout."""


class Qid(NamedTuple):
    """What identifies a file to the client: `kind` is P9_QT*, `path` its number."""

    kind: int
    version: int
    path: int


def decode(layout: str, body: bytes) -> list[int | bytes | list[bytes]]:
    """The fields of a request, without its header; raises MalformedError."""
    values: list[int | bytes | list[bytes]] = []
    at = 0

    def integer(form: struct.Struct) -> int:
        nonlocal at
        if at + form.size > len(body):
            raise MalformedError
        (value,) = form.unpack_from(body, at)
        at += form.size
        return int(value)

    def take(size: int) -> bytes:
        nonlocal at
        if at + size > len(body):
            raise MalformedError
        at += size
        return body[at - size : at]

    for code in layout:
        if code == "s":
            values.append(take(integer(_U16)))
        elif code == "x":
            values.append(take(integer(_U32)))
        elif code == "n":
            count = integer(_U16)
            if count > P9_MAXWELEM:
                raise MalformedError
            values.append([take(integer(_U16)) for _ in range(count)])
        else:
            values.append(integer(_INTEGERS[code]))
    if at != len(body):
        raise MalformedError
    return values


def encode(layout: str, values: tuple[object, ...]) -> bytes:
    """The fields of an answer (or of a request, in tests), without its header."""
    parts: list[bytes] = []
    for code, value in zip(layout, values, strict=True):
        if code in "sx":
            assert isinstance(value, bytes)
            parts += (_U16 if code == "s" else _U32).pack(len(value)), value
        elif code == "Q":
            assert isinstance(value, Qid)
            parts.append(_QID.pack(*value))
        elif code == "N":
            assert isinstance(value, list)
            parts.append(_U16.pack(len(value)))
            parts += [_QID.pack(*qid) for qid in value]
        elif code == "n":
            assert isinstance(value, list)
            parts.append(_U16.pack(len(value)))
            for name in value:
                parts += _U16.pack(len(name)), name
        else:
            parts.append(_INTEGERS[code].pack(value))
    return b"".join(parts)
