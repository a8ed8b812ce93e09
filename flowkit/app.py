"""The app: a registry of topics, tables, agents and resources. It does no I/O and starts nothing."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import Any, Generic, Literal, ParamSpec, TypeVar, cast, overload

from flowkit.agent import AgentSpec, Getter, Outlet, Plan, Retry, Sink, Stream, Takes, Topic, make_plan
from flowkit.codec import TimeUnit
from flowkit.errors import ConfigError, NoEvent
from flowkit.record import DeadLetter, Events
from flowkit.table import AnyTable, OverlappingTable, Table, WindowedTable, compiled_of, overlaps
from flowkit.table.definition import LatePolicy
from flowkit.window import Count, Cumulative, Global, Session, Sliding, Tumbling

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
Out = TypeVar("Out")
K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")
P = ParamSpec("P")

CodecName = Literal["json", "msgpack", "bytes", "text", "csv"]
AnyTables = Sequence[AnyTable[Any, Any]]


class Resource(Generic[T]):
    """Something that one worker makes once and closes at its end: a client, a model. Call it to get it."""

    def __init__(self, name: str, factory: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self.name, self.factory = name, factory
        self.bound: ContextVar[T] = ContextVar(f"flowkit_resource_{name}")

    def __call__(self) -> T:
        try:
            return self.bound.get()
        except LookupError:
            raise NoEvent(f"resource {self.name!r} exists only while a worker runs: use it inside an agent") from None


class App:
    """An event-processing application: what it reads, keeps and sends, by decorators.

    `name` names the consumer group, the state and the dead letters. `retry` is the policy of agents that have none of
    their own. Wrong declarations raise ConfigError where they stand, or all at once in `plan`, before anything starts.
    """

    def __init__(self, name: str, *, retry: Retry | None = None) -> None:
        if not name or any(c in name for c in "=/ \0"):
            raise ConfigError(f"{name!r} is no name for an app: no spaces, '=' or '/'")
        self.name = name
        self.retry = retry or Retry()
        self.topics: dict[str, Topic[Any]] = {}
        self.sinks: dict[str, Sink[Any]] = {}
        self.tables: dict[str, AnyTable[Any, Any]] = {}
        self.agents: dict[str, AgentSpec] = {}
        self.resources: dict[str, Resource[Any]] = {}
        self.dead_letters: Topic[DeadLetter] = Topic("dead-letters", DeadLetter)
        """What could not be processed, as a stream that agents may read."""

    def __repr__(self) -> str:
        return f"<App {self.name}>"

    def _new_name(self, name: str) -> None:
        for kind, known in (("topic", self.topics), ("sink", self.sinks), ("table", self.tables)):
            if name in known:
                raise ConfigError(f"app {self.name!r} has a {kind} named {name!r} already")
        if name == self.dead_letters.name:
            raise ConfigError(f"{name!r} is the name of the app's own dead letters")

    def topic(
        self,
        name: str,
        type_: type[T],
        *,
        key: Getter = None,
        time: Getter = None,
        time_unit: TimeUnit = "ms",
        timezone: str | None = None,
        out_of_order: int = 0,
        codec: CodecName = "json",
        idle_after: int | None = None,
        close_after_idle: int | None = None,
    ) -> Topic[T]:
        """A stream of records of one type.

        `key` and `time` are fields or functions of the value; without `time` the broker's timestamp counts.
        `out_of_order` (ms): how far behind the latest a record may come and still be in time. `idle_after` (ms): a
        split that is silent for so long no longer holds back the watermark. `close_after_idle` (ms): once all inputs
        have been silent for so long, the watermark goes on by the clock. `timezone`: what times without offset mean.
        Raises ConfigError for an unknown field or a name already taken.
        """
        self._new_name(name)
        topic = Topic(
            name,
            type_,
            key=key,
            time=time,
            time_unit=time_unit,
            timezone=timezone,
            out_of_order=out_of_order,
            codec=codec,
            idle_after=idle_after,
            close_after_idle=close_after_idle,
        )
        self.topics[name] = topic
        return topic

    def sink(self, name: str, type_: type[T], *, key: Getter = None, codec: CodecName = "json") -> Sink[T]:
        """An output that is no topic (a file, a database table, …), bound when the worker starts."""
        self._new_name(name)
        sink = Sink(name, type_, key=key, codec=codec)
        self.sinks[name] = sink
        return sink

    @overload
    def table(
        self,
        name: str,
        key: type[K],
        value: type[V],
        *,
        ttl: int | None = None,
        default: V | Callable[[], V] | None = None,
        broadcast: bool = False,
        local: bool = False,
        version: int = 1,
    ) -> Table[K, V]: ...

    @overload
    def table(
        self,
        name: str,
        key: type[K],
        value: type[V],
        *,
        window: Tumbling | Count | Global,
        ttl: int | None = None,
        default: V | Callable[[], V] | None = None,
        allowed_lateness: int = 0,
        early: int | None = None,
        late: LatePolicy = "drop",
        close_after_idle: int | None = None,
        broadcast: bool = False,
        local: bool = False,
        version: int = 1,
    ) -> WindowedTable[K, V]: ...

    @overload
    def table(
        self,
        name: str,
        key: type[K],
        value: type[V],
        *,
        window: Session,
        merge: Callable[[V, V], V],
        ttl: int | None = None,
        default: V | Callable[[], V] | None = None,
        allowed_lateness: int = 0,
        early: int | None = None,
        late: LatePolicy = "drop",
        close_after_idle: int | None = None,
        broadcast: bool = False,
        local: bool = False,
        version: int = 1,
    ) -> WindowedTable[K, V]: ...

    @overload
    def table(
        self,
        name: str,
        key: type[K],
        value: type[V],
        *,
        window: Sliding | Cumulative,
        ttl: int | None = None,
        default: V | Callable[[], V] | None = None,
        allowed_lateness: int = 0,
        early: int | None = None,
        late: LatePolicy = "drop",
        close_after_idle: int | None = None,
        broadcast: bool = False,
        local: bool = False,
        version: int = 1,
    ) -> OverlappingTable[K, V]: ...

    @overload
    def table(
        self,
        name: str,
        *,
        of: Events[Any],
        by: str | Callable[[Any], Any],
        window: Sliding | Cumulative,
        ttl: int | None = None,
        allowed_lateness: int = 0,
        early: int | None = None,
        close_after_idle: int | None = None,
        **aggregates: Any,
    ) -> OverlappingTable[Any, Any]: ...

    @overload
    def table(
        self,
        name: str,
        *,
        of: Events[Any],
        by: str | Callable[[Any], Any],
        window: Tumbling | Count | Global | Session,
        ttl: int | None = None,
        allowed_lateness: int = 0,
        early: int | None = None,
        close_after_idle: int | None = None,
        **aggregates: Any,
    ) -> WindowedTable[Any, Any]: ...

    @overload
    def table(
        self, name: str, *, of: Events[Any], by: str | Callable[[Any], Any], ttl: int | None = None, **aggregates: Any
    ) -> Table[Any, Any]: ...

    def table(
        self,
        name: str,
        key: Any = None,
        value: Any = None,
        *,
        window: Any = None,
        ttl: int | None = None,
        default: Any = None,
        merge: Any = None,
        allowed_lateness: int = 0,
        early: int | None = None,
        late: LatePolicy = "drop",
        close_after_idle: int | None = None,
        broadcast: bool = False,
        local: bool = False,
        version: int = 1,
        of: Events[Any] | None = None,
        by: Any = None,
        **aggregates: Any,
    ) -> Any:
        """Keyed state, with or without windows.

        `ttl` (ms): a key not used for so long is forgotten. `default`: the value of a new key (or a function that
        makes it) where the type has no default. `merge`: makes one value of two sessions. `allowed_lateness` (ms): how
        long a fired window still takes late records. `early` (ms of event time): results before the window closes.
        `late`: "drop" sends late records to `table.late`, "deliver" to the agent. `broadcast`: every task has the
        whole table. `local`: keys are the task's own, not a partition's. `version`: see `table.migrate`.

        With `of=` and `by=` the table counts by itself: `app.table("n", of=topic, by="user", n=Count())`. Raises
        ConfigError for what cannot be right.
        """
        self._new_name(name)
        if of is None and (key is None or value is None):
            raise ConfigError(f"table {name!r}: give it a key type and a value type, or of= and aggregates")
        cls = Table if window is None else OverlappingTable if overlaps(window) else WindowedTable
        table: AnyTable[Any, Any] = cls(
            name,
            key,
            value,
            ttl=ttl,
            default=default,
            broadcast=broadcast,
            local=local,
            version=version,
            source=of,
            by=by,
            aggregates=aggregates,
        )
        if isinstance(table, WindowedTable | OverlappingTable):
            table.set_window(window, allowed_lateness, early, late, merge, close_after_idle)
        elif allowed_lateness or early or merge or late != "drop" or close_after_idle:
            raise ConfigError(
                f"table {name!r}: allowed_lateness, early, late, merge and close_after_idle need a window"
            )
        compiled = compiled_of(table)
        if compiled is not None:
            table.set_types(compiled.key_type, compiled.result_type)
        self.tables[name] = table
        return table

    @overload
    def agent(
        self,
        s1: Events[A],
        /,
        *,
        tables: AnyTables = ...,
        reads: AnyTables = ...,
        sinks: Sequence[Takes[Out]],
        retry: Retry | None = ...,
        name: str | None = ...,
    ) -> Callable[[Callable[[Stream[A]], AsyncIterator[Out]] | Callable[[Stream[A]], Awaitable[None]]], Any]: ...

    @overload
    def agent(
        self,
        s1: Events[A],
        /,
        *,
        tables: AnyTables = ...,
        reads: AnyTables = ...,
        retry: Retry | None = ...,
        name: str | None = ...,
    ) -> Callable[[Callable[[Stream[A]], Awaitable[None]]], Any]: ...

    @overload
    def agent(
        self,
        s1: Events[A],
        s2: Events[B],
        /,
        *,
        tables: AnyTables = ...,
        reads: AnyTables = ...,
        sinks: Sequence[Takes[Out]],
        retry: Retry | None = ...,
        name: str | None = ...,
    ) -> Callable[
        [Callable[[Stream[A | B]], AsyncIterator[Out]] | Callable[[Stream[A | B]], Awaitable[None]]], Any
    ]: ...

    @overload
    def agent(
        self,
        s1: Events[A],
        s2: Events[B],
        /,
        *,
        tables: AnyTables = ...,
        reads: AnyTables = ...,
        retry: Retry | None = ...,
        name: str | None = ...,
    ) -> Callable[[Callable[[Stream[A | B]], Awaitable[None]]], Any]: ...

    @overload
    def agent(
        self,
        s1: Events[A],
        s2: Events[B],
        s3: Events[C],
        /,
        *,
        tables: AnyTables = ...,
        reads: AnyTables = ...,
        sinks: Sequence[Takes[Out]],
        retry: Retry | None = ...,
        name: str | None = ...,
    ) -> Callable[
        [Callable[[Stream[A | B | C]], AsyncIterator[Out]] | Callable[[Stream[A | B | C]], Awaitable[None]]], Any
    ]: ...

    @overload
    def agent(
        self,
        s1: Events[A],
        s2: Events[B],
        s3: Events[C],
        /,
        *,
        tables: AnyTables = ...,
        reads: AnyTables = ...,
        retry: Retry | None = ...,
        name: str | None = ...,
    ) -> Callable[[Callable[[Stream[A | B | C]], Awaitable[None]]], Any]: ...

    @overload
    def agent(
        self,
        s1: Events[A],
        s2: Events[B],
        s3: Events[C],
        s4: Events[D],
        /,
        *,
        tables: AnyTables = ...,
        reads: AnyTables = ...,
        sinks: Sequence[Takes[Out]],
        retry: Retry | None = ...,
        name: str | None = ...,
    ) -> Callable[
        [Callable[[Stream[A | B | C | D]], AsyncIterator[Out]] | Callable[[Stream[A | B | C | D]], Awaitable[None]]],
        Any,
    ]: ...

    @overload
    def agent(
        self,
        s1: Events[A],
        s2: Events[B],
        s3: Events[C],
        s4: Events[D],
        /,
        *,
        tables: AnyTables = ...,
        reads: AnyTables = ...,
        retry: Retry | None = ...,
        name: str | None = ...,
    ) -> Callable[[Callable[[Stream[A | B | C | D]], Awaitable[None]]], Any]: ...

    def agent(
        self,
        *sources: Events[Any],
        tables: AnyTables = (),
        reads: AnyTables = (),
        sinks: Sequence[Any] = (),
        retry: Retry | None = None,
        name: str | None = None,
    ) -> Callable[[Any], Any]:
        """An agent over one or several sources: `async def f(stream)`, an async generator if it emits.

        `tables` are those that it writes, `reads` those that it only reads (after their writer, event by event, as
        copies); `sinks` take what it yields. An event that makes it raise leaves no trace: after the retries that
        `retry` names it goes to the dead letters. Local variables of the generator are not state: after a failure or
        a restart it starts afresh.
        """
        return self._register(sources, tables, reads, sinks, retry, name, per_event=False)

    @overload
    def each(
        self,
        s1: Events[A],
        /,
        *,
        tables: AnyTables = ...,
        reads: AnyTables = ...,
        sinks: Sequence[Takes[Out]],
        retry: Retry | None = ...,
        name: str | None = ...,
    ) -> Callable[[Callable[[A], Out | None] | Callable[[A], Awaitable[Out | None]]], Any]: ...

    @overload
    def each(
        self,
        s1: Events[A],
        /,
        *,
        tables: AnyTables = ...,
        reads: AnyTables = ...,
        retry: Retry | None = ...,
        name: str | None = ...,
    ) -> Callable[[Callable[[A], None] | Callable[[A], Awaitable[None]]], Any]: ...

    @overload
    def each(
        self,
        s1: Events[A],
        s2: Events[B],
        /,
        *,
        tables: AnyTables = ...,
        reads: AnyTables = ...,
        sinks: Sequence[Takes[Out]],
        retry: Retry | None = ...,
        name: str | None = ...,
    ) -> Callable[[Callable[[A | B], Out | None] | Callable[[A | B], Awaitable[Out | None]]], Any]: ...

    @overload
    def each(
        self,
        s1: Events[A],
        s2: Events[B],
        /,
        *,
        tables: AnyTables = ...,
        reads: AnyTables = ...,
        retry: Retry | None = ...,
        name: str | None = ...,
    ) -> Callable[[Callable[[A | B], None] | Callable[[A | B], Awaitable[None]]], Any]: ...

    @overload
    def each(
        self,
        s1: Events[A],
        s2: Events[B],
        s3: Events[C],
        /,
        *,
        tables: AnyTables = ...,
        reads: AnyTables = ...,
        sinks: Sequence[Takes[Out]],
        retry: Retry | None = ...,
        name: str | None = ...,
    ) -> Callable[[Callable[[A | B | C], Out | None] | Callable[[A | B | C], Awaitable[Out | None]]], Any]: ...

    @overload
    def each(
        self,
        s1: Events[A],
        s2: Events[B],
        s3: Events[C],
        /,
        *,
        tables: AnyTables = ...,
        reads: AnyTables = ...,
        retry: Retry | None = ...,
        name: str | None = ...,
    ) -> Callable[[Callable[[A | B | C], None] | Callable[[A | B | C], Awaitable[None]]], Any]: ...

    @overload
    def each(
        self,
        s1: Events[A],
        s2: Events[B],
        s3: Events[C],
        s4: Events[D],
        /,
        *,
        tables: AnyTables = ...,
        reads: AnyTables = ...,
        sinks: Sequence[Takes[Out]],
        retry: Retry | None = ...,
        name: str | None = ...,
    ) -> Callable[[Callable[[A | B | C | D], Out | None] | Callable[[A | B | C | D], Awaitable[Out | None]]], Any]: ...

    @overload
    def each(
        self,
        s1: Events[A],
        s2: Events[B],
        s3: Events[C],
        s4: Events[D],
        /,
        *,
        tables: AnyTables = ...,
        reads: AnyTables = ...,
        retry: Retry | None = ...,
        name: str | None = ...,
    ) -> Callable[[Callable[[A | B | C | D], None] | Callable[[A | B | C | D], Awaitable[None]]], Any]: ...

    def each(
        self,
        *sources: Events[Any],
        tables: AnyTables = (),
        reads: AnyTables = (),
        sinks: Sequence[Any] = (),
        retry: Retry | None = None,
        name: str | None = None,
    ) -> Callable[[Any], Any]:
        """An agent for one event at a time: `def f(event)` or `async def f(event)`; a result goes to the sinks.

        The keywords are those of `agent`.
        """
        return self._register(sources, tables, reads, sinks, retry, name, per_event=True)

    def _register(
        self,
        sources: tuple[Events[Any], ...],
        tables: AnyTables,
        reads: AnyTables,
        sinks: Sequence[Outlet[Any]],
        retry: Retry | None,
        name: str | None,
        *,
        per_event: bool,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        for what in sources:
            if not isinstance(what, Events):
                raise ConfigError(
                    f"an agent of app {self.name!r} reads {what!r}, which is no stream (name sinks by sinks=)"
                )

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            label = name or getattr(function, "__name__", type(function).__name__)
            if label in self.agents:
                raise ConfigError(f"app {self.name!r} has an agent named {label!r} already: give this one name=")
            self.agents[label] = AgentSpec(
                label,
                function,
                tuple(dict.fromkeys(sources)),
                tuple(tables),
                tuple(reads),
                tuple(sinks),
                retry or self.retry,
                per_event,
            )
            return function

        return register

    def resource(
        self, function: Callable[[], AsyncIterator[T]] | Callable[[], AbstractAsyncContextManager[T]]
    ) -> Resource[T]:
        """Something that each worker makes once: an async generator function that yields it, then cleans up."""
        name = function.__name__
        factory: Any = asynccontextmanager(function) if inspect.isasyncgenfunction(function) else function
        resource: Resource[T] = Resource(name, cast("Callable[[], AbstractAsyncContextManager[T]]", factory))
        if name in self.resources:
            raise ConfigError(f"app {self.name!r} has a resource named {name!r} already")
        self.resources[name] = resource
        return resource

    def plan(self) -> Plan:
        """How agents, tables and topics make up tasks. Raises ConfigError with all problems at once."""
        return make_plan(list(self.agents.values()), list(self.tables.values()))
