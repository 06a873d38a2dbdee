"""Builds the tiny test guests with gcc and ld: one ELF for a guest and a variant.

Results are cached under build/guests by the hash of everything that goes into them, and put in
place by a rename, so that any number of builders may run at once. Usable from the command line:
`python tests/guest/build.py hello hvm64` prints the path of the ELF.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

GUEST_DIR = Path(__file__).resolve().parent
FRAMEWORK_DIR = GUEST_DIR / "framework"
CACHE_DIR = GUEST_DIR.parents[1] / "build" / "guests"
XEN_HEADERS = Path("/usr/include/xen/xen.h")


class GuestToolsMissingError(Exception):
    """The machine lacks what a guest needs to be built; the message says what to install."""


class GuestBuildError(Exception):
    """The compiler or the linker refused a guest; the message is its output."""


@dataclass(frozen=True)
class Variant:
    """One CPU mode that a guest is built for."""

    name: str
    bits: int
    paging: int

    @property
    def flags(self) -> tuple[str, ...]:
        flags = (
            f"-m{self.bits}",
            "-std=gnu11 -O2 -ffreestanding -fno-pic -fno-pie -fno-stack-protector",
            "-fcf-protection=none -fno-asynchronous-unwind-tables -fomit-frame-pointer",
            "-ffunction-sections -fdata-sections -mgeneral-regs-only -mno-red-zone",
            "-Wall -Wextra",
            "-D__XEN_INTERFACE_VERSION__=__XEN_LATEST_INTERFACE_VERSION__",
            f"-DCONFIG_PAGING={self.paging}",
            f'-DGUEST_VARIANT="{self.name}"',
        )
        return tuple(word for part in flags for word in part.split())


VARIANTS = {
    v.name: v
    for v in (
        Variant("hvm64", 64, 4),
        Variant("hvm32pae", 32, 3),
        Variant("hvm32pse", 32, 2),
        Variant("hvm32", 32, 0),
    )
}


@dataclass(frozen=True)
class Guest:
    """A test guest's source and what the leading comment of it asks of the harness.

    The comment may hold these lines, each once unless said otherwise:
      Variants: names          only these variants (default: all)
      Options: words           further options for `hvmlite run`
      Expect: regex            a console line that must match, may be repeated
      Driven by: module        not for the harness; that test runs it
      Sources: pattern         further files, relative to this folder; the *.c are compiled
    """

    name: str
    variants: tuple[str, ...] = tuple(VARIANTS)
    options: tuple[str, ...] = ()
    expect: tuple[str, ...] = ()
    driven_by: str = ""
    source: Path = field(default=GUEST_DIR, compare=False)
    more_sources: tuple[Path, ...] = field(default=(), compare=False)


def _parse(source: Path) -> Guest:
    text = source.read_text()
    comment = text[: text.find("*/")] if text.startswith("/*") else ""
    keys = ("Variants", "Options", "Expect", "Driven by", "Sources")
    found: dict[str, list[str]] = {key: [] for key in keys}
    for line in comment.splitlines():
        key, colon, value = line.lstrip(" *").partition(": ")
        if colon and key in found:
            found[key].append(value.strip())
    variants = tuple(" ".join(found["Variants"]).split()) or tuple(VARIANTS)
    if unknown := set(variants) - set(VARIANTS):
        raise ValueError(f"{source.name}: unknown variants {sorted(unknown)}")
    return Guest(
        name=source.stem,
        variants=variants,
        options=tuple(shlex.split(" ".join(found["Options"]))),
        expect=tuple(found["Expect"]),
        driven_by=" ".join(found["Driven by"]),
        source=source,
        more_sources=tuple(p for each in found["Sources"] for p in sorted(GUEST_DIR.glob(each))),
    )


def guests() -> dict[str, Guest]:
    """Every test guest by name, read from the sources beside this file."""
    return {path.stem: _parse(path) for path in sorted(GUEST_DIR.glob("*.c"))}


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GuestBuildError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def _compiler() -> str:
    return os.environ.get("CC", "gcc")


@cache
def _tool_version(bits: int) -> str:
    """The compiler's version line, once it is known to be able to build for that many bits."""
    compiler = _compiler()
    if shutil.which(compiler) is None:
        raise GuestToolsMissingError(f"no {compiler} on this machine: guests cannot be built")
    if not XEN_HEADERS.exists():
        raise GuestToolsMissingError(f"no {XEN_HEADERS}: install Xen's public headers (libxen-dev)")
    with tempfile.TemporaryDirectory() as scratch:
        probe = Path(scratch, "probe.c")
        probe.write_text("#include <stdint.h>\n#include <xen/xen.h>\nvoid _start(void) {}\n")
        flags = list(VARIANTS["hvm64" if bits == 64 else "hvm32"].flags)
        try:
            _run([compiler, *flags, "-nostdlib", "-static", str(probe), "-o", f"{scratch}/probe"])
        except GuestBuildError as exc:
            raise GuestToolsMissingError(
                f"{compiler} cannot build -m{bits} programs: {exc}"
            ) from exc
    return _run([compiler, "--version"]).partition("\n")[0]


