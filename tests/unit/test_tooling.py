"""Proves what can be proved of scripts/ and benchmarks/ without a network or a guest.

Covers: which modules are chosen, how the demo judges a session, how runs are
measured, how check.py counts. Cannot see whether a fresh machine is set up well: CI runs that.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(path: str) -> ModuleType:
    name = "tooling_" + Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


check = load("scripts/check.py")
common = load("benchmarks/common.py")
demo = load("scripts/demo.py")
fetch_kernels = load("scripts/fetch_kernels.py")


# --- fetch_kernels ---------------------------------------------------------------------------


def test_wanted_modules_bring_their_dependencies(tmp_path: Path) -> None:
    depends = {
        "xen-netfront": "helper",
        "helper": "deeper",
        "deeper": "",
        "xen-netback": "",
        "netxen_nic": "",
        "e1000": "other",
        "other": "",
    }
    for name, needed in depends.items():
        (tmp_path / f"{name}.ko").write_bytes(b"\0depends=" + needed.encode() + b"\0")
    chosen = fetch_kernels.wanted_modules(tmp_path)
    assert [path.stem for path in chosen] == ["deeper", "helper", "xen-netfront"]


# --- demo ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_demo_session_in_any_pieces(size: int) -> None:
    console = b"noise\r\n" * 200 + b"".join(
        b"%s and more\r\n" % line + b"x" * 300 for line in demo.EXPECTED
    )
    session = demo.Session()
    for at in range(0, len(console), size):
        session.feed(console[at : at + size], at)
    assert session.missing is None
    assert session.userspace_after_s == pytest.approx(1400, abs=max(size, 60))


def test_demo_session_without_xen() -> None:
    session = demo.Session()
    session.feed(demo.EXPECTED[0] + b"\nhypervisor type: none\n" + demo.EXPECTED[-1], 1.5)
    assert session.missing == "hypervisor type: xen"
    assert session.userspace_after_s == 1.5


# --- benchmarks/common -----------------------------------------------------------------------


def measured(code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` with common imported, in a process of its own: measuring changes the process."""
    return subprocess.run(
        [sys.executable, "-c", "import common, sys\n" + code],
        cwd=ROOT / "benchmarks",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_measure_counts_orphans_and_finds_marks() -> None:
    done = measured("""
burn = "i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done"
script = f"echo one; ({burn}) & {burn}; echo two"
run = common.measure(["sh", "-c", script], {"a": b"one", "b": b"two"})
alone = common.measure(["sh", "-c", burn])
assert run.marks["a"] < run.marks["b"] <= run.wall
assert run.output == b"one\\ntwo\\n"
assert run.cpu > 1.3 * alone.cpu, (run.cpu, alone.cpu)
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("['sh', '-c', 'echo why; exit 3']", "status 3; last words:\nwhy"),
        ("['sh', '-c', 'true'], {'m': b'mark'}", "never printed: m"),
        ("['sh', '-c', 'sleep 60 & exec sleep 60'], None, 0.2", "did not end within"),
        ("['sh', '-c', 'sleep 60 >/dev/null &']", "left a process running"),
        ("['/nonexistent/command']", "cannot run /nonexistent/command"),
    ],
)
def test_measure_refuses_a_bad_run(arguments: str, complaint: str) -> None:
    done = measured(f"""
from pathlib import Path
common.LINGER_S = 0.1
try:
    common.measure({arguments})
except common.BenchmarkError as error:
    print(error)
children = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
assert children == [""], children
""")
    assert done.returncode == 0, done.stderr
    assert complaint in done.stdout


def test_sides_take_turns_after_a_warm_up() -> None:
    log: list[str] = []

    def side(name: str) -> Callable[[], int]:
        def run() -> int:
            log.append(name)
            return len(log)

        return run

    results = common.in_turn(3, {"project": side("project"), "peer": side("peer")})
    assert log == [
        "project",
        "peer",
        *("project", "peer"),
        *("peer", "project"),
        *("project", "peer"),
    ]
    assert results == {"project": [3, 6, 7], "peer": [4, 5, 8]}


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boot = common.row("boot", [2.0, 4.0, 3.0], [1.0, 2.0, 9.0])
    figures = {"QEMU": [boot, common.row("peer", [], [1.0])]}
    limits = [common.Limit("boot, over QEMU", boot, 1.4), common.Limit("boot", boot, 3, True)]
    options = argparse.Namespace(json=tmp_path / "out.json", check=True)
    assert common.report(options, figures, limits, {"pairs": 3}) == 1
    assert capsys.readouterr().out.splitlines() == [
        "median (range), ms                    hvmlite                       QEMU  ratio",
        "boot                3000.0 (2000.0 to 4000.0)  2000.0 (1000.0 to 9000.0)   1.50",
        "peer                                        -  1000.0 (1000.0 to 1000.0)      -",
        "",
        "MISSED  boot, over QEMU: 1.5, at most 1.4",
        "ok      boot: 3 s, at most 3 s",
    ]
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["setup"] == {"pairs": 3}
    assert document["figures"][0]["ratio"] == 1.5
    assert document["figures"][1]["project"] is None
    assert [limit["kept"] for limit in document["limits"]] == [False, True]
    options.check = False
    assert common.report(options, figures, limits, {}) == 0


# --- check -----------------------------------------------------------------------------------

RESULTS = """<testsuites><testsuite>
<testcase classname="a" name="good"/>
<testcase classname="a" name="bad"><failure>x</failure></testcase>
<testcase classname="a" name="broken"><error>x</error></testcase>
<testcase classname="a" name="later"><skipped/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def tally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(check, "REPORT", tmp_path / "report.xml")
    return check.Tally()


def test_tally(tally: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(*_: str) -> int:
        check.REPORT.write_text(RESULTS)
        return 1

    monkeypatch.setattr(check, "run", fake)
    tally.pytest()
    assert (tally.passed, tally.skipped) == (1, 1)
    assert tally.failures == ["a::bad", "a::broken"]


@pytest.mark.parametrize("status", [2, 5])
def test_pytest_that_ran_nothing_is_a_failure(
    tally: object, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(check, "run", lambda *_: status)
    tally.pytest()
    assert tally.failures == [f"pytest (exit status {status})"]
