"""Proves the 9P server: every request, and that nothing leads out of the shared folder.

Covers the way of links, `..`, moved folders and names with slashes; bounds; a model of a tree that
random operations are compared with. Cannot see Linux's client (tests/system/test_p9.py), nor a
race that the tests do not set up: those are shut out by how files.py reaches files.
"""

from __future__ import annotations

import errno
import gc
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvmlite.abi import p9
from hvmlite.backends.p9 import files, session
from hvmlite.backends.p9.server import Server
from hvmlite.backends.p9.wire import MalformedError, Qid

from .client import MSIZE, NUMBERS, Client, RefusedError, finish, message, parse


def descriptors() -> int:
    # Those that earlier tests left to the collector are none of ours.
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """A shared folder beside a secret."""
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "share"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "file").write_text("contents")
    (folder / "sub" / "inner").write_text("inner")
    return folder


@pytest.fixture
def client(share: Path) -> Iterator[Client]:
    before = descriptors()
    made = Client(share)
    yield made
    made.close()
    assert descriptors() == before


def refused(client: Client, number: int, name: str, *values: object) -> None:
    with pytest.raises(RefusedError) as caught:
        client(name, *values)
    assert errno.errorcode.get(caught.value.errno) == errno.errorcode[number]


# ---- what requests do ---------------------------------------------------------------------------


def test_version(share: Path) -> None:
    client = Client(share)
    assert client("version", 1 << 30, b"9P2000.L") == (MSIZE, b"9P2000.L")
    assert client("version", 4096, b"9P2000.u") == (4096, b"unknown")
    refused(client, errno.EPROTO, "walk", 0, 1, [])
    assert client("version", 3, b"9P2000.L")[1] == b"unknown"
    client("version", 8192, b"9P2000.L")
    assert len(client.server.session) == 0
    client.close()


def test_attach_and_auth(client: Client) -> None:
    refused(client, errno.EBADF, "attach", 0, p9.P9_NOFID, b"", b"", 0)
    refused(client, errno.EBADF, "attach", 5, 7, b"", b"", 0)
    refused(client, errno.ENOENT, "attach", 5, p9.P9_NOFID, b"", b"../x", 0)
    refused(client, errno.EOPNOTSUPP, "auth", 5, b"", b"", 0)
    client("attach", 5, p9.P9_NOFID, b"", b"/", 0)


def test_reading_and_writing(client: Client, share: Path) -> None:
    assert client.read("file") == b"contents"
    assert client.read("sub/inner") == b"inner"
    fid = client.create("sub", "new", p9.P9_DOTL_RDWR, 0o640)
    assert client("write", fid, 3, b"abc") == (3,)
    assert client("read", fid, 0, 100) == (b"\0\0\0abc",)
    assert client("read", fid, 6, 100) == (b"",)
    client("fsync", fid, 0)
    client("fsync", fid, 1)
    client("clunk", fid)
    refused(client, errno.EBADF, "read", fid, 0, 1)
    assert (share / "sub" / "new").read_bytes() == b"\0\0\0abc"
    assert stat.S_IMODE((share / "sub" / "new").stat().st_mode) == 0o640
    fid = client.open("sub/new", p9.P9_DOTL_WRONLY | p9.P9_DOTL_TRUNC)
    refused(client, errno.EBADF, "read", fid, 0, 1)
    assert (share / "sub" / "new").read_bytes() == b""


def test_appending_is_behind_what_the_host_appended(client: Client, share: Path) -> None:
    fid = client.open("file", p9.P9_DOTL_WRONLY | p9.P9_DOTL_APPEND)
    with (share / "file").open("a") as file:
        file.write("+host")
    client("write", fid, 8, b"+guest")
    assert (share / "file").read_text() == "contents+host+guest"


def test_the_mode_is_the_clients(client: Client, share: Path) -> None:
    old = os.umask(0o077)
    try:
        client("clunk", client.create("", "a", mode=0o6777))
        client("mkdir", 0, b"d", 0o1777, 0)
        client("mknod", 0, b"f", stat.S_IFIFO | 0o666, 0, 0, 0)
    finally:
        os.umask(old)
    modes = [stat.S_IMODE((share / name).stat().st_mode) for name in "adf"]
    # Never set-user-ID: it would act on the host.
    assert modes == [0o777, 0o1777, 0o666]


