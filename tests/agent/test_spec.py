"""What can be told of an agent before anything starts: its function, its annotations, its tables, its retries."""

import functools
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
)
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, NewType, Protocol, TypedDict, TypeVar

import pytest

from flowkit.agent import AgentSpec, Outlet, Retry, Sink, Stream, Topic
from flowkit.agent.spec import accepts, undeclared_tables
from flowkit.errors import ConfigError
from flowkit.flow import Events
from flowkit.record import Change, Closed, DeadLetter, Record
from flowkit.table import AnyTable, Table, WindowedTable
from flowkit.window import Tumbling

T = TypeVar("T")


class Tx(Record):
    card: str


class Device(Record):
    id: str


class Spend(Record):
    count: int = 0


class Alert(Record):
    card: str


class Urgent(Alert):
    level: int = 0


class Box(Record, Generic[T]):
    item: T


@dataclass
class Reading:
    value: float


class Beat(TypedDict):
    at: int


class LongBeat(Beat):
    note: str


class HasCard(Protocol):
    card: str


Card = NewType("Card", str)

transactions: Topic[Tx] = Topic("transactions", Tx)
devices: Topic[Device] = Topic("devices", Device)
beats: Topic[Beat] = Topic("beats", Beat)
documents: Topic[dict[str, Any]] = Topic("documents", dict[str, Any])
alerts: Topic[Alert] = Topic("alerts", Alert)
numbers: Sink[float] = Sink("numbers", float)
spend: WindowedTable[str, Spend] = WindowedTable("spend", str, Spend)
spend.set_window(Tumbling(10), 0, None, "drop", None, None)
plain: Table[str, int] = Table("plain", str, int)
other: Table[str, int] = Table("other", str, int)


def spec(
    function: Callable[..., Any],
    *sources: Events[Any],
    each: bool = False,
    tables: tuple[AnyTable[Any, Any], ...] = (),
    reads: tuple[AnyTable[Any, Any], ...] = (),
    sinks: tuple[Outlet[Any], ...] = (),
) -> AgentSpec:
    return AgentSpec("a", function, sources or (transactions,), tables, reads, sinks, Retry(), each)


# --- types ----------------------------------------------------------------------------------------------------------

FITS: list[tuple[Any, Any, bool]] = [
    (Tx, Tx, True),
    (Tx, Device, False),
    (Alert, Urgent, True),
    (Urgent, Alert, False),
    (Record, Tx, True),
    (object, Tx, True),
    (Any, Tx, True),
    (Tx, Any, True),
    (T, Tx, True),
    (Tx | Device, Tx, True),
    (Tx | Device, Tx | Device, True),
    (Device | Tx, Tx | Device, True),
    (Tx, Tx | Device, False),
    (Tx | None, Tx, True),
    (Tx | None, None, True),
    (Tx, None, False),
    (Tx, Tx | None, False),
    (Tx | Any, Device, True),
    (float, int, True),
    (int, float, False),
    (int, bool, True),
    (float | str, int, True),
    (str, Card, True),
    (Card, str, True),  # no telling
    (Annotated[Tx, 1], Tx, True),
    (Tx, Annotated[Tx, 1], True),
    (Annotated[Tx, 1], Device, False),
    (Literal["a"], str, True),  # no telling
    (list[int], list[int], True),
    (list[int], list[str], False),
    (list[float], list[int], True),
    (list, list[str], True),
    (list[str], list, True),
    (tuple[int, ...], tuple[int, str], True),
    (dict[str, int], dict[str, Any], True),
    (dict[str, int], dict[str, str], False),
    (Closed[str, Spend], Closed[str, Spend], True),
    (Closed[str, Spend], Closed[int, Spend], False),
    (Closed[str, Spend], Closed[str, Alert], False),
    (Closed[str, Record], Closed[str, Spend], True),
    (Closed[str, Any], Closed[str, Spend], True),
    (Closed[Any, Any], Closed[str, Spend], True),
    (Closed, Closed[str, Spend], True),
    (Closed[str, Spend], Change[str, Spend], False),
    (Change[str, Spend], Change[str, Spend], True),
    (Change[str, Alert], Change[str, Spend], False),
    (Box[int], Box[int], True),
    (Box[int], Box[str], False),
    (Tx | Closed[str, Spend], Closed[str, Spend], True),
    (Tx | Closed[str, Spend], Closed[str, Alert], False),
    (Reading, Reading, True),
    (Reading, Tx, False),
    (Beat, Beat, True),
    (Beat, LongBeat, True),
    (LongBeat, Beat, False),
    (Beat, dict[str, Any], True),
    (Beat, Tx, False),
    (dict[str, Any], Beat, True),
    (Mapping[str, Any], Beat, True),
    (Tx, Beat, False),
    (HasCard, Tx, True),  # type checkers look into protocols
    (DeadLetter | Tx, Tx, True),
]


