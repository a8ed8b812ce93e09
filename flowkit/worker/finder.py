"""Which topics of the broker an app's patterns stand for: found at the start, and looked for again while it runs.

    at the start    what cannot be is an error: topics that match two patterns, or have unequal numbers of partitions
    later           it is told and left alone: whoever makes a topic must not be able to bring a running app down

flowkit's own topics never match, nor do those whose names begin with two underscores, Kafka's own.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import structlog

from flowkit.agent import Plan, Topic
from flowkit.app import App
from flowkit.errors import FlowkitError
from flowkit.source import KeepsFrames, changelog_of, is_internal, may_be_internal

log = structlog.get_logger("flowkit.topics")


class Topics(Protocol):
    """What is asked of a broker here."""

    async def topics(self) -> Mapping[str, int]: ...
    async def end_offsets(self, topic: str) -> Any: ...
    async def bounds(self, topic: str, partition: int) -> tuple[int, int]: ...
    async def read(self, topic: str, partition: int, offset: int, limit: int) -> Any: ...


class TopicFinder:
    """The topics that match. Tasks look at `version`, which grows with each change, and then at `found`."""

    def __init__(self, app: App, plan: Plan) -> None:
        self.patterns: list[Topic[Any]] = list({t.name: t for g in plan.groups for t in g.patterns}.values())
        self.found: dict[str, dict[str, int]] = {topic.name: {} for topic in self.patterns}
        """By name in the app: the topics that it stands for, with their partitions."""
        self.need: dict[str, int] = {}
        """By name in the app: how many partitions each must have, once that is known."""
        self.version = 0
        self._own = {app.dead_letters.name, *(topic.name for topic in plan.internals)}
        self._own |= {changelog_of(f"{app.name}/{group.name}/0")[0] for group in plan.groups}
        self._internal: dict[str, bool] = {}
        self._told: set[tuple[str, str]] = set()

    async def begin(self, broker: Topics) -> Sequence[str]:
        """Look for the first time; what is wrong with what there is."""
        if not self.patterns:
            return []
        matching, clashes = await self._matching(broker)
        self.found = matching
        return [
            f"topic {name!r} matches the patterns of {' and '.join(map(repr, claimed))}, so its records would come "
            "twice: let all but one of them leave it out"
            for name, claimed in clashes.items()
        ]

    def fix(self, need: Mapping[str, int]) -> None:
        """From now on all that match must have so many partitions; others are told and left alone."""
        self.need = dict(need)
        for topic in self.patterns:
            found = self.found[topic.name]
            for name in [name for name, count in found.items() if count != self.need.get(topic.name, count)]:
                self._refuse(topic, name, found.pop(name))
            if found:
                log.info("topics that match", topic=topic.name, pattern=_words(topic), found=found)
            else:
                log.info("no topic matches yet: waiting for one", topic=topic.name, pattern=_words(topic))

    async def watch(self, broker: Topics, every_ms: int) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(every_ms / 1000)
            try:
                await self.look(broker)
            except FlowkitError as error:
                log.warning("cannot look for topics that match; trying again", error=str(error))
            except Exception:  # nobody waits for this job, and without it no topic would be found any more
                log.exception("cannot look for topics that match; trying again")

    async def look(self, broker: Topics) -> None:
        """See what has come and gone. Raises BrokerError."""
        matching, clashes = await self._matching(broker)
        for name, claimed in clashes.items():
            self._tell(name, "topic not read: it matches several patterns", topics=claimed)
        changed = False
        for topic in self.patterns:
            found, now = self.found[topic.name], matching[topic.name]
            for name in sorted(found.keys() - now.keys()):
                del found[name]
                changed = True
                log.warning("topic is gone: going on without it", topic=topic.name, found=name)
            for name, count in now.items():
                if name in found and found[name] != count:
                    self._tell(name, "topic has another number of partitions now: keys have moved", now=count)
                elif name not in found and count != self.need.get(topic.name, count):
                    self._refuse(topic, name, count)
                elif name not in found:
                    found[name] = count
                    changed = True
                    log.info("topic found", topic=topic.name, found=name, partitions=count, pattern=_words(topic))
        self.version += changed

    def lost(self, topic: str, name: str) -> None:
        """A task has found out that `name` is gone. If it comes again it is found again."""
        if self.found[topic].pop(name, None) is not None:
            self.version += 1
            log.warning("topic is gone: going on without it", topic=topic, found=name)

    async def _matching(self, broker: Topics) -> tuple[dict[str, dict[str, int]], dict[str, list[str]]]:
        """By pattern what matches it alone, and what matches several."""
        there = await broker.topics()
        claims: dict[str, list[str]] = {}
        for name in sorted(there):
            if there[name] and name not in self._own and not name.startswith("__"):
                claimed = [topic.name for topic in self.patterns if topic.stands_for(name)]
                if claimed and not await self._is_internal(broker, name, there):
                    claims[name] = claimed
        matching: dict[str, dict[str, int]] = {topic.name: {} for topic in self.patterns}
        for name, claimed in claims.items():
            if len(claimed) == 1:
                matching[claimed[0]][name] = there[name]
        return matching, {name: claimed for name, claimed in claims.items() if len(claimed) > 1}

    async def _is_internal(self, broker: Topics, name: str, there: Mapping[str, int]) -> bool:
        """True if it is another app's internal topic. One that may be, and is still empty, is asked again."""
        known = self._internal.get(name)
        if known is None:
            if any(name in found for found in self.found.values()):
                return False
            # Without changelogs nothing but the records tells which topic another app has re-keyed into.
            named = may_be_internal(name, there) or ("." in name and not isinstance(broker, KeepsFrames))
            if not named:
                return False
            found = await is_internal(broker, name)
            if found is None:  # a changelog that is empty would be told too late; of others many are users'
                return may_be_internal(name, ())
            known = self._internal[name] = found
            if known:
                log.info("internal topic of flowkit left out", found=name)
        return known

    def _refuse(self, topic: Topic[Any], name: str, count: int) -> None:
        self._tell(
            name,
            "topic not read: its number of partitions is not that of the others which match",
            topic=topic.name,
            partitions=count,
            wanted=self.need[topic.name],
            cure="make it anew with as many, or let the pattern leave it out",
        )

    def _tell(self, name: str, event: str, **facts: Any) -> None:
        """Say it once."""
        said = (name, f"{event} {facts}")
        if said not in self._told:
            self._told.add(said)
            log.error(event, found=name, **facts)


def _words(topic: Topic[Any]) -> str:
    assert topic.pattern is not None
    return topic.pattern.pattern
