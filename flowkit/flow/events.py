"""Streams as a user names them, and what can be made of them: `payments.filter(…).map(…)`, written at module level.

Nothing here runs anything. Each operator gives a new stream that knows what it is made of; `flowkit.flow.paths` follows
it back to where its events come from.

    topic ── filter ── map ──┬── agent
    table.closed ── flat_map ┘
"""

import inspect
import typing
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypedDict, TypeVar, Unpack, overload

from flowkit.codec import has_field, type_name
from flowkit.errors import ConfigError
from flowkit.flow.calls import CallSpec, check_calls
from flowkit.flow.keeping import (
    By,
    Keeping,
    as_of_join,
    interval_join,
    pattern_match,
    versions_join,
    window_join,
)
from flowkit.flow.retry import Retry
from flowkit.record import Change, Closed, Enriched, Joined
from flowkit.window import Window

if TYPE_CHECKING:
    from flowkit.lookup import Cache
    from flowkit.pattern import AfterMatch, Match, Pattern, TimedOut

T_co = TypeVar("T_co", covariant=True)
U_co = TypeVar("U_co", covariant=True)
T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
V = TypeVar("V")


class Owner(Protocol):
    """The app that a stream belongs to: it keeps the names apart, and makes what has state."""

    name: str

    def add_stream(self, stream: "Derived[Any]") -> None:
        """Take note of a derived stream. Raises ConfigError for a name that is taken."""

    def free_name(self, wanted: str) -> str:
        """`wanted`, or with the first number behind it that makes it free."""

    def table(self, name: str, *, of: "Events[Any]", by: Any, window: Any, **options: Any) -> Any:
        """A table that counts by itself."""

    def keep(self, operator: Keeping) -> Any:
        """The main stream of an operator that keeps something. Raises ConfigError."""


class Windows(Protocol[K, V]):
    """What the windows of a declared table send: itself a table, to be named in `reads=` or seen by its name."""

    name: str
    closed: "Events[Closed[K, V]]"
    changes: "Events[Change[K, V]]"
    late: "Events[Any]"


class EnrichOptions(TypedDict, total=False):
    """Keywords of `Events.enrich`, told there."""

    cache: "Cache | None"
    concurrency: int
    timeout: int | None
    ordered: bool
    retry: Retry | None
    type: Any
    name: str | None


@dataclass(frozen=True)
class Step:
    """What one operator does to each event."""

    kind: Literal["filter", "map", "flat_map", "pass"]
    function: Callable[[Any], Any]
    name: str


