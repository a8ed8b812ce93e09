"""What the decorators note down about an agent, and what can be told of it before anything starts."""

import inspect
import types
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flowkit.agent.stream import Stream
from flowkit.agent.topic import Outlet
from flowkit.errors import ConfigError
from flowkit.record import Closed, Events
from flowkit.table import AnyTable


@dataclass(frozen=True)
class Retry:
    """How often an event that makes an agent raise is tried before it goes to the dead letters.

    `attempts` counts all runs (1: no retry). The n-th retry waits `backoff * 2**(n-1)` ms, at most `max_backoff`.
    Only `errors` are retried; anything else goes to the dead letters at once.
    """

    attempts: int = 1
    backoff: int = 100
    max_backoff: int = 30_000
    errors: tuple[type[Exception], ...] = (Exception,)

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.backoff < 0:
            raise ConfigError("Retry: attempts must be at least 1 and backoff >= 0 ms")

    def wait(self, attempt: int, error: Exception) -> int | None:
        """How long (ms) to wait before another try after the `attempt`-th failed, or None: give up."""
        if attempt >= self.attempts or not isinstance(error, self.errors):
            return None
        return min(int(self.backoff * 2 ** (attempt - 1)), self.max_backoff)


@dataclass(eq=False)
class AgentSpec:
    """One agent as declared. `per_event` is True for `@app.each`."""

    name: str
    function: Callable[..., Any]
    sources: tuple[Events[Any], ...]
    tables: tuple[AnyTable[Any, Any], ...]
    reads: tuple[AnyTable[Any, Any], ...]
    sinks: tuple[Outlet[Any], ...]
    retry: Retry
    per_event: bool
    emits: bool = field(init=False)

    def __post_init__(self) -> None:
        self.emits = False if self.per_event else inspect.isasyncgenfunction(self.function)

    def problems(self) -> Iterator[str]:
        """What is wrong with it, in words."""
        where = f"agent {self.name!r}"
        if not self.sources:
            yield f"{where}: reads nothing: give it a source"
        if not self.per_event and not self.emits and not inspect.iscoroutinefunction(self.function):
            yield f"{where}: must be 'async def' (an async generator if it emits)"
        if self.per_event and (inspect.isasyncgenfunction(self.function) or inspect.isgeneratorfunction(self.function)):
            yield f"{where}: @app.each takes one event and returns a result; to yield, use @app.agent"
        if self.emits and not self.sinks:
            yield f"{where}: yields, but declares no sinks="
        for table in self.tables:
            if table.source is not None:
                yield f"{where}: table {table.name!r} counts {table.source.name!r} by itself; name it in reads="
        for table in self.tables:
            if table in self.reads:
                yield f"{where}: table {table.name!r} is both in tables= and in reads="
        for table in undeclared_tables(self.function, (*self.tables, *self.reads)):
            yield f"{where}: uses table {table.name!r} without declaring it: name it in tables= or reads="
        yield from self._type_problems(where)

    def _type_problems(self, where: str) -> Iterator[str]:
        try:
            hints = typing.get_type_hints(self.function)
        except (NameError, TypeError, AttributeError):
            return  # annotations that only a type checker can resolve are its matter
        parameters = list(inspect.signature(self.function).parameters)
        taken = hints.get(parameters[0]) if parameters else None
        if not parameters:
            yield f"{where}: takes no argument; it needs one, the {'event' if self.per_event else 'stream'}"
        if taken is not None:
            expected = taken
            if not self.per_event and typing.get_origin(taken) is Stream:
                (expected,) = typing.get_args(taken)
            for source in self.sources:
                if not _accepts(expected, source.type):
                    yield f"{where}: takes {_name(expected)}, but {source.name!r} sends {_name(source.type)}"
        result = hints.get("return")
        if typing.get_origin(result) in (AsyncIterator, AsyncGenerator):
            result = typing.get_args(result)[0]
        elif not self.per_event:
            return
        if result is None or result is type(None):
            return
        for arm in _arms(result):
            if arm is type(None):
                continue
            if not self.sinks:
                yield f"{where}: gives {_name(arm)}, but declares no sinks="
            elif not any(_accepts(sink.element, arm) for sink in self.sinks):
                yield f"{where}: gives {_name(arm)}, which none of its sinks takes ({_takes(self.sinks)})"


def _takes(sinks: Iterable[Outlet[Any]]) -> str:
    return ", ".join(f"{sink.name!r} takes {_name(sink.element)}" for sink in sinks)


def _name(type_: Any) -> str:
    return getattr(type_, "__name__", None) if isinstance(type_, type) else str(type_)  # type: ignore[return-value]


def _arms(type_: Any) -> tuple[Any, ...]:
    return typing.get_args(type_) if typing.get_origin(type_) in (typing.Union, types.UnionType) else (type_,)


def _accepts(wanted: Any, given: Any) -> bool:
    """True unless a value of type `given` surely is no `wanted`. Type checkers do the fine work."""
    if wanted is Any or given is Any or isinstance(wanted, typing.TypeVar) or wanted is object:
        return True
    if any(arm is Any for arm in _arms(wanted)):
        return True
    given_arms = _arms(given)
    if len(given_arms) > 1:
        return all(_accepts(wanted, arm) for arm in given_arms)
    for arm in _arms(wanted):
        outer, inner = typing.get_origin(arm) or arm, typing.get_origin(given) or given
        if typing.is_typeddict(outer):
            outer = outer if outer is inner else dict
        if typing.is_typeddict(inner) and outer is not inner:
            inner = dict
        if outer is inner and outer is Closed:
            pairs = zip(typing.get_args(arm), typing.get_args(given), strict=False)
            if all(_accepts(w, g) for w, g in pairs):
                return True
        elif isinstance(outer, type) and isinstance(inner, type):
            if issubclass(inner, outer) or (outer is float and inner is int):
                return True
        elif outer == inner:
            return True
        elif not isinstance(outer, type) or not isinstance(inner, type):
            return True
    return False


def undeclared_tables(
    function: Callable[..., Any], declared: Iterable[AnyTable[Any, Any]]
) -> Iterator[AnyTable[Any, Any]]:
    """Tables that the function's own code names but that are not in `declared`."""
    known = set(map(id, declared))
    closure = inspect.getclosurevars(function) if isinstance(function, types.FunctionType) else None
    if closure is None:
        return
    names = set(_names(function.__code__))
    spaces = (closure.nonlocals, {name: function.__globals__.get(name) for name in names})
    for space in spaces:
        for value in space.values():
            if isinstance(value, AnyTable) and id(value) not in known:
                known.add(id(value))
                yield value


def _names(code: types.CodeType) -> Iterator[str]:
    """Global names read by the code: those that LOAD_GLOBAL takes, not attributes of the same name."""
    import dis

    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
