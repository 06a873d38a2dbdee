"""`Domain`: one guest, as whoever started it sees it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from hvmlite.abi.sched import (
    SHUTDOWN_crash,
    SHUTDOWN_poweroff,
    SHUTDOWN_reboot,
    SHUTDOWN_soft_reset,
    SHUTDOWN_suspend,
    SHUTDOWN_watchdog,
)
from hvmlite.errors import EngineError, UserError
from hvmlite.toolstack.builder import BootPlan
from hvmlite.toolstack.console import Console
from hvmlite.toolstack.kernel import load_kernel
from hvmlite.toolstack.lifecycle import Incarnation

if TYPE_CHECKING:
    from hvmlite.hypervisor.control import Domain as Handle
    from hvmlite.observe.crash import CrashReport
    from hvmlite.toolstack.devices.console import FirstConsole
    from hvmlite.toolstack.devices.manager import Devices
    from hvmlite.toolstack.devices.spec import DeviceSpec
    from hvmlite.toolstack.host import Host

SHUTDOWN_NAMES = {
    SHUTDOWN_poweroff: "poweroff",
    SHUTDOWN_reboot: "reboot",
    SHUTDOWN_suspend: "suspend",
    SHUTDOWN_crash: "crash",
    SHUTDOWN_watchdog: "watchdog",
    SHUTDOWN_soft_reset: "soft_reset",
}
_PATIENCE = 1.0
"""Seconds that `destroy` waits for disks."""
_CRASHES = ("crash", "watchdog")


class Outcome(NamedTuple):
    """How a domain ended: `reason` is a name of SHUTDOWN_* ("poweroff", "crash", ...), or
    "destroyed"; a crash has its report."""

    reason: str
    crash: CrashReport | None = None

    @property
    def crashed(self) -> bool:
        """Whether the guest crashed (or its watchdog fired)."""
        return self.reason in _CRASHES


class Domain:
    """One guest; `Host.create` makes it.

    `console` is its first console.  `id` changes when the guest restarts, as under xl.
    """

    def __init__(self, host: Host, plan: BootPlan) -> None:
        self._host = host
        self.config = plan.config
        self.name = plan.config.title
        self.console = Console()
        self._ended = threading.Event()
        self._on_end: Callable[[], None] | None = None
        self.on_message: Callable[[str], None] | None = None
        """Called in the host's thread with what the user should know (a device was cut off)."""
        self._outcome: Outcome | None = None
        self._failure: BaseException | None = None
        self.reboots = 0
        self.unknown_calls: dict[str, int] = {}
        self.exits = 0
        self._left = False
        """The present run was given up; a restart may wait for its devices."""
        self._first_console: FirstConsole | None = None
        if plan.config.console is not None or plan.config.console_log is not None:
            self._first_console = self._connect_console()
        try:
            self._adopt(plan)
        except BaseException:
            self._close_console()
            raise

    def _connect_console(self) -> FirstConsole:
        from hvmlite.toolstack.devices.console import FirstConsole  # noqa: PLC0415

        config = self.config
        return FirstConsole(
            self._host.loop, self.console, config.console, config.console_log, self._say
        )

    def _close_console(self) -> None:
        if self._first_console is not None:
            self._first_console.close()

    def _adopt(self, plan: BootPlan) -> None:
        """Builds an incarnation of the domain and takes it over."""
        host = self._host
        self._now = Incarnation(
            host.control,
            host.store,
            plan,
            self.console.received,
            self._shut_down,
            self._make_devices if plan.config.devices else None,
        )
        self._left = False
        host.domains[self._now.domid] = self
        now = self._now
        if self.tty:
            host.store.write(f"/local/domain/{now.domid}/console/tty", self.tty)
        self.console.connect(
            lambda data: host.soon(lambda: now.console.feed(data)),
            lambda: now.console.input_room,
        )

    def _make_devices(self, domain: Handle) -> Devices:
        # Loaded when needed: it costs every start otherwise.
        from hvmlite.toolstack.devices.manager import Devices  # noqa: PLC0415

        host = self._host
        return Devices(host.control, host.store, domain, host.workers, self._say)

    def _say(self, text: str) -> None:
        if self.on_message is not None:
            self.on_message(text)

    @property
    def id(self) -> int:
        """The domain's number."""
        return self._now.domid

    @property
    def incarnation(self) -> Incarnation:
        """The present run of the domain (for tools; use it in the host's thread)."""
        return self._now

    @property
    def tty(self) -> str:
        """The path of the first console's terminal, if it has one."""
        return "" if self._first_console is None else self._first_console.tty

    def start(self) -> None:
        """Lets the guest run."""
        self._host.call(self._now.start)

    def pause(self) -> None:
        """Stops its vCPUs until `unpause`; counted.

        Time goes on for the guest meanwhile, and what came due is delivered when it runs again.
        """
        self._host.call(self._host.control.pause_domain, self._now.domain)

    def unpause(self) -> None:
        """Undoes one `pause`."""
        self._host.call(self._host.control.unpause_domain, self._now.domain)

    # ---- devices --------------------------------------------------------------------------------

    def attach(self, spec: DeviceSpec) -> tuple[str, int]:
        """Attaches a PV device, also while the guest runs; returns its kind and number.

        Raises UserError.  A restart of the guest finds it as well.
        """

        def do() -> tuple[str, int]:
            now = self._now
            if self._left:
                state = "has ended" if self._ended.is_set() else "restarts just now"
                raise UserError(f"domain {self.id} {state}")
            if now.devices is None:
                now.devices = self._make_devices(now.domain)
            key = now.devices.attach(spec)
            self.config.devices.append(spec)
            return key

        return self._host.call(do)

    def detach(self, kind: str, devid: int, timeout: float = 10.0, *, force: bool = False) -> bool:
        """Detaches a PV device: asks the guest, and waits up to `timeout` seconds.

        Returns whether it let go; if not, and `force`, the device is taken away from it.  Raises
        UserError if there is no such device.
        """
        gone = threading.Event()

        def ask() -> None:
            if self._now.devices is None:
                raise UserError(f"domain {self.id} has no {kind} {devid}")
            self._now.devices.detach(kind, devid, gone.set)
            self.config.devices = [
                each for each in self.config.devices if (each.kind, each.devid) != (kind, devid)
            ]

        def take() -> None:
            if self._now.devices is not None:
                self._now.devices.remove(kind, devid)

        self._host.call(ask)
        if not gone.wait(timeout) and force:
            self._host.call(take)
        return gone.is_set()

    def on_end(self, callback: Callable[[], None]) -> None:
        """Has `callback()` called in the host's thread when `wait` would return."""
        self._on_end = callback
        if self._ended.is_set():
            callback()

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """Waits for the guest's end; None if `timeout` (seconds) is over first.

        Raises EngineError if the host failed under it.
        """
        if not self._ended.wait(timeout):
            return None
        if self._failure is not None:
            if isinstance(self._failure, Exception):
                raise self._failure
            raise EngineError(str(self._failure))
        return self._outcome

    def destroy(self) -> None:
        """Ends the guest at once and frees what it had; safe to repeat.

        Waits a moment for its disks, but not for one that hangs.
        """
        if not self._ended.is_set():
            self._host.call(self._finish, Outcome("destroyed"))
            self._host.wait_for_devices(_PATIENCE)

    # ---- in the host's thread -------------------------------------------------------------------

    def _shut_down(self, incarnation: Incarnation) -> None:
        """The guest shut down or crashed: the configured action decides what happens."""
        if incarnation is not self._now or self._ended.is_set():
            return
        domain = incarnation.domain
        if domain.failure is not None:
            # Our bug, and nothing that a restart would mend.
            self._leave()
            self.fail(domain.failure)
            return
        reason = SHUTDOWN_NAMES.get(domain.shutdown_code, "poweroff")
        crash = None
        if reason in _CRASHES:
            # Loaded when needed: it costs every start otherwise.
            from hvmlite.observe.crash import make_report  # noqa: PLC0415

            try:
                domain.partition.check_alive()
                crash = make_report(domain)
            except EngineError as error:
                # Not the guest's doing, though the hypervisor had to call it a crash.
                self._leave()
                self.fail(error)
                return
        outcome = Outcome(reason, crash)
        config = self.config
        action = (
            config.on_crash
            if outcome.crashed
            else config.on_reboot
            if reason == "reboot"
            else config.on_poweroff
        )
        if action != "restart":
            self._finish(outcome)
            return
        self._leave()
        self.reboots += 1
        if incarnation.devices is None:
            self._restart()
        else:
            # A disk that still writes for the old run is not free for the new one.
            incarnation.devices.when_gone(self._restart)

    def _restart(self) -> None:
        if self._ended.is_set():
            return
        config = self.config
        try:
            with load_kernel(config.kernel) as image:
                self._adopt(BootPlan.make(config, image))
            self._now.start()
        except Exception as error:
            self._leave()
            self.fail(error)

    def _leave(self) -> None:
        now = self._now
        if self._left:
            return
        self._left = True
        self.console.connect(None)
        self._host.domains.pop(now.domid, None)
        for name, count in now.domain.unknown_calls.items():
            self.unknown_calls[name] = self.unknown_calls.get(name, 0) + count
        self.exits += sum(vcpu.exits for vcpu in now.domain.vcpus)
        now.destroy()
        if (devices := now.devices) is not None and devices.keys():
            leaving = self._host.leaving
            leaving.add(devices)
            devices.when_gone(lambda: leaving.discard(devices))

    def _finish(self, outcome: Outcome) -> None:
        if self._ended.is_set():
            return
        self._leave()
        self._outcome = outcome
        self._end()

    def _end(self) -> None:
        self._ended.set()
        self.console.close()
        self._close_console()
        if self._on_end is not None:
            self._on_end()

    def fail(self, error: BaseException) -> None:
        """The host cannot go on with this domain."""
        if not self._ended.is_set():
            self._failure = error
            self._end()
