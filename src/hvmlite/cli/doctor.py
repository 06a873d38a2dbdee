"""`hvmlite doctor`: what this machine offers, what is missing, and how to install it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from hvmlite.errors import HvmliteError

EXIT_MISSING = 1
MINIMUM_QEMU = (7, 2)


@dataclass(slots=True)
class Finding:
    """One thing looked at: whether it is all right, what was found, and what to do if it is not."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = True


def _python() -> Finding:
    return Finding("python", True, platform.python_version())


def _libatomic() -> Finding:
    try:
        import hvmlite.engine.atomics  # noqa: F401, PLC0415
    except HvmliteError as error:
        return Finding("libatomic", False, str(error), "apt install libatomic1")
    return Finding("libatomic", True, "libatomic.so.1")


def _qemu() -> Finding:
    from hvmlite.engine.tcg.process import find_qemu, qemu_version  # noqa: PLC0415

    remedy = "apt install qemu-system-x86 (7.2 or newer), or set HVMLITE_QEMU to its path"
    try:
        path = find_qemu()
        version = qemu_version(path)
    except HvmliteError as error:
        return Finding("qemu", False, str(error), remedy)
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    return Finding("qemu", numbers >= MINIMUM_QEMU, f"{version} ({path})", remedy)


def _engine() -> Finding:
    from hvmlite.engine.tcg.process import KNOWN_GOOD  # noqa: PLC0415

    try:
        # Without libatomic this cannot be loaded, which is a finding too.
        from hvmlite.engine.tcg.selftest import full_selftest  # noqa: PLC0415

        measures = full_selftest()
    except HvmliteError as error:
        return Finding("engine tcg", False, str(error), KNOWN_GOOD)
    return Finding(
        "engine tcg",
        True,
        f"self-test passed in {measures['total'] * 1e3:.0f} ms: "
        f"start {measures['start'] * 1e3:.0f} ms, "
        f"exit {measures['exit'] * 1e6:.0f} µs, kick {measures['kick'] * 1e6:.0f} µs",
    )


def _kvm() -> Finding:
    path = Path("/dev/kvm")
    if not path.exists():
        return Finding("kvm", False, "no /dev/kvm (not needed)", required=False)
    usable = os.access(path, os.R_OK | os.W_OK)
    detail = "/dev/kvm opens" if usable else "/dev/kvm exists but may not be opened"
    return Finding("kvm", False, f"{detail}; hvmlite has no engine for it yet", required=False)


def _memory() -> Finding:
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = pages >> 20
    return Finding("memory", free >= 1024, f"{free} MiB free", "close something", required=False)


CHECKS: tuple[Callable[[], Finding], ...] = (_python, _libatomic, _qemu, _engine, _memory, _kvm)


def execute(options: argparse.Namespace) -> int:
    """Prints the findings; 0 if guests can run here, 1 if something they need is missing."""
    findings: list[Finding] = []
    for check in CHECKS:
        findings.append(check())
    ready = all(finding.ok for finding in findings if finding.required)
    if options.json:
        print(json.dumps({"ready": ready, "findings": [asdict(each) for each in findings]}))
    else:
        for each in findings:
            mark = "ok" if each.ok else "MISSING" if each.required else "-"
            print(f"{each.name:<12} {mark:<8} {each.detail}")
            if not each.ok and each.remedy:
                print(f"{'':<12} {'':<8} {each.remedy}")
        print("guests can run here" if ready else "guests cannot run here yet")
    return 0 if ready else EXIT_MISSING
