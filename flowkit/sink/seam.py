"""The seam between flowkit and an outside system that results go to: what each system's file offers."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flowkit.aws import Right
from flowkit.clock import Clock
from flowkit.store import Space, SpaceChange, Store


class Outgoing(Protocol):
    """One record on its way out, encoded."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def time(self) -> int: ...
    @property
    def order(self) -> int | None:
        """For the result of a window: a number that grows with the window's end, then with its panes. Else None."""


class Rejected(NamedTuple):
    """A record that its destination will never take: with the commit that follows it is a dead letter.

    `error` is the kind of error, as the service calls it, `reason` what it says.
    """

    key: bytes | None
    value: bytes | None
    time: int
    error: str
    reason: str


class Sink(Protocol):
    """One task's part of one bound output."""

    codec: str | None
    """The codec that the outside dictates (a `.csv` file is CSV), or None: the outlet's own."""

    repeats: bool
    """True if a hand-off that is delivered a second time, in another process, can be seen twice out there. The last one
    is, when a task is opened: so a commit that hands nothing over follows it when nothing else does."""

    async def open(self, state: Any) -> None:
        """Get ready to go on after `state` (what `state()` gave at the last commit that counts; None: a new run)."""

    def stage(self, records: Sequence[Outgoing], final: bool) -> Any:
        """Turn records into a hand-off (msgpack-able; None if there is nothing to hand off). No I/O.

        `final` says that nothing will follow (end of a bounded run, or a clean stop).
        """

    def state(self) -> Any:
        """What `open` needs to go on after everything staged so far (msgpack-able)."""

    async def deliver(self, handoff: Any) -> Sequence[Rejected]:
        """Bring a hand-off's effect about, but for what the destination will never take. Doing it twice is allowed.

        What passes is tried again here, for as long as it takes. Raises SinkError if someone has to do something.
        """

    async def close(self) -> None: ...


@runtime_checkable
class Staging(Protocol):
    """A sink that keeps records in the task's store until it is time to write them.

    What it keeps is part of the commit that emitted it, and so of checkpoints and savepoints. A space of the store is a
    name and a number: a whole one is dropped for less than the sum of its keys.
    """

    def attach(self, store: Store, space: str) -> None:
        """Where they are kept, before `open`: keys in spaces of the name `space` are the sink's own."""

    def look(self, watermark: int) -> bool:
        """See how late it is: event time has come to `watermark` (ms). True if a commit is wanted, though nothing came.

        Asked before each `stage`, and now and then.
        """

    def changes(self) -> Sequence[SpaceChange]:
        """What the commit that is being cut changes there; asked once, after `stage`."""

    def drops(self) -> Sequence[Space]:
        """The spaces that it drops (before it changes anything); asked once, after `stage`."""


@runtime_checkable
class Forking(Protocol):
    """A sink whose state, should two go on from it (a savepoint's), must not lead both to the same names."""

    def forked(self, state: Any) -> Any:
        """What another one than it was goes on from."""


@runtime_checkable
class Ending(Protocol):
    """A sink that keeps something back also at a clean stop, since the task goes on later or elsewhere."""

    def end(self) -> None:
        """The task does not go on: the next `stage` hands over all that is kept."""


@runtime_checkable
class Heir(Protocol):
    """A sink whose task may take over the keys of others, and must go on after what they have sent."""

    def inherited(self, states: Sequence[Any]) -> Any:
        """What to go on from, after those whose last states these are: what is common to all it had."""


@runtime_checkable
class Typed(Protocol):
    """A destination that has to know more of the records than their fields' names."""

    def of(self, element: Any) -> None:
        """Their type; told before `check`."""


class SinkTask(NamedTuple):
    """The task that a sink is of: partition `partition` of `partitions` of `group` of `app`.

    A `bounded` one comes to an end, and what it gives must not hang on the clock.
    """

    app: str
    group: str
    partition: int
    partitions: int
    clock: Clock
    bounded: bool = False

    @property
    def name(self) -> str:
        """A name that no other task has, safe in paths and object names."""
        return f"{self.app}-{self.group}-{self.partition}"


class Destination(AbstractAsyncContextManager["Destination"], Protocol):
    """Where an outlet leads, for all tasks of a worker. Used within `async with`; `sink` within that."""

    codec: str | None
    """The codec that the outside dictates (a `.csv` file is CSV), or None: the outlet's own."""

    guarantee: str
    """What a reader of the output can rely on, in words; `flowkit explain` shows it."""

    def check(self) -> None:
        """Raise ConfigError with all that is wrong and can be told from here; changes nothing, asks nobody."""

    def writers(self, groups: Sequence[str], tasks: int, largest: int) -> str:
        """Why `tasks` tasks of these groups, `largest` of one, cannot write there together; '' if they can."""

    def rights(self) -> Sequence[Right]:
        """What a role has to be allowed for all that is called here, and for nothing else; () without such roles."""

    def sink(self, task: SinkTask) -> Sink:
        """The part of one task."""
