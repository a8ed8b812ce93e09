"""Flink's event-time windows, one record at a time: the oracle that flowkit's windows are tested against.

Slow and obvious on purpose: every open window is a plain object in one list, and every step looks at all of them.
Nothing here is imported from flowkit, so that an error there cannot hide behind the same error here.

    >>> for closed in run([("a", 1, 7), ("a", 12, 8)], window=("tumbling", 10, 0)).closed:
    ...     print(*closed)
    on_time a 0 10 [7]
    on_time a 10 20 [8]

The rules are those of Flink's `WindowOperator` with its `EventTimeTrigger` and `MergingWindowSet`, for a watermark
that moves after every record. What Flink leaves open, and what is decided here:

- Within a step windows fire in the order (end, key bytes). That puts late panes first, then on time, then early,
  because a late window ends at or below the old watermark, one on time above it, and an early one above the new.
- A firing that the watermark causes is "on_time", one that a record causes is "late". So a session that had fired and
  then grew beyond the watermark fires on time once more, with its new end.
- An early pane is not given in a step that closes the window as well: the result on time says all of it.
- The end of one input of several is a movement of the watermark of its own, after the step of its last event.
- The windows of `count` know no watermark: never late, never early, not fired at the end of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

Event: TypeAlias = tuple[str, int, float]
"""(key, time in ms since the epoch, value)"""

WindowSpec: TypeAlias = tuple[str | int, ...]
"""One of the following, lengths in ms:

