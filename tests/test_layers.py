"""Imports only go down: the floors of the house, and the walk that keeps them.

The rules, for every import in flowkit/ and services/, wherever it stands (at the top of a module, in a function, under
TYPE_CHECKING, or as a constant given to `import_module`):

- a module of flowkit imports only from lower floors; within one floor, a room knows only itself, and the single files
  of the ground floor know each other;
- nobody imports `flowkit.testing` or the `flowkit` package itself: one is for users' tests, the other for users;
- a module outside a room imports from the room, not from a file in it: `flowkit.store`, never `flowkit.store.log`;
- modules form no cycle;
- a service imports public names of `flowkit`, `flowkit.pattern` and `flowkit.testing`, and nothing of another service:
  its image holds no other.
"""

import ast
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GROUND = {"errors", "clock", "record", "codec", "options", "stopping"}
FLOORS = {
    **dict.fromkeys(GROUND, 0),
    "aws": 0.5,
    "window": 1,
    "join": 1,
    "pattern": 1,
    "store": 1,
    "lookup": 1,
    "source": 2,
    "sink": 2,
    "flow": 2,
    "table": 3,
    "agent": 4,
    "resource": 4,
    "app": 5,
    "sql": 6,
    "worker": 7,
    "web": 8,
    "cli": 9,
    "testing": 9,
    "": 10,  # the roof, flowkit/__init__.py, only gathers names
    "__main__": 10,
}
PUBLIC_ROOMS = ("flowkit.pattern", "flowkit.testing")
"""What users import beside `flowkit` itself."""


def test_imports_of_this_repository_keep_the_rules() -> None:
    assert violations(ROOT) == []


# --- the walk -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """One imported thing: `from flowkit.store import Log` is module flowkit.store and name Log."""

    line: int
    module: str
    name: str | None = None


@dataclass(frozen=True)
class Module:
    """One source file, its dotted name, and what it says."""

    path: Path
    name: str
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


def violations(root: Path) -> list[str]:
    """Everything under `root` that breaks a rule, as "file:line: what is wrong", in the order of the files."""
    modules = {module.name: module for directory in ("flowkit", "services") for module in read(root, directory)}
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    for module in modules.values():
        edges = graph.setdefault(module.name, set())
        for imported in imports(module):
            target = resolve(imported, modules)
            if target.split(".")[0] not in ("flowkit", "services"):
                continue
            if target != module.name:  # `from . import x` in an __init__ names the package itself
                edges.add(target)
            judge = in_service if module.name.startswith("services") else in_flowkit
            place = f"{module.path.relative_to(root)}:{imported.line}"
            found.extend(f"{place}: {complaint}" for complaint in judge(module, imported, target, modules))
        if module.name.startswith("flowkit") and room_of(module.name) not in FLOORS:
            found.append(f"{module.path.relative_to(root)}:1: {room_of(module.name)!r} is on no floor")
    return found + cycles(graph)


def read(root: Path, directory: str) -> Iterator[Module]:
    for path in sorted((root / directory).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield Module(path, name, ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))


