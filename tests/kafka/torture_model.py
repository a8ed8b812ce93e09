"""What the tortured app must have sent: a sequential model of it, what a reader of committed records finds, and how
the two differ.
"""

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from tests.kafka.torture_app import LARGE, LATE_MS, SHOP_MS, SIZE_MS

USERS = [f"user {n}" for n in range(40)]
SHOPS = [f"shop {n}" for n in range(8)]
ITEMS = [f"item {n}" for n in range(12)]
FAR_MS = 600_000
"""The last events come from so far in the future that every window closes."""


class Event(NamedTuple):
    n: int
    user: str
    shop: str
    item: str
    at: int
    value: int


Sums = dict[tuple[str, int], tuple[int, int]]
"""By key and end of the window: number and sum."""


class Book:
    """Makes events by a seed, and keeps the books of all of them by the plainest code there is."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.n = 0
        self.last = 0
        """The time of the last events; windows that they open stay open."""
        self.now = 0
        self.users: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        self.items: dict[str, dict[int, int]] = defaultdict(dict)
        self.shops: Sums = {}
        self.values: dict[tuple[str, int], list[int]] = defaultdict(list)
        """By key and end of the window: what it is the sum of."""

    def make(self) -> Event:
        """The next event, of about now: brokers delete what is old."""
        chance = self.chance
        self.now = max(self.now, time.time_ns() // 1_000_000)
        at = self.now - chance.randrange(LATE_MS // 2)
        user, shop, item = chance.choice(USERS), chance.choice(SHOPS), chance.choice(ITEMS)
        return self._add(Event(self._number(), user, shop, item, at, chance.randrange(1_000)))

    def make_last(self, user: str) -> Event:
        """The last event of its partition."""
        self.last = self.last or self.now + FAR_MS
        return self._add(Event(self._number(), user, "last", "last", self.last, 1))

    def _number(self) -> int:
        self.n += 1
        return self.n

    def _add(self, event: Event) -> Event:
        mine = self.users[event.user]
        total = mine[-1][2] if mine else 0
        mine.append((event.n, len(mine) + 1, total + event.value))
        self.items[event.item][event.n] = event.value
        window = event.shop, end_of(event.at, SHOP_MS)
        _add(self.shops, window, event.value)
        self.values[window].append(event.value)
        return event

    @property
    def closed(self) -> Sums:
        """The windows that have closed."""
        return {(shop, end): sums for (shop, end), sums in self.shops.items() if shop != "last"}

    @property
    def sizes(self) -> Sums:
        found: Sums = {}
        for (_, end), (count, total) in self.closed.items():
            _add(found, ("large" if count > LARGE else "small", end_of(end - 1, SIZE_MS)), total)
        return found


def _add(sums: Sums, key: tuple[str, int], value: int) -> None:
    count, total = sums.get(key, (0, 0))
    sums[key] = count + 1, total + value


def end_of(at: int, size: int) -> int:
    """The end of the window of that time."""
    return at - at % size + size


class Outside:
    """What others see of a cluster, by aiokafka alone: flowkit must not judge itself."""

    def __init__(self, bootstrap: str, app: str) -> None:
        self.app = app
        self.rows: dict[str, list[Any]] = defaultdict(list)
        """By kind of output, everything that is committed."""
        self._runner = asyncio.Runner()
        self._bootstrap = bootstrap
        self._consumer: Any = None

    def close(self) -> None:
        if self._consumer is not None:
            self._runner.run(self._consumer.stop())
        self._runner.close()

    def read(self, kinds: Iterable[str] = ("users", "items", "shops", "sizes")) -> None:
        """Take in what has been committed since the last look."""
        self._runner.run(self._read({f"{self.app}-{kind}": kind for kind in kinds} | {"dead-letters": "dead-letters"}))

    async def _read(self, kinds: dict[str, str]) -> None:
        if self._consumer is None:
            self._consumer = AIOKafkaConsumer(
                bootstrap_servers=self._bootstrap,
                isolation_level="read_committed",
                enable_auto_commit=False,
                auto_offset_reset="earliest",
            )
            await self._consumer.start()
            found = await self._topics()
            parts = [TopicPartition(t, p) for t in kinds for p in range(found.get(t, 0))]
            self._consumer.assign(parts)
        ends = await self._consumer.end_offsets(list(self._consumer.assignment()))
        for part, end in ends.items():
            while await self._consumer.position(part) < end:
                for records in (await self._consumer.getmany(part, timeout_ms=200)).values():
                    self.rows[kinds[part.topic]] += [json.loads(record.value) for record in records]

    async def _topics(self) -> dict[str, int]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        await admin.start()
        try:
            return {each["topic"]: len(each["partitions"]) for each in await admin.describe_topics()}
        finally:
            await admin.close()


def is_drained(book: Book, outside: Outside) -> bool:
    """Whether there are as many outputs as there must be."""
    rows = outside.rows
    return (
        len(rows["users"]) >= book.n
        and len(rows["items"]) >= book.n
        and len(rows["shops"]) >= len(book.closed)
        and len(rows["sizes"]) >= len(book.sizes)
    )


def differences(book: Book, rows: dict[str, list[Any]]) -> list[str]:
    """How the outputs differ from the model's, in words; nothing if they are the same."""
    found = users_differences(book, rows["users"], "users") + _items(book, rows["items"])
    found += _windows("shops", book.closed, rows["shops"], book.last)
    found += _windows("sizes", book.sizes, rows["sizes"], book.last)
    if "ledger" in rows:
        found += users_differences(book, rows["ledger"], "ledger")
    found += [f"dead letter: {row}" for row in rows["dead-letters"][:5]]
    return found


