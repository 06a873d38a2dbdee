"""The guest `answers` against the recorded answers of real Xen 4.17, question by question.

Proves that a 64-bit domU with two vCPUs gets the same answers, but for the differences that
data/differences.toml gives a reason for. Cannot see whether a question that was worked out from
its name is the very one that Xen was asked, nor what other guests or releases are answered.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from .build import guests
from .conftest import Row
from .run import Verdict, run_guest
from .test_guests import build_or_skip

DATA = Path(__file__).parent / "data"
RECORDED = DATA / "answers-xen-4.17.txt"
NEIGHBOURS = DATA / "answers-neighbours.txt"
DIFFERENCES = DATA / "differences.toml"

NOT_ASKED: dict[str, str] = {}
"""Recorded questions that the guest does not ask, each with the reason."""


def parse(text: str) -> dict[str, str]:
    """The answers by question; lines without a tab are something else."""
    answers: dict[str, str] = {}
    for line in text.splitlines():
        question, tab, answer = line.partition("\t")
        if not tab or question.startswith("#"):
            continue
        assert question not in answers, f"{question} is there twice"
        answers[question] = answer
    return answers


def differences() -> dict[str, tuple[str, str]]:
    """(Xen's answer, ours) by question, where they are known to differ."""
    listed = tomllib.loads(DIFFERENCES.read_text()).get("difference", [])
    assert all(each["reason"].strip() for each in listed)
    return {each["question"]: (each["xen"], each["hvmlite"]) for each in listed}


def test_lists_hold_what_they_say() -> None:
    recorded = parse(RECORDED.read_text())
    assert len(recorded) == 890
    assert all(recorded[question] == xen for question, (xen, _) in differences().items())
    assert all(xen != ours for xen, ours in differences().values())
    assert NOT_ASKED.keys() <= recorded.keys()
    assert not recorded.keys() & parse(NEIGHBOURS.read_text()).keys()


def _unlike(asked: dict[str, str], expected: dict[str, str]) -> list[str]:
    return [
        f"{question}: got {asked.get(question, 'no answer')!r}, want {answer!r}"
        for question, answer in expected.items()
        if asked.get(question) != answer
    ]


@pytest.mark.engine
@pytest.mark.timeout(60)
def test_answers(guest_rows: list[Row]) -> None:
    guest = guests()["answers"]
    run = run_guest(build_or_skip(guest.name, "hvm64"), guest.options)
    guest_rows.append(Row(guest.name, "hvm64", run))
    if run.verdict is not Verdict.SUCCESS:
        pytest.fail(run.report(), pytrace=False)
    asked = parse(run.console)
    recorded, neighbours = parse(RECORDED.read_text()), parse(NEIGHBOURS.read_text())
    for question in NOT_ASKED:
        del recorded[question]
    ours = {question: answer for question, (_, answer) in differences().items()}
    wrong = _unlike(asked, recorded | neighbours | ours)
    wrong += [
        f"{name}: not in any list" for name in asked.keys() - recorded.keys() - neighbours.keys()
    ]
    if wrong:
        lists = "(differences with a reason belong in data/differences.toml)"
        pytest.fail("\n".join([f"{len(wrong)} answers are wrong {lists}", *wrong]), pytrace=False)
