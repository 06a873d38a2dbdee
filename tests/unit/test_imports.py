"""Proves that imports between the packages of hvmlite go one way, as docs/architecture.md says.

Reads the source, so an import inside a function counts too. Cannot see a module that is reached
without an import, such as an object that the toolstack hands down to the hypervisor.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = "hvmlite"
SOURCE = Path(__file__).resolve().parents[2] / "src" / PROJECT

# Whom each package may import, besides itself. A dotted name allows that module alone; ROOT is
# hvmlite/__init__.py, where the public names are gathered.
ROOT = "(root)"
# What all engines share; the engines themselves (engine.tcg) are only for whoever picks one.
INTERFACE = frozenset(
    {"engine.atomics", "engine.base", "engine.disasm", "engine.memory", "engine.paging"}
)
# What is below everything, and imports nothing of ours.
GROUND = frozenset({"errors", "records"})
ALLOWED: dict[str, frozenset[str]] = {
    "abi": frozenset(),
    "errors": frozenset(),
    "records": frozenset(),
    "engine": GROUND | {"abi"},
    "hypervisor": INTERFACE | GROUND | {"abi"},
    "platform": INTERFACE | GROUND | {"abi", "hypervisor"},
    "observe": INTERFACE | GROUND | {"abi", "hypervisor"},
    "xenstore": GROUND | {"abi", "hypervisor"},
    "backends": GROUND | {"abi", "hypervisor", "xenstore"},
    "toolstack": GROUND
    | {"abi", "engine", "hypervisor", "platform", "xenstore", "backends", "observe"},
    ROOT: GROUND | {"abi", "hypervisor", "toolstack"},
}
_EVERYTHING = frozenset(ALLOWED)
ALLOWED |= {"cli": _EVERYTHING, "testing": _EVERYTHING}
# May be named in annotations, behind `if TYPE_CHECKING`, but not loaded.
TYPES_ONLY: dict[str, frozenset[str]] = {"hypervisor": frozenset({"observe"})}


@dataclass(frozen=True)
class Import:
    line: int
    module: str  # as far as it is one of ours, else the name asked for
    types_only: bool


def package_of(module: str) -> str:
    """Return the package that a dotted name of ours is in; errors counts as one."""
    return module.split(".")[1] if "." in module else ROOT


def is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
    return name == "TYPE_CHECKING"


def imports(tree: ast.Module, known: frozenset[str]) -> Iterator[Import]:
    """Yield every import of a module of ours; ``known`` are the dotted names that exist."""

    def visit(node: ast.AST, types_only: bool) -> Iterator[Import]:
        match node:
            case ast.If(test=test, body=body, orelse=orelse) if is_type_checking(test):
                for child in body:
                    yield from visit(child, True)
                for child in orelse:
                    yield from visit(child, types_only)
                return
            case ast.Import(names=names):
                for alias in names:
                    yield Import(node.lineno, alias.name, types_only)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = "." * level + (module or "")
                for alias in names:
                    whole = f"{base}.{alias.name}"
                    yield Import(node.lineno, whole if whole in known else base, types_only)
            case ast.Call(
                func=ast.Attribute(attr="import_module")
                | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield Import(node.lineno, name, types_only)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, types_only)

    for found in visit(tree, False):
        if found.module.startswith((".", f"{PROJECT}.")) or found.module == PROJECT:
            yield found


def permitted(importer: str, found: Import) -> bool:
    package = package_of(found.module)
    if package == importer:
        return True
    allowed = ALLOWED.get(importer, frozenset())
    if found.types_only:
        allowed |= TYPES_ONLY.get(importer, frozenset())
    below = found.module.removeprefix(f"{PROJECT}.")
    return any(name in {package, below} or below.startswith(f"{name}.") for name in allowed)


def violations(source: Path) -> list[str]:
    """Return one line for each import below ``source`` that goes the wrong way."""
    modules: dict[str, Path] = {}
    for path in sorted(source.rglob("*.py")):
        parts = (PROJECT, *path.relative_to(source).with_suffix("").parts)
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    known = frozenset(modules)
    wrong = []
    for module, path in modules.items():
        importer = package_of(module)
        where = path.relative_to(source).as_posix()
        if importer not in ALLOWED:
            wrong.append(f"{where}: {importer} has no rule in this test")
            continue
        for found in imports(ast.parse(path.read_bytes(), filename=str(path)), known):
            if found.module.startswith("."):
                wrong.append(f"{where}:{found.line}: relative import")
            elif not permitted(importer, found):
                wrong.append(f"{where}:{found.line}: {importer} imports {found.module}")
    return wrong


def test_imports_go_one_way() -> None:
    assert violations(SOURCE) == []


def test_the_source_was_found() -> None:
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert packages | GROUND | {ROOT} == set(ALLOWED)


def test_every_rule_names_packages_that_have_rules() -> None:
    named = {name.split(".")[0] for allowed in ALLOWED.values() for name in allowed}
    assert named <= set(ALLOWED)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree that keeps every rule."""
    files = {
        "__init__.py": "from hvmlite.toolstack.host import Host",
        "errors.py": "",
        "abi/__init__.py": "",
        "abi/xen.py": "from hvmlite.abi import layout\nimport struct",
        "abi/layout.py": "",
        "engine/__init__.py": "",
        "engine/base.py": "from hvmlite.abi.xen import x\nfrom hvmlite import errors",
        "engine/tcg/__init__.py": "",
        "engine/tcg/qemu.py": "from hvmlite.engine import base",
        "hypervisor/__init__.py": "",
        "hypervisor/vcpu.py": "from hvmlite.engine import base\nimport hvmlite.engine.base as b",
        "observe/trace.py": "",
        "toolstack/__init__.py": "",
        "toolstack/host.py": "import hvmlite.engine.tcg.qemu\nimport hvmlite.observe.trace",
        "cli/main.py": "from hvmlite import Host",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_good_tree_passes(tree: Path) -> None:
    assert violations(tree) == []


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("abi/bad.py", "import hvmlite.errors", "abi imports hvmlite.errors"),
        ("abi/bad.py", "import hvmlite", "abi imports hvmlite"),
        ("abi/bad.py", "from hvmlite import Host", "abi imports hvmlite"),
        ("abi/bad.py", "from . import xen", "relative import"),
        ("abi/bad.py", "from ..errors import HvmliteError", "relative import"),
        ("engine/bad.py", "from hvmlite import hypervisor", "engine imports hvmlite.hypervisor"),
        (
            "hypervisor/bad.py",
            "from hvmlite.engine.tcg.qemu import Qemu",
            "hypervisor imports hvmlite.engine.tcg.qemu",
        ),
        (
            "hypervisor/bad.py",
            "from hvmlite.engine import tcg",
            "hypervisor imports hvmlite.engine",
        ),
        (
            "hypervisor/bad.py",
            "def f():\n  if True:\n    import hvmlite.toolstack.host as h",
            "hypervisor imports hvmlite.toolstack.host",
        ),
        (
            "hypervisor/bad.py",
            "import importlib\nimportlib.import_module('hvmlite.cli.main')",
            "hypervisor imports hvmlite.cli.main",
        ),
        (
            "hypervisor/bad.py",
            "from hvmlite.observe.trace import Trace",
            "hypervisor imports hvmlite.observe.trace",
        ),
        (
            "hypervisor/bad.py",
            "if TYPE_CHECKING:\n  pass\nelse:\n  import hvmlite.observe.trace",
            "hypervisor imports hvmlite.observe.trace",
        ),
        ("toolstack/bad.py", "import hvmlite.cli.main", "toolstack imports hvmlite.cli.main"),
        ("novel/__init__.py", "", "novel has no rule"),
    ],
)
def test_a_wrong_import_is_found(tree: Path, path: str, text: str, complaint: str) -> None:
    bad = tree / path
    bad.parent.mkdir(exist_ok=True)
    bad.write_text(text)
    (found,) = violations(tree)
    assert found.startswith(path)
    assert complaint in found


def test_the_hypervisor_may_name_types_of_observe(tree: Path) -> None:
    (tree / "hypervisor" / "good.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  from hvmlite.observe import trace"
    )
    assert violations(tree) == []
