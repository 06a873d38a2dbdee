"""Every hypercall of the dispatch table has a guest that shows it, in each bitness.

Proves that no operation was forgotten, and runs the guests that need more than `hvmlite run`
offers: Argo, which only the toolstack can allow, and the ways to end. Cannot see how much of an
operation a guest checks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvmlite.errors import EngineError
from hvmlite.toolstack.config import DomainConfig
from hvmlite.toolstack.domain import Domain
from hvmlite.toolstack.host import Host

from .build import GuestToolsMissingError, build_guest, guests
from .calls import BITNESSES, Table, declared, operations, uncovered
from .conftest import Row
from .run import GuestRun, Verdict, verdict_of

GUESTS = guests()
ENDINGS = {
    0: "poweroff",
    1: "reboot",
    2: "suspend",
    3: "crash",
    4: "watchdog",
    5: "soft_reset",
    100: "reboot",
    101: "watchdog",
    102: "poweroff",
    103: "poweroff",
}


def test_every_operation_has_a_guest() -> None:
    missing = uncovered(GUESTS.values())
    assert missing == [], "\n".join(["no guest shows:", *missing])


def test_guests_declare_only_operations_that_there_are() -> None:
    known = {each.name for each in operations()}
    for guest in GUESTS.values():
        assert declared(guest) <= known, guest.name


def test_table() -> None:
    table = Table()
    guest = GUESTS["shutdown"]

    def run(console: str, verdict: Verdict = Verdict.SUCCESS) -> GuestRun:
        return GuestRun(verdict, console, "", 0, 0.1)

    assert not table
    table.add(guest, "hvm64", run("Call: EVTCHNOP_send SUCCESS\nCall: EVTCHNOP_close SUCCESS\n"))
    table.add(guest, "hvm32", run("Call: EVTCHNOP_send FAILURE\nCall: EVTCHNOP_send SUCCESS\n"))
    table.add(GUESTS["multicall"], "hvm64", run("boom", Verdict.CRASH))
    rows = {line.split()[1]: line.split() for line in table.lines()}
    assert rows["EVTCHNOP_send"] == [
        "event_channel_op",
        "EVTCHNOP_send",
        "SUCCESS",
        "-",
        "-",
        "FAILURE",
    ]
    assert rows["EVTCHNOP_close"] == [
        "event_channel_op",
        "EVTCHNOP_close",
        "SUCCESS",
        "-",
        "-",
        "-",
    ]
    assert rows["multicall"][2] == "CRASH"
    assert "EVTCHNOP_status" not in rows


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    try:
        made = Host(256 << 20)
    except EngineError as error:
        pytest.skip(str(error))
    with made:
        yield made


def make(host: Host, name: str, variant: str, cmdline: str = "") -> Domain:
    try:
        elf: Path = build_guest(name, variant)
    except GuestToolsMissingError as exc:
        pytest.skip(str(exc))
    config = DomainConfig(kernel=elf, cmdline=cmdline, memory=64 << 20, on_reboot="destroy")
    return host.create(config)


@pytest.mark.engine
@pytest.mark.timeout(60)
@pytest.mark.parametrize("variant", BITNESSES)
def test_argo(host: Host, variant: str, guest_rows: list[Row]) -> None:
    begin = time.monotonic()
    domain = make(host, "argo", variant)
    host.call(host.control.enable_argo, domain.incarnation.domain, permissive=False)
    domain.start()
    outcome = domain.wait(20)
    domain.destroy()
    console = domain.console.output.decode(errors="backslashreplace").replace("\r\n", "\n")
    status = 0 if outcome is not None and outcome.reason == "poweroff" else None
    run = GuestRun(verdict_of(console, status), console, "", status, time.monotonic() - begin)
    guest_rows.append(Row("argo", variant, run))
    assert run.verdict is Verdict.SUCCESS, run.report()


@pytest.mark.engine
@pytest.mark.timeout(60)
@pytest.mark.parametrize("variant", BITNESSES)
def test_endings(host: Host, variant: str) -> None:
    for how, reason in ENDINGS.items():
        domain = make(host, "shutdown", variant, f"how={how}")
        domain.start()
        outcome = domain.wait(20)
        domain.destroy()
        assert outcome is not None, how
        assert outcome.reason == reason, (how, domain.console.output)