@pytest.mark.parametrize(("wanted", "given", "fits"), FITS)
def test_accepts(wanted: Any, given: Any, fits: bool) -> None:
    assert accepts(wanted, given) is fits


# --- functions ------------------------------------------------------------------------------------------------------


async def takes_tx(stream: Stream[Tx]) -> None: ...
async def takes_any(stream: Stream[Any]) -> None: ...
async def takes_bare(stream: Stream) -> None: ...  # type: ignore[type-arg]
async def takes_iterator(stream: AsyncIterator[Tx]) -> None: ...
async def takes_iterable(stream: AsyncIterable[Tx]) -> None: ...
async def takes_unannotated(stream) -> None: ...  # type: ignore[no-untyped-def]
async def takes_text(stream: "Stream[Tx]") -> None: ...
async def takes_unknown(stream: "Stream[Nowhere]") -> None: ...  # type: ignore[name-defined]  # noqa: F821
async def takes_both(stream: Stream[Tx | Device]) -> None: ...
async def takes_more(stream: Stream[Tx], more: int = 5, *rest: int, last: int = 1, **others: int) -> None: ...
async def takes_star(*events: Stream[Tx]) -> None: ...
async def takes_protocol(stream: Stream[HasCard]) -> None: ...
async def takes_closed(stream: Stream[Closed[str, Spend]]) -> None: ...
async def takes_device(stream: Stream[Device]) -> None: ...
async def takes_event(tx: Tx) -> None: ...
async def takes_nothing() -> None: ...
async def takes_two(stream: Stream[Tx], more: int) -> None: ...
async def takes_keyword(*, stream: Stream[Tx]) -> None: ...
async def takes_needed_keyword(stream: Stream[Tx], *, more: int) -> None: ...
async def returns(stream: Stream[Tx]) -> Alert: ...  # type: ignore[empty-body]
def sync(stream: Stream[Tx]) -> None: ...
def sync_generator(stream: Stream[Tx]) -> Iterator[Alert]:
    yield Alert("")


async def gives(stream: Stream[Tx]) -> AsyncIterator[Alert]:
    yield Alert("")


async def gives_generator(stream: Stream[Tx]) -> AsyncGenerator[Alert, None]:
    yield Alert("")


async def gives_urgent(stream: Stream[Tx]) -> AsyncIterator[Urgent]:
    yield Urgent("")


async def gives_several(stream: Stream[Tx]) -> AsyncIterator[Alert | int]:
    yield 5


async def gives_unannotated(stream: Stream[Tx]):  # type: ignore[no-untyped-def]
    yield 5


async def gives_device(stream: Stream[Tx]) -> AsyncIterator[Device]:
    yield Device("")


async def gives_one_wrong(stream: Stream[Tx]) -> AsyncIterator[Alert | Device]:
    yield Device("")


class AsAnObject:
    async def __call__(self, tx: Tx) -> Alert | None: ...

    async def method(self, stream: Stream[Tx]) -> None: ...


def each(tx: Tx) -> Alert: ...  # type: ignore[empty-body]
def each_optional(tx: Tx) -> Alert | None: ...
async def each_async(tx: Tx) -> Alert | None: ...
def each_awaitable(tx: Tx) -> Awaitable[Alert]: ...  # type: ignore[empty-body]
def each_coroutine(tx: Tx) -> Coroutine[Any, Any, Alert | None]: ...  # type: ignore[empty-body]
def each_any(event: Any) -> Any: ...
def each_none(tx: Tx) -> None: ...
def each_device(tx: Tx) -> Device: ...  # type: ignore[empty-body]
async def each_device_async(tx: Tx) -> Device | None: ...
def each_stream(stream: Stream[Tx]) -> None: ...
async def each_yields(tx: Tx) -> AsyncIterator[Alert]:
    yield Alert("")


def each_yields_sync(tx: Tx) -> Iterator[Alert]:
    yield Alert("")


@functools.wraps(takes_tx)
async def wrapped(*args: Any, **kwargs: Any) -> None: ...


