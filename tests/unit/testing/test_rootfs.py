"""Proves that disk images hold what they should and that damage to a file system is seen.

Cannot see whether the Debian on the image boots: tests/system/test_debian_full.py does that.
"""

from __future__ import annotations

import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hvmlite.testing import rootfs, tools
from hvmlite.testing.apt import FetchError
from hvmlite.testing.rootfs import PARTITION_START, check_ext4, ext4_image

SIZE = 8 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"content " * 1000)
    ext4_image(tmp_path / "image", SIZE, tree, PARTITION_START)
    return tmp_path / "image"


def test_image_is_clean_and_of_the_given_size(image: Path) -> None:
    assert image.stat().st_size == SIZE
    assert check_ext4(image, PARTITION_START) == ""


def test_image_holds_the_tree(image: Path) -> None:
    shown = subprocess.run(
        ["/sbin/debugfs", "-R", "cat /file", f"{image}?offset={PARTITION_START}"],
        check=True,
        capture_output=True,
    )
    assert shown.stdout == b"content " * 1000


def test_damage_is_seen(image: Path) -> None:
    with image.open("r+b") as file:
        file.seek(PARTITION_START + 4096)
        file.write(b"\xff" * 64)
    assert "exit status" in check_ext4(image, PARTITION_START)


def test_no_file_system_is_seen(image: Path) -> None:
    assert "exit status" in check_ext4(image, 0)


def test_partition_table() -> None:
    sector = rootfs._partition_table(SIZE)
    assert len(sector) == 512
    assert sector.endswith(b"\x55\xaa")
    boot, kind, start, count = struct.unpack_from("<B3xB3xII", sector, 446)
    assert (boot, kind, start, count) == (0x80, 0x83, PARTITION_START // 512, SIZE // 512 - start)
    assert not any(sector[462:510])


def test_recipe_names_what_the_image_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    before = rootfs._recipe()
    assert before == rootfs._recipe()
    monkeypatch.setattr(rootfs, "_RECIPE", replace(rootfs._RECIPE, packages=("other",)))
    assert rootfs._recipe() != before


def test_a_made_image_is_not_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HVMLITE_ASSETS", str(tmp_path))
    made = []

    def build(_scratch: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "recipe").write_text(rootfs._recipe())
        made.append(folder)

    monkeypatch.setattr(rootfs, "_build", build)
    found = rootfs.debian_rootfs()
    assert found == rootfs.debian_rootfs()
    assert found.image == tmp_path / "rootfs/debian.raw"
    assert len(made) == 1
    rootfs.debian_rootfs(refresh=True)
    assert len(made) == 2
    monkeypatch.setattr(rootfs, "_RECIPE", replace(rootfs._RECIPE, password="other"))
    rootfs.debian_rootfs()
    assert len(made) == 3


def test_a_missing_tool_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tools, "environment", lambda: {"PATH": str(tmp_path)})
    (tmp_path / "tree").mkdir()
    with pytest.raises(FetchError, match=r"mkfs\.ext4"):
        ext4_image(tmp_path / "image", SIZE, tmp_path / "tree")
