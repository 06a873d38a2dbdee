"""Proves the life of a domain as its owner sees it: start, pause, end, crash, restart, and its
consoles; and what a host does with several of them, with failures, and at its own end.

Guests are scripted; `guest(...)` acts for one in the host's thread. tests/system does the same with
real kernels.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from hvmlite.abi.sched import (
    SHUTDOWN_crash,
    SHUTDOWN_poweroff,
    SHUTDOWN_reboot,
    SHUTDOWN_soft_reset,
    SHUTDOWN_suspend,
    SHUTDOWN_watchdog,
)
from hvmlite.engine import base as b
from hvmlite.errors import EngineError, UserError
from hvmlite.hypervisor.memory import Page
from hvmlite.toolstack.config import DomainConfig, boot_memory
from hvmlite.toolstack.domain import Domain
from hvmlite.toolstack.host import DEFAULT_MEMORY, Host
from hvmlite.toolstack.layout import SpecialPage

from .conftest import MIB, Make, RecordingEngine, vcpu_of

T = TypeVar("T")
IN_CONS, IN_PROD, OUT_PROD = 768, 769, 771


def guest(host: Host, function: Callable[..., T], *args: Any) -> T:
    return host.call(function, *args)


def shut_down(host: Host, domain: Domain, reason: int) -> None:
    guest(host, domain.incarnation.domain.shutdown, reason)


def reboot(host: Host, domain: Domain) -> None:
    """The guest reboots; returns when its next life has begun."""
    before = domain.id
    shut_down(host, domain, SHUTDOWN_reboot)
    deadline = time.monotonic() + 10
    while guest(host, lambda: domain.id) == before:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def console_page(domain: Domain) -> Page:
    return domain.incarnation.domain.memory.page(SpecialPage.CONSOLE)  # type: ignore[arg-type]


def say(host: Host, domain: Domain, text: bytes) -> None:
    """The guest writes to its console and kicks."""

    def speak() -> None:
        page = console_page(domain)
        for byte in text:
            page.u8[1024 + page.u32[OUT_PROD] % 2048] = byte
            page.u32[OUT_PROD] += 1
        domain.incarnation.console.on_event()

    guest(host, speak)


def heard(host: Host, domain: Domain) -> bytes:
    """What the guest finds in its input ring."""

    def listen() -> bytes:
        page = console_page(domain)
        start, end = page.u32[IN_CONS], page.u32[IN_PROD]
        page.u32[IN_CONS] = end
        return bytes(page.u8[i % 1024] for i in range(start, end))

    return guest(host, listen)


# --- start and end ---------------------------------------------------------------------------


def test_a_guest_runs_once_it_is_started(host: Host, make: Make) -> None:
    domain = make()
    assert vcpu_of(domain).runs == 0
    domain.start()
    assert vcpu_of(domain).runs == 1
    assert domain.wait(0) is None
    assert domain.wait(0.02) is None
    assert (domain.name, domain.id, domain.reboots) == ("kernel", 1, 0)
    assert host.domains == {1: domain}


@pytest.mark.parametrize(
    ("code", "reason", "crashed"),
    [
        (SHUTDOWN_poweroff, "poweroff", False),
        (SHUTDOWN_suspend, "suspend", False),
        (SHUTDOWN_soft_reset, "soft_reset", False),
        (SHUTDOWN_crash, "crash", True),
        (SHUTDOWN_watchdog, "watchdog", True),
        (77, "poweroff", False),
    ],
)
def test_how_it_ended(host: Host, make: Make, code: int, reason: str, crashed: bool) -> None:
    domain = make()
    domain.start()
    ended = threading.Event()
    domain.on_end(ended.set)
    shut_down(host, domain, code)
    outcome = domain.wait(10)
    assert outcome is not None
    assert (outcome.reason, outcome.crashed) == (reason, crashed)
    assert (outcome.crash is not None) is crashed
    assert ended.wait(10)
    assert host.domains == {}
    assert domain.wait() == outcome
    domain.destroy()
    assert domain.wait() == outcome


def test_on_end_of_what_has_ended(host: Host, make: Make) -> None:
    domain = make()
    domain.destroy()
    ended = threading.Event()
    domain.on_end(ended.set)
    assert ended.is_set()


def test_destroy(host: Host, make: Make, engine: RecordingEngine) -> None:
    free = guest(host, lambda: host.loop.machine.free_frames)
    domain = make()
    domain.start()
    domain.destroy()
    outcome = domain.wait(0)
    assert outcome is not None
    assert outcome.reason == "destroyed"
    assert not outcome.crashed
    assert engine.partitions[0].closed
    assert guest(host, lambda: host.loop.machine.free_frames) == free
    assert host.store.list("/local/domain") == ["0"]
    domain.destroy()


def test_pauses_are_counted(host: Host, make: Make) -> None:
    domain = make()
    domain.start()
    domain.pause()
    domain.pause()
    guest(host, lambda: None)
    assert not domain.incarnation.domain.vcpus[0].running
    domain.unpause()
    assert not domain.incarnation.domain.vcpus[0].running
    domain.unpause()
    assert domain.incarnation.domain.vcpus[0].running


def test_its_uuid(host: Host, make: Make) -> None:
    uuid = "185991b5-468a-4484-b983-db89939a1995"
    domain = make(uuid=uuid)
    assert host.store.read(f"/vm/{uuid}/name") == b"kernel"
    assert domain.incarnation.domain.handle.hex() == uuid.replace("-", "")
    other = make()
    assert other.incarnation.uuid not in ("", uuid)
    assert any(other.incarnation.domain.handle)


@pytest.mark.parametrize("uuid", ["x", "../../local", "185991b5-468a-4484-b983", "/", "1" * 36])
def test_what_is_no_uuid(make: Make, uuid: str) -> None:
    with pytest.raises(UserError, match="is no UUID"):
        make(uuid=uuid)


# --- restart ---------------------------------------------------------------------------------


def test_a_reboot_is_a_new_domain_of_the_same_name(
    host: Host, make: Make, engine: RecordingEngine
) -> None:
    domain = make(name="web", cmdline="console=hvc0")
    domain.start()
    say(host, domain, b"first life\n")
    reboot(host, domain)
    assert (domain.id, domain.reboots) == (2, 1)
    assert domain.wait(0) is None
    assert list(host.domains) == [2]
    assert host.store.read("/local/domain/2/name") == b"web"
    assert not host.store.exists("/local/domain/1")
    assert vcpu_of(domain).runs == 1
    say(host, domain, b"second life\n")
    assert domain.console.output == b"first life\nsecond life\n"
    assert [partition.closed for partition in engine.partitions] == [True, False]


@pytest.mark.parametrize(
    ("option", "code", "restarts"),
    [
        ({"on_reboot": "destroy"}, SHUTDOWN_reboot, False),
        ({"on_crash": "restart"}, SHUTDOWN_crash, True),
        ({"on_crash": "restart"}, SHUTDOWN_watchdog, True),
        ({"on_poweroff": "restart"}, SHUTDOWN_poweroff, True),
        ({"on_crash": "restart"}, SHUTDOWN_poweroff, False),
    ],
)
def test_what_each_end_does_is_configured(
    host: Host, make: Make, option: dict[str, str], code: int, restarts: bool
) -> None:
    domain = make(**option)
    domain.start()
    shut_down(host, domain, code)
    outcome = domain.wait(0.2 if restarts else 10)
    assert (outcome is None) is restarts
    assert domain.reboots == int(restarts)


def test_a_restart_that_fails_is_told(host: Host, make: Make, kernel: Path) -> None:
    free = guest(host, lambda: host.loop.machine.free_frames)
    domain = make()
    domain.start()
    kernel.unlink()
    shut_down(host, domain, SHUTDOWN_reboot)
    with pytest.raises(UserError, match="kernel"):
        domain.wait(10)
    assert host.domains == {}
    assert domain.console.read(timeout=0) == b""
    assert guest(host, lambda: host.loop.machine.free_frames) == free


def test_counts_go_over_restarts(host: Host, make: Make) -> None:
    domain = make()
    domain.start()
    for _ in range(2):
        guest(host, vcpu_of(domain).exit, b.PortIo(0x80, 1, True))
        guest(host, lambda: domain.incarnation.domain.unknown_calls.update({"xsm_op": 3}))
        while guest(host, lambda: domain.incarnation.domain.vcpus[0].exits) == 0:
            time.sleep(0.001)
        reboot(host, domain)
    domain.destroy()
    # Two exits, and the kicks by which it was stopped.
    assert domain.exits >= 2
    assert domain.unknown_calls == {"xsm_op": 6}


# --- consoles --------------------------------------------------------------------------------


def test_output_and_input(host: Host, make: Make) -> None:
    domain = make()
    domain.start()
    say(host, domain, b"login: ")
    domain.console.expect("login: ", timeout=10)
    domain.console.write("root\n")
    assert heard(host, domain) == b"root\n"
    assert guest(host, lambda: domain.console.input_room) == 1 << 16


def test_the_debug_port_is_output_too(host: Host, make: Make) -> None:
    domain = make()
    domain.start()
    guest(host, vcpu_of(domain).exit, b.PortIo(0xE9, 1, True, ord("!")))
    domain.console.expect("!", timeout=10)


def test_what_is_still_in_the_ring_at_the_end_is_not_lost(host: Host, make: Make) -> None:
    domain = make()
    domain.start()

    def last_words() -> None:
        page = console_page(domain)
        page.u8[1024:1028] = b"bye\n"
        page.u32[OUT_PROD] = 4
        domain.incarnation.domain.shutdown(SHUTDOWN_poweroff)

    guest(host, last_words)
    domain.wait(10)
    assert domain.console.output == b"bye\n"


def test_input_over_a_restart_reaches_the_new_guest(host: Host, make: Make) -> None:
    domain = make()
    domain.start()
    page = guest(host, console_page, domain)

    def race() -> None:
        """The guest shuts down while input is on its way: the shutdown is served first."""
        domain.incarnation.domain.shutdown(SHUTDOWN_reboot)
        domain.console.write("for nobody")

    guest(host, race)
    while guest(host, lambda: domain.id) == 1:
        time.sleep(0.001)
    # The old page is not written to any more, whoever has it by now.
    assert not any(page.u8)
    domain.console.write("for the new one")
    assert heard(host, domain) == b"for the new one"


def test_late_input_does_not_touch_freed_memory(host: Host, make: Make) -> None:
    domain = make()
    domain.start()
    frame = guest(host, console_page, domain).frame

    def race() -> bytes:
        domain.incarnation.domain.shutdown(SHUTDOWN_poweroff)
        domain.console.write("late")
        return b""

    guest(host, race)
    domain.wait(10)
    guest(host, lambda: None)
    machine = host.loop.machine
    assert not any(machine.u8[frame * 4096 : frame * 4096 + 4096])


# --- crashes ---------------------------------------------------------------------------------


def test_a_crash_has_its_report(host: Host, make: Make) -> None:
    domain = make()
    domain.start()
    guest(host, vcpu_of(domain).set, "rip", 0xFFFF_8000_1234_5678)
    guest(host, vcpu_of(domain).exit, b.Shutdown())
    outcome = domain.wait(10)
    assert outcome is not None
    assert outcome.crash is not None
    assert outcome.crash.reason == "triple fault"
    assert outcome.crash.registers["rip"] == 0xFFFF_8000_1234_5678
    assert str(outcome.crash).startswith("guest crashed: triple fault (vCPU 0)\n")


def test_an_engine_that_dies_fails_its_domain_alone(
    host: Host, make: Make, engine: RecordingEngine
) -> None:
    first, second = make(), make()
    first.start()
    second.start()
    partition = engine.partitions[0]

    def die() -> None:
        partition.dead = "QEMU ended by signal 9: it printed nothing"

        def fail(*_: object) -> Any:
            raise EngineError(partition.dead)

        # Reading a register that is in the CPU needs the CPU.
        partition.vcpus[0].segment = fail  # type: ignore[method-assign]
        os.eventfd_write(partition.doorbell, 1)

    guest(host, die)
    # It is no crash of the guest's: its owner hears what happened.
    with pytest.raises(EngineError, match="^QEMU ended by signal 9: it printed nothing$"):
        first.wait(10)
    assert partition.closed
    assert list(host.domains) == [second.id]
    assert second.wait(0) is None
    shut_down(host, second, SHUTDOWN_poweroff)
    assert second.wait(10) is not None


# --- the host --------------------------------------------------------------------------------


def test_several_domains(host: Host, make: Make) -> None:
    domains = [make(name=f"d{i}") for i in range(3)]
    assert [domain.id for domain in domains] == [1, 2, 3]
    assert set(host.domains.values()) == set(domains)
    domains[1].destroy()
    assert set(host.domains.values()) == {domains[0], domains[2]}


def test_memory_that_is_not_there(host: Host, make: Make) -> None:
    free = host.loop.machine.free_frames
    with pytest.raises(UserError) as caught:
        make(memory=60 * MIB, name="big")
    assert str(caught.value) == "big takes 69 MiB of memory in all, the host has 63 MiB left"
    assert host.loop.machine.free_frames == free
    assert host.domains == {}


def test_memory_that_runs_out_while_it_is_taken(
    host: Host, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_left(*_arguments: object, **_options: object) -> int:
        raise MemoryError("no frames")

    with monkeypatch.context() as patch:
        patch.setattr(type(host.loop.machine), "allocate", nothing_left)
        with pytest.raises(UserError, match="the host has 63 MiB left"):
            make()


def test_calls_give_results_and_raise_errors(host: Host) -> None:
    assert host.call(divmod, 7, 2) == (3, 1)
    assert host.call(int, "ff", base=16) == 255
    with pytest.raises(ZeroDivisionError):
        host.call(divmod, 1, 0)
    assert host.call(lambda: host.call(threading.current_thread)).name == "hvmlite-host"


def test_calls_from_many_threads(host: Host) -> None:
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: results.append(host.call(lambda: i * i)))
        for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(results) == [i * i for i in range(20)]


def hosts() -> set[threading.Thread]:
    """The threads of all hosts of this process; other tests' hosts may live on."""
    return {thread for thread in threading.enumerate() if thread.name == "hvmlite-host"}