SOUND: list[AgentSpec] = [
    *(
        spec(f)
        for f in (takes_tx, takes_any, takes_bare, takes_iterator, takes_iterable, takes_unannotated, takes_text)
    ),
    *(spec(f) for f in (takes_unknown, takes_both, takes_more, takes_star, takes_protocol, wrapped)),
    spec(takes_both, transactions, devices),
    spec(takes_any, transactions, devices, spend.closed, spend.late),
    spec(takes_closed, spend.closed),
    spec(AsAnObject().method),
    *(spec(f, sinks=(alerts,)) for f in (gives, gives_generator, gives_urgent, gives_unannotated, takes_tx)),
    spec(gives_several, sinks=(alerts, numbers)),
    spec(functools.partial(takes_more, more=6)),
    *(
        spec(f, sinks=(alerts,), each=True)
        for f in (each, each_optional, each_async, each_awaitable, each_coroutine, each_any, each_none, AsAnObject())
    ),
    spec(each_any, devices, each=True),
    spec(each_none, each=True),
    spec(print, each=True),
    spec(each_any, beats, documents, each=True),
]


@pytest.mark.parametrize("sound", SOUND, ids=lambda s: getattr(s.function, "__name__", type(s.function).__name__))
def test_a_sound_agent_has_no_problem(sound: AgentSpec) -> None:
    assert list(sound.problems()) == []


UNSOUND: list[tuple[AgentSpec, str]] = [
    (AgentSpec("a", takes_tx, (), (), (), (), Retry(), False), "reads nothing: give it a source"),
    (spec(sync), "must be 'async def' (an async generator if it emits)"),
    (spec(sync_generator), "must be 'async def' (an async generator if it emits)"),
    (spec(takes_nothing), "takes () -> None, but gets one argument, the stream"),
    (spec(takes_two), "but gets one argument, the stream"),
    (spec(takes_keyword), "but gets one argument, the stream"),
    (spec(takes_needed_keyword), "but gets one argument, the stream"),
    (spec(takes_nothing, each=True), "but gets one argument, the event"),
    (spec(returns, sinks=(alerts,)), "returns Alert when its stream ends: yield it instead"),
    (spec(takes_event), "takes Tx, but gets a stream: annotate it as Stream[…]"),
    (spec(takes_device), "takes Device, but 'transactions' sends Tx"),
    (spec(takes_tx, transactions, devices), "takes Tx, but 'devices' sends Device"),
    (spec(takes_tx, spend.closed), "but 'spend.closed' sends flowkit.record.Closed"),
    (spec(takes_closed, spend.changes), "but 'spend.changes' sends flowkit.record.Change"),
    (spec(takes_tx, documents), "takes Tx, but 'documents' sends dict[str, typing.Any]"),
    (spec(each, devices, sinks=(alerts,), each=True), "takes Tx, but 'devices' sends Device"),
    (spec(each_stream, each=True), "@app.each takes one event, not a stream; to iterate, use @app.agent"),
    (
        spec(each_yields, sinks=(alerts,), each=True),
        "@app.each takes one event and returns a result; to yield, use @app.agent",
    ),
    (spec(each_yields_sync, sinks=(alerts,), each=True), "to yield, use @app.agent"),
    (spec(gives), "yields, but declares no sinks="),
    (spec(gives_unannotated), "yields, but declares no sinks="),
    (spec(gives_device, sinks=(alerts,)), "gives Device, which none of its sinks takes ('alerts' takes Alert)"),
    (spec(gives_one_wrong, sinks=(alerts,)), "gives Device, which none of its sinks takes"),
    (spec(gives_several, sinks=(alerts,)), "gives int, which none of its sinks takes"),
    (
        spec(gives_device, sinks=(alerts, numbers)),
        "gives Device, which none of its sinks takes ('alerts' takes Alert, 'numbers' takes float)",
    ),
    (spec(each, each=True), "gives Alert, but declares no sinks="),
    (spec(each_optional, each=True), "gives Alert, but declares no sinks="),
    (spec(each_async, each=True), "gives Alert, but declares no sinks="),
    (spec(each_awaitable, each=True), "gives Alert, but declares no sinks="),
    (spec(each_device, sinks=(alerts,), each=True), "gives Device, which none of its sinks takes"),
    (spec(each_device_async, sinks=(alerts,), each=True), "gives Device, which none of its sinks takes"),
    (spec(takes_tx, tables=(plain,), reads=(plain,)), "table 'plain' is both in tables= and in reads="),
]


