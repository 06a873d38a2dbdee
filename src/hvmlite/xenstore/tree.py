"""The tree of nodes: paths, permissions, values, children, generation numbers.

Pure data: it knows no connection and checks no permission. A node object is never changed once it
is in the tree (a write puts a new one), so a transaction's snapshot of a node is a reference.
Rules: docs/misc/xenstore.txt and public/io/xs_wire.h of Xen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from hvmlite.abi.errno import XEN_EINVAL
from hvmlite.abi.xs_wire import XENSTORE_ABS_PATH_MAX
from hvmlite.xenstore.errors import XenStoreError

XS_PERM_NONE: Final = 0
XS_PERM_READ: Final = 1
XS_PERM_WRITE: Final = 2
XS_PERM_OWNER: Final = 4
XS_PERM_IGNORE: Final = 8
"""Set on an entry whose domain is gone, so that a later domain of that id does not inherit it."""

XS_PERM_ALL: Final = XS_PERM_READ | XS_PERM_WRITE | XS_PERM_OWNER

DOM0: Final = 0

NO_GENERATION: Final = -1
"""Generation of a node that does not exist."""

SPECIAL_NODES: Final = ("@introduceDomain", "@releaseDomain")

_SEGMENT = b"[-A-Za-z0-9_@]"
_ABSOLUTE = re.compile(b"/|(?:/" + _SEGMENT + b"+)+").fullmatch
_RELATIVE = re.compile(_SEGMENT + b"+(?:/" + _SEGMENT + b"+)*").fullmatch
_SPECIAL = re.compile(b"@" + _SEGMENT + b"*(?:/" + _SEGMENT + b"+)*").fullmatch
_DOMAIN_PREFIX = re.compile(r"/local/domain/[0-9]{1,5}/").match
_PERM = re.compile(rb"([rwbn])\s*([-+]?)(0[xX][0-9a-fA-F]+|[0-9]+)").fullmatch

_LETTER_TO_BITS = {
    b"n": XS_PERM_NONE,
    b"r": XS_PERM_READ,
    b"w": XS_PERM_WRITE,
    b"b": XS_PERM_READ | XS_PERM_WRITE,
}
_LETTERS = "nrwb"


class Perm(NamedTuple):
    """One permission entry; the first of a node names its owner and everyone else's rights."""

    domid: int
    bits: int

    def __str__(self) -> str:
        # As C's %i shows the 32 bits: a number that no domain has may be negative.
        domid = self.domid - (1 << 32) if self.domid >> 31 else self.domid
        return f"{_LETTERS[self.bits & 3]}{domid}"


Perms = tuple[Perm, ...]

OWNED_BY_DOM0: Final[Perms] = (Perm(DOM0, XS_PERM_NONE),)


def parse_perm(text: bytes) -> Perm:
    """A permission from its wire form, such as b"r4". Raises XenStoreError(EINVAL)."""
    match = _PERM(text)
    if match is None:
        raise XenStoreError(XEN_EINVAL)
    letter, sign, digits = match.groups()
    try:
        if digits[:2] in {b"0x", b"0X"}:
            domid = int(digits, 16)
        else:
            domid = int(digits, 8 if digits[:1] == b"0" else 10)
    except ValueError:
        raise XenStoreError(XEN_EINVAL) from None
    return Perm((-domid if sign == b"-" else domid) & 0xFFFFFFFF, _LETTER_TO_BITS[letter])


def canonical_path(raw: bytes, home: str, special: bool = False) -> str:
    """The absolute path that `raw` names for a caller whose relative paths start at `home`.

    `special` admits names such as @releaseDomain. Raises XenStoreError(EINVAL).
    """
    first = raw[:1]
    if first == b"/":
        if _ABSOLUTE(raw) is None:
            raise XenStoreError(XEN_EINVAL)
        path = raw.decode("ascii")
    elif first == b"@":
        if not special or _SPECIAL(raw) is None:
            raise XenStoreError(XEN_EINVAL)
        path = raw.decode("ascii")
    else:
        if _RELATIVE(raw) is None:
            raise XenStoreError(XEN_EINVAL)
        path = f"{home}/{raw.decode('ascii')}"
    if len(path) > XENSTORE_ABS_PATH_MAX:
        raise XenStoreError(XEN_EINVAL)
    return path


def quota_length(path: str) -> int:
    """The length that counts against the path quota: what follows /local/domain/<domid>/."""
    match = _DOMAIN_PREFIX(path)
    return len(path) - (match.end() if match else 0)


def parent_path(path: str) -> str:
    """The path of the directory that holds `path`; "/" is its own parent."""
    cut = path.rfind("/")
    return path[:cut] if cut > 0 else "/"


