"""The registry: what it takes note of, and what it refuses where it stands."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypedDict, get_args, get_origin

import pytest

from flowkit.agent import Retry, Stream
from flowkit.app import App
from flowkit.clock import VirtualClock
from flowkit.errors import ConfigError, NoEvent
from flowkit.record import Change, Closed, DeadLetter, Record
from flowkit.table import CountDistinct, Custom, Mean, OverlappingTable, Sum, Table, TopK, WindowedTable
from flowkit.window import Count, Cumulative, Global, Session, Sliding, Tumbling
from flowkit.worker import resources


class Tx(Record):
    card: str
    amount: float = 0.0
    tags: list[str] = []


class Spend(Record):
    count: int = 0


class Pair(Record, frozen=True):
    card: str


@dataclass
class Reading:
    value: float = 0.0


@dataclass
class Needs:
    value: float


class Beat(TypedDict):
    at: int


class Model:
    """Any object, by to_state and from_state."""

    def to_state(self) -> int:
        return 5

    @classmethod
    def from_state(cls, state: int) -> "Model":
        return cls()


class Bare:
    """Nothing that can be stored."""


def merge(a: Spend, b: Spend) -> Spend:
    return Spend(a.count + b.count)


@pytest.fixture
def app() -> App:
    return App("shop")


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a=b", "a\n", None, 5])
def test_no_name_for_an_app(name: Any) -> None:
    with pytest.raises(ConfigError, match="is no name for an app"):
        App(name)


MAKERS: dict[str, Callable[[App, str], object]] = {
    "topic": lambda app, name: app.topic(name, Tx),
    "sink": lambda app, name: app.sink(name, Tx),
    "table": lambda app, name: app.table(name, str, int),
}


@pytest.mark.parametrize("first", MAKERS)
@pytest.mark.parametrize("second", MAKERS)
def test_a_name_is_given_once(app: App, first: str, second: str) -> None:
    MAKERS[first](app, "sales")
    with pytest.raises(ConfigError, match=f"app 'shop' has a {first} named 'sales' already"):
        MAKERS[second](app, "sales")


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["", "a b", "a/b", "a=b", "a\0", None, Tx])
def test_no_name(app: App, kind: str, name: Any) -> None:
    with pytest.raises(ConfigError, match=f"is no name for a {kind}"):
        MAKERS[kind](app, name)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_dead_letters_have_their_name(app: App, kind: str) -> None:
    with pytest.raises(ConfigError, match="'dead-letters' is the name of the app's own dead letters"):
        MAKERS[kind](app, "dead-letters")


@pytest.mark.parametrize("kind", ["closed", "changes", "late"])
def test_what_a_table_sends_has_its_name(app: App, kind: str) -> None:
    app.table("spend", str, int)
    app.topic(f"other.{kind}", Tx)
    with pytest.raises(ConfigError, match=f"'spend.{kind}' is the name of what table 'spend' sends"):
        app.topic(f"spend.{kind}", Tx)
    with pytest.raises(ConfigError, match=f"table 'other' would send 'other.{kind}', which is the name of a topic"):
        app.table("other", str, int)


def test_what_failed_is_not_noted(app: App) -> None:
    with pytest.raises(ConfigError):
        app.topic("sales", Tx, key="missing")
    with pytest.raises(ConfigError):
        app.table("spend", str, int, ttl=-1)
    with pytest.raises(ConfigError):
        app.sink("out", Bare)
    assert (app.topics, app.tables, app.sinks) == ({}, {}, {})
    app.topic("sales", Tx)


def test_the_registry(app: App) -> None:
    sales, out, spend = app.topic("sales", Tx), app.sink("out", Tx), app.table("spend", str, int)
    assert (app.topics, app.sinks, app.tables) == ({"sales": sales}, {"out": out}, {"spend": spend})
    assert repr(app) == "<App shop>"
    assert app.dead_letters.type is DeadLetter


# --- tables ---------------------------------------------------------------------------------------------------------

TABLES: list[tuple[tuple[Any, Any], dict[str, Any], type]] = [
    ((str, int), {}, Table),
    ((str, int), {"ttl": 5, "default": 3, "version": 2}, Table),
    ((str, Spend), {"default": Spend}, Table),
    ((str, Spend), {"default": lambda: Spend(5)}, Table),
    ((str, float), {"default": 5}, Table),
    ((str, Needs), {"default": Needs(1.0)}, Table),
    ((str, dict[str, int]), {"default": {"a": 1}}, Table),
    ((int, Reading), {"broadcast": True}, Table),
    ((Pair, Model), {"local": True}, Table),
    ((tuple[str, int], Beat), {}, Table),
    ((str, Any), {}, Table),
    ((Any, int), {}, Table),
    ((str, int | None), {}, Table),
    ((str, Spend), {"window": Tumbling(10)}, WindowedTable),
    ((str, Spend), {"window": Tumbling(10, -5), "allowed_lateness": 5, "early": 1, "late": "deliver"}, WindowedTable),
    ((str, Spend), {"window": Session(10), "merge": merge}, WindowedTable),
    ((str, Spend), {"window": Count(10)}, WindowedTable),
    ((str, Spend), {"window": Count(10, every=10)}, WindowedTable),
    ((str, Spend), {"window": Count(10, every=20)}, WindowedTable),
    ((str, Spend), {"window": Global(), "close_after_idle": 5}, WindowedTable),
    ((str, Spend), {"window": Sliding(10, 5)}, OverlappingTable),
    ((str, Spend), {"window": Cumulative(5, 10)}, OverlappingTable),
    ((str, Spend), {"window": Count(10, every=5)}, OverlappingTable),
]


@pytest.mark.parametrize(("types", "options", "cls"), TABLES)
def test_a_table(app: App, types: tuple[Any, Any], options: dict[str, Any], cls: type) -> None:
    table: Any = app.table("t", *types, **options)
    assert type(table).__name__ == cls.__name__
    assert (table.key_type, table.value_type) == types
    assert (get_origin(table.changes.type), get_args(table.changes.type)) == (Change, types)
    assert table.changes.name == "t.changes"
    if cls is not Table:
        assert table.windowing == options["window"]
        assert (get_origin(table.closed.type), get_args(table.closed.type)) == (Closed, types)
        assert (table.closed.name, table.late.name) == ("t.closed", "t.late")


BAD_TABLES: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    ((), {}, "table 't': give it a key type and a value type, or of= and aggregates"),
    ((str,), {}, "give it a key type and a value type"),
    ((None, int), {}, "give it a key type and a value type"),
    ((str, Bare), {}, "table 't': value type: type Bare cannot be used with codec 'msgpack'"),
    ((Bare, int), {}, "table 't': key type: Bare has no to_state()"),
    ((str, "Spend"), {}, "table 't': value type: "),
    ((list[int], int), {}, "list[int] is no key type: keys must be hashable (a Record with frozen=True is)"),
    ((dict, int), {}, "dict is no key type"),
    ((Spend, int), {}, "Spend is no key type"),
    ((Reading, int), {}, "Reading is no key type"),
    ((str, int), {"default": "0"}, "default='0' is no int"),
    ((str, int), {"default": 0.5}, "default=0.5 is no int"),
    ((str, Spend), {"default": 5}, "default=5 is no Spend"),
    ((str, int), {"ttl": 0}, "ttl must be > 0 ms"),
    ((str, int), {"ttl": -5}, "ttl must be > 0 ms"),
    ((str, int), {"version": 0}, "version=0: give a whole number from 1 on"),
    ((str, int), {"version": 1.5}, "version=1.5: give a whole number from 1 on"),
    ((str, int), {"version": True}, "version=True: give a whole number from 1 on"),
    ((str, int), {"ttl": 1.5}, "ttl=1.5: give whole ms (seconds(…), minutes(…))"),
    ((str, int), {"window": Tumbling(10), "allowed_lateness": 1.5}, "allowed_lateness=1.5: give whole ms"),
    ((str, int), {"window": Tumbling(10), "early": True}, "early=True: give whole ms"),
    ((str, int), {"window": Tumbling(10), "close_after_idle": "5s"}, "close_after_idle='5s': give whole ms"),
    ((str, int), {"window": Tumbling(10, 0.5)}, "needs a whole offset"),  # type: ignore[arg-type]
    ((str, int), {"allowed_lateness": 5}, "allowed_lateness, early, late, merge and close_after_idle need a window"),
    ((str, int), {"early": 5}, "need a window"),
    ((str, int), {"late": "deliver"}, "need a window"),
    ((str, int), {"merge": merge}, "need a window"),
    ((str, int), {"close_after_idle": 5}, "need a window"),
    ((str, int), {"n": Count()}, "aggregates need of="),
    ((str, int), {"window": Tumbling(0)}, "table 't': Tumbling(size=0, offset=0) needs size > 0"),
    ((str, int), {"window": Tumbling(-5)}, "needs size > 0"),
    ((str, int), {"window": Tumbling(1.5)}, "needs size > 0 (whole ms"),  # type: ignore[arg-type]
    ((str, int), {"window": Tumbling(True)}, "needs size > 0 (whole ms"),
    ((str, int), {"window": Sliding(10, 0)}, "needs every > 0"),
    ((str, int), {"window": Sliding(0, 10)}, "needs size > 0"),
    ((str, int), {"window": Sliding(10, 2.5)}, "needs every > 0"),  # type: ignore[arg-type]
    ((str, int), {"window": Cumulative(0, 10)}, "needs step > 0"),
    ((str, int), {"window": Cumulative(3, 10)}, "size must be a multiple of step"),
    ((str, int), {"window": Cumulative(20, 10)}, "size must be a multiple of step"),
    ((str, int), {"window": Session(0), "merge": merge}, "needs gap > 0"),
    ((str, int), {"window": Session(10)}, "a session table needs merge=, which makes one value of two"),
    ((str, int), {"window": Count()}, "Count() without a number is an aggregate; as a window it is Count(n)"),
    ((str, int), {"window": Count(0)}, "needs n > 0"),
    ((str, int), {"window": Count(10, every=0)}, "needs every > 0"),
    ((str, int), {"window": Tumbling(10), "allowed_lateness": -1}, "allowed_lateness must be >= 0 ms"),
    ((str, int), {"window": Tumbling(10), "early": 0}, "early > 0 ms"),
    ((str, int), {"window": Tumbling(10), "late": "keep"}, "late='keep': use 'drop' (to t.late) or 'deliver'"),
]


@pytest.mark.parametrize(("types", "options", "problem"), BAD_TABLES)
def test_a_table_that_cannot_be_right(app: App, types: tuple[Any, ...], options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        app.table("t", *types, **options)
    assert problem in str(caught.value)
    assert str(caught.value).startswith("table 't': ")


@pytest.mark.parametrize("window", [600, "10 minutes", Tumbling, object()])
def test_what_is_no_window(app: App, window: Any) -> None:
    with pytest.raises(ConfigError, match="table 't': "):
        app.table("t", str, int, window=window)


def test_all_that_is_wrong_with_the_types_is_told_at_once(app: App) -> None:
    with pytest.raises(ConfigError) as caught:
        app.table("t", list[int], Bare)
    assert len(caught.value.problems) == 2


DECLARED: list[tuple[dict[str, Any], type, Any]] = [
    ({"by": "card", "n": Count()}, Table, str),
    ({"by": lambda tx: tx.card, "n": Count()}, Table, Any),
    ({"by": "amount", "n": Count(), "ttl": 5}, Table, float),
    ({"by": "card", "n": Count(), "total": Sum("amount"), "window": Tumbling(10)}, WindowedTable, str),
    ({"by": "card", "n": Count(), "window": Session(10), "allowed_lateness": 5}, WindowedTable, str),
    ({"by": "card", "n": Count(), "window": Count(5)}, WindowedTable, str),
    ({"by": "card", "n": Count(), "window": Global()}, WindowedTable, str),
    ({"by": "card", "n": Count(), "window": Sliding(10, 5), "early": 5}, OverlappingTable, str),
    ({"by": "card", "mean": Mean("amount"), "window": Cumulative(5, 10)}, OverlappingTable, str),
    ({"by": "card", "top": TopK(lambda tx: tx.card, 3), "cards": CountDistinct("card")}, Table, str),
    ({"by": "card", "all": Custom(list, lambda s, e: [*s, e.amount], lambda a, b: a + b, len)}, Table, str),
]


@pytest.mark.parametrize(("options", "cls", "key_type"), DECLARED)
def test_a_declared_table(app: App, options: dict[str, Any], cls: type, key_type: Any) -> None:
    sales = app.topic("sales", Tx, key="card")
    table: Any = app.table("t", of=sales, **options)
    assert type(table).__name__ == cls.__name__
    assert table.key_type is key_type
    assert table.source is sales
    names = {name for name in options if name not in ("by", "window", "ttl", "allowed_lateness", "early")}
    assert set(table.aggregates) == names
    assert table.changes.type == Change[key_type, table.value_type]


BAD_DECLARED: list[tuple[dict[str, Any], str]] = [
    ({"by": "card"}, "of= needs aggregates, such as n=Count()"),
    ({"n": Count()}, "of= needs by=, the field to group by"),
    ({"by": "user", "n": Count()}, "'user' is no field of Tx"),
    ({"by": "card", "total": Sum("cost")}, "'cost' is no field of Tx"),
    ({"by": "card", "total": Sum("card")}, "field 'card' is str"),
    ({"by": "card", "n": Count}, "this is no aggregate"),
    ({"by": "card", "n": "count"}, "this is no aggregate"),
    ({"by": "card", "n": Count(5)}, "is a window; to count events use Count()"),
    ({"by": "card", "alowed_lateness": 5}, "alowed_lateness=int: this is no aggregate"),
    ({"by": "card", "n": Count(), "window": Tumbling(0)}, "needs size > 0"),
    ({"by": "card", "n": Count(), "broadcast": True}, "with of= types, default and merge follow from the aggregates"),
    ({"by": "card", "n": Count(), "local": True}, "the keys are partitioned"),
    ({"by": "card", "n": Count(), "default": 5}, "default and merge follow from the aggregates"),
    ({"by": "card", "n": Count(), "window": Session(5), "merge": merge}, "merge follow from the aggregates"),
    ({"by": "card", "n": Count(), "key": str}, "types, default and merge follow"),
    ({"by": "card", "version": Count()}, "version=Count"),
]


@pytest.mark.parametrize(("options", "problem"), BAD_DECLARED)
def test_a_declared_table_that_cannot_be_right(app: App, options: dict[str, Any], problem: str) -> None:
    sales = app.topic("sales", Tx, key="card")
    with pytest.raises(ConfigError) as caught:
        app.table("t", of=sales, **options)
    assert problem in str(caught.value)


@pytest.mark.parametrize("source", [5, "sales", Tx])
def test_a_declared_table_over_what_is_no_stream(app: App, source: Any) -> None:
    with pytest.raises(ConfigError, match=r"table 't': of=.* is no stream"):
        app.table("t", of=source, by="card", n=Count())


def test_a_migration_is_noted(app: App) -> None:
    table = app.table("t", str, int, version=2)

    @table.migrate(1)
    def double(value: Any) -> Any:
        return value * 2

    assert table.migrations == {1: double}


# --- agents ---------------------------------------------------------------------------------------------------------


def test_an_agent_is_noted_and_the_function_comes_back(app: App) -> None:
    sales, out = app.topic("sales", Tx), app.sink("out", Tx)
    spend = app.table("spend", str, int)
    rates = app.table("rates", str, float)
    retry = Retry(attempts=5)

    async def detect(stream: Stream[Tx]) -> AsyncIterator[Tx]:
        async for tx in stream:
            yield tx

    assert app.agent(sales, sales, tables=[spend], reads=[rates], sinks=[out], retry=retry)(detect) is detect
    noted = app.agents["detect"]
    assert noted.function is detect
    assert (noted.sources, noted.tables, noted.reads, noted.sinks) == ((sales,), (spend,), (rates,), (out,))
    assert noted.retry is retry
    assert (noted.per_event, noted.emits) == (False, True)

    @app.each(sales, tables=(), sinks=(out,), name="other")
    def forward(tx: Tx) -> Tx:
        return tx

    assert forward(Tx("a")) == Tx("a")
    noted = app.agents["other"]
    assert (noted.per_event, noted.emits) == (True, False)
    assert noted.retry is app.retry


def test_the_apps_retry_is_that_of_its_agents() -> None:
    retry = Retry(attempts=5)
    app = App("shop", retry=retry)
    sales = app.topic("sales", Tx)

    @app.each(sales)
    def f(tx: Tx) -> None: ...

    assert app.agents["f"].retry is retry


def test_a_name_of_an_agent_is_given_once(app: App) -> None:
    sales = app.topic("sales", Tx)

    def f(tx: Tx) -> None: ...

    app.each(sales)(f)
    with pytest.raises(ConfigError, match="app 'shop' has an agent named 'f' already: give this one name="):
        app.each(sales)(f)
    app.each(sales, name="g")(f)
    assert list(app.agents) == ["f", "g"]


def test_an_agent_may_read_everything_that_flows(app: App) -> None:
    sales = app.topic("sales", Tx)
    spend = app.table("spend", str, int, window=Tumbling(10))

    @app.agent(sales, tables=[spend])
    async def f(stream: Stream[Tx]) -> None: ...

    @app.each(spend.closed, spend.changes, spend.late, app.dead_letters)
    def g(event: Any) -> None: ...

    (group,) = [group for group in app.plan().groups if group.name == "spend"]
    assert [agent.name for agent in group.agents] == ["f", "g"]
    assert [topic.name for topic in group.topics] == ["sales", "dead-letters"]


theirs = App("theirs")
their_topic = theirs.topic("sales", Tx)
their_sink = theirs.sink("out", Tx)
their_table = theirs.table("spend", str, int, window=Tumbling(10))

BAD_AGENTS: list[tuple[Callable[[App], object], str]] = [
    (lambda app: app.agent(app.sink("out", Tx)), "@app.agent(…) takes what it reads, and <Sink out> is no stream"),  # type: ignore[call-overload]
    (lambda app: app.agent(app.table("t", str, int)), "and <Table t> is no stream (sinks go in sinks=)"),  # type: ignore[call-overload]
    (lambda app: app.agent("sales"), "and 'sales' is no stream"),  # type: ignore[call-overload]
    (lambda app: app.agent(merge), "is no stream"),  # type: ignore[call-overload]
    (lambda app: app.each(merge), "@app.each(…) takes what it reads, and <function merge"),  # type: ignore[call-overload]
    (lambda app: app.agent(app.topic("x", Tx), tables=app.table("t", str, int)), "tables= takes a list, not <Table t>"),  # type: ignore[call-overload]
    (lambda app: app.agent(app.topic("x", Tx), reads="t"), "@app.agent: reads= takes a list, not 't'"),  # type: ignore[arg-type]
    (lambda app: app.each(app.topic("x", Tx), sinks=app.sink("o", Tx)), "@app.each: sinks= takes a list, not <Sink o>"),  # type: ignore[call-overload]
    (lambda app: app.agent(app.topic("x", Tx), tables=[app.sink("o", Tx)]), "tables=[<Sink o>] is no table"),  # type: ignore[list-item]
    (lambda app: app.agent(app.topic("x", Tx), reads=[Tx]), "is no read"),  # type: ignore[list-item]
    (lambda app: app.agent(app.topic("x", Tx), sinks=[app.table("t", str, int)]), "sinks=[<Table t>] is no sink"),  # type: ignore[list-item]
    (lambda app: app.agent(their_topic), "'sales' is none of app 'shop': make it with app.topic or app.sink"),
    (lambda app: app.agent(their_table.closed), "'spend.closed' is none of app 'shop'"),
    (lambda app: app.agent(theirs.dead_letters), "'dead-letters' is none of app 'shop'"),
    (lambda app: app.each(app.topic("x", Tx), sinks=[their_sink]), "'out' is none of app 'shop'"),
    (lambda app: app.each(app.topic("sales", Tx), sinks=[their_topic]), "'sales' is none of app 'shop'"),
]


@pytest.mark.parametrize(("declare", "problem"), BAD_AGENTS, ids=[problem for _, problem in BAD_AGENTS])
def test_an_agent_that_cannot_be_right(app: App, declare: Callable[[App], object], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        declare(app)
    assert problem in str(caught.value)
    assert app.agents == {}


def test_undeclared_tables_are_found_before_anything_starts(app: App) -> None:
    sales = app.topic("sales", Tx)
    spend = app.table("spend", str, int)

    @app.each(sales)
    def f(tx: Tx) -> None:
        spend[tx.card] += 1

    with pytest.raises(ConfigError, match="agent 'f': uses table 'spend' without declaring it"):
        app.plan()


# --- resources ------------------------------------------------------------------------------------------------------


async def test_a_resource_is_made_by_its_factory_and_got_only_while_a_worker_runs(app: App) -> None:
    @app.resource
    async def client() -> AsyncIterator[int]:
        yield 5

    assert app.resources == {"client": client}
    with pytest.raises(NoEvent, match="resource 'client' exists only while a worker runs: use it inside an agent"):
        client()
    async with resources(app, VirtualClock()):
        assert client() == 5


async def test_a_resource_is_opened_and_closed(app: App) -> None:
    steps: list[str] = []

    @app.resource
    async def client() -> AsyncIterator[int]:
        steps.append("open")
        yield 5
        steps.append("close")

    @app.resource
    @asynccontextmanager
    async def other() -> AsyncIterator[str]:
        yield "other"

    async with client.factory() as value, other.factory() as text:
        assert (value, text, steps) == (5, "other", ["open"])
    assert steps == ["open", "close"]


async def coroutine() -> int:
    return 5


def generator() -> Any:
    yield 5


@pytest.mark.parametrize("function", [coroutine, generator])
def test_what_is_no_resource(app: App, function: Any) -> None:
    with pytest.raises(ConfigError, match=r"resource '\w+': use an async generator function that yields it once"):
        app.resource(function)


def test_a_name_of_a_resource_is_given_once(app: App) -> None:
    async def client() -> AsyncIterator[int]:
        yield 5

    app.resource(client)
    with pytest.raises(ConfigError, match="app 'shop' has a resource named 'client' already"):
        app.resource(client)
