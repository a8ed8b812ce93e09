"""Finds keys that do not fit: what is kept by one field of a stream that is spread over tasks by another.

    sales = app.topic("sales", Sale, key="user")
    app.table("n", of=sales, by="shop", n=Count())     <- found here: sales of a shop lie in several tasks

Only what can be told from declarations, and from `table[event.field]` in an agent's own code.
"""

import ast
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

from flowkit.agent import AgentSpec, Topic
from flowkit.app import App
from flowkit.cli.check_code import function_tree
from flowkit.flow import Called, Derived, Events, Keyed
from flowkit.table import AnyTable, TableEvents


class Misplaced(NamedTuple):
    """Table or operator `name` is kept by field `by`, but the events of `stream` are spread by the fields `keys`."""

    name: str
    by: str
    stream: str
    keys: tuple[str, ...]


def misplaced(app: App) -> Iterator[Misplaced]:
    """What will be refused on a worker with several partitions, as far as that can be told."""
    for table in app.tables.values():
        taken = [(feed.stream, feed.by) for feed in table.feeds] or [(source, table.by) for source in table.sources]
        for stream, by in taken:
            yield from _compare(table.name, by, stream)
    for agent in app.agents.values():
        for table in agent.tables:
            if not table.broadcast and not table.local:
                for by in _fields_used(agent, table):
                    found = [found for source in agent.sources for found in _compare(table.name, by, source)]
                    if len(found) == len(agent.sources):
                        yield from found


def _compare(name: str, by: Any, stream: Events[Any]) -> Iterator[Misplaced]:
    keys = keys_of(stream)
    if isinstance(by, str) and keys is not None and by not in keys:
        yield Misplaced(name, by, stream.name, tuple(sorted(keys)))


def keys_of(stream: Events[Any]) -> set[str] | None:
    """The fields by which the events of a stream are spread over tasks, or None if that is not known."""
    key: Any = None
    if isinstance(stream, Keyed | Topic):
        key = stream.key
    elif isinstance(stream, TableEvents):
        key = "key" if stream.kind in ("closed", "changes") and not stream.table.local else None
    elif isinstance(stream, Derived) and not isinstance(stream, Called) and stream.step.kind in ("filter", "pass"):
        found = [keys_of(parent) for parent in stream.parents]
        return None if None in found else set().union(*(keys for keys in found if keys is not None))
    return {key} if isinstance(key, str) else None


def _fields_used(agent: AgentSpec, table: AnyTable[Any, Any]) -> list[str]:
    """The fields of the event by which an agent's own code looks into a table, if its source can be read."""
    tree = function_tree(agent.function)
    if tree is None or not tree.args.args:
        return []
    events = {tree.args.args[0].arg} if agent.per_event else set()
    events |= {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncFor) and isinstance(node.target, ast.Name)
    }
    closure = inspect.getclosurevars(agent.function)
    names = {name for name, value in {**closure.globals, **closure.nonlocals}.items() if value is table}
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        match node:
            case (
                ast.Subscript(value=ast.Name(id=name), slice=ast.Attribute(value=ast.Name(id=event), attr=field))
                | ast.Call(
                    func=ast.Attribute(value=ast.Name(id=name), attr="windows"),
                    args=[ast.Attribute(value=ast.Name(id=event), attr=field)],
                )
            ) if name in names and event in events:
                found[field] = None
    return list(found)
