"""What leaves an engine: values that agents give to sinks, and dead letters."""

from typing import Any

import structlog

from flowkit.agent import Group
from flowkit.app import App
from flowkit.errors import NoEvent, UndeclaredSink
from flowkit.record import Closed
from flowkit.worker.origin import Origin
from flowkit.worker.outlets import order_of
from flowkit.worker.step import StepContext

log = structlog.get_logger("flowkit.engine")


class Output:
    """Puts what is sent into the outlets, where it waits for the commit."""

    def __init__(self, step: StepContext) -> None:
        self.step = step
        self.dead_letters = step.outlets[step.app.dead_letters.name]
        self.told_elsewhere = _read_before(step.app, step.group) if step.bounded else frozenset()
        """Broadcast topics whose dead letters come from another group of the run, which reads them as well."""
        step.cursor.emit = self.emit

    def emit(self, outlet: Any, value: Any, key: Any, time: int | None) -> None:
        """What `yield` and `sink.emit` come to. Raises UndeclaredSink, or NoEvent outside an event."""
        step = self.step
        cursor = step.cursor
        agent = cursor.agent
        if agent is None:
            raise NoEvent(f"{outlet.name!r}: an agent sent something before its first event, or after it was stopped")
        if outlet.name not in agent.sinks:
            raise UndeclaredSink(f"agent {agent.name!r} emits to {outlet.name!r} without declaring it in sinks=")
        if time is None:
            time = cursor.time if cursor.batch is None else max(cursor.batch.values())[0]
        bound = step.outlets[outlet.name]
        present = agent.present
        # Of a record that followed on it the quick way it would still be the last window.
        windowed = type(present) is Closed and present.end - 1 == cursor.time
        bound.emit(value, key, time, order_of(present) if windowed else None)
        step.counters.emitted += 1
        if bound.linked and bound.awaited:
            step.link_hit = True

    def dead_letter(self, origin: Origin, error: Exception, agent: str, attempts: int) -> None:
        """What could not be handled, with why."""
        if origin.topic in self.told_elsewhere:
            return
        letter = origin.letter(error, agent, attempts)
        self.step.counters.dead += 1
        self.step.counters.tally.dead[(origin.topic, agent)] += 1
        self.dead_letters.emit(letter, None, letter.time if letter.time is not None else 0)
        if self.dead_letters.linked:
            self.step.link_hit = True
        log.warning(
            "dead letter", topic=letter.topic, position=letter.position, error=letter.error, reason=letter.reason,
            agent=letter.agent or None,
        )  # fmt: skip

    def mark(self) -> tuple[list[int], bool, int]:
        """Where everything stands, for `undo`."""
        lengths = [len(outlet.records) for outlet in self.step.outlets.values()]
        return lengths, self.step.link_hit, self.step.counters.emitted

    def undo(self, mark: tuple[list[int], bool, int]) -> None:
        """Take back what was emitted since `mark`."""
        lengths, self.step.link_hit, self.step.counters.emitted = mark
        for outlet, length in zip(self.step.outlets.values(), lengths, strict=True):
            del outlet.records[length:]


def _read_before(app: App, group: Group) -> frozenset[str]:
    """The broadcast topics of a group that another group of the app, before it, reads too."""
    names: set[str] = set()
    if group.broadcast_topics:
        for other in app.plan().groups:
            if other.name == group.name:
                break
            names |= {topic.name for topic in other.broadcast_topics}
    return frozenset(names & {topic.name for topic in group.broadcast_topics})
