"""What calls periodic agents: one stream of ticks a task, by a schedule, in event time or by the clock.

It has no cells. All that a commit keeps of it is which tick comes next.
"""

from collections.abc import Iterator
from typing import Any, Literal

from flowkit.errors import ConfigError
from flowkit.record import END_OF_TIME, MIN_TIME, Tick
from flowkit.table.cells import Cells, Shape
from flowkit.table.cursor import Cursor
from flowkit.table.definition import AnyTable, TableEvents
from flowkit.table.state import NEVER, Open, Result, State
from flowkit.table.stored import Stored
from flowkit.window import Schedule


class Ticks(TableEvents[Tick], AnyTable[str, int]):
    """The ticks of one periodic agent. Made by `app.timer` and `app.crontab`."""

    writers = "none"
    what = "periodic agent"

    def __init__(self, name: str, schedule: Schedule, clock: Literal["event", "wall"]) -> None:
        AnyTable.__init__(self, name, str, int, local=True)
        del self.changes  # of a schedule nothing changes
        TableEvents.__init__(self, self, "", Tick)
        self.schedule, self.clock = schedule, clock


class TickState(State):
    """The ticks of one task. They begin with the first event, or by the clock when the task is first opened.

    In event time, and in a bounded run, none is left out. By the clock only the latest of those that were missed comes,
    as when the app was down or busy. At the end of a bounded run there are none beyond its last event.
    """

    windowed = False

    def __init__(self, shape: Shape, cursor: Cursor, store: Stored, *, table: Ticks) -> None:
        super().__init__(shape, cursor, store)
        self.schedule = table.schedule
        self.by_clock = table.clock == "wall"
        self.next: int | None = None
        """When (ms) the next one is due; None before the first event."""
        self._set_due()

    @property
    def clock_due(self) -> int:
        return MIN_TIME if self.next is None else self.next

    def _set_due(self) -> None:
        if not self.by_clock:
            self.due = MIN_TIME + 1 if self.next is None else self.next

    def peek(self, watermark: int) -> int | None:
        cursor = self.cursor
        now = cursor.wall if self.by_clock else watermark
        if self.next is None:
            begin = cursor.wall if self.by_clock else cursor.low
            if begin == MIN_TIME:
                return None
            # By the clock the ticks begin behind the moment at which the task was opened.
            self.next = self.schedule.after(begin if self.by_clock and not cursor.bounded else begin - 1)
        if now >= END_OF_TIME or (cursor.end > MIN_TIME and not self.by_clock):
            now = min(now, cursor.end)  # the input has ended, though calls under way may hold the watermark before that
        if self.next > now:
            return None
        if self.by_clock and not cursor.bounded:
            self.next = max(self.next, self.schedule.latest(now) or self.next)
        return self.next + 1

    def fire(self, end: int, watermark: int) -> Iterator[Result]:
        self.next = self.schedule.after(end - 1)
        return iter([[(self.name, Tick(end - 1), end - 1)]])

    def settle(self, watermark: int) -> None:
        super().settle(watermark)
        self._set_due()

    # Commit and recovery

    def all_cells(self) -> Iterator[Cells]:
        return iter(())

    def meta(self) -> dict[str, Any]:
        return super().meta() | {"next": self.next, "schedule": self.schedule.words}

    def open(self, meta: dict[str, Any]) -> None:
        super().open(meta)
        # Under another schedule than it was saved with it begins anew.
        self.next = meta.get("next") if meta.get("schedule") == self.schedule.words else None
        self._set_due()

    # Seen by people

    def scan(self) -> Iterator[tuple[Any, Open[Any]]]:
        if self.next is not None and self.next < NEVER:
            yield "next", Open(self.next, MIN_TIME, END_OF_TIME)

    def find(self, key: Any) -> Any:
        return None

    def live(self, key: Any) -> Any:
        raise ConfigError(f"{self.name!r} are ticks: an agent is called with them, and cannot change them")

    def refresh(self) -> None:
        """There is no quick path."""