def users_differences(book: Book, rows: list[Any], name: str) -> list[str]:
    """Each user's running totals are those of the model, in order: state and output went together all the way."""
    sent: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for row in rows:
        sent[row["key"]].append((row["n"], row["count"], row["total"]))
    found = _numbers(name, (row["n"] for row in rows), range(1, book.n + 1))
    for user in sorted(book.users.keys() | sent.keys()):
        ours, theirs = book.users.get(user, []), sent.get(user, [])
        if ours != theirs:
            at = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
            found.append(
                f"{name}: {user}: {len(theirs)} of {len(ours)} totals; from the {at + 1}th on the model has "
                f"(n, count, total) {ours[at : at + 3]}, the app sent {theirs[at : at + 3]}"
            )
    return found


def _items(book: Book, rows: list[Any]) -> list[str]:
    """Their order is that in which re-keyed events arrived; each has to be there once, and the totals to add up."""
    found = _numbers("items", (row["n"] for row in rows), range(1, book.n + 1))
    at: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        at[row["key"]].append(row)
    for item, sent in sorted(at.items()):
        total = 0
        for count, row in enumerate(sent, 1):
            total += book.items[item].get(row["n"], 0)
            if (row["count"], row["total"]) != (count, total):
                found.append(f"items: {item}: event {row['n']} must make it {(count, total)}, the app sent {row}")
                break
    return found


def _numbers(name: str, sent: Iterable[int], made: Iterable[int]) -> list[str]:
    times = Counter(sent)
    lost = sorted(set(made) - times.keys())
    twice = sorted(n for n, count in times.items() if count > 1)
    found = [f"{name}: {len(lost)} events lost: {lost[:10]}"] if lost else []
    return found + ([f"{name}: {len(twice)} events taken more than once: {twice[:10]}"] if twice else [])


def _windows(name: str, model: Sums, rows: list[Any], last: int) -> list[str]:
    sent: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    for row in rows:
        if row["end"] <= last:  # those that the last events opened may have closed, or not
            sent[row["key"], row["end"]].append((row["count"], row["total"]))
    wrong = [key for key in sorted(model.keys() | sent.keys()) if [model.get(key)] != sent.get(key)]
    told = [f"{key}: {model.get(key)}, sent {sent.get(key)}" for key in wrong[:3]]
    return [f"{name}: {len(wrong)} of {len(model)} windows are not the model's: {'; '.join(told)}"] if wrong else []
