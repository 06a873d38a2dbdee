"""Images that QEMU's block layer understands: qcow2, vhd, vmdk, remote ones, overlays.

qemu-storage-daemon serves the image to us alone, over a socket that has no name any more once we
are connected. Facts: qemu-storage-daemon(1), QEMU's QAPI schema of block devices.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hvmlite.backends.block.nbd import Loop, NbdError, NbdImage
from hvmlite.backends.process import HelperProcess
from hvmlite.errors import UserError

DAEMON = "qemu-storage-daemon"
_PACKAGE = "qemu-system-common"
_PATIENCE = 30.0
"""Seconds to open an image: a remote server may be slow."""
_NBD_PORT = 10809

Node = dict[str, Any]


def open_image(
    target: str, driver: str, loop: Loop, *, readonly: bool, remote: bool, snapshot: bool
) -> NbdImage:
    """Opens a path or an address with QEMU's `driver`; raises UserError.

    `snapshot`: what is written goes into a file of its own, which nobody sees again.
    """
    protocol = _remote(target) if remote else _local(target)
    node: Node = {"driver": driver, "file": protocol}
    folder = tempfile.mkdtemp(prefix="hvmlite-")
    try:
        if snapshot:
            node = _overlay(node, driver, Path(folder, "overlay"), target)
        node |= {
            "node-name": "disk",
            "read-only": readonly,
            "discard": "unmap",
            "detect-zeroes": "unmap",
        }
        image = _serve(node, Path(folder, "nbd"), target, loop, readonly=readonly)
        # Formats keep their tables in the daemon's memory until then.
        image.flush_at_end = not readonly and not snapshot
        return image
    finally:
        # Whoever has them open keeps them; nothing is left behind however we end.
        shutil.rmtree(folder, ignore_errors=True)


def _serve(node: Node, path: Path, target: str, loop: Loop, *, readonly: bool) -> NbdImage:
    writable = "off" if readonly else "on"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        process = HelperProcess(
            [
                DAEMON,
                "--blockdev",
                json.dumps(node),
                "--nbd-server",
                f"addr.type=fd,addr.str={listener.fileno()},max-connections=1",
                "--export",
                f"type=nbd,id=export,node-name=disk,name=disk,writable={writable}",
            ],
            _PACKAGE,
            [listener.fileno()],
        )
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_PATIENCE)
            connection.connect(str(path))
            # If it ends, so does the queue in which we wait to be served.
            listener.close()
            return NbdImage(connection, "disk", loop, process.close)
        except (NbdError, OSError) as error:
            connection.close()
            words = process.last_words()
            process.close()
            reason = words.rpartition(": --blockdev ")[2].rpartition("}: ")[2] or str(error)
            raise UserError(f"disk {target}: {reason}") from error
        except BaseException:
            connection.close()
            process.close()
            raise


def _local(path: str) -> Node:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise UserError(f"disk {path}: {error.strerror}") from error
    driver = "host_device" if stat.S_ISBLK(mode) else "file"
    return {"driver": driver, "filename": os.path.abspath(path), "discard": "unmap"}


def _remote(address: str) -> Node:
    try:
        parts = urlsplit(address)
        port = parts.port or _NBD_PORT
    except ValueError as error:
        raise UserError(f"disk {address}: {error}") from error
    if parts.scheme == "nbd":
        server: Node = {"type": "inet", "host": parts.hostname or "localhost", "port": str(port)}
        return {"driver": "nbd", "server": server, "export": parts.path.lstrip("/")}
    if parts.scheme == "nbd+unix":
        where = parse_qs(parts.query).get("socket", [""])[0]
        if not where:
            raise UserError(f"disk {address}: no socket: write nbd+unix:///EXPORT?socket=PATH")
        return {
            "driver": "nbd",
            "server": {"type": "unix", "path": where},
            "export": parts.path.lstrip("/"),
        }
    return {"driver": parts.scheme, "url": address}


def _overlay(base: Node, driver: str, path: Path, target: str) -> Node:
    """A new, empty qcow2 file over the image."""
    qemu_img = shutil.which("qemu-img")
    if qemu_img is None:
        raise UserError("qemu-img not found: install the package qemu-utils")
    # The lock that others take for writing does not keep us from looking at the size.
    argv = [qemu_img, "create", "-q", "-f", "qcow2", "-F", driver]
    argv += ["-b", f"json:{json.dumps(base)}", str(path)]
    try:
        made = subprocess.run(argv, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"disk {target}: no overlay could be made: {error}") from error
    if made.returncode:
        lines = made.stderr.strip().splitlines()
        raise UserError(f"disk {target}: no overlay could be made: {lines[-1] if lines else ''}")
    return {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": str(path)},
        "backing": base | {"read-only": True},
    }
