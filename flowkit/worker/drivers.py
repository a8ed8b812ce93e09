"""Drives what users wrote: sends events into agents, follows what they await, and takes what they give."""

import inspect
from collections.abc import Awaitable, Callable, Generator, Sequence
from types import coroutine
from typing import Any

import structlog

from flowkit.agent import END, EVENT, AgentSpec, Need, Outlet, Retry, Stream
from flowkit.codec import field_getter
from flowkit.errors import FlowkitError, RecordError
from flowkit.flow import Events, Step
from flowkit.table import (
    NEVER,
    AnyTable,
    BatchLoop,
    Compiled,
    Cursor,
    Mode,
    ProcessState,
    ProcessTable,
    State,
    batch_loop,
    overlaps,
)
from flowkit.window import Count, Sliding, Tumbling
from flowkit.worker.origin import Origin

log = structlog.get_logger("flowkit.agent")

Done = Awaitable[None] | None
"""None: the event is done. Else something to await until it is."""


class Driver:
    """What the engine needs of everything that takes events. `feed` handles one event."""

    def __init__(self, name: str, cursor: Cursor, states: list[State], retry: Retry) -> None:
        self.name, self.cursor, self.retry = name, cursor, retry
        self.states = states
        """The states that it writes."""
        self.drops_late: list[State] = []
        """Those of them for which a late event is not delivered."""
        self.modes: list[tuple[State, Mode]] = []
        """States of the group that it may not write, with what it may do."""
        self.sinks: frozenset[str] = frozenset()
        self.present: Any = None
        """The event that an agent was given last, as far as it did not come the quick way."""
        self.sources: tuple[Events[Any], ...] = ()
        """The streams whose events it takes."""
        self.need: Need = EVENT

    def feed(self, event: Any) -> Done:
        raise NotImplementedError

    def spread(self, event: Any, origin: Origin) -> "list[tuple[Driver, Any, Origin]]":
        """What an event of a stream comes to: who is given what, and where that came from."""
        return [(self, event, origin)]

    async def start(self) -> None:
        """Get ready for the first event."""

    async def end(self) -> None:
        """The input has ended."""

    async def stop(self) -> None:
        """Let go without telling that the input has ended."""

    def abandon(self) -> None:
        """What ran has raised: there is nothing left to stop."""


class Emitter:
    """Sends what an agent gives to the sinks that take it."""

    def __init__(self, agent: str, sinks: tuple[Outlet[Any], ...], cursor: Cursor) -> None:
        self.agent, self.sinks, self.cursor = agent, sinks, cursor
        self.types = [_checkable(sink.element) for sink in sinks]

    def __call__(self, value: Any) -> None:
        taken = False
        for sink, type_ in zip(self.sinks, self.types, strict=True):
            if type_ is None or isinstance(value, type_):
                self.cursor.emit(sink, value, None, None)
                taken = True
        if not taken:
            expected = ", ".join(f"{sink.name!r} ({sink.element})" for sink in self.sinks) or "none declared"
            raise TypeError(f"agent {self.agent!r} gave a {type(value).__name__}, which no sink takes: {expected}")


def _checkable(type_: Any) -> Any:
    """What isinstance can check a value of `type_` against, or None."""
    if type_ is float:
        return (int, float)
    checks = isinstance(type_, type) and type_ is not Any and not hasattr(type_, "__total__")
    return type_ if checks else None


