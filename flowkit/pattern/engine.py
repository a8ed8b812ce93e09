"""The automaton that finds matches in one key's events, given in event-time order.

All that it knows of a key is in a `Cell`, which is stored:

    partials   (state, node, number, since)      a state of the program; what it took; its first event's number, time
    held       (node, number, since)             complete, but an earlier partial match may still forbid it
    nodes      id -> (node before, event number, position)     a tree: partial matches share what they have in common
    events     event number -> (time, event)                   each event once, however many nodes take it

Partial matches stand in order of their first events. Nodes and events that no partial match needs any more are swept
when they have doubled, or when no partial match is left.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from flowkit.pattern.element import Contiguity
from flowkit.pattern.program import ALWAYS, NEVER, NEXT, NOW, PENDING, Option, Program
from flowkit.pattern.skip import AfterMatch, NoSkip, first_start

T = TypeVar("T")

ROOT = -1
"""The node before the first event."""

Partial = tuple[int, int, int, int]
Complete = tuple[int, int, int]


class Cell(msgspec.Struct, Generic[T], array_like=True):
    """What is known of one key. `waiting` are events (time, event) in order that the watermark has not reached."""

    waiting: list[tuple[int, T]] = []
    partials: list[tuple[int, int, int, int]] = []
    held: list[tuple[int, int, int]] = []
    nodes: dict[int, tuple[int, int, int]] = {}
    events: dict[int, tuple[int, T]] = {}
    fed: int = 0
    made: int = 0
    swept: int = 0


class Found(NamedTuple, Generic[T]):
    """A match, or a partial match that timed out: events by name, times of the first and of the last (ms)."""

    events: dict[str, list[T]]
    start: int
    end: int


@dataclass(slots=True)
class _Way:
    """An option as the engine uses it: `state` is that of waiting for it (-1: it does not wait)."""

    target: int
    test: int
    until: int
    any: bool
    state: int
    inner: bool
    guards: tuple[tuple[int, int], ...]
    stops: tuple[int, ...]
    next_stops: tuple[int, ...]
    option: Option


@dataclass(slots=True)
class _State:
    """Ways to go on from a state. `careful` if one of them asks for more than its test."""

    ways: tuple[_Way, ...]
    complete: bool  # a match as soon as the state is reached
    pending: bool  # a match when `within` is over
    goes_on: bool  # waits for an event
    stops: tuple[int, ...]
    careful: bool


class Engine(Generic[T]):
    """Feeds a key's events to a program. It keeps nothing between two calls: all state is in the cell."""

    def __init__(self, program: Program, after: AfterMatch) -> None:
        self.program = program
        self.within = program.within
        self.after = after
        self.skips = not isinstance(after, NoSkip)
        self.names = [position.name for position in program.positions]
        self.tests: list[Callable[..., Any]] = [c.test if c else bool for c in program.conditions]
        self.iterative = [bool(c and c.iterative) for c in program.conditions]
        self.blank: list[bool | None] = [None] * len(program.conditions)
        self.blank[ALWAYS], self.blank[NEVER] = True, False
        self.memo = self.blank.copy()
        self.waits = _waits(program)
        self.states = [self._state(p.options) for p in program.positions]
        self.states += [self._state((option,)) for option in self.waits]
        self.start = self._state(program.start)

    def _state(self, options: tuple[Option, ...]) -> _State:
        ways = tuple(self._way(option) for option in options if option.target != NOW)
        return _State(
            ways,
            complete=any(o.target == NOW for o in options),
            pending=any(o.target == PENDING for o in options),
            goes_on=any(way.target != PENDING for way in ways),
            stops=tuple(dict.fromkeys(stop for way in ways for stop in way.stops)),
            careful=any(way.guards or way.next_stops for way in ways),
        )

    def _way(self, option: Option) -> _Way:
        position = self.program.positions[option.target] if option.target >= 0 else None
        return _Way(
            option.target,
            position.test if position else ALWAYS,
            position.until if position else NEVER,
            option.contiguity is Contiguity.ANY or option.target == PENDING,
            self.waits.get(_waiting(option), -1),
            option.inner,
            option.guards,
            option.stops,
            option.next_stops,
            option,
        )

    # --- an event ---------------------------------------------------------------------------------------------------

    def feed(self, cell: Cell[T], t: int, event: T) -> list[Found[T]]:
        """The matches that `event` completes, or lets go. All timed out by `t` must have been expired."""
        self.memo[:] = self.blank
        partials = cell.partials
        number = cell.fed
        kept: list[Partial] = []
        done: list[Complete] = []
        if partials:
            states = self.states
            for partial in partials:
                self._step(cell, states[partial[0]], partial, number, t, event, kept, done)
        elif not self._starts(event):
            return []
        self._step(cell, self.start, (-1, ROOT, number, t), number, t, event, kept, done)
        cell.fed = number + 1
        cell.partials = kept
        found = self._settle(cell, done) if done or cell.held else []
        if not cell.partials:
            _clear(cell)
        elif len(cell.nodes) > 2 * cell.swept + 16:
            _sweep(cell)
        return found

    def _starts(self, event: T) -> bool:
        """Whether an event may begin a match: most do not, and leave nothing behind."""
        for way in self.start.ways:  # noqa: SIM110 - a generator would cost more than the test
            if self._holds(way.test, event, None, ROOT):
                return True
        return False

    def _step(
        self,
        cell: Cell[T],
        state: _State,
        partial: Partial,
        number: int,
        t: int,
        event: T,
        kept: list[Partial],
        done: list[Complete],
    ) -> None:
        """What becomes of one partial match: any number of them in `kept`, of complete ones in `done`."""
        node = partial[1]
        for stop in state.stops:
            if self._holds(stop, event, cell, node):
                return
        ways = self._open(state, event, cell, node) if state.careful else state.ways
        waiting = -1
        for way in ways:
            target = way.target
            if target == NEXT:
                done.append((node, partial[2], partial[3]))
                continue
            hit = self._holds(way.test, event, cell, node)
            if hit and target >= 0 and (way.until == NEVER or not self._holds(way.until, event, cell, node)):
                taken = self._take(cell, node, number, t, event, target)
                reached = self.states[target]
                if reached.complete:
                    done.append((taken, partial[2], partial[3]))
                if reached.ways:
                    kept.append((target, taken, partial[2], partial[3]))
            waiting = way.state
            if waiting < 0 or (hit and not way.any):
                continue
            if way.inner and way.until != NEVER and self._holds(way.until, event, cell, node):
                continue
            kept.append(partial if waiting == partial[0] else (waiting, node, partial[2], partial[3]))

    def _open(self, state: _State, event: T, cell: Cell[T], node: int) -> Iterable[_Way]:
        """The ways that are not guarded against `event`; none if a not_next stops them all."""
        found: list[_Way] = []
        for way in state.ways:
            blocked = released = False
            for test, until in way.guards:
                if self._holds(until, event, cell, node):
                    released = True
                elif self._holds(test, event, cell, node):
                    blocked = True
            if blocked:
                continue
            for stop in way.next_stops:
                if self._holds(stop, event, cell, node):
                    return ()
            if released:
                guards = tuple(g for g in way.guards if not self._holds(g[1], event, cell, node))
                way = self._way(replace(way.option, guards=guards))
            found.append(way)
        return found

    def _holds(self, condition: int, event: T, cell: Cell[T] | None, node: int) -> bool:
        known = self.memo[condition]
        if known is not None:
            return known
        if self.iterative[condition]:
            return bool(self.tests[condition](event, self._matched(cell, node)))
        known = self.memo[condition] = bool(self.tests[condition](event))
        return known

    def _matched(self, cell: Cell[T] | None, node: int) -> dict[str, list[T]]:
        matched: dict[str, list[T]] = {name: [] for name in self.program.names}
        if cell is not None:
            for number, position in _path(cell, node):
                matched[self.names[position]].append(cell.events[number][1])
        return matched

    def _take(self, cell: Cell[T], node: int, number: int, t: int, event: T, position: int) -> int:
        taken = cell.made
        cell.made = taken + 1
        cell.nodes[taken] = (node, number, position)
        cell.events[number] = (t, event)
        return taken

    # --- the passing of time ----------------------------------------------------------------------------------------

    def deadline(self, cell: Cell[T]) -> int | None:
        """When (ms) the earliest partial match times out; None if none ever does."""
        return cell.partials[0][3] + self.within if self.within and cell.partials else None

    def expire(self, cell: Cell[T]) -> tuple[list[Found[T]], list[Found[T]]]:
        """Ends the partial matches that time out first: matches that this completes or lets go, and timed-out ones."""
        since = cell.partials[0][3]
        over = list(itertools.takewhile(lambda partial: partial[3] == since, cell.partials))
        del cell.partials[: len(over)]
        ended = {(p[1], p[2], p[3]): None for p in over if self.states[p[0]].goes_on}
        done = list({(p[1], p[2], p[3]): None for p in over if self.states[p[0]].pending})
        timed_out = [self._found(cell, complete) for complete in self._in_order(cell, list(ended))]
        found = self._settle(cell, done) if done or cell.held else []
        if not cell.partials:
            _clear(cell)
        return found, timed_out

    # --- matches ----------------------------------------------------------------------------------------------------

    def _settle(self, cell: Cell[T], done: list[Complete]) -> list[Found[T]]:
        """The matches to send of those completed now and those held, after what the strategy takes away."""
        done = self._in_order(cell, done)
        if not self.skips:
            return [self._found(cell, complete) for complete in done]
        held = sorted([*cell.held, *done], key=itemgetter(1)) if cell.held else done
        found: list[Found[T]] = []
        while held and (not cell.partials or held[0][1] <= cell.partials[0][2]):
            complete = held.pop(0)
            found.append(self._found(cell, complete))
            taken = [(number, self.names[position]) for number, position in _path(cell, complete[0])]
            first = first_start(self.after, taken)
            cell.partials = [partial for partial in cell.partials if partial[2] >= first]
            held = [other for other in held if other[1] >= first]
        cell.held = held
        return found

    def _in_order(self, cell: Cell[T], done: list[Complete]) -> list[Complete]:
        """By first event; then, at the first event that only one took, it first; or the one earlier in the pattern."""
        if len(done) < 2:
            return done
        end = (cell.fed + 1, 0)

        def key(complete: Complete) -> tuple[int, list[tuple[int, int]]]:
            return complete[1], [*((number, -position) for number, position in _path(cell, complete[0])), end]

        return sorted(done, key=key)

    def _found(self, cell: Cell[T], complete: Complete) -> Found[T]:
        events: dict[str, list[T]] = {}
        end = complete[2]
        for number, position in _path(cell, complete[0]):
            end, event = cell.events[number]
            events.setdefault(self.names[position], []).append(event)
        return Found(events, complete[2], end)


