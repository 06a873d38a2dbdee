"""Proves that a record behaves as the dataclass of the same declaration would.

Cannot see what is left out on purpose: slots, ordering, InitVar, fields without `__init__`.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any, ClassVar

import pytest

from hvmlite.records import field, record


@record
class Point:
    """Two numbers."""

    x: int
    y: int = 2
    kind: ClassVar[str] = "point"

    @property
    def sum(self) -> int:
        return self.x + self.y


@record
class Named(Point):
    name: str = "none"
    tags: list[str] = field(default_factory=list)


@record(frozen=True)
class Fixed:
    data: tuple[int, ...]
    note: str = field(default_factory=str, repr=False, compare=False)


@record
class Checked:
    value: int = 0

    def __post_init__(self) -> None:
        if self.value < 0:
            raise ValueError("negative")


@record
class Empty:
    pass


def test_parameters_by_place_name_and_default() -> None:
    assert (Point(1).x, Point(1).y, Point(3, 4).y, Point(y=5, x=6).sum) == (1, 2, 4, 11)
    named = Named(1, 2, "a")
    assert (named.x, named.y, named.name, named.tags) == (1, 2, "a", [])
    assert Named(1).tags is not Named(1).tags
    assert Point.kind == "point"
    assert Point.__doc__ == "Two numbers."
    Empty()


@pytest.mark.parametrize(("values", "named"), [((), {}), ((1, 2, 3), {}), ((1,), {"z": 1})])
def test_what_init_refuses(values: tuple[int, ...], named: dict[str, int]) -> None:
    for _ in range(2):  # as the first instance, and compiled
        with pytest.raises(TypeError, match=r"Point.__init__\(\)"):
            Point(*values, **named)


def test_comparison_and_repr() -> None:
    assert Point(1) == Point(1, 2)
    assert Point(1) != Point(2)
    assert Point(1) != Named(1)
    assert Point(1) != (1, 2)
    assert repr(Named(1)) == "Named(x=1, y=2, name='none', tags=[])"
    assert repr(Fixed((1,), "n")) == "Fixed(data=(1,))"
    assert repr(Empty()) == "Empty()"
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(1))


def test_frozen() -> None:
    one = Fixed((1, 2), "a")
    assert one == Fixed((1, 2), "b")
    assert hash(one) == hash(Fixed((1, 2)))
    changing: Any = one
    with pytest.raises(AttributeError, match=r"Fixed.data cannot be changed"):
        changing.data = ()
    with pytest.raises(AttributeError, match=r"Fixed.data cannot be deleted"):
        del changing.data
    assert (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))) == (one,) * 3


def test_post_init() -> None:
    assert Checked(3).value == 3
    with pytest.raises(ValueError, match="negative"):
        Checked(-1)


def test_a_class_below_a_record() -> None:
    class Below(Point):
        def __init__(self) -> None:
            super().__init__(7)

    assert (Below().x, Below().y) == (7, 2)


def test_the_functions_of_dataclasses() -> None:
    named = Named(1, tags=["t"])
    assert dataclasses.is_dataclass(named)
    assert dataclasses.replace(named, x=3) == Named(3, tags=["t"])
    assert dataclasses.asdict(named) == {"x": 1, "y": 2, "name": "none", "tags": ["t"]}
    assert [each.name for each in dataclasses.fields(Named)] == ["x", "y", "name", "tags"]
    assert [each.compare for each in dataclasses.fields(Fixed)] == [True, False]


def declared(**members: Any) -> type:
    annotations = dict.fromkeys(members.pop("fields"), "int")
    return type("Declared", (), {"__annotations__": annotations, **members})


def test_declarations_that_are_refused() -> None:
    with pytest.raises(TypeError, match="no default"):
        record(declared(fields=("a", "b"), a=1))
    with pytest.raises(TypeError, match="share"):
        record(declared(fields=("a",), a=[]))
