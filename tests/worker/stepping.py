"""A worker on the scripted broker: an app with what commits are made of, its plain model, and its tasks' lives.

Tasks are opened as workers do it, each in a directory of its own, by epoch, from frames where the disk is gone; if one
fails, or hangs, it is dropped and opened again.
"""

import asyncio
import contextlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flowkit import App, Closed, Count, Record, Tumbling
from flowkit.clock import VirtualClock
from flowkit.codec import Codec, encode_key
from flowkit.errors import FlowkitError
from flowkit.options import Guarantee, WorkerOptions
from flowkit.source import partition_of
from flowkit.store import Host
from flowkit.table import Mode
from flowkit.worker import LiveTask, random_ids
from flowkit.worker.state_home import StateHome
from flowkit.worker.wiring import Wiring
from tests.model.world import Kept
from tests.worker.ledger import Cluster, Killed, LedgerBroker, Mistake, Script

PARTITIONS = 2

# --- the app ----------------------------------------------------------------------------------------------------------


class Event(Record):
    key: str
    at: int
    value: int


class Told(Record, frozen=True):
    key: str
    n: int


class Sum(Record):
    value: int
    start: int
    n: int


def app_of(guarantee: Guarantee, gate: asyncio.Event) -> App:
    """Its calls end while `gate` is open."""
    app = App("steps", guarantee=guarantee)
    events = app.topic("events", Event, key="key", time="at", out_of_order=5)
    told, asked = app.topic("told", Told, key="key"), app.sink("asked", Told)
    sums, closed = app.topic("sums", Sum, key="value"), app.sink("closed", Sum)
    seen = app.table("seen", str, int)
    by_value = app.table("by-value", of=events.group_by("value"), by="value", window=Tumbling(10), n=Count())

    @app.each(events, tables=[seen], sinks=[told])
    def tell(event: Event) -> Told:
        seen[event.key] += 1
        return Told(event.key, seen[event.key])

    async def ask(event: Event) -> Told:
        await gate.wait()
        return Told(event.key, 100 * event.value + event.at)

    @app.each(events.map_async(ask), sinks=[asked])
    def answer(found: Told) -> Told:
        return found

    @app.each(by_value.closed, sinks=[closed])
    def close(w: Closed[int, Any]) -> Sum:
        return Sum(w.key, w.start, w.value.n)

    @app.each(by_value.closed, sinks=[sums])
    def send(w: Closed[int, Any]) -> Sum:
        return Sum(w.key, w.start, w.value.n)

    return app


EVENTS = [Event(f"k{n % 5}", n + n % 4, n % 3) for n in range(40)]
LAST = [Event(key, 100, 9) for key in ("k0", "k1", "k2", "k3", "k4")]
"""They close the windows before them, and stay in one that is open."""


class Seen(Record):
    """All that can be seen of a run, by partition where there is one."""

    told: list[list[Told]]
    asked: list[list[Told]]
    sums: list[list[Sum]]
    closed: list[list[Sum]]
    seen: dict[str, int]
    open: dict[tuple[int, int, int], int]
    positions: dict[str, int]


def model() -> Seen:
    """What comes of the events if nothing ever goes wrong: they are looked at one after the other."""
    told: list[list[Told]] = [[] for _ in range(PARTITIONS)]
    asked: list[list[Told]] = [[] for _ in range(PARTITIONS)]
    sums: list[list[Sum]] = [[] for _ in range(PARTITIONS)]
    seen: Counter[str] = Counter()
    windows: Counter[tuple[int, int]] = Counter()
    for event in [*EVENTS, *LAST]:
        at = home(event.key)
        seen[event.key] += 1
        told[at].append(Told(event.key, seen[event.key]))
        asked[at].append(Told(event.key, 100 * event.value + event.at))
        windows[event.at - event.at % 10, event.value] += 1
    for (start, value), n in sorted(windows.items()):
        if start < 90:
            sums[home(value)].append(Sum(value, start, n))
    opened = {(value, start, start + 10): n for (start, value), n in windows.items() if start >= 90}
    ends = {f"events[{n}]": len(told[n]) for n in range(PARTITIONS)}
    return Seen(told, asked, sums, sums, dict(seen), opened, ends)