("tumbling", size, offset)          ("session", gap)
("sliding", size, every, offset)    ("count", n) or ("count", n, every), in events
("cumulative", step, size, offset)  ("global",)
"""

Pane: TypeAlias = Literal["early", "on_time", "late"]

BEGINNING_OF_TIME = -(2**63)
END_OF_TIME = 2**63 - 1


class Closed(NamedTuple):
    """One firing of one window `[start, end)` with all values in it so far, in the order of their arrival."""

    pane: Pane
    key: str
    start: int
    end: int
    values: list[float]


@dataclass
class Result:
    """What came of a run; `closed[i]` fired in step `steps[i]`."""

    closed: list[Closed] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    """Index into `events` of the event that had just been taken, or len(events) for the end of all input."""
    late: list[Event] = field(default_factory=list)
    """Events judged late, in order, whatever `late=` says."""
    delivered: list[Event] = field(default_factory=list)
    """Events that the agent sees: all but the late ones, or with late="deliver" all."""
    events: list[Event] = field(default_factory=list)
    """All events in the order in which they were taken."""
    watermarks: list[int] = field(default_factory=list)
    """The watermark after the step of each event."""


def run(
    events: Sequence[Event],
    *,
    window: WindowSpec,
    out_of_order: int = 0,
    allowed_lateness: int = 0,
    early: int | None = None,
    late: Literal["drop", "deliver"] = "drop",
    bounded: bool = True,
    key_bytes: Callable[[str], bytes] = str.encode,
) -> Result:
    """Take events in their order of arrival, as one split. All times in ms.

    `early` is the distance between early panes. Unless `bounded`, the input goes on after the last event, and windows
    that are still open do not fire. `key_bytes` gives the bytes by which keys are ordered.

    Raises ValueError for a window specification, or settings, that have no meaning.
    """
    model = _Model(["input"], window, allowed_lateness=allowed_lateness, early=early, late=late, key_bytes=key_bytes)
    for event in events:
        model.take("input", event, out_of_order)
    if bounded:
        model.end_all()
    return model.result


def run_splits(
    splits: Mapping[str, Sequence[Event]],
    *,
    window: WindowSpec,
    out_of_order: int | Mapping[str, int] = 0,
    allowed_lateness: int = 0,
    early: int | None = None,
    late: Literal["drop", "deliver"] = "drop",
    key_bytes: Callable[[str], bytes] = str.encode,
) -> Result:
    """A bounded run over several splits: heads are merged by (time, order in `splits`), the watermark is the least.

    A split that has no event yet holds the watermark at the beginning of time; one at its end does not hold it.
    `out_of_order` may differ by split.
    """
    left = {name: list(events) for name, events in splits.items() if events}
    model = _Model(list(left), window, allowed_lateness=allowed_lateness, early=early, late=late, key_bytes=key_bytes)
    while left:
        name = min(left, key=lambda name: left[name][0][1])  # min() takes the first of equals: the order in splits
        disorder = out_of_order if isinstance(out_of_order, int) else out_of_order[name]
        model.take(name, left[name].pop(0), disorder)
        if not left[name]:
            del left[name]
            if left:
                model.end(name)
    model.end_all()
    return model.result


@dataclass(eq=False)
class _Window:
    """An open window of one key. Its arrivals are (index of the event, value)."""

    key: str
    start: int
    end: int
    arrivals: list[tuple[int, float]] = field(default_factory=list)
    changed: bool = False


class _Model:
    def __init__(
        self,
        splits: list[str],
        spec: WindowSpec,
        *,
        allowed_lateness: int,
        early: int | None,
        late: str,
        key_bytes: Callable[[str], bytes],
    ) -> None:
        _check(spec, allowed_lateness, early, late)
        self.spec = spec
        self.allowed_lateness = allowed_lateness
        self.early = early
        self.deliver_late = late == "deliver"
        self.key_bytes = key_bytes
        self.split_watermarks = dict.fromkeys(splits, BEGINNING_OF_TIME)
        self.watermark = BEGINNING_OF_TIME
        self.open: list[_Window] = []
        self.counted: dict[str, list[Event]] = {}
        self.step = -1
        self.result = Result()

    def take(self, split: str, event: Event, out_of_order: int) -> None:
        """One step: the event, then the watermark, then what fires."""
        self.step += 1
        self.result.events.append(event)
        fired = self.count(event) if self.spec[0] == "count" else self.add(event)
        self.split_watermarks[split] = max(self.split_watermarks[split], event[1] - out_of_order - 1)
        self.move_watermark(min(self.split_watermarks.values()), fired)
        self.result.watermarks.append(self.watermark)

    def end(self, split: str) -> None:
        """One of several splits is at its end and holds the watermark no longer."""
        del self.split_watermarks[split]
        self.move_watermark(min(self.split_watermarks.values()), [])

    def end_all(self) -> None:
        self.step += 1
        self.move_watermark(END_OF_TIME, [])

    def add(self, event: Event) -> list[Closed]:
        """Put the event in its windows, or with the late ones; gives the late panes that it causes."""
        key, time, value = event
        fired = []
        windows = [self.session(key, time)] if self.spec[0] == "session" else self.aligned(key, time)
        in_time = [window for window in windows if not self.is_dropped(window)]
        for window in in_time:
            if window not in self.open:
                self.open.append(window)
            window.arrivals.append((self.step, value))
            window.changed = True
            if window.end - 1 <= self.watermark:
                fired.append(_fire("late", window))
        # an event that no window covers is neither late nor counted, unless it is old by its own time
        is_late = not in_time and time + self.allowed_lateness <= self.watermark
        if is_late:
            self.result.late.append(event)
        if not is_late or self.deliver_late:
            self.result.delivered.append(event)
        return fired

    def is_dropped(self, window: _Window) -> bool:
        return window.end - 1 + self.allowed_lateness <= self.watermark

    def aligned(self, key: str, time: int) -> list[_Window]:
        """The windows that cover a time: the open ones, and new ones where there is none yet."""
        windows = []
        for start, end in covering(self.spec, time):
            found = [w for w in self.open if (w.key, w.start, w.end) == (key, start, end)]
            windows.append(found[0] if found else _Window(key, start, end))
        return windows

    def session(self, key: str, time: int) -> _Window:
        """The event's own `[time, time + gap)` made one with all open sessions that it overlaps or touches."""
        gap = int(self.spec[1])
        met = [w for w in self.open if w.key == key and w.start <= time + gap and time <= w.end]
        merged = _Window(key, time, time + gap)
        for window in met:
            self.open.remove(window)
            merged.start = min(merged.start, window.start)
            merged.end = max(merged.end, window.end)
            merged.arrivals = sorted(merged.arrivals + window.arrivals)
        return merged

    def count(self, event: Event) -> list[Closed]:
        """Every `every` events of a key, the last `n` of them are a window."""
        self.result.delivered.append(event)
        n, every = int(self.spec[1]), int(self.spec[-1])
        of_key = self.counted.setdefault(event[0], [])
        of_key.append(event)
        if len(of_key) % every != 0:
            return []
        members = of_key[max(0, len(of_key) - n) :]
        end = max(time for _, time, _ in members) + 1
        return [Closed("on_time", event[0], members[0][1], end, [value for _, _, value in members])]

    def move_watermark(self, watermark: int, fired: list[Closed]) -> None:
        """Go from the old watermark to a new one, fire all that lies between, and forget what is over."""
        old, self.watermark = self.watermark, watermark
        assert old <= watermark, "a watermark never goes back"
        for window in self.open:
            if old < window.end - 1 <= watermark:
                fired.append(_fire("on_time", window))
            elif window.changed and self.passes_early_point(window, old):
                fired.append(_fire("early", window))
        fired.sort(key=lambda closed: (closed.end, self.key_bytes(closed.key)))
        self.result.closed += fired
        self.result.steps += [self.step] * len(fired)
        self.open = [window for window in self.open if not self.is_dropped(window)]

    def passes_early_point(self, window: _Window, old: int) -> bool:
        """Whether the watermark, still below the window's end - 1, has passed a start + k * early - 1 with k >= 1."""
        if self.early is None:
            return False
        highest_k = (self.watermark + 1 - window.start) // self.early
        return highest_k >= 1 and window.start + highest_k * self.early - 1 > old


