"""Proves that ramdisks are well-formed newc archives, by busybox's own cpio where that is there.

Cannot see whether a kernel accepts them or what the scripts do: tests/system boots them.
"""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.errors import UserError
from hvmlite.testing import assets, ramdisk


def parse(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Read a newc archive back: mode, data and device by path, in the archive's order."""
    found: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    offset = 0
    while True:
        assert offset % 4 == 0
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        name_at = offset + 110
        name = archive[name_at : name_at + fields[11]]
        assert name.endswith(b"\0")
        data_at = (name_at + fields[11] + 3) // 4 * 4
        data = archive[data_at : data_at + fields[6]]
        assert len(data) == fields[6]
        offset = (data_at + fields[6] + 3) // 4 * 4
        path = name[:-1].decode()
        if path == "TRAILER!!!":
            assert offset == len(archive)
            return found
        assert path not in found
        found[path] = (fields[1], data, (fields[9], fields[10]))


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    path = tmp_path / "busybox"
    path.write_bytes(b"\x7fELF not really")
    return path


def test_build(busybox: Path) -> None:
    found = parse(
        ramdisk.build(
            "#!/bin/busybox sh\n",
            files={"etc/deep/file": b"x", "bin/tool": ramdisk.regular(b"y", 0o755)},
            applets=["busybox", "ls"],
            busybox=busybox,
        )
    )
    assert found["init"] == (stat.S_IFREG | 0o755, b"#!/bin/busybox sh\n", (0, 0))
    assert found["bin/busybox"] == (stat.S_IFREG | 0o755, b"\x7fELF not really", (0, 0))
    assert found["bin/ls"] == (stat.S_IFLNK | 0o777, b"busybox", (0, 0))
    assert found["bin/tool"] == (stat.S_IFREG | 0o755, b"y", (0, 0))
    assert found["dev/console"] == (stat.S_IFCHR | 0o600, b"", (5, 1))
    assert found["etc/deep"] == (stat.S_IFDIR | 0o755, b"", (0, 0))
    assert found["etc/deep/file"] == (stat.S_IFREG | 0o644, b"x", (0, 0))


def test_same_input_gives_same_bytes(busybox: Path) -> None:
    files = {"b": b"2", "a": b"1"}
    first = ramdisk.build("#!", files=files, busybox=busybox)
    os.utime(busybox, (1, 1))
    again = ramdisk.build("#!", files=dict(reversed(files.items())), busybox=busybox)
    assert first == again


@pytest.mark.parametrize("path", ["", "/etc/x", "a//b", "a/", "../x", "a/./b", "a\0b"])
def test_bad_path(path: str) -> None:
    with pytest.raises(UserError, match="bad path"):
        ramdisk.newc({path: ramdisk.regular(b"")})


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        NAMES.filter(lambda name: name not in {".", "..", "TRAILER!!!"}), st.binary(max_size=9)
    )
)
def test_newc_round_trip(files: dict[str, bytes]) -> None:
    found = parse(
        ramdisk.newc({f"d/{name}": ramdisk.regular(data) for name, data in files.items()})
    )
    assert {path[2:]: data for path, (_, data, _) in found.items() if path != "d"} == files


def test_parents_come_first() -> None:
    paths = list(parse(ramdisk.newc({"a-b": ramdisk.regular(b""), "a/b/c": ramdisk.regular(b"")})))
    assert paths.index("a") < paths.index("a/b") < paths.index("a/b/c")


@pytest.fixture
def real_busybox() -> Path:
    try:
        return assets.busybox()
    except assets.AssetMissingError as missing:
        pytest.skip(str(missing))


def test_another_reader_agrees(real_busybox: Path, tmp_path: Path) -> None:
    archive = ramdisk.newc(
        {"dir/file": ramdisk.regular(b"hello\n", 0o640), "dir/link": ramdisk.symlink("file")}
    )
    listing = subprocess.run(
        [real_busybox, "cpio", "-itv"], input=archive, capture_output=True, check=True
    ).stdout.decode()
    assert "-rw-r-----" in listing
    subprocess.run([real_busybox, "cpio", "-id"], input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "dir" / "link").read_text() == "hello\n"


def test_presets(real_busybox: Path) -> None:
    bench = parse(ramdisk.boot_bench())["init"][1].decode()
    assert bench.index(ramdisk.BENCH_USERSPACE) < bench.index(ramdisk.BENCH_END)
    assert bench.endswith("poweroff -f\n")
    scripted = parse(ramdisk.demo(interactive=False))
    assert scripted["bin/uname"][1] == b"busybox"
    assert b"cttyhack" not in scripted["init"][1]
    assert b"cttyhack sh" in parse(ramdisk.demo(interactive=True))["init"][1]
    for script in (ramdisk.BOOT_BENCH_INIT.encode(), scripted["init"][1]):
        subprocess.run([real_busybox, "sh", "-n"], input=script, check=True)


@pytest.mark.parametrize(
    ("term", "used"), [("xterm-256color", "xterm-256color"), ("$(reboot)", "vt100"), ("", "vt100")]
)
def test_demo_terminal(real_busybox: Path, term: str, used: str) -> None:
    init = parse(ramdisk.demo(interactive=True, term=term))["init"][1].decode()
    assert f" TERM={used}\n" in init
