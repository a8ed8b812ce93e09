"""A driver behind a chain of operators: what it is given are the events of a derived stream.

topic ──► Tap ── filter, map … ──► agent
"""

from collections.abc import Iterator
from typing import Any

from flowkit.agent import EVENT, Need
from flowkit.flow import DROPPED, Chain, Path, chain_of
from flowkit.worker.drivers import AggregateDriver, Done, Driver, StreamDriver
from flowkit.worker.origin import Origin


class Tap(Driver):
    """Stands for `inner` where its events come from."""

    def __init__(self, inner: Driver, path: Path) -> None:
        super().__init__(inner.name, inner.cursor, inner.states, inner.retry)
        self.inner, self.path = inner, path
        self.chain: Chain = chain_of(path.steps)
        self.drops_late, self.modes, self.sinks = inner.drops_late, inner.modes, inner.sinks
        self.loop = inner.loop_behind(path.steps) if isinstance(inner, AggregateDriver) else None
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
        self.failing = True
        if one is not None:
            value = one(event)
            self.failing = False
            return None if value is DROPPED else self.inner.feed(value)
        values = iter(self.chain.many(event))
        self.failing = False
        for value in values:
            done = self._give(value)
            if done is not None:
                return self._rest(done, values)
        return None

    def send(self, event: Any) -> Any:
        """What `StreamDriver.send` does, where the chain makes one event of one."""
        assert self.chain.one is not None
        assert isinstance(self.inner, StreamDriver)
        self.failing = True
        value = self.chain.one(event)
        self.failing = False
        return EVENT if value is DROPPED else self.inner.send(value)

    def _give(self, value: Any) -> Done:
        # An agent that has gone over to batches amid the values of one event gets the rest one by one.
        return self.inner.feed(value if self.inner.need is EVENT else [value])

    async def _rest(self, done: Any, values: Iterator[Any]) -> None:
        await done
        for value in values:
            done = self._give(value)
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
        return [(self.inner, value, origin.derived(self.path.name, n)) for n, value in enumerate(values)]
