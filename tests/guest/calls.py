"""Which hypercalls the test guests show: what the sources declare, what the runs say, the table.

A guest declares the call that its next checks are about by call("NAME") in its source and prints
`Call: NAME VERDICT` behind the last of them. What there is to cover is hvmlite's dispatch table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from hvmlite.hypervisor.hypercalls.table import FAMILIES

from .build import VARIANTS, Guest
from .run import GuestRun, Verdict

BITNESSES = ("hvm64", "hvm32pae", "hvm32")
"""Variants in which each call must be shown."""
_DECLARED = re.compile(r'\b(?:call|refused)\(\s*"(\w+)"')
_SAID = re.compile(r"^Call: (\w+) (SUCCESS|SKIP|ERROR|FAILURE)$", re.MULTILINE)
_ORDER = list(Verdict)


class Operation(NamedTuple):
    """A hypercall, or one of its sub-operations (then `name` is not the family's)."""

    family: str
    name: str


def operations() -> list[Operation]:
    """All that hvmlite's table has: sub-operations, and hypercalls that have none."""
    return [
        Operation(family.name, name)
        for family in FAMILIES
        for name in ([info.name for info in family.ops.values()] or [family.name])
    ]


def declared(guest: Guest) -> set[str]:
    """The calls that a guest's source says it shows."""
    return set(_DECLARED.findall(guest.source.read_text()))


def said(run: GuestRun, guest: Guest) -> Iterator[tuple[str, Verdict]]:
    """Each call that a run has a verdict on; a guest that crashed has one on all it did not end."""
    ended = set()
    for name, verdict in _SAID.findall(run.console):
        ended.add(name)
        yield name, Verdict(verdict)
    if run.verdict is Verdict.CRASH:
        for name in declared(guest) - ended:
            yield name, Verdict.CRASH


class Table:
    """The worst verdict on each call in each variant."""

    def __init__(self) -> None:
        self._verdicts: dict[tuple[str, str], Verdict] = {}

    def add(self, guest: Guest, variant: str, run: GuestRun) -> None:
        """Takes in what a run said."""
        for name, verdict in said(run, guest):
            key = name, variant
            self._verdicts[key] = max(self._verdicts.get(key, verdict), verdict, key=_ORDER.index)

    def __bool__(self) -> bool:
        return bool(self._verdicts)

    def lines(self) -> Iterator[str]:
        """The table as text; a call that no guest of this run was about is left out."""
        known = operations()
        wide, width = (max(map(len, column)) for column in zip(*known, strict=True))
        heading = " ".join(f"{variant:8}" for variant in VARIANTS)
        yield f"{'hypercall':{wide}} {'operation':{width}} {heading}".rstrip()
        for each in known:
            verdicts = [self._verdicts.get((each.name, variant)) for variant in VARIANTS]
            if any(verdicts):
                cells = " ".join(f"{verdict or '-':8}" for verdict in verdicts)
                yield f"{each.family:{wide}} {each.name:{width}} {cells}".rstrip()


def uncovered(guests: Iterable[Guest]) -> list[str]:
    """The operations that no guest declares, with the bitnesses in which that is so."""
    shown = {
        (name, variant)
        for guest in guests
        for name in declared(guest)
        for variant in guest.variants
    }
    missing = []
    for each in operations():
        absent = [variant for variant in BITNESSES if (each.name, variant) not in shown]
        if absent:
            missing.append(f"{each.family} {each.name} ({', '.join(absent)})")
    return missing
