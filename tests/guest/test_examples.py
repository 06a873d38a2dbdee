"""The device of examples/vrng.py with a guest that has its driver.

Proves that the example is true: it answers, and cuts off a frontend that lies. Cannot see whether
its explanation is clear.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hvmlite import DomainConfig, Host

from .run import Verdict, verdict_of
from .test_guests import build_or_skip

EXAMPLE = Path(__file__).parents[2] / "examples" / "vrng.py"
pytestmark = [pytest.mark.engine, pytest.mark.timeout(60)]


@pytest.fixture
def vrng() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_vrng", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("lie", [0, 1])
def test_vrng(vrng: ModuleType, lie: int) -> None:
    messages: list[str] = []
    with Host() as host:
        config = DomainConfig(
            kernel=build_or_skip("vrng", "hvm64"), cmdline=f"lie={lie}", devices=[vrng.VrngSpec()]
        )
        domain = host.create(config)
        domain.on_message = messages.append
        domain.start()
        outcome = domain.wait(30)
    assert outcome is not None
    console = domain.console.output.decode()
    assert verdict_of(console, 0) is Verdict.SUCCESS, console
    cut_off = ["vrng 0 of domain 1 is cut off: 256 bytes at 4095 are not in one page"]
    assert messages == (cut_off if lie else [])


def test_as_a_program() -> None:
    elf = build_or_skip("vrng", "hvm64")
    done = subprocess.run(
        [sys.executable, EXAMPLE, elf], capture_output=True, text=True, timeout=40, check=True
    )
    assert verdict_of(done.stdout, 0) is Verdict.SUCCESS, done.stdout + done.stderr
