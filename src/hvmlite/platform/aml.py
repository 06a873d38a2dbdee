"""Encoder for the few AML terms that our DSDT is made of.

Each function returns the bytes of one term; there is no parser and no check of meaning. Encoding:
ACPI specification 5.0, chapter 20 "ACPI Machine Language (AML) Specification".
"""

import re
from typing import Final

_ZERO_OP: Final = b"\x00"
_ONE_OP: Final = b"\x01"
_NAME_OP: Final = b"\x08"
_STRING_PREFIX: Final = b"\x0d"
_SCOPE_OP: Final = b"\x10"
_BUFFER_OP: Final = b"\x11"
_PROCESSOR_OP: Final = b"\x5b\x83"

# Prefix byte of an integer constant by the number of bytes that follow it.
_INTEGER_PREFIX: Final = {1: b"\x0a", 2: b"\x0b", 4: b"\x0c", 8: b"\x0e"}

_NAME_SEG: Final = re.compile(r"[A-Z_][A-Z0-9_]{0,3}")


def pkg_length(size: int) -> bytes:
    """PkgLength of a package whose body is `size` bytes; the encoded length counts itself too.

    Raises ValueError if the package would exceed 2**28 - 1 bytes.
    """
    if size + 1 < 1 << 6:
        return bytes([size + 1])
    for following in (1, 2, 3):
        length = size + 1 + following
        if length < 1 << (4 + 8 * following):
            lead = following << 6 | length & 0xF
            return bytes([lead]) + (length >> 4).to_bytes(following, "little")
    raise ValueError(f"AML package of {size} bytes is too large")


def name_string(path: str) -> bytes:
    r"""NameString of one segment, with a leading `\` if it is absolute, such as `\_SB` or `PR00`.

    A segment shorter than four characters is padded with `_`, as the specification says.
    Raises ValueError if it is no such name.
    """
    root = path.startswith("\\")
    segment = path[root:]
    if not _NAME_SEG.fullmatch(segment):
        raise ValueError(f"{path!r} is not an AML name")
    return b"\\" * root + segment.ljust(4, "_").encode()


def integer(value: int) -> bytes:
    """The shortest constant for an integer of up to 64 bits. Raises ValueError outside that."""
    if value == 0:
        return _ZERO_OP
    if value == 1:
        return _ONE_OP
    for size, prefix in _INTEGER_PREFIX.items():
        if 0 < value < 1 << 8 * size:
            return prefix + value.to_bytes(size, "little")
    raise ValueError(f"{value} is not a 64-bit AML integer")


def string(text: str) -> bytes:
    """A String. Raises ValueError if `text` holds NUL or anything beyond ASCII."""
    if "\0" in text or not text.isascii():
        raise ValueError(f"{text!r} is not an AML string")
    return _STRING_PREFIX + text.encode() + b"\0"


def buffer(data: bytes) -> bytes:
    """A Buffer holding `data`."""
    body = integer(len(data)) + data
    return _BUFFER_OP + pkg_length(len(body)) + body


def name(path: str, value: bytes) -> bytes:
    """Name(path, value): `value` is an encoded data object."""
    return _NAME_OP + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """Scope(path) { terms }."""
    body = name_string(path) + b"".join(terms)
    return _SCOPE_OP + pkg_length(len(body)) + body


def processor(path: str, processor_id: int, *terms: bytes) -> bytes:
    """Processor(path, processor_id) { terms }, with no register block (P_BLK).

    Raises OverflowError if `processor_id` is not a byte.
    """
    no_block = bytes(4 + 1)
    body = name_string(path) + processor_id.to_bytes(1, "little") + no_block + b"".join(terms)
    return _PROCESSOR_OP + pkg_length(len(body)) + body