def test_attributes(client: Client, share: Path) -> None:
    fid = client.walk("file")
    status = (share / "file").stat()
    valid, qid, mode, uid, gid, nlink, _, size, *_ = client("getattr", fid, 0x7FF)
    assert (valid, mode, uid, gid, nlink, size) == (
        *(0x7FF, status.st_mode, status.st_uid, status.st_gid, 1, 8),
    )
    assert isinstance(qid, Qid)
    assert (qid.kind, qid.path) == (0, status.st_ino)
    everything = p9.P9_ATTR_MODE | p9.P9_ATTR_SIZE | p9.P9_ATTR_ATIME | p9.P9_ATTR_ATIME_SET
    client("setattr", fid, everything, 0o7751, 0, 0, 3, 12, 345, 0, 0)
    after = (share / "file").stat()
    assert stat.S_IMODE(after.st_mode) == 0o751
    assert (after.st_size, after.st_atime_ns) == (3, 12_000_000_345)
    client("setattr", fid, p9.P9_ATTR_MTIME | p9.P9_ATTR_MTIME_SET, *(0,) * 4, 0, 0, 7, 8)
    assert (share / "file").stat().st_mtime_ns == 7_000_000_008
    assert (share / "file").stat().st_atime_ns == 12_000_000_345
    client("setattr", fid, p9.P9_ATTR_MTIME, *(0,) * 8)
    assert (share / "file").stat().st_mtime_ns > 10**18
    client("setattr", fid, p9.P9_ATTR_UID | p9.P9_ATTR_GID, 0, 0xFFFFFFFF, 0xFFFFFFFF, *(0,) * 5)
    for bad in ({"size": 1 << 63}, {"atime_ns": 10**9}, {"atime": 1 << 63}):
        size, seconds, ns = (bad.get(key, 0) for key in ("size", "atime", "atime_ns"))
        refused(client, errno.EINVAL, "setattr", fid, everything, 0, 0, 0, size, seconds, ns, 0, 0)


def test_links_names_and_folders(client: Client, share: Path) -> None:
    client("symlink", 0, b"soft", b"/etc/passwd", 0)
    assert client("readlink", client.walk("soft")) == (b"/etc/passwd",)
    client("link", 0, client.walk("file"), b"hard")
    assert (share / "hard").stat().st_nlink == 2
    client("link", 0, client.walk("soft"), b"soft2")
    assert os.readlink(share / "soft2") == "/etc/passwd"
    client("renameat", 0, b"hard", client.walk("sub"), b"moved")
    assert client.names("sub") == {b"deep", b"inner", b"moved"}
    client("rename", client.walk("sub/moved"), 0, b"back")
    assert client.names("") == {b"file", b"sub", b"soft", b"soft2", b"back"}
    client("unlinkat", 0, b"back", 0)
    client("remove", client.walk("soft"))
    refused(client, errno.ENOTEMPTY, "unlinkat", 0, b"sub", p9.P9_DOTL_AT_REMOVEDIR)
    refused(client, errno.EISDIR, "unlinkat", 0, b"sub", 0)
    client("remove", client.walk("sub/deep"))
    refused(client, errno.EBUSY, "remove", 0)
    assert sorted(os.listdir(share)) == ["file", "soft2", "sub"]


def test_a_big_folder_in_small_pieces(client: Client, share: Path) -> None:
    names = {b"%d-" % i + b"x" * (i % 200) for i in range(500)}
    for name in names:
        (share / "sub" / "deep" / name.decode()).touch()
    assert client.names("sub/deep", 300) == names
    assert client.names("sub/deep", 1 << 30) == names
    fid = client.open("sub/deep")
    refused(client, errno.EINVAL, "readdir", fid, 0, 10)
    refused(client, errno.EINVAL, "readdir", fid, 1 << 63, 1000)
    refused(client, errno.EISDIR, "read", fid, 0, 1)
    refused(client, errno.ENOTDIR, "readdir", client.open("file"), 0, 1000)


def test_statfs(client: Client, share: Path) -> None:
    found = os.statvfs(share)
    answer = client("statfs", 0)
    assert answer[0] == p9.V9FS_MAGIC
    assert answer[1:3] == (found.f_bsize, found.f_blocks)