def home(key: Any) -> int:
    """The partition of a key."""
    return partition_of(encode_key(key), PARTITIONS)


MODEL = model()


def compare(found: Seen, guarantee: Guarantee) -> None:
    """Nothing lost, and nothing twice but what at least once allows."""
    if guarantee == "exactly once":
        assert found == MODEL, f"{found}\n\nis not\n\n{MODEL}"
        return
    # What comes of a task's own input, and leaves with its frames, is exact all the same.
    assert (found.seen, found.positions, found.asked) == (MODEL.seen, MODEL.positions, MODEL.asked)
    for got, wanted in zip(found.told, MODEL.told, strict=True):
        assert set(got) == set(wanted)
        assert Counter(got) >= Counter(wanted)
    for sums, closed, known in zip(found.sums, found.closed, MODEL.closed, strict=True):
        counts = {(each.value, each.start): each.n for each in known}
        assert [(each.value, each.start) for each in closed] == list(counts)
        assert {(each.value, each.start) for each in sums} == counts.keys()
        assert all(each.n >= counts[each.value, each.start] for each in (*sums, *closed))
    assert found.open.keys() == MODEL.open.keys()
    assert all(n >= MODEL.open[window] for window, n in found.open.items())


# --- the worker -------------------------------------------------------------------------------------------------------


