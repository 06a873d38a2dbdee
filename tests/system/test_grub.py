"""GRUB's PVH image: a guest that is no Linux, in 32-bit mode, which polls instead of sleeping.

Proves that it comes to its prompt, takes typed commands and ends the domain both ways. Cannot see
GRUB's drivers for disks.
"""

from __future__ import annotations

import re

import pytest

from hvmlite.testing import assets

from .conftest import Boot
from .guests import Guest

# GRUB places every character it echoes by itself.
_MOVES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def grub(uvm: Boot) -> Guest:
    try:
        image = assets.grub_pvh()
    except assets.AssetMissingError as error:
        pytest.skip(str(error))
    return uvm(image, memory=128 << 20, on_reboot="restart")


def test_grub(grub: Guest) -> None:
    console = grub.console
    console.expect("grub> ", 40)
    console.write("echo hi there\r")
    console.expect("\n\rhi there\n\r", 20)
    console.expect("grub> ", 20)
    console.write("ls\r")
    console.expect(r"\(memdisk\) \(proc\)", 20)
    console.expect("grub> ", 20)
    console.write("reboot\r")
    console.expect("Welcome to GRUB!", 40)
    assert grub.domain.reboots == 1
    console.expect("grub> ", 40)
    console.write("halt\r")
    outcome = grub.domain.wait(20)
    assert outcome is not None
    assert outcome.reason == "poweroff"
    assert b"GNU GRUB" in _MOVES.sub(b"", console.output)