@pytest.mark.parametrize(("unsound", "problem"), UNSOUND, ids=[problem for _, problem in UNSOUND])
def test_an_unsound_agent_has_one_problem(unsound: AgentSpec, problem: str) -> None:
    (found,) = unsound.problems()
    assert found.startswith("agent 'a': ")
    assert problem in found


def test_all_problems_are_found() -> None:
    unsound = spec(gives_device, devices, tables=(plain,), reads=(plain,))
    assert len(list(unsound.problems())) == 3


# --- tables that the code names -------------------------------------------------------------------------------------


async def names_one(stream: Stream[Tx]) -> None:
    async for tx in stream:
        plain[tx.card] += 1


async def names_two(stream: Stream[Tx]) -> None:
    async for tx in stream:
        plain[tx.card] = other.get(tx.card) or 0


async def names_inside(stream: Stream[Tx]) -> None:
    def bump(card: str) -> None:
        plain[card] += 1

    async for tx in stream:
        bump(tx.card)
        [other[tx.card] for _ in "a"]


async def names_only_like(stream: Stream[Tx]) -> None:
    class Own:
        plain = 5
        other = 6

    async for _ in stream:
        assert Own.plain + Own.other


async def shadows(stream: Stream[Tx]) -> None:
    plain = {"a": 1}
    async for tx in stream:
        plain[tx.card] += 1


def closed_over(table: Table[str, int]) -> Callable[..., Any]:
    async def function(stream: Stream[Tx]) -> None:
        async for tx in stream:
            table[tx.card] += 1

    return function


NAMED: list[tuple[Callable[..., Any], list[AnyTable[Any, Any]]]] = [
    (names_one, [plain]),
    (names_two, [plain, other]),
    (names_inside, [plain, other]),
    (names_only_like, []),
    (shadows, []),
    (closed_over(plain), [plain]),
    (takes_tx, []),
    (print, []),
    (AsAnObject(), []),
    (functools.partial(names_one), []),
]


@pytest.mark.parametrize(("function", "tables"), NAMED)
def test_tables_are_found_in_the_code(function: Callable[..., Any], tables: list[AnyTable[Any, Any]]) -> None:
    found = list(undeclared_tables(function, ()))
    assert sorted(table.name for table in found) == sorted(table.name for table in tables)
    assert list(undeclared_tables(function, tables)) == []


def test_a_variable_that_is_not_bound_yet_is_no_problem() -> None:
    async def function(stream: Stream[Tx]) -> None:
        later["a"] = 1

    assert list(undeclared_tables(function, ())) == []
    later: Table[str, int] = plain
    assert list(undeclared_tables(function, ())) == [plain]


def test_an_undeclared_table_is_a_problem() -> None:
    (problem,) = spec(names_two, tables=(plain,)).problems()
    assert problem == "agent 'a': uses table 'other' without declaring it: name it in tables= or reads="
    assert list(spec(names_two, tables=(plain,), reads=(other,)).problems()) == []


# --- retries --------------------------------------------------------------------------------------------------------

WAITS: list[tuple[Retry, int, Exception, int | None]] = [
    (Retry(), 1, ValueError(), None),
    (Retry(attempts=3), 1, ValueError(), 100),
    (Retry(attempts=3), 2, ValueError(), 200),
    (Retry(attempts=3), 3, ValueError(), None),
    (Retry(attempts=3, backoff=0), 2, ValueError(), 0),
    (Retry(attempts=3, errors=(OSError,)), 1, ValueError(), None),
    (Retry(attempts=3, errors=(OSError,)), 1, ConnectionError(), 100),
    (Retry(attempts=3, errors=()), 1, ValueError(), None),
    (Retry(attempts=20), 10, ValueError(), 30_000),
    (Retry(attempts=20, max_backoff=50), 1, ValueError(), 50),
    (Retry(attempts=10**6), 5_000, ValueError(), 30_000),
    (Retry(attempts=10**6, backoff=0.5), 5_000, ValueError(), 30_000),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("retry", "attempt", "error", "wait"), WAITS)
def test_how_long_a_retry_waits(retry: Retry, attempt: int, error: Exception, wait: int | None) -> None:
    assert retry.wait(attempt, error) == wait


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"attempts": -1},
        {"backoff": -1},
        {"max_backoff": -1},
        {"errors": ValueError},
        {"errors": [ValueError]},
        {"errors": ("ValueError",)},
        {"errors": (KeyboardInterrupt,)},
        {"errors": (ValueError(),)},
    ],
)
def test_a_retry_that_makes_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Retry: "):
        Retry(**options)
