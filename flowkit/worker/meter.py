"""What can be measured of a task while it runs: how it spends its time, how long commits take, how often it began anew.

These are observations of this process, unlike the counts of `tally`, which are part of the state. A worker keeps the
meter of each of its tasks, so that they go on when a task is opened again.

    busy             it has input and works on it, or waits for an agent that awaits something
    back-pressured   it cannot go on before the commit before is through
    idle             it waits for input

The three make up all of its time, as Flink's busyTimeMsPerSecond and its sisters do.
"""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec

from flowkit.store import Stats, Store
from flowkit.worker.tracing import Tracing

IDLE, BUSY, BACK_PRESSURED = range(3)

SPAN = 10.0
"""Times a second are those of so many seconds."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BYTES = tuple(2.0**n for n in range(8, 31, 2))
"""Upper bounds of a histogram's buckets: 1 ms to 30 s, and 256 bytes to 1 GiB."""


class Histogram:
    """How often values up to each bound came.

    >>> histogram = Histogram((1, 5))
    >>> for value in (0.5, 1, 3, 70): histogram.observe(value)
    >>> list(histogram.buckets()), histogram.sum
    ([('1.0', 2), ('5.0', 3), ('+Inf', 4)], 74.5)
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> Iterator[tuple[str, int]]:
        """Upper bounds and how many values were not above them, as Prometheus has them."""
        so_far = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            so_far += count
            yield ("+Inf" if bound == float("inf") else str(float(bound))), so_far


class Meter:
    """The measures of one task. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.phase = IDLE
        self.since = clock()
        self.spent = [0.0, 0.0, 0.0]
        """Seconds by phase, but for the present one."""
        self.commit_seconds = Histogram(SECONDS)
        self.commit_bytes = Histogram(BYTES)
        self.opened = 0
        """How often the task was opened."""
        self.rollbacks = 0
        self.taken = 0
        """Records in commits that are through."""
        self.committed_at: int | None = None
        """When (ms) the last commit was through."""
        self.checkpointed_at: int | None = None
        """When (ms) a checkpoint last held all that had been committed."""
        self.checkpoint_failures = 0
        self.measured = False
        """True if someone will ask how many bytes were read."""
        self.tracing: Tracing | None = None
        self._past = Stats()
        """What stores have done that are closed by now."""
        self._cached: dict[str, tuple[int, int]] = {}
        """Hits and misses, by stream, of caches that are gone by now."""
        self._seen: deque[tuple[float, list[float], int]] = deque()

    # Time

    def enter(self, phase: int) -> int:
        """The task does something else from now on; what it did before."""
        now, before = self._clock(), self.phase
        self.spent[before] += now - self.since
        self.phase, self.since = phase, now
        return before

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """The task waits for a commit as long as this context lasts."""
        before = self.enter(BACK_PRESSURED)
        try:
            yield
        finally:
            self.enter(before)

    def seconds(self) -> list[float]:
        """Seconds by phase, up to now."""
        self.enter(self.phase)
        return list(self.spent)

    def look(self) -> None:
        """Note how it stands, for `per_second`. Called about once a second."""
        spent = self.seconds()
        self._seen.append((self.since, spent, self.taken))
        while len(self._seen) > 2 and self._seen[1][0] <= self.since - SPAN:
            self._seen.popleft()

    def per_second(self) -> list[float]:
        """Ms a second by phase, over the last `SPAN` seconds, or since the first look."""
        spent = self.seconds()
        at, before, _ = self._seen[0] if self._seen else (self.since, spent, 0)
        passed = self.since - at
        if passed <= 0:
            return [1000.0 * (phase == self.phase) for phase in range(3)]
        return [1000 * (now - then) / passed for now, then in zip(spent, before, strict=True)]

    def rate(self) -> float:
        """Records a second, over the same time."""
        at, _, before = self._seen[0] if self._seen else (self.since, None, self.taken)
        passed = self._clock() - at
        return (self.taken - before) / passed if passed > 0 else 0.0

    def traced(self, task: str, topic: str, split: str, records: int, took: float) -> None:
        """A batch was handled, in `took` seconds up to now."""
        if self.tracing is not None:
            self.tracing.batch(task, topic, split, records, time.time_ns() - round(took * 1e9))

    # Store

    def stats(self, store: Store | None) -> Stats:
        """What the task's stores have done, those before `store` too; its sizes are those of `store` alone."""
        now = getattr(store, "stats", Stats)()
        return msgspec.structs.replace(now, **{name: getattr(now, name) + getattr(self._past, name) for name in _DONE})

    def cached(self, now: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        """Hits and misses of the caches before look-ups, by stream: `now` are those of the caches there are."""
        found = dict(self._cached)
        for name, (hits, misses) in now.items():
            before = found.get(name, (0, 0))
            found[name] = before[0] + hits, before[1] + misses
        return found

    def closes(self, store: Store, cached: Mapping[str, tuple[int, int]]) -> None:
        """The store and the caches go: keep what they have done."""
        self._past, self._cached = self.stats(store), self.cached(cached)


_DONE = (
    *("commits", "logged", "flushes", "flushed", "compactions", "compaction_read", "compacted", "compaction_seconds"),
    *("background_seconds", "waited_seconds", "checkpoints", "checkpoint_uploaded", "checkpoint_seconds"),
)
"""What a store has done, in Stats; the other fields tell how it is."""


class CommitWatch:
    """One commit on its way: from the cut until its hand-offs are delivered."""

    def __init__(self, meter: Meter, name: str, number: int, records: int, store: Store) -> None:
        self.meter, self.name, self.number, self.records, self._store = meter, name, number, records, store
        self._began, self._began_ns = time.perf_counter(), time.time_ns()
        self._logged = self._total()

    def _total(self) -> int | None:
        counts: Stats | None = getattr(self._store, "counts", None)
        return None if counts is None else counts.logged

    def done(self, error: BaseException | None = None) -> None:
        """It is through, or has failed."""
        meter, logged = self.meter, self._total()
        size = None if logged is None or self._logged is None else logged - self._logged
        if error is None:
            meter.commit_seconds.observe(time.perf_counter() - self._began)
            if size is not None:
                meter.commit_bytes.observe(size)
            meter.taken += self.records
            meter.committed_at = time.time_ns() // 1_000_000
        if meter.tracing is not None:
            meter.tracing.commit(self.name, self.number, self.records, size, self._began_ns, error)