def test_extended_attributes(client: Client, share: Path) -> None:
    try:
        os.setxattr(share / "file", "user.old", b"1")
    except OSError:
        pytest.skip("this file system has none")
    fid = client.walk("file")
    client("xattrcreate", fid, b"user.new", 5, 0)
    refused(client, errno.EINVAL, "write", fid, 1, b"x")
    refused(client, errno.EINVAL, "write", fid, 0, b"123456")
    client("write", fid, 0, b"12")
    client("write", fid, 2, b"345")
    client("clunk", fid)
    assert os.getxattr(share / "file", "user.new") == b"12345"
    fid = client.walk("file")
    new = client.fid()
    assert client("xattrwalk", fid, new, b"user.new") == (5,)
    assert client("read", new, 1, 3) == (b"234",)
    client("xattrwalk", fid, new + 1, b"")
    (names,) = client("read", new + 1, 0, 1000)
    assert isinstance(names, bytes)
    assert set(names.split(b"\0")) == {b"user.old", b"user.new", b""}
    refused(client, errno.EOPNOTSUPP, "xattrwalk", fid, 90, b"security.capability")
    refused(client, errno.ENODATA, "xattrwalk", fid, 90, b"user.none")
    refused(client, errno.E2BIG, "xattrcreate", fid, b"user.big", 1 << 40, 0)
    client("xattrcreate", fid, b"user.short", 5, 0)
    refused(client, errno.EINVAL, "clunk", fid)
    refused(client, errno.EBADF, "clunk", fid)


def test_locks(client: Client, share: Path) -> None:
    def lock(kind: int, process: int, start: int = 0, length: int = 0, fid: int = 0) -> object:
        return client("lock", fid or one, kind, 0, start, length, process, b"me")[0]

    one = client.open("file", p9.P9_DOTL_RDWR)
    two = client.open("file", p9.P9_DOTL_RDWR)
    write, unlock = p9.P9_LOCK_TYPE_WRLCK, p9.P9_LOCK_TYPE_UNLCK
    assert lock(write, 1, 10, 10) == p9.P9_LOCK_SUCCESS
    assert lock(write, 1, 10, 10, two) == p9.P9_LOCK_SUCCESS
    assert lock(write, 2, 15, 1, two) == p9.P9_LOCK_BLOCKED
    assert lock(write, 2, 20, 1, two) == p9.P9_LOCK_SUCCESS
    assert client("getlock", two, write, 0, 0, 2, b"me")[:3] == (write, 10, 10)
    assert client("getlock", two, write, 30, 5, 2, b"me") == (unlock, 30, 5, 2, b"me")
    other = Client(share)
    third = other.open("file", p9.P9_DOTL_RDWR)
    assert other("lock", third, write, 0, 0, 0, 1, b"me") == (p9.P9_LOCK_BLOCKED,)
    assert lock(unlock, 1) == lock(unlock, 2) == p9.P9_LOCK_SUCCESS
    assert other("lock", third, write, 0, 0, 0, 1, b"me") == (p9.P9_LOCK_SUCCESS,)
    assert lock(write, 1) == p9.P9_LOCK_BLOCKED
    # Closing gives it back.
    other("clunk", third)
    assert lock(write, 1) == p9.P9_LOCK_SUCCESS
    other.close()
    refused(client, errno.EINVAL, "lock", one, 9, 0, 0, 0, 1, b"me")
    refused(client, errno.EINVAL, "lock", one, write, 0, 1 << 62, 1 << 62, 1, b"me")


def test_owners_of_locks_are_bounded(client: Client) -> None:
    fid = client.open("file", p9.P9_DOTL_RDWR)
    read = p9.P9_LOCK_TYPE_RDLCK
    for process in range(256):
        client("lock", fid, read, 0, 0, 0, process, b"")
    refused(client, errno.ENOLCK, "lock", fid, read, 0, 0, 0, 1000, b"")


def test_read_only(share: Path) -> None:
    client = Client(share, readonly=True)
    assert client.read("file") == b"contents"
    fid = client.walk("file")
    for name, *values in (
        ("lopen", fid, p9.P9_DOTL_WRONLY),
        ("lopen", fid, p9.P9_DOTL_RDONLY | p9.P9_DOTL_TRUNC),
        ("lcreate", fid, b"x", 0, 0o600, 0),
        ("mkdir", 0, b"x", 0o700, 0),
        ("mknod", 0, b"x", stat.S_IFREG, 0, 0, 0),
        ("symlink", 0, b"x", b"y", 0),
        ("link", 0, fid, b"x"),
        ("rename", fid, 0, b"x"),
        ("renameat", 0, b"file", 0, b"x"),
        ("unlinkat", 0, b"file", 0),
        ("remove", fid),
        ("setattr", fid, p9.P9_ATTR_SIZE, *(0,) * 8),
        ("xattrcreate", fid, b"user.x", 1, 0),
        ("write", fid, 0, b"x"),
    ):
        refused(client, errno.EROFS, name, *values)
    assert sorted(os.listdir(share)) == ["file", "sub"]
    assert (share / "file").read_text() == "contents"
    client.close()