def base_name(path: str) -> str:
    """The last segment of `path`."""
    return path[path.rfind("/") + 1 :]


class Children:
    """The names in one directory, in order of creation.

    Changed in place as long as no transaction looks at it (`shared`), copied once otherwise.
    `size` is the number of bytes of the listing.
    """

    __slots__ = ("_listing", "names", "shared", "size")

    def __init__(self, names: dict[str, None], size: int, shared: bool = False) -> None:
        self.names = names
        self.size = size
        self.shared = shared
        self._listing: bytes | None = None

    def _own(self) -> Children:
        return Children(self.names.copy(), self.size) if self.shared else self

    def added(self, name: str) -> Children:
        """The directory with `name` in it; this object itself unless it is shared."""
        own = self._own()
        if name not in own.names:
            own.names[name] = None
            own.size += len(name) + 1
            own._listing = None
        return own

    def removed(self, name: str) -> Children:
        """The directory without `name`; this object itself unless it is shared."""
        own = self._own()
        if name in own.names:
            del own.names[name]
            own.size -= len(name) + 1
            own._listing = None
        return own

    def listing(self) -> bytes:
        """The names, each followed by a NUL, as DIRECTORY answers them."""
        if self._listing is None:
            self._listing = "".join([f"{name}\0" for name in self.names]).encode("ascii")
        return self._listing


NO_CHILDREN: Final = Children({}, 0, shared=True)


class Node:
    """One node. Not changed once in a tree, but for the generation given to it at commit."""

    __slots__ = ("children", "generation", "perms", "value")

    def __init__(
        self,
        value: bytes,
        perms: Perms,
        children: Children = NO_CHILDREN,
        generation: int = NO_GENERATION,
    ) -> None:
        self.value = value
        self.perms = perms
        self.children = children
        self.generation = generation


Charge = Callable[[int, int, int], None]
"""charge(domid, nodes, bytes): what a domain owns has grown, or shrunk if negative."""


def account(charge: Charge, path: str, old: Node | None, new: Node | None) -> None:
    """Charge the owners for `new` taking the place of `old` at `path`."""
    if old is not None and new is not None:
        owner = new.perms[0].domid
        if owner == old.perms[0].domid:
            charge(owner, 0, len(new.value) - len(old.value))
            return
    if old is not None:
        charge(old.perms[0].domid, -1, -len(path) - len(old.value))
    if new is not None:
        charge(new.perms[0].domid, 1, len(path) + len(new.value))


class Tree:
    """All nodes by absolute path. The empty tree is what xenstored starts with."""

    def __init__(self, charge: Charge) -> None:
        self.nodes: dict[str, Node] = {}
        self.owned: dict[int, set[str]] = {}
        """Paths of the nodes of each domain but domain 0, which has most of them."""
        self.generation = 0
        self.get = self.nodes.get
        self._charge = charge
        tool = NO_CHILDREN.added("tool")
        xenstored = NO_CHILDREN.added("xenstored")
        self.put("/", Node(b"", OWNED_BY_DOM0, tool))
        self.put("/tool", Node(b"", OWNED_BY_DOM0, xenstored))
        self.put("/tool/xenstored", Node(b"", OWNED_BY_DOM0))
        for name in SPECIAL_NODES:
            self.put(name, Node(b"", OWNED_BY_DOM0))

    def put(self, path: str, node: Node) -> None:
        """Make `node` the node at `path`, with a new generation."""
        self.generation += 1
        node.generation = self.generation
        old = self.nodes.get(path)
        self.nodes[path] = node
        account(self._charge, path, old, node)
        owner = node.perms[0].domid
        before = DOM0 if old is None else old.perms[0].domid
        if owner != before:
            self._owned_no_more(path, before)
            if owner != DOM0:
                self.owned.setdefault(owner, set()).add(path)

    def remove(self, path: str) -> None:
        """Drop the node at `path`, which must exist; its parent's list is the caller's to mend."""
        self.generation += 1
        node = self.nodes.pop(path)
        account(self._charge, path, node, None)
        self._owned_no_more(path, node.perms[0].domid)

    def _owned_no_more(self, path: str, domid: int) -> None:
        if domid != DOM0:
            paths = self.owned[domid]
            paths.remove(path)
            if not paths:
                del self.owned[domid]

    def walk(self, path: str = "/") -> Iterator[tuple[str, Node]]:
        """`path` and all below it, parents first, children in order of creation."""
        stack = [path]
        while stack:
            current = stack.pop()
            node = self.nodes[current]
            yield current, node
            prefix = "/" if current == "/" else f"{current}/"
            stack.extend([prefix + name for name in reversed(node.children.names)])