class World:
    """One worker's tasks on a cluster, opened again whenever they fail. With `lose`, a disk never comes back."""

    def __init__(
        self,
        path: Path,
        host: Host,
        guarantee: Guarantee,
        script: Script,
        *,
        lose: bool,
        mistake: Mistake | None = None,
    ) -> None:
        self.path, self.host, self.script, self.lose = path, host, script, lose
        self.guarantee: Guarantee = guarantee
        self.cluster = Cluster(mistake)
        self.broker = LedgerBroker(self.cluster, script, guarantee)
        self.gate = asyncio.Event()
        self.app = app_of(guarantee, self.gate)
        self.wiring = Wiring(
            self.app, self.app.plan(rekey=True), {"asked": "a-{partition}", "closed": "c-{partition}"}, PARTITIONS
        )
        self.clock = VirtualClock()
        self.homes: dict[str, StateHome] = {}
        self.places: dict[str, str] = {}
        self.kept: dict[tuple[str, str], list[bytes]] = defaultdict(list)
        self.tasks: dict[str, LiveTask] = {}
        self.opened = 0
        self.ids = random_ids(1)

    async def play(self) -> Seen:
        """Events come in two parts; each time calls are under way for a while, through commits."""
        await self.wiring.connect(self.broker)
        self.broker.writes = self.wiring.topics
        try:
            for part in (EVENTS[:20], EVENTS[20:], LAST):
                self.gate.clear()
                self._put(part)
                await self._settle()
                self.gate.set()
                await self._settle()
            return self._look()
        finally:
            for task in self.tasks.values():
                await task.close()

    def _put(self, events: Sequence[Event]) -> None:
        encode = Codec("json", Event).encode
        self.cluster.put("events", [(encode_key(event.key), encode(event), event.at) for event in events])

    async def _settle(self) -> None:
        moved = True
        while moved:
            moved = False
            for name in self.wiring.slices:
                moved = await self._turn(name) or moved

    async def _turn(self, name: str) -> bool:
        """Let a task do what there is to do; True if there was anything. If it fails, it goes."""
        try:
            if name not in self.tasks:
                await self._watched(self._open(name))
            return bool(await self._watched(self._work(self.tasks[name])))
        except (FlowkitError, Killed):
            await self._drop(name)
            return True

    async def _watched(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do it, and kill whoever waits for an answer that never comes."""
        job = asyncio.create_task(work)
        hangs = asyncio.create_task(self.script.hangs.wait())
        try:
            await asyncio.wait({job, hangs}, return_when=asyncio.FIRST_COMPLETED)
            if hangs.done():
                self.script.hangs.clear()
                assert self.script.hanging is not None
                self.script.hanging.cancel()
                await asyncio.wait({job})
        finally:
            hangs.cancel()
        if job.cancelled():
            raise Killed("it hung")
        return job.result()

    async def _open(self, name: str) -> None:
        self.opened += 1
        assert self.opened < 30, f"{name} is opened again and again"
        home = self.homes.setdefault(name, StateHome(self.path / name.replace("/", "-"), self.host))
        place = home.begin(name, self.places.get(name, ""))
        claim = await self.broker.claim(name, str(place))
        self.places[name] = str(place)
        part = self.wiring.slices[name]
        outlets = [outlet.name for outlet in part.group.outlets if outlet.name in self.app.sinks]
        sinks: dict[str, Any] = {outlet: Kept(self.kept[outlet, name]) for outlet in outlets}
        task = LiveTask(
            self.app,
            part.group,
            part.partition,
            part.count,
            broker=self.broker,
            topics=self.wiring.topics,
            senders=self.wiring.senders,
            sinks=sinks,
            store=home.open(name, place, claim, lambda number: self.broker.frames(name, number)),
            epoch=claim.epoch,
            clock=self.clock,
            options=WorkerOptions(),
            new_id=self.ids,
            hook=partial(self.script.pass_by, name),
        )
        await task.open()
        self.tasks[name] = task

    async def _drop(self, name: str) -> None:
        task = self.tasks.pop(name, None)
        if task is not None:
            with contextlib.suppress(Killed, FlowkitError, asyncio.CancelledError):
                await task.close()
        if self.lose and name in self.homes:
            shutil.rmtree(self.homes[name].root, ignore_errors=True)
            self.places.pop(name, None)

    async def _work(self, task: LiveTask) -> bool:
        before = task.task.store.number
        found = await task.fetch(7)
        while await task.step():
            found = True
        if task.waits_for_calls and self.gate.is_set():
            await task.wait_for_calls(1_000)
            found = True
        if found:
            await task.task.commit()
            await task.task.settled()
        return found or task.task.store.number > before

    # Looking

    def _look(self) -> Seen:
        def sent(topic: str, type_: Any) -> list[list[Any]]:
            decode = Codec("json", type_).decode
            shown = [self.cluster.committed(topic, n) for n in range(PARTITIONS)]
            return [[decode(entry.value) for entry in each if entry.value is not None] for each in shown]

        def kept(sink: str, group: str, type_: Any) -> list[list[Any]]:
            decode = Codec("json", type_).decode
            return [[decode(x) for x in self.kept.get((sink, f"steps/{group}/{n}"), [])] for n in range(PARTITIONS)]

        tables: dict[str, dict[Any, Any]] = {"seen": {}, "by-value": {}}
        positions: dict[str, int] = {}
        for task in self.tasks.values():
            positions |= task.task.store.meta["positions"]
            for name, state in task.engine.states.items():
                state.set_mode(Mode.READ)
                for key, entry in state.scan():
                    tables[name][key if name == "seen" else (key, entry.start, entry.end)] = entry.value
        internal = "steps.events.by-value"
        for n in range(PARTITIONS):
            assert (
                positions.pop(f"{internal}[{n}]")
                == self.cluster.shown(internal, n)
                == len(self.cluster.topics[internal][n])
            )
        return Seen(
            sent("told", Told),
            kept("asked", "seen", Told),
            sent("sums", Sum),
            kept("closed", "by-value", Sum),
            tables["seen"],
            {key: value.n for key, value in tables["by-value"].items()},
            positions,
        )
