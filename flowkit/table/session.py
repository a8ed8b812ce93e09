"""Session tables: windows by activity. One cell a key holds its open sessions, apart from each other, in order."""

import heapq
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from flowkit.errors import StateError
from flowkit.record import END_OF_TIME, Closed
from flowkit.table.cells import Cells, no_event
from flowkit.table.cursor import Mode
from flowkit.table.state import NEVER, Open, State
from flowkit.window import absorb


class Span:
    """One open session of a key. `fired` is True once its result was sent and no event has come since."""

    __slots__ = ("end", "fired", "start", "value")

    def __init__(self, start: int, end: int, value: Any, fired: bool = False) -> None:
        self.start, self.end, self.value, self.fired = start, end, value, fired


def span_codec(
    encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]
) -> tuple[Callable[[list[Span]], bytes], Callable[[bytes], list[Span]]]:
    """Encoder and decoder of a cell, around those of the values."""
    pack, unpack = msgspec.msgpack.encode, msgspec.msgpack.decode

    def encode_spans(spans: list[Span]) -> bytes:
        return pack([(span.start, span.end, span.fired, encode(span.value)) for span in spans])

    def decode_spans(data: bytes) -> list[Span]:
        return [Span(start, end, decode(value), fired) for start, end, fired, value in unpack(data)]

    return encode_spans, decode_spans


class SessionState(State):
    """`merge(a, b)` makes one value of two sessions that an event joins, the earlier one first."""

    def __init__(
        self, *args: Any, gap: int, merge: Callable[[Any, Any], Any], new: Callable[[Any], Any], **kw: Any
    ) -> None:
        super().__init__(*args, **kw)
        self.gap, self.merge, self.new = gap, merge, new
        self.cells = Cells(self.shape, self.store, (self.name, None))
        self.moving = True
        self.ends: list[tuple[int, bytes]] = []
        self.drops: list[tuple[int, bytes]] = []
        # Whether an event is late depends on its key's sessions: look closely at every one that may be.
        self.careful_lag = 0 if self.lateness else self.gap - 1

    # Seen by agents

    def live(self, key: Any) -> Any:
        mode = self.shape.mode
        if mode is not Mode.WRITE:
            if mode is Mode.OUTSIDE:
                raise no_event(self.name)
            value = self.find(key)
            return self.shape.present(value) if value is not None else self.new(key)
        return self._span(key).value

    def _span(self, key: Any) -> Span:
        """The session of `key` at this event's time: extended, merged or opened."""
        t = self.now()
        spans: list[Span] = self.cells.load(key)
        if spans and spans[-1].start <= t and t + self.gap <= spans[-1].end:
            span = spans[-1]
            span.fired = False
            return span
        hit, start, end = absorb(spans, t, t + self.gap)
        if not hit and end - 1 + self.lateness <= self.watermark:
            if not spans:
                self.cells.delete(key)
            raise self.closed_error(t)
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
        if span.end != end or not hit:
            heapq.heappush(self.ends, (end, self.shape.encode_key(key)))
            self.due = min(self.due, end - 1)
        span.start, span.end, span.fired = start, end, False
        spans.sort(key=_start)
        return span

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
        t = self.cursor.time
        hit, _, _ = absorb(self.cells.find(key) or [], t, t + self.gap)
        return hit[0].value if hit else None

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
        t = self.cursor.time
        hit, _, _ = absorb(self.cells.find(key) or [], t, t + self.gap)
        return [Open(self.shape.present(span.value), span.start, span.end) for span in hit]

    def scan(self) -> Iterator[Any]:
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        for _, key, spans in self.cells.items():
            for span in spans:
                yield key, Open(self.shape.present(span.value), span.start, span.end)

    def refresh(self) -> None:
        pass

    # Boundaries

    def all_cells(self) -> Iterator[Cells]:
        yield self.cells

    def value_of(self, cell: Any) -> Any:
        """For changes: the session at the cause's time."""
        if not cell:
            return None
        t = self.cursor.time
        hit, _, _ = absorb(cell, t, t + self.gap)
        return hit[0].value if hit else None

    def open(self, meta: dict[str, Any]) -> None:
        super().open(meta)
        self.ends, self.drops = [], []
        for key_bytes, _, spans in self.cells.items():
            for span in spans:
                (self.drops if span.end - 1 <= self.watermark else self.ends).append((span.end, key_bytes))
        heapq.heapify(self.ends)
        heapq.heapify(self.drops)
        self._set_due()

    # Time

    def _set_due(self) -> None:
        self.due = self.ends[0][0] - 1 if self.ends else NEVER
        if self.drops:
            self.due = min(self.due, self.drops[0][0] - 1 + self.lateness)

    def peek(self, watermark: int) -> int | None:
        while self.ends and self.ends[0][0] - 1 <= watermark:
            if self._ending(*self.ends[0]) is not None:
                return self.ends[0][0]
            heapq.heappop(self.ends)
        return None

    def _ending(self, end: int, key_bytes: bytes) -> tuple[Any, Span] | None:
        key = self.shape.decode_key(key_bytes)
        for span in self.cells.find(key) or []:
            if span.end == end and not span.fired:
                return key, span
        return None

    def fire(self, end: int, watermark: int) -> list[Closed[Any, Any]]:
        results = []
        while self.ends and self.ends[0][0] == end:
            _, key_bytes = heapq.heappop(self.ends)
            found = self._ending(end, key_bytes)
            if found is None:
                continue
            key, span = found
            if self.wants_closed:
                value = (self.shape.present if self.lateness else self.shape.final)(span.value)
                results.append(Closed(key, value, span.start, span.end))
            self._fired(key, key_bytes, span)
        self.watermark = max(self.watermark, min(end - 1, END_OF_TIME))
        return results

    def _fired(self, key: Any, key_bytes: bytes, span: Span) -> None:
        spans: list[Span] = self.cells.load(key)
        if self.lateness:
            next(s for s in spans if s.end == span.end).fired = True
            heapq.heappush(self.drops, (span.end, key_bytes))
        else:
            self._remove(key, spans, span.end)

    def _remove(self, key: Any, spans: list[Span], end: int) -> None:
        spans[:] = [s for s in spans if s.end != end]
        if not spans:
            self.cells.delete(key)

    def fire_late(self) -> list[tuple[int, bytes, Closed[Any, Any]]]:
        fired = []
        for key in self.cells.touched():
            key_bytes = self.shape.encode_key(key)
            for span in self.cells.find(key) or []:
                if span.end - 1 <= self.watermark and not span.fired:
                    fired.append(
                        (span.end, key_bytes, Closed(key, self.shape.present(span.value), span.start, span.end, "late"))
                    )
                    span.fired = True
                    heapq.heappush(self.drops, (span.end, key_bytes))
        return fired  # type: ignore[return-value]

    def settle(self, watermark: int) -> None:
        super().settle(watermark)
        while self.drops and self.drops[0][0] - 1 + self.lateness <= watermark:
            end, key_bytes = heapq.heappop(self.drops)
            key = self.shape.decode_key(key_bytes)
            if any(span.end == end for span in self.cells.find(key) or []):
                self._remove(key, self.cells.load(key), end)
        self._set_due()


def _start(span: Span) -> int:
    return span.start
