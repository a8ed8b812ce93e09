"""Savepoints on the embedded broker: taken under load, broken off, gone on from elsewhere, refused where need be."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from flowkit import App, Closed, ConfigError, Count, Record, Sum, Tumbling
from flowkit.clock import SystemClock, VirtualClock
from flowkit.errors import StoreError
from flowkit.source import open_storage, partition_of
from flowkit.source.embedded import EmbeddedBroker
from flowkit.store import Checkpoints, LsmStore, folder_of, tasks_in
from flowkit.worker import Worker, draining, ownership
from flowkit.worker.beginning import TaskBeginning, marker_of
from flowkit.worker.savepoint import Manifest, Parts, Request, Requests, Seal, read_manifest
from tests.integration.workers import (
    Event,
    adding_up,
    an_event,
    eventually,
    new_worker,
    out_in,
    put,
    refused,
    topics_in,
    totals,
    working,
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(draining, "QUICK_SECONDS", 0.02)


class Sale(Record):
    user: str
    shop: str
    at: int
    value: int


class Window(Record):
    shop: str
    end: int
    n: int
    total: int


class Sized(Record):
    size: str
    total: int


class Size(Record):
    size: str
    end: int
    n: int
    total: int


def by_user(name: str = "selling") -> App:
    """Windows of each user's sales: nothing is sent on by another key."""
    app = App(name)
    sales = app.topic("sales", Sale, key="user", time="at", out_of_order=20)
    windows = app.topic("windows", Window, key="shop", time="end")
    table: Any = app.table("by-user", of=sales, by="user", window=Tumbling(100), n=Count(), total=Sum("value"))

    @app.each(table.closed, sinks=[windows])
    def closed(w: Closed[str, Any]) -> Window:
        return Window(w.key, w.end, w.value.n, w.value.total)

    return app


def by_shop(name: str = "selling") -> App:
    """Windows by shop of sales by user, and windows by size of those: two hops, one after the other."""
    app = App(name)
    sales = app.topic("sales", Sale, key="user", time="at", out_of_order=20)
    windows, sizes = app.topic("windows", Window, key="shop", time="end"), app.topic("sizes", Size, key="size")
    shops: Any = app.table(
        "by-shop", of=sales.group_by("shop"), by="shop", window=Tumbling(100), n=Count(), total=Sum("value")
    )

    def sized(window: Closed[str, Any]) -> Sized:
        return Sized("large" if window.value.n > 3 else "small", window.value.total)

    sizes_of: Any = app.table(
        "by-size",
        of=shops.closed.map(sized).group_by("size", name="windows-by-size"),
        by="size",
        window=Tumbling(1_000),
        n=Count(),
        total=Sum("total"),
    )

    @app.each(shops.closed, sinks=[windows])
    def closed(w: Closed[str, Any]) -> Window:
        return Window(w.key, w.end, w.value.n, w.value.total)

    @app.each(sizes_of.closed, sinks=[sizes])
    def closed_size(w: Closed[str, Any]) -> Size:
        return Size(w.key, w.end, w.value.n, w.value.total)

    return app


APPS = {"by user": by_user, "by shop": by_shop}
PARTITIONS = 3
TOPICS = {"sales": PARTITIONS, "windows": 2, "sizes": 1}
USERS = [next(f"u{n}-{p}" for n in range(99) if partition_of(f"u{n}-{p}".encode(), 3) == p) for p in range(3)]


