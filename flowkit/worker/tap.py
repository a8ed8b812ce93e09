"""A driver behind a chain of operators: what it is given are the events of a derived stream.

topic ──► Tap ── filter, map … ──► agent
"""

from collections.abc import Iterator, Sequence
from typing import Any

from flowkit.agent import EVENT, Need
from flowkit.flow import DROPPED, Chain, Path, chain_of
from flowkit.table import BatchLoop
from flowkit.worker.drivers import AggregateDriver, Done, Driver, StreamDriver
from flowkit.worker.origin import Origin


class Tap(Driver):
    """Stands for `inner` where its events come from. They go to it by all `paths` that lead from there to `stream`."""

    def __init__(self, inner: Driver, stream: str, paths: Sequence[Path]) -> None:
        super().__init__(inner.name, inner.cursor, inner.states, inner.retry)
        self.inner, self.stream = inner, stream
        self.chain: Chain = chain_of(*(path.steps for path in paths))
        self.drops_late, self.modes, self.sinks = inner.drops_late, inner.modes, inner.sinks
        self.loop: BatchLoop | None = None
        if isinstance(inner, AggregateDriver) and len(paths) == 1:
            self.loop = inner.loop_behind(paths[0].steps)
        self.failing = False
        """True while an operator's function runs, or has raised: the agent behind it knows nothing of that."""

    @property
    def need(self) -> Need:  # the inner one's, whenever it changes
        return self.inner.need

    @need.setter
    def need(self, value: Need) -> None:
        assert value is EVENT  # what a new driver begins with

    def feed(self, event: Any) -> Done:
        one = self.chain.one
        self.failing, self.present = True, event
        if one is not None:
            value = one(event)
            self.failing = False
            return None if value is DROPPED else self.inner.feed(value)
        values = iter(self.chain.many(event))
        self.failing = False
        inner = self.inner
        for value in values:
            # An agent that has gone over to batches amid the values of one event gets the rest one by one.
            done = inner.feed(value if inner.need is EVENT else [value])
            if done is not None:
                return self._rest(done, values)
        return None

    def pass_all(self, events: Sequence[Any], times: Sequence[int]) -> tuple[list[Any], list[int]]:
        """What becomes of many events where the chain makes at most one of one, with their times."""
        assert self.chain.one is not None
        made = list(map(self.chain.one, events))
        left = [n for n, value in enumerate(made) if value is not DROPPED]
        return [made[n] for n in left], [times[n] for n in left]

    def send(self, event: Any) -> Any:
        """What `StreamDriver.send` does, where the chain makes one event of one."""
        assert self.chain.one is not None
        assert isinstance(self.inner, StreamDriver)
        self.failing = True
        value = self.chain.one(event)
        self.failing = False
        return EVENT if value is DROPPED else self.inner.send(value)

    async def _rest(self, done: Any, values: Iterator[Any]) -> None:
        await done
        inner = self.inner
        for value in values:
            done = inner.feed(value if inner.need is EVENT else [value])
            if done is not None:
                await done

    def abandon(self) -> None:
        if self.failing:
            self.failing = False
        else:
            self.inner.abandon()

    def spread(self, event: Any, origin: Origin) -> list[tuple[Driver, Any, Origin]]:
        self.failing = True
        values = self.chain.many(event)
        self.failing = False
        return [(self.inner, value, origin.derived(self.stream, n)) for n, value in enumerate(values)]
