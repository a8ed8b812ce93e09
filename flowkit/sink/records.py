"""A sink that sends each record to a service: numbered when staged, so that it is the same record when sent again.

    hand-off   {"from": N, "rows": [[key, value, time in ms, order or None] …]}    row i has number N + i
    state      {"name": the sink's own, random; "last": the last number}

Numbers grow for ever, also after the state was lost, on another machine, or in another task that has gone on with a
part of the keys: they are the clock's at least (ms * 65,536). Since they lie in the frame, a row that is delivered
again after a crash has the number that it had: a version for services that compare, and with `name` an id for others.
"""

import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec

from flowkit.clock import Clock
from flowkit.sink.dispatch import Dispatch, Item, Never
from flowkit.sink.seam import Outgoing, Rejected


class Row(msgspec.Struct, frozen=True, gc=False):
    """One record as a service's file gets it, of the sink `name`. `number` grows from record to record."""

    key: bytes | None
    value: bytes | None
    time: int
    order: int | None
    number: int
    name: str

    @property
    def id(self) -> str:
        """What no other record has. Made when it is asked for: 0.25 µs that CloudWatch and DynamoDB do without."""
        return f"{self.name}-{self.number:x}"


Make = Callable[[int, Row], Item | Never | None]
"""What is sent for a row with this index; Never if the service will not take it; None if there is nothing to send."""

Settle = Callable[[list[Item]], list[Item]]
"""Those of a hand-off's items that need to be sent, for the others change nothing that can be seen in the end; or
items that stand for several of them, of which `send` then tells by `Some`."""


class RecordSink:
    """Sends the rows of a hand-off, made into items by `make`, by `dispatch`.

    `ready` is awaited before rows are made into items, `settle` chooses among them.
    """

    repeats = True

    def __init__(
        self,
        dispatch: Dispatch,
        make: Make,
        clock: Clock,
        *,
        codec: str | None = None,
        ready: Callable[[], Awaitable[None]] | None = None,
        settle: Settle | None = None,
    ) -> None:
        self.dispatch, self.make, self.clock, self.codec = dispatch, make, clock, codec
        self._ready, self._settle = ready, settle
        self._name, self._last = "", 0

    async def open(self, state: Any) -> None:
        """As the protocol says."""
        known = state or {"name": os.urandom(8).hex(), "last": 0}
        self._name, self._last = known["name"], known["last"]

    def stage(self, records: Sequence[Outgoing], final: bool) -> Any:
        """As the protocol says."""
        if not records:
            return None
        first = max(self._last + 1, self.clock.now_ms() << 16)
        self._last = first + len(records) - 1
        return {"from": first, "name": self._name, "rows": [[r.key, r.value, r.time, r.order] for r in records]}

    def state(self) -> Any:
        """As the protocol says."""
        return {"name": self._name, "last": self._last}

    def inherited(self, states: Sequence[Any]) -> Any:
        """As the protocol says: a number is more than all of theirs, whatever this machine's clock says."""
        return {"name": os.urandom(8).hex(), "last": max(state["last"] for state in states)}

    async def deliver(self, handoff: Any) -> Sequence[Rejected]:
        """As the protocol says."""
        if handoff is None:
            return ()
        if self._ready is not None:
            await self._ready()
        rows, first, name, make = handoff["rows"], handoff["from"], handoff["name"], self.make
        items: list[Item] = []
        never: list[tuple[int, Never]] = []
        for index, row in enumerate(rows):
            key, value, time, order = row
            made = make(index, Row(key, value, time, order, first + index, name))
            if isinstance(made, Item):  # nearly all of them
                items.append(made)
            elif made is not None:
                never.append((index, made))
        never += await self.dispatch.run(items if self._settle is None else self._settle(items))
        return list(_rejected(rows, sorted(never, key=lambda pair: pair[0])))

    async def close(self) -> None:
        """The client is the destination's."""


def _rejected(rows: Sequence[Any], never: Iterable[tuple[int, Never]]) -> Iterable[Rejected]:
    for index, why in never:
        key, value, time, _ = rows[index]
        yield Rejected(key, value, time, why.error, why.reason)
