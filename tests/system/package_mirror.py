"""A Debian package repository made and served by a test: one small package, an index, a release."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SUITE = "hvmlite-test"
PACKAGE = "hvmlite-greeting"
GREETING = "a package from the host"


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: Any, requests: list[str], **keywords: Any) -> None:
        self._requests = requests
        super().__init__(*arguments, **keywords)

    def log_message(self, format: str, *args: Any) -> None:
        self._requests.append(format % args)


class PackageMirror:
    """Serves the repository from this host's loopback address while in a `with` statement.

    `payload` is a file that the package brings along.
    """

    def __init__(self, folder: Path, payload: bytes) -> None:
        self.requests: list[str] = []
        """One line for each, with its status."""
        make_repository(folder, payload)
        handler = partial(_Handler, directory=str(folder), requests=self.requests)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def source(self, host: str) -> str:
        """The line of sources.list for a guest that reaches this host's loopback as `host`."""
        return f"deb [trusted=yes] http://{host}:{self.port}/ {SUITE} main"


def make_repository(folder: Path, payload: bytes) -> None:
    """Writes a repository with one package."""
    pool = folder / "pool"
    pool.mkdir(parents=True)
    deb = pool / f"{PACKAGE}_1.0_all.deb"
    tree = folder / "tree"
    control = (
        f"Package: {PACKAGE}\nVersion: 1.0\nArchitecture: all\nSection: misc\nPriority: optional\n"
        "Maintainer: Nobody <nobody@localhost>\nDescription: what a test installs\n"
    )
    for name, content, mode in (
        ("DEBIAN/control", control.encode(), 0o644),
        ("DEBIAN/postinst", f"#!/bin/sh\ntouch /var/lib/{PACKAGE}\n".encode(), 0o755),
        ("usr/bin/greeting", f"#!/bin/sh\necho '{GREETING}'\n".encode(), 0o755),
        ("usr/share/hvmlite/payload", payload, 0o644),
    ):
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        path.write_bytes(content)
        path.chmod(mode)
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(deb)],
        check=True,
        capture_output=True,
    )
    data = deb.read_bytes()
    packages = (
        f"{control}Filename: {deb.relative_to(folder)}\nSize: {len(data)}\n"
        f"SHA256: {hashlib.sha256(data).hexdigest()}\n"
    ).encode()
    suite = folder / "dists" / SUITE
    index = suite / "main/binary-amd64/Packages"
    index.parent.mkdir(parents=True)
    index.write_bytes(packages)
    (suite / "Release").write_text(
        f"Suite: {SUITE}\nCodename: {SUITE}\nComponents: main\nArchitectures: amd64\n"
        "Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n"
        f" {hashlib.sha256(packages).hexdigest()} {len(packages)} {index.relative_to(suite)}\n"
    )
