"""Every tiny guest in every CPU mode, one verdict each, and the harness that reads the verdicts.

Proves what each guest's leading comment says, by running it under `hvmlite run`. Cannot see what
the comment lists as blind spots, nor anything that a guest does not print.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .build import VARIANTS, Guest, GuestToolsMissingError, build_guest, guests
from .conftest import Row
from .run import GuestRun, Verdict, run_guest, verdict_of

GUESTS = guests()
RUNS = [
    pytest.param(guest, variant, id=f"{guest.name}-{variant}")
    for guest in GUESTS.values()
    if not guest.driven_by
    for variant in guest.variants
]


def build_or_skip(name: str, variant: str) -> Path:
    try:
        return build_guest(name, variant)
    except GuestToolsMissingError as exc:
        pytest.skip(str(exc))


@pytest.mark.engine
@pytest.mark.timeout(60)
@pytest.mark.parametrize(("guest", "variant"), RUNS)
def test_guest(guest: Guest, variant: str, guest_rows: list[Row]) -> None:
    run = run_guest(build_or_skip(guest.name, variant), guest.options)
    guest_rows.append(Row(guest.name, variant, run))
    if run.verdict is Verdict.SKIP:
        reason = re.search(r"^Skip: (.*)$", run.console, re.MULTILINE)
        pytest.skip(reason[1] if reason else "the guest gave no reason")
    if run.verdict is not Verdict.SUCCESS:
        pytest.fail(run.report(), pytrace=False)
    lines = run.console.splitlines()
    for pattern in guest.expect:
        if not any(re.fullmatch(pattern, line) for line in lines):
            pytest.fail(f"no line matches {pattern!r}\n{run.report()}", pytrace=False)


@pytest.mark.engine
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("number", "verdict", "text"),
    [
        (0, Verdict.SUCCESS, ""),
        (1, Verdict.SKIP, "Skip: a reason to skip"),
        (2, Verdict.ERROR, "Error: something in the test's way"),
        (3, Verdict.FAILURE, "Failure: second wrong answer"),
        (4, Verdict.CRASH, "Unexpected exception: vector 6"),
        (5, Verdict.CRASH, ""),
        (6, Verdict.ERROR, "Error: the test ended without a verdict"),
        (7, Verdict.CRASH, ""),
    ],
    ids=["success", "skip", "error", "failure", "exception", "triple-fault", "none", "endless"],
)
def test_verdicts_are_told_apart(number: int, verdict: Verdict, text: str) -> None:
    elf = build_or_skip("verdicts", "hvm64")
    run: GuestRun = run_guest(elf, ["--cmdline", f"verdict={number}"], timeout=4)
    assert run.verdict is verdict, run.report()
    assert text in run.console, run.report()


@pytest.mark.parametrize(
    ("console", "status", "verdict"),
    [
        ("Hello\nTest result: SUCCESS\n", 0, Verdict.SUCCESS),
        ("Test result: SKIP\r\n\n", 0, Verdict.SKIP),
        ("Failure: 1\nTest result: FAILURE", 0, Verdict.FAILURE),
        ("Test result: ERROR\n", 0, Verdict.ERROR),
        ("", 0, Verdict.CRASH),
        ("Test result: SUCCESS\nUnexpected exception\n", 0, Verdict.CRASH),
        ("Test result: SUCCESS\n", 1, Verdict.CRASH),
        ("Test result: SUCCESS\n", None, Verdict.CRASH),
        ("Test result: CRASH\n", 0, Verdict.CRASH),
        ("not Test result: SUCCESS\n", 0, Verdict.CRASH),
    ],
)
def test_verdict_of(console: str, status: int | None, verdict: Verdict) -> None:
    assert verdict_of(console, status) is verdict


def test_every_guest_states_purpose_and_blind_spots() -> None:
    assert GUESTS
    for guest in GUESTS.values():
        comment = guest.source.read_text().partition("*/")[0]
        assert comment.startswith(f"/*\n * {guest.name}: "), guest.name
        assert " * Purpose: " in comment, guest.name
        assert " * Blind spots: " in comment, guest.name


def test_comment_is_read() -> None:
    start_info = GUESTS["start_info"]
    assert start_info.options == ("--cmdline", "hello world")
    assert start_info.variants == tuple(VARIANTS)
    assert GUESTS["hello"].expect == ("Hello from a PVH guest",)
    assert GUESTS["verdicts"].driven_by


@pytest.mark.parametrize("variant", VARIANTS)
def test_build_is_cached_by_content(variant: str, tmp_path: Path) -> None:
    try:
        first = build_guest("hello", variant, tmp_path)
    except GuestToolsMissingError as exc:
        pytest.skip(str(exc))
    stamp = first.stat().st_mtime_ns
    again = build_guest("hello", variant, tmp_path)
    assert again == first
    assert again.stat().st_mtime_ns == stamp
    assert first.read_bytes()[4] == (2 if variant == "hvm64" else 1)
