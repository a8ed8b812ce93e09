"""What a state holds, entry by entry, for people who look at it: nothing is kept, and no more is read than is taken."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from flowkit.record import END_OF_TIME, MIN_TIME
from flowkit.table.cells import Cells
from flowkit.table.counted import CountState
from flowkit.table.firing import Firing
from flowkit.table.keyed_timers import TimerState
from flowkit.table.panes import PaneState
from flowkit.table.state import PlainState, State


class Held(NamedTuple):
    """One value: of a window `[start, end)` (ms), or of all time."""

    key: Any
    start: int
    end: int
    value: Any


def look(state: State) -> Iterator[Held]:
    """Everything that the state holds, by window and key bytes. What has expired is left out."""
    if isinstance(state, PaneState):
        for start, end in _spans(state):
            for _, key, value in state.rows(Firing(start, end)):
                yield Held(key, start, end, state.shape.present(value))
        return
    for cells in state.all_cells():
        for _, key, cell in cells.rows(None):
            yield from _of_cell(state, cells, key, cell)


def look_up(state: State, key: Any) -> Iterator[Held]:
    """What it holds for `key`, by window."""
    if isinstance(state, PaneState):
        for start, end in _spans(state):
            for _, _, value in state.merged(start, end, {key}):
                yield Held(key, start, end, state.shape.present(value))
        return
    for cells in state.all_cells():
        cell = cells.find(key)
        if cell is not None:
            yield from _of_cell(state, cells, key, cell)


def _of_cell(state: State, cells: Cells, key: Any, cell: Any) -> Iterator[Held]:
    expiry = state.expiry if isinstance(state, PlainState | CountState) else None
    if expiry is not None:
        last = cell.last if isinstance(state, CountState) else cell[1]
        if expiry.over(last, state.clock_now()):
            return
    if isinstance(state, TimerState):
        if cell.at <= END_OF_TIME:
            yield Held(key, MIN_TIME, END_OF_TIME, cell.at)
        return
    if isinstance(state, PlainState):
        yield Held(key, MIN_TIME, END_OF_TIME, state.shape.present(state.value_of(cell)))
        return
    for value, start, end in state.entries(cell, cells.space[1]).values():
        yield Held(key, start, end, state.shape.present(value))


def _spans(state: PaneState) -> list[tuple[int, int]]:
    spans = {span for start in state.starts.values() for span in state.open_at(start)}
    return sorted(spans, key=_end_first)


def _end_first(span: tuple[int, int]) -> tuple[int, int]:
    return span[1], span[0]
