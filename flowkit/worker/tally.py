"""What a task has done since its state began, by topic, agent and table: counted in the state, so exactly once.

The counts are part of each commit, as the state is. What is taken back is counted no more, what comes again is counted
once, and a task that is opened again, here or by another worker, goes on counting where the last commit left off.
"""

from collections import defaultdict
from typing import Any

COLUMNS = ("records", "bytes", "late", "dead", "failed", "results", "fired", "called", "emitted", "emitted_bytes")


class Tally:
    """Counts by their labels. Plain dicts: what counts adds to them, once a batch where there are many.

    `records` and `bytes` are by topic, `late`, `results` (of windows, one a key) and `fired` (window ends, all keys
    together) by table, `called` (events whose calls have ended) by stream, `dead` by (topic, agent), `failed` (attempts
    in which an agent raised) by agent, `emitted` and `emitted_bytes` by topic or sink. Bytes are counted only while
    `measured`.
    """

    __slots__ = (*COLUMNS, "_committed", "began", "measured")

    def __init__(self) -> None:
        self.records: defaultdict[str, int] = defaultdict(int)
        self.bytes: defaultdict[str, int] = defaultdict(int)
        self.late: defaultdict[str, int] = defaultdict(int)
        self.dead: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.failed: defaultdict[str, int] = defaultdict(int)
        self.results: defaultdict[str, int] = defaultdict(int)
        self.fired: defaultdict[str, int] = defaultdict(int)
        self.called: defaultdict[str, int] = defaultdict(int)
        self.emitted: defaultdict[str, int] = defaultdict(int)
        self.emitted_bytes: defaultdict[str, int] = defaultdict(int)
        self.measured = False
        self._committed: dict[str, Any] = {}
        self.began: dict[str, Any] | None = None
        """What was taken up first: by how much counts have grown since is what this task has done itself."""

    @property
    def committed(self) -> dict[str, Any]:
        """What the last cut saved."""
        return self._committed

    def took(self, topic: str, batch: Any, start: int, stop: int) -> None:
        """Records `[start, stop)` of a batch are done."""
        self.records[topic] += stop - start
        if self.measured:
            self.bytes[topic] += sum(map(len, filter(None, batch.values[start:stop])))

    def gave(self, name: str, records: list[Any]) -> None:
        """These go out with the commit that is being cut."""
        if records:
            self.emitted[name] += len(records)
            if self.measured:
                self.emitted_bytes[name] += sum(len(record.value) for record in records if record.value is not None)

    # Commit

    def cut(self) -> dict[str, Any]:
        """What a commit saves: rows of labels and a count, by column."""
        saved: dict[str, list[list[Any]]] = {}
        for name in COLUMNS:
            rows = [[*(key if isinstance(key, tuple) else (key,)), n] for key, n in getattr(self, name).items()]
            if rows:
                saved[name] = rows
        self._committed = saved
        return saved

    def load(self, saved: dict[str, Any]) -> None:
        """Take up what a commit left ({}: nothing yet)."""
        self._committed = saved
        if self.began is None:
            self.began = saved
        for name in COLUMNS:
            counts = getattr(self, name)
            counts.clear()
            counts.update(counts_of(saved, name, single=name != "dead"))

    def rollback(self) -> None:
        """Go back to the last commit."""
        self.load(self._committed)


def counts_of(saved: dict[str, Any], name: str, *, single: bool = True) -> dict[Any, int]:
    """A column of what `Tally.cut` saved: counts by label, or by a tuple of labels."""
    return {labels[0] if single else tuple(labels): n for *labels, n in saved.get(name, ())}
