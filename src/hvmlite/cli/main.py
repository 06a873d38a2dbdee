"""The `hvmlite` command: reads the command line and hands over to one module per verb.

Every word of ours goes to stderr; stdout is the guest's console, or what a verb was asked to print.
Exit status: 0 done, 1 our own failure, 2 bad usage or bad input, 3 the guest crashed, 4 time is up.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import ModuleType
from typing import NoReturn

from hvmlite import __version__
from hvmlite.errors import HvmliteError, UserError

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_CRASH = 3
EXIT_TIMEOUT = 4

DESCRIPTION = "Run Xen PVH guests anywhere: no Xen host, no root, no hardware virtualization."


DEVICE_OPTIONS: dict[str, tuple[str, str]] = {
    "disk": ("DISK", "attach a disk, as xl.cfg writes it: FILE,raw,xvda,rw (docs/disks.md)"),
    "channel": (
        "name=NAME,connection=pty|socket|file[,path=PATH][,log=FILE]",
        "a further console, /dev/hvc1 and so on in Linux",
    ),
    "p9": ("tag=TAG,path=FOLDER[,readonly]", "share a folder: mount -t 9p -o trans=xen TAG /mnt"),
    "vif": ("SPEC", "attach a network interface: key=value,... as xl has it, or type=user"),
}
"""Options of `run` that attach PV devices: metavar and help; see toolstack/devices/spec.py."""


class _AddDevice(argparse.Action):
    """Keeps the devices of all such options in the order given, as (option, text)."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        option = (option_string or "").removeprefix("--")
        namespace.devices = [*namespace.devices, (option, values)]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, like every other error of ours."""

    def error(self, message: str) -> NoReturn:
        complain(_one_line(f"{message} (see {self.prog} --help)"))
        sys.exit(EXIT_USAGE)


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = _Parser(prog="hvmlite", description=DESCRIPTION)
    top.add_argument("--version", action="version", version=f"hvmlite {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_run(verbs.add_parser("run", help="boot a kernel and attach to its console"))
    check = verbs.add_parser("check", help="what a kernel declares, and whether it can boot as PVH")
    check.add_argument("kernel", metavar="KERNEL", help="ELF image or bzImage")
    check.add_argument("--json", action="store_true", help="print a JSON object")
    doctor = verbs.add_parser(
        "doctor", help="what this machine offers, what is missing, how to install it"
    )
    doctor.add_argument("--json", action="store_true", help="print a JSON object")
    return top


def _add_run(run: argparse.ArgumentParser) -> None:
    run.description = (
        "Boots KERNEL as a Xen PVH guest.  The guest's console is on stdin and stdout; on a "
        "terminal, Ctrl-] leaves it and ends the guest."
    )
    run.epilog = (
        "exit status: 0 guest powered off (or rebooted under --on-reboot exit), 1 our own failure, "
        "2 bad usage or bad input, 3 guest crashed, 4 time limit reached"
    )
    add = run.add_argument
    add("kernel", metavar="KERNEL", help="ELF image (vmlinux, unikernel) or bzImage")
    add("--ramdisk", metavar="FILE", help="first boot module (Linux: the initramfs)")
    add("--module", metavar="FILE", action="append", default=[], help="a further boot module")
    add("--cmdline", metavar="STRING", default="", help="the kernel's command line")
    add("--name", metavar="NAME", default="", help="the domain's name (default: the kernel's)")
    add("--memory", metavar="SIZE", default="512M", help="512M, 2G; a bare number is MiB")
    add("--vcpus", metavar="N", type=int, default=1, help="virtual CPUs (default 1)")
    add("--lapic", action=argparse.BooleanOptionalAction, default=True, help="local APICs")
    add("--acpi", action=argparse.BooleanOptionalAction, default=True, help="ACPI tables")
    add("--xen-version", metavar="X.Y", default="4.17", help="the Xen release to present")
    add("--engine", choices=("auto", "tcg"), default="auto", help="what runs the guest's code")
    add(
        "--xenstore-socket",
        metavar="PATH",
        help="let xenstore-ls and the like connect here (XENSTORED_PATH=PATH); "
        "only this user may, with all rights",
    )
    add("--timeout", metavar="SECONDS", type=float, help="end the guest after this time")
    add(
        "--timer-slack",
        metavar="MS",
        type=float,
        default=10,
        help="how late a busy guest's next timer tick may be (default 10; 0: never late)",
    )
    add(
        "--on-reboot",
        choices=("restart", "exit"),
        default="restart",
        help="what a reboot of the guest does (default: restart)",
    )
    # Also while there is no such option.
    run.set_defaults(devices=[])
    add(
        "--console",
        metavar="connection=pty|socket|file[,path=PATH]",
        help="connect the console to this instead of stdin and stdout",
    )
    add("--console-log", metavar="FILE", help="append the console's output to FILE as well")
    for option, (metavar, text) in DEVICE_OPTIONS.items():
        add(
            f"--{option}",
            metavar=metavar,
            action=_AddDevice,
            dest="devices",
            help=text,
        )
    add(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="say on stderr how far reading and unpacking have come (default: on a terminal)",
    )
    add("--verbose", action="store_true", help="say on stderr what happened behind the console")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = parser().parse_args(arguments)
    try:
        status: int = _load(options.verb).execute(options)
        sys.stdout.flush()
    except UserError as error:
        complain(_one_line(str(error)))
        return EXIT_USAGE
    except HvmliteError as error:
        complain(_one_line(str(error)))
        return EXIT_FAILURE
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except KeyboardInterrupt:
        complain("interrupted")
        return EXIT_FAILURE
    return status


def _load(verb: str) -> ModuleType:
    """Imports a verb's module and all it needs."""
    with quiet_collector():
        return import_module(f"hvmlite.cli.{verb}")


@contextlib.contextmanager
def quiet_collector() -> Iterator[None]:
    """For imports: what they make stays to the end.

    The garbage collector is kept from looking at it, which it would do many times on the way and
    then again and again while a guest runs.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def complain(text: str) -> None:
    """Says something to the user."""
    print(f"hvmlite: {text}", file=sys.stderr)


def _one_line(text: str) -> str:
    """The text without anything that would end the line or steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _open_standard_streams() -> None:
    """Opens /dev/null where a caller has closed stdin, stdout or stderr.

    Otherwise the next file opened would take that number, and what is meant for the terminal would
    end in it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The system gives the lowest free number, which is the one that is missing.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def run() -> None:
    """Entry point of the installed script."""
    _open_standard_streams()
    status = main()
    # All is closed and written by now: to take the interpreter apart, object by object, would take
    # as long as a small guest runs.
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
