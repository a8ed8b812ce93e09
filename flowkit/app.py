"""The app: a registry of topics, tables, agents and resources. It does no I/O and starts nothing."""

import inspect
import re
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, Never, TypedDict, TypeVar, Unpack, get_args, overload

import msgspec

from flowkit.agent import (
    AgentSpec,
    Getter,
    Outlet,
    Plan,
    Retry,
    Sink,
    Stream,
    Topic,
    check_name,
    key_type,
    make_plan,
    merge_rows,
    no_place,
    process_table,
    windows_of,
)
from flowkit.codec import Codec, CodecName, KeyCodec, TimeUnit, type_name
from flowkit.errors import ConfigError
from flowkit.flow import Derived, Events, Keeping, roots_of
from flowkit.options import Guarantee, OutOfRange, Start
from flowkit.record import DeadLetter, Tick
from flowkit.resource import Resource
from flowkit.table import (
    Aggregate,
    AnyTable,
    OverlappingTable,
    ProcessTable,
    Table,
    TableEvents,
    Ticks,
    Timers,
    WindowedTable,
    compiled_of,
    overlaps,
)
from flowkit.window import Count, Crontab, Cumulative, Every, Global, Schedule, Session, Sliding, Tumbling, Window

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

if TYPE_CHECKING:  # `typing` knows defaults from Python 3.13 on
    from typing_extensions import TypeVar as TypeVarWithDefault

    Out = TypeVarWithDefault("Out", default=Never)  # an agent without sinks gives nothing
    By = TypeVarWithDefault("By", default=Any)  # a key that is named by a field has the field's type: not for checkers
else:
    Out, By = TypeVar("Out"), TypeVar("By")

# What the decorators take and give back. They are the whole of what type checkers know of an agent: its events are
# those of its sources, and what it gives is taken by its sinks.
OnStream = Callable[[Callable[[Stream[A]], AsyncIterator[Out] | Awaitable[None]]], Callable[[Stream[A]], Any]]
OnEach = Callable[[Callable[[A], Out | Awaitable[Out | None] | None]], Callable[[A], Any]]
Factory = Callable[[], AsyncIterator[T]] | Callable[[], AbstractAsyncContextManager[T]]


class AgentOptions(TypedDict, Generic[Out], total=False):
    """Keywords of `App.agent` and `App.each`, told there."""

    tables: Sequence[AnyTable[Any, Any]]
    reads: Sequence[AnyTable[Any, Any]]
    sinks: Sequence[Outlet[Out]]
    retry: Retry | None
    name: str | None


class TableOptions(TypedDict, Generic[V], total=False):
    """Keywords of `App.table` for any table, told there."""

    ttl: int | None
    default: V | Callable[[], V] | None
    broadcast: bool
    local: bool
    version: int


class WindowOptions(TableOptions[V], total=False):
    """Keywords of `App.table` for tables with windows, told there."""

    allowed_lateness: int
    early: int | None
    late: Literal["drop", "deliver"]
    close_after_idle: int | None


KINDS = ("closed", "changes", "late")
"""What a table sends: streams named TABLE.KIND."""


