"""Proves that layouts follow both psABIs' rules, and that pack and unpack are inverse and bounded.

It does not know Xen's headers: whether the declarations are right is for tests/abi.
"""

import importlib
import pkgutil
import sys
from types import ModuleType
from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hvmlite.abi
from hvmlite.abi.layout import (
    Abi,
    Array,
    Bytes,
    Only,
    Struct,
    UnionOf,
    handle,
    s16,
    u8,
    u16,
    u32,
    u64,
    u64_aligned,
    ulong,
)
from hvmlite.abi.ring import RING_SIZE, sring

BOTH = pytest.mark.parametrize("abi", list(Abi), ids=lambda abi: abi.name)


class inner(Struct):
    a: u8 = 0
    b: u64 = 0


class outer(Struct):
    tag: u16 = 0
    word: ulong = 0
    nested: inner = inner()
    array: Annotated[tuple[int, ...], Array(u16, 3)] = ()
    wide: Annotated[tuple[int, ...], Array(ulong, 2, 5)] = ()
    name: Annotated[bytes, Bytes(5)] = b""
    u: Annotated[bytes, UnionOf(u32, inner, Array(u16, 3))] = b""
    only: Annotated[int, Only(u32, Abi.X86_32)] = 0
    many: Annotated[tuple[inner, ...], Array(inner, 2)] = ()


def every_struct() -> list[type[Struct]]:
    found: dict[str, type[Struct]] = {}
    for info in pkgutil.iter_modules(hvmlite.abi.__path__):
        module = importlib.import_module(f"hvmlite.abi.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Struct) and value is not Struct:
                found[f"{value.__module__}.{value.__name__}"] = value
    return [found[name] for name in sorted(found)]


EVERY = [*every_struct(), outer]


def test_offsets_of_both_abis() -> None:
    def offsets(abi: Abi) -> dict[str, tuple[int, int]]:
        return {f.name: (f.offset, f.size) for f in outer.layout(abi).fields.values()}

    assert offsets(Abi.X86_64) == {
        "tag": (0, 2),
        "word": (8, 8),
        "nested": (16, 16),
        "array": (32, 6),
        "wide": (40, 16),
        "name": (56, 5),
        "u": (64, 16),
        "only": (80, 0),
        "many": (80, 32),
    }
    assert offsets(Abi.X86_32) == {
        "tag": (0, 2),
        "word": (4, 4),
        "nested": (8, 12),
        "array": (20, 6),
        "wide": (28, 20),
        "name": (48, 5),
        "u": (56, 12),
        "only": (68, 4),
        "many": (72, 24),
    }
    assert (outer.sizeof(Abi.X86_64), outer.sizeof(Abi.X86_32)) == (112, 96)
    assert outer.offsetof("word", Abi.X86_32) == 4
    assert outer.sizeof_field("wide", Abi.X86_32) == 20


def test_u64_aligned_is_aligned_in_both() -> None:
    class plain(Struct):
        a: u32 = 0
        b: u64 = 0

    class aligned(Struct):
        a: u32 = 0
        b: u64_aligned = 0
        c: u32 = 0

    assert plain.offsetof("b", Abi.X86_32) == 4
    assert aligned.offsetof("b", Abi.X86_32) == aligned.offsetof("b", Abi.X86_64) == 8
    assert aligned.sizeof(Abi.X86_32) == aligned.sizeof(Abi.X86_64) == 24


def test_packed_has_no_padding() -> None:
    class wire(Struct, packed=True):
        a: u8 = 0
        b: u64 = 0
        c: u16 = 0

    for abi in Abi:
        assert wire.sizeof(abi) == 11
        assert wire.offsetof("c", abi) == 9


@BOTH
def test_known_bytes(abi: Abi) -> None:
    value = inner(a=0x11, b=0x8877665544332211)
    gap = 7 if abi is Abi.X86_64 else 3
    packed = b"\x11" + bytes(gap) + bytes.fromhex("1122334455667788")
    assert value.pack(abi) == packed
    assert inner.unpack(b"??" + packed + b"!", abi, 2) == value


@given(st.sampled_from(EVERY), st.sampled_from(list(Abi)), st.data())
@settings(max_examples=300)
def test_unpack_then_pack(struct_type: type[Struct], abi: Abi, data: st.DataObject) -> None:
    size = struct_type.sizeof(abi)
    before, after = data.draw(st.binary(max_size=3)), data.draw(st.binary(max_size=3))
    raw = data.draw(st.randoms(use_true_random=False)).randbytes(size)
    value = struct_type.unpack(before + raw + after, abi, len(before))
    packed = value.pack(abi)
    assert len(packed) == size
    assert struct_type.unpack(packed, abi) == value
    for name, field in struct_type.layout(abi).fields.items():
        part = slice(field.offset, field.offset + field.size)
        assert packed[part] == struct_type.pack_field(name, getattr(value, name), abi)
    buffer = bytearray(before + bytes(size) + after)
    value.pack_into(buffer, len(before), abi)
    assert buffer == before + packed + after


@given(st.sampled_from(EVERY), st.sampled_from(list(Abi)), st.integers(0, 5000), st.integers(-9, 9))
@settings(max_examples=200)
def test_short_input(struct_type: type[Struct], abi: Abi, size: int, offset: int) -> None:
    data = bytes(size)
    if offset >= 0 and offset + struct_type.sizeof(abi) <= size:
        struct_type.unpack(data, abi, offset)
        return
    with pytest.raises(ValueError, match=struct_type.__name__):
        struct_type.unpack(data, abi, offset)
    with pytest.raises(ValueError, match=struct_type.__name__):
        struct_type().pack_into(bytearray(data), offset, abi)


@pytest.mark.parametrize("struct_type", EVERY, ids=lambda struct_type: struct_type.__name__)
def test_defaults_are_zero(struct_type: type[Struct]) -> None:
    for abi in Abi:
        assert struct_type().pack(abi) == bytes(struct_type.sizeof(abi))


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF), st.lists(st.integers(0, 0xFFFF)))
@settings(max_examples=50)
def test_pack_then_unpack(tag: int, word: int, array: list[int]) -> None:
    value = outer(tag, word, inner(1, 2), tuple(array), name=b"abc", many=(inner(3, 4),))
    for abi in Abi:
        if len(array) > 3:
            with pytest.raises(ValueError, match="elements in an array of 3"):
                value.pack(abi)
            continue
        back = outer.unpack(value.pack(abi), abi)
        assert (back.tag, back.word, back.nested) == (tag, word, inner(1, 2))
        assert back.array == tuple(array) + (0,) * (3 - len(array))
        assert back.name == b"abc\0\0"
        assert back.many == (inner(3, 4), inner())
        assert back.wide == (0,) * (2 if abi is Abi.X86_64 else 5)


