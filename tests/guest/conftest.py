"""Collects the verdicts of the test guests and prints tables at the end of a run: of the guests, of
the hypercalls that they show, and the fuzzer's figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from .build import guests
from .calls import Table
from .run import GuestRun


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    guest: str
    variant: str
    run: GuestRun


ROWS = pytest.StashKey[list[Row]]()
FUZZ = pytest.StashKey[list[dict[str, Any]]]()


@pytest.fixture
def guest_rows(request: pytest.FixtureRequest) -> list[Row]:
    """Where a test leaves the rows for the table."""
    return request.config.stash.setdefault(ROWS, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for figures in terminalreporter.config.stash.get(FUZZ, []):
        before, after = figures["before"], figures["after"]
        terminalreporter.section("fuzzer")
        terminalreporter.write_line(
            f"{figures['calls']} calls of {figures['guests']} guests, "
            f"{len(figures['exceptions'])} host exceptions, {len(figures['hangs'])} hangs; "
            f"peak memory {before['VmHWM']} KiB before, {after['VmHWM']} KiB after; "
            f"heap {before['RssAnon']} KiB before, {after['RssAnon']} KiB after"
        )
    rows = terminalreporter.config.stash.get(ROWS, [])
    if not rows:
        return
    table, sources = Table(), guests()
    for row in rows:
        table.add(sources[row.guest], row.variant, row.run)
    if table:
        terminalreporter.section("hypercalls")
        for line in table.lines():
            terminalreporter.write_line(line)
    terminalreporter.section("test guests")
    width = max(len(row.guest) for row in rows)
    for row in sorted(rows, key=lambda row: (row.guest, row.variant)):
        terminalreporter.write_line(
            f"{row.guest:{width}}  {row.variant:8}  {row.run.verdict:7}  {row.run.seconds:5.1f} s"
        )
