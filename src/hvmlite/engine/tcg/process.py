"""Starts the QEMU process of the embedded engine and sees to it that it never outlives us.

Facts: engine.md of the project's documents for the command line; prctl(2) for PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Callable

from hvmlite.engine.memory import MachineMemory
from hvmlite.errors import EngineError

QEMU_NAMES = ("qemu-system-x86_64",)
ENVIRONMENT = "HVMLITE_QEMU"
KNOWN_GOOD = "7.2, 10.0 and 11.1 are known to work; Debian 12 has 7.2, its backports have 10.0"
INSTALL_HINT = "install the package qemu-system-x86 (7.2 or newer)"

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def _which(name: str) -> str | None:
    """The executable of that name in PATH, or at that path (shutil.which: half of a start-up)."""
    for directory in ("",) if os.path.dirname(name) else os.get_exec_path():
        path = os.path.join(directory, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def find_qemu() -> str:
    """Returns the path of the QEMU binary: $HVMLITE_QEMU, else the first one in PATH."""
    wanted = os.environ.get(ENVIRONMENT)
    for name in (wanted,) if wanted else QEMU_NAMES:
        path = _which(name)
        if path:
            return path
    missing = f"{wanted} (from ${ENVIRONMENT})" if wanted else QEMU_NAMES[0]
    raise EngineError(f"{missing} not found: {INSTALL_HINT}")


def qemu_version(path: str) -> str:
    """Returns the version that `path` prints, such as "7.2.22"."""
    try:
        result = subprocess.run(
            [path, "--version"],
            capture_output=True, text=True, errors="replace", timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(f"{path} cannot be run: {error}") from error
    words = result.stdout.split()
    try:
        return words[words.index("version") + 1]
    except (ValueError, IndexError):
        raise EngineError(f"{path} does not look like QEMU: {result.stdout[:60]!r}") from None


def _die_with_parent(parent: int) -> Callable[[], None]:
    """For the child between fork and exec: be killed when the parent's thread ends."""
    prctl, getppid, leave = _libc.prctl, os.getppid, os._exit
    kill = int(signal.SIGKILL)

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, kill, 0, 0, 0)
        # The parent may have died before the request took effect.
        if getppid() != parent:
            leave(1)

    return prepare


class QemuProcess:
    """One QEMU with `cpus` TCG vCPUs over a machine memory.

    Start it from a thread that lives as long as it is needed: the kernel kills it with that thread.
    `doorbell` becomes readable when a stub rings; `channel` carries datagrams to the DMA device.
    """

    def __init__(self, memory: MachineMemory, rom: bytes, cpus: int, cpu_model: str) -> None:
        path = find_qemu()
        rom_fd = os.memfd_create("hvmlite-rom", os.MFD_CLOEXEC)
        self._log_fd = os.memfd_create("hvmlite-qemu-log", os.MFD_CLOEXEC)
        self.doorbell, bell = socket.socketpair()
        self.channel, net = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.doorbell.setblocking(False)
        self.channel.setblocking(False)
        try:
            os.write(rom_fd, rom)
            arguments = [
                path,
                "-M", "microvm,memory-backend=ram,pic=off,pit=off,rtc=off,isa-serial=off,"
                "auto-kernel-cmdline=off,x-option-roms=off,acpi=off",
                "-accel", "tcg,thread=multi",
                "-cpu", cpu_model,
                # With one possible CPU, TCG turns locked instructions into plain loads and stores:
                # the guest's updates and ours of the same word would overwrite each other.
                "-smp", f"{cpus},maxcpus={cpus + 1},sockets=1,cores={cpus + 1},threads=1",
                "-m", f"{memory.size >> 20}M",
                "-object", f"memory-backend-file,id=ram,size={memory.size},"
                f"mem-path=/proc/self/fd/{memory.fd},share=on",
                "-bios", f"/proc/self/fd/{rom_fd}",
                "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                "-chardev", f"socket,id=bell,fd={bell.fileno()}",
                "-device", "isa-debugcon,iobase=0xe9,chardev=bell",
                "-global", "virtio-mmio.force-legacy=false",
                "-netdev", f"dgram,id=dma,local.type=fd,local.str={net.fileno()}",
                "-device", "virtio-net-device,netdev=dma,mrg_rxbuf=off",
            ]  # fmt: skip
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=self._log_fd,
                stderr=self._log_fd,
                pass_fds=(memory.fd, rom_fd, bell.fileno(), net.fileno()),
                # Only prctl and getppid, loaded beforehand: no lock can be taken in the child.
                preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509
                process_group=0,
            )
        except OSError as error:
            self.doorbell.close()
            self.channel.close()
            os.close(self._log_fd)
            raise EngineError(f"cannot start {path}: {error}") from error
        finally:
            bell.close()
            net.close()
            os.close(rom_fd)
        self.path = path
        self.pid = self._process.pid

    def check_alive(self) -> None:
        """Raises EngineError with QEMU's last words if the process has ended."""
        status = self._process.poll()
        if status is not None:
            os.lseek(self._log_fd, 0, os.SEEK_SET)
            words = os.read(self._log_fd, 65536).decode(errors="replace").strip()
            last = words.splitlines()[-1] if words else "it printed nothing"
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            raise EngineError(f"QEMU ended {how}: {last}")

    def close(self) -> None:
        """Kills and reaps the process."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1
            self.doorbell.close()
            self.channel.close()