def test_signed_and_handles() -> None:
    class signed(Struct):
        status: s16 = 0
        where: handle = 0

    value = signed(-12, 0xFFFFFFFF)
    for abi in Abi:
        assert signed.unpack(value.pack(abi), abi) == value


def test_values_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="inner: "):
        inner(a=256).pack()
    with pytest.raises(ValueError, match="inner: "):
        inner(b=-1).pack()
    with pytest.raises(ValueError, match="outer: "):
        outer(word=1 << 32).pack(Abi.X86_32)
    with pytest.raises(ValueError, match="6 bytes in a field of 5"):
        outer(name=b"abcdef").pack()
    with pytest.raises(ValueError, match="3 elements in an array of 2"):
        outer(many=(inner(),) * 3).pack()
    with pytest.raises(ValueError, match=r"inner\.a: "):
        inner.pack_field("a", 256)
    with pytest.raises(ValueError, match="inner: "):
        inner(a=256).pack_into(bytearray(99))


def test_a_field_of_one_abi() -> None:
    value = outer(only=7)
    assert outer.unpack(value.pack(Abi.X86_32), Abi.X86_32).only == 7
    assert outer.unpack(value.pack(Abi.X86_64), Abi.X86_64).only == 0


def test_a_union_is_read_by_its_members() -> None:
    value = outer(u=inner(5, 6).pack(Abi.X86_32))
    back = outer.unpack(value.pack(Abi.X86_32), Abi.X86_32)
    assert inner.unpack(back.u, Abi.X86_32) == inner(5, 6)


def test_a_nested_default_is_not_shared() -> None:
    first, second = outer(), outer()
    first.nested.a = 9
    assert second.nested.a == 0


def test_equality_and_text() -> None:
    assert inner(1, 2) == inner(a=1, b=2)
    assert inner(1, 2) != inner(1, 3)
    assert inner(1, 2) != (1, 2)
    assert repr(inner(1, 0x12345)) == "inner(a=1, b=0x12345)"
    assert "wide=(0,)*2" in repr(outer.unpack(outer().pack()))
    with pytest.raises(TypeError):
        hash(inner())


def test_a_default_that_is_given() -> None:
    class versioned(Struct):
        version: u32 = 1
        pair: Annotated[tuple[int, ...], Array(u8, 2)] = (3, 4)
        mark: Annotated[bytes, Bytes(2)] = b"ok"

    assert versioned().pack() == b"\x01\0\0\0\x03\x04ok"


def test_fields_by_name_only() -> None:
    with pytest.raises(TypeError):
        inner.__call__(1, 2, 3)
    with pytest.raises(KeyError):
        inner.offsetof("c")


def test_annotations_as_strings() -> None:
    module = ModuleType("string_annotations")
    module.__dict__.update(Struct=Struct, u8=u8, u32=u32)
    sys.modules[module.__name__] = module
    try:
        exec(
            "from __future__ import annotations\nclass pair(Struct):\n a: u8 = 0\n b: u32 = 0\n",
            module.__dict__,
        )
    finally:
        del sys.modules[module.__name__]
    assert module.__dict__["pair"].sizeof() == 8


def test_declarations_that_are_refused() -> None:
    with pytest.raises(TypeError, match="the name is taken"):
        type("taken", (Struct,), {"__annotations__": {"pack": u8}})
    with pytest.raises(TypeError, match="does not inherit"):

        class derived(inner):
            c: u8 = 0

    with pytest.raises(TypeError, match="has no layout"):

        class plain(Struct):
            a: int = 0

    with pytest.raises(TypeError, match="no array of"):

        class nested(Struct):
            a: Annotated[tuple[bytes, ...], Array(Bytes(2), 2)] = ()


def test_ring_size() -> None:
    assert sring.sizeof() == 64
    assert RING_SIZE(112, 4096) == 32
    assert RING_SIZE(12, 4096) == 256
    assert RING_SIZE(4096, 4096) == 0
