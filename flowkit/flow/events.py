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
from typing import Any, Generic, Literal, Protocol, TypedDict, TypeVar, Unpack, overload

from flowkit.codec import has_field, type_name
from flowkit.errors import ConfigError
from flowkit.flow.calls import CallSpec, check_calls
from flowkit.flow.enriching import enricher
from flowkit.flow.retry import Retry
from flowkit.lookup import Cache, result_type
from flowkit.record import Enriched

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")

By = str | Callable[[Any], Any]
"""A field's name, or a function of the event."""


class Owner(Protocol):
    """The app that a stream belongs to: it keeps the names apart, and makes what has state."""

    name: str

    def add_stream(self, stream: "Derived[Any]") -> None:
        """Take note of a derived stream. Raises ConfigError for a name that is taken."""

    def free_name(self, wanted: str) -> str:
        """`wanted`, or with the first number behind it that makes it free."""


class EnrichOptions(TypedDict, total=False):
    """Keywords of `Events.enrich`, told there."""

    cache: Cache | None
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

    def group_by(self, key: str | Callable[[T_co], K], *, name: str | None = None) -> "Keyed[K, T_co]":
        """The same events, brought together by `key` (a field, or a function of the event).

        Where the key is not that of the topic, they go through a topic of flowkit's own, so that all events of a key
        reach one task; where it is the same, they stay. Events of which the key is None are dead letters.
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
        bounded run), when a window waits for it, or at the end of the input. One that fails is tried as `retry` says,
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
        cache: Cache | None = None,
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
        where, owner = f"{self.name!r}.enrich", self._owner("enrich")
        check_by(where, key, self.type)
        if how not in ("left", "inner"):
            raise ConfigError(f"{where}: how={how!r}: give 'left' or 'inner'")
        if cache is not None and not isinstance(cache, Cache):
            raise ConfigError(f"{where}: cache={cache!r}: give a flowkit.Cache(…)")
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
