"""C struct layouts as Python declarations: one class, the x86_64 and the i386 layout of it.

The other modules of this package declare Xen's public structs with it; it knows no struct itself.
Layout rules are the System V psABIs' (https://gitlab.com/x86-psABIs): on i386 a 64-bit integer is
aligned to 4 bytes, which is why a 32-bit guest's structs differ in more than the pointer size.
A declaration costs almost nothing until it is used: a run needs few of them, in one ABI.
"""

import enum
import struct
import typing
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import (
    Annotated,
    Any,
    ClassVar,
    Self,
    TypeAlias,
    TypeGuard,
    TypeVar,
    dataclass_transform,
)

BytesLike: TypeAlias = bytes | bytearray | memoryview

_S = TypeVar("_S", bound="Struct")


class Abi(enum.IntEnum):
    """The layout a guest uses: that of its mode at the time of the hypercall."""

    X86_64 = 0
    X86_32 = 1

    @property
    def word(self) -> int:
        """Bytes in an `unsigned long` or a pointer."""
        return 8 if self is Abi.X86_64 else 4


class Scalar:
    """One integer: `struct` format character, then size and alignment in bytes, for each ABI."""

    __slots__ = ("align", "format", "size")

    def __init__(
        self, format: tuple[str, str], size: tuple[int, int], align: tuple[int, int]
    ) -> None:
        self.format = format
        self.size = size
        self.align = align


def _scalar(format_char: str, size: int) -> Scalar:
    return Scalar((format_char, format_char), (size, size), (size, min(size, 4)))


u8: TypeAlias = Annotated[int, _scalar("B", 1)]
u16: TypeAlias = Annotated[int, _scalar("H", 2)]
u32: TypeAlias = Annotated[int, _scalar("I", 4)]
u64: TypeAlias = Annotated[int, _scalar("Q", 8)]
s8: TypeAlias = Annotated[int, _scalar("b", 1)]
s16: TypeAlias = Annotated[int, _scalar("h", 2)]
s32: TypeAlias = Annotated[int, _scalar("i", 4)]
s64: TypeAlias = Annotated[int, _scalar("q", 8)]
u64_aligned: TypeAlias = Annotated[int, Scalar(("Q", "Q"), (8, 8), (8, 8))]
"""uint64_aligned_t: aligned to 8 bytes in both layouts."""
ulong: TypeAlias = Annotated[int, Scalar(("Q", "I"), (8, 4), (8, 4))]
"""unsigned long, xen_ulong_t."""
slong: TypeAlias = Annotated[int, Scalar(("q", "i"), (8, 4), (8, 4))]
"""long."""
handle: TypeAlias = Annotated[int, Scalar(("Q", "I"), (8, 4), (8, 4))]
"""XEN_GUEST_HANDLE(x): a guest-virtual address."""
xen_pfn: TypeAlias = Annotated[int, Scalar(("Q", "I"), (8, 4), (8, 4))]
"""xen_pfn_t: a guest or machine frame number."""


class Array:
    """Field metadata: `count` elements in a row; `count32` where i386 has another number.

    Use as `Annotated[tuple[int, ...], Array(u32, 15)]`, or with a tuple of structs.
    """

    __slots__ = ("count", "count32", "element")

    def __init__(self, element: object, count: int, count32: int | None = None) -> None:
        self.element = element
        self.count = count
        self.count32 = count32

    def length(self, abi: Abi) -> int:
        """Number of elements in this ABI."""
        return self.count if abi is Abi.X86_64 or self.count32 is None else self.count32


