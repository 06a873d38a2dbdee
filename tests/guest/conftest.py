"""Collects the verdicts of the test guests and prints them as a table at the end of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

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
    rows = terminalreporter.config.stash.get(ROWS, [])
    if not rows:
        return
    terminalreporter.section("test guests")
    width = max(len(row.guest) for row in rows)
    for row in sorted(rows, key=lambda row: (row.guest, row.variant)):
        terminalreporter.write_line(
            f"{row.guest:{width}}  {row.variant:8}  {row.run.verdict:7}  {row.run.seconds:5.1f} s"
        )
