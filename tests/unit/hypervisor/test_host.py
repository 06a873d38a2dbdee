"""Proves that the host's loop serves exits, timers, file descriptors and calls, sleeps when there
is nothing to do and wakes for each of them, and outlives what goes wrong in one domain.

Engines are scripted. Cannot see how fast it is; benchmarks do.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hvmlite.abi.sched import SHUTDOWN_crash
from hvmlite.engine import base as b
from hvmlite.errors import EngineError
from hvmlite.hypervisor.domain import Domain
from hvmlite.hypervisor.host import Host

from .fakes import IF, MIB, Rig, ScriptedEngine, ScriptedPartition

MS = 1_000_000


@pytest.fixture
def host() -> Iterator[Host]:
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    made = Host(ScriptedEngine(), 4 * MIB)
    yield made
    made.close()
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(2, stopped_clock=False)
    for i in range(2):
        made.engine(i).set("rflags", IF)
    yield made
    made.close()


def run(host: Host, seconds: float = 10) -> None:
    """Runs the loop; a test that does not stop it fails."""
    late = []
    timer = host.timers.at(
        host.clock.now() + int(seconds * 1e9), lambda: (late.append(1), host.stop())[1]
    )
    host.run()
    timer.cancel()
    assert not late, "nobody stopped the loop"


def after(host: Host, ms: float, function: Callable[[], object]) -> None:
    host.timers.at(host.clock.now() + int(ms * MS), lambda: function() and None)


def once(host: Host, condition: Callable[[], object], function: Callable[[], object]) -> None:
    """Calls `function()` as soon as the condition holds."""

    def look() -> None:
        if condition():
            function()
        else:
            after(host, 2, look)

    after(host, 2, look)


def processor_time(function: Callable[[], None]) -> float:
    begin = time.thread_time()
    function()
    return time.thread_time() - begin


# --- timers, stop ----------------------------------------------------------------------------


def test_timers_run_at_their_time(host: Host) -> None:
    seen: list[int] = []
    begin = host.clock.now()
    after(host, 20, lambda: seen.append(host.clock.now() - begin))
    after(host, 5, lambda: seen.append(host.clock.now() - begin))
    after(host, 40, host.stop)
    run(host)
    assert 5 * MS <= seen[0] < seen[1]
    assert seen[1] >= 20 * MS


def test_a_host_in_a_process_with_many_files_open() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < 1200:
        pytest.skip("not that many files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        made = Host(ScriptedEngine(), MIB)
        made.timers.at(made.clock.now() + 5_000_000, made.stop)
        made.run()
        made.close()
    finally:
        for fd in fds:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_one_that_calls_itself_leaves_others_their_turn(host: Host) -> None:
    calls = 0

    def again() -> None:
        nonlocal calls
        calls += 1
        host.call_soon(again)

    host.call_soon(again)
    host.timers.at(host.clock.now() + 2_000_000, host.stop)
    host.run()
    assert calls > 1


def test_an_idle_loop_sleeps(host: Host) -> None:
    after(host, 300, host.stop)
    assert processor_time(lambda: run(host)) < 0.1


def test_stop_from_another_thread(host: Host) -> None:
    threading.Timer(0.05, host.stop).start()
    run(host)


def test_stop_from_a_signal_handler(host: Host) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: host.stop())
    try:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        run(host)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_stop_before_the_loop_runs_is_not_lost(host: Host) -> None:
    """A host that is closed at once stops its thread before that came to run the loop."""
    host.stop()
    run(host)


def test_it_runs_again(host: Host) -> None:
    for _ in range(3):
        after(host, 1, host.stop)
        run(host)


def test_many_wakes_do_not_block(host: Host) -> None:
    for _ in range(100_000):
        host._wake()
    after(host, 1, host.stop)
    run(host)


# --- calls from other threads ----------------------------------------------------------------


def test_call_soon_in_order(host: Host) -> None:
    seen: list[int] = []
    for i in range(100):
        host.call_soon(lambda i=i: seen.append(i))
    host.call_soon(host.stop)
    run(host)
    assert seen == list(range(100))


def test_call_soon_wakes_a_sleeping_loop(host: Host) -> None:
    waits: list[float] = []

    def caller() -> None:
        for _ in range(20):
            time.sleep(0.002)
            done = threading.Event()
            begin = time.monotonic()
            host.call_soon(done.set)
            assert done.wait(10)
            waits.append(time.monotonic() - begin)
        host.stop()

    thread = threading.Thread(target=caller)
    thread.start()
    run(host, 30)
    thread.join()
    assert len(waits) == 20
    assert sorted(waits)[10] < 0.5, "the loop sleeps a second at a time"


def test_calls_from_many_threads_are_all_made(host: Host) -> None:
    count = [0]

    def add() -> None:
        count[0] += 1

    def caller() -> None:
        for _ in range(500):
            host.call_soon(add)

    threads = [threading.Thread(target=caller) for _ in range(4)]
    for thread in threads:
        thread.start()
    threading.Thread(
        target=lambda: ([t.join() for t in threads], host.call_soon(host.stop))
    ).start()
    run(host, 30)
    assert count == [2000]


def test_a_call_may_ask_for_another(host: Host) -> None:
    seen: list[str] = []
    host.call_soon(lambda: (seen.append("first"), host.call_soon(lambda: seen.append("second")))[1])
    host.call_soon(lambda: seen.append("third"))
    after(host, 5, host.stop)
    run(host)
    assert seen == ["first", "third", "second"]


# --- file descriptors ------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_readers(host: Host, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    seen: list[bytes] = []

    def readable() -> None:
        seen.append(ours.recv(100))
        if len(seen) == 2:
            host.stop()

    host.add_reader(ours.fileno(), readable)
    theirs.send(b"one")
    after(host, 5, lambda: theirs.send(b"two"))
    run(host)
    assert seen == [b"one", b"two"]
    host.remove_reader(ours.fileno())
    theirs.send(b"three")
    after(host, 5, host.stop)
    run(host)
    assert len(seen) == 2


def test_a_reader_is_called_as_long_as_there_is_something(
    host: Host, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    seen: list[bytes] = []

    def readable() -> None:
        seen.append(ours.recv(1))
        if len(seen) == 5:
            host.stop()

    host.add_reader(ours.fileno(), readable)
    theirs.send(b"abcde")
    run(host)
    assert b"".join(seen) == b"abcde"


def test_writers(host: Host, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    while True:
        try:
            ours.send(bytes(65536))
        except BlockingIOError:
            break
    seen: list[int] = []

    def writable() -> None:
        seen.append(ours.send(b"x"))
        host.remove_writer(ours.fileno())
        host.stop()

    host.add_writer(ours.fileno(), writable)
    after(host, 5, lambda: seen == [] and theirs.recv(1 << 20))
    run(host)
    assert seen == [1]


def test_reader_and_writer_of_one_descriptor(
    host: Host, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    seen: list[str] = []
    host.add_reader(ours.fileno(), lambda: (ours.recv(10), seen.append("read"))[1])
    host.add_writer(
        ours.fileno(), lambda: (seen.append("write"), host.remove_writer(ours.fileno()))[1]
    )
    theirs.send(b"x")
    after(host, 10, host.stop)
    run(host)
    assert sorted(seen) == ["read", "write"]
    host.remove_reader(ours.fileno())
    host.remove_reader(ours.fileno())
    host.remove_writer(ours.fileno())


def test_the_last_callback_counts(host: Host, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    host.add_reader(ours.fileno(), lambda: pytest.fail("replaced"))
    host.add_reader(ours.fileno(), host.stop)
    theirs.send(b"x")
    run(host)


def test_a_hung_up_peer_reaches_whoever_is_there(
    host: Host, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    host.add_writer(ours.fileno(), lambda: None)
    host.remove_writer(ours.fileno())
    seen: list[bytes] = []

    def readable() -> None:
        seen.append(ours.recv(10))
        host.remove_reader(ours.fileno())
        host.stop()

    host.add_reader(ours.fileno(), readable)
    theirs.close()
    run(host)
    assert seen == [b""]


def test_a_reader_that_removes_another(host: Host) -> None:
    """Both are ready in the same turn; the second may be gone by its turn."""
    first, second = os.pipe(), os.pipe()
    seen: list[str] = []

    def handler(name: str, own: int, other: int) -> Callable[[], None]:
        def readable() -> None:
            seen.append(name)
            os.read(own, 1)
            host.remove_reader(other)

        return readable

    host.add_reader(first[0], handler("first", first[0], second[0]))
    host.add_reader(second[0], handler("second", second[0], first[0]))
    os.write(first[1], b"x")
    os.write(second[1], b"x")
    after(host, 5, host.stop)
    run(host)
    assert len(seen) == 1
    for fd in (*first, *second):
        host.remove_reader(fd)
        os.close(fd)


def test_a_descriptor_that_was_closed_first(host: Host) -> None:
    """The system forgets a closed descriptor by itself; to remove it late is no error."""
    read, write = os.pipe()
    host.add_reader(read, lambda: pytest.fail("closed"))
    os.close(read)
    os.close(write)
    after(host, 5, host.stop)
    run(host)
    host.remove_reader(read)


def test_a_number_that_is_used_again(host: Host) -> None:
    read, write = os.pipe()
    host.add_reader(read, lambda: pytest.fail("the old one"))
    os.close(read)
    os.close(write)
    again, write = os.pipe()
    assert again == read
    host.add_reader(again, host.stop)
    os.write(write, b"x")
    run(host)
    host.remove_reader(again)
    os.close(again)
    os.close(write)


def test_what_cannot_be_waited_for_is_refused(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with path.open() as file, pytest.raises(PermissionError):
        host.add_reader(file.fileno(), lambda: None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        host.add_reader(987, lambda: None)
    # A later descriptor of that number does not get the callback.
    assert set(host._readers) == {host._wake_read}


def test_a_callback_that_raises_does_not_end_the_loop(
    host: Host,
    pair: tuple[socket.socket, socket.socket],
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours, theirs = pair
    seen: list[str] = []

    def fail() -> None:
        raise RuntimeError("our own bug")

    host.call_soon(fail)
    host.call_soon(lambda: seen.append("soon"))
    after(host, 0, fail)
    host.add_reader(ours.fileno(), fail)
    theirs.send(b"x")
    after(host, 5, host.stop)
    run(host)
    assert seen == ["soon"]
    # Each once: a descriptor's callback would be called for ever.
    assert capsys.readouterr().err.count("RuntimeError: our own bug") == 3
    for _ in range(20):
        host.call_soon(fail)
    after(host, 5, host.stop)
    run(host)
    assert capsys.readouterr().err.count("RuntimeError: our own bug") == 7


# --- exits -----------------------------------------------------------------------------------


def in_thread(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def test_exits_are_served_while_it_spins_and_while_it_sleeps(rig: Rig) -> None:
    rig.start()
    engine = rig.engine(0)
    for gap in (0.0, 0.05):
        before = rig.domain.vcpus[0].exits

        def guest(gap: float = gap) -> None:
            for _ in range(20):
                while engine.exits:
                    time.sleep(0)
                time.sleep(gap)
                engine.exit(b.PortIo(0x80, 1, True))
            while engine.exits:
                time.sleep(0)
            rig.host.stop()

        thread = in_thread(guest)
        run(rig.host, 30)
        thread.join()
        assert rig.domain.vcpus[0].exits - before == 20
    assert rig.partition.slept >= 10
    assert len(engine.done("out")) == 40


def test_an_exit_just_before_sleeping_is_seen(rig: Rig) -> None:
    """The engine rings only once it knows that somebody sleeps; before that, the host looks."""
    rig.start()
    engine = rig.engine(0)
    real = rig.partition.want_doorbell

    def late(wanted: bool) -> None:
        if wanted and not engine.exits and not done:
            done.append(time.monotonic())
            # Without the bell: it comes just before the engine learns of the wish.
            engine.exits.append(b.PortIo(0x80, 1, True))
            after(rig.host, 0.01, lambda: None)
            rig.host.timers.at(rig.host.clock.now() + 300 * MS, rig.host.stop)
        real(wanted)

    done: list[float] = []
    partition: Any = rig.partition
    partition.want_doorbell = late
    run(rig.host)
    assert done
    assert rig.domain.vcpus[0].exits == 1


def test_a_guest_that_runs_does_not_keep_the_host_busy(rig: Rig) -> None:
    rig.start()
    after(rig.host, 300, rig.host.stop)
    assert processor_time(lambda: run(rig.host)) < 0.15
    assert rig.partition.slept
    assert not rig.partition.wanted


def test_a_guest_that_exits_all_the_time_does_not_keep_files_waiting(
    rig: Rig, pair: tuple[socket.socket, socket.socket]
) -> None:
    engine = rig.engine(0)
    engine.on_start = lambda: engine.exits.append(b.PortIo(0x80, 1, True))
    ours, theirs = pair
    seen: list[bytes] = []

    def read() -> None:
        seen.append(ours.recv(10))
        if len(seen) == 3:
            rig.host.stop()
        else:
            after(rig.host, 1, lambda: theirs.send(b"more"))

    rig.host.add_reader(ours.fileno(), read)
    theirs.send(b"first")
    rig.start()
    run(rig.host)
    assert seen == [b"first", b"more", b"more"]
    assert rig.partition.slept == 0


def test_a_vcpu_that_waits_leaves_the_loop(rig: Rig) -> None:
    rig.start()
    rig.engine(0).exit(b.Halt())
    after(rig.host, 5, rig.host.stop)
    run(rig.host)
    assert rig.host._running == [rig.domain.vcpus[1]]
    rig.domain.vcpus[0].unblock()
    assert set(rig.host._running) == set(rig.domain.vcpus)
    assert len(rig.host._running) == 2


def test_an_instruction_that_cannot_be_carried_out_crashes_its_domain(rig: Rig) -> None:
    vcpu = rig.start()

    def fail(*_: object) -> None:
        raise EngineError("instruction at 0x1000 cannot access a device: fld dword ptr [eax]")

    rig.engine().mmio = fail
    rig.serve(b.Mmio(0xFEE0_0000))
    assert rig.domain.shutdown_code == SHUTDOWN_crash
    info = rig.domain.crash_info
    assert info is not None
    assert info.reason.startswith("instruction at 0x1000 cannot")
    assert info.vcpu == vcpu.id
    assert not vcpu.running


@pytest.mark.parametrize("where", ["exit", "timer"])
def test_a_bug_of_ours_ends_the_domain_that_it_was_for(rig: Rig, where: str) -> None:
    rig.start()
    other = second_domain(rig)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    if where == "exit":
        rig.engine(0, other).mmio = fail
        rig.engine(0, other).exit(b.Mmio(0xFEE0_0000))
    else:
        other.timers.at(0, fail)
    once(rig.host, lambda: other.failure, rig.host.stop)
    run(rig.host)
    assert isinstance(other.failure, ZeroDivisionError)
    assert other.shutdown_code == SHUTDOWN_crash
    assert other.crash_info is not None
    assert other.crash_info.reason == "internal error: ZeroDivisionError: a bug"
    assert rig.domain.shutdown_code == -1


# --- one domain among others -----------------------------------------------------------------


def second_domain(rig: Rig) -> Domain:
    domain = rig.add_domain(1, ram=16)
    rig.engine(0, domain).set("rflags", IF)
    domain.vcpus[0].initialised = True
    domain.vcpus[0].bring_up()
    return domain


def test_domains_come_and_go_while_others_run(rig: Rig) -> None:
    rig.start()
    other = second_domain(rig)
    engine = rig.engine(0, other)
    after(rig.host, 5, other.destroy)
    once(rig.host, lambda: other.destroyed, lambda: rig.engine(1).exit(b.PortIo(0x80, 1, True)))
    once(rig.host, lambda: rig.domain.vcpus[1].exits, rig.host.stop)
    run(rig.host)
    assert other.domid not in rig.host.domains
    assert rig.host.domain(other.domid) is None
    assert rig.host.domain(rig.domain.domid) is rig.domain
    engine.exits.append(None)
    after(rig.host, 5, rig.host.stop)
    run(rig.host)
    assert engine.exits, "nobody serves a domain that is gone"


def test_a_domain_that_ends_from_within_an_exit(rig: Rig) -> None:
    """Its other vCPUs may have exits that the loop was about to serve."""
    rig.start()
    for i in (0, 1):
        rig.engine(i).mmio = lambda *_: rig.domain.destroy()
        rig.engine(i).exits.append(b.Mmio(0xFEE0_0000))
    after(rig.host, 5, rig.host.stop)
    run(rig.host)
    assert rig.domain.vcpus[0].exits == 1
    assert rig.domain.vcpus[1].exits == 0
    assert rig.host.machine.free_frames == rig.free


@pytest.mark.parametrize("how", ["at the doorbell", "while asleep", "in an exit", "in a kick"])
def test_an_engine_that_dies_takes_only_its_domain(rig: Rig, how: str) -> None:
    rig.start()
    other = second_domain(rig)
    partition = other.partition
    assert isinstance(partition, ScriptedPartition)
    engine = rig.engine(0, other)
    told: list[Domain] = []
    other.hooks.shutdown = told.append

    def fail(*_: object) -> None:
        raise EngineError(partition.dead)

    def die() -> None:
        partition.dead = "QEMU ended by signal 9: it printed nothing"
        engine.on_kick = fail
        if how == "at the doorbell":
            os.eventfd_write(partition.doorbell, 1)
        elif how == "in an exit":
            engine.mmio = fail
            engine.exit(b.Mmio(0xFEE0_0000))
        elif how == "in a kick":
            other.vcpus[0].notify()

    after(rig.host, 5, die)
    once(rig.host, lambda: told, lambda: rig.engine(0).exit(b.PortIo(0x80, 1, True)))
    once(rig.host, lambda: rig.domain.vcpus[0].exits, rig.host.stop)
    run(rig.host)
    assert told == [other]
    assert other.shutdown_code == SHUTDOWN_crash
    assert other.crash_info is not None
    assert other.crash_info.reason == partition.dead
    assert rig.domain.shutdown_code == -1
    assert rig.domain.vcpus[0].exits == 1
    assert all(vcpu.running for vcpu in rig.domain.vcpus)


def test_close_ends_everything() -> None:
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    rig = Rig(2)
    rig.start()
    second_domain(rig)
    rig.host.close()
    rig.host.close()
    assert rig.host.domains == {}
    assert rig.host.machine.free_frames == rig.free
    del rig
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files


def test_domain_numbers(host: Host) -> None:
    assert [host.allocate_domid() for _ in range(3)] == [1, 2, 3]
    host.domains[4] = host.domains[5] = None  # type: ignore[assignment]
    assert host.allocate_domid() == 6
    host._next_domid = 0x7FEF
    assert host.allocate_domid() == 0x7FEF
    assert host.allocate_domid() == 1
    # DOMID_FIRST_RESERVED and beyond are no domains.
    host._next_domid = 0x7FEF
    host.domains[0x7FEF] = None  # type: ignore[assignment]
    assert host.allocate_domid() == 1
    host.domains.clear()
