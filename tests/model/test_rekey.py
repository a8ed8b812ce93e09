"""Re-keyed: what several tasks make of a stream, sent on by another key, is what one task makes of it.

The one task is a bounded run, where `group_by` lets events pass; the several are a crowd of live tasks, which crash and
move. Disorder stays within what is declared: then nobody is late, and every window must hold the same events.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit import App, Closed, Count, Record, Sum
from flowkit.source import partition_of
from flowkit.window import MarkedSplit
from flowkit.worker.engine import Engine
from flowkit.worker.task import Task
from tests.depth import examples
from tests.model.apps import Values, _merged, window_of
from tests.model.crowd import Crowd, play_out
from tests.model.flink import WindowSpec
from tests.model.strategies import windows
from tests.model.world import World, lines, play

DISORDER = 20
LAST = 1_000_000
"""The time of the events that close what is open."""

USERS = [f"user {n}" for n in range(7)]


class Sale(Record):
    user: str
    shop: str
    at: int
    value: int = 0


class Told(Record):
    """A window as it was sent."""

    name: str
    key: str
    start: int
    end: int
    values: list[int]


class Middle(Record):
    """A window of the first stage as an event of the second."""

    bucket: str
    value: int


class Job(NamedTuple):
    app: App
    topics: tuple[str, ...]


def _tell(app: App, table: Any, name: str) -> None:
    @app.each(table.closed, sinks=[app.topics["out"]], name=f"tell {name}")
    def tell(w: Closed[Any, Values]) -> Told:
        return Told(name, str(w.key), w.start, w.end, sorted(w.value.values))


def _keep(app: App, stream: Any, field: str, name: str, spec: WindowSpec) -> Any:
    """A table of values by window, kept by an agent."""
    merge: Any = _merged if spec[0] == "session" else None
    table: Any = app.table(name, str, Values, window=window_of(spec), merge=merge)

    @app.each(stream, tables=[table], name=f"keep {name}")
    def keep(event: Any) -> None:
        for window in table.windows(getattr(event, field)):
            window.value.values.append(event.value)

    return table


def _new(name: str = "job") -> tuple[App, Any]:
    app = App(name)
    app.topic("out", Told, key="key")
    return app, app.topic("sales", Sale, key="user", time="at", out_of_order=DISORDER)


def by_another_key(spec: WindowSpec) -> Job:
    app, sales = _new()
    stream = sales.filter(lambda sale: sale.value % 5).group_by("shop")
    _tell(app, _keep(app, stream, "shop", "by-shop", spec), "by-shop")
    return Job(app, ("sales",))


def by_the_same_key(spec: WindowSpec) -> Job:
    """Nothing is sent on: a job split over tasks by the topic's own key."""
    app, sales = _new()
    stream = sales.filter(lambda sale: sale.value % 5).group_by("user")
    _tell(app, _keep(app, stream, "user", "by-user", spec), "by-user")
    return Job(app, ("sales",))


def by_both_keys(spec: WindowSpec) -> Job:
    """Two take the same stream by another key, one by the topic's own."""
    app, sales = _new()
    by_shop = sales.group_by("shop")
    _tell(app, _keep(app, sales, "user", "by-user", spec), "by-user")
    _tell(app, _keep(app, by_shop, "shop", "by-shop", spec), "by-shop")
    _tell(app, _keep(app, by_shop.filter(lambda s: s.value > 0), "shop", "positive", spec), "positive")
    return Job(app, ("sales",))


def _middle(w: Closed[str, Values]) -> Middle:
    return Middle(f"bucket {len(w.value.values) % 3}", sum(w.value.values))


