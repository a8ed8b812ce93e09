"""The automaton that finds matches in one key's events, given in event-time order. All it knows is in the cell."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any, Generic, NamedTuple, TypeVar

from flowkit.pattern.cell import ROOT, Cell, Complete, Partial, Run, path, sweep
from flowkit.pattern.program import ALWAYS, NEVER, NEXT, Program
from flowkit.pattern.skip import AfterMatch, NoSkip, first_start
from flowkit.pattern.states import State, States, Way

T = TypeVar("T")


class Found(NamedTuple, Generic[T]):
    """A match, or a partial match that timed out: events by name, times of the first and of the last (ms)."""

    events: dict[str, list[T]]
    start: int
    end: int


def _always(event: object) -> bool:
    """The test of an element without a condition."""
    return True


class Engine(Generic[T]):
    """Feeds a key's events to a program. It keeps nothing between two calls.

    A key's nodes are swept once there are `spare` more than twice those that the last sweep left.
    """

    def __init__(self, program: Program, after: AfterMatch, spare: int = 16) -> None:
        self.spare = spare
        self.program = program
        self.after = after
        self.skips = not isinstance(after, NoSkip)
        self.names = [position.name for position in program.positions]
        self.tests: list[Callable[..., Any]] = [c.test if c else _always for c in program.conditions]
        self.iterative = [bool(c and c.iterative) for c in program.conditions]
        self.blank: list[bool | None] = [None] * (len(program.conditions) + 1)  # the last is for -1: not known
        self.blank[ALWAYS], self.blank[NEVER] = True, False
        self.memo = self.blank.copy()  # what conditions say of the event at hand: none is asked twice
        self.states = States(program)
        self.quiet = [-1 if way is None else way.test for way in self.states.simple]
        self.first = [way.test for way in self.states.start.ways]
        self.sole = self._sole()
        self.rank = {(ROOT, option.target): rank for rank, option in enumerate(program.start)}
        for before, position in enumerate(program.positions):
            self.rank |= {(before, option.target): rank for rank, option in enumerate(position.options)}

    def _sole(self) -> int:
        """The position that every match begins with, if nothing else has to be asked or done there; -1 if not."""
        ways = self.states.start.ways
        if len(ways) != 1 or self.states.start.careful or ways[0].until != NEVER:
            return -1
        return -1 if ways[0].complete or self.iterative[ways[0].test] else ways[0].target

    # --- an event ---------------------------------------------------------------------------------------------------

    def feed(self, cell: Cell[T], t: int, event: T) -> Sequence[Found[T]]:
        """The matches that `event` completes, or lets go. All timed out by `t` must have been expired.

        Most events start nothing and meet nothing that waits for them: that is told as cheaply as can be.
        """
        memo, tests = self.memo, self.tests
        memo[:] = self.blank
        run = cell.run
        starts = met = False
        for test in self.first:
            if self.iterative[test]:
                starts = self._holds(test, event, None, ROOT)
            else:
                starts = memo[test] = bool(tests[test](event))
            if starts:
                break
        if run is not None:
            quiet = self.quiet
            for partial in run.partials:
                test = quiet[partial[0]]
                known = memo[test]
                if known is None and test >= 0:
                    known = memo[test] = bool(tests[test](event))
                if known is not False:
                    met = True
                    break
        if met or (starts and self.sole < 0):
            return self._feed(cell, run or Run(), t, event, starts=starts)
        if starts:
            partial = (self.states.enter[self.sole], len(run.nodes) if run else 0, len(run.events) if run else 0, t)
            if run is None:
                cell.run = Run([partial], [(ROOT, 0, self.sole)], [(t, event)])
            else:
                run.partials.append(partial)
                run.nodes.append((ROOT, len(run.events), self.sole))
                run.events.append((t, event))
        return ()

    def _feed(self, cell: Cell[T], run: Run[T], t: int, event: T, *, starts: bool) -> Sequence[Found[T]]:
        number = len(run.events)
        kept: list[Partial] = []
        done: list[Complete] = []
        states, simple, memo, nodes = self.states.of, self.states.simple, self.memo, run.nodes
        run.events.append((t, event))
        for partial in run.partials:
            way = simple[partial[0]]
            if way is None:
                self._step(run, states[partial[0]], partial, event, kept, done)
                continue
            known = memo[way.test]
            if known is None:
                known = memo[way.test] = bool(self.tests[way.test](event))
            if known:
                if way.complete:
                    done.append((len(nodes), partial[2], partial[3]))
                if way.enter >= 0:
                    kept.append((way.enter, len(nodes), partial[2], partial[3]))
                nodes.append((partial[1], number, way.target))
            if way.free or not known:
                kept.append(partial)
        if starts:
            self._step(run, self.states.start, (-1, ROOT, number, t), event, kept, done)
        if not nodes or nodes[-1][1] != number:  # nobody took it
            run.events.pop()
        run.partials = kept
        found = self._settle(run, done) if done or run.held else ()
        cell.run = run if run.partials else None
        if len(nodes) > 2 * run.swept + self.spare:
            sweep(run)
        return found

    def _step(
        self, run: Run[T], state: State, partial: Partial, event: T, kept: list[Partial], done: list[Complete]
    ) -> None:
        """What becomes of one partial match: any number of them in `kept`, of complete ones in `done`."""
        now, node, first, since = partial
        holds = self._holds
        for stop in state.stops:
            if holds(stop, event, run, node):
                return
        for way in self._open(state, event, run, node) if state.careful else state.ways:
            target = way.target
            if target == NEXT:
                done.append((node, first, since))
                continue
            hit = holds(way.test, event, run, node)
            over = way.until != NEVER and holds(way.until, event, run, node)
            if hit and not over and target >= 0:
                taken = len(run.nodes)
                run.nodes.append((node, len(run.events) - 1, target))
                if way.complete:
                    done.append((taken, first, since))
                if way.enter >= 0:
                    kept.append((way.enter, taken, first, since))
            waiting = way.waiting
            if waiting < 0 or (hit and not way.free) or (over and way.inner):
                continue
            kept.append(partial if waiting == now else (waiting, node, first, since))

    def _open(self, state: State, event: T, run: Run[T], node: int) -> Sequence[Way]:
        """The ways that are not guarded against `event`; none if a not_next stops them all."""
        found: list[Way] = []
        for way in state.ways:
            left = tuple(guard for guard in way.guards if not self._holds(guard[1], event, run, node))
            if any(self._holds(test, event, run, node) for test, _ in left):
                continue
            if any(self._holds(stop, event, run, node) for stop in way.next_stops):
                return ()
            found.append(way if left == way.guards else self.states.way(replace(way.option, guards=left)))
        return found

    def _holds(self, condition: int, event: T, run: Run[T] | None, node: int) -> bool:
        known = self.memo[condition]
        if known is not None:
            return known
        if self.iterative[condition]:
            return bool(self.tests[condition](event, self._matched(run, node)))
        known = self.memo[condition] = bool(self.tests[condition](event))
        return known

    def _matched(self, run: Run[T] | None, node: int) -> dict[str, list[T]]:
        matched: dict[str, list[T]] = {name: [] for name in self.program.names}
        if run is not None:
            for number, position in path(run, node):
                matched[self.names[position]].append(run.events[number][1])
        return matched

    # --- the passing of time ----------------------------------------------------------------------------------------

    def expire(self, cell: Cell[T], run: Run[T]) -> tuple[Sequence[Found[T]], Sequence[Found[T]]]:
        """Ends the partial matches that began first: matches that this completes or lets go, and timed-out ones."""
        since = run.partials[0][3]
        over = list(itertools.takewhile(lambda partial: partial[3] == since, run.partials))
        del run.partials[: len(over)]
        states = self.states.of
        ended = list({partial[1:]: None for partial in over if states[partial[0]].goes_on})
        done = list({partial[1:]: None for partial in over if states[partial[0]].pending})
        timed_out = [self._found(run, complete) for complete in self._in_order(run, ended)]
        found = self._settle(run, done) if done or run.held else ()
        if not run.partials:
            cell.run = None
        return found, timed_out

    # --- matches ----------------------------------------------------------------------------------------------------

    def _settle(self, run: Run[T], done: list[Complete]) -> Sequence[Found[T]]:
        """The matches to send of those completed now and those held, after what the strategy takes away."""
        done = self._in_order(run, done)
        if not self.skips:
            return [self._found(run, complete) for complete in done]
        held = sorted([*run.held, *done], key=itemgetter(1)) if run.held else done
        found: list[Found[T]] = []
        while held and (not run.partials or held[0][1] <= run.partials[0][2]):
            complete = held.pop(0)
            found.append(self._found(run, complete))
            taken = [(number, self.names[position]) for number, position in path(run, complete[0])]
            first = first_start(self.after, taken)
            run.partials = [partial for partial in run.partials if partial[2] >= first]
            held = [other for other in held if other[1] >= first]
        run.held = held
        return found

    def _in_order(self, run: Run[T], done: list[Complete]) -> list[Complete]:
        """By first event; then, at the first event that only one took, it first; or the one earlier in the pattern."""
        if all(one[1] < other[1] for one, other in itertools.pairwise(done)):
            return done
        end = (len(run.events), 0)

        def key(complete: Complete) -> tuple[int, list[tuple[int, int]]]:
            steps: list[tuple[int, int]] = []
            before = ROOT
            for number, position in path(run, complete[0]):
                steps.append((number, self.rank[before, position]))
                before = position
            return complete[1], [*steps, end]

        return sorted(done, key=key)

    def _found(self, run: Run[T], complete: Complete) -> Found[T]:
        events: dict[str, list[T]] = {}
        end = complete[2]
        for number, position in path(run, complete[0]):
            end, event = run.events[number]
            events.setdefault(self.names[position], []).append(event)
        return Found(events, complete[2], end)
