"""Runs the host's apt for what tests fetch; changes nothing of it.

Sources are those that the host has: no address is written here. Where the host's package lists are
absent or too old, and for suites the host does not use, apt runs on lists in a folder of ours.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hvmlite.errors import HvmliteError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
APT_TIMEOUT = 600


class FetchError(HvmliteError):
    """Something cannot be fetched or made from it; the message is for the user."""


@dataclass(frozen=True)
class Apt:
    """One configuration of apt: the host's, or a private one in a folder of ours."""

    config: Path | None = None

    def run(self, *argv: str, cwd: Path | None = None) -> str:
        """Run one apt command and return its output; FetchError carries its last error line."""
        env = dict(os.environ, LC_ALL="C")
        if self.config is not None:
            env["APT_CONFIG"] = str(self.config)
        command = list(argv)
        if os.geteuid() == 0:
            # apt would drop to a user of its own, who cannot write to our folder.
            command[1:1] = ["-o", "APT::Sandbox::User=root"]
        try:
            done = subprocess.run(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=APT_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FetchError(str(error)) from error
        if done.returncode != 0:
            reasons = [line for line in done.stderr.splitlines() if line.startswith("E:")]
            reason = reasons[-1] if reasons else f"exit status {done.returncode}"
            raise FetchError(f"{' '.join(argv)}: {reason}")
        return done.stdout


@dataclass(frozen=True)
class Suite:
    """One suite with a main component among the host's sources."""

    uri: str
    name: str


def release_codename() -> str:
    """Return this Debian release's codename."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME")
    if not codename:
        raise FetchError("/etc/os-release names no release")
    return codename


def host_suites() -> list[Suite]:
    """Return this Debian release's own suites: the release, its updates and security fixes."""
    codename = release_codename()
    # Named in the sources by codename or by a class, of which "stable" is one.
    own = re.compile(rf"({codename}|(old)*stable)(-updates|-security)?")
    # What an update would fetch: known without lists, and without root.
    uris = Apt().run("apt-get", "update", "--print-uris")
    found = re.findall(r"^'(\S+/)dists/(\S+)/main/binary-amd64/Packages", uris, re.MULTILINE)
    suites = [Suite(uri, name) for uri, name in dict.fromkeys(found) if own.fullmatch(name)]
    if not suites:
        raise FetchError(f"no source of {codename} is configured")
    return suites


def backports(suites: Sequence[Suite]) -> list[Suite]:
    """Return where the backports of this release would be, going by where the release is."""
    name = f"{release_codename()}-backports"
    return [Suite(suite.uri, name) for suite in suites if "-" not in suite.name]


def acquire_options() -> list[str]:
    """Return how the host's apt fetches, as lines of apt.conf: its proxy and time limits."""
    return [
        line
        for line in Apt().run("apt-config", "dump").splitlines()
        if line.startswith("Acquire::") and not line.startswith("Acquire::IndexTargets")
    ]


def proxies() -> dict[str, str]:
    """Return the proxies of the host's apt as the environment variables that other clients read."""
    names = ("http_proxy", "https_proxy", "no_proxy")
    found = {name: os.environ[name] for name in names if name in os.environ}
    options = "\n".join(acquire_options())
    # apt takes the one for http where https has none.
    for scheme, takers in (("http", names[:2]), ("https", names[1:2])):
        match = re.search(rf'^Acquire::{scheme}::Proxy "(.+)";$', options, re.MULTILINE)
        if match:
            found.update(dict.fromkeys(takers, match[1]))
    return {name: value for name, value in found.items() if value != "DIRECT"}


def private_apt(folder: Path, suites: Sequence[Suite]) -> Apt:
    """Return an apt with lists of its own for ``suites``, as far as they are to be had."""
    for sub in ("state/lists/partial", "cache/archives/partial"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    signed_by = f"Signed-By: {KEYRING}\n" if KEYRING.exists() else ""
    sources = folder / "fetch.sources"
    sources.write_text(
        "\n".join(
            f"Types: deb\nURIs: {suite.uri}\nSuites: {suite.name}\nComponents: main\n{signed_by}"
            for suite in suites
        )
    )
    config = folder / "apt.conf"
    config.write_text(
        "\n".join(
            [
                'Dir::Etc::parts "/dev/null";',
                'Dir::Etc::main "/dev/null";',
                f'Dir::Etc::sourcelist "{sources}";',
                'Dir::Etc::sourceparts "/dev/null";',
                'Dir::Etc::preferencesparts "/dev/null";',
                f'Dir::State "{folder}/state";',
                'Dir::State::status "/var/lib/dpkg/status";',
                f'Dir::Cache "{folder}/cache";',
                'Acquire::Languages "none";',
                # The host's hooks are not kept: they would touch its caches.
                *acquire_options(),
                "",
            ]
        )
    )
    apt = Apt(config)
    # One suite that cannot be had fails the update, yet another may hold what we look for.
    try:
        apt.run("apt-get", "update")
    except FetchError as error:
        print(f"setup: {error}", file=sys.stderr)
    return apt
