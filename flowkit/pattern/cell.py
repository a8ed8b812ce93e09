"""What is stored of one key: events that wait for the watermark, and the partial matches of those it has passed.

    partials   (state, node, number, since)     a state of the automaton; what it took; its first event's number, time
    held       (node, number, since)            complete, but an earlier partial match may still forbid it
    nodes      (node before, event number, position)      a tree: partial matches share what they have in common
    events     (time, event)                              each event once, however many nodes took it

    events a1 b1 b2                              nodes   0: a1
    partial matches {a1 b1}, {a1 b1 b2}                  └─ 1: b1
                                                            └─ 2: b2

A node is the number of its place in `nodes`, an event's number that of its place in `events`.

Partial matches stand in order of their first events. What none of them needs any more is swept when the nodes have
doubled, and goes as a whole with the last of them.
"""

from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")

ROOT = -1
"""The node before the first event."""

Partial = tuple[int, int, int, int]
Complete = tuple[int, int, int]


class Run(msgspec.Struct, Generic[T], array_like=True):
    """The partial matches of one key, with what they took. `swept`: how many nodes the last sweep left."""

    partials: list[tuple[int, int, int, int]] = []
    nodes: list[tuple[int, int, int]] = []
    events: list[tuple[int, T]] = []
    held: list[tuple[int, int, int]] = []
    swept: int = 0


class Cell(msgspec.Struct, Generic[T], array_like=True):
    """`waiting` are events (time, event) that the watermark has not reached, in order; `run` is None without any."""

    waiting: list[tuple[int, T]] = []
    run: Run[T] | None = None


def path(run: Run[Any] | None, node: int) -> list[tuple[int, int]]:
    """(event number, position) of all that a node and those before it took, in order."""
    found: list[tuple[int, int]] = []
    if run is not None:
        nodes = run.nodes
        while node != ROOT:
            node, number, position = nodes[node]
            found.append((number, position))
        found.reverse()
    return found


def sweep(run: Run[Any]) -> None:
    """Forgets the nodes and events that nothing leads to."""
    nodes = run.nodes
    needed: set[int] = set()
    for node in [*(partial[1] for partial in run.partials), *(complete[0] for complete in run.held)]:
        while node != ROOT and node not in needed:
            needed.add(node)
            node = nodes[node][0]
    kept = sorted(needed)
    moved = {node: place for place, node in enumerate(kept)}
    moved[ROOT] = ROOT
    numbers = sorted({nodes[node][1] for node in kept})
    renumbered = {number: place for place, number in enumerate(numbers)}
    run.partials = [(state, moved[node], renumbered[first], since) for state, node, first, since in run.partials]
    run.held = [(moved[node], renumbered[first], since) for node, first, since in run.held]
    run.nodes = [(moved[nodes[node][0]], renumbered[nodes[node][1]], nodes[node][2]) for node in kept]
    run.events = [run.events[number] for number in numbers]
    run.swept = len(kept)
