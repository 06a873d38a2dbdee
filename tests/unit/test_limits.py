"""Proves that the tables of docs/limits.md are what the code answers, and that none is left out.

Cannot see whether what is written there by hand, or the remarks in scripts/gen_limits.py, are true;
only that each of them is about an operation that exists.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hvmlite.hypervisor.hypercalls.registry import OpInfo
from hvmlite.hypervisor.hypercalls.table import FAMILIES, HYPERCALLS

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gen_limits.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tooling_gen_limits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


gen_limits = load()


def operations() -> dict[str, OpInfo]:
    return {info.name: info for family in FAMILIES for info in family.ops.values()}


def test_the_page_is_up_to_date() -> None:
    page = gen_limits.PAGE.read_text()
    assert gen_limits.render(page) == page, "docs/limits.md is stale: run make docs"


def test_every_hypercall_is_listed() -> None:
    text = gen_limits.hypercalls()
    assert {family.number for family in FAMILIES} == set(HYPERCALLS)
    for family in FAMILIES:
        assert f"#### {family.name} ({family.number})\n" in text or (
            f"| {family.number} | `{family.name}` |" in text
        )
    for name in operations():
        assert f"`{name}`" in text


def test_remarks_are_about_operations_that_exist() -> None:
    named = operations()
    whole = {family.name for family in FAMILIES if not family.ops}
    assert set(gen_limits.REMARKS) <= set(named) | whole
    assert set(gen_limits.REFUSES) <= set(named)
    assert set(gen_limits.NOTES) <= {family.name for family in FAMILIES}
    assert not set(gen_limits.REMARKS) & set(gen_limits.REFUSES)
    # What is refused before anything looks at it says so itself.
    assert all(named[name].handler is not None for name in gen_limits.REFUSES)


def test_a_family_that_decides_by_its_arguments_is_told_apart() -> None:
    answers = {family.name: gen_limits.refusal_of(family) for family in FAMILIES if family.why}
    assert answers["xsm_op"] == "-ENOSYS"
    assert answers["console_io"] == "-EPERM"
    assert answers["domctl"] == "an errno by its arguments, as Xen's"


def test_msrs_that_the_guest_has_are_listed() -> None:
    text = gen_limits.msrs()
    # STAR is the CPU's own, EFER is looked at, MISC_ENABLE is a constant.
    assert "| 0xc0000081 to 0xc0000084 | STAR, LSTAR, CSTAR, SFMASK | CPU | CPU |" in text
    assert "| 0xc0000080 | EFER | value | checked |" in text
    assert "| 0x1a0 | MISC_ENABLE | 0 | #GP |" in text


def test_an_msr_without_a_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {index: name for index, name in gen_limits.MSR_NAMES.items() if name != "EFER"}
    monkeypatch.setattr(gen_limits, "MSR_NAMES", names)
    with pytest.raises(gen_limits.LimitsError, match="0xc0000080"):
        gen_limits.msrs()


@pytest.mark.parametrize("copies", [0, 2])
def test_a_page_with_wrong_marks_is_refused(copies: int) -> None:
    marks = "<!-- generated: params --><!-- end: params -->\n"
    page = gen_limits.PAGE.read_text().replace("generated: params", "written by hand: params")
    with pytest.raises(gen_limits.LimitsError, match=f"generated: params .* found {copies}"):
        gen_limits.render(page + marks * copies)


def test_what_is_written_by_hand_stays() -> None:
    page = gen_limits.PAGE.read_text()
    begin, end = "<!-- generated: releases -->", "<!-- end: releases -->"
    head, _, rest = page.partition(begin)
    stale = f"{head}{begin}\nold\n{end}{rest.partition(end)[2]}"
    assert gen_limits.render(stale) == page
