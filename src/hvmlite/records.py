"""Classes that are mainly fields: what `dataclasses` gives them, at a fraction of its price.

`dataclass` compiles four methods for every class when it is declared, and its module loads half a
compiler: together a seventh of the start of a guest.  Here a declaration is noted down, and an
`__init__` compiled when the first instance is made.  The functions of `dataclasses` (`replace`,
`asdict`, `fields`) work on records.  Takes no slots, no InitVar and no fields without `__init__`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as record
    from dataclasses import field

__all__ = ["field", "record"]

_MISSING = object()


class _Field:
    """What `field` said of a field."""

    __slots__ = ("compare", "make", "repr")

    def __init__(self, make: Any, show: bool, compare: bool) -> None:
        self.make = make
        self.repr = show
        self.compare = compare


class _DataclassFields:
    """`__dataclass_fields__`, by which `dataclasses` knows its own, made when it is asked for."""

    def __get__(self, instance: object, cls: Any) -> Any:
        import dataclasses  # noqa: PLC0415

        fields = []
        for name, default in cls.__record_fields__.items():
            options: dict[str, Any] = {}
            if isinstance(default, _Field):
                options = {"repr": default.repr, "compare": default.compare}
                if default.make is not _MISSING:
                    options["default_factory"] = default.make
            elif default is not _MISSING:
                options = {"default": default}
            fields.append((name, Any, dataclasses.field(**options)))
        twin: Any = dataclasses.make_dataclass(cls.__name__, fields)
        cls.__dataclass_fields__ = twin.__dataclass_fields__
        return cls.__dataclass_fields__


def _required(default: object) -> bool:
    return default is _MISSING or (isinstance(default, _Field) and default.make is _MISSING)


def _compile_init(cls: Any, frozen: bool) -> Any:
    """`__init__` with the fields as parameters."""
    scope: dict[str, Any] = {"missing": _MISSING}
    parameters, body = ["self"], []
    for name, default in cls.__record_fields__.items():
        value = name
        if _required(default):
            parameters.append(name)
        elif isinstance(default, _Field):
            scope[f"make_{name}"] = default.make
            parameters.append(f"{name}=missing")
            value = f"make_{name}() if {name} is missing else {name}"
        else:
            scope[f"default_{name}"] = default
            parameters.append(f"{name}=default_{name}")
        body.append(f" self.__dict__[{name!r}] = {value}" if frozen else f" self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append(" self.__post_init__()")
    text = f"def __init__({', '.join(parameters)}):\n" + "\n".join(body or [" pass"])
    exec(text, scope)
    init = scope["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    return init


def _init_later(cls: Any, frozen: bool) -> Any:
    def __init__(self: Any, *values: Any, **named: Any) -> None:  # noqa: N807
        compiled = _compile_init(cls, frozen)
        cls.__init__ = compiled
        compiled(self, *values, **named)

    return __init__


def _compared(instance: Any) -> tuple[Any, ...]:
    fields = type(instance).__record_fields__.items()
    return tuple([
        getattr(instance, name) for name, default in fields
        if not isinstance(default, _Field) or default.compare
    ])  # fmt: skip


def _eq(self: Any, other: object) -> Any:
    return _compared(self) == _compared(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_compared(self))


def _repr(self: Any) -> str:
    fields = ", ".join(
        f"{name}={getattr(self, name)!r}"
        for name, default in type(self).__record_fields__.items()
        if not isinstance(default, _Field) or default.repr
    )
    return f"{type(self).__qualname__}({fields})"


def _refuse_set(self: object, name: str, _value: object) -> None:
    raise AttributeError(f"{type(self).__qualname__}.{name} cannot be changed")


def _refuse_delete(self: object, name: str) -> None:
    raise AttributeError(f"{type(self).__qualname__}.{name} cannot be deleted")


def _declare(cls: Any, frozen: bool) -> Any:
    fields: dict[str, Any] = {}
    for base in cls.__mro__[:0:-1]:
        fields |= base.__dict__.get("__record_fields__", {})
    own = cls.__dict__
    for name, declared in own.get("__annotations__", {}).items():
        if str(declared).startswith(("ClassVar", "typing.ClassVar")):
            continue
        default = own.get(name, _MISSING)
        if isinstance(default, _Field):
            delattr(cls, name)
        elif isinstance(default, list | dict | set | bytearray):
            raise TypeError(f"{cls.__qualname__}.{name}: a default that all instances would share")
        if _required(default) and not all(map(_required, fields.values())):
            raise TypeError(f"{cls.__qualname__}.{name}: no default, after a field that has one")
        fields[name] = default
    cls.__record_fields__ = fields
    cls.__dataclass_fields__ = _DataclassFields()
    cls.__init__ = _init_later(cls, frozen)
    if "__repr__" not in own:
        cls.__repr__ = _repr
    if "__eq__" not in own:
        cls.__eq__ = _eq
        cls.__hash__ = _hash if frozen else None
    if frozen:
        cls.__setattr__, cls.__delattr__ = _refuse_set, _refuse_delete
    return cls


if not TYPE_CHECKING:

    def record(cls=None, /, *, frozen=False):
        """Class decorator: the annotated names become fields, parameters of `__init__`.

        With `frozen` instances cannot be changed and can be hashed.  TypeError for a declaration
        that `dataclass` would refuse too.
        """
        if cls is None:
            return lambda cls: _declare(cls, frozen)
        return _declare(cls, frozen)

    def field(*, default_factory=_MISSING, repr=True, compare=True):
        """A field with a default made anew for each instance, or left out of repr or comparison."""
        return _Field(default_factory, repr, compare)
