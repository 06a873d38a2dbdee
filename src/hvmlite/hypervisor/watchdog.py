"""The two watchdogs of a domain (SCHEDOP_watchdog): one that runs out shuts the domain down.

Facts: public/sched.h and what real Xen 4.17 answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi.errno import XEN_EINVAL, XEN_ENOSPC
from hvmlite.abi.sched import SHUTDOWN_watchdog
from hvmlite.hypervisor.call import XenError

if TYPE_CHECKING:
    from hvmlite.hypervisor.clock import Timer
    from hvmlite.hypervisor.domain import Domain

NR_DOMAIN_WATCHDOG_TIMERS = 2
_SECOND = 1_000_000_000


class Watchdogs:
    """The watchdogs of one domain; their ids are 1 and 2."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._timers: dict[int, Timer] = {}

    def start(self, timeout: int) -> int:
        """Starts a free one (seconds); returns its id.  Raises XenError(ENOSPC)."""
        for number in range(1, NR_DOMAIN_WATCHDOG_TIMERS + 1):
            if number not in self._timers:
                self._arm(number, timeout)
                return number
        raise XenError(XEN_ENOSPC)

    def poke(self, number: int, timeout: int) -> None:
        """Sets one anew (seconds), or gives it up if that is 0; raises XenError(EINVAL)."""
        timer = self._timers.get(number)
        if timer is None:
            raise XenError(XEN_EINVAL)
        timer.cancel()
        if timeout:
            self._arm(number, timeout)
        else:
            del self._timers[number]

    def _arm(self, number: int, timeout: int) -> None:
        domain = self._domain
        deadline = domain.clock.now() + timeout * _SECOND
        self._timers[number] = domain.timers.at(deadline, self._expired)

    def _expired(self) -> None:
        self._domain.shutdown(SHUTDOWN_watchdog)

    def stop(self) -> None:
        """Gives both up."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
