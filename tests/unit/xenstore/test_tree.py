"""Proves the tree's own rules: paths, permission strings, lists of children, copy-on-write.

Cannot see who is allowed to do what (test_permissions) or what the wire says (test_requests).
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.abi.errno import XEN_EINVAL
from hvmlite.xenstore.errors import XenStoreError, wire_payload
from hvmlite.xenstore.tree import (
    NO_CHILDREN,
    OWNED_BY_DOM0,
    XS_PERM_READ,
    Node,
    Perm,
    Tree,
    base_name,
    canonical_path,
    parent_path,
    parse_perm,
    quota_length,
)

HOME = "/local/domain/7"


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/", "/"),
        (b"/a", "/a"),
        (b"/a/B-_@9/c", "/a/B-_@9/c"),
        (b"data/x", HOME + "/data/x"),
        (b"-", HOME + "/-"),
        (b"/" + b"a" * 3071, "/" + "a" * 3071),
    ],
)
def test_valid_paths(raw, path):
    assert canonical_path(raw, HOME) == path


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"//",
        b"/a/",
        b"a/",
        b"/a//b",
        b"/a b",
        b"/a\n",
        b"/a\0b",
        b"/a+b",
        b"/a.b",
        b"~/x",
        b"/\xc3\xa9",
        b"@releaseDomain",
        b"/" + b"a" * 3072,
        b"a" * (3072 - len(HOME)),
    ],
)
def test_invalid_paths(raw):
    with pytest.raises(XenStoreError) as caught:
        canonical_path(raw, HOME)
    assert caught.value.errno == XEN_EINVAL


def test_special_paths_only_where_admitted():
    assert canonical_path(b"@releaseDomain", HOME, special=True) == "@releaseDomain"
    assert canonical_path(b"@releaseDomain/4", HOME, special=True) == "@releaseDomain/4"
    for raw in (b"@a/", b"@a//b", b"@a b"):
        with pytest.raises(XenStoreError):
            canonical_path(raw, HOME, special=True)


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_any_bytes_are_a_path_or_refused(raw):
    try:
        path = canonical_path(raw, HOME, special=True)
    except XenStoreError:
        return
    assert path[0] in "/@"
    assert path == "/" or not path.endswith("/")
    assert "//" not in path


def test_parent_and_name():
    assert [parent_path(p) for p in ("/", "/a", "/a/b", "@x")] == ["/", "/", "/a", "/"]
    assert [base_name(p) for p in ("/a", "/a/b")] == ["a", "b"]


def test_quota_length_leaves_out_the_domain_prefix():
    assert quota_length("/local/domain/12345/abc") == 3
    assert quota_length("/local/domain/123456/abc") == 24
    assert quota_length("/local/domain/1") == 15
    assert quota_length("/abc") == 4


@pytest.mark.parametrize(
    ("text", "perm"),
    [
        (b"n0", Perm(0, 0)),
        (b"r4", Perm(4, 1)),
        (b"w4", Perm(4, 2)),
        (b"b32000", Perm(32000, 3)),
        (b"r0x10", Perm(16, 1)),
        (b"r010", Perm(8, 1)),
        (b"n-1", Perm(0xFFFFFFFF, 0)),
    ],
)
def test_permissions_parse(text, perm):
    assert parse_perm(text) == perm


@pytest.mark.parametrize("text", [b"", b"r", b"x1", b"r1x", b"r0x", b"r09", b"R1", b"r 1 "])
def test_bad_permissions(text):
    with pytest.raises(XenStoreError):
        parse_perm(text)


def test_permission_prints_without_its_mark():
    assert str(Perm(4, XS_PERM_READ | 8)) == "r4"


def test_children_are_copied_only_while_shared():
    first = NO_CHILDREN.added("a")
    assert first is not NO_CHILDREN
    assert first.added("b") is first
    assert first.listing() == b"a\0b\0"
    first.shared = True
    second = first.added("c").removed("a")
    assert first.listing() == b"a\0b\0"
    assert second.listing() == b"b\0c\0"
    assert (first.size, second.size) == (4, 4)


def test_children_ignore_what_changes_nothing():
    children = NO_CHILDREN.added("a")
    children.added("a")
    children.removed("zz")
    assert (children.listing(), children.size) == (b"a\0", 2)


def test_every_change_has_its_own_generation():
    charges = []
    tree = Tree(lambda *charge: charges.append(charge))
    seen = {node.generation for node in tree.nodes.values()}
    assert len(seen) == len(tree.nodes)
    node = Node(b"v", OWNED_BY_DOM0)
    tree.put("/x", node)
    assert node.generation > max(seen)
    before = tree.generation
    tree.remove("/x")
    assert tree.generation == before + 1
    assert charges[-2:] == [(0, 1, 3), (0, -1, -3)]


def test_walk_goes_parents_first_in_order_of_creation():
    tree = Tree(lambda *_: None)
    root = tree.nodes["/"]
    for name in ("b", "a"):
        root.children.added(name)
        tree.put(f"/{name}", Node(b"", OWNED_BY_DOM0, NO_CHILDREN.added("k")))
        tree.put(f"/{name}/k", Node(b"", OWNED_BY_DOM0))
    order = [path for path, _ in tree.walk()]
    assert order == ["/", "/tool", "/tool/xenstored", "/b", "/b/k", "/a", "/a/k"]


def test_errors_go_out_by_name():
    assert wire_payload(2) == b"ENOENT\0"
    assert wire_payload(9) == b"EINVAL\0"
    assert str(XenStoreError(2, "/a")) == "xenstore: /a: ENOENT"
    assert str(XenStoreError(13)) == "xenstore: EACCES"