class StreamDriver(Driver):
    """Drives an agent that iterates a stream. See `flowkit.agent.stream` for how it and the engine take turns."""

    def __init__(self, spec: AgentSpec, cursor: Cursor, states: list[State]) -> None:
        super().__init__(spec.name, cursor, states, spec.retry)
        self.spec, self.sources = spec, spec.sources
        self.emit = Emitter(spec.name, spec.sinks, cursor)
        self.buffer: list[tuple[Any, int, Origin]] = []
        """Events of an unfinished batch, with their times and where they came from."""
        self.since = 0
        self.watched: list[State] = []
        """The states that it writes or reads."""
        self.deadline = NEVER
        """The watermark (ms) by which the batch must be handed over, so that its events are in their windows."""
        self.careful = False
        """True if an event of the batch may be late, or may touch a window that has fired."""
        self.send: Callable[[Any], Any] = _not_started
        self._agen: Any = None
        self._coro: Any = None
        self.finished = False
        self._starting = False

    async def start(self) -> None:
        self.finished, self._starting = False, True
        stream: Stream[Any] = Stream()
        if self.spec.emits:
            self._agen = self.spec.function(stream)
            self._coro = self._agen.__anext__()
        else:
            self._agen = None
            self._coro = self.spec.function(stream)
        self.send = self._coro.send
        try:
            done = self.feed(None)
            if done is not None:
                await done
        except BaseException:
            self.abandon()
            raise
        self._starting = False

    def add(self, event: Any, t: int, origin: Origin, *, careful: bool) -> None:
        """Put an event of time `t` (ms) into the batch."""
        self.buffer.append((event, t, origin))
        self.careful = self.careful or careful
        self.deadline = min([self.deadline, *(state.deadline(t) for state in self.watched)])

    def clear(self) -> None:
        """Begin a new batch."""
        self.buffer, self.deadline, self.careful = [], NEVER, False

    def feed(self, event: Any) -> Done:
        self.present = event
        try:
            got = self.send(event)
        except StopIteration as stop:
            return self.emitted(stop.value)
        except StopAsyncIteration:
            return self.returned()
        if got is EVENT:
            self.need = EVENT
            return None
        return self.after(got)

    def after(self, got: Any) -> Done:
        """The agent has suspended with something else than EVENT."""
        if isinstance(got, Need):
            self.need = got
            return None
        return self._follow(got)

    def emitted(self, value: Any) -> Done:
        """The agent has yielded `value`, and perhaps yields more before it asks for the next event."""
        if self._agen is None:
            return self.returned()
        while True:
            self.emit(value)
            self._coro = self._agen.__anext__()
            self.send = self._coro.send
            try:
                got = self.send(None)
            except StopIteration as stop:
                value = stop.value
                continue
            except StopAsyncIteration:
                return self.returned()
            if got is EVENT:
                self.need = EVENT
                return None
            return self.after(got)

    def returned(self) -> Done:
        """The agent's function has returned: at the end of the input as it should, or of its own accord."""
        self._coro = self._agen = None
        self.send = _not_started
        if self.finished:
            return None
        if self._starting:
            raise FlowkitError(
                f"agent {self.name!r} returned before it asked for an event: "
                "iterate its stream, `async for event in stream`"
            )
        log.warning("agent returned while its stream goes on; it is started anew", agent=self.name)
        return self.start()

    @coroutine
    def _follow(self, got: Any) -> Generator[Any, Any, None]:
        """Hand what the agent awaits to the event loop, and what comes of it back to the agent."""
        done: Any
        resume: Callable[[Any], Any]
        argument: Any
        while not isinstance(got, Need):
            try:
                sent = yield got
            except BaseException as error:
                resume, argument = self._coro.throw, error
            else:
                resume, argument = self._coro.send, sent
            while True:
                try:
                    got = resume(argument)
                except StopIteration as stop:
                    if self._agen is not None:
                        # A loop, no recursion: there may be thousands of values with something awaited between.
                        self.emit(stop.value)
                        self._coro = self._agen.__anext__()
                        self.send = self._coro.send
                        resume, argument = self.send, None
                        continue
                    done = self.returned()
                except StopAsyncIteration:
                    done = self.returned()
                else:
                    break
                if done is not None:
                    yield from done
                return
        self.need = got

    async def end(self) -> None:
        if self._coro is None:
            return
        self.finished = True
        # Loops within loops each ask once more.
        for _ in range(100):
            try:
                done = self.feed(END)
                if done is not None:
                    await done
            except BaseException:
                self.abandon()
                raise
            if self._coro is None:
                return
        raise FlowkitError(f"agent {self.name!r} asks for more events after the end of its stream")

    def abandon(self) -> None:
        self._coro = None
        self.send = _not_started
        if self._agen is not None and self._agen.ag_frame is None:
            self._agen = None

    async def stop(self) -> None:
        self.finished = True
        coro, agen = self._coro, self._agen
        self._coro = self._agen = None
        self.send = _not_started
        if coro is not None:
            await self._exit(coro, coro.throw, GeneratorExit())
        elif agen is not None:
            # What it has yielded could not be sent: it still stands at that yield.
            closing = agen.aclose()
            await self._exit(closing, closing.send, None)

    @coroutine
    def _exit(self, coro: Any, resume: Callable[[Any], Any], argument: Any) -> Generator[Any, Any, None]:
        """Make the agent leave where it waits, its `finally` blocks run to their end.

        By throwing, not by `close`: on an async generator's pending step that would leave the generator "running".
        """
        while True:
            try:
                got = resume(argument)
            except (GeneratorExit, StopIteration, StopAsyncIteration):
                return
            except Exception:
                log.exception("agent failed while it was stopped", agent=self.name)
                return
            if isinstance(got, Need):
                log.warning("agent asks for events after it was told to stop", agent=self.name)
                return
            try:
                argument = yield got
            except BaseException as error:
                resume, argument = coro.throw, error
            else:
                resume = coro.send