def _path(cell: Cell[Any], node: int) -> list[tuple[int, int]]:
    """(event number, position) of all that a node and those before it took, in order."""
    nodes = cell.nodes
    path: list[tuple[int, int]] = []
    while node != ROOT:
        node, number, position = nodes[node]
        path.append((number, position))
    path.reverse()
    return path


def _sweep(cell: Cell[Any]) -> None:
    """Forgets the nodes and events that nothing leads to."""
    nodes = cell.nodes
    kept: dict[int, tuple[int, int, int]] = {}
    for node in itertools.chain((p[1] for p in cell.partials), (complete[0] for complete in cell.held)):
        while node != ROOT and node not in kept:
            kept[node] = nodes[node]
            node = kept[node][0]
    numbers = {number for _, number, _ in kept.values()}
    cell.nodes = kept
    cell.events = {number: event for number, event in cell.events.items() if number in numbers}
    cell.swept = len(kept)


def _clear(cell: Cell[Any]) -> None:
    cell.nodes.clear()
    cell.events.clear()
    cell.fed = cell.made = cell.swept = 0


def _waiting(option: Option) -> Option:
    """The option as it stands once it has ignored an event."""
    return replace(option, next_stops=())


def _waits(program: Program) -> dict[Option, int]:
    """The states of waiting, by option, numbered behind the positions."""
    found: dict[Option, int] = {}
    for options in [position.options for position in program.positions]:
        for option in options:
            if option.target in {NEXT, NOW}:
                continue
            if option.contiguity is Contiguity.STRICT and option.target != PENDING:
                continue
            lasting = [guard for guard in option.guards if guard[1] == NEVER]
            passing = [guard for guard in option.guards if guard[1] != NEVER]
            for count in range(len(passing), -1, -1):
                for some in itertools.combinations(passing, count):
                    guards = tuple(g for g in option.guards if g in lasting or g in some)
                    waiting = replace(_waiting(option), guards=guards)
                    found.setdefault(waiting, len(program.positions) + len(found))
    return found
