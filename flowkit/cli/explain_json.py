"""`flowkit explain --json`: an app's flow as one object, for other programs."""

from collections.abc import Mapping, Sequence
from typing import Any

from flowkit.agent import AgentSpec, Group, Internal, Outlet, Topic
from flowkit.app import App
from flowkit.cli.show import type_name, window_words
from flowkit.cli.spell import function_words
from flowkit.flow import Events
from flowkit.table import AnyTable


def facts_of(app: App, groups: Sequence[Group], guarantees: Mapping[str, str]) -> dict[str, Any]:
    """What `explain` tells in words. `guarantees` are those of the outputs, by name. Durations and times in ms."""
    outlets = {outlet.name: outlet for group in groups for outlet in group.outlets}
    return {
        "app": app.name,
        "guarantee": app.guarantee,
        "groups": [
            {
                "name": group.name,
                "topics": [_topic(topic, broadcast=topic not in group.topics) for topic in group.inputs],
                "tables": [_table(table) for table in group.tables],
                "agents": [_agent(agent) for agent in group.agents],
                "calls": [stream.name for stream in group.called],
                "rekeyed": [hop.topic.name for hop in group.hops],
            }
            for group in groups
        ],
        "outputs": [
            {**_outlet(outlet), "guarantee": guarantees[name]}
            for name, outlet in {**outlets, app.dead_letters.name: app.dead_letters}.items()
            if not isinstance(outlet, Internal)
        ],
    }


def _topic(topic: Topic[Any], *, broadcast: bool) -> dict[str, Any]:
    return {
        **_outlet(topic),
        "pattern": None if topic.pattern is None else topic.pattern.pattern,
        "time": _getter(topic.time),
        "out_of_order": topic.out_of_order,
        "idle_after": topic.idle_after,
        "close_after_idle": topic.close_after_idle,
        "start": dict(topic.start) if isinstance(topic.start, Mapping) else topic.start,
        "out_of_range": topic.out_of_range,
        "broadcast": broadcast,
        "internal": isinstance(topic, Internal),
    }


def _outlet(outlet: Outlet[Any]) -> dict[str, Any]:
    kind = "topic" if isinstance(outlet, Topic) else "sink"
    return {"name": outlet.name, "kind": kind, "type": type_name(outlet.element), "key": _getter(outlet.key)}


def _table(table: AnyTable[Any, Any]) -> dict[str, Any]:
    return {
        "name": table.name,
        "window": None if table.windowing is None else window_words(table.windowing),
        "ttl": table.ttl,
        "broadcast": table.broadcast,
        "reads": _names(table.sources),
    }


def _agent(agent: AgentSpec) -> dict[str, Any]:
    return {
        "name": agent.name,
        "reads": _names(agent.sources),
        "keeps": [table.name for table in agent.tables],
        "looks_up": [table.name for table in agent.reads],
        "sends": [sink.name for sink in agent.sinks],
        "attempts": agent.retry.attempts,
    }


def _names(streams: Sequence[Events[Any]]) -> list[str]:
    return [stream.name for stream in streams]


def _getter(getter: Any) -> str | None:
    return getter if getter is None or isinstance(getter, str) else function_words(getter)
