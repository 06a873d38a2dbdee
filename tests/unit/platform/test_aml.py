"""Proves the AML encodings against the specification's own rules and, where the numbers are given,
its bytes. Cannot see whether an interpreter accepts a table: test_acpi asks ACPICA.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.platform import aml


def decode_pkg_length(data: bytes) -> tuple[int, int]:
    """Length as encoded (ACPI 5.0, 20.2.4) and the number of bytes that encode it."""
    following = data[0] >> 6
    if not following:
        return data[0], 1
    assert not data[0] & 0x30  # reserved
    length = data[0] & 0xF | int.from_bytes(data[1 : 1 + following], "little") << 4
    return length, 1 + following


@given(st.one_of(st.integers(0, 5000), st.integers(0, (1 << 28) - 5)))
@settings(max_examples=200)
def test_pkg_length_counts_itself(size: int) -> None:
    encoded = aml.pkg_length(size)
    assert decode_pkg_length(encoded) == (size + len(encoded), len(encoded))


@pytest.mark.parametrize(
    ("size", "encoding"),
    [
        (0, "01"),
        (62, "3f"),
        (63, "4104"),
        (4093, "4fff"),
        (4094, "810001"),
        ((1 << 20) - 4, "8fffff"),
        ((1 << 20) - 3, "c1000001"),
        ((1 << 28) - 5, "cfffffff"),
    ],
)
def test_pkg_length_uses_the_shortest_form(size: int, encoding: str) -> None:
    assert aml.pkg_length(size).hex() == encoding


def test_pkg_length_has_an_end() -> None:
    with pytest.raises(ValueError, match="AML package of 268435452 bytes is too large"):
        aml.pkg_length((1 << 28) - 4)


@pytest.mark.parametrize(
    ("value", "encoding"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a02"),
        (0xFF, "0aff"),
        (0x100, "0b0001"),
        (0xFFFF, "0bffff"),
        (0x1_0000, "0c00000100"),
        (0xFFFF_FFFF, "0cffffffff"),
        (1 << 32, "0e0000000001000000"),
    ],
)
def test_integer_uses_the_shortest_form(value: int, encoding: str) -> None:
    assert aml.integer(value).hex() == encoding


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_integer_refuses_what_has_no_encoding(value: int) -> None:
    with pytest.raises(ValueError, match=f"{value} is not a 64-bit AML integer"):
        aml.integer(value)


@pytest.mark.parametrize(
    ("path", "encoding"),
    [("PR00", b"PR00"), ("_SB", b"_SB_"), ("\\_SB", b"\\_SB_"), ("A", b"A___")],
)
def test_name_string(path: str, encoding: bytes) -> None:
    assert aml.name_string(path) == encoding


@pytest.mark.parametrize("path", ["", "\\", "pr00", "0ABC", "ABCDE", "A B", "\\\\_SB", "É"])
def test_name_string_refuses_other_text(path: str) -> None:
    with pytest.raises(ValueError, match="is not an AML name"):
        aml.name_string(path)


def test_string_is_ascii_with_nul() -> None:
    assert aml.string("ACPI0007") == b"\x0dACPI0007\0"


@pytest.mark.parametrize("text", ["a\0b", "\u00e9"])
def test_string_refuses_other_text(text: str) -> None:
    with pytest.raises(ValueError, match="is not an AML string"):
        aml.string(text)


def test_buffer_names_its_size() -> None:
    assert aml.buffer(bytes(8)) == b"\x11\x0b\x0a\x08" + bytes(8)
    assert aml.buffer(b"") == b"\x11\x02\x00"


def test_named_objects_nest() -> None:
    uid = aml.name("_UID", aml.integer(1))
    assert uid == b"\x08_UID\x01"
    processor = aml.processor("PR01", 1, uid)
    assert processor == b"\x5b\x83\x11PR01\x01" + bytes(5) + uid
    assert aml.scope("\\_SB", processor) == b"\x10\x19\\_SB_" + processor


def test_processor_id_is_a_byte() -> None:
    with pytest.raises(OverflowError):
        aml.processor("PR00", 256)
