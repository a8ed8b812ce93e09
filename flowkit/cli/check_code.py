"""Finds state that is none: what an agent keeps in local or module variables from event to event.

    seen = set()                       lost at a restart, and after a failed event it starts afresh
    async for event in stream:
        seen.add(event.user)           <- found here

Read from the agent's source, by rules of thumb: a finding is worth a look, silence proves nothing.
"""

import ast
import inspect
import textwrap
from collections import ChainMap, deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

CONTAINERS = {"dict", "list", "set", "deque", "defaultdict", "Counter", "OrderedDict", "bytearray"}
MUTATORS = {
    *("append", "appendleft", "extend", "extendleft", "insert", "add", "update", "setdefault", "pop", "popleft"),
    *("popitem", "remove", "discard", "clear", "subtract", "sort", "reverse"),
}
DISPLAYS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


class Kept(NamedTuple):
    """A variable that outlives an event: its name, the line that changes it, and whether it is the module's."""

    name: str
    line: int
    is_global: bool


def kept_between_events(function: Callable[..., Any], *, per_event: bool) -> list[Kept]:
    """The variables of an agent's function that outlive an event; none if its source cannot be read."""
    tree = function_tree(function)
    if tree is None:
        return []
    found = list(_globals(tree, function, tree.body))
    if not per_event and tree.args.args:
        stream = tree.args.args[0].arg
        for node in _walk(tree.body):
            if isinstance(node, ast.AsyncFor) and any(
                isinstance(part, ast.Name) and part.id == stream for part in ast.walk(node.iter)
            ):
                found += _locals(tree, node, function)
    first: dict[str, Kept] = {}
    for kept in sorted(found, key=lambda kept: kept.line):
        first.setdefault(kept.name, kept)
    return list(first.values())


def function_tree(function: Callable[..., Any]) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The source of a function, with the lines of its file; None if it cannot be read."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
        (tree,) = ast.parse(source).body
    except (OSError, TypeError, ValueError, SyntaxError):
        return None
    if not isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    first = min([tree.lineno, *(decorator.lineno for decorator in tree.decorator_list)])
    ast.increment_lineno(tree, function.__code__.co_firstlineno - first)
    return tree


def _locals(tree: ast.FunctionDef | ast.AsyncFunctionDef, loop: ast.AsyncFor, function: Any) -> Iterator[Kept]:
    """Names set before the loop over the stream, and changed in it before it sets them anew."""
    inside = {id(node) for node in ast.walk(loop)}
    before: dict[str, ast.expr | None] = {}
    for node in _walk(tree.body):
        if id(node) not in inside and getattr(node, "lineno", 0) < loop.lineno:
            for name, value in _assigned(node):
                before.setdefault(name, value)
    for name, line, how in _changes(loop.body):
        if name not in before or _set_first(loop, name):
            continue
        value = before[name]
        if how == "set" or (how == "part" and _is_made_here(value, function)) or _is_container(value):
            yield Kept(name, line, is_global=False)


def _globals(
    tree: ast.FunctionDef | ast.AsyncFunctionDef, function: Callable[..., Any], body: list[ast.stmt]
) -> Iterator[Kept]:
    """Names of the module (or of an outer function) that the function sets, and its containers that it changes."""
    outer = {name for node in _walk(body) if isinstance(node, ast.Global | ast.Nonlocal) for name in node.names}
    own = {name for node in _walk(body) for name, _ in _assigned(node)} - outer
    own |= {argument.arg for argument in ast.walk(tree.args) if isinstance(argument, ast.arg)}
    closure = inspect.getclosurevars(function)
    values = ChainMap(dict(closure.nonlocals), dict(closure.globals))
    for name, line, how in _changes(body):
        if name in own:
            continue
        if how == "set":
            if name in outer:
                yield Kept(name, line, is_global=True)
        elif isinstance(values.get(name), dict | list | set | deque | bytearray):
            yield Kept(name, line, is_global=True)


def _changes(body: list[ast.stmt]) -> Iterator[tuple[str, int, str]]:
    """(name, line, how): "set" for the name itself, "part" for an item or attribute, "call" for a method."""
    for node in _walk(body):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                yield name, node.lineno, "set"
            case ast.Subscript(ctx=ast.Store() | ast.Del()) | ast.Attribute(ctx=ast.Store() | ast.Del()):
                base: ast.expr = node
                while isinstance(base, ast.Subscript | ast.Attribute):
                    base = base.value
                if isinstance(base, ast.Name):
                    yield base.id, node.lineno, "part"
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)) if method in MUTATORS:
                yield name, node.lineno, "call"


def _assigned(node: ast.AST) -> Iterator[tuple[str, ast.expr | None]]:
    match node:
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                        yield part.id, value if part is target else None
        case ast.AnnAssign(target=ast.Name(id=name), value=value):
            yield name, value
        case ast.Name(id=name, ctx=ast.Store()):
            yield name, None


def _set_first(loop: ast.AsyncFor, name: str) -> bool:
    """True if each pass of the loop sets `name` before it looks at it: then nothing is carried over."""
    if any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(loop.target)):
        return True
    for statement in loop.body:
        names = [node for node in ast.walk(statement) if isinstance(node, ast.Name) and node.id == name]
        if not names:
            continue
        value = getattr(statement, "value", None)
        return (
            isinstance(statement, ast.Assign | ast.AnnAssign)
            and value is not None
            and not any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(value))
            and any(isinstance(node.ctx, ast.Store) for node in names)
        )
    return False


def _is_container(value: ast.expr | None) -> bool:
    match value:
        case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(attr=name)):
            return name in CONTAINERS
    return isinstance(value, DISPLAYS)


def _is_made_here(value: ast.expr | None, function: Any) -> bool:
    """True for an object that the function makes itself; what a resource gives is another matter."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        made_by = function.__globals__.get(value.func.id)
        return type(made_by).__name__ != "Resource"
    return isinstance(value, ast.Call) or _is_container(value)


def _walk(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """All nodes in order of source, but for those of functions and classes defined inside."""
    stack: list[ast.AST] = list(reversed(body))
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            stack += reversed(list(ast.iter_child_nodes(node)))
