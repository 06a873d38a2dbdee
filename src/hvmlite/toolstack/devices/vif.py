"""PV network interfaces: `--vif` with xl's syntax, and what an interface is attached to.

Facts: xl-network-configuration(5); `type` and what belongs to it is ours. docs/networks.md has all
of it for users.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from hvmlite.backends.net.user import MTU, Forward
from hvmlite.errors import UserError
from hvmlite.toolstack.devices.spec import DeviceSpec

if TYPE_CHECKING:
    from hvmlite.backends.device import Backend, Device
    from hvmlite.backends.net.endpoint import Endpoint
    from hvmlite.hypervisor.host import Host

XEN_OUI = "00:16:3e"
TYPES = ("user", "tap", "bridge", "socket", "domain")
_XL_TYPES = ("vif", "ioemu")
_XL_BRIDGE = "xenbr0"
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_RATE = re.compile(r"(\d{1,9})([GMK]?)([bB])/s(?:@(\d{1,9})(us|ms|s))?")
_FORWARD = re.compile(r"(tcp|udp):(?:(\[[0-9a-fA-F:.]+\]|[0-9.]+):)?(\d{1,5})-(\d{1,5})")
_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_SCALE = {"": 1, "K": 1000, "M": 1000_000, "G": 1000_000_000}
_NANOSECONDS = {"us": 1000, "ms": 1000_000, "s": 1000_000_000}
_DEFAULT_INTERVAL = "50", "ms"
_LEAST_MTU, _MOST_MTU = 68, 65517
_MOST_QUEUES = 8
_SCRIPT_TIMEOUT = 10.0


@dataclass
class VifSpec(DeviceSpec):
    """One interface, by the names of xl's keys and our own; `check` says what is wrong with it."""

    kind: ClassVar[str] = "vif"

    type: str = ""
    """One of TYPES; "" goes by what else is given, and is a user network in the end."""
    devid: int = -1
    mac: str = ""
    """"" makes one up that stays the same for the domain's name and the device's number."""
    bridge: str = ""
    gatewaydev: str = ""
    ip: str = ""
    script: str = ""
    vifname: str = ""
    mtu: int = 0
    trusted: bool = True
    rate: str = ""
    queues: int = 0
    """How many queues the guest may use; 0: as many as it has vCPUs."""
    forward: list[Forward] = field(default_factory=list)
    path: str = ""
    server: bool = False
    link: str = ""
    peer: str = ""

    def __post_init__(self) -> None:
        if not self.type or self.type in _XL_TYPES:
            self.type = (
                "bridge" if self.bridge
                else "domain" if self.link or self.peer
                else "socket" if self.path
                else "user"
            )  # fmt: skip

    def check(self) -> None:
        """Raises UserError for what cannot be."""
        kind = self.type
        if kind not in TYPES:
            raise UserError(f"vif: type={kind} is none of {', '.join(TYPES)}")
        if self.mac and (not _MAC.fullmatch(self.mac) or int(self.mac[:2], 16) & 1):
            raise UserError(f"vif: mac={self.mac} is no address of an interface")
        if self.mtu and not _LEAST_MTU <= self.mtu <= _MOST_MTU:
            raise UserError(f"vif: mtu={self.mtu} is not between {_LEAST_MTU} and {_MOST_MTU}")
        if not 0 <= self.queues <= _MOST_QUEUES:
            raise UserError(f"vif: queues={self.queues} is not between 1 and {_MOST_QUEUES}")
        for name, value in (("vifname", self.vifname), ("bridge", self.bridge)):
            if value and not _INTERFACE.fullmatch(value):
                raise UserError(f"vif: {name}={value} is no name of an interface")
        if self.rate:
            parse_rate(self.rate)
        for name, wanted, given in (
            ("path", kind == "socket", bool(self.path)),
            ("link or peer", kind == "domain", bool(self.link or self.peer)),
        ):
            if wanted and not given:
                raise UserError(f"vif: type={kind} needs {name}=")
            if given and not wanted:
                raise UserError(f"vif: {name}= does not belong to type={kind}")
        if self.forward and kind != "user":
            raise UserError(f"vif: forward= does not belong to type={kind}")
        if self.script and kind not in ("tap", "bridge"):
            raise UserError(f"vif: script= does not belong to type={kind}")
        if self.link and self.peer:
            raise UserError("vif: link= and peer= are two names for one thing")

    # ---- nodes ----------------------------------------------------------------------------------

    def frontend_nodes(self, devid: int) -> Mapping[str, str]:
        """See `DeviceSpec.frontend_nodes`."""
        return {
            "handle": str(devid),
            "mac": self.mac,
            "trusted": str(int(self.trusted)),
            "mtu": str(self._mtu()),
        }

    def backend_nodes(self, devid: int) -> Mapping[str, str]:
        """See `DeviceSpec.backend_nodes`."""
        optional = {
            "ip": self.ip,
            "gatewaydev": self.gatewaydev,
            "vifname": self.vifname,
            "rate": _rate_node(self.rate),
            "mtu": str(self.mtu or ""),
        }
        return {
            "script": self.script,
            "mac": self.mac,
            "bridge": self.bridge or (_XL_BRIDGE if self.type == "bridge" else ""),
            "handle": str(devid),
            "type": "vif",
            "hotplug-status": "connected",
            **{name: value for name, value in optional.items() if value},
        }

    def _mtu(self) -> int:
        return self.mtu or (MTU if self.type == "user" else 1500)

    # ---- what is behind it ----------------------------------------------------------------------

    def make(self, device: Device) -> Backend:
        """See `DeviceSpec.make`."""
        # Loaded when needed: none of it where there is no interface.
        from hvmlite.backends.net.netback import Netback  # noqa: PLC0415
        from hvmlite.backends.net.rate import RateLimit  # noqa: PLC0415

        self.check()
        self.mac = self.mac.lower() or _made_up(device)
        endpoint = _MAKERS[self.type](self, device)
        host = device.control.host
        rate = RateLimit(host.timers, *parse_rate(self.rate)) if self.rate else None
        queues = self.queues or min(len(device.domain.vcpus), _MOST_QUEUES)
        return Netback(device, endpoint, queues=queues, rate=rate)

    def _user(self, device: Device) -> Endpoint:
        from hvmlite.backends.net.user import UserNetwork  # noqa: PLC0415

        options = ["-a", self.ip.partition("/")[0]] if self.ip else []
        return UserNetwork(
            device.control.host,
            device.tell,
            mtu=self._mtu(),
            forwards=self.forward,
            options=options,
        )

    def _tap(self, device: Device) -> Endpoint:
        from hvmlite.backends.net.tap import Tap  # noqa: PLC0415

        bridge = (self.bridge or _XL_BRIDGE) if self.type == "bridge" else ""
        tap = Tap(device.control.host, name=self.vifname, bridge=bridge, mtu=self.mtu)
        self.vifname = tap.name
        if self.script:
            environment = {
                "vif": tap.name,
                "type_if": "vif",
                "XENBUS_PATH": device.backend_path.removeprefix("/local/domain/0/"),
                "mac": self.mac,
                "ip": self.ip,
                **({"bridge": bridge} if bridge else {}),
                **({"netdev": self.gatewaydev} if self.gatewaydev else {}),
            }
            try:
                _run_script(self.script, "online", environment)
            except UserError:
                tap.close()
                raise
            script = self.script

            def offline() -> None:
                try:
                    _run_script(script, "offline", environment)
                except UserError as error:
                    device.tell(str(error))

            tap.before_close = offline
        return tap

    def _socket(self, device: Device) -> Endpoint:
        from hvmlite.backends.net.unix import SocketEndpoint  # noqa: PLC0415

        return SocketEndpoint(device.control.host, device.tell, self.path, server=self.server)

    def _link(self, device: Device) -> Endpoint:
        from hvmlite.backends.net.link import Port  # noqa: PLC0415

        if self.link:
            return Port(device.control.host, f"link {self.link}")
        name = device.store.read(f"/local/domain/{device.domain.domid}/name") or b""
        pair = sorted((name.decode(errors="replace"), self.peer))
        return Port(device.control.host, f"peers {pair}")

    def describe(self) -> str:
        """See `DeviceSpec.describe`."""
        what = {
            "user": "user network",
            "tap": f"tap {self.vifname}".strip(),
            "bridge": f"bridge {self.bridge or _XL_BRIDGE}",
            "socket": f"socket {self.path}",
            "domain": f"link {self.link}" if self.link else f"domain {self.peer}",
        }[self.type]
        ports = "".join(
            f", {each.protocol} port {each.port} to its {each.guest_port}" for each in self.forward
        )
        return f"vif {self.devid}: {what}, {self.mac}{ports}"


