"""Random calls of all these families, in both layouts: every one gets an answer.

Proves that no argument raises anything, and that what a guest does leaves no frame behind (the
`guests` fixture counts them). Cannot see wrong answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from hvmlite.abi import xen
from hvmlite.abi.layout import Abi

NUMBERS = [
    n for n in xen.Hypercall if n not in (xen.Hypercall.memory_op, xen.Hypercall.grant_table_op)
]
ODD = (0, 1, 2, 0x7FF0, 0x800, 0xFFFF, 0x100000, 0x100FF8, 0x3FFFFC, 0xD000_0000, 0x7FFF_FFFF,
       0x8000_0000, 0xFFFF_FFFF, 1 << 47, 1 << 63, (1 << 64) - 1)  # fmt: skip


@pytest.mark.parametrize("layout", Abi)
@pytest.mark.parametrize("release", [(4, 17), (4, 20)])
def test_random_calls(setup: Callable[..., Any], layout: Abi, release: tuple[int, int]) -> None:
    draw = random.Random(release[1] * 2 + layout)
    guest = setup(abi=layout, vcpus=3, release=release)
    domain = guest.domain
    for round_ in range(30000):
        if round_ % 50 == 0:
            words = [draw.choice((*ODD, draw.getrandbits(64))) for _ in range(512)]
            data = b"".join(word.to_bytes(8, "little") for word in words)
            domain.memory.write(0x100000, data)
        number = draw.choice(NUMBERS)
        args = [draw.choice(ODD) if draw.random() < 0.7 else draw.randrange(32) for _ in range(5)]
        args[0] = draw.randrange(20) if draw.random() < 0.8 else args[0]
        if number == xen.Hypercall.multicall:
            args[1] &= 0xFF
        for vcpu in domain.vcpus:
            vcpu.running = False
        assert isinstance(guest.call(number, *args), int)
        if domain.shutdown_code >= 0:
            domain.shutdown_code, domain.stopped = -1, False
        guest.pass_time(draw.randrange(1_000_000))
        domain.vcpus[0].initialised = domain.vcpus[0].up = True
        domain.vcpus[0]._end_wait()