class Bytes:
    """Field metadata: a byte string of exactly `size` bytes; a shorter value is zero-filled."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size


class UnionOf:
    """Field metadata: a union, kept as the bytes of its largest member.

    Read a member with its own `Struct.unpack`; store one with `Struct.pack`.
    """

    __slots__ = ("members",)

    def __init__(self, *members: object) -> None:
        self.members = members


class Only:
    """Field metadata: the field exists in one ABI only, and reads as zero in the other."""

    __slots__ = ("abi", "element")

    def __init__(self, element: object, abi: Abi) -> None:
        self.element = element
        self.abi = abi


class Field:
    """Where a field lies in one ABI: offset and size in bytes (size 0: absent in this ABI)."""

    __slots__ = ("name", "offset", "size")

    def __init__(self, name: str, offset: int, size: int) -> None:
        self.name = name
        self.offset = offset
        self.size = size


class _Kind:
    """What one field's declaration comes to in one ABI.

    `values`: how many values it takes in the struct codec.  `make` gives the field value from
    those, `flatten` those from the field value; None where the one value stays as it is.
    """

    __slots__ = ("align", "flatten", "format", "make", "size", "values")

    def __init__(
        self,
        format: str,
        size: int,
        align: int,
        values: int,
        make: Callable[[tuple[Any, ...]], Any] | None,
        flatten: Callable[[Any], Sequence[Any]] | None,
    ) -> None:
        self.format = format
        self.size = size
        self.align = align
        self.values = values
        self.make = make
        self.flatten = flatten


def _zero(_values: tuple[Any, ...]) -> int:
    return 0


def _nothing(_value: Any) -> tuple[Any, ...]:
    return ()


def _padded(count: int) -> Callable[[Any], Sequence[Any]]:
    def flatten(value: Sequence[Any]) -> Sequence[Any]:
        missing = count - len(value)
        if missing < 0:
            raise ValueError(f"{len(value)} elements in an array of {count}")
        return (*value, *(0,) * missing) if missing else value

    return flatten


def _checked_bytes(size: int) -> Callable[[Any], Sequence[Any]]:
    def flatten(value: bytes) -> Sequence[Any]:
        if len(value) > size:
            raise ValueError(f"{len(value)} bytes in a field of {size}")
        return (value,)

    return flatten


def _struct_array(
    layout: "Layout[Any]", count: int
) -> tuple[Callable[[tuple[Any, ...]], Any], Callable[[Any], Sequence[Any]]]:
    step = layout.values

    def make(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(layout.build(values[i : i + step]) for i in range(0, step * count, step))

    def flatten(elements: Sequence[Any]) -> Sequence[Any]:
        if len(elements) > count:
            raise ValueError(f"{len(elements)} elements in an array of {count}")
        out: list[Any] = []
        for element in elements:
            out += layout.flatten(element)
        if len(elements) < count:
            out += list(layout.flatten(layout.cls())) * (count - len(elements))
        return out

    return make, flatten


def _bare(declared: object) -> object:
    """What an alias such as `u32` or an Annotated field stands for: its field metadata."""
    metadata = getattr(declared, "__metadata__", None)
    return declared if metadata is None else metadata[0]


def _check(declared: object) -> None:
    """Refuse, when a struct is declared, what `_kind` could not resolve later."""
    declared = _bare(declared)
    if isinstance(declared, Array):
        element = _bare(declared.element)
        if not isinstance(element, Scalar) and not _is_struct(element):
            raise TypeError(f"no array of {element!r}")
    elif isinstance(declared, UnionOf):
        for member in declared.members:
            _check(member)
    elif isinstance(declared, Only):
        _check(declared.element)
    elif not isinstance(declared, (Scalar, Bytes)) and not _is_struct(declared):
        raise TypeError(f"{declared!r} has no layout")


def _is_struct(declared: object) -> "TypeGuard[type[Struct]]":
    return isinstance(declared, type) and issubclass(declared, Struct)


def _kind(declared: object, abi: Abi) -> _Kind:
    """Resolve a declaration: an alias such as `u32`, a Struct class, or field metadata."""
    declared = _bare(declared)
    if isinstance(declared, Scalar):
        return _Kind(declared.format[abi], declared.size[abi], declared.align[abi], 1, None, None)
    if _is_struct(declared):
        inner = declared.layout(abi)
        return _Kind(
            inner.format, inner.size, inner.align, inner.values, inner.build, inner.flatten
        )
    if isinstance(declared, Bytes):
        size = declared.size
        return _Kind(f"{size}s", size, 1, 1, None, _checked_bytes(size))
    if isinstance(declared, Array):
        count = declared.length(abi)
        element = _kind(declared.element, abi)
        if _is_struct(declared.element):
            make, flatten = _struct_array(declared.element.layout(abi), count)
        else:
            make, flatten = tuple, _padded(count)
        text = f"{count}{element.format}" if len(element.format) == 1 else element.format * count
        return _Kind(
            text, element.size * count, element.align, element.values * count, make, flatten
        )
    if isinstance(declared, UnionOf):
        members = [_kind(member, abi) for member in declared.members]
        align = max(member.align for member in members)
        size = _round_up(max(member.size for member in members), align)
        return _Kind(f"{size}s", size, align, 1, None, _checked_bytes(size))
    if isinstance(declared, Only):
        if declared.abi is abi:
            return _kind(declared.element, abi)
        return _Kind("", 0, 1, 0, _zero, _nothing)
    raise TypeError(f"{declared!r} has no layout")


def _round_up(value: int, align: int) -> int:
    return -(-value // align) * align


class Layout(typing.Generic[_S]):
    """One struct in one ABI: sizes and offsets in bytes, and the codec built from them."""

    def __init__(self, cls: type[_S], declared: dict[str, object], abi: Abi, packed: bool) -> None:
        self.cls = cls
        self.fields: dict[str, Field] = {}
        self.align = 1
        self.values = 0
        self._kinds: dict[str, _Kind] = {}
        self._slots: list[tuple[int, int, Callable[[tuple[Any, ...]], Any] | None]] = []
        parts: list[str] = []
        offset = 0
        for name, declaration in declared.items():
            kind = _kind(declaration, abi)
            start = offset if packed else _round_up(offset, kind.align)
            if start > offset:
                parts.append(f"{start - offset}x")
            parts.append(kind.format)
            self.fields[name] = Field(name, start, kind.size)
            self._kinds[name] = kind
            self._slots.append((self.values, self.values + kind.values, kind.make))
            self.values += kind.values
            self.align = 1 if packed else max(self.align, kind.align)
            offset = start + kind.size
        self.size = _round_up(offset, self.align)
        if self.size > offset:
            parts.append(f"{self.size - offset}x")
        self.format = "".join(parts)
        self.codec = struct.Struct("<" + self.format)
        kinds = self._kinds.values()
        self.flat = all(kind.make is None for kind in kinds)
        self._plain = len(declared) > 1 and all(kind.flatten is None for kind in kinds)
        # attrgetter answers a bare value, not a tuple, when it is given a single name.
        self._get = attrgetter(*declared) if declared else _nothing

    def build(self, values: tuple[Any, ...]) -> _S:
        """An instance from the values the codec unpacked."""
        if self.flat:
            return self.cls(*values)
        return self.cls(
            *[values[i] if make is None else make(values[i:j]) for i, j, make in self._slots]
        )

    def flatten(self, instance: _S) -> Sequence[Any]:
        """The values to hand to the codec. Raises ValueError where a field's value is too long."""
        if self._plain:
            return self._get(instance)
        out: list[Any] = []
        for name, kind in self._kinds.items():
            value = getattr(instance, name)
            if kind.flatten is None:
                out.append(value)
            else:
                out += kind.flatten(value)
        return out

    def pack_field(self, name: str, value: Any) -> bytes:
        """One field's bytes. Raises ValueError if the value does not fit."""
        kind = self._kinds[name]
        values = (value,) if kind.flatten is None else kind.flatten(value)
        try:
            return struct.pack("<" + kind.format, *values)
        except struct.error as error:
            raise ValueError(f"{self.cls.__name__}.{name}: {error}") from None


