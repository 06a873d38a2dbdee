"""The CONTROL request: the sub-commands of xenstore-control that make sense inside one process.

Their names and arguments are xenstored's (docs/misc/xenstore.txt), the wording is our own. No file
is ever opened: there is no trace file, so memreport is refused as by a daemon without one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hvmlite.abi.errno import XEN_EINVAL, XEN_ENOENT
from hvmlite.xenstore.domains import DOM0, QUOTA_NAMES
from hvmlite.xenstore.errors import XenStoreError
from hvmlite.xenstore.log import logger
from hvmlite.xenstore.protocol import OK, atoi, strings
from hvmlite.xenstore.tree import SPECIAL_NODES

if TYPE_CHECKING:
    from hvmlite.xenstore.daemon import Daemon


def check(store: Daemon) -> list[str]:
    """Everything wrong with the store, one line each: unreachable nodes, lists and accounts."""
    problems = []
    tree = store.tree
    reached: set[str] = set(SPECIAL_NODES)
    stack = ["/"]
    while stack:
        path = stack.pop()
        node = tree.get(path)
        if node is None:
            problems.append(f"node {path} is listed but missing")
            continue
        reached.add(path)
        names = node.children.names
        if node.children.size != sum(len(name) + 1 for name in names):
            problems.append(f"size of the listing of {path} is off")
        stack += [f"/{name}" if path == "/" else f"{path}/{name}" for name in names]
    problems += [f"node {path} is orphaned" for path in tree.nodes if path not in reached]
    indexed = {(domid, path) for domid, paths in tree.owned.items() for path in paths}
    true = {(n.perms[0].domid, path) for path, n in tree.nodes.items() if n.perms[0].domid != DOM0}
    problems += [f"owner of node {path} is off" for _, path in sorted(indexed ^ true)]
    owned = Counter(node.perms[0].domid for node in tree.nodes.values())
    for domid in owned.keys() | store.domains.keys():
        domain = store.domains.get(domid)
        if domain is None:
            problems.append(f"{owned[domid]} nodes owned by unknown domain {domid}")
        elif domain.nodes != owned[domid]:
            problems.append(f"domain {domid} owns {owned[domid]} nodes, not {domain.nodes}")
    return problems


def _check(store: Daemon, arguments: list[bytes]) -> bytes:
    if arguments:
        raise XenStoreError(XEN_EINVAL)
    for problem in check(store):
        logger().error("check: %s", problem)
    return OK


def _log(store: Daemon, arguments: list[bytes]) -> bytes:
    if arguments == [b"on"]:
        store.trace = True
    elif arguments == [b"off"]:
        store.trace = False
    else:
        raise XenStoreError(XEN_EINVAL)
    return OK


def _memreport(_store: Daemon, _arguments: list[bytes]) -> bytes:
    raise XenStoreError(XEN_EINVAL)


def _print(_store: Daemon, arguments: list[bytes]) -> bytes:
    if len(arguments) != 1:
        raise XenStoreError(XEN_EINVAL)
    logger().info("control: %r", arguments[0].decode("latin-1"))
    return OK


def _quota(store: Daemon, arguments: list[bytes]) -> bytes:
    if not arguments:
        lines = ["Quotas:\n"]
        for name, (_, description) in QUOTA_NAMES.items():
            lines.append(f"{name:<17}: {store.get_quota(None, name):8d} {description}\n")
        return "".join(lines).encode("ascii") + b"\0"
    if arguments[0] == b"set":
        if len(arguments) != 3:
            raise XenStoreError(XEN_EINVAL)
        value = atoi(arguments[2])
        if not 1 <= value <= 0x7FFFFFFF:
            raise XenStoreError(XEN_EINVAL)
        store.set_quota(None, arguments[1].decode("latin-1"), value)
        return OK
    if len(arguments) != 1:
        raise XenStoreError(XEN_EINVAL)
    domain = store.domains.get(atoi(arguments[0]))
    if domain is None:
        raise XenStoreError(XEN_ENOENT)
    used = {
        "nodes": domain.nodes,
        "watches": domain.watches,
        "transactions": domain.transactions,
        "outstanding": domain.outstanding,
        "memory": domain.memory,
    }
    lines = [f"Domain {domain.domid}:\n"]
    lines += [f"{name:<17}: {count:8d}\n" for name, count in used.items()]
    return "".join(lines).encode("ascii") + b"\0"


def _help(_store: Daemon, arguments: list[bytes]) -> bytes:
    if arguments:
        raise XenStoreError(XEN_EINVAL)
    lines = [f"{name.decode('ascii'):<15} {usage}\n" for name, (_, usage) in COMMANDS.items()]
    return "".join(lines).encode("ascii") + b"\0"


COMMANDS: Final[dict[bytes, tuple[Callable[[Daemon, list[bytes]], bytes], str]]] = {
    b"check": (_check, ""),
    b"log": (_log, "on|off"),
    b"memreport": (_memreport, "[<file>]"),
    b"print": (_print, "<string>"),
    b"quota": (_quota, "[<domid> | set <name> <value>]"),
    b"help": (_help, ""),
}


def control(store: Daemon, payload: bytes) -> bytes:
    """Run one sub-command; returns the reply's payload. Raises XenStoreError(EINVAL) and others."""
    arguments = strings(payload)
    entry = COMMANDS.get(arguments[0]) if arguments else None
    if entry is None:
        raise XenStoreError(XEN_EINVAL)
    return entry[0](store, arguments[1:])
