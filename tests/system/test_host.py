"""Several domains on one host: what happens to one does not happen to the others.

Proves it for guests that crash, end and lose their engine. Cannot see domains that share anything
(grants, event channels between them): tests/unit/hypervisor has those.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvmlite import DomainConfig, Host
from hvmlite.errors import EngineError, UserError

from .guests import HLT, QUIET, SPIN, UD2, machine_code, shell_ramdisk

MIB = 1 << 20


@pytest.fixture
def host() -> Iterator[Host]:
    with Host(1 << 30) as host:
        yield host


def _config(path: Path, code: bytes, **fields: object) -> DomainConfig:
    return DomainConfig(kernel=machine_code(path, code), memory=32 * MIB, **fields)


def test_each_ends_its_own_way(host: Host, tmp_path: Path) -> None:
    codes = {"spin": SPIN, "crash": UD2, "halt": HLT}
    domains = {
        name: host.create(_config(tmp_path / name, code, name=name)) for name, code in codes.items()
    }
    assert len({domain.id for domain in domains.values()}) == 3
    for domain in domains.values():
        domain.start()
    crashed, halted = domains["crash"].wait(20), domains["halt"].wait(20)
    assert crashed is not None
    assert crashed.crash is not None
    assert crashed.crash.reason == "triple fault"
    assert halted is not None
    assert halted.reason == "poweroff"
    assert domains["spin"].wait(0.2) is None
    domains["spin"].destroy()
    ended = domains["spin"].wait(0)
    assert ended is not None
    assert ended.reason == "destroyed"
    assert host.domains == {}


def test_engine_of_one_is_killed(host: Host, tmp_path: Path, linux: Path) -> None:
    (tmp_path / "initrd").write_bytes(shell_ramdisk())
    healthy = host.create(
        DomainConfig(kernel=linux, ramdisk=tmp_path / "initrd", cmdline=QUIET, memory=256 * MIB)
    )
    others = set(_children())
    victim = host.create(_config(tmp_path / "victim", SPIN))
    (engine,) = set(_children()) - others
    healthy.start()
    healthy.console.expect("shell guest is ready\r?\n", 60)
    victim.start()
    os.kill(engine, signal.SIGKILL)
    with pytest.raises(EngineError, match="QEMU ended by signal 9"):
        victim.wait(20)
    healthy.console.write("echo still here; poweroff -f\n")
    healthy.console.expect("still here\n", 20)
    outcome = healthy.wait(20)
    assert outcome is not None
    assert outcome.reason == "poweroff"


def _children() -> list[int]:
    return [
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
        if "qemu" in os.readlink(f"/proc/{pid}/exe")
    ]


def test_memory_comes_back(host: Host, tmp_path: Path) -> None:
    """A host of 1 GiB has room for a guest of 600 MiB as often as one likes, but not for two."""
    config = _config(tmp_path / "kernel", SPIN)
    config.memory = 600 * MIB
    for _ in range(3):
        domain = host.create(config)
        with pytest.raises(UserError, match="the host has"):
            host.create(config)
        domain.start()
        domain.destroy()


def test_domain_that_never_started(host: Host, tmp_path: Path) -> None:
    domain = host.create(_config(tmp_path / "kernel", SPIN))
    assert domain.wait(0.1) is None
    domain.destroy()
    outcome = domain.wait(1)
    assert outcome is not None
    assert outcome.reason == "destroyed"


def test_close_ends_everything(tmp_path: Path) -> None:
    others = set(_children())
    host = Host(256 * MIB)
    domains = [host.create(_config(tmp_path / str(i), SPIN)) for i in range(3)]
    engines = set(_children()) - others
    assert len(engines) == 3
    for domain in domains:
        domain.start()
    host.close()
    host.close()
    assert all(domain.wait(0) is not None for domain in domains)
    assert not any(Path(f"/proc/{pid}").exists() for pid in engines)
    with pytest.raises(EngineError, match="closed"):
        host.create(_config(tmp_path / "late", SPIN))