def sales_of(count: int, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Sales that come in the order of their time, to the partitions in turn: (partition, sale)."""
    chance = Random(7)
    for n in range(count):
        partition = n % PARTITIONS
        value, shop = chance.randrange(100), f"shop {chance.randrange(7)}"
        if n >= start:
            yield partition, {"user": USERS[partition], "shop": shop, "at": 10 * (n // PARTITIONS), "value": value}


async def feed(broker: EmbeddedBroker, start: int, stop: int) -> None:
    for partition, sale in sales_of(stop, start):
        await broker.put("sales", [(sale["user"].encode(), json.dumps(sale).encode(), 0)], partition)


async def flush(broker: EmbeddedBroker) -> None:
    """Sales that close every window before them."""
    for partition, user in enumerate(USERS):
        sale = {"user": user, "shop": "last", "at": 10_000_000, "value": 0}
        await broker.put("sales", [(user.encode(), json.dumps(sale).encode(), 0)], partition)


async def sent(broker: EmbeddedBroker, topic: str) -> list[Any]:
    """All that lies in a topic, in no particular order."""
    found = []
    topics = await broker.topics()
    for partition in range(topics.get(topic, 0)):
        end = (await broker.end_offsets(topic))[partition]
        at = 0
        while at < end:
            batch = await broker.read(topic, partition, at, 10_000)
            found += [json.loads(value) for value in batch.values if value is not None]
            at += len(batch)
    return sorted(found, key=repr)


def expected(kind: str, count: int) -> list[Any]:
    """The windows of so many sales, by a model that knows nothing of savepoints."""
    key = "user" if kind == "by user" else "shop"
    found: dict[tuple[str, int], list[int]] = {}
    for _, sale in sales_of(count):
        cell = found.setdefault((sale[key], sale["at"] // 100 * 100 + 100), [0, 0])
        cell[0] += 1
        cell[1] += sale["value"]
    windows = [{"shop": key, "end": end, "n": n, "total": total} for (key, end), (n, total) in found.items()]
    return sorted(windows, key=repr)


# --- taking one -------------------------------------------------------------------------------------------------------


async def ask(directory: Path, app: str = "selling", to: str = "saved", **options: Any) -> Request:
    async with open_storage(str(directory / "kept")) as storage:
        requests = Requests(storage, app, SystemClock())
        return await requests.ask(str(directory / to), **{"stop": False, "within": 20_000, **options})


async def ended(directory: Path, request: Request) -> Request:
    """What becomes of a request."""
    async with open_storage(str(directory / "kept")) as storage:
        requests = Requests(storage, request.app, SystemClock())
        async with asyncio.timeout(30):
            while True:
                now = await requests.last()
                assert now is not None
                assert now.id == request.id
                if now.state != "asked":
                    return now
                await asyncio.sleep(0.02)


async def take(directory: Path, app: str = "selling", **options: Any) -> Manifest:
    return await taken(directory, await ask(directory, app, **options))


async def taken(directory: Path, request: Request) -> Manifest:
    now = await ended(directory, request)
    assert now.state == "done", now.why
    return await manifest_in(directory)


async def manifest_in(directory: Path, name: str = "saved") -> Manifest:
    async with open_storage(str(directory / name)) as storage:
        manifest = await read_manifest(storage)
    assert manifest is not None
    return manifest


@asynccontextmanager
async def two_workers(app: str, directory: Path, **options: Any) -> AsyncIterator[None]:
    given = {"checkpoints": str(directory / "kept"), "checkpoint_interval": 3_600_000, **options}
    async with AsyncExitStack() as stack:
        for n in range(2):
            await stack.enter_async_context(working(APPS[app](), directory, state=f"state-{n}", **given))
        yield


async def carry_over(old: EmbeddedBroker, new: EmbeddedBroker, topic: str) -> None:
    for partition in range((await old.topics())[topic]):
        end = (await old.end_offsets(topic))[partition]
        at = 0
        while at < end:
            batch = await old.read(topic, partition, at, 10_000)
            keys, times = batch.keys or [], batch.times or []
            rows = list(zip(keys, batch.values, times, strict=True))
            await new.put(topic, rows, partition)
            at += len(batch)


def sent_by(kind: str, manifest: Manifest, wanted: list[Any]) -> list[Any]:
    """Those of the windows that had been sent when the savepoint was taken, told by how far it has read."""
    read = {seal.task: seal.positions for seal in manifest.seals}
    marks = []
    for partition in range(PARTITIONS):
        group = "by-user" if kind == "by user" else "from-sales"
        count = read[f"selling/{group}/{partition}"][f"sales[{partition}]"]
        marks.append(10 * (count - 1) - 21)
    if kind == "by shop":
        return [window for window in wanted if window["end"] - 1 <= min(marks)]
    return [window for window in wanted if window["end"] - 1 <= marks[USERS.index(window["shop"])]]


COUNT = 900


async def uninterrupted(directory: Path, kind: str) -> tuple[list[Any], list[Any]]:
    """The windows and sizes of an app that is left alone."""
    async with topics_in(directory, **TOPICS) as broker, two_workers(kind, directory):
        await feed(broker, 0, COUNT)
        await flush(broker)
        await until_sent(broker, len(expected(kind, COUNT)))
        await until_drained(broker, kind)
        return await sent(broker, "windows"), await sent(broker, "sizes")


async def until_sent(broker: EmbeddedBroker, count: int) -> None:
    async with asyncio.timeout(30):
        while sum(await broker.end_offsets("windows")) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_drained(broker: EmbeddedBroker, kind: str) -> None:
    """The last sizes come a few commits after the last windows."""
    last, since = -1, 0
    while kind == "by shop" and since < 60:
        now = sum(await broker.end_offsets("sizes"))
        since = since + 1 if now == last else 0
        last = now
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("kind", APPS)
async def test_what_comes_before_and_after_a_savepoint_is_what_an_app_sends_that_is_left_alone(
    tmp_path: Path, kind: str, stop: bool
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    wanted, sizes = await uninterrupted(tmp_path / "alone", kind)
    assert wanted == expected(kind, COUNT)
    async with topics_in(old, **TOPICS) as broker, topics_in(new, **TOPICS) as other:
        async with two_workers(kind, old):
            await feed(broker, 0, COUNT // 2)
            await until_sent(broker, 5)
            request = await ask(old, stop=stop)
            await feed(broker, COUNT // 2, COUNT)  # in the midst of it
            manifest = await taken(old, request)
            await flush(broker)
            if not stop:
                await until_sent(broker, len(wanted))
                await until_drained(broker, kind)
        before = sent_by(kind, manifest, wanted)
        assert 0 < len(before) < len(wanted)
        windows, early = await sent(broker, "windows"), await sent(broker, "sizes")
        assert windows == (before if stop else wanted)
        await carry_over(broker, other, "sales")
        async with two_workers(kind, new, from_savepoint=str(old / "saved")):
            await until_sent(other, len(wanted) - len(before))
            await until_drained(other, kind)
        assert sorted([*before, *await sent(other, "windows")], key=repr) == wanted
        late = await sent(other, "sizes")
        if stop:
            assert sorted([*early, *late], key=repr) == sizes
        else:
            assert early == sizes
            assert [size for size in late if size not in sizes] == []


@pytest.mark.parametrize("kind", APPS)
async def test_an_app_goes_on_under_another_name_on_the_same_broker(tmp_path: Path, kind: str) -> None:
    wanted = expected(kind, COUNT)
    async with topics_in(tmp_path, **TOPICS) as broker:
        async with two_workers(kind, tmp_path):
            await feed(broker, 0, COUNT // 2)
            await take(tmp_path, stop=True)
        await feed(broker, COUNT // 2, COUNT)
        await flush(broker)
        begun = {"from_savepoint": str(tmp_path / "saved"), "state": "again"}
        async with working(APPS[kind]("again"), tmp_path, **begun):
            await until_sent(broker, len(wanted))
            await until_drained(broker, kind)
        assert await sent(broker, "windows") == wanted


async def test_what_senders_have_said_still_holds_under_another_name(tmp_path: Path) -> None:
    """They do not say it again: a window that waited for one of them closes, though the others stay silent."""

    async def sell(partition: int, at: int, shop: str) -> None:
        sale = {"user": USERS[partition], "shop": shop, "at": at, "value": 5}
        await broker.put("sales", [(USERS[partition].encode(), json.dumps(sale).encode(), 0)], partition)

    async with topics_in(tmp_path, **TOPICS) as broker:
        async with working(by_shop(), tmp_path, checkpoints=str(tmp_path / "kept")) as worker:
            await sell(0, 10, "waits")
            for partition in (1, 2):
                await sell(partition, 100_000, "far ahead")
            senders = [f"selling/from-sales/{n}" for n in range(PARTITIONS)]
            await eventually(lambda: has_read(worker, senders) == 3, "all have said how far they are")
            await take(tmp_path, stop=True)
        assert await sent(broker, "windows") == []
        async with working(by_shop("again"), tmp_path, state="again", from_savepoint=str(tmp_path / "saved")):
            await sell(0, 1_000, "later")
            await until_sent(broker, 1)
        assert await sent(broker, "windows") == [{"shop": "waits", "end": 100, "n": 1, "total": 5}]


# --- in the midst -----------------------------------------------------------------------------------------------------


def has_read(worker: Worker, tasks: list[str]) -> int:
    """How many sales these tasks have done."""
    lives = [worker.owned[task].live for task in tasks if task in worker.owned]
    return sum(sum(live.feed.positions.values()) for live in lives if live is not None and live.opened)


async def test_internal_topics_are_read_to_their_ends_and_checkpoints_are_sound(tmp_path: Path) -> None:
    async with topics_in(tmp_path, **TOPICS) as broker:
        # Nothing is sent on before the savepoint asks for it, and then all at once, to be read record by record.
        slow: dict[str, Any] = {"batch_size": 1, "commit_interval": 3_600_000, "checkpoints": str(tmp_path / "kept")}
        async with working(by_shop(), tmp_path, **slow) as worker:
            for partition in range(PARTITIONS):
                sales = [sale for at, sale in sales_of(6_000) if at == partition]
                await broker.put("sales", [(s["user"].encode(), json.dumps(s).encode(), 0) for s in sales], partition)
            senders = [f"selling/from-sales/{n}" for n in range(PARTITIONS)]
            await eventually(lambda: has_read(worker, senders) == 6_000, "all is taken in, and nothing committed")
            manifest = await take(tmp_path)
            for seal in manifest.seals:
                assert await broker.last_commit(seal.task) == (seal.commit, bytes.fromhex(seal.commit_id))
            for topic in manifest.internal:
                ends = await broker.end_offsets(topic)
                read = {s: at for seal in manifest.seals for s, at in seal.positions.items() if s.startswith(topic)}
                assert read == {f"{topic}[{n}]": end for n, end in enumerate(ends)}
    async with open_storage(str(tmp_path / "saved")) as storage:
        assert await tasks_in(storage) == sorted(seal.task for seal in manifest.seals)
        for task in await tasks_in(storage):
            assert await Checkpoints(storage.blobs(*folder_of(task))).verify() == []
    assert manifest.groups == {"from-sales": 3, "by-shop": 3, "by-size": 3}


async def test_a_partition_that_nothing_came_to_is_begun_where_it_was_read_from(tmp_path: Path) -> None:
    """Else one that is read from its end would be read from another end later."""

    def latest() -> App:
        app = App("latest")
        events, out = app.topic("events", Event, key="key", time="at", start="latest"), app.topic("out", Event)

        @app.each(events, sinks=[out])
        def forward(event: Event) -> Event:
            return event

        return app

    kept = str(tmp_path / "kept")
    async with topics_in(tmp_path, events=1, out=1) as broker:
        await put(broker, "events", an_event(1))
        async with working(latest(), tmp_path, checkpoints=kept):
            manifest = await take(tmp_path, "latest", stop=False)
            assert [seal.positions for seal in manifest.seals] == [{"events[0]": 1}]
        await put(broker, "events", an_event(2))
        (tmp_path / "new").mkdir()
        async with topics_in(tmp_path / "new", events=1, out=1) as other:
            await carry_over(broker, other, "events")
            saved = str(tmp_path / "saved")
            async with working(latest(), tmp_path / "new", from_savepoint=saved), asyncio.timeout(20):
                while not await sent(other, "out"):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert await sent(other, "out") == [an_event(2)]


async def test_the_app_goes_on_if_nobody_ends_a_savepoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "MARGIN", 0.2)

    async def never(*_: Any) -> None:
        return None

    monkeypatch.setattr(draining.Savepoints, "_verify", never)
    kept = str(tmp_path / "kept")
    async with (
        topics_in(tmp_path, events=1) as broker,
        working(adding_up(), tmp_path, binds=out_in(tmp_path), checkpoints=kept),
    ):
        request = await ask(tmp_path, "adding", within=300)
        await put(broker, "events", an_event(5))
        now = await ended(tmp_path, request)
        assert (now.state, now.why) == ("failed", "not done within 0.3 s: not verified ()")
        await eventually(lambda: totals(tmp_path) == [5], "it goes on")


async def test_the_app_goes_on_if_the_storage_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "MARGIN", 0.1)

    async def gone(*_: Any) -> Request | None:
        raise StoreError("the storage is away")

    async with (
        topics_in(tmp_path, events=1) as broker,
        working(adding_up(), tmp_path, binds=out_in(tmp_path), checkpoints=str(tmp_path / "kept")) as worker,
    ):
        assert worker.savepoints is None
        await eventually(lambda: worker.savepoints, "it has begun")
        monkeypatch.setattr(draining.Savepoints, "_verify", gone)
        await ask(tmp_path, "adding", within=100)
        await eventually(lambda: worker.savepoints and worker.savepoints.request, "it has heard")
        monkeypatch.setattr(Requests, "_last", gone)
        await put(broker, "events", an_event(5))
        await eventually(lambda: totals(tmp_path) == [5], "it goes on")


async def test_a_task_that_is_moved_before_it_has_sealed_is_sealed_by_who_takes_it(tmp_path: Path) -> None:
    """One worker is stopped while the other tasks wait for its own."""
    options: dict[str, Any] = {"checkpoints": str(tmp_path / "kept")}
    async with topics_in(tmp_path, **TOPICS) as broker, working(by_shop(), tmp_path, **options) as first:
        await feed(broker, 0, 90)
        await eventually(lambda: len(first.owned) == 9 and all(o.ready for o in first.owned.values()), "it has all")
        request = await ask(tmp_path)
        async with working(by_shop(), tmp_path, state="second", **options):
            first.stop()
            now = await ended(tmp_path, request)
        # It may have sealed some that then moved: these are as they were, or the savepoint is none.
        assert now.state == "done", now.why


async def test_what_goes_on_after_its_seal_makes_no_savepoint(tmp_path: Path) -> None:
    """The last look at the broker finds out, whoever did it."""
    async with topics_in(tmp_path, events=1) as broker:
        task, storage_url = "adding/totals/0", str(tmp_path / "saved")
        claim = await broker.claim(task, "")
        await broker.commit(task, claim.epoch, 1, b"one", {}, [])
        async with open_storage(str(tmp_path / "kept")) as kept, open_storage(storage_url) as storage:
            savepoints = draining.Savepoints(
                "adding",
                kept,
                tasks=[task],
                groups={"totals": 1},
                internal=[],
                ledger=broker,
                keys=None,
                clock=SystemClock(),
                stop=lambda: None,
            )
            request = await ask(tmp_path, "adding")
            await savepoints.look()
            seal = Seal(task=task, commit=1, commit_id=b"one".hex(), name="x", bytes=1, positions={})
            assert await savepoints.parts.put_seal(seal)
            await savepoints.look()
            await broker.commit(task, claim.epoch, 2, b"two", {}, [])
            watch = asyncio.create_task(savepoints.watch(lambda: {task: None}))
            now = await ended(tmp_path, request)
            watch.cancel()
            assert (now.state, now.why) == (
                "failed",
                "task adding/totals/0 went on to commit 2 after it had sealed 1: ask again",
            )
            assert await read_manifest(storage) is None


async def test_a_seal_is_put_once(tmp_path: Path) -> None:
    async with open_storage(str(tmp_path)) as storage:
        parts = Parts(storage, "id")
        seal = Seal(task="a/b/0", commit=1, commit_id="aa", name="x", bytes=1, positions={})
        assert await parts.put_seal(seal)
        assert await parts.put_seal(seal)  # an answer that was lost
        assert not await parts.put_seal(msgspec.structs.replace(seal, commit=2))
        assert await parts.sealed(["a/b/0", "a/b/1"]) == {"a/b/0"}


# --- beginning --------------------------------------------------------------------------------------------------------


async def saved(directory: Path, **topics: int) -> str:
    """A savepoint of an app that has added up 1 and 2."""
    kept = str(directory / "kept")
    async with (
        topics_in(directory, **{"events": 1, **topics}) as broker,
        working(adding_up(), directory, binds={"out": str(directory / "out-{partition}.jsonl")}, checkpoints=kept),
    ):
        await put(broker, "events", an_event(1), an_event(2))
        await eventually(lambda: 3 in [t for file in directory.glob("out-*") for t in totals(directory, file.name)], "")
        await take(directory, "adding")
    return str(directory / "saved")


@pytest.mark.parametrize("step", ["bring", "prepare", "commit", "resolve"])
async def test_beginning_is_broken_off_anywhere_and_goes_on(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = await saved(tmp_path)
    new = tmp_path / "new"
    new.mkdir()
    broken: list[str] = []

    class Broken(StoreError):
        pass

    async def breaks(self: TaskBeginning, *args: Any, **options: Any) -> None:
        await whole[step == "bring"](self, *args, **options)
        if len(broken) < 2:
            broken.append(step)
            raise Broken(step)

    whole = (TaskBeginning.commit, TaskBeginning.bring)
    if step in ("bring", "resolve"):
        monkeypatch.setattr(TaskBeginning, "bring" if step == "bring" else "commit", breaks)
    else:
        target = LsmStore if step == "prepare" else EmbeddedBroker
        real = getattr(target, step)

        async def breaks_once(self: Any, *args: Any, **options: Any) -> Any:
            found = await real(self, *args, **options)
            if len(broken) < 2 and (step == "prepare" or args[0] == "adding/totals/0"):
                broken.append(step)
                raise Broken(step)
            return found

        monkeypatch.setattr(target, step, breaks_once)
    monkeypatch.setattr(ownership, "FIRST_WAIT", 0.01)
    async with topics_in(tmp_path) as old, topics_in(new, events=1) as broker:
        await carry_over(old, broker, "events")
        options = {"from_savepoint": place, "binds": out_in(new)}
        async with working(adding_up(), new, **options):
            await put(broker, "events", an_event(10))
            await eventually(lambda: totals(new) == [13], "going on")
        assert broken
        async with working(adding_up(), new, **options):  # the flag may stay
            await put(broker, "events", an_event(10))
            await eventually(lambda: totals(new) == [13, 23], "going on")
        async with working(adding_up(), new, binds=out_in(new)):
            await put(broker, "events", an_event(10))
            await eventually(lambda: totals(new) == [13, 23, 33], "going on without the flag")


async def test_a_file_that_is_there_goes_on_as_of_the_savepoint(tmp_path: Path) -> None:
    place = await saved(tmp_path)
    async with topics_in(tmp_path) as broker:
        await put(broker, "events", an_event(10))
        binds = {"out": str(tmp_path / "out-{partition}.jsonl")}
        async with working(adding_up(), tmp_path, binds=binds):
            await eventually(lambda: totals(tmp_path, "out-0.jsonl") == [1, 3, 13], "the app itself went on")
        async with working(adding_up("again"), tmp_path, state="again", binds=binds, from_savepoint=place):
            await put(broker, "events", an_event(100))
            await eventually(lambda: totals(tmp_path, "out-0.jsonl") == [1, 3, 13, 113], "under another name")


async def test_what_cannot_be_begun_with_is_refused(tmp_path: Path) -> None:
    place = await saved(tmp_path)
    new = tmp_path / "new"
    new.mkdir()

    async def told(app: App, directory: Path, *, url: str = place, state: str = "other") -> str:
        binds = {name: str(directory / f"{name}-{{partition}}.jsonl") for name in app.sinks}
        with pytest.raises(ConfigError) as caught:
            await refused(new_worker(app, directory, state=state, binds=binds, from_savepoint=url))
        return str(caught.value)

    own = r"has commits of its own on this broker (task adding/totals/0: commit"
    assert own in await told(adding_up(), tmp_path)
    assert "there is no savepoint (no MANIFEST" in await told(adding_up(), new, url=str(tmp_path / "kept"))
    assert "use file:///DIR" in await told(adding_up(), new, url="ftp://x")
    assert await told(by_user(), new, state="third") == (
        "by-user: is not in the savepoint\ntotals: is in the savepoint, but not in the app: its state would be lost"
    )
    async with topics_in(new) as broker:
        assert await broker.topics() == {}
        await broker.create("events", 2)
        assert "totals: 2 partitions here, 1 in the savepoint" in await told(adding_up(), new)


async def test_an_app_has_begun_with_one_savepoint_only_and_every_task_with_that(tmp_path: Path) -> None:
    place, new = await saved(tmp_path), tmp_path / "new"
    new.mkdir()
    async with topics_in(tmp_path) as old, topics_in(new, events=1) as broker:
        await carry_over(old, broker, "events")
        manifest = await manifest_in(tmp_path)
        claim = await broker.claim(marker_of("adding"), "")
        await broker.commit(marker_of("adding"), claim.epoch, 1, bytes.fromhex(manifest.id), {}, [])
        with pytest.raises(ConfigError, match="this task has not done so yet: start the worker with --from"):
            await refused(new_worker(adding_up(), new, binds=out_in(new)))
        async with working(adding_up(), new, binds=out_in(new), from_savepoint=place):
            await put(broker, "events", an_event(10))
            await eventually(lambda: totals(new) == [13], "begun")
    path = tmp_path / "saved" / "MANIFEST"
    other = json.loads(path.read_text()) | {"id": "00" * 16}
    path.write_text(json.dumps(other))
    with pytest.raises(ConfigError, match="has begun with another savepoint on this broker"):
        await refused(new_worker(adding_up(), new, state="other", binds=out_in(new), from_savepoint=place))


async def test_internal_topics_must_be_new(tmp_path: Path) -> None:
    async with topics_in(tmp_path, **TOPICS) as broker, two_workers("by shop", tmp_path):
        await feed(broker, 0, 30)
        await take(tmp_path)
    new = tmp_path / "new"
    options: dict[str, Any] = {"from_savepoint": str(tmp_path / "saved")}
    new.mkdir()
    async with topics_in(new, **{**TOPICS, "selling.sales.by-shop": PARTITIONS}) as other:
        await other.put("selling.sales.by-shop", [(b"x", b"y", 0)])
        with pytest.raises(ConfigError, match=r"internal topic 'selling\.sales\.by-shop' is not empty"):
            await refused(new_worker(by_shop(), new, **options))


# --- asking -----------------------------------------------------------------------------------------------------------


async def test_one_savepoint_at_a_time(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with open_storage(str(tmp_path)) as storage:
        requests = Requests(storage, "app", clock)
        first = await requests.ask("/to", stop=False, within=1_000)
        with pytest.raises(ConfigError, match="a savepoint to /to is under way; wait for it, or at most 61 s"):
            await requests.ask("/other", stop=False, within=1_000)
        clock.advance(61_001)
        second = await requests.ask("/other", stop=False, within=1_000)
        assert (await requests.end(first, "done")).state == "failed"  # it is nobody's any more
        assert (await requests.end(second, "failed", "why")).why == "why"
        assert (await requests.end(second, "done")).state == "failed"
        await requests.ask("/third", stop=False, within=1_000)