def test_close_destroys_what_is_left(engine: RecordingEngine, kernel: Path) -> None:
    before = hosts()
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    with Host(64 * MIB) as host:
        domain = host.create(DomainConfig(kernel=kernel, memory=4 * MIB))
        domain.start()
    outcome = domain.wait(0)
    assert outcome is not None
    assert outcome.reason == "destroyed"
    assert engine.partitions[0].closed
    host.close()
    with pytest.raises(EngineError, match="the host is closed"):
        host.call(lambda: None)
    with pytest.raises(EngineError, match="the host is closed"):
        host.create(DomainConfig(kernel=kernel, memory=4 * MIB))
    # Whoever still has the console may use it.
    domain.console.write("nobody hears this")
    domain.destroy()
    assert hosts() == before
    del host, domain, outcome
    engine.partitions.clear()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files


def test_a_host_that_is_closed_at_once_ends(engine: RecordingEngine) -> None:
    before = hosts()
    begin = time.monotonic()
    for _ in range(30):
        with Host(4 * MIB):
            pass
    assert time.monotonic() - begin < 8
    assert hosts() == before


def test_a_bug_in_an_exit_fails_its_domain_alone(engine: RecordingEngine, kernel: Path) -> None:
    with Host(64 * MIB) as host:
        domain, other = (host.create(DomainConfig(kernel=kernel, memory=4 * MIB)) for _ in "ab")
        inner = domain.incarnation.domain
        host.call(lambda: inner.fail(ZeroDivisionError("a bug of ours")))
        with pytest.raises(ZeroDivisionError):
            domain.wait(10)
        assert other.wait(0) is None
        assert host.call(lambda: len(host.domains)) == 1