def _fire(pane: Pane, window: _Window) -> Closed:
    window.changed = False
    return Closed(pane, window.key, window.start, window.end, [value for _, value in window.arrivals])


def covering(spec: WindowSpec, time: int) -> list[tuple[int, int]]:
    """All windows `[start, end)` of an aligned kind (or the global one) that cover a time."""
    match spec:
        case ("tumbling", int(size), int(offset)):
            start = (time - offset) // size * size + offset
            return [(start, start + size)]
        case ("sliding", int(size), int(every), int(offset)):
            windows = []
            start = (time - offset) // every * every + offset  # the last one to start at or before the time
            while start + size > time:
                windows.append((start, start + size))
                start -= every
            return windows
        case ("cumulative", int(step), int(size), int(offset)):
            start = (time - offset) // size * size + offset
            return [(start, end) for end in range(start + step, start + size + 1, step) if end > time]
        case ("global",):
            return [(BEGINNING_OF_TIME, END_OF_TIME)]
        case _:
            raise ValueError(f"window {spec!r}: expected one of those that WindowSpec lists")


def _check(spec: WindowSpec, allowed_lateness: int, early: int | None, late: str) -> None:
    match spec:
        case ("session", int(length)) | ("count", int(length)) | ("tumbling", int(length), int()):
            lengths = [length]
        case ("count", int(n), int(every)) | ("sliding", int(n), int(every), int()):
            lengths = [n, every]
        case ("cumulative", int(step), int(size), int()):
            lengths = [step, size]
            if step > 0 and size % step != 0:
                raise ValueError(f"window {spec!r}: size must be a multiple of step, as in Flink")
        case ("global",):
            lengths = []
        case _:
            raise ValueError(f"window {spec!r}: expected one of those that WindowSpec lists")
    if any(length <= 0 for length in lengths):
        raise ValueError(f"window {spec!r}: lengths must be above 0")
    if allowed_lateness < 0:
        raise ValueError(f"allowed_lateness={allowed_lateness}: expected 0 or more ms")
    if early is not None and (early <= 0 or spec[0] == "count"):
        raise ValueError(f"early={early}: expected a distance above 0 ms, and not with count windows")
    if late not in ("drop", "deliver"):
        raise ValueError(f'late={late!r}: expected "drop" or "deliver"')
