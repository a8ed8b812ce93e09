"""The automaton's states, laid out for speed: all that an event may do to a partial match, looked up by its number.

States 0 … n-1 are those after each position, the others those of waiting for one option. A position with one option,
which may wait, needs no state of its own: the match waits at once.
"""

import itertools
from dataclasses import dataclass, replace

from flowkit.pattern.element import Contiguity
from flowkit.pattern.program import ALWAYS, NEVER, NEXT, NOW, PENDING, Option, Program


@dataclass(slots=True)
class Way:
    """An option: to take an event for `target`, or to ignore it and be in the state `waiting` (-1: it does not wait).

    `free`: it may ignore events that it could take. `complete`: taking one makes a match. `enter` is the state to be in
    then (-1: none, the match cannot become longer).
    """

    target: int
    test: int
    until: int
    free: bool
    waiting: int
    inner: bool
    guards: tuple[tuple[int, int], ...]
    next_stops: tuple[int, ...]
    option: Option
    complete: bool = False
    enter: int = -1


@dataclass(slots=True)
class State:
    """Ways to go on. `careful` if one of them is guarded or may be stopped by the first event."""

    ways: tuple[Way, ...]
    pending: bool  # a match when `within` is over
    goes_on: bool  # waits for an event
    stops: tuple[int, ...]
    careful: bool


class States:
    """`of[n]` is the state n, and `enter[p]` the number of the state after position p.

    `simple[n]` is the way of a state that does nothing but wait for it, and hangs on nothing but its test.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.waits = _waits(program)
        self.enter = [self._entered(number, position.options) for number, position in enumerate(program.positions)]
        self.start = self.state(program.start)
        self.of = [self.state(position.options) for position in program.positions]
        self.of += [self.state((option,)) for option in self.waits]
        self.simple = [self._simple(number, state) for number, state in enumerate(self.of)]

    def state(self, options: tuple[Option, ...]) -> State:
        ways = tuple(self.way(option) for option in options if option.target != NOW)
        return State(
            ways,
            pending=any(o.target == PENDING for o in options),
            goes_on=any(way.target != PENDING for way in ways),
            stops=tuple(dict.fromkeys(stop for option in options for stop in option.stops)),
            careful=any(way.guards or way.next_stops for way in ways),
        )

    def way(self, option: Option) -> Way:
        position = self.program.positions[option.target] if option.target >= 0 else None
        after = position.options if position else ()
        return Way(
            option.target,
            position.test if position else ALWAYS,
            position.until if position else NEVER,
            option.contiguity is Contiguity.ANY or option.target == PENDING,
            self.waits.get(replace(option, next_stops=()), -1),
            option.inner,
            option.guards,
            option.next_stops,
            option,
            complete=any(o.target == NOW for o in after),
            enter=self.enter[option.target] if any(o.target != NOW for o in after) else -1,
        )

    def _entered(self, number: int, options: tuple[Option, ...]) -> int:
        options = tuple(option for option in options if option.target != NOW)
        return self.waits.get(options[0], number) if len(options) == 1 else number

    def _simple(self, number: int, state: State) -> Way | None:
        if len(state.ways) != 1 or state.stops or state.careful:
            return None
        way = state.ways[0]
        condition = self.program.conditions[way.test]
        alone = way.waiting == number and way.until == NEVER and way.target >= 0
        return way if alone and condition is not None and not condition.iterative else None


def _waits(program: Program) -> dict[Option, int]:
    """The options that may be waited for, with the number of that state."""
    found: dict[Option, int] = {}
    for option in itertools.chain.from_iterable(position.options for position in program.positions):
        if option.target in {NEXT, NOW} or (option.contiguity is Contiguity.STRICT and option.target != PENDING):
            continue
        # A guard goes when its `until` has been seen, so there is a state for each set of guards that may be left.
        passing = [guard for guard in option.guards if guard[1] != NEVER]
        for count in range(len(passing), -1, -1):
            for gone in itertools.combinations(passing, count):
                guards = tuple(guard for guard in option.guards if guard not in gone)
                waiting = replace(option, next_stops=(), guards=guards)
                found.setdefault(waiting, len(program.positions) + len(found))
    return found