def _run_script(script: str, command: str, environment: Mapping[str, str]) -> None:
    """Runs a hotplug script as xl does (its nodes are not to be had by xenstore-read)."""
    try:
        done = subprocess.run(
            [script, command],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SCRIPT_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"vif: script {script} {command}: {error}") from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        why = words[-1] if words else f"status {done.returncode}"
        raise UserError(f"vif: script {script} {command} failed: {why}")


_MAKERS: dict[str, Callable[[VifSpec, Device], Endpoint]] = {
    "user": VifSpec._user,
    "tap": VifSpec._tap,
    "bridge": VifSpec._tap,
    "socket": VifSpec._socket,
    "domain": VifSpec._link,
}


def _made_up(device: Device) -> str:
    """A MAC address of Xen's range: the same for a name and a number, unless one has it already."""
    store, domid = device.store, device.domain.domid
    name = store.read(f"/local/domain/{domid}/name") or b""
    used = set(_used(device.control.host, device))
    for salt in range(1 << 16):
        seed = b"%s\0%d\0%d" % (name, device.devid, salt)
        tail = hashlib.blake2b(seed, digest_size=3).digest()
        mac = f"{XEN_OUI}:{tail.hex(':')}"
        if mac not in used:
            return mac
    raise UserError("vif: no MAC address is left")