class Events(Generic[T_co]):
    """Anything that an agent can subscribe to: a topic, what a table sends (closed windows, changes, late records), or
    what operators make of them.

    `name` is unique in the app; `type` is the type of one event. Operators are used at module level, like everything
    that is declared. Their functions are pure: they are called once for each event, and again when it is tried again.
    A function that raises sends the event to the dead letters of whoever reads the stream.
    """

    def __init__(self, name: str, type_: Any, owner: Owner | None = None) -> None:
        self.name = name
        self.type = type_
        self.owner = owner

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def filter(self, keep: Callable[[T_co], object], *, name: str | None = None) -> "Events[T_co]":
        """The events for which `keep(event)` is true."""
        step = self._step("filter", keep, name)
        return Derived(step.name, self.type, self._owner("filter"), (self,), step)

    def map(self, function: Callable[[T_co], U], *, type: Any = None, name: str | None = None) -> "Events[U]":
        """What `function(event)` makes of each event.

        The new type is what the function is annotated to return, or `type`: give one wherever events are kept (in a
        join, a batch, another partition).
        """
        step = self._step("map", function, name)
        made = _returned(function) if type is None else type
        return Derived(step.name, made, self._owner("map"), (self,), step)

    def flat_map(
        self, function: Callable[[T_co], Iterable[U]], *, type: Any = None, name: str | None = None
    ) -> "Events[U]":
        """All that `function(event)` gives (a list, or a generator), one after the other, at the event's time.

        They are one unit: if one of them cannot be handled, none has been.
        """
        step = self._step("flat_map", function, name)
        made = _element(_returned(function)) if type is None else type
        return Derived(step.name, made, self._owner("flat_map"), (self,), step)

    def merge(self, *others: "Events[U]", name: str | None = None) -> "Events[T_co | U]":
        """The events of this stream and of the others, in the order of the task."""
        owner = self._owner("merge")
        parents = (self, *others)
        for other in others:
            if not isinstance(other, Events):
                raise ConfigError(f"{self.name!r}.merge({other!r}): that is no stream")
            if other.owner is not owner:
                raise ConfigError(f"{self.name!r}.merge: {other.name!r} belongs to another app")
        types = tuple(dict.fromkeys(parent.type for parent in parents))
        made: Any = typing.Union[types] if Any not in types else Any  # noqa: UP007  of types known at run time
        label = name or owner.free_name(f"{self.name}.merge")
        return Derived(label, made, owner, parents, Step("pass", _same, label))

    @overload
    def group_by(self, key: str, *, name: str | None = None) -> "Keyed[Any, T_co]": ...
    @overload
    def group_by(self, key: Callable[[T_co], K], *, name: str | None = None) -> "Keyed[K, T_co]": ...
    def group_by(self, key: Any, *, name: str | None = None) -> "Keyed[Any, T_co]":
        """The same events, brought together by `key` (a field, or a function of the event).

        Where the key is not that of the topic, workers send them through a topic of flowkit's own, named APP.STREAM, so
        that all events of a key reach one task; `name` is the stream's. Nobody else may write there. Where the key is
        the same and nothing but filters lies between, they stay, and in a bounded run, which is one task. Events of
        which the key is None are dead letters.
        """
        owner = self._owner("group_by")
        check_by(f"{self.name!r}.group_by", key, self.type)
        label = name or owner.free_name(f"{self.name}.by-{_label(key)}")
        return Keyed(label, self.type, owner, (self,), Step("pass", _same, label), key)

    key_by = group_by

    def map_async(
        self,
        function: Callable[[T_co], Awaitable[U]],
        *,
        concurrency: int = 64,
        timeout: int | None = None,
        ordered: bool = True,
        retry: Retry | None = None,
        type: Any = None,
        name: str | None = None,
    ) -> "Events[U]":
        """What `await function(event)` gives for each event, at the event's time: for models and services.

        At most `concurrency` calls are under way, and the task takes no further input until there is room. Results
        come in the order of their events, or with `ordered=False` as they are ready; in a bounded run they are ordered
        always, so that it stays a pure function of its inputs. The watermark stays behind the events that are under
        way. A commit saves those; after a crash they are called again: a call is made at least once, its result counts
        once. `timeout` (ms) bounds one try and counts as an error. After the tries that `retry` names (else the app's)
        the event goes to the dead letters. The result's type is what the function is annotated to give, or `type`;
        give one wherever results are kept. Raises ConfigError for what cannot be right.
        """
        spec = CallSpec(lambda _now: function, function, concurrency, timeout, ordered, retry)
        made = _awaited(_returned(function)) if type is None else type
        return self._called("map_async", function, spec, made, name)

    def map_async_batches(
        self,
        function: Callable[[list[T_co]], Awaitable[Sequence[U]]],
        *,
        size: int = 64,
        within: int | None = None,
        concurrency: int = 4,
        timeout: int | None = None,
        ordered: bool = True,
        retry: Retry | None = None,
        type: Any = None,
        name: str | None = None,
    ) -> "Events[U]":
        """As `map_async`, with calls for lists of up to `size` events: `function` gives as many results, in order.

        A list is complete when it is full, once its first event is `within` ms old by the clock (by event time in a
        bounded run; where results are sent on by another key, 1 s if no other time is given), when a window waits for
        it, or at the end of the input. One that fails is tried as `retry` says,
        then in halves, down to the single events that make it fail: only those go to the dead letters.
        """
        spec = CallSpec(lambda _now: function, function, concurrency, timeout, ordered, retry, size, within)
        made = _element(_awaited(_returned(function))) if type is None else type
        return self._called("map_async_batches", function, spec, made, name)

    @overload
    def enrich(
        self,
        lookup: Callable[[Any], Awaitable[U | None]],
        *,
        key: str | Callable[[T_co], Any],
        how: Literal["left"] = "left",
        **options: Unpack[EnrichOptions],
    ) -> "Events[Enriched[T_co, U | None]]": ...
    @overload
    def enrich(
        self,
        lookup: Callable[[Any], Awaitable[U | None]],
        *,
        key: str | Callable[[T_co], Any],
        how: Literal["inner"],
        **options: Unpack[EnrichOptions],
    ) -> "Events[Enriched[T_co, U]]": ...
    def enrich(
        self,
        lookup: Any,
        *,
        key: Any,
        how: Literal["left", "inner"] = "left",
        cache: "Cache | None" = None,
        concurrency: int = 64,
        timeout: int | None = None,
        ordered: bool = True,
        retry: Retry | None = None,
        type: Any = None,
        name: str | None = None,
    ) -> Any:
        """Each event with what `await lookup(key)` finds for it, as `Enriched(event, found)`.

        `lookup` is an async function, or one of `flowkit.lookup`; `key` a field, or a function of the event; nothing is
        looked up for None. `how`: "left" also gives the events for which nothing is found (None), "inner" does not.
        `type` is that of what is found, if the lookup does not tell. The rest is as with `map_async`. With a cache,
        several events that want the same key make one call.
        """
        # Here, so that an app without lookups does not wait for them.
        from flowkit.flow.enriching import enricher
        from flowkit.lookup import Cache, result_type

        where, owner = f"{self.name!r}.enrich", self._owner("enrich")
        check_by(where, key, self.type)
        if how not in ("left", "inner"):
            raise ConfigError(f"{where}: how={how!r}: give 'left' or 'inner'")
        if cache is not None and not isinstance(cache, Cache):
            raise ConfigError(f"{where}: cache={cache!r}: give a flowkit.lookup.Cache(…)")
        begin = enricher(lookup, cache, key, self.type)
        spec = CallSpec(begin, lookup, concurrency, timeout, ordered, retry)
        found = result_type(lookup) if type is None else type
        label = name or owner.free_name(f"{self.name}.enrich")
        if how == "left":
            return self._called("enrich", lookup, spec, _enriched(self.type, found, how="left"), label)
        every = self._called("enrich", lookup, spec, _enriched(self.type, found, how="left"), f"{label}.all")
        only: Events[Any] = every.filter(_is_found, name=label)
        only.type = _enriched(self.type, found, how="inner")
        return only

    def _called(self, operator: str, function: Any, spec: CallSpec, type_: Any, name: str | None) -> "Called[Any]":
        owner = self._owner(operator)
        check_calls(f"{self.name!r}.{operator}", function, spec)
        label = name or owner.free_name(f"{self.name}.{operator}")
        return Called(label, type_, owner, (self,), Step("pass", _same, label), spec)

    def window(
        self,
        window: Window,
        *,
        name: str | None = None,
        allowed_lateness: int = 0,
        early: int | None = None,
        close_after_idle: int | None = None,
    ) -> "Windowing":
        """Windows of the events of each key, to be followed by `.aggregate(n=Count(), …)`.

        The key is that of `group_by`, or of the topic. The keywords are those of `app.table`.
        """
        owner = self._owner("window")
        by = key_of(self)
        if by is None:
            raise ConfigError(
                f"{self.name!r}.window: by which key? Say .group_by(…) before it, or give the topic a key="
            )
        options = {"allowed_lateness": allowed_lateness, "early": early, "close_after_idle": close_after_idle}
        return Windowing(self, by, window, name or owner.free_name(f"{self.name}.windows"), options)

    @overload
    def join(
        self,
        other: "Events[U]",
        *,
        on: Any,
        within: int | tuple[int, int] | None = None,
        window: Window | None = None,
        how: Literal["inner"] = "inner",
        name: str | None = None,
    ) -> "Kept[Joined[T_co, U]]": ...
    @overload
    def join(
        self,
        other: "Events[U]",
        *,
        on: Any,
        within: int | tuple[int, int] | None = None,
        window: Window | None = None,
        how: Literal["left"],
        name: str | None = None,
    ) -> "Kept[Joined[T_co, U | None]]": ...
    @overload
    def join(
        self,
        other: "Events[U]",
        *,
        on: Any,
        within: int | tuple[int, int] | None = None,
        window: Window | None = None,
        how: Literal["right"],
        name: str | None = None,
    ) -> "Kept[Joined[T_co | None, U]]": ...
    @overload
    def join(
        self,
        other: "Events[U]",
        *,
        on: Any,
        within: int | tuple[int, int] | None = None,
        window: Window | None = None,
        how: Literal["outer"],
        name: str | None = None,
    ) -> "Kept[Joined[T_co | None, U | None]]": ...
    def join(
        self,
        other: "Events[Any]",
        *,
        on: Any,
        within: int | tuple[int, int] | None = None,
        window: Window | None = None,
        how: Literal["inner", "left", "right", "outer"] = "inner",
        name: str | None = None,
    ) -> Any:
        """Pairs of this stream's events and the other's that have the same key and lie near each other in time.

        `on` is the key: a field of both, or a pair (left, right) of fields or functions. Near is either `within`
        (earliest, latest): how many ms after the left event the right one comes, both bounds counted, negative for
        before (a single number: from 0 to that); or `window`: in the same window.

        `how` says whose events are sent also without a partner, once it is certain that none comes: those of neither
        side, of the left, of the right, or of both. Pairs within an interval are sent at the later of their two times,
        as soon as both are there; single events at the time when it is certain; those of windows at the window's end.

        State is bounded by the watermark. An event that comes after the watermark has passed it (a window join: its
        window) goes to `.late`.
        """
        owner, label = self._kept("join", other, name)
        if (within is None) == (window is None):
            raise ConfigError(
                f"{label}: say how near two events must be: within=(earliest, latest) ms from the left one, or window="
            )
        if window is not None:
            return owner.keep(window_join(label, self, other, on, window, how))
        assert within is not None
        return owner.keep(interval_join(label, self, other, on, within, how))

    @overload
    def join_as_of(
        self,
        other: "Events[U]",
        *,
        on: Any,
        how: Literal["inner"] = "inner",
        tolerance: int | None = None,
        keep_for: int | None = None,
        name: str | None = None,
    ) -> "Kept[Joined[T_co, U]]": ...
    @overload
    def join_as_of(
        self,
        other: "Events[U]",
        *,
        on: Any,
        how: Literal["left"],
        tolerance: int | None = None,
        keep_for: int | None = None,
        name: str | None = None,
    ) -> "Kept[Joined[T_co, U | None]]": ...
    def join_as_of(
        self,
        other: "Events[Any]",
        *,
        on: Any,
        how: Literal["inner", "left"] = "inner",
        tolerance: int | None = None,
        keep_for: int | None = None,
        name: str | None = None,
    ) -> Any:
        """Each event with the latest of the other stream's that has the same key and came no later: the rate that was
        valid then, the last known position.

        An event waits for the watermark to reach its time, so that what was late on the other side counts. `tolerance`
        (ms): how old the other one may be. `keep_for` (ms): without a tolerance, keys that were not updated for so long
        are forgotten; with neither, the newest event of each key is kept for ever. `how="left"` sends also events for
        which there is none.
        """
        owner, label = self._kept("join_as_of", other, name)
        return owner.keep(as_of_join(label, self, other, on, how, tolerance, keep_for))

    @overload
    def join_table(
        self,
        table: "Versions[V]",
        *,
        on: By,
        how: Literal["inner"] = "inner",
        keep_for: int | None = None,
        name: str | None = None,
    ) -> "Kept[Joined[T_co, V]]": ...
    @overload
    def join_table(
        self,
        table: "Versions[V]",
        *,
        on: By,
        how: Literal["left"],
        keep_for: int | None = None,
        name: str | None = None,
    ) -> "Kept[Joined[T_co, V | None]]": ...
    def join_table(
        self,
        table: Any,
        *,
        on: By,
        how: Literal["inner", "left"] = "inner",
        keep_for: int | None = None,
        name: str | None = None,
    ) -> Any:
        """Each event with the value that the table had for its key at the event's time, not with today's.

        `on` is the event's field (or a function) that is the table's key. The table has no windows; what its writer
        deletes is gone from then on. Versions are kept until the watermark has passed them, the newest for ever, unless
        `keep_for` (ms) says for how long without an update.
        """
        changes = getattr(table, "changes", None)
        if not isinstance(changes, Events) or getattr(table, "windowing", None) is not None:
            raise ConfigError(f"{self.name!r}.join_table({table!r}): give a table without windows; for streams: join")
        owner, label = self._kept("join_table", changes, name)
        return owner.keep(versions_join(label, self, changes, on, how, keep_for))

    def match(
        self,
        pattern: "Pattern[T_co]",
        *,
        by: By | None = None,
        after: "AfterMatch | None" = None,
        name: str | None = None,
    ) -> "Matches[Match[Any, T_co], TimedOut[Any, T_co]]":
        """Where `pattern` is found in the events of each key, in the order of their times. See `flowkit.pattern`.

        `by` is the key (a field, or a function), else that of `group_by` or of the topic. `after` says where to go on
        after a match. An event that comes after the watermark has passed its time goes to `.late`.
        """
        owner, label = self._kept("match", self, name)
        key = by if by is not None else key_of(self)
        if key is None:
            raise ConfigError(f"{label}: by which key? Say by=, .group_by(…) before it, or give the topic a key=")
        matches: Matches[Match[Any, T_co], TimedOut[Any, T_co]]
        matches = owner.keep(pattern_match(label, self, pattern, key, after))
        return matches

    def _kept(self, operator: str, other: "Events[Any]", name: str | None) -> tuple[Owner, str]:
        owner = self._owner(operator)
        if not isinstance(other, Events):
            raise ConfigError(f"{self.name!r}.{operator}({other!r}): that is no stream")
        if other.owner is not owner:
            raise ConfigError(f"{self.name!r}.{operator}: {other.name!r} belongs to another app")
        return owner, name or owner.free_name(f"{self.name}.{operator.replace('_', '-')}")

    def _owner(self, operator: str) -> Owner:
        if self.owner is None:
            raise ConfigError(f"{self.name!r}.{operator}: this stream belongs to no app: make it with app.topic")
        return self.owner

    def _step(self, kind: Literal["filter", "map", "flat_map"], function: Any, name: str | None) -> Step:
        if not callable(function):
            raise ConfigError(f"{self.name!r}.{kind}({function!r}): give a function of one event")
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigError(
                f"{self.name!r}.{kind}: {_label(function)} is an async function: use map_async, or an agent"
            )
        return Step(kind, function, name or self._owner(kind).free_name(f"{self.name}.{kind}"))


