"""What a PV device is made from, whatever its kind.

A kind is a subclass of `DeviceSpec`; nothing else needs to know of it but the table of options
that the command line has (`OPTIONS`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar, cast

if TYPE_CHECKING:
    from hvmlite.backends.device import Backend, Device

OPTIONS: dict[str, str] = {
    "disk": "hvmlite.toolstack.devices.disk",
    "channel": "hvmlite.toolstack.devices.console",
    "p9": "hvmlite.toolstack.devices.p9",
    "vif": "hvmlite.toolstack.devices.vif",
}
"""Options of `hvmlite run` that make devices, by the module that parses them (`parse(text)`)."""


class DeviceSpec(ABC):
    """One device to attach.  `devid` -1 takes the next free number of its kind."""

    kind: ClassVar[str]
    """As in xenstore's paths: "vbd", "vif", "console", "9pfs"."""
    first_devid: ClassVar[int] = 0
    """The least number of its kind."""
    devid: int = -1

    def frontend_nodes(self, devid: int) -> Mapping[str, str]:
        """Nodes of the frontend besides backend, backend-id and state; the guest owns them."""
        return {}

    def readonly_nodes(self, devid: int) -> Mapping[str, str]:
        """Nodes of the frontend that the guest may read but not change."""
        return {}

    @abstractmethod
    def backend_nodes(self, devid: int) -> Mapping[str, str]:
        """Nodes of the backend besides frontend, frontend-id, online and state."""

    @abstractmethod
    def make(self, device: Device) -> Backend:
        """Opens what is behind the device and makes its backend; raises UserError.

        Called in the host loop's thread, for each run of the domain.
        """

    @abstractmethod
    def describe(self) -> str:
        """What is attached, in a few words for the user."""


def parse_device(option: str, text: str) -> DeviceSpec:
    """What an option such as `--disk` says; raises UserError."""
    return cast(DeviceSpec, import_module(OPTIONS[option]).parse(text))
