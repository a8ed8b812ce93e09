"""Session tables: windows by activity. One cell a key holds its open sessions, apart from each other, in order."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from flowkit.errors import StateError
from flowkit.record import MIN_TIME, Change, Closed
from flowkit.table.cells import Cells, no_event
from flowkit.table.cursor import Mode
from flowkit.table.firing import Firing
from flowkit.table.state import NEVER, Open, State, next_early
from flowkit.table.timers import Timers
from flowkit.window import absorb


class Span:
    """One open session of a key.

    `fired` is True once its result was sent and no event has come since, `told` the same of an early result. `point` is
    the watermark that was last arranged for an early result (not saved).
    """

    __slots__ = ("end", "fired", "point", "start", "told", "value")

    def __init__(self, start: int, end: int, value: Any, *, fired: bool = False, told: bool = False) -> None:
        self.start, self.end, self.value, self.fired, self.told = start, end, value, fired, told
        self.point = NEVER


def span_codec(
    encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]
) -> tuple[Callable[[list[Span]], bytes], Callable[[bytes], list[Span]]]:
    """Encoder and decoder of a cell, around those of the values."""
    pack, unpack = msgspec.msgpack.encode, msgspec.msgpack.decode

    def encode_spans(spans: list[Span]) -> bytes:
        return pack([(span.start, span.end, span.fired, span.told, encode(span.value)) for span in spans])

    def decode_spans(data: bytes) -> list[Span]:
        return [
            Span(start, end, decode(value), fired=fired, told=told) for start, end, fired, told, value in unpack(data)
        ]

    return encode_spans, decode_spans


class SessionState(State):
    """`merge(a, b)` makes one value of two sessions that an event joins, the earlier one first."""

    def __init__(
        self,
        *args: Any,
        gap: int,
        merge: Callable[[Any, Any], Any],
        new: Callable[[Any], Any],
        early: int | None = None,
        **kw: Any,
    ) -> None:
        super().__init__(*args, **kw)
        self.gap, self.merge, self.new, self.early = gap, merge, new, early
        self.cells = Cells(self.shape, self.store, (self.space, None))
        self.moving = True
        width = max(1_000, gap)
        self.ends = Timers(self.store, f"{self.space}!ends", width)
        """When sessions may end. One that was made longer since its timer was set gets another one then."""
        self.drops = Timers(self.store, f"{self.space}!drops", width)
        """The ends of fired sessions, which go once lateness is over."""
        self.early_points: list[tuple[int, bytes]] = []
        """When to look at which keys for early results; what is found there is judged then."""
        self.early_ready: list[tuple[int, bytes]] = []
        # Whether an event is late depends on its key's sessions: look closely at every one that may be.
        self.careful_lag = 0 if self.lateness else self.gap - 1

    # Seen by agents

    def live(self, key: Any) -> Any:
        mode = self.shape.mode
        if mode is not Mode.WRITE:
            if mode is Mode.OUTSIDE:
                raise no_event(self.name)
            value = self.find(key)
            return self.shape.present(value if value is not None else self.new(key))
        return self._span(key).value

    def _span(self, key: Any) -> Span:
        """The session of `key` at this event's time: extended, merged or opened."""
        t = self.now()
        spans: list[Span] = self.cells.load(key)
        if spans and spans[-1].start <= t and t + self.gap <= spans[-1].end:
            span = spans[-1]
            self._touch(span, key)
            return span
        hit, start, end = absorb(spans, t, t + self.gap)
        if not hit and end - 1 + self.lateness <= self.passed:
            if not spans:
                self.cells.delete(key)
            raise self.closed_error(t)
        if not hit or any(span.fired for span in hit):
            # One that was open has a timer already: where it ended before.
            self._end_at(end, self.shape.encode_key(key))
        if hit:
            span = hit[0]
            for other in hit[1:]:
                span.value = self.merge(span.value, other.value)
                if span.value is None:
                    raise StateError(f"table {self.name!r}: merge= returned None")
            spans[:] = [s for s in spans if s not in hit[1:]]
        else:
            span = Span(start, end, self.new(key))
            spans.append(span)
        span.start, span.end = start, end
        self._touch(span, key)
        spans.sort(key=_start)
        return span

    def _end_at(self, end: int, key_bytes: bytes) -> None:
        self.ends.arm(end, key_bytes)
        self.due = min(self.due, end - 1)

    def _touch(self, span: Span, key: Any) -> None:
        span.fired = span.told = False
        if self.early is not None:
            point = next_early(span.start, self.early, self.settled)
            if point != span.point:
                span.point = point
                heapq.heappush(self.early_points, (point, self.shape.encode_key(key)))

    def put(self, key: Any, value: Any) -> None:
        self.check_write()
        if value is None:
            self.delete(key)
        else:
            self._span(key).value = value

    def delete(self, key: Any) -> None:
        self.check_write()
        t = self.now()
        spans: list[Span] = self.cells.load(key)
        hit, _, _ = absorb(spans, t, t + self.gap)
        spans[:] = [span for span in spans if span not in hit]
        if not spans:
            self.cells.delete(key)

    def find(self, key: Any) -> Any:
        t = self.now()
        hit, _, _ = absorb(self._seen(self.cells.find(key)), t, t + self.gap)
        return hit[0].value if hit else None

    def _seen(self, spans: list[Span] | None) -> list[Span]:
        """Without those that are being fired and go then: all of them are over for a reader as soon as one is."""
        if spans is None or self.lateness or self.firing is None:
            return spans or []
        return [span for span in spans if span.end - 1 > self.watermark]

    def get(self, key: Any) -> Any:
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        value = self.find(key)
        return None if value is None else self.shape.present(value)

    def windows(self, key: Any) -> list[Open[Any]]:
        if self.shape.mode is Mode.WRITE:
            span = self._span(key)
            return [Open(span.value, span.start, span.end)]
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        t = self.now()
        hit, _, _ = absorb(self._seen(self.cells.find(key)), t, t + self.gap)
        return [Open(self.shape.present(span.value), span.start, span.end) for span in hit]

    def scan(self) -> Iterator[Any]:
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        for _, key, spans in self.cells.items():
            for span in self._seen(spans):
                yield key, Open(self.shape.present(span.value), span.start, span.end)

    def refresh(self) -> None:
        """There is no quick path: every look-up may open a session."""

    # Boundaries

    def all_cells(self) -> Iterator[Cells]:
        yield self.cells

    def all_timers(self) -> Iterable[Timers]:
        return (self.ends, self.drops)

    def entries(self, cell: Any, end: int | None) -> dict[Any, tuple[Any, int, int]]:
        return {span.start: (span.value, span.start, span.end) for span in cell or []}

    def compare(
        self, key: Any, old: dict[Any, tuple[Any, int, int]], new: dict[Any, tuple[Any, int, int]], time: int
    ) -> Iterator[Change[Any, Any]]:
        """A session that grew is the first of those that it was made of; the others are gone."""
        for after in new.values():
            parts = [before for before in old.values() if after[1] <= before[1] and before[2] <= after[2]]
            for gone in parts[1:]:
                yield self.change(key, gone, None, time)
            first = parts[0] if parts else None
            if first is None or first[1:] != after[1:] or self.differ(first[0], after[0]):
                yield self.change(key, first, after, time)
        for before in old.values():
            if not any(after[1] <= before[1] and before[2] <= after[2] for after in new.values()):
                yield self.change(key, before, None, time)

    def open(self, meta: dict[str, Any]) -> None:
        super().open(meta)
        for timers in self.all_timers():
            timers.open()
        self.early_points, self.early_ready = [], []
        if self.early is not None:
            for key_bytes, _, spans in self.cells.rows(None):
                points = [next_early(span.start, self.early, self.settled) for span in spans if not span.told]
                self.early_points += [(point, key_bytes) for point in points]
            heapq.heapify(self.early_points)
        self._set_due()

    # Time

    def deadline(self, t: int) -> int:
        # With lateness also before a fired session is dropped that the event would join: it ends at `t` or later.
        return t + self.gap - 1 if not self.lateness else t - 1 + min(self.gap, self.lateness)

    def _set_due(self) -> None:
        self.due = min(self.ends.due - 1, self.drops.due - 1 + self.lateness, NEVER)
        if self.early is not None:
            # Early points of sessions still to be opened count from here.
            self.due = min(self.due, self.settled + 1)

    def peek(self, watermark: int) -> int | None:
        while (first := self.ends.first) is not None and first[0] - 1 <= watermark:
            if self._ending(*first) is not None:
                return first[0]
            self._again(*self.ends.pop())
        self._find_early(watermark)
        while self.early_ready:
            if self._telling(*self.early_ready[0]) is not None:
                return self.early_ready[0][0]
            heapq.heappop(self.early_ready)
        return None

    def _again(self, end: int, key_bytes: bytes) -> None:
        """A timer came at `end`, where no open session ends: if one goes on there, come back at its end."""
        for span in self.cells.find(self.shape.decode_key(key_bytes)) or []:
            if span.start < end < span.end and not span.fired:
                self._end_at(span.end, key_bytes)

    def _find_early(self, watermark: int) -> None:
        while self.early_points and self.early_points[0][0] <= watermark:
            point, key_bytes = heapq.heappop(self.early_points)
            for span in self.cells.find(self.shape.decode_key(key_bytes)) or []:
                if not span.told and span.end - 1 > watermark and self._has_point(span, point):
                    heapq.heappush(self.early_ready, (span.end, key_bytes))

    def _has_point(self, span: Span, point: int) -> bool:
        """True if `point` is one at which the session, as it is now, gives early results."""
        assert self.early is not None
        return point >= span.start + self.early - 1 and (point + 1 - span.start) % self.early == 0

    def _ending(self, end: int, key_bytes: bytes) -> tuple[Any, Span] | None:
        key = self.shape.decode_key(key_bytes)
        for span in self.cells.find(key) or []:
            if span.end == end and not span.fired:
                return key, span
        return None

    def _telling(self, end: int, key_bytes: bytes) -> tuple[Any, Span] | None:
        found = self._ending(end, key_bytes)
        return None if found is None or found[1].told else found

    def fire(self, end: int, watermark: int) -> Iterator[Closed[Any, Any]]:
        self.firing = Firing(MIN_TIME, end)
        if end - 1 <= watermark:
            self.watermark = max(self.watermark, end - 1)
        return self.resume(watermark)

    def resume(self, watermark: int) -> Iterator[Closed[Any, Any]]:
        # Where the firing stands is seen from the sessions themselves: those that have fired are gone, or say so.
        firing = self.firing
        if firing is None:
            return
        if firing.end - 1 <= watermark:
            yield from self._fire_on_time(firing.end)
        else:
            self._find_early(watermark)
            yield from self._fire_early(firing.end)
        self.firing = None

    def _fire_on_time(self, end: int) -> Iterator[Closed[Any, Any]]:
        hand_over = self.shape.present if self.lateness else self.shape.final
        while self.ends.due == end:
            _, key_bytes = self.ends.pop()
            found = self._ending(end, key_bytes)
            if found is None:
                self._again(end, key_bytes)
                continue
            key, span = found
            value = hand_over(span.value) if self.wants_closed else None
            self._fired(key, key_bytes, span)
            if self.wants_closed:
                yield Closed(key, value, span.start, span.end)

    def _fire_early(self, end: int) -> Iterator[Closed[Any, Any]]:
        while self.early_ready and self.early_ready[0][0] == end:
            _, key_bytes = heapq.heappop(self.early_ready)
            found = self._telling(end, key_bytes)
            if found is None:
                continue
            key = found[0]
            span = next(s for s in self.cells.load(key) if s.end == end)
            span.told = True
            if self.wants_closed:
                yield Closed(key, self.shape.present(span.value), span.start, span.end, "early")

    def _fired(self, key: Any, key_bytes: bytes, span: Span) -> None:
        spans: list[Span] = self.cells.load(key)
        if self.lateness:
            next(s for s in spans if s.end == span.end).fired = True
            self.drops.arm(span.end, key_bytes)
        else:
            self._remove(key, spans, span.end)

    def _remove(self, key: Any, spans: list[Span], end: int) -> None:
        spans[:] = [s for s in spans if s.end != end]
        if not spans:
            self.cells.delete(key)

    def fire_late(self) -> list[tuple[int, bytes, Closed[Any, Any]]]:
        fired: list[tuple[int, bytes, Closed[Any, Any]]] = []
        for key in self.cells.touched():
            key_bytes = self.shape.encode_key(key)
            for span in self.cells.find(key) or []:
                if span.end - 1 <= self.passed and not span.fired:
                    late = Closed(key, self.shape.present(span.value), span.start, span.end, "late")
                    fired.append((span.end, key_bytes, late))
                    span.fired = True
                    self.drops.arm(span.end, key_bytes)
        return fired

    def settle(self, watermark: int) -> None:
        super().settle(watermark)
        while (first := self.drops.first) is not None and first[0] - 1 + self.lateness <= watermark:
            end, key_bytes = self.drops.pop()
            key = self.shape.decode_key(key_bytes)
            if any(span.end == end for span in self.cells.find(key) or []):
                self._remove(key, self.cells.load(key), end)
        self._set_due()


def _start(span: Span) -> int:
    return span.start
