"""Hostile files: whatever the bytes, a kernel is loaded or refused with one line.

Mutates good files, so most cases reach deep; says nothing of how long a hostile file can keep the
loader busy, which test_compressed and the limits in test_elf bound.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvmlite.toolstack.kernel import KernelError, check_kernel, load_kernel

from .build import COMPRESSORS, Elf, Load, R, W, compressed_bzimage, entry_note, note

GOOD = Elf(
    loads=[Load(memsz=0x1000), Load(0x200000, b"data" * 8, flags=R | W)],
    notes=note(6, b"linux\0") + note(10, b"!writable_page_tables\0") + entry_note(),
    notes_in="both",
)
SEEDS = [
    GOOD.build(),
    Elf(bits=32, loads=GOOD.loads, notes=GOOD.notes, notes_in="section").build(),
    *(compressed_bzimage(codec, GOOD.build()) for codec in sorted(COMPRESSORS)),
    *(compress(GOOD.build()) for compress in COMPRESSORS.values()),
]
LIMITS = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1)

mutations = st.lists(
    st.tuples(
        st.integers(0, 4096),
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.tuples(st.sampled_from(LIMITS), st.sampled_from((2, 4, 8))).map(
                lambda pair: (pair[0] & (1 << 8 * pair[1]) - 1).to_bytes(pair[1], "little")
            ),
        ),
    ),
    min_size=1,
    max_size=4,
)


def try_to_load(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    line = ""
    try:
        with load_kernel(path) as image:
            image.check_fits(1 << 64)
            image.copy_to(lambda _address, _data: None)
    except KernelError as error:
        line = str(error)
    assert "\n" not in line
    if not data:
        return
    report = check_kernel(path)
    assert report.bootable == (not line)
    assert report.to_text()
    assert report.to_json()


FUZZ = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(seed=st.sampled_from(SEEDS), changes=mutations, cut=st.integers(0, 8192))
def test_mutations(tmp_path: Path, seed: bytes, changes: list[tuple[int, bytes]], cut: int) -> None:
    data = bytearray(seed)
    for position, new in changes:
        at = position % len(data)
        data[at : at + len(new)] = new
    try_to_load(tmp_path / "kernel", bytes(data[: max(cut, 1)] if cut < len(data) else data))


@FUZZ
@given(
    bits=st.sampled_from((32, 64)),
    position=st.integers(0, 250),
    new=st.binary(min_size=1, max_size=8),
)
def test_elf_headers(tmp_path: Path, bits: int, position: int, new: bytes) -> None:
    data = bytearray(Elf(bits=bits, loads=GOOD.loads, notes=GOOD.notes, notes_in="both").build())
    data[position : position + len(new)] = new
    try_to_load(tmp_path / "kernel", bytes(data))


@FUZZ
@given(start=st.sampled_from([b"", b"\x7fELF", b"\x7fELF\2\1\1"]), rest=st.binary(max_size=400))
def test_any_bytes(tmp_path: Path, start: bytes, rest: bytes) -> None:
    try_to_load(tmp_path / "kernel", start + rest)


@pytest.mark.parametrize("seed", range(len(SEEDS)))
def test_the_seeds_are_good(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(SEEDS[seed])
    assert check_kernel(path).reasons == ()
