"""Re-keying: which streams of `group_by` go through a topic of flowkit's own, and who sends into it.

    topic, keyed by user ── filter ── map ──► Hop ──► internal topic APP.STREAM, keyed by merchant ──► agents, tables
    └──────── the sender's group ──────────────┘      └──────────── the receivers' group ──────────────────────────┘

All events of a key reach one task that way. Where they do already, there is no such topic.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from flowkit.agent.topic import Topic
from flowkit.errors import ConfigError
from flowkit.flow import Cuts, Events, Keyed, Path, keyed_in, paths_into, roots_of
from flowkit.table import TableEvents


class Internal(Topic[Any]):
    """A topic of flowkit's own: the events of a stream by another key, with marks that tell how far its senders are.

    Nobody else may write into it. A record's time is the event's.
    """

    def __init__(self, app: str, stream: Keyed[Any, Any]) -> None:
        where = f"{stream.name!r} is sent on by another key, so its events are encoded"
        if stream.type in (Any, object):
            raise ConfigError(
                f"{where}, but their type is not known: annotate the function's return type or give type="
            )
        try:
            super().__init__(f"{app}.{stream.name}", stream.type, key=stream.key, codec="msgpack")
        except ConfigError as error:
            raise ConfigError(*(f"{where}: {problem}" for problem in error.problems)) from None
        self.stream = stream


@dataclass(frozen=True)
class Hop:
    """What a group sends into an internal topic: the events that come on `paths`, which begin in the group."""

    topic: Internal
    paths: tuple[Path, ...]

    def roots(self, cuts: Cuts) -> list[Events[Any]]:
        """Where its events come from, upstream first: also what those are made of that come of calls."""
        return roots_of((path.root for path in self.paths), cuts)


def make_cuts(app: str, streams: Iterable[Events[Any]], taken: Iterable[str]) -> dict[str, Internal]:
    """The internal topics that these streams need, by the name of the stream that goes through.

    `taken` are the names of other topics. Raises ConfigError with all problems at once.
    """
    cuts: dict[str, Internal] = {}
    names = set(taken)
    problems: list[str] = []
    for stream in keyed_in(streams):
        if all(_stays(stream, path) for path in paths_into(stream, cuts)):
            continue
        try:
            topic = cuts[stream.name] = Internal(app, stream)
        except ConfigError as error:
            problems += error.problems
            continue
        if topic.name in names:
            problems.append(f"{stream.name!r} goes through a topic named {topic.name!r}: give your own another name")
    if problems:
        raise ConfigError(*problems)
    return cuts


def _stays(stream: Keyed[Any, Any], path: Path) -> bool:
    """True if the events that come on `path` are where their new key wants them."""
    if any(step.kind != "filter" for step in path.steps):
        return False
    root = path.root
    if isinstance(root, TableEvents):  # what a table sends has its key, but for what is as it came in, or of operators
        return root.kind in ("closed", "changes") and stream.key == "key" and not root.table.local
    return isinstance(root, Topic) and root.key is not None and root.key == stream.key


def hops_of(cuts: Cuts) -> list[Hop]:
    """What is sent into each internal topic, a hop for each root that it comes from."""
    hops = []
    for topic in cuts.values():
        assert isinstance(topic, Internal)
        by_root: dict[str, list[Path]] = {}
        for path in paths_into(topic.stream, cuts):
            by_root.setdefault(path.root.name, []).append(path)
        hops += [Hop(topic, tuple(paths)) for paths in by_root.values()]
    return hops


def gathered(hops: Sequence[Hop]) -> list[Hop]:
    """The hops of one group: one for each topic."""
    paths: dict[str, tuple[Path, ...]] = {}
    topics = {hop.topic.name: hop.topic for hop in hops}
    for hop in hops:
        paths[hop.topic.name] = (*paths.get(hop.topic.name, ()), *hop.paths)
    return [Hop(topic, paths[name]) for name, topic in topics.items()]