class App:
    """An event-processing application: what it reads, keeps and sends, by decorators.

    `name` names the consumer group, the state and the dead letters. `retry` is the policy of agents that have none of
    their own. `guarantee` is how often what an event causes is seen in Kafka's topics if a worker dies: exactly once,
    or at least once: then outputs do not wait for the commit, and commits cost less. Wrong declarations raise
    ConfigError where they stand, or all at once in `plan`, before anything starts.
    """

    def __init__(self, name: str, *, retry: Retry | None = None, guarantee: Guarantee = "exactly once") -> None:
        check_name(name, "an app")
        if guarantee not in get_args(Guarantee):
            raise ConfigError(
                f"app {name!r}: guarantee={guarantee!r}, but there are {' and '.join(get_args(Guarantee))}"
            )
        self.guarantee = guarantee
        self.name = name
        self.retry = retry or Retry()
        self.topics: dict[str, Topic[Any]] = {}
        self.sinks: dict[str, Sink[Any]] = {}
        self.tables: dict[str, AnyTable[Any, Any]] = {}
        self.agents: dict[str, AgentSpec] = {}
        self.resources: dict[str, Resource[Any]] = {}
        self.derived: dict[str, Derived[Any]] = {}
        """The streams that operators have made of others."""
        self.dead_letters: Topic[DeadLetter] = Topic("dead-letters", DeadLetter)
        """What could not be processed, as a stream that agents may read."""
        self.dead_letters.owner = self

    def __repr__(self) -> str:
        return f"<App {self.name}>"

    def _new_name(self, name: str, what: str) -> None:
        check_name(name, what)
        for kind, known in self._kinds():
            if name in known:
                raise ConfigError(f"app {self.name!r} has a {kind} named {name!r} already")
        if name == self.dead_letters.name:
            raise ConfigError(f"{name!r} is the name of the app's own dead letters")
        table, _, kind = name.rpartition(".")
        if kind in KINDS and table in self.tables:
            raise ConfigError(f"{name!r} is the name of what table {table!r} sends")
        taken = [f"{name}.{kind}" for kind in KINDS if what == "a table" and f"{name}.{kind}" in self.topics]
        if taken:
            raise ConfigError(f"table {name!r} would send {taken[0]!r}, which is the name of a topic")

    def _kinds(self) -> list[tuple[str, dict[str, Any]]]:
        """All that has a name of its own."""
        named: list[tuple[str, dict[str, Any]]] = [("topic", self.topics), ("sink", self.sinks)]
        return [*named, ("table", self.tables), ("stream", self.derived)]

    def add_stream(self, stream: Derived[Any]) -> None:
        """Take note of a stream that an operator makes. Raises ConfigError for a name that is taken."""
        self._new_name(stream.name, "a stream")
        self.derived[stream.name] = stream

    def free_name(self, wanted: str) -> str:
        """`wanted`, or with the first number behind it that makes it free."""
        name, number = wanted, 1
        while any(name in known for _, known in self._kinds()):
            number += 1
            name = f"{wanted}-{number}"
        return name

    def add_operator(self, table: ProcessTable) -> ProcessTable:
        """Take note of an operator that keeps something. Raises ConfigError for a name that is taken."""
        self._new_name(table.name, "an operator")
        table.belong_to(self)
        self.tables[table.name] = table
        return table

    def keep(self, operator: Keeping) -> Events[Any]:
        """The main stream of an operator that keeps something. Raises ConfigError."""
        if operator.pairs is None:
            return self.add_operator(process_table(operator)).main
        options: dict[str, Any] = {"window": operator.window, "default": operator.pairs.new}
        if isinstance(operator.window, Session):
            options["merge"] = merge_rows
        table = self.table(f"{operator.name}.windows", key_type(operator), operator.pairs.value_type, **options)
        return windows_of(operator, table)

    def topic(
        self,
        name: str,
        type_: type[T],
        *,
        key: Getter[T] = None,
        time: Getter[T] = None,
        time_unit: TimeUnit = "ms",
        timezone: str | None = None,
        out_of_order: int = 0,
        codec: CodecName = "json",
        idle_after: int | None = None,
        close_after_idle: int | None = None,
        start: Start | datetime = "earliest",
        out_of_range: OutOfRange = "fail",
        pattern: str | None = None,
    ) -> Topic[T]:
        """A stream of records of one type.

        `key` and `time` are fields or functions of the value; without `time` the broker's timestamp counts.
        `out_of_order` (ms): how far behind the latest a record may come and still be in time. `idle_after` (ms): a
        split that is silent for so long no longer holds back the watermark. `close_after_idle` (ms): once all inputs
        have been silent for so long, the watermark goes on by the clock. `timezone`: what times without offset mean.
        A worker that has no position yet begins at `start`: "earliest", "latest", a time, or offsets by partition. If
        its position is not in the topic any more it fails, or goes on at an end of it, as `out_of_range` says.
        With `pattern`, a regular expression, it is all topics of the broker whose whole names match, those that are
        made while a worker runs included; it can only be read. They need equal numbers of partitions, and each
        partition is a split of its own. A topic that comes later is read from its first record ("latest" is for what
        was there at the beginning), or from the time that is `start`.
        Raises ConfigError for an unknown field or a name already taken.
        """
        self._new_name(name, "a topic")
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
            start=start,
            out_of_range=out_of_range,
            pattern=pattern,
        )
        self._check_patterns(topic)
        topic.owner = self
        self.topics[name] = topic
        return topic

    def _check_patterns(self, topic: Topic[Any]) -> None:
        """Raise ConfigError if a topic would be read twice: by its name, and as one of those that match a pattern."""
        for other in self.topics.values():
            wide, plain = (topic, other) if topic.pattern is not None else (other, topic)
            if wide.pattern is not None and plain.pattern is None and wide.stands_for(plain.name):
                raise ConfigError(
                    f"topic {plain.name!r} matches the pattern {wide.pattern.pattern!r} of {wide.name!r}, so its "
                    f"records would come by that, too: let it leave them out (begin it with "
                    f"(?!{re.escape(plain.name)}$))"
                )

    def sink(self, name: str, type_: type[T], *, key: Getter[T] = None, codec: CodecName = "json") -> Sink[T]:
        """An output that is no topic (a file, a database table, …), bound when the worker starts."""
        self._new_name(name, "a sink")
        sink = Sink(name, type_, key=key, codec=codec)
        self.sinks[name] = sink
        return sink

    @overload
    def table(
        self, name: str, key: type[K], value: type[V], *, window: None = None, **options: Unpack[TableOptions[V]]
    ) -> Table[K, V]: ...
    @overload
    def table(
        self,
        name: str,
        key: type[K],
        value: type[V],
        *,
        window: Tumbling | Count | Global,
        **options: Unpack[WindowOptions[V]],
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
        **options: Unpack[WindowOptions[V]],
    ) -> WindowedTable[K, V]: ...
    @overload
    def table(
        self,
        name: str,
        key: type[K],
        value: type[V],
        *,
        window: Sliding | Cumulative,
        **options: Unpack[WindowOptions[V]],
    ) -> OverlappingTable[K, V]: ...
    @overload
    def table(
        self,
        name: str,
        *,
        of: Events[A],
        by: str | Callable[[A], By],
        window: None = None,
        ttl: int | None = None,
        **aggregates: Aggregate,
    ) -> Table[By, Any]: ...
    @overload
    def table(
        self,
        name: str,
        *,
        of: Events[A],
        by: str | Callable[[A], By],
        window: Tumbling | Count | Global | Session,
        ttl: int | None = None,
        allowed_lateness: int = 0,
        early: int | None = None,
        close_after_idle: int | None = None,
        **aggregates: Aggregate,
    ) -> WindowedTable[By, Any]: ...
    @overload
    def table(
        self,
        name: str,
        *,
        of: Events[A],
        by: str | Callable[[A], By],
        window: Sliding | Cumulative,
        ttl: int | None = None,
        allowed_lateness: int = 0,
        early: int | None = None,
        close_after_idle: int | None = None,
        **aggregates: Aggregate,
    ) -> OverlappingTable[By, Any]: ...
    def table(  # type: ignore[misc]  # an aggregate named like an option of other tables: told at run time
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
        late: Literal["drop", "deliver"] = "drop",
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
        self._new_name(name, "a table")
        where = f"table {name!r}"
        if of is None:
            if key is None or value is None:
                raise ConfigError(f"{where}: give it a key type and a value type, or of= and aggregates")
            _check_types(where, key, value, default)
        elif key is not None or value is not None or default is not None or merge is not None or broadcast or local:
            raise ConfigError(
                f"{where}: with of= types, default and merge follow from the aggregates, and the keys are partitioned"
            )
        elif not isinstance(of, Events):
            raise ConfigError(f"{where}: of={of!r} is no stream")
        if window is not None and not isinstance(window, Window):
            raise ConfigError(f"{where}: window={window!r} is no window: use Tumbling(…), Sliding(…), Session(…), …")
        if type(version) is not int or version < 1:
            raise ConfigError(f"{where}: version={version!r}: give a whole number from 1 on")
        _check_whole(where, ttl=ttl, allowed_lateness=allowed_lateness, early=early, close_after_idle=close_after_idle)
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
        if window is not None and isinstance(table, WindowedTable | OverlappingTable):
            table.set_window(window, allowed_lateness, early, late, merge, close_after_idle)
        elif allowed_lateness or early or merge or late != "drop" or close_after_idle:
            raise ConfigError(f"{where}: allowed_lateness, early, late, merge and close_after_idle need a window")
        compiled = compiled_of(table)
        if compiled is not None:
            table.set_types(compiled.key_type, compiled.result_type)
        table.belong_to(self)
        self.tables[name] = table
        return table

    def timers(self, name: str, key: type[K], *, clock: Literal["event", "wall"] = "event") -> Timers[K]:
        """Timers by key, which agents set while they handle events, and a stream of those that have come.

        `silence.set(key, at)`, `silence.cancel(key)`, `silence.get(key)`; see `Timers`. Raises ConfigError.
        """
        self._new_name(name, "timers")
        _check_types(f"timers {name!r}", key, int, None)
        _check_clock(f"timers {name!r}", clock)
        timers: Timers[K] = Timers(name, key, clock)
        timers.belong_to(self)
        self.tables[name] = timers
        return timers

    def timer(
        self, period: int, /, *, clock: Literal["wall", "event"] = "wall", **options: Unpack[AgentOptions[Out]]
    ) -> OnEach[Tick, Out]:
        """An agent that is called every `period` (ms), at whole multiples of it since the epoch.

        `def f(tick: Tick)` or `async def f(tick: Tick)`; a result goes to the sinks. The keywords are those of
        `agent`; tables are seen at the time when it was due. With tables it runs in each of their tasks, which see
        their own keys; without, in one task of its own. `clock="event"`: by the watermark, and none is left out. By the
        clock, of those that were missed while the app was down or busy only the latest comes. In a bounded run both go
        by event time, from the first event of the run to the last. Raises ConfigError.
        """
        return self._periodic(Every(period), clock, "timer", options)

    def crontab(
        self,
        expression: str,
        /,
        *,
        timezone: str = "UTC",
        clock: Literal["wall", "event"] = "wall",
        **options: Unpack[AgentOptions[Out]],
    ) -> OnEach[Tick, Out]:
        """An agent that is called as a crontab says, `"*/5 * * * *"`, by the clocks of a time zone; else as `timer`.

        The five fields are minute, hour, day of month, month and day of week. A time that the clocks skip in spring is
        skipped, one that they show twice in autumn counts the first time only.
        """
        return self._periodic(Crontab(expression, timezone), clock, "crontab", options)

    def _periodic(self, schedule: Schedule, clock: Any, how: str, options: Any) -> Callable[[Any], Any]:
        _check_clock(f"@app.{how}", clock)
        tables, reads, sinks = (options.get(option, ()) for option in ("tables", "reads", "sinks"))

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            label = options.get("name") or str(getattr(function, "__name__", type(function).__name__))
            self._check_agent(label)
            ticks = Ticks(f"{label}.ticks", schedule, clock)
            self._new_name(ticks.name, "a periodic agent")
            ticks.belong_to(self)
            self.tables[ticks.name] = ticks
            try:
                added = self._register((ticks,), tables, reads, sinks, options.get("retry"), label, per_event=True)
            except ConfigError:
                del self.tables[ticks.name]
                raise
            return added(function)

        return register

    @overload
    def agent(self, s1: Events[A], /, **options: Unpack[AgentOptions[Out]]) -> OnStream[A, Out]: ...
    @overload
    def agent(self, s1: Events[A], s2: Events[B], /, **options: Unpack[AgentOptions[Out]]) -> OnStream[A | B, Out]: ...
    @overload
    def agent(
        self, s1: Events[A], s2: Events[B], s3: Events[C], /, **options: Unpack[AgentOptions[Out]]
    ) -> OnStream[A | B | C, Out]: ...
    @overload
    def agent(
        self, s1: Events[A], s2: Events[B], s3: Events[C], s4: Events[D], /, **options: Unpack[AgentOptions[Out]]
    ) -> OnStream[A | B | C | D, Out]: ...
    @overload
    def agent(
        self,
        s1: Events[Any],
        s2: Events[Any],
        s3: Events[Any],
        s4: Events[Any],
        s5: Events[Any],
        /,
        *more: Events[Any],
        **options: Unpack[AgentOptions[Out]],
    ) -> OnStream[Any, Out]: ...
    def agent(
        self,
        *sources: Events[Any],
        tables: Sequence[AnyTable[Any, Any]] = (),
        reads: Sequence[AnyTable[Any, Any]] = (),
        sinks: Sequence[Outlet[Any]] = (),
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
    def each(self, s1: Events[A], /, **options: Unpack[AgentOptions[Out]]) -> OnEach[A, Out]: ...
    @overload
    def each(self, s1: Events[A], s2: Events[B], /, **options: Unpack[AgentOptions[Out]]) -> OnEach[A | B, Out]: ...
    @overload
    def each(
        self, s1: Events[A], s2: Events[B], s3: Events[C], /, **options: Unpack[AgentOptions[Out]]
    ) -> OnEach[A | B | C, Out]: ...
    @overload
    def each(
        self, s1: Events[A], s2: Events[B], s3: Events[C], s4: Events[D], /, **options: Unpack[AgentOptions[Out]]
    ) -> OnEach[A | B | C | D, Out]: ...
    @overload
    def each(
        self,
        s1: Events[Any],
        s2: Events[Any],
        s3: Events[Any],
        s4: Events[Any],
        s5: Events[Any],
        /,
        *more: Events[Any],
        **options: Unpack[AgentOptions[Out]],
    ) -> OnEach[Any, Out]: ...
    def each(
        self,
        *sources: Events[Any],
        tables: Sequence[AnyTable[Any, Any]] = (),
        reads: Sequence[AnyTable[Any, Any]] = (),
        sinks: Sequence[Outlet[Any]] = (),
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
        tables: Sequence[AnyTable[Any, Any]],
        reads: Sequence[AnyTable[Any, Any]],
        sinks: Sequence[Outlet[Any]],
        retry: Retry | None,
        name: str | None,
        *,
        per_event: bool,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        how = "each" if per_event else "agent"
        for source in sources:
            if not isinstance(source, Events):
                raise ConfigError(
                    f"@app.{how}(…) takes what it reads, and {source!r} is no stream (sinks go in sinks=)"
                )
        for option, given, wanted in (
            ("tables", tables, AnyTable),
            ("reads", reads, AnyTable),
            ("sinks", sinks, Outlet),
        ):
            if not isinstance(given, list | tuple):
                raise ConfigError(f"@app.{how}: {option}= takes a list, not {given!r}")
            for what in given:
                if not isinstance(what, wanted):
                    raise ConfigError(f"@app.{how}: {option}=[{what!r}] is no {option.removesuffix('s')}")
                if option == "sinks" and isinstance(what, Topic) and what.pattern is not None:
                    raise ConfigError(f"@app.{how}: sinks=[{what!r}]: {no_place(what)}")
        self._check_own((*sources, *sinks))
        # Whoever is given timers may set them.
        given = [root for root in roots_of(sources) if isinstance(root, Timers) and root not in reads]

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            label = name or str(getattr(function, "__name__", type(function).__name__))
            self._check_agent(label)
            self.agents[label] = AgentSpec(
                label,
                function,
                tuple(dict.fromkeys(sources)),
                (*tables, *(timers for timers in given if timers not in tables)),
                tuple(reads),
                tuple(sinks),
                retry or self.retry,
                per_event,
            )
            return function

        return register

    def _check_agent(self, label: str) -> None:
        if label in self.agents:
            raise ConfigError(f"app {self.name!r} has an agent named {label!r} already: give this one name=")

    def _check_own(self, used: Iterable[Events[Any] | Outlet[Any]]) -> None:
        for what in used:
            if isinstance(what, Derived):
                own = self.derived.get(what.name) is what
            elif isinstance(what, TableEvents):
                own = self.tables.get(what.table.name) is what.table
            else:
                own = what in (self.topics.get(what.name), self.sinks.get(what.name), self.dead_letters)
            if not own:
                raise ConfigError(f"{what.name!r} is none of app {self.name!r}: make it with app.topic or app.sink")

    @overload
    def resource(self, function: Factory[T], /) -> Resource[T]: ...
    @overload
    def resource(self, /, *, reload_every: int | None = None) -> Callable[[Factory[T]], Resource[T]]: ...
    def resource(self, function: Any = None, /, *, reload_every: int | None = None) -> Any:
        """Something that each worker makes once: an async generator function that yields it, then cleans up.

        `@app.resource(reload_every=minutes(5))` makes a new one as often by the clock, while calls go on; if that
        fails the old one stays. See `Resource.reload`.
        """
        if function is None:
            return lambda function: self._resource(function, reload_every)
        return self._resource(function, reload_every)

    def _resource(self, function: Any, reload_every: int | None) -> Resource[Any]:
        name = getattr(function, "__name__", type(function).__name__)
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise ConfigError(f"resource {name!r}: use an async generator function that yields it once")
        factory: Any = asynccontextmanager(function) if inspect.isasyncgenfunction(function) else function
        resource: Resource[Any] = Resource(name, factory, reload_every)
        if name in self.resources:
            raise ConfigError(f"app {self.name!r} has a resource named {name!r} already")
        self.resources[name] = resource
        return resource

    def plan(self, *, rekey: bool = False) -> Plan:
        """How agents, tables and topics make up tasks. Raises ConfigError with all problems at once.

        With `rekey`, for workers: a `group_by` that changes the key sends events through an internal topic, named
        APP.STREAM. Without, for one task that has all of every input: they pass.
        """
        agents, tables = list(self.agents.values()), list(self.tables.values())
        topics = (*self.topics, self.dead_letters.name)
        return make_plan(agents, tables, rekey=self.name if rekey else None, topics=topics)


def _check_whole(where: str, **durations: object) -> None:
    for option, ms in durations.items():
        if ms is not None and type(ms) is not int:
            raise ConfigError(f"{where}: {option}={ms!r}: give whole ms (seconds(…), minutes(…))")


def _check_clock(where: str, clock: object) -> None:
    if clock not in ("event", "wall"):
        raise ConfigError(f"{where}: clock={clock!r}: use 'event' (the watermark) or 'wall' (the time of day)")


def _check_types(where: str, key: Any, value: Any, default: Any) -> None:
    """Raise ConfigError for types that no table can have."""
    problems: list[str] = []
    for option, type_, codec in (("key", key, KeyCodec), ("value", value, partial(Codec, "msgpack"))):
        try:
            codec(type_)
        except (ConfigError, TypeError) as error:
            problems.append(f"{where}: {option} type: {error}")
    plain = typing.get_origin(key) or key
    mutable = isinstance(plain, type) and issubclass(plain, msgspec.Struct) and not plain.__struct_config__.frozen
    if mutable or getattr(plain, "__hash__", None) is None:
        problems.append(
            f"{where}: {type_name(key)} is no key type: keys must be hashable (a Record with frozen=True is)"
        )
    plain = float | int if value is float else value
    if default is not None and not callable(default) and isinstance(value, type) and not isinstance(default, plain):
        problems.append(f"{where}: default={default!r} is no {type_name(value)}")
    if problems:
        raise ConfigError(*problems)
