"""Proves what debootstrap is told and that nothing is written outside its tree.

Cannot see what it makes of that: tests/system/test_debian_full.py boots it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hvmlite.testing import debootstrap
from hvmlite.testing.apt import FetchError, Suite


@pytest.fixture
def trixie(monkeypatch: pytest.MonkeyPatch) -> list[Suite]:
    suites: list[Suite] = []
    monkeypatch.setattr(debootstrap, "release_codename", lambda: "trixie")
    monkeypatch.setattr(debootstrap, "host_suites", lambda: suites)
    return suites


def test_mirror(trixie: list[Suite]) -> None:
    trixie += [
        Suite("http://mirror.test/sec/", "trixie-security"),
        Suite("cdrom:[Debian]/", "trixie"),
        Suite("http://mirror.test/debian/", "trixie"),
    ]
    assert debootstrap._mirror() == "http://mirror.test/debian/"


def test_no_mirror_for_debootstrap(trixie: list[Suite]) -> None:
    trixie.append(Suite("cdrom:[Debian]/", "trixie"))
    with pytest.raises(FetchError, match="can use none of the sources of trixie"):
        debootstrap._mirror()


def test_files_replace_links_and_stay_in_the_tree(tmp_path: Path) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    (tree / "etc").mkdir(parents=True)
    outside.mkdir()
    (outside / "file").write_text("host")
    (tree / "etc/file").symlink_to(outside / "file")
    debootstrap._write(tree, {"etc/file": "guest", "new/folder/file": "guest"})
    assert (tree / "etc/file").read_text() == (tree / "new/folder/file").read_text() == "guest"
    (tree / "link").symlink_to(outside)
    with pytest.raises(FetchError, match="^/link/file: its folder is a link out of the tree$"):
        debootstrap._write(tree, {"link/file": "guest"})
    assert (outside / "file").read_text() == "host"


def test_a_failure_shows_the_log(
    trixie: list[Suite], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trixie.append(Suite("http://mirror.test/debian/", "trixie"))
    monkeypatch.setattr(debootstrap, "_may_have_namespaces", lambda: True)
    monkeypatch.setattr(debootstrap, "proxies", dict)

    def run(*_argv: object, **_options: object) -> None:
        (tmp_path / "tree/debootstrap").mkdir(parents=True)
        (tmp_path / "tree/debootstrap/debootstrap.log").write_text("the reason\n")
        raise FetchError("unshare: exit status 1")

    monkeypatch.setattr(debootstrap, "run", run)
    recipe = debootstrap.Recipe((), {}, {}, (), "secret")
    with pytest.raises(FetchError, match="^unshare: exit status 1\nthe reason$"):
        debootstrap.bootstrap(tmp_path, recipe)
