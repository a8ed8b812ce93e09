"""What the decorators note down about an agent, and what can be told of it before anything starts."""

import dis
import inspect
import types
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
)
from dataclasses import dataclass, field
from typing import Any

from flowkit.agent.stream import Stream
from flowkit.agent.topic import Outlet
from flowkit.codec import arms_of, bare, class_of, type_name
from flowkit.flow import Events, Retry
from flowkit.table import AnyTable

STREAMS = (Stream, AsyncIterator, AsyncIterable)
GENERATORS = (AsyncGenerator, AsyncIterator, AsyncIterable)
NOTHING = (None, type(None), typing.Never, typing.NoReturn)


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
        if self.per_event and self._yields():
            yield f"{where}: @app.each takes one event and returns a result; to yield, use @app.agent"
        if self.emits and not self.sinks:
            yield f"{where}: yields, but declares no sinks="
        for table in self.tables:
            if table.source is not None:
                yield f"{where}: table {table.name!r} counts {table.source.name!r} by itself; name it in reads="
            if table in self.reads:
                yield f"{where}: table {table.name!r} is both in tables= and in reads="
        for table in undeclared_tables(self.function, (*self.tables, *self.reads)):
            yield f"{where}: uses table {table.name!r} without declaring it: name it in tables= or reads="
        yield from self._type_problems(where)

    def _type_problems(self, where: str) -> Iterator[str]:
        try:
            signature = inspect.signature(self.function)
        except (ValueError, TypeError):
            return  # something in C: it will be seen when it is called
        try:
            (parameter,) = signature.bind(None).arguments
        except (ValueError, TypeError):
            yield f"{where}: takes {signature}, but gets one argument, the {'event' if self.per_event else 'stream'}"
            return
        try:
            hints = typing.get_type_hints(self.function)
        except (NameError, TypeError, AttributeError):
            return  # annotations that only a type checker can resolve are its matter
        if parameter in hints:
            yield from self._source_problems(where, hints[parameter])
        if self.emits or (self.per_event and not self._yields()):
            yield from self._result_problems(where, hints.get("return"))
        elif not (self.per_event or self._yields()) and hints.get("return") not in (*NOTHING, Any):
            yield f"{where}: returns {type_name(hints['return'])} when its stream ends: yield it instead"

    def _yields(self) -> bool:
        return inspect.isasyncgenfunction(self.function) or inspect.isgeneratorfunction(self.function)

    def _result_problems(self, where: str, result: Any) -> Iterator[str]:
        for arm in arms_of(_given(result, GENERATORS if self.emits else ())):
            if arm in NOTHING or arm is Any:
                continue
            if not self.sinks:
                if not self.emits:  # told above
                    yield f"{where}: gives {type_name(arm)}, but declares no sinks="
            elif not any(accepts(sink.element, arm) for sink in self.sinks):
                takes = ", ".join(f"{sink.name!r} takes {type_name(sink.element)}" for sink in self.sinks)
                yield f"{where}: gives {type_name(arm)}, which none of its sinks takes ({takes})"

    def _source_problems(self, where: str, taken: Any) -> Iterator[str]:
        streams = class_of(taken) in STREAMS
        if self.per_event and streams:
            yield f"{where}: @app.each takes one event, not a stream; to iterate, use @app.agent"
            return
        if not self.per_event:
            if not streams:
                if taken not in (Any, object) and not isinstance(taken, typing.TypeVar):
                    yield f"{where}: takes {type_name(taken)}, but gets a stream: annotate it as Stream[…]"
                return
            taken = next(iter(typing.get_args(bare(taken))), Any)
        for source in self.sources:
            if not accepts(taken, source.type):
                yield f"{where}: takes {type_name(taken)}, but {source.name!r} sends {type_name(source.type)}"


def _given(result: Any, generators: tuple[Any, ...]) -> Any:
    """The type of what an agent gives, out of what its function is annotated to return."""
    if class_of(result) in generators:
        return next(iter(typing.get_args(result)), Any)
    if class_of(result) in (Awaitable, Coroutine):
        return (typing.get_args(result) or (Any,))[-1]
    return result


def accepts(wanted: Any, given: Any) -> bool:
    """False if a value of type `given` surely is no `wanted`. The fine work is the type checkers'."""
    return all(any(_fits(want, arm) for want in arms_of(wanted)) for arm in arms_of(given))


def _fits(wanted: Any, given: Any) -> bool:
    outer, inner = class_of(wanted), class_of(given)
    outer, inner = (type(None) if kind is None else kind for kind in (outer, inner))
    if Any in (outer, inner) or outer is object or isinstance(outer, typing.TypeVar):
        return True
    if not isinstance(outer, type) or not isinstance(inner, type):
        return True  # Literal and its like
    if typing.is_typeddict(outer):
        keys: frozenset[str] = getattr(outer, "__required_keys__", frozenset())
        return inner is dict or (typing.is_typeddict(inner) and keys <= inner.__annotations__.keys())
    if typing.is_typeddict(inner):
        inner = dict
    if getattr(outer, "_is_protocol", False):
        return True
    if outer is inner:
        pairs = zip(typing.get_args(bare(wanted)), typing.get_args(bare(given)), strict=False)
        return all(Ellipsis in (want, arm) or accepts(want, arm) for want, arm in pairs)
    return issubclass(inner, outer) or (outer is float and inner is int)


def undeclared_tables(
    function: Callable[..., Any], declared: Iterable[AnyTable[Any, Any]]
) -> Iterator[AnyTable[Any, Any]]:
    """Tables that the function's own code names but that are not in `declared`."""
    if not isinstance(function, types.FunctionType):
        return
    known = set(map(id, declared))
    named = [function.__globals__.get(name) for name in dict.fromkeys(_global_names(function.__code__))]
    for cell in function.__closure__ or ():
        try:
            named.append(cell.cell_contents)
        except ValueError:  # not bound yet
            continue
    for value in named:
        if isinstance(value, AnyTable) and id(value) not in known:
            known.add(id(value))
            yield value


def _global_names(code: types.CodeType) -> Iterator[str]:
    """Global names that the code reads: those that LOAD_GLOBAL takes, not attributes of the same name."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)
