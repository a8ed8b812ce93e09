"""Where the events of a stream come from, and what happens to them on the way: derived streams, followed back."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowkit.flow.events import Called, Derived, Events, Keyed, Step

DROPPED: Any = type("Dropped", (), {"__repr__": lambda _self: "DROPPED"})()
"""What a chain gives for an event that it does not let through."""


@dataclass(frozen=True)
class Path:
    """From `root`, whose events come from outside or from a table, through `steps` to the stream `name`."""

    name: str
    root: Events[Any]
    steps: tuple[Step, ...]


Cuts = Mapping[str, Events[Any]]
"""By the name of a stream that is sent through a topic of its own: that topic, from which its events come then."""


def paths_of(stream: Events[Any], cuts: Cuts | None = None) -> list[Path]:
    """All ways on which events come into `stream`: one, or as many as it merges. They begin at `cuts` at the latest."""
    if cuts and stream.name in cuts:
        return [Path(stream.name, cuts[stream.name], ())]
    return paths_into(stream, cuts)


def paths_into(stream: Events[Any], cuts: Cuts | None = None) -> list[Path]:
    """All ways on which events come into `stream` from before it, also if it is one of `cuts` itself."""
    if not isinstance(stream, Derived) or isinstance(stream, Called):
        return [Path(stream.name, stream, ())]
    step = () if stream.step.kind == "pass" else (stream.step,)
    return [
        Path(stream.name, path.root, (*path.steps, *step))
        for parent in stream.parents
        for path in paths_of(parent, cuts)
    ]


def roots_of(streams: Iterable[Events[Any]], cuts: Cuts | None = None) -> list[Events[Any]]:
    """The streams from which the events of `streams` come, each once; results of calls after what they are made of."""
    found: dict[str, Events[Any]] = {}
    for stream in streams:
        for path in paths_of(stream, cuts):
            if isinstance(path.root, Called) and path.root.name not in found:
                found |= {root.name: root for root in roots_of(path.root.parents, cuts) if root.name not in found}
            found.setdefault(path.root.name, path.root)
    return list(found.values())


def keyed_in(streams: Iterable[Events[Any]]) -> list[Keyed[Any, Any]]:
    """All that `group_by` made on the way into `streams`, each once, upstream first."""
    found: dict[str, Keyed[Any, Any]] = {}
    for stream in streams:
        if isinstance(stream, Derived):
            found |= {keyed.name: keyed for keyed in keyed_in(stream.parents)}
        if isinstance(stream, Keyed):
            found[stream.name] = stream
    return list(found.values())


@dataclass(frozen=True)
class Chain:
    """The steps of a path as one function.

    `one(event)` is what becomes of an event, or DROPPED; None where a step may make several of one. `many(event)` is
    all that becomes of it.
    """

    one: Callable[[Any], Any] | None
    many: Callable[[Any], list[Any]]


def chain_of(*ways: Sequence[Step]) -> Chain:
    """Fuse steps: one generated function that calls theirs, so that a chain costs one call more than its parts.

    Of several ways, what an event comes to on each is put one after the other.
    """
    if len(ways) == 1:
        return _chain(ways[0])
    chains = [_chain(steps).many for steps in ways]
    return Chain(None, lambda event: [value for many in chains for value in many(event)])


def _chain(steps: Sequence[Step]) -> Chain:
    names = {f"f{n}": step.function for n, step in enumerate(steps)}
    one = None
    if not any(step.kind == "flat_map" for step in steps):
        lines = [
            f"    if not f{n}(e): return DROPPED" if step.kind == "filter" else f"    e = f{n}(e)"
            for n, step in enumerate(steps)
        ]
        one = _made("def chain(e):\n" + "\n".join([*lines, "    return e"]), {**names, "DROPPED": DROPPED})
    lines, indent = nested(steps, "    ")
    text = "def chain(e):\n    out = []\n" + "".join(f"{line}\n" for line in lines)
    many = _made(f"{text}{indent}out.append(e)\n    return out\n", names)
    return Chain(one, many)


def nested(steps: Sequence[Step], indent: str) -> tuple[list[str], str]:
    """Statements that lead from `e` to what the steps make of it, and the indentation of what is done with that.

    Their functions are called `f0`, `f1` ….
    """
    lines = []
    for n, step in enumerate(steps):
        if step.kind == "map":
            lines.append(f"{indent}e = f{n}(e)")
        else:
            lines.append(f"{indent}if f{n}(e):" if step.kind == "filter" else f"{indent}for e in f{n}(e):")
            indent += "    "
    return lines, indent


def _made(text: str, names: dict[str, Any]) -> Callable[[Any], Any]:
    space = dict(names)
    exec(compile(text, "<flowkit chain>", "exec"), space)  # noqa: S102  our own text, without anything from outside in it
    made: Callable[[Any], Any] = space["chain"]
    return made
