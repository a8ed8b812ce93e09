"""A row pattern compiled: one position for each event that a match may have, and what may follow each position.

This is Glushkov's construction: quantifiers are unrolled (`a{2,3}` has three positions, `a{2,}` two, of which the last
follows itself), and a state is either

    after(p)    the last event taken was for position p: the next event is offered to every option of p
    waiting(o)  option o was chosen by ignoring an event: from now on only o's position may take the next

                   take b           take b             take c
    a b+ c     after(a) ------> after(b) <-+ ...  after(b) ------> match
                  | ignore         |  |____|          ^ take c
                  v                | ignore           |
               waiting(b)          +-----> waiting(b), waiting(c)

These are the states that Flink's NFACompiler makes with its take, ignore and proceed edges; what its conditions on
edges say (until, greedy, negations) are fields of an option here:

- `stops`: an event that matches one of them ends the partial match (not_followed_by), checked while waiting too;
- `next_stops`: the same, but only for the first event (not_next);
- `guards`: an event that the greedy element before would take is not for this option, until its `until` has been seen.

Known departures from Flink, each where its behaviour hangs on how states were copied and not on a rule:

- a not_followed_by behind a loop ends the match on any event between the loop's first and the next element's (Flink
  forgets it while it waits for the optional repetitions of `times(lo, hi)`);
- a guard holds while waiting also behind a not_next, and is lifted by `until` also while waiting;
- partial matches that took the same events and wait for different elements time out as one;
- matches of one first event found at one event have an order (Flink's is that of a heap);
- negations with nothing but optional elements, or nothing, behind them are decided by the next event (not_next) or at
  the end of `within` (not_followed_by), also after a loop and also if no event came in between.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from flowkit.pattern.element import Condition, Contiguity, Element, RowPattern

ALWAYS = 0
NEVER = 1
"""Numbers of the conditions that need not be asked."""

NOW = -1
"""Target of an option: the match is complete as soon as it is reached."""
NEXT = -2
"""... once one more event has come and none of `next_stops` and `stops` matches it."""
PENDING = -3
"""... once `within` is over and none of `stops` has come."""
LOOP = -4
"""... the start of the group that is being compiled: replaced before anyone sees it."""


@dataclass(frozen=True)
class Option:
    """A way to go on. `guards` are (condition, until) of greedy elements that it leaves or passes."""

    target: int
    contiguity: Contiguity = Contiguity.STRICT
    inner: bool = False  # within a loop: its `until` ends the waiting
    guards: tuple[tuple[int, int], ...] = ()
    stops: tuple[int, ...] = ()
    next_stops: tuple[int, ...] = ()


@dataclass(slots=True)
class Position:
    """One event of a match: the name it is taken for, the test it must pass, and `until`, which it must not."""

    name: str
    test: int
    until: int
    options: tuple[Option, ...] = ()


@dataclass
class Program:
    """What the engine runs. `start` are the options of a new match; options that come first are preferred."""

    names: tuple[str, ...]
    within: int
    start: tuple[Option, ...] = ()
    positions: list[Position] = field(default_factory=list[Position])
    conditions: list[Condition | None] = field(default_factory=lambda: [None, None])


def compile_pattern(pattern: RowPattern) -> Program:
    """`pattern` must have been checked (`check_pattern`)."""
    names = tuple(n for element in pattern.elements if not element.negated for n in element.names())
    program = Program(names, pattern.within)
    start = _Compiler(program).sequence(pattern.elements, Contiguity.STRICT, [Option(NOW)])
    # An empty match is none.
    program.start = tuple(replace(o, contiguity=Contiguity.STRICT) for o in start if o.target >= 0)
    return program


class _Compiler:
    """Builds backwards: what may follow an element is known when its positions are made."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.numbers: dict[int, int] = {}

    def sequence(self, elements: tuple[Element, ...], head: Contiguity, after: list[Option]) -> list[Option]:
        """The options before `elements`, whose first stands in contiguity `head` to what was before."""
        options = after
        banned: tuple[int, ...] = ()
        for index in range(len(elements) - 1, -1, -1):
            element = elements[index]
            if not element.negated:
                options = self.element(element, element.contiguity if index else head, options, banned)
                banned = ()
                continue
            test = self.number(element.condition)
            if element.contiguity is Contiguity.STRICT:
                options = [_not_next(option, test) for option in options]
            else:
                options = [_not_followed_by(option, test) for option in options]
                banned = (*banned, test)
        return options

    def element(
        self, element: Element, contiguity: Contiguity, after: list[Option], banned: tuple[int, ...]
    ) -> list[Option]:
        if element.greedy and element.at_least != element.at_most:
            guard = (self.number(element.condition), self.number(element.until, NEVER))
            after = [o if o.target == NOW else replace(o, guards=(*o.guards, guard)) for o in after]
        repeat = self.repeat_group if element.body else self.repeat
        first = repeat(element, contiguity, after, banned)
        return _distinct([*first, *after] if element.optional else first)

    def repeat(
        self, element: Element, contiguity: Contiguity, after: list[Option], banned: tuple[int, ...]
    ) -> list[Option]:
        positions = self.program.positions
        test, until = self.number(element.condition), self.number(element.until, NEVER)

        def again(target: int) -> Option:
            return Option(target, element.inner, inner=True, stops=banned)

        last = element.at_least if element.at_most is None else element.at_most
        for count in range(last, 0, -1):
            here = len(positions)
            loop: list[Option] = []
            if count < last:
                loop = [again(here - 1)]
            elif element.at_most is None:
                loop = [again(here)]
            leave = after if count >= element.at_least else []
            positions.append(Position(element.name, test, until, tuple(_distinct([*loop, *leave]))))
        return [Option(len(positions) - 1, contiguity)]

    def repeat_group(
        self, element: Element, contiguity: Contiguity, after: list[Option], banned: tuple[int, ...]
    ) -> list[Option]:
        following: list[Option] = []  # of the repetition behind the one being made
        if element.at_most is None:
            following = self.endless(element, after)
        last = element.at_least if element.at_most is None else element.at_most
        for count in range(last, 0, -1):
            leave = after if count >= element.at_least else []
            head = element.inner if count > 1 else contiguity
            following = self.sequence(element.body, head, _distinct([*following, *leave]))
        return following

    def endless(self, element: Element, after: list[Option]) -> list[Option]:
        """Options before a body that may be followed by itself."""
        positions = self.program.positions
        begin = len(positions)
        first = self.sequence(element.body, element.inner, [Option(LOOP), *after])
        for position in positions[begin:]:
            options: list[Option] = []
            for option in position.options:
                options += [_through(option, o) for o in first] if option.target == LOOP else [option]
            position.options = tuple(_distinct(options))
        return first

    def number(self, condition: Condition | None, none: int = ALWAYS) -> int:
        if condition is None:
            return none
        conditions = self.program.conditions
        found = self.numbers.get(id(condition))
        if found is None:
            found = self.numbers[id(condition)] = len(conditions)
            conditions.append(condition)
        return found


def _not_next(option: Option, test: int) -> Option:
    target = NEXT if option.target == NOW else option.target
    return replace(option, target=target, next_stops=(*option.next_stops, test))


def _not_followed_by(option: Option, test: int) -> Option:
    target = PENDING if option.target in {NOW, NEXT} else option.target
    return replace(option, target=target, stops=(*option.stops, test))


def _through(loop: Option, first: Option) -> Option:
    """`first`, reached by way of `loop` with what that checks."""
    return replace(
        first,
        guards=(*loop.guards, *first.guards),
        stops=(*loop.stops, *first.stops),
        next_stops=(*loop.next_stops, *first.next_stops),
    )


def _distinct(options: Iterable[Option]) -> list[Option]:
    return list(dict.fromkeys(options))
