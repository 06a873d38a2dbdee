"""Proves that the atomic operations give the right values and lose nothing between two processes.

The race is between two processes on one shared page, as between Python and an engine; without
atomic operations it loses updates within a fraction of a second. Cannot prove the absence of a
rare loss, nor see the barrier.
"""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvmlite.engine import atomics

SOURCE = Path(__file__).resolve().parents[3] / "src"
ROUNDS = 20_000


class Memory:
    """Aligned words at a known address, in a file that another process may map."""

    def __init__(self) -> None:
        self.map = mmap.mmap(-1, 4096)
        self._anchor = ctypes.c_char.from_buffer(self.map)
        self.address = ctypes.addressof(self._anchor)

    def __getitem__(self, width: int) -> int:
        return int.from_bytes(self.map[: width // 8], "little")

    def __setitem__(self, width: int, value: int) -> None:
        self.map[: width // 8] = value.to_bytes(width // 8, "little")


@pytest.fixture
def words() -> Iterator[Memory]:
    memory = Memory()
    memory.map[8:16] = b"\xaa" * 8
    yield memory
    assert memory.map[8:16] == b"\xaa" * 8, "wrote beyond the word"


def ones(width: int) -> int:
    return (1 << width) - 1


@pytest.mark.parametrize(
    ("operation", "width"),
    [(atomics.fetch_or8, 8), (atomics.fetch_or32, 32), (atomics.fetch_or64, 64)],
)
def test_fetch_or(words: Memory, operation: Callable[[int, int], int], width: int) -> None:
    words[width] = 0x51
    top = 1 << (width - 1)
    assert operation(words.address, top | 2) == 0x51
    assert words[width] == 0x53 | top
    assert operation(words.address, ones(width)) == 0x53 | top
    assert words[width] == ones(width)


@pytest.mark.parametrize(
    ("operation", "width"),
    [(atomics.fetch_and16, 16), (atomics.fetch_and32, 32), (atomics.fetch_and64, 64)],
)
def test_fetch_and(words: Memory, operation: Callable[[int, int], int], width: int) -> None:
    words[width] = ones(width)
    top = 1 << (width - 1)
    assert operation(words.address, ones(width) ^ top ^ 1) == ones(width)
    assert words[width] == ones(width) ^ top ^ 1
    assert operation(words.address, 0) == ones(width) ^ top ^ 1
    assert words[width] == 0


@pytest.mark.parametrize(
    ("operation", "width"), [(atomics.exchange32, 32), (atomics.exchange64, 64)]
)
def test_exchange(words: Memory, operation: Callable[[int, int], int], width: int) -> None:
    words[width] = 5
    assert operation(words.address, ones(width)) == 5
    assert words[width] == ones(width)
    assert operation(words.address, 0) == ones(width)


@pytest.mark.parametrize(
    ("operation", "width"),
    [(atomics.cmpxchg16, 16), (atomics.cmpxchg32, 32), (atomics.cmpxchg64, 64)],
)
def test_compare_exchange(
    words: Memory, operation: Callable[[int, int, int], int], width: int
) -> None:
    words[width] = ones(width) - 1
    assert operation(words.address, 0, 7) == ones(width) - 1
    assert words[width] == ones(width) - 1
    assert operation(words.address, ones(width) - 1, 7) == ones(width) - 1
    assert words[width] == 7


OTHER = """
import ctypes, mmap, os, sys
from hvmlite.engine import atomics
fd, shift = int(sys.argv[1]), int(sys.argv[2])
memory = mmap.mmap(fd, 4096)
anchor = ctypes.c_char.from_buffer(memory)
address = ctypes.addressof(anchor)
word = address + 64
atomics.fetch_or32(address, 1 << shift)
while atomics.fetch_or32(address, 0) != 3:
    pass
lost = 0
bit = 1 << shift
for i in range(int(sys.argv[3])):
    # Our own bit of a word that the other process changes all the time.
    lost += bool(atomics.fetch_or32(word, bit) & bit)
    lost += not atomics.fetch_and32(word, 0xFFFFFFFF ^ bit) & bit
    # And a counter of both: a compare-and-exchange loop.
    seen = atomics.cmpxchg64(word + 8, 0, 0)
    while True:
        now = atomics.cmpxchg64(word + 8, seen, seen + 1)
        if now == seen:
            break
        seen = now
print(lost)
"""


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "shared"
    file.write_bytes(bytes(4096))
    with file.open("r+b") as shared:
        others = [
            subprocess.Popen(
                [sys.executable, "-c", OTHER, str(shared.fileno()), str(shift), str(ROUNDS)],
                env={"PYTHONPATH": str(SOURCE)},
                pass_fds=(shared.fileno(),),
                stdout=subprocess.PIPE,
                text=True,
            )
            for shift in (0, 1)
        ]
        lost = [other.communicate(timeout=60)[0].strip() for other in others]
    data = file.read_bytes()
    assert lost == ["0", "0"]
    assert int.from_bytes(data[72:80], "little") == 2 * ROUNDS
    assert data[64:68] == bytes(4)


def test_a_missing_library_says_what_to_install() -> None:
    script = (
        "import ctypes\n"
        "real = ctypes.CDLL\n"
        "def load(name, *a, **k):\n"
        "    if name and 'atomic' in name: raise OSError('gone')\n"
        "    return real(name, *a, **k)\n"
        "ctypes.CDLL = load\n"
        "from hvmlite.errors import EngineError\n"
        "try:\n"
        "    import hvmlite.engine.atomics\n"
        "except EngineError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout == "libatomic.so.1 is missing: install the package libatomic1\n"