class _Declared:
    """Stands in for a `Layout` until it is first used; then its struct has the real one."""

    __slots__ = ("_abi", "_cls", "_declared", "_packed")

    def __init__(
        self, cls: "type[Struct]", declared: dict[str, object], abi: Abi, packed: bool
    ) -> None:
        self._cls = cls
        self._declared = declared
        self._abi = abi
        self._packed = packed

    def resolve(self) -> Layout[Any]:
        """The layout itself.  Threads that come here at once make the same one twice."""
        cls = self._cls
        layout = Layout(cls, self._declared, self._abi, self._packed)
        wide, narrow = cls._layouts
        cls._layouts = (layout, narrow) if self._abi is Abi.X86_64 else (wide, layout)
        return layout

    def __getattr__(self, name: str) -> Any:
        return getattr(self.resolve(), name)


def _default(declared: object, given: object) -> object:
    """The default of a field: what its declaration gave, or zero in the field's own type."""
    metadata = _bare(declared)
    if isinstance(metadata, Bytes | UnionOf):
        if given:
            return given
        size, size32 = (_kind(metadata, abi).size for abi in Abi)
        return bytes(size) if size == size32 else b""
    if isinstance(metadata, Array):
        if given:
            return given
        same = metadata.length(Abi.X86_64) == metadata.length(Abi.X86_32)
        return () if not same or _is_struct(metadata.element) else (0,) * metadata.count
    return given if given is not None else 0


def _init_later(
    cls: "type[Struct]", declared: dict[str, object], given: Mapping[str, object]
) -> Callable[..., None]:
    """An `__init__` that gives way to the compiled one when the first instance is made."""

    def init(self: Struct, *values: object, **named: object) -> None:
        compiled = _make_init(cls, declared, given)
        type.__setattr__(cls, "__init__", compiled)
        compiled(self, *values, **named)

    return init