def test_a_bug_in_the_hosts_thread_fails_its_domains(
    engine: RecordingEngine, kernel: Path, tmp_path: Path
) -> None:
    host = Host(64 * MIB)
    domain = host.create(DomainConfig(kernel=kernel, memory=4 * MIB))
    domain.start()

    def bug() -> None:
        raise ZeroDivisionError("a bug of ours")

    # Not in a callback but in the loop itself.
    host.call(lambda: setattr(host.loop, "_sleep", bug))
    with pytest.raises(ZeroDivisionError):
        domain.wait(10)
    while host._thread.is_alive():
        time.sleep(0.001)
    with pytest.raises(EngineError, match="the host is closed: a bug of ours"):
        host.call(lambda: None)
    assert engine.partitions[0].closed
    # Whatever number the host's files had is another file's now: nothing of ours may end in it.
    files = [(tmp_path / str(i)).open("w+b", buffering=0) for i in range(40)]
    domain.console.write("text")
    host.soon(lambda: None)
    domain.destroy()
    host.close()
    assert [file.read() for file in files] == [b""] * 40
    for file in files:
        file.close()


@pytest.mark.parametrize("memory", [0, -1, "0"])
def test_a_host_without_memory(engine: RecordingEngine, memory: int | str) -> None:
    with pytest.raises(UserError, match="is none"):
        Host(memory)


def test_memory_may_be_text(engine: RecordingEngine) -> None:
    with Host("8M") as host:
        assert host.loop.machine.size == 8 * MIB
    with pytest.raises(UserError, match="is no size"):
        Host("many")
    assert DEFAULT_MEMORY == 8 << 30


@pytest.mark.parametrize("memory", [4 * MIB, 512 * MIB, 64 << 30])
@pytest.mark.parametrize("vcpus", [1, 32])
def test_a_host_for_one_domain_has_room_for_it(memory: int, vcpus: int) -> None:
    config = DomainConfig(kernel=Path("k"), memory=memory, vcpus=vcpus)
    # What BootPlan asks for, and the first MiB, which is nobody's.
    tables = memory // 512 + (8 << 20) + vcpus * (64 << 10)
    assert boot_memory(config) >= memory + tables + MIB
    with pytest.raises(UserError):
        boot_memory(DomainConfig(kernel=Path("k"), vcpus=0))