def twice(spec: WindowSpec) -> Job:
    """Windows by shop, and windows of their results by something that is made of them."""
    app, sales = _new()
    first = _keep(app, sales.group_by("shop"), "shop", "first", spec)
    _tell(app, first, "first")
    second = first.closed.filter(lambda w: w.end < LAST // 2).map(_middle).group_by("bucket")
    _tell(app, _keep(app, second, "bucket", "second", ("tumbling", 100, 0)), "second")
    return Job(app, ("sales",))


def merged(spec: WindowSpec) -> Job:
    """Two topics, with partitions of their own number, become one stream."""
    app, sales = _new()
    more = app.topic("more", Sale, key="user", time="at", out_of_order=DISORDER)
    _tell(app, _keep(app, sales.merge(more).group_by("shop"), "shop", "by-shop", spec), "by-shop")
    return Job(app, ("sales", "more"))


def declared(spec: WindowSpec) -> Job:
    """Windows that count by themselves, the way of most."""
    app, sales = _new()
    stream = sales.group_by(lambda sale: sale.shop)
    counts: Any = app.table("n", of=stream, by="shop", window=window_of(spec), n=Count(), total=Sum("value"))

    @app.each(counts.closed, sinks=[app.topics["out"]])
    def tell(w: Closed[str, Any]) -> Told:
        return Told("n", w.key, w.start, w.end, [w.value.n, w.value.total])

    return Job(app, ("sales",))


def joined(spec: WindowSpec) -> Job:
    """Two topics meet by a key that neither has; what finds no partner is told when that is certain."""
    app, sales = _new()
    more = app.topic("more", Sale, key="user", time="at", out_of_order=DISORDER)
    within = (-10, int(spec[1]))
    pairs: Any = sales.group_by("shop").join(more.group_by("shop"), on="shop", within=within, how="outer")

    @app.each(pairs, sinks=[app.topics["out"]])
    def tell(pair: Any) -> Told:
        both = [sale for sale in (pair.left, pair.right) if sale is not None]
        return Told("pair", both[0].shop, 0, max(sale.at for sale in both) + 1, [sale.value for sale in both])

    return Job(app, ("sales", "more"))


MakeJob = Callable[[WindowSpec], Job]
JOBS: list[MakeJob] = [
    by_another_key,
    by_the_same_key,
    by_both_keys,
    twice,
    merged,
    declared,
    joined,
]


@st.composite
def sales(draw: st.DrawFn, *, max_size: int = 40) -> list[Sale]:
    """A walk through time, each event at most DISORDER behind the latest."""
    steps = st.tuples(
        st.integers(0, 12) | st.just(0) | st.just(60),
        st.integers(0, DISORDER),
        st.sampled_from(USERS),
        st.sampled_from("xyz"),
    )
    now, found = 0, []
    for n, (step, ahead, user, shop) in enumerate(draw(st.lists(steps, max_size=max_size))):
        now += step
        found.append(Sale(user, shop, now + ahead, n))
    return found


def last_event(partition: int, partitions: int) -> Sale:
    """One that is so late that it closes whatever waits for its partition."""
    user = next(name for n in range(1_000) if partition_of((name := f"last {n}").encode(), partitions) == partition)
    return Sale(user, "last", LAST, 10**6)


def told(rows: list[Told]) -> list[tuple[Any, ...]]:
    """The windows that the last events have closed, all events being told apart by value."""
    return sorted((t.name, t.key, t.start, t.end, tuple(t.values)) for t in rows if t.end <= LAST)


def one_task(job: Job, inputs: dict[str, list[Sale]]) -> list[tuple[Any, ...]]:
    """What a bounded run makes of it."""
    given = [(topic, lines([*inputs[topic], last_event(0, 1)])) for topic in job.topics]
    world = play(World(given).run(job.app))
    assert world.letters() == []
    return told(world.out("out", Told))


def several(
    job: Job, inputs: dict[str, list[Sale]], seed: int, *, partitions: int, crashes: float
) -> tuple[list[tuple[Any, ...]], Crowd]:
    """What live tasks make of it."""
    chance = Random(seed)
    counts = {topic: partitions + n for n, topic in enumerate(job.topics)}
    crowd = Crowd(job.app, counts, chance, crashes=crashes)

    async def run() -> list[Told]:
        rounds = []
        left = {topic: list(events) for topic, events in inputs.items()}
        while any(left.values()):
            topic = chance.choice([topic for topic, events in left.items() if events])
            size = chance.randint(1, 12)
            rounds.append((topic, left[topic][:size], chance.randint(0, 12)))
            left[topic] = left[topic][size:]
        await play_out(crowd, rounds)
        for topic in job.topics:
            for partition in range(counts[topic]):
                await crowd.put(topic, last_event(partition, counts[topic]))
        await crowd.drain()
        if any(task.engine.calls.drivers for task in crowd.tasks.values()):
            await crowd.pass_time(6_000, 1_000)  # batches of calls wait for some time
        assert await crowd.letters() == []
        found = await crowd.sent("out", Told)
        await crowd.close()
        return found

    return told(play(run())), crowd


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
@examples(60)
@given(data=st.data())
def test_several_tasks_that_crash_and_move_tell_what_one_tells(job: MakeJob, data: st.DataObject) -> None:
    # A count window is one of the order of arrival, which only one task has.
    spec = data.draw(windows("tumbling", "sliding", "cumulative", "session"))
    topics = job(spec).topics
    inputs = {topic: data.draw(sales()) for topic in topics}
    if len(topics) > 1:
        for n, sale in enumerate(inputs["more"]):
            sale.value = 1_000 + n
    partitions = data.draw(st.integers(1, 4))
    seed = data.draw(st.integers(0, 2**32))
    expected = one_task(job(spec), inputs)
    found, _ = several(job(spec), inputs, seed, partitions=partitions, crashes=data.draw(st.sampled_from([0.0, 0.1])))
    assert found == expected


def a_walk(chance: Random, length: int) -> list[Sale]:
    now, found = 0, []
    for n in range(length):
        now += chance.choice([0, 1, 2, 30])
        found.append(Sale(chance.choice(USERS), chance.choice("xyz"), now + chance.randint(0, DISORDER), n))
    return found


def _compare(job: MakeJob, seeds: range) -> tuple[int, int]:
    """How often the plug was pulled, and an old owner fenced."""
    crashed = fenced = 0
    for seed in seeds:
        inputs = {"sales": a_walk(Random(seed), 60)}
        spec: WindowSpec = ("tumbling", 25, 0)
        found, crowd = several(job(spec), inputs, seed, partitions=3, crashes=0.1)
        assert found == one_task(job(spec), inputs)
        crashed, fenced = crashed + crowd.crashed, fenced + crowd.fenced
    return crashed, fenced


def test_plugs_are_pulled_and_old_owners_fenced() -> None:
    crashed, fenced = _compare(twice, range(6))
    assert crashed > 20
    assert fenced > 5


# --- the comparison can fail ------------------------------------------------------------------------------------------


def marks_first(patch: pytest.MonkeyPatch) -> None:
    """Marks overtake the events of their commit."""
    stage, marks = Task._stage, Task._marks

    def broken(self: Task, final: bool) -> Any:
        outs, staged = stage(self, final)
        return [*marks(self), *outs], staged

    patch.setattr(Task, "_stage", broken)
    patch.setattr(Task, "_marks", lambda _self: [])


def marks_amid_a_firing(patch: pytest.MonkeyPatch) -> None:
    """Told how far a task is that still has to send what its watermark has made due."""
    patch.setattr(Engine, "mark", lambda self: (self.watermark(), self.splits.standing()))


def nobody_waited_for(patch: pytest.MonkeyPatch) -> None:
    """A sender that has not been heard does not hold the watermark."""
    before = MarkedSplit.__init__

    def broken(self: MarkedSplit, name: str, number: int, senders: Any) -> None:
        before(self, name, number, senders)
        self.marks = dict.fromkeys(self.senders, (LAST * 2, 1))

    patch.setattr(MarkedSplit, "__init__", broken)


def the_furthest_counts(patch: pytest.MonkeyPatch) -> None:
    """The watermark goes with the sender that is furthest."""

    def broken(self: MarkedSplit, sender: str, watermark: int, standing: int = 0) -> None:
        self.marks[sender] = watermark, standing
        self.floor = max(self.floor, watermark)

    patch.setattr(MarkedSplit, "hear", broken)


def heard_before_its_turn(patch: pytest.MonkeyPatch) -> None:
    """Marks count as soon as they are read, before the events that lie before them."""
    from flowkit.worker import live

    cut = live._cut

    def broken(engine: Any, topic: str, split: Any, decoded: Any) -> Any:
        pieces = list(cut(engine, topic, split, decoded))
        return sorted(pieces, key=lambda piece: type(piece).__name__ != "Marks")

    patch.setattr(live, "_cut", broken)


@pytest.mark.parametrize(
    ("sabotage", "job"),
    [
        (marks_first, by_another_key),
        (marks_amid_a_firing, twice),
        (nobody_waited_for, by_another_key),
        (the_furthest_counts, by_another_key),
        (heard_before_its_turn, by_another_key),
    ],
    ids=lambda it: it.__name__,
)
def test_the_comparison_can_fail(
    sabotage: Callable[[pytest.MonkeyPatch], None], job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    with pytest.raises(AssertionError):
        _compare(job, range(12))
