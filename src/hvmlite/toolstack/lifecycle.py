"""One built domain and what belongs to it: console and xenstore connections, its end.

Runs in the host loop's thread; `Host` and `Domain` (host.py, domain.py) are the public face.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from hvmlite.abi.hvm import HVM_PARAM_CONSOLE_EVTCHN, HVM_PARAM_STORE_EVTCHN
from hvmlite.backends.console import ConsoleBackend
from hvmlite.toolstack import store as store_nodes
from hvmlite.toolstack.builder import BootPlan, build_domain
from hvmlite.toolstack.layout import SpecialPage
from hvmlite.xenstore.ring import RingTransport
from hvmlite.xenstore.server import XenStore

if TYPE_CHECKING:
    from hvmlite.hypervisor.control import Control, Domain
    from hvmlite.toolstack.devices.manager import Devices


def _random_uuid() -> str:
    """A UUID of version 4 (RFC 4122, section 4.4); the module uuid takes longer to load."""
    value = int.from_bytes(os.urandom(16), "big") & ~(0xF << 76 | 3 << 62) | 4 << 76 | 2 << 62
    text = f"{value:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


class Incarnation:
    """One run of a domain, from building to shutdown; a restart makes a new one."""

    def __init__(
        self,
        control: Control,
        store: XenStore,
        plan: BootPlan,
        output: Callable[[bytes], None],
        on_shutdown: Callable[[Incarnation], None],
        make_devices: Callable[[Domain], Devices] | None = None,
    ) -> None:
        self._control = control
        self._store = store
        self.uuid = plan.config.uuid or _random_uuid()
        self.domain = domain = build_domain(control, plan)
        control.set_handle(domain, bytes.fromhex(self.uuid.replace("-", "")))
        self.devices: Devices | None = None
        try:
            self._connect(plan, output)
            if make_devices is not None:
                self.devices = make_devices(domain)
                for spec in plan.config.devices:
                    self.devices.attach(spec)
        except BaseException:
            self._discard()
            raise
        control.on_shutdown(domain, lambda _: on_shutdown(self))
        control.on_debug_output(domain, output)

    @property
    def domid(self) -> int:
        """The domain's number."""
        return self.domain.domid

    def _connect(self, plan: BootPlan, output: Callable[[bytes], None]) -> None:
        control, store, domain = self._control, self._store, self.domain
        # The store's port comes first: guests of real Xen find it at 1 and the console at 2.
        store_port = control.allocate_port(domain, self._store_event)
        console_port = control.allocate_port(domain, self._console_event)
        control.set_param(domain, HVM_PARAM_STORE_EVTCHN, store_port.port)
        control.set_param(domain, HVM_PARAM_CONSOLE_EVTCHN, console_port.port)
        self.console = ConsoleBackend(
            control.map_page(domain, SpecialPage.CONSOLE), console_port.notify, output
        )
        store_nodes.write_domain(
            store, plan.config, domain.domid, self.uuid, store_port.port, console_port.port
        )
        connection = store.introduce_domain(domain.domid, port=store_port.port)
        self._ring = RingTransport(
            control.map_page(domain, SpecialPage.XENSTORE), store_port.notify, connection
        )
        # So xenstored of 4.17 tells a domain that it is there: the guest starts with this pending.
        store_port.notify()

    # The ports exist before the rings that they ring for.
    def _store_event(self) -> None:
        self._ring.on_event()

    def _console_event(self) -> None:
        self.console.on_event()

    def start(self) -> None:
        """Lets it run."""
        self._control.unpause_domain(self.domain)

    def destroy(self) -> None:
        """Frees everything; what the guest still had in its console ring is taken first."""
        self.console.drain()
        self.console.close()
        self._discard()

    def _discard(self) -> None:
        if self.devices is not None:
            self.devices.close()
        self._store.release_domain(self.domid)
        store_nodes.remove_domain(self._store, self.domid, self.uuid)
        self._control.destroy_domain(self.domain)