def imports(module: Module) -> Iterator[Import]:
    for node in ast.walk(module.tree):
        match node:
            case ast.Import(names=names):
                yield from (Import(node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(names=names):
                base = absolute(module, node)
                yield from (Import(node.lineno, base, alias.name) for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield Import(node.lineno, name)
            case ast.Attribute(value=ast.Name(id="flowkit"), attr=name):
                # Without this, `import flowkit` would open every room to a service.
                if module.name.startswith("services"):
                    yield Import(node.lineno, "flowkit", name)


def absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
    package = package[: len(package) - (node.level - 1)]
    return ".".join([*package, *([node.module] if node.module else [])])


def resolve(imported: Import, modules: dict[str, Module]) -> str:
    """The module that an import reaches: a submodule if the name is one and its package does not bind it to a thing."""
    if imported.name is None:
        return imported.module
    submodule = f"{imported.module}.{imported.name}"
    package = modules.get(imported.module)
    if submodule in modules and (package is None or imported.name not in bound_by(package)):
        return submodule
    return imported.module


def bound_by(package: Module) -> set[str]:
    """Names that a package's __init__ defines or takes from its modules. `from . import log` only takes the module."""
    names: set[str] = set()
    for node in package.tree.body:
        match node:
            case ast.ImportFrom(module=source, names=aliases) if source:
                names.update(alias.asname or alias.name for alias in aliases)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return names


def room_of(name: str) -> str:
    """flowkit.store.log -> store; flowkit -> ""; services.fraud_detection.app -> fraud_detection."""
    return name.split(".")[1] if "." in name else ""


def in_flowkit(module: Module, imported: Import, target: str, modules: dict[str, Module]) -> Iterator[str]:
    here, there = room_of(module.name), room_of(target)
    if target.startswith("services"):
        yield f"flowkit does not know its users: {target}"
    elif target == "flowkit" and module.name != "flowkit":
        yield "flowkit/__init__.py is for users: import from the room"
    elif here == there:
        return
    elif there == "testing":
        yield "nobody imports flowkit.testing"
    elif there not in FLOORS:
        yield f"{target} is on no floor"
    elif not (FLOORS[there] < FLOORS.get(here, -1) or {here, there} <= GROUND):
        yield f"{here} (floor {FLOORS.get(here)}) imports {target} (floor {FLOORS[there]})"
    elif target.count(".") > 1:
        yield f"reaches past the door of {there}: import from flowkit.{there}, not from {target}"


def in_service(module: Module, imported: Import, target: str, modules: dict[str, Module]) -> Iterator[str]:
    if target.startswith("services"):
        if room_of(target) not in ("", room_of(module.name)):
            yield f"a service knows no other: {target}"
    elif target in PUBLIC_ROOMS and (imported.module == "flowkit" or imported.name is None):
        return
    elif target not in ("flowkit", *PUBLIC_ROOMS):
        yield f"a service imports flowkit's public names only, not {target}"
    elif imported.name is not None and imported.name not in public_names(modules.get(target)):
        yield f"{imported.name} is no public name of {target}"


def public_names(package: Module | None) -> set[str]:
    """What `__all__` lists, or, where there is none, the names without an underscore."""
    if package is None:
        return set()
    for node in package.tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                return set(ast.literal_eval(value))
            case ast.AnnAssign(target=ast.Name(id="__all__"), value=ast.expr() as value):
                return set(ast.literal_eval(value))
    return {name for name in bound_by(package) if not name.startswith("_")}


def cycles(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["cycle: " + " -> ".join(reversed(error.args[1]))]
    return []


# --- the walk itself is right: each rule, broken once ---------------------------------------------------------------

SOUND = {
    "flowkit/__init__.py": """
        from flowkit.app import App
        from flowkit.store import open_store as open_store
        from flowkit.errors import FlowkitError
        __all__ = ["App", "FlowkitError"]
    """,
    "flowkit/__main__.py": "from flowkit.cli import main",
    "flowkit/errors.py": "import flowkit.clock",
    "flowkit/clock.py": "import time",
    "flowkit/store/__init__.py": "from flowkit.store.log import open_store, snapshot",
    "flowkit/store/log.py": "from flowkit.store.snapshot import snapshot\nfrom .. import errors",
    "flowkit/store/snapshot.py": "from ..errors import FlowkitError",
    "flowkit/table/__init__.py": "from flowkit.store import snapshot",  # the function, though a module has its name
    "flowkit/app.py": "import flowkit.store, flowkit.table",
    "flowkit/cli/__init__.py": "def main():\n    from flowkit.app import App",
    "flowkit/testing/__init__.py": "from flowkit.app import App\ndef harness(): ...",
    "services/__init__.py": "",
    "services/fraud/app.py": """
        import flowkit
        import river
        from flowkit import App, testing
        from flowkit.testing import harness
        from services.fraud import rules
        app = flowkit.App("fraud")
    """,
    "services/fraud/rules.py": "import flowkit.testing",
    "services/fraud/moves.py": "import flowkit.pattern\nfrom flowkit.pattern import Pattern",
    "flowkit/pattern/__init__.py": "class Pattern: ...\ndef _hidden(): ...",
    "services/iot/app.py": "import flowkit",
}

BROKEN = {
    "upward": ("flowkit/store/log.py", "from flowkit.table import Table", "store (floor 1) imports flowkit.table"),
    "upward, relative": ("flowkit/store/log.py", "from .. import app", "store (floor 1) imports flowkit.app (floor 5)"),
    "upward in a function": ("flowkit/store/log.py", "def f():\n    import flowkit.app", "imports flowkit.app"),
    "upward for types": (
        "flowkit/clock.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from flowkit.app import App",
        "clock (floor 0) imports flowkit.app",
    ),
    "upward by name": (
        "flowkit/store/log.py",
        "import importlib\nimportlib.import_module('flowkit.app')",
        "imports flowkit.app",
    ),
    "sideways": ("flowkit/window/__init__.py", "import flowkit.store", "window (floor 1) imports flowkit.store"),
    "the roof": ("flowkit/app.py", "from flowkit import FlowkitError", "import from the room"),
    "testing": ("flowkit/cli/new.py", "from flowkit.testing import harness", "nobody imports flowkit.testing"),
    "testing from the roof": ("flowkit/__main__.py", "import flowkit.testing", "nobody imports flowkit.testing"),
    "a room on no floor": ("flowkit/misc.py", "", "'misc' is on no floor"),
    "users": ("flowkit/app.py", "import services.fraud.app", "does not know its users"),
    "past the door": ("flowkit/app.py", "from flowkit.store.log import open_store", "past the door of store"),
    "past the door, module": ("flowkit/app.py", "from flowkit.store import log", "past the door of store"),
    "past the door from the roof": ("flowkit/__init__.py", "from .store.log import x", "past the door of store"),
    "cycle in a room": (
        "flowkit/store/snapshot.py",
        "import flowkit.store.log",
        "cycle: flowkit.store.",
    ),
    "cycle on the ground": ("flowkit/clock.py", "from flowkit.errors import X", "cycle: flowkit."),
    "cycle through the own door": ("flowkit/store/snapshot.py", "from . import open_store", "cycle: flowkit.store"),
    "cycle for types": (
        "flowkit/clock.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import flowkit.errors",
        "cycle: flowkit.",
    ),
    "service in a room": ("services/iot/app.py", "from flowkit.app import App", "public names only"),
    "service in a room by attribute": ("services/iot/app.py", "import flowkit\nflowkit.store", "public names only"),
    "service, hidden name": ("services/iot/app.py", "from flowkit import open_store", "no public name"),
    "service, hidden name by attribute": ("services/iot/app.py", "import flowkit\nflowkit._x", "no public name"),
    "service, a pattern's inside": ("services/iot/app.py", "from flowkit.pattern import _hidden", "no public name"),
    "service, a file of patterns": ("services/iot/app.py", "from flowkit.pattern.engine import X", "public names only"),
    "service, testing's inside": ("services/iot/app.py", "from flowkit.testing import _x", "no public name"),
    "service in a service": ("services/iot/app.py", "from services.fraud import rules", "a service knows no other"),
}


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    return root


def test_a_sound_tree_has_no_violation(tmp_path: Path) -> None:
    assert violations(plant(tmp_path, SOUND)) == []


@pytest.mark.parametrize(("path", "text", "complaint"), BROKEN.values(), ids=BROKEN)
def test_a_broken_rule_is_found(tmp_path: Path, path: str, text: str, complaint: str) -> None:
    found = violations(plant(tmp_path, {**SOUND, path: text}))
    assert any(complaint in line and (line.startswith((f"{path}:", "cycle:"))) for line in found), found


def test_a_complaint_names_file_and_line(tmp_path: Path) -> None:
    plant(tmp_path, {**SOUND, "flowkit/store/log.py": "import time\n\nimport flowkit.app\n"})
    assert "flowkit/store/log.py:3: store (floor 1) imports flowkit.app (floor 5)" in violations(tmp_path)
