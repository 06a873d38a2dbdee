"""A Debian file system made by debootstrap, from the host's own package source.

Neither the host's mounts, processes nor /etc change: root works in namespaces, what is mounted or
started there ends with them, and they end with us. Where we are not root, or may have none of them,
mmdebstrap makes much the same: debootstrap itself can only pretend to be root by fakechroot, which
loses units of systemd or libraries of the initramfs on the way.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hvmlite.testing.apt import (
    KEYRING,
    FetchError,
    acquire_options,
    host_suites,
    proxies,
    release_codename,
)
from hvmlite.testing.tools import run

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_SCHEMES = ("http:", "https:", "file:")
"""What debootstrap can fetch by."""
_NAMESPACES = ("unshare", "--mount", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")
_OF_MMDEBSTRAP = ("etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap")
_LOG_TOLD = 2000
_FINISH = 'set -e; apt-get clean; rm -rf /var/lib/apt/lists/* "$@"; chpasswd'


@dataclass(frozen=True)
class Recipe:
    """What is in the file system besides debootstrap's base. Paths are relative to its root."""

    packages: tuple[str, ...]
    early: Mapping[str, str]
    """Texts of files that are there before packages are configured."""
    late: Mapping[str, str]
    """Texts of files that are written last."""
    removed: tuple[str, ...]
    password: str
    """Root's."""


def bootstrap(scratch: Path, recipe: Recipe) -> Path:
    """Make the file system below ``scratch``; return its archive (tar).

    Raises:
        FetchError: a tool or a package source is missing, or making it failed.
    """
    archive = scratch / "root.tar"
    if _may_have_namespaces():
        _debootstrap(scratch, recipe, archive)
    else:
        _mmdebstrap(scratch, recipe, archive)
    return archive


def _may_have_namespaces() -> bool:
    if os.geteuid() != 0:
        return False
    try:
        run(*_NAMESPACES, "true")
    except FetchError:
        # A container's root may not.
        return False
    return True


def _debootstrap(scratch: Path, recipe: Recipe, archive: Path) -> None:
    tree = scratch / "tree"
    env = {"PATH": _PATH, "LC_ALL": "C", "HOME": str(scratch), **proxies()}
    try:
        run(
            *(*_NAMESPACES, "debootstrap", "--foreign"),
            *("--force-check-gpg", f"--keyring={KEYRING}"),
            f"--include={','.join(recipe.packages)}",
            *(release_codename(), tree, _mirror()),
            env=env,
        )
        _write(tree, recipe.early)
        run(
            *(*_NAMESPACES, "debootstrap", "--second-stage", f"--second-stage-target={tree}"),
            env={**env, "DEBOOTSTRAP_DIR": f"{tree}/debootstrap"},
        )
    except FetchError as error:
        log = tree / "debootstrap/debootstrap.log"
        told = log.read_text(errors="backslashreplace")[-_LOG_TOLD:] if log.is_file() else ""
        raise FetchError(f"{error}\n{told}".rstrip()) from error
    chroot = (*_NAMESPACES, "chroot", tree)
    removed = (f"/{name}" for name in recipe.removed)
    run(*chroot, "sh", "-c", _FINISH, "sh", *removed, data=f"root:{recipe.password}\n", env=env)
    _write(tree, recipe.late)
    run("tar", "-C", tree, "-c", "-f", archive, "--numeric-owner", ".")


def _mmdebstrap(scratch: Path, recipe: Recipe, archive: Path) -> None:
    early, late = scratch / "early", scratch / "late"
    for folder, files in ((early, recipe.early), (late, recipe.late)):
        folder.mkdir()
        _write(folder, files)
    apt_options = scratch / "apt.conf"
    apt_options.write_text("".join(f"{line}\n" for line in acquire_options()))
    removed = " ".join(f'"$1/{name}"' for name in (*_OF_MMDEBSTRAP, *recipe.removed))
    sources = f"deb [signed-by={KEYRING}] {_mirror()} {release_codename()} main\n"
    run(
        *("mmdebstrap", "--quiet", "--variant=important", "--format=tar"),
        f"--include={','.join(recipe.packages)}",
        f"--aptopt={apt_options}",
        # Its own idea of machine-id is the empty file.
        "--skip=cleanup/reproducible",
        f"--essential-hook=sync-in {early} /",
        f'--customize-hook=echo root:{recipe.password} | chroot "$1" chpasswd',
        f"--customize-hook=sync-in {late} /",
        f"--customize-hook=rm -f {removed}",
        *(release_codename(), archive, "-"),
        data=sources,
    )


def _mirror() -> str:
    """Return the first source of the release itself that debootstrap can use."""
    uris = [suite.uri for suite in host_suites() if "-" not in suite.name]
    for uri in uris:
        if uri.startswith(_SCHEMES):
            return uri
    raise FetchError(f"debootstrap can use none of the sources of {release_codename()}: {uris}")


def _write(tree: Path, files: Mapping[str, str]) -> None:
    root = tree.resolve()
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # An absolute link would lead to the host's own files.
        if not path.parent.resolve().is_relative_to(root):
            raise FetchError(f"/{name}: its folder is a link out of the tree")
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o644)