def _digest(variant: Variant, sources: list[Path]) -> str:
    digest = hashlib.sha256(_tool_version(variant.bits).encode())
    digest.update("\0".join(variant.flags).encode())
    for path in [*sorted(FRAMEWORK_DIR.glob("*")), *sources]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _install(scratch: Path, target: Path) -> Path:
    """Moves a finished file or folder into place; a builder that came first wins."""
    try:
        os.replace(scratch, target)
    except OSError:
        if not target.exists():
            raise
    return target


def _framework_objects(variant: Variant, cache_dir: Path) -> list[Path]:
    target = cache_dir / f"framework-{variant.name}-{_digest(variant, [])}"
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
            objects = Path(scratch, "objects")
            objects.mkdir()
            for source in sorted([*FRAMEWORK_DIR.glob("*.c"), *FRAMEWORK_DIR.glob("*.S")]):
                out = objects / f"{source.name}.o"
                _run([_compiler(), *variant.flags, "-c", str(source), "-o", str(out)])
            _install(objects, target)
    return sorted(target.glob("*.o"))


def build_guest(name: str, variant: str = "hvm64", cache_dir: Path | None = None) -> Path:
    """Builds a guest and returns the path of its ELF.

    Raises GuestToolsMissingError if this machine cannot build it, GuestBuildError if the source is
    wrong, and KeyError for a guest or a variant that does not exist.
    """
    mode = VARIANTS[variant]
    guest = guests()[name]
    sources = [guest.source, *(p for p in guest.more_sources if p.suffix == ".c")]
    cache_dir = cache_dir or CACHE_DIR
    cache_dir.mkdir(parents=True, exist_ok=True)
    target = (
        cache_dir / f"{name}-{variant}-{_digest(mode, [guest.source, *guest.more_sources])}.elf"
    )
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
        out = Path(scratch, "guest.elf")
        link = "-nostdlib -static -Wl,--gc-sections -Wl,--build-id=none -Wl,-z,max-page-size=4096"
        _run(
            [
                *(_compiler(), *mode.flags, "-I", str(FRAMEWORK_DIR), *link.split()),
                *("-T", str(FRAMEWORK_DIR / "link.ld"), "-o", str(out)),
                *map(str, sources),
                *map(str, _framework_objects(mode, cache_dir)),
            ]
        )
        return _install(out, target)


def main() -> int:
    if len(sys.argv) not in {2, 3}:
        print("usage: build.py GUEST [VARIANT]", file=sys.stderr)
        return 2
    try:
        print(build_guest(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else "hvm64"))
    except (GuestToolsMissingError, GuestBuildError, KeyError) as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