def test_flush_is_answered_behind_what_it_flushes(client: Client) -> None:
    job = client.server.begin(message("getattr", 0, 0, tag=7))
    step = job.step()
    flush = client.server.begin(message("flush", 7, tag=8))
    assert flush.step() is job
    finish(job, step)
    assert flush.step() is None
    assert parse("flush", flush.answer) == ()
    assert client("flush", 7) == ()
    assert client("flush", 1) == ()


def test_attributes_in_memory_are_bounded(
    client: Client, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "MAX_ATTRIBUTE_BYTES", 3 << 16)
    fids = [client.walk("file") for _ in range(4)]
    for fid in fids[:3]:
        client("xattrcreate", fid, b"user.big", 1 << 16, 0)
    refused(client, errno.ENOMEM, "xattrcreate", fids[3], b"user.big", 1, 0)
    monkeypatch.setattr(files.Node, "get_xattr", lambda *_: b"x")
    refused(client, errno.ENOMEM, "xattrwalk", fids[3], 90, b"user.old")
    refused(client, errno.EBADF, "getattr", 90, 0)
    refused(client, errno.EINVAL, "clunk", fids[0])
    assert client("xattrwalk", fids[3], 90, b"user.old") == (1,)
    client("clunk", 90)
    client("xattrcreate", fids[3], b"user.big", 1 << 16, 0)
    client("version", 8192, b"9P2000.L")
    assert client.server.session.attribute_bytes == 0


def test_folders_in_folders_are_bounded(
    client: Client, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_DEPTH", 3)
    (share / "sub" / "a" / "b").mkdir(parents=True)
    deep = client.walk("sub/a/b")
    refused(client, errno.ENAMETOOLONG, "mkdir", deep, b"c", 0o755, 0)
    refused(client, errno.ENAMETOOLONG, "symlink", deep, b"c", b"x", 0)
    refused(client, errno.ENAMETOOLONG, "lcreate", deep, b"c", p9.P9_DOTL_RDWR, 0o644, 0)
    assert os.listdir(share / "sub" / "a" / "b") == []
    (share / "sub" / "a" / "b" / "c").write_text("")
    refused(client, errno.ENAMETOOLONG, "walk", deep, 90, [b"c"])


# ---- ways out -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/", "a/b", "../secret", "/etc/passwd", "a\0b", "x" * 256]
)
def test_names_that_are_none(client: Client, share: Path, name: str) -> None:
    raw = name.encode()
    file = client.walk("file")
    attempts = (
        ("mkdir", 0, raw, 0o700, 0),
        ("mknod", 0, raw, stat.S_IFREG | 0o600, 0, 0, 0),
        ("symlink", 0, raw, b"x", 0),
        ("link", 0, file, raw),
        ("renameat", 0, b"file", 0, raw),
        ("renameat", 0, raw, 0, b"x"),
        ("rename", file, 0, raw),
        ("unlinkat", 0, raw, 0),
        ("unlinkat", 0, raw, p9.P9_DOTL_AT_REMOVEDIR),
        ("lcreate", client.walk(""), raw, 0, 0o600, 0),
    )
    if name != "..":
        attempts += (("walk", 0, 99, [raw]),)
    for attempt in attempts:
        with pytest.raises(RefusedError) as caught:
            client(*attempt)  # type: ignore[arg-type]
        assert caught.value.errno in {errno.EINVAL, errno.ENAMETOOLONG}
    assert sorted(os.listdir(share)) == ["file", "sub"]
    assert sorted(os.listdir(share.parent)) == ["secret", "share"]


