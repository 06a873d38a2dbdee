"""Atomic operations on words that a running guest changes at the same moment.

Python has no atomic read-modify-write; GCC's libatomic (Debian package libatomic1) has, and its
functions carry a full barrier.  Addresses are host-virtual and must be aligned to the word.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

from hvmlite.errors import EngineError

_SEQ_CST = 5
ORDERED_STORES = os.uname().machine in ("x86_64", "i686")
"""Whether plain stores are seen in their order by other processors (Intel SDM volume 3, 9.2.2)."""
_WORDS = {8: ctypes.c_uint8, 16: ctypes.c_uint16, 32: ctypes.c_uint32, 64: ctypes.c_uint64}

try:
    _lib = ctypes.CDLL("libatomic.so.1")
except OSError as error:  # pragma: no branch
    raise EngineError("libatomic.so.1 is missing: install the package libatomic1") from error


def _binary(name: str, bits: int) -> Callable[[int, int], int]:
    function = getattr(_lib, f"__atomic_{name}_{bits // 8}")
    function.restype = _WORDS[bits]
    function.argtypes = (ctypes.c_void_p, _WORDS[bits], ctypes.c_int)

    def operation(address: int, value: int, function: Callable[..., int] = function) -> int:
        return function(address, value, _SEQ_CST)

    return operation


def _compare_exchange(bits: int) -> Callable[[int, int, int], int]:
    word = _WORDS[bits]
    function = getattr(_lib, f"__atomic_compare_exchange_{bits // 8}")
    function.restype = ctypes.c_bool
    function.argtypes = (
        ctypes.c_void_p, ctypes.c_void_p, word, ctypes.c_int, ctypes.c_int,
    )  # fmt: skip

    def operation(address: int, expected: int, new: int) -> int:
        seen = word(expected)
        function(address, ctypes.addressof(seen), new, _SEQ_CST, _SEQ_CST)
        return seen.value

    return operation


fetch_or8 = _binary("fetch_or", 8)
fetch_or32 = _binary("fetch_or", 32)
fetch_or64 = _binary("fetch_or", 64)
fetch_and32 = _binary("fetch_and", 32)
fetch_and64 = _binary("fetch_and", 64)
fetch_and16 = _binary("fetch_and", 16)
exchange32 = _binary("exchange", 32)
exchange64 = _binary("exchange", 64)
cmpxchg16 = _compare_exchange(16)
cmpxchg32 = _compare_exchange(32)
cmpxchg64 = _compare_exchange(64)