def _make_init(
    cls: "type[Struct]", declared: dict[str, object], given: Mapping[str, object]
) -> Callable[..., None]:
    """`__init__` with the fields as parameters: compiled, since a loop would be many times slower.

    A field that is a struct itself is made anew for each instance.
    """
    scope: dict[str, Any] = {}
    parameters = []
    body = []
    for name, declaration in declared.items():
        if isinstance(declaration, type):
            scope[f"_new_{name}"] = declaration
            parameters.append(f"{name}=None")
            body.append(f" self.{name} = _new_{name}() if {name} is None else {name}")
        else:
            scope[f"_default_{name}"] = _default(declaration, given.get(name))
            parameters.append(f"{name}=_default_{name}")
            body.append(f" self.{name} = {name}")
    text = f"def __init__({', '.join(['self', *parameters])}):\n" + "\n".join(body or [" pass"])
    exec(text, scope)
    init = scope["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    return typing.cast(Callable[..., None], init)


@dataclass_transform()
class Struct:  # noqa: PLW1641 - fields are mutable, so an instance has no hash
    """Base of every C struct. Subclasses declare fields as `port: u32 = 0`.

    Every field defaults to zero: a struct field to a zeroed struct, an array or byte string to
    zeroes (written `= ()` and `= b""`). An array or union whose size differs between the ABIs
    defaults to empty; a value shorter than its field is zero-filled on packing.
    A field whose C name is a Python keyword carries a trailing underscore.
    `class x(Struct, packed=True)` has no padding, as wire and firmware formats do.
    """

    _layouts: ClassVar[tuple[Layout[Any] | _Declared, Layout[Any] | _Declared]]

    def __init_subclass__(cls, packed: bool = False) -> None:
        declared: dict[str, object] = dict(cls.__annotations__)
        if any(isinstance(value, str) for value in declared.values()):
            hints = typing.get_type_hints(cls, include_extras=True)
            declared = {name: hints[name] for name in declared}
        if cls.__mro__[1] is not Struct:
            raise TypeError(f"{cls.__name__}: a struct does not inherit from another struct")
        given = {}
        for name, declaration in declared.items():
            if hasattr(Struct, name):
                raise TypeError(f"{cls.__name__}.{name}: the name is taken by Struct")
            _check(declaration)
            if name in cls.__dict__:
                given[name] = cls.__dict__[name]
                delattr(cls, name)
        cls._layouts = (
            _Declared(cls, declared, Abi.X86_64, packed),
            _Declared(cls, declared, Abi.X86_32, packed),
        )
        type.__setattr__(cls, "__init__", _init_later(cls, declared, given))

    @classmethod
    def layout(cls, abi: Abi) -> Layout[Self]:
        """The sizes, offsets (bytes) and codec of this struct in one ABI."""
        layout = cls._layouts[abi]
        return layout.resolve() if isinstance(layout, _Declared) else layout

    @classmethod
    def sizeof(cls, abi: Abi = Abi.X86_64) -> int:
        """Size in bytes, tail padding included."""
        return cls._layouts[abi].size

    @classmethod
    def offsetof(cls, name: str, abi: Abi = Abi.X86_64) -> int:
        """Offset of a field in bytes. Raises KeyError for an unknown field."""
        return cls._layouts[abi].fields[name].offset

    @classmethod
    def sizeof_field(cls, name: str, abi: Abi = Abi.X86_64) -> int:
        """Size of a field in bytes. Raises KeyError for an unknown field."""
        return cls._layouts[abi].fields[name].size

    @classmethod
    def pack_field(cls, name: str, value: Any, abi: Abi = Abi.X86_64) -> bytes:
        """The bytes of one field, to store at its offset. Raises ValueError if it does not fit."""
        return cls._layouts[abi].pack_field(name, value)

    @classmethod
    def unpack(cls, data: BytesLike, abi: Abi = Abi.X86_64, offset: int = 0) -> Self:
        """Read an instance from `data` at `offset` (bytes). Raises ValueError if too short."""
        layout = cls._layouts[abi]
        if offset < 0:
            raise ValueError(f"{cls.__name__} at negative offset {offset}")
        try:
            values = layout.codec.unpack_from(data, offset)
        except struct.error:
            raise ValueError(
                f"{cls.__name__} needs {layout.size} bytes at offset {offset}, got {len(data)}"
            ) from None
        return cls(*values) if layout.flat else layout.build(values)

    def pack(self, abi: Abi = Abi.X86_64) -> bytes:
        """The bytes of the struct, padding zero. Raises ValueError if a value does not fit."""
        layout = self._layouts[abi]
        try:
            return layout.codec.pack(*layout.flatten(self))
        except struct.error as error:
            raise ValueError(f"{type(self).__name__}: {error}") from None

    def pack_into(
        self, buffer: bytearray | memoryview, offset: int = 0, abi: Abi = Abi.X86_64
    ) -> None:
        """Write the struct at `offset` (bytes). Raises ValueError if it or a value does not fit."""
        if offset < 0:
            raise ValueError(f"{type(self).__name__} at negative offset {offset}")
        layout = self._layouts[abi]
        try:
            layout.codec.pack_into(buffer, offset, *layout.flatten(self))
        except struct.error as error:
            raise ValueError(f"{type(self).__name__}: {error}") from None

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.__dict__ == other.__dict__

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={_shown(value)}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({fields})"


def _shown(value: object) -> str:
    if isinstance(value, int) and value >= 0x1000:
        return hex(value)
    if isinstance(value, tuple) and len(value) > 1 and not any(value):
        return f"({value[0]!r},)*{len(value)}"
    return repr(value)