class Derived(Events[T_co]):
    """A stream that operators make of others."""

    def __init__(self, name: str, type_: Any, owner: Owner, parents: tuple[Events[Any], ...], step: Step) -> None:
        super().__init__(name, type_, owner)
        self.parents, self.step = parents, step
        owner.add_stream(self)


class Keyed(Derived[T_co], Generic[K, T_co]):
    """A stream brought together by a key."""

    def __init__(
        self,
        name: str,
        type_: Any,
        owner: Owner,
        parents: tuple[Events[Any], ...],
        step: Step,
        key: By,
    ) -> None:
        super().__init__(name, type_, owner, parents, step)
        self.key = key


class Called(Derived[T_co]):
    """The results of calls of an async function. Its events come from there, not from what it is made of."""

    def __init__(
        self, name: str, type_: Any, owner: Owner, parents: tuple[Events[Any], ...], step: Step, spec: CallSpec
    ) -> None:
        super().__init__(name, type_, owner, parents, step)
        self.spec = spec


class Kept(Events[T_co]):
    """What an operator sends that keeps something by key. `late` are the events that came too late for it."""

    late: Events[Any]


class Matches(Kept[T_co], Generic[T_co, U_co]):
    """Where a pattern was found. `timed_out` are partial matches that ran out of the pattern's `within`."""

    timed_out: Events[U_co]


