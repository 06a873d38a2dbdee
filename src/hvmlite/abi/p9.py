"""The messages of 9P2000.L: numbers, layouts and flags.

Little-endian, unaligned. Sources: the protocol description of diod (protocol.md), intro(5) of
Plan 9 for what both dialects share, Linux's include/net/9p/9p.h. xen_9pfs.py has the header.
"""

from collections.abc import Mapping
from typing import NamedTuple

VERSION_9P2000_L = b"9P2000.L"
VERSION_UNKNOWN = b"unknown"
P9_NOTAG = 0xFFFF
P9_NOFID = 0xFFFF_FFFF
V9FS_MAGIC = 0x01021997  # statfs
P9_MAXWELEM = 16
P9_IOHDRSZ = 24  # room that clients leave for the header of a read or write

P9_RLERROR = 7
P9_TSTATFS = 8
P9_TLOPEN = 12
P9_TLCREATE = 14
P9_TSYMLINK = 16
P9_TMKNOD = 18
P9_TRENAME = 20
P9_TREADLINK = 22
P9_TGETATTR = 24
P9_TSETATTR = 26
P9_TXATTRWALK = 30
P9_TXATTRCREATE = 32
P9_TREADDIR = 40
P9_TFSYNC = 50
P9_TLOCK = 52
P9_TGETLOCK = 54
P9_TLINK = 70
P9_TMKDIR = 72
P9_TRENAMEAT = 74
P9_TUNLINKAT = 76
P9_TVERSION = 100
P9_TAUTH = 102
P9_TATTACH = 104
P9_TFLUSH = 108
P9_TWALK = 110
P9_TREAD = 116
P9_TWRITE = 118
P9_TCLUNK = 120
P9_TREMOVE = 122

# A qid's type.
P9_QTDIR = 0x80
P9_QTSYMLINK = 0x02
P9_QTFILE = 0x00

# Tlopen and Tlcreate: Linux's generic O_* flags.
P9_DOTL_ACCMODE = 0o3
P9_DOTL_RDONLY = 0o0
P9_DOTL_WRONLY = 0o1
P9_DOTL_RDWR = 0o2
P9_DOTL_EXCL = 0o200
P9_DOTL_TRUNC = 0o1000
P9_DOTL_APPEND = 0o2000
P9_DOTL_DSYNC = 0o10000
P9_DOTL_DIRECTORY = 0o200000
P9_DOTL_SYNC = 0o4000000
P9_DOTL_AT_REMOVEDIR = 0x200

P9_STATS_BASIC = 0x7FF  # Rgetattr's valid: all that struct stat has
P9_ATTR_MODE = 0x001
P9_ATTR_UID = 0x002
P9_ATTR_GID = 0x004
P9_ATTR_SIZE = 0x008
P9_ATTR_ATIME = 0x010
P9_ATTR_MTIME = 0x020
P9_ATTR_CTIME = 0x040
P9_ATTR_ATIME_SET = 0x080
P9_ATTR_MTIME_SET = 0x100

P9_LOCK_TYPE_RDLCK = 0
P9_LOCK_TYPE_WRLCK = 1
P9_LOCK_TYPE_UNLCK = 2
P9_LOCK_SUCCESS = 0
P9_LOCK_BLOCKED = 1
P9_LOCK_ERROR = 2


class Message(NamedTuple):
    """Fields of a request and of its answer, behind the header, one letter each:

    b, h, d, q: 1, 2, 4, 8 bytes; s: a string (2 bytes of length); n: a count of 2 bytes and as many
    strings; x: a count of 4 bytes and as many bytes; Q: a qid (type[1] version[4] path[8]);
    N: a count of 2 bytes and as many qids.
    """

    name: str
    request: str
    answer: str


MESSAGES: Mapping[int, Message] = {
    P9_TSTATFS: Message("statfs", "d", "ddqqqqqqd"),
    P9_TLOPEN: Message("lopen", "dd", "Qd"),
    P9_TLCREATE: Message("lcreate", "dsddd", "Qd"),
    P9_TSYMLINK: Message("symlink", "dssd", "Q"),
    P9_TMKNOD: Message("mknod", "dsdddd", "Q"),
    P9_TRENAME: Message("rename", "dds", ""),
    P9_TREADLINK: Message("readlink", "d", "s"),
    P9_TGETATTR: Message("getattr", "dq", "qQdddqqqqqqqqqqqqqqq"),
    P9_TSETATTR: Message("setattr", "dddddqqqqq", ""),
    P9_TXATTRWALK: Message("xattrwalk", "dds", "q"),
    P9_TXATTRCREATE: Message("xattrcreate", "dsqd", ""),
    P9_TREADDIR: Message("readdir", "dqd", "x"),
    P9_TFSYNC: Message("fsync", "dd", ""),
    P9_TLOCK: Message("lock", "dbdqqds", "b"),
    P9_TGETLOCK: Message("getlock", "dbqqds", "bqqds"),
    P9_TLINK: Message("link", "dds", ""),
    P9_TMKDIR: Message("mkdir", "dsdd", "Q"),
    P9_TRENAMEAT: Message("renameat", "dsds", ""),
    P9_TUNLINKAT: Message("unlinkat", "dsd", ""),
    P9_TVERSION: Message("version", "ds", "ds"),
    P9_TAUTH: Message("auth", "dssd", "Q"),
    P9_TATTACH: Message("attach", "ddssd", "Q"),
    P9_TFLUSH: Message("flush", "h", ""),
    P9_TWALK: Message("walk", "ddn", "N"),
    P9_TREAD: Message("read", "dqd", "x"),
    P9_TWRITE: Message("write", "dqx", "d"),
    P9_TCLUNK: Message("clunk", "d", ""),
    P9_TREMOVE: Message("remove", "d", ""),
}
"""By the request's number; an answer's is one more."""

READDIR_ENTRY = "Qqbs"  # qid, offset of the next entry, d_type, name
