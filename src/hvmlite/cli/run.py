"""`hvmlite run`: boots one guest and joins its console to stdin and stdout."""

from __future__ import annotations

import argparse
import math
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from hvmlite.cli.main import (
    EXIT_CRASH,
    EXIT_FAILURE,
    EXIT_OK,
    EXIT_TIMEOUT,
    complain,
    quiet_collector,
)
from hvmlite.engine.select import EarlyEngine, open_engine
from hvmlite.errors import HvmliteError, UserError
from hvmlite.toolstack.config import DomainConfig, boot_memory, parse_size

if TYPE_CHECKING:
    from hvmlite.toolstack.domain import Domain

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LONGEST_SLACK_MS = 1000
_PATIENCE = 2.0
"""Seconds that a reader of the console has left when it was not the guest that ended the run."""


def make_config(options: argparse.Namespace) -> DomainConfig:
    """The domain's configuration from the command line; raises UserError."""
    if not 0 <= options.timer_slack <= _LONGEST_SLACK_MS:
        raise UserError(
            f"--timer-slack {options.timer_slack:g} is not between 0 and {_LONGEST_SLACK_MS} ms"
        )
    config = DomainConfig(
        kernel=Path(options.kernel),
        name=options.name,
        ramdisk=Path(options.ramdisk) if options.ramdisk else None,
        modules=[Path(each) for each in options.module],
        cmdline=options.cmdline,
        memory=parse_size(options.memory),
        vcpus=options.vcpus,
        lapic=options.lapic,
        acpi=options.acpi,
        xen_version=options.xen_version,
        timer_slack=int(options.timer_slack * 1_000_000),
        on_reboot="restart" if options.on_reboot == "restart" else "destroy",
        console_log=Path(options.console_log) if options.console_log else None,
    )
    if options.console:
        from hvmlite.toolstack.devices.console import parse_console  # noqa: PLC0415

        config.console = parse_console(options.console)
    if options.devices:
        from hvmlite.toolstack.devices.spec import parse_device  # noqa: PLC0415

        config.devices += [parse_device(option, text) for option, text in options.devices]
    config.check()
    return config


class _Session:
    """What the main thread waits for: the guest's end, the user's leaving, a signal, the time."""

    def __init__(self) -> None:
        # Unlike an Event's, its lock can be taken by a signal handler that came upon a wait.
        self._over: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.signal = 0

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """SIGINT, SIGTERM, SIGHUP: end the guest in good order."""
        self.signal = number
        self.end()

    def end(self) -> None:
        """Ends the run; may be called from any thread."""
        self._over.put(None)

    def wait(self, seconds: float | None) -> bool:
        """Waits for the end; False if the time is over first."""
        try:
            self._over.get(timeout=seconds)
        except queue.Empty:
            return False
        return True


def execute(options: argparse.Namespace) -> int:
    """Runs the guest; returns the exit status."""
    if options.timeout is not None and not 0 < options.timeout <= threading.TIMEOUT_MAX:
        raise UserError(f"--timeout {options.timeout:g} is not a time")
    config = make_config(options)
    session = _Session()
    for number in _SIGNALS:
        signal.signal(number, session.on_signal)
    begin = time.monotonic()
    # QEMU takes as long to start as Python takes to load the rest: both at once.
    engine = EarlyEngine(open_engine(options.engine), boot_memory(config), config.all_vcpus)
    with quiet_collector():
        from hvmlite.cli.progress import watcher  # noqa: PLC0415
        from hvmlite.cli.terminal import ConsoleInput, ConsoleOutput  # noqa: PLC0415
        from hvmlite.toolstack.host import Host  # noqa: PLC0415
    with Host(engine=engine, xen_version=config.xen_version) as host:
        if options.xenstore_socket is not None:
            host.listen_xenstore(options.xenstore_socket)
        progress = watcher(options.progress)
        try:
            domain = host.create(config, progress)
        finally:
            if progress is not None:
                progress.clear()
        output = ConsoleOutput(host, sys.stdout.fileno(), session.end)
        ours = config.console is None
        if ours:
            domain.console.add_sink(output.write)
        else:
            complain(f"console: {domain.tty or config.console}")
        domain.on_end(session.end)
        domain.on_message = complain
        for device in config.devices:
            complain(f"attached: {device.describe()}")
        with ConsoleInput(
            host, domain.console, sys.stdin if ours else None, session.end
        ) as keyboard:
            domain.start()
            in_time = session.wait(options.timeout)
            try:
                outcome = domain.wait(0)
                domain.destroy()
            except HvmliteError:
                output.flush(_PATIENCE)
                raise
        # What is still to be written must not keep us from obeying a second signal.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        output.flush(_PATIENCE if outcome is None else math.inf)
        if keyboard.left:
            complain("left the console; the guest was destroyed")
    if options.verbose:
        _tell(domain, time.monotonic() - begin)
    if outcome is not None:
        if outcome.crash is not None:
            complain(str(outcome.crash))
        return EXIT_CRASH if outcome.crashed else EXIT_OK
    if keyboard.left:
        return EXIT_OK
    if session.signal:
        complain(f"ended by {signal.Signals(session.signal).name}")
        return EXIT_FAILURE
    if in_time:
        complain("the reader of the console has gone")
        return EXIT_FAILURE
    complain(f"time limit of {options.timeout:g} s reached")
    return EXIT_TIMEOUT


def _tell(domain: Domain, seconds: float) -> None:
    complain(f"{domain.exits} exits in {seconds:.2f} s")
    for name, count in sorted(domain.unknown_calls.items()):
        complain(f"not supported: {name} ({count} times)")