def test_up_from_the_root_is_the_root(client: Client, share: Path) -> None:
    root = share.stat().st_ino
    for path in ("..", "../..", "sub/..", "sub/deep/../..", "sub/../../../sub/.."):
        qid = client("getattr", client.walk(path), 0)[1]
        assert isinstance(qid, Qid)
        assert qid.path == root
    with pytest.raises(RefusedError):
        client.walk("../secret")
    with pytest.raises(RefusedError):
        client.walk("file/..")


@pytest.mark.parametrize("target", ["/", "..", "../secret", "/proc/self/root", "/proc/self/cwd"])
def test_symbolic_links_are_not_followed(client: Client, share: Path, target: str) -> None:
    (share / "way").symlink_to(target)
    fid = client.walk("way")
    for flags in (0, 1, 2, p9.P9_DOTL_TRUNC | 1, p9.P9_DOTL_DIRECTORY):
        with pytest.raises(RefusedError) as caught:
            client("lopen", fid, flags)
        assert caught.value.errno in {errno.ELOOP, errno.ENOTDIR}
    for path in ("way/secret", "way/share", "way/.."):
        with pytest.raises(RefusedError):
            client.walk(path)
    refused(client, errno.EEXIST, "mkdir", 0, b"way", 0o700, 0)
    for flags in (1, 1 | p9.P9_DOTL_EXCL):
        with pytest.raises(RefusedError):
            client.create("", "way", flags)
    for request in (
        ("mkdir", fid, b"x", 0o700, 0),
        ("lcreate", fid, b"x", 1, 0o600, 0),
        ("unlinkat", fid, b"secret", 0),
        ("symlink", fid, b"x", b"y", 0),
        ("link", fid, client.walk("file"), b"x"),
        ("renameat", 0, b"file", fid, b"x"),
        ("renameat", fid, b"secret", 0, b"x"),
        ("setattr", fid, p9.P9_ATTR_SIZE, *(0,) * 8),
        ("setattr", fid, p9.P9_ATTR_MODE, 0o777, *(0,) * 7),
        ("xattrcreate", client.walk("way"), b"user.x", 1, 0),
    ):
        if request[0] == "xattrcreate":
            client(*request)  # type: ignore[arg-type]
            client("write", request[1], 0, b"x")
            refused(client, errno.EOPNOTSUPP, "clunk", request[1])
            continue
        with pytest.raises(RefusedError):
            client(*request)  # type: ignore[arg-type]
    # Times and owners are the link's own.
    before = (share.parent / "secret").stat()
    client("setattr", fid, p9.P9_ATTR_MTIME | p9.P9_ATTR_MTIME_SET, *(0,) * 6, 5, 0)
    client("setattr", fid, p9.P9_ATTR_UID, 0, os.getuid(), *(0,) * 6)
    assert (share / "way").lstat().st_mtime == 5
    after = (share.parent / "secret").stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    assert (share.parent / "secret").read_text() == "secret"


def test_a_folder_that_is_moved_out(client: Client, share: Path) -> None:
    fid = client.walk("sub/deep")
    (share / "sub").rename(share.parent / "outside")
    with pytest.raises(RefusedError):
        client("walk", fid, 50, [b"..", b"..", b"secret"])
    with pytest.raises(RefusedError):
        client("walk", fid, 50, [b".."])
    refused(client, errno.ENOENT, "remove", fid)
    assert (share.parent / "outside" / "deep").exists()


def test_a_folder_that_a_link_takes_the_place_of(client: Client, share: Path) -> None:
    fid = client.walk("sub")
    (share / "sub").rename(share / "old")
    (share / "sub").symlink_to(share.parent)
    with pytest.raises(RefusedError):
        client.walk("sub/secret")
    # The fid is still the folder that it was.
    (qids,) = client("walk", fid, 50, [b"inner"])
    assert len(qids) == 1  # type: ignore[arg-type]
    (qids,) = client("walk", fid, 51, [b"deep", b"..", b"secret"])
    assert len(qids) == 1  # type: ignore[arg-type]
    refused(client, errno.EBADF, "getattr", 51, 0)
    refused(client, errno.ESTALE, "rename", fid, 0, b"x")


