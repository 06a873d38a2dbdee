"""Runs every check of `make test` in turn, all of them even if one fails, and sums up.

The last line counts the tests and the checks before them alike:
`hvmlite: N passed, N failed, N skipped`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "build" / "pytest.xml"
LINTED = ("src", "tests", "scripts", "benchmarks", "examples")


@dataclass
class Tally:
    """How many checks and tests ended in which way."""

    passed: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)

    def check(self, name: str, *argv: str) -> None:
        """Run one tool of this Python environment and count it as one check."""
        if run(name, *argv) == 0:
            self.passed += 1
        else:
            self.failures.append(name)

    def pytest(self, *argv: str) -> None:
        """Run pytest and count its tests one by one."""
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.unlink(missing_ok=True)
        status = run("pytest", "-m", "pytest", f"--junitxml={REPORT}", *argv)
        failed = len(self.failures)
        if REPORT.exists():
            # Written by our own pytest run: trusted.
            for case in ET.parse(REPORT).iter("testcase"):
                outcome = {child.tag for child in case}
                if outcome & {"failure", "error"}:
                    self.failures.append(f"{case.get('classname')}::{case.get('name')}")
                elif "skipped" in outcome:
                    self.skipped += 1
                else:
                    self.passed += 1
        if status != 0 and len(self.failures) == failed:
            self.failures.append(f"pytest (exit status {status})")


def run(name: str, *argv: str) -> int:
    """Run ``python ARGV`` from the project's root and print how long it took."""
    print(f"--- {name}", flush=True)
    start = time.monotonic()
    status = subprocess.run(
        [sys.executable, *argv], cwd=ROOT, stdin=subprocess.DEVNULL, check=False
    ).returncode
    outcome = "ok" if status == 0 else f"exit status {status}"
    print(f"--- {name}: {outcome}, {time.monotonic() - start:.1f} s", flush=True)
    return status


def main() -> int:
    """Run the checks; exit 1 if anything failed."""
    parser = argparse.ArgumentParser(description="run linters, type checker and tests")
    parser.add_argument("--full", action="store_true", help="run the slow tests as well")
    full: bool = parser.parse_args().full
    tally = Tally()
    linted = [name for name in LINTED if (ROOT / name).is_dir()]
    tally.check("ruff check", "-m", "ruff", "check", *linted)
    tally.check("ruff format", "-m", "ruff", "format", "--check", *linted)
    tally.check("mypy hvmlite", "-m", "mypy", "--strict", "-p", "hvmlite")
    for folder in ("scripts", "benchmarks"):
        files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).glob("*.py"))
        if files:
            tally.check(f"mypy {folder}", "-m", "mypy", "--strict", *files)
    tally.pytest(*([] if full else ["-m", "not slow"]))
    for failure in tally.failures:
        print(f"FAILED {failure}")
    print(
        f"hvmlite: {tally.passed} passed, {len(tally.failures)} failed, {tally.skipped} skipped",
        flush=True,
    )
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