def _not_started(_: Any) -> Any:
    raise FlowkitError("the agent is not running")


class EachDriver(Driver):
    """Calls a function for each event."""

    def __init__(self, spec: AgentSpec, cursor: Cursor, states: list[State]) -> None:
        super().__init__(spec.name, cursor, states, spec.retry)
        self.function, self.sources = spec.function, spec.sources
        self.emit = Emitter(spec.name, spec.sinks, cursor)

    def feed(self, event: Any) -> Done:
        self.present = event
        result = self.function(event)
        if inspect.iscoroutine(result):
            try:
                got = result.send(None)
            except StopIteration as stop:
                result = stop.value
            else:
                return self._follow(result, got)
        if result is not None:
            self.emit(result)
        return None

    @coroutine
    def _follow(self, coro: Any, got: Any) -> Generator[Any, Any, None]:
        while True:
            try:
                sent = yield got
            except BaseException as error:
                resume, argument = coro.throw, error
            else:
                resume, argument = coro.send, sent
            try:
                got = resume(argument)
            except StopIteration as stop:
                if stop.value is not None:
                    self.emit(stop.value)
                return


class AggregateDriver(Driver):
    """Keeps a declared table: one update of its accumulators an event."""

    def __init__(self, table: AnyTable[Any, Any], compiled: Compiled, cursor: Cursor, state: State) -> None:
        super().__init__(table.name, cursor, [state], Retry())
        assert table.source is not None
        assert compiled.key is not None
        self.table, self.compiled, self.state, self.key = table, compiled, state, compiled.key
        self.sources = table.sources
        self.update = compiled.update
        plain = table.windowing is None and table.ttl is None
        self.loops = plain or isinstance(table.windowing, Tumbling)
        self.loop = batch_loop(compiled) if self.loops else None
        """The generated loop over a whole batch, where the kind of table allows one."""
        window = table.windowing
        self.many = isinstance(window, Count) and overlaps(window)
        # Between two windows of Sliding(size, every > size) an event counts nowhere.
        self.gaps = window if isinstance(window, Sliding) and window.every > window.size else None

    def loop_behind(self, steps: Sequence[Step]) -> BatchLoop | None:
        """The loop over events that go through `steps` first, where the kind of table allows one."""
        return batch_loop(self.compiled, steps=steps) if self.loops else None

    def feed(self, event: Any) -> Done:
        t = self.cursor.time
        key = self.key(event)
        if key is None:
            raise RecordError(f"table {self.name!r}: by={self.table.by!r} is None")
        if self.many:
            for window in self.state.windows(key):
                self.update(window.value, event, t)
        elif self.gaps is None or self.gaps.windows(t):
            self.update(self.state.live(key), event, t)
        return None


class FeedDriver(Driver):
    """Gives the events of one of an operator's inputs to its table, by key."""

    def __init__(self, table: AnyTable[Any, Any], side: int, cursor: Cursor, state: State) -> None:
        super().__init__(table.name, cursor, [state], Retry())
        feed = table.feeds[side]
        self.side, self.by = side, feed.by
        self.sources, self.drops_late = (feed.stream,), [state]
        self._key = field_getter(feed.stream.type, feed.by) if isinstance(feed.by, str) else feed.by

    def key_of(self, event: Any) -> Any:
        """The key of an event. Raises RecordError if it is None."""
        key = self._key(event)
        if key is None:
            raise RecordError(f"{self.name!r}: the key ({self.by!r}) is None")
        return key


class ProcessDriver(FeedDriver):
    """An input of a process. What it sends goes to its subscribers once the event is done."""

    def __init__(self, table: ProcessTable, side: int, cursor: Cursor, state: ProcessState) -> None:
        super().__init__(table, side, cursor, state)
        self.state = state

    def feed(self, event: Any) -> Done:
        sent = self.state.give(self.key_of(event), self.side, event, self.cursor.time)
        if sent:
            self.cursor.sent += sent
        return None


class WindowFeedDriver(FeedDriver):
    """An input of an operator that works by windows: puts each event into those at its time."""

    def __init__(self, table: AnyTable[Any, Any], side: int, cursor: Cursor, state: State) -> None:
        super().__init__(table, side, cursor, state)
        assert table.add is not None
        assert table.windowing is not None
        self.state, self.add, self.several = state, table.add, overlaps(table.windowing)

    def feed(self, event: Any) -> Done:
        key = self.key_of(event)
        if self.several:
            for window in self.state.windows(key):
                self.add(window.value, self.side, event)
        else:
            self.add(self.state.live(key), self.side, event)
        return None