def _used(host: Host, device: Device) -> list[str]:
    """The MAC addresses of this host's interfaces."""
    store = device.store
    found = []
    for domid in host.domains:
        base = f"/local/domain/0/backend/vif/{domid}"
        if store.exists(base):
            for devid in store.list(base):
                value = store.read(f"{base}/{devid}/mac")
                found.append((value or b"").decode("ascii", "replace"))
    return found


def parse_rate(text: str) -> tuple[int, int]:
    """xl's "10Mb/s@50ms" as bytes in each interval (nanoseconds); raises UserError."""
    found = _RATE.fullmatch(text)
    if found is None:
        raise UserError(f"vif: rate={text} is not like 10Mb/s or 1MB/s@20ms")
    number, scale, unit, interval, interval_unit = found.groups()
    if interval is None:
        interval, interval_unit = _DEFAULT_INTERVAL
    nanoseconds = int(interval) * _NANOSECONDS[interval_unit]
    each_second = int(number) * _SCALE[scale] // (8 if unit == "b" else 1)
    size = each_second * nanoseconds // 1_000_000_000
    if not size or not nanoseconds:
        raise UserError(f"vif: rate={text} is nothing")
    return size, nanoseconds


def _rate_node(text: str) -> str:
    if not text:
        return ""
    size, nanoseconds = parse_rate(text)
    return f"{size},{nanoseconds // 1000}"


def _parse_forward(text: str) -> Forward:
    found = _FORWARD.fullmatch(text)
    if found is None:
        raise UserError(f"vif: forward={text} is not like tcp:127.0.0.1:2222-22")
    protocol, address, port, guest = found.groups()
    numbers = int(port), int(guest)
    if not all(0 < number < 1 << 16 for number in numbers):
        raise UserError(f"vif: forward={text}: a port is between 1 and 65535")
    return Forward(protocol, (address or "").strip("[]"), *numbers)


def _number(key: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise UserError(f"vif: {key}={text} is no number")
    return int(text)


def _flag(key: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise UserError(f"vif: {key}={text} is neither 0 nor 1")
    return text == "1"


_TEXTS = (
    "type", "mac", "bridge", "gatewaydev", "ip", "script", "vifname", "rate", "path", "link", "peer"
)  # fmt: skip


def parse(text: str) -> VifSpec:
    """`key=value,...` as xl has it; raises UserError."""
    values: dict[str, object] = {}
    forwards: list[Forward] = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        key, equals, value = (each.strip() for each in part.partition("="))
        if not equals:
            raise UserError(f"vif: expected key=value, got {part!r}")
        if key in values and key != "forward":
            raise UserError(f"vif: {key}= is given twice")
        if key == "forward":
            forwards.append(_parse_forward(value))
        elif key in _TEXTS:
            values[key] = value
        elif key in ("devid", "mtu", "queues"):
            values[key] = _number(key, value)
        elif key in ("trusted", "server"):
            values[key] = _flag(key, value)
        elif key == "backend":
            if value not in ("0", "Domain-0"):
                raise UserError(f"vif: backend={value}: only domain 0 has backends here")
        elif key != "model":
            raise UserError(f"vif: there is no key {key!r}")
    spec = VifSpec(forward=forwards, **values)  # type: ignore[arg-type]
    spec.check()
    return spec
