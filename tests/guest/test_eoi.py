"""EOIs that go unseen: how many of eoi.c's are exits.

Proves that a guest whose EOIs come with interrupts disabled is spared most of those exits, and one
that enables interrupts before is not. Cannot see what that saves (benchmarks), nor QEMUs with an
x2APIC of their own, which see all of them.
"""

from __future__ import annotations

from collections import Counter

import pytest

from hvmlite import DomainConfig, Host
from hvmlite.engine import base as b
from hvmlite.hypervisor import exits
from hvmlite.hypervisor.vcpu import Vcpu

from .run import Verdict, verdict_of
from .test_guests import build_or_skip

ROUNDS = 400
EOI = 0x80B


@pytest.mark.engine
@pytest.mark.timeout(60)
def test_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[int] = Counter()
    able: set[bool] = set()

    def msr(vcpu: Vcpu, exit_: b.Msr) -> None:
        seen[vcpu.id] += exit_.index == EOI and exit_.write
        able.add(vcpu.engine.eoi_passes)
        exits.msr(vcpu, exit_)

    monkeypatch.setitem(exits.HANDLERS, b.Msr, msr)
    with Host() as host:
        domain = host.create(DomainConfig(kernel=build_or_skip("eoi", "hvm64"), vcpus=2))
        domain.start()
        assert domain.wait(40) is not None
    console = domain.console.output.decode()
    assert verdict_of(console, 0) is Verdict.SUCCESS, console
    if able == {False}:
        pytest.skip("this QEMU has an x2APIC of its own")
    assert 32 <= seen[0] < ROUNDS
    assert seen[1] >= 3 * ROUNDS
