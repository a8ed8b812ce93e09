"""Batches of records for a function: the same ones when a hand-off is delivered again, and divided when it fails.

    payload    {"id": BATCH, "records": [{"id": …, "key": …, "time": …, "value": …} …]}

    id         of a record: no other record has it, and it keeps it when it comes again
    key        text; of a key that is no text {"base64": …}; null if there is none
    time       the event's time in ms since the epoch
    value      the record's JSON, null for a tombstone
    BATCH      a hash of the records' ids: the same records, and no others, come again under the same one

A batch is cut from the hand-off's rows alone, whatever calls come back first, so that a delivery after a crash makes
the same ones. A record that the function has named as failed counts how often in BATCH: a function that remembers its
answers by BATCH is asked anew.
"""

import base64
import hashlib
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from flowkit.sink.dispatch import Again, Item, Never
from flowkit.sink.records import Row

FRAME_BYTES = len(b'{"id":"","records":[]}') + 32
"""Of a payload beside its records."""


class Entry(NamedTuple):
    """A record as the function gets it. `named`: how often the function has said that it failed."""

    row: int
    id: str
    lane: bytes | None
    body: bytes
    named: int = 0


class Failed(NamedTuple):
    """What a function made of a batch: it raised, or answered what is no answer; all of it counts as failed."""

    error: str
    reason: str


Answer = Failed | frozenset[str]
"""What a function made of a batch; the ids of the records that failed."""


class OnError(NamedTuple):
    """What becomes of what the function fails on, once it was tried `attempts` times. None of these: once more."""

    attempts: int = 3
    bisect: bool = True
    forever: bool = False


def entry_of(index: int, row: Row, lane: bytes | None) -> Entry:
    """The record of a row."""
    key: str | dict[str, str] | None = None
    if row.key is not None:
        try:
            key = row.key.decode()
        except UnicodeDecodeError:
            key = {"base64": base64.b64encode(row.key).decode()}
    value = b"null" if row.value is None else row.value
    body = b'{"id":"%b","key":%b,"time":%d,"value":%b}' % (row.id.encode(), msgspec.json.encode(key), row.time, value)
    return Entry(index, row.id, lane, body)


def payload(entries: Sequence[Entry]) -> bytes:
    """What the function gets."""
    return b'{"id":"%b","records":[%b]}' % (batch_id(entries).encode(), b",".join(entry.body for entry in entries))


def batch_id(entries: Iterable[Entry]) -> str:
    """See the head of this file."""
    names = (f"{entry.id}:{entry.named}" for entry in entries)
    return hashlib.sha256(" ".join(names).encode()).hexdigest()[:32]


def lane_of(key: bytes | None, index: int, lanes: int, batch: int) -> bytes:
    """Batches of one lane go one after the other. A key is always of the same one; what has none is dealt out."""
    return b"%d" % ((index // batch if key is None else zlib.crc32(key)) % lanes)


def packed(items: Iterable[Item], most: int, most_bytes: int, on_error: OnError) -> list[Item]:
    """Items whose bodies are entries as items whose bodies are batches, cut as the rows come."""
    found: list[Item] = []
    filling: dict[bytes | None, tuple[list[Entry], int]] = {}

    def close(lane: bytes | None) -> None:
        entries, size = filling.pop(lane)
        found.append(Item(entries[0].row, lane, size, Batch(entries, on_error)))

    for item in items:
        entry: Entry = item.body
        entries, size = filling.get(entry.lane, ([], FRAME_BYTES))
        if entries and (len(entries) == most or size + item.size + 1 > most_bytes):
            close(entry.lane)
            entries, size = [], FRAME_BYTES
        entries.append(entry)
        filling[entry.lane] = (entries, size + item.size + 1)
    for lane in list(filling):
        close(lane)
    return sorted(found, key=lambda item: item.row)


class _Part:
    """Records that are sent together. `failures`: how often the function has failed on just these."""

    def __init__(self, entries: Sequence[Entry], attempts: int) -> None:
        self.entries, self.attempts, self.failures = entries, attempts, 0


class Batch:
    """What is left of a batch, as parts to be sent one after the other; `never` has what is given up."""

    def __init__(self, entries: Sequence[Entry], on_error: OnError) -> None:
        self.on_error = on_error
        self.never: list[tuple[int, Never]] = []
        self._parts = [_Part(entries, on_error.attempts)]
        """The next one last."""

    @property
    def part(self) -> Sequence[Entry] | None:
        """The records to be sent next; None if all is dealt with."""
        return self._parts[-1].entries if self._parts else None

    def refused(self, why: Never) -> None:
        """The service does not take the part as it is: it is halved until the record to blame stands alone."""
        self._halve_or(why)

    def answered(self, answer: Answer) -> Again | None:
        """The function has answered on the part. What to wait for before the next one is sent, if it is to be."""
        if isinstance(answer, Failed):
            return self._failed(answer)
        return self._named(answer)

    def _failed(self, failed: Failed) -> Again | None:
        part = self._parts[-1]
        part.failures += 1
        if self.on_error.forever or part.failures < part.attempts:
            count = len(part.entries)
            return Again(f"the function failed on {count} records: {failed.error}: {failed.reason}")
        if self.on_error.bisect:
            self._halve_or(Never(*failed))
        else:
            self._give_up(Never(*failed))
        return None

    def _named(self, ids: frozenset[str]) -> Again | None:
        left: list[Entry] = []
        over: list[Entry] = []
        for entry in self._parts.pop().entries:
            if entry.id in ids:
                entry = entry._replace(named=entry.named + 1)
                spent = not self.on_error.forever and entry.named >= self.on_error.attempts
                (over if spent else left).append(entry)
        reason = "the function names it in batchItemFailures, after {} attempts"
        self.never += [(entry.row, Never("BatchItemFailure", reason.format(entry.named))) for entry in over]
        if not left:
            return None
        self._parts.append(_Part(left, self.on_error.attempts))
        return Again(f"the function names {len(left)} records in batchItemFailures")

    def _halve_or(self, why: Never) -> None:
        entries = self._parts[-1].entries
        if len(entries) == 1:
            self._give_up(why)
            return
        self._parts.pop()
        half = len(entries) // 2
        for some in (entries[half:], entries[:half]):
            # What is halved was tried often enough together; a record is given up only after as many tries alone.
            self._parts.append(_Part(some, self.on_error.attempts if len(some) == 1 else 1))

    def _give_up(self, why: Never) -> None:
        self.never += [(entry.row, why) for entry in self._parts.pop().entries]