def test_links_that_come_and_go_meanwhile(client: Client, share: Path) -> None:
    """A file of the name is a link out half of the time."""
    stop = threading.Event()
    target = share / "swap"
    good, bad = share / "good", share / "bad"

    def swap() -> None:
        while not stop.is_set():
            good.write_text("inside")
            good.rename(target)
            bad.symlink_to(share.parent / "secret")
            bad.rename(target)

    thread = threading.Thread(target=swap)
    thread.start()
    seen = {"inside": 0, "refused": 0}
    try:
        for _ in range(400):
            try:
                fid = client.create("", "swap", p9.P9_DOTL_RDWR)
                client("write", fid, 0, b"inside")
                (data,) = client("read", fid, 0, 100)
                assert data == b"inside"
                client("clunk", fid)
                assert client.read("swap") in {b"inside", b""}
                seen["inside"] += 1
            except RefusedError as error:
                assert error.errno in {errno.ELOOP, errno.ENOENT, errno.EAGAIN}
                seen["refused"] += 1
                client.server.session.reset()
                client("attach", 0, p9.P9_NOFID, b"", b"", 0)
    finally:
        stop.set()
        thread.join()
    assert (share.parent / "secret").read_text() == "secret"


def test_special_files_are_not_opened(client: Client, share: Path) -> None:
    os.mkfifo(share / "fifo")
    for flags in (0, 1, 2):
        with pytest.raises(RefusedError) as caught:
            client.open("fifo", flags)
        assert caught.value.errno == errno.EOPNOTSUPP
        with pytest.raises(RefusedError) as caught:
            client.create("", "fifo", flags)
        assert caught.value.errno == errno.EOPNOTSUPP
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        refused(client, errno.EPERM, "mknod", 0, b"device", kind | 0o666, 1, 3, 0)


# ---- bounds and nonsense ------------------------------------------------------------------------


def test_fids_are_bounded(share: Path) -> None:
    client = Client(share, max_fids=10, max_open=3)
    for fid in range(1, 10):
        client("walk", 0, fid, [b"file"])
    refused(client, errno.ENFILE, "walk", 0, 10, [])
    for fid in range(1, 4):
        client("lopen", fid, 0)
    refused(client, errno.EMFILE, "lopen", 4, 0)
    client("clunk", 1)
    client("lopen", 4, 0)
    refused(client, errno.EBADF, "lopen", 4, 0)
    refused(client, errno.EBADF, "walk", 4, 1, [])
    refused(client, errno.EBADF, "walk", 0, 5, [])
    client.close()


def test_an_answer_that_is_too_long(client: Client, share: Path) -> None:
    (share / "long").symlink_to("x" * 3000)
    client("version", 1000, b"9P2000.L")
    client("attach", 0, p9.P9_NOFID, b"", b"", 0)
    refused(client, errno.EMSGSIZE, "readlink", client.walk("long"))
    refused(client, errno.EMSGSIZE, "write", 0, 0, b"x" * 1000)


@pytest.mark.parametrize("kind", [0, 1, 6, 7, 9, 99, 255])
def test_a_request_that_is_none(client: Client, kind: int) -> None:
    raw = bytearray(message("clunk", 0))
    raw[4] = kind
    job = client.server.begin(bytes(raw))
    with pytest.raises(RefusedError) as caught:
        parse("clunk", finish(job, job.step()))
    assert caught.value.errno == errno.EOPNOTSUPP


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_a_request_cut_short_or_too_long(client: Client, name: str) -> None:
    values: list[object] = [
        {"s": b"abc", "n": [b"abc"], "x": b"abc"}.get(code, 0)
        for code in p9.MESSAGES[NUMBERS[name]].request
    ]
    whole = message(name, *values)
    for raw in (*(whole[:size] for size in range(7, len(whole))), whole + b"x"):
        with pytest.raises(MalformedError):
            client.server.begin(raw)


_FIDS = st.one_of(st.integers(0, 6), st.integers(0, 0xFFFFFFFF))
_NAME = st.one_of(
    st.sampled_from([b"file", b"sub", b"inner", b"deep", b"..", b"a", b"b", b"way"]),
    st.binary(max_size=12),
)
_FIELDS = {
    "b": st.integers(0, 255),
    "h": st.integers(0, 0xFFFF),
    "d": st.one_of(_FIDS, st.sampled_from([0x200, 0o100644, 0o40755, 0x1FF])),
    "q": st.one_of(st.integers(0, 9), st.integers(0, (1 << 64) - 1)),
    "s": _NAME,
    "n": st.lists(_NAME, max_size=4),
    "x": st.binary(max_size=50),
}


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    name = draw(st.sampled_from(sorted(set(NUMBERS) - {"version"})))
    layout = p9.MESSAGES[NUMBERS[name]].request
    return message(name, *(draw(_FIELDS[code]) for code in layout))


