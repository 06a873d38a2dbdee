"""Consoles: where their bytes go, and the further ones that xl calls channels.

Facts: xl.cfg(5), "channel"; docs/misc/channel.txt; libxl's nodes for consoles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hvmlite.backends.console_device import ConsoleDevice
from hvmlite.backends.stream import KEPT, FileStream, PtyStream, SocketStream, Stream
from hvmlite.errors import UserError
from hvmlite.toolstack.devices.keys import parse_keys
from hvmlite.toolstack.devices.spec import DeviceSpec

if TYPE_CHECKING:
    from hvmlite.backends.device import Backend, Device
    from hvmlite.hypervisor.host import Host
    from hvmlite.toolstack.console import Console

CONNECTIONS = ("pty", "socket", "file")


@dataclass(slots=True)
class Connection:
    """What a console is connected to: `kind` is one of CONNECTIONS, all but "pty" have a path.

    `log` names a file that gets a copy of the output.
    """

    kind: str
    path: Path | None = None
    log: Path | None = None

    def __post_init__(self) -> None:
        if self.kind not in CONNECTIONS:
            raise UserError(f"connection={self.kind!r} is not one of {', '.join(CONNECTIONS)}")
        if (self.path is None) is not (self.kind == "pty"):
            needs = "takes no" if self.kind == "pty" else "needs a"
            raise UserError(f"connection={self.kind} {needs} path=")

    def open(self, loop: Host, report: Callable[[str], None]) -> Stream:
        """Opens it; raises UserError."""
        if self.path is None:
            return PtyStream(loop)
        if self.kind == "socket":
            return SocketStream(loop, self.path)
        return FileStream(self.path, report)

    def __str__(self) -> str:
        return self.kind if self.path is None else f"{self.kind} {self.path}"


class FirstConsole:
    """Where the first console's bytes go besides `Domain.console`, over all runs of a domain.

    In the host loop's thread.  A slow reader does not slow the guest: what `KEPT` bytes do not hold
    is lost, the oldest first.
    """

    def __init__(
        self,
        loop: Host,
        console: Console,
        connection: Connection | None,
        log: Path | None,
        report: Callable[[str], None],
    ) -> None:
        self.tty = ""
        self._streams: list[Stream] = []
        try:
            for each in (connection, Connection("file", log) if log is not None else None):
                if each is not None:
                    self._add(each.open(loop, report), console)
                    if each.log is not None:
                        self._add(FileStream(each.log, report), console)
        except BaseException:
            self.close()
            raise

    def _add(self, stream: Stream, console: Console) -> None:
        self._streams.append(stream)
        self.tty = self.tty or stream.tty
        console.add_sink(stream.write)
        stream.connect(console.write, lambda: console.input_room, lambda: None)

    def close(self) -> None:
        """Ends all of them."""
        for stream in self._streams:
            stream.close()


class ChannelSpec(DeviceSpec):
    """A further console, which a guest's driver may know by its name.

    Linux has it as /dev/hvcN, N its devid.  The first is 1.
    """

    kind: ClassVar[str] = "console"
    first_devid: ClassVar[int] = 1

    def __init__(self, connection: Connection, name: str = "", devid: int = -1) -> None:
        if devid == 0:
            raise UserError("console 0 is the first one, and no device of this kind")
        self.connection = connection
        self.name = name
        self.devid = devid
        self.stream: Stream | None = None

    @property
    def tty(self) -> str:
        """The path of its terminal in the present run of the domain, if it is one."""
        return "" if self.stream is None else self.stream.tty

    def frontend_nodes(self, devid: int) -> Mapping[str, str]:
        """Nodes of the frontend that the guest owns."""
        return {"protocol": "vt100"}

    def readonly_nodes(self, devid: int) -> Mapping[str, str]:
        """Nodes of the frontend that the guest may only read."""
        output = "pty" if self.connection.kind == "pty" else f"chardev:libxl-channel{devid}"
        nodes = {"limit": str(KEPT), "type": "ioemu", "output": output, "tty": self.tty}
        return ({"name": self.name} if self.name else {}) | nodes

    def backend_nodes(self, devid: int) -> Mapping[str, str]:
        """Nodes of the backend."""
        nodes = {"protocol": "vt100", "connection": self.connection.kind}
        if self.name:
            nodes["name"] = self.name
        if self.connection.path is not None:
            nodes["path"] = str(self.connection.path)
        return nodes

    def make(self, device: Device) -> Backend:
        """Opens the connection and its log."""
        loop, log = device.control.host, self.connection.log
        self.stream = self.connection.open(loop, device.tell)
        try:
            copy = None if log is None else FileStream(log, device.tell)
        except UserError:
            self.stream.close()
            raise
        return ConsoleDevice(device, self.stream, copy)

    def describe(self) -> str:
        """What is attached."""
        name = f" {self.name!r}" if self.name else ""
        return f"console {self.devid}{name}: {self.tty or self.connection}"


def parse_connection(text: str, more: tuple[str, ...] = ()) -> tuple[Connection, dict[str, str]]:
    """A connection and the values of further keys; raises UserError."""
    keys = parse_keys(text, {"connection", "path", "log", *more}, what="console")
    if "connection" not in keys:
        raise UserError(f"{text!r} lacks connection= ({', '.join(CONNECTIONS)})")
    path, log = keys.pop("path", None), keys.pop("log", None)
    kind = keys.pop("connection").lower()
    made = Connection(kind, Path(path) if path else None, Path(log) if log else None)
    return made, keys


def parse_console(text: str) -> Connection:
    """What `--console` says of the first console; raises UserError."""
    return parse_connection(text)[0]


def parse(text: str) -> ChannelSpec:
    """What `--channel` says: xl.cfg's name=, connection=, path=, backend=, and our log=."""
    connection, keys = parse_connection(text, ("name", "backend"))
    if not keys.get("name"):
        raise UserError(f"channel {text!r} lacks name=")
    if keys.get("backend", "0") not in {"0", "Domain-0"}:
        raise UserError(f"backend={keys['backend']}: back ends are in domain 0 only")
    return ChannelSpec(connection, keys["name"])
