"""The fixtures of the system tests: `uvm` boots a guest of one's own, `debian` is one for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hvmlite import DomainConfig
from hvmlite.testing import assets
from hvmlite.testing.assets import AssetMissingError
from hvmlite.testing.vmlinux import vmlinux

from .guests import QUIET, Guest, Shell, prompt_ramdisk, shell_ramdisk
from .store_tools import store_tools

Boot = Callable[..., Guest]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.engine)


def _asset(find: Callable[[str], Path], name: str = "debian") -> Path:
    try:
        return find(name)
    except AssetMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def linux() -> Path:
    """The ELF file of Debian's kernel: the fastest to load."""
    return _asset(vmlinux)


@pytest.fixture(scope="session")
def bzimage() -> Path:
    """Debian's kernel as it is packaged."""
    return _asset(assets.kernel)


@pytest.fixture(scope="session")
def shell_cpio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ramdisk whose guest takes commands from its console."""
    path = tmp_path_factory.mktemp("shell") / "initrd.cpio"
    path.write_bytes(shell_ramdisk(store_tools()))
    return path


@pytest.fixture(scope="session")
def prompt_cpio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ramdisk with a shell for people."""
    path = tmp_path_factory.mktemp("prompt") / "initrd.cpio"
    path.write_bytes(prompt_ramdisk())
    return path


@pytest.fixture
def uvm() -> Iterator[Boot]:
    """Boots guests: `uvm(kernel, shell=True, **config)` with the fields of DomainConfig.

    Each has a host of its own and ends with the test.
    """
    guests: list[Guest] = []

    def boot(kernel: Path, *, shell: bool = False, **config: Any) -> Guest:
        made = (Shell if shell else Guest)(DomainConfig(kernel=kernel, **config))
        guests.append(made)
        if isinstance(made, Shell):
            made.ready()
        return made

    yield boot
    for guest in guests:
        guest.close()


@pytest.fixture(scope="session")
def debian(linux: Path, shell_cpio: Path) -> Iterator[Shell]:
    """One Debian guest for all tests that only look at it or leave no trace in it."""
    guest = Shell(DomainConfig(kernel=linux, ramdisk=shell_cpio, cmdline=QUIET, memory=512 << 20))
    try:
        guest.ready()
        yield guest
    finally:
        guest.close()