@given(st.lists(requests(), max_size=30), st.randoms(use_true_random=False))
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_requests_in_any_order(share: Path, sent: list[bytes], random: object) -> None:
    """Several under way at once, each step of each in any order; nothing outside changes."""
    from random import Random

    assert isinstance(random, Random)
    (share / "way").unlink(missing_ok=True)
    (share / "way").symlink_to("..")
    before = descriptors()
    client = Client(share, max_fids=8, max_open=4)
    for start in (1, 2, 3):
        client("walk", 0, start, [])
    running: list[tuple[object, object]] = []
    while sent or running:
        if sent and (len(running) < 5 or not running):
            job = client.server.begin(sent.pop())
            step = job.step()
        else:
            job, step = running.pop(random.randrange(len(running)))  # type: ignore[assignment]
            if hasattr(step, "waiters"):
                # A flush waits for another one to end.
                if not step.answer:
                    running.insert(0, (job, step))
                    if all(hasattr(each, "waiters") for _, each in running):
                        break
                    continue
                step = job.step()
            else:
                assert callable(step)
                try:
                    result = step()
                except OSError as error:
                    step = job.step(failure=error)
                except (ValueError, OverflowError) as error:
                    step = job.step(failure=error)
                else:
                    step = job.step(result)
        if step is not None:
            running.append((job, step))
        else:
            assert 7 <= len(job.answer) <= MSIZE
    client.close()
    assert descriptors() == before
    assert sorted(os.listdir(share.parent)) == ["secret", "share"]
    assert (share.parent / "secret").read_text() == "secret"


def test_a_client_that_goes_in_the_middle(share: Path) -> None:
    before = descriptors()
    for finish_late in (False, True):
        client = Client(share)
        server: Server = client.server
        jobs = [
            server.begin(message("walk", 0, 1, [b"sub"])),
            server.begin(message("walk", 0, 2, [b"sub", b".."])),
            server.begin(message("lcreate", client.walk(""), b"new", 2, 0o600, 0)),
            server.begin(message("lopen", client.walk("file"), 0)),
            server.begin(message("getattr", 0, 0)),
            server.begin(message("mkdir", 0, b"x", 0o700, 0)),
        ]
        steps = [job.step() for job in jobs]
        client.close()
        for job, step in zip(jobs, steps, strict=True):
            if finish_late:
                finish(job, step)
            else:
                job.cancel()
        assert descriptors() == before


# ---- a model ------------------------------------------------------------------------------------

_PATHS = st.sampled_from(["a", "b", "a/c", "b/c", "a/c/d"])


@given(
    st.lists(
        st.tuples(st.sampled_from(["mkdir", "file", "remove", "move"]), _PATHS, _PATHS),
        max_size=25,
    )
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_tree_is_as_on_the_host(tmp_path: Path, operations: list[tuple[str, str, str]]) -> None:
    """What the server does to its folder, and the host to another, comes to the same."""
    import shutil

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    client = Client(ours, max_fids=1000)

    def split(path: str) -> tuple[int, bytes]:
        folder, _, name = path.rpartition("/")
        return client.walk(folder), name.encode()

    for kind, path, other in operations:
        wanted = got = 0
        there = theirs / path
        try:
            if kind == "mkdir":
                there.mkdir()
            elif kind == "file":
                there.write_text(other)
            elif kind == "move":
                there.rename(theirs / other)
            elif there.is_dir():
                there.rmdir()
            else:
                there.unlink()
        except OSError as error:
            wanted = error.errno or -1
        try:
            folder, name = split(path)
            if kind == "mkdir":
                client("mkdir", folder, name, 0o755, 0)
            elif kind == "file":
                client("lcreate", folder, name, 1 | p9.P9_DOTL_TRUNC, 0o644, 0)
                client("write", folder, 0, other.encode())
            elif kind == "move":
                client("renameat", folder, name, *split(other))
            else:
                client("remove", client.walk(path))
        except RefusedError as error:
            got = error.errno
        assert bool(wanted) == bool(got), (kind, path, other)

    def tree(folder: Path) -> dict[str, str | None]:
        return {
            str(each.relative_to(folder)): each.read_text() if each.is_file() else None
            for each in folder.rglob("*")
        }

    assert tree(ours) == tree(theirs)
    client.close()