class Versions(Protocol[V]):
    """A table, as far as its values at any time go."""

    @property
    def changes(self) -> Events[Change[Any, V]]: ...


class Windowing:
    """A stream cut into windows by key, before it is said what is to be known of each."""

    def __init__(self, stream: Events[Any], by: By, window: Window, name: str, options: dict[str, Any]) -> None:
        self.stream, self.by, self.window, self.name, self.options = stream, by, window, name, options

    def aggregate(self, **aggregates: Any) -> Windows[Any, Any]:
        """A table of the windows, each with one field for every aggregate: `.aggregate(n=Count(), sum=Sum("amount"))`.

        Take its `closed` windows as a stream. It is the same as `app.table(…, of=stream, by=…, window=…, n=Count())`.
        """
        assert self.stream.owner is not None
        made: Windows[Any, Any] = self.stream.owner.table(
            self.name, of=self.stream, by=self.by, window=self.window, **self.options, **aggregates
        )
        return made


def key_of(stream: Events[Any]) -> By | None:
    """The key by which the events of a stream are together, as far as operators have left them as they were."""
    while isinstance(stream, Derived) and not isinstance(stream, Keyed):
        if isinstance(stream, Called) or stream.step.kind not in ("filter", "pass") or len(stream.parents) > 1:
            return None
        (stream,) = stream.parents
    key: By | None = getattr(stream, "key", None)
    return key


