"""A Debian file system made by debootstrap, from the host's own package source.

Neither the host's mounts, processes nor /etc change. Root works in mount and PID namespaces of its
own: what is mounted or started in them ends with them, and they end with us. Others, and root where
it may have no namespaces, use debootstrap's variant for fakechroot, which needs no rights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hvmlite.testing.apt import (
    KEYRING,
    FetchError,
    host_suites,
    proxies,
    release_codename,
)
from hvmlite.testing.tools import run

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_SCHEMES = ("http:", "https:", "file:")
"""What debootstrap can fetch by."""
_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_LOG_TOLD = 2000
# The fakechroot variant puts programs of its own in the place of two that need a real root.
_FINISH = """set -e
for file in /sbin/ldconfig /usr/bin/ldd; do
    if [ -e "$file.REAL" ]; then
        rm "$file"
        dpkg-divert --quiet --package fakechroot --rename --remove "$file"
    fi
done
apt-get clean
rm -rf /var/lib/apt/lists/* "$@"
chpasswd
"""


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
    """Make the file system below ``scratch``; return its archive (tar), which lacks /dev and /proc.

    Raises:
        FetchError: a tool or a package source is missing, or making it failed.
    """
    tree, archive = scratch / "tree", scratch / "root.tar"
    inside, variant = _enclosure(scratch)
    env = {"PATH": _PATH, "LC_ALL": "C", "HOME": str(scratch), **proxies()}
    try:
        run(
            *(*inside, "debootstrap", "--foreign", *variant),
            *("--force-check-gpg", f"--keyring={KEYRING}"),
            f"--include={','.join(recipe.packages)}",
            *(release_codename(), tree, _mirror()),
            env=env,
        )
        _write(tree, recipe.early)
        run(
            *(*inside, "debootstrap", "--second-stage", f"--second-stage-target={tree}"),
            env={**env, "DEBOOTSTRAP_DIR": f"{tree}/debootstrap"},
        )
    except FetchError as error:
        log = tree / "debootstrap/debootstrap.log"
        told = log.read_text(errors="backslashreplace")[-_LOG_TOLD:] if log.is_file() else ""
        raise FetchError(f"{error}\n{told}".rstrip()) from error
    chroot = (*inside, "chroot", tree)
    removed = (f"/{name}" for name in recipe.removed)
    run(*chroot, "sh", "-c", _FINISH, "sh", *removed, data=f"root:{recipe.password}\n", env=env)
    _write(tree, recipe.late)
    # From within: fakechroot writes absolute links with its own root before them.
    run(
        *(*chroot, "tar", "-C", "/", "-c", "--numeric-owner", "--xattrs", "--xattrs-include=*"),
        *("--anchored", "--exclude=./dev", "--exclude=./proc", "."),
        env=env,
        output=archive,
    )
    return archive


def _enclosure(scratch: Path) -> tuple[tuple[str | Path, ...], tuple[str, ...]]:
    """Return what makes a command root of its tree, and debootstrap's option for that."""
    if os.geteuid() == 0:
        try:
            run(*_NAMESPACES, "true")
        except FetchError:
            # A container's root may not.
            pass
        else:
            return _NAMESPACES, ()
    # Who owns what, from one command to the next.
    owners = scratch / "owners"
    owners.touch()
    fake = ("fakechroot", "fakeroot", "-i", owners, "-s", owners, "--")
    return fake, ("--variant=fakechroot",)


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