def check_by(where: str, by: object, type_: Any) -> None:
    """Raise ConfigError unless `by` is a field of `type_`, or a function."""
    if callable(by):
        return
    if not isinstance(by, str):
        raise ConfigError(f"{where}({by!r}): give the name of a field, or a function of the event")
    if not has_field(type_, by):
        raise ConfigError(f"{where}({by!r}): that is no field of {type_name(type_)}")


def _same(event: T) -> T:
    return event


def _is_found(event: Enriched[Any, Any]) -> bool:
    return event.found is not None


def _enriched(event: Any, found: Any, *, how: str) -> Any:
    """The type of an event with what was found for it, made at run time."""
    generic: Any = Enriched
    return generic[event, found if how == "inner" else typing.Optional[found]]  # noqa: UP045


def _label(what: Any) -> str:
    """A field's or function's name, as a part of a stream's."""
    name = what if isinstance(what, str) else getattr(what, "__name__", type(what).__name__)
    return "".join(c if c.isalnum() or c in "_-" else "" for c in name) or "function"


def _returned(function: Any) -> Any:
    """What a function is annotated to return, or Any."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # noqa: BLE001  a name that is only there for type checkers, or an object without hints
        return Any
    if inspect.isclass(function):
        return function
    return hints.get("return", Any)


def _awaited(type_: Any) -> Any:
    """The type of what awaiting a `type_` gives, where that is how a function is annotated."""
    origin = typing.get_origin(type_)
    if isinstance(origin, type) and issubclass(origin, Awaitable):
        return typing.get_args(type_)[-1]
    return type_


def _element(type_: Any) -> Any:
    """The type of what an iterable of `type_` gives, or Any."""
    arguments = typing.get_args(type_)
    origin = typing.get_origin(type_)
    if isinstance(origin, type) and issubclass(origin, Iterable) and arguments and not issubclass(origin, dict):
        return arguments[0]
    return Any
