"""`flowkit check`: what will go wrong later, told before anything starts."""

import enum
import shlex
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import typer

from flowkit.agent import AgentSpec, Group, Internal, Topic
from flowkit.app import App
from flowkit.cli.arguments import Module, OptionalBroker, OptionalState
from flowkit.cli.check_code import kept_between_events
from flowkit.cli.check_keys import misplaced
from flowkit.cli.load import find_app, problems_of
from flowkit.cli.outcome import EXIT_CODES, FAILED, OK, out, shown_path
from flowkit.cli.show import count
from flowkit.errors import ConfigError
from flowkit.flow import Derived, Events, roots_of
from flowkit.record import duration
from flowkit.table import AnyTable, ProcessTable, Ticks, Timers, check_schema
from flowkit.window import Count, Cumulative, Global, Session, Sliding, Tumbling

Severity = Literal["error", "warning", "note"]

HELP = """Look for what will go wrong later: state that grows for ever, variables that are taken for state, windows
without times, names that nothing uses.

With --state also for stored state that the app can no longer read, with --broker for topics that are missing or whose
partition counts do not fit, and on Kafka for tables whose names have changed, so that all would begin anew. Exit code
1 if there is an error or a warning; notes are only for your eyes.
"""


class Finding(NamedTuple):
    """One thing worth a look."""

    severity: Severity
    message: str


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("check", help=HELP, epilog=EXIT_CODES)(check)


def check(module: Module, state: OptionalState = None, broker: OptionalBroker = None) -> int:
    """Print all findings; the exit code."""
    app = find_app(module)
    findings = list(check_app(app))
    if state is not None and Path(state).exists():
        findings += check_state(app, Path(state))
    if broker is not None and not problems_of(app, rekey=True):
        findings += check_broker(app.name, app.plan(rekey=True).groups, broker)
    order: tuple[Severity, ...] = ("error", "warning", "note")
    for severity in order:
        for finding in findings:
            if finding.severity == severity:
                out(f"{severity}: {finding.message}")
    found = [count(n, severity) for severity in order if (n := sum(f.severity == severity for f in findings))]
    out(f"{app.name}: {', '.join(found) or 'nothing found'}")
    return FAILED if any(finding.severity != "note" for finding in findings) else OK


def check_app(app: App) -> Iterator[Finding]:
    """What can be told of an app alone."""
    yield from (Finding("error", problem) for problem in problems_of(app) or problems_of(app, rekey=True))
    for table in app.tables.values():
        yield from _growth(table, app)
        yield from _ttl(table)
    yield from _times(app)
    yield from _keys(app)
    yield from _holding(app)
    for agent in app.agents.values():
        yield from _variables(agent)
    yield from _unused(app)


def _growth(table: AnyTable[Any, Any], app: App) -> Iterator[Finding]:
    """Tables whose keys nothing ever removes, and operators that keep without bound."""
    if table.grows:
        yield Finding("warning", f"{table.name!r} ({table.words}) may keep more and more: {table.grows}")
    if isinstance(table, ProcessTable) or table.writers != "one":  # a timer goes when its time has come
        return
    if (
        not isinstance(table.windowing, Count | Global | None)
        or table.ttl is not None
        or table.broadcast
        or table.local
    ):
        return
    if has_few_values(table.key_type) or any(_deletes(agent, table) for agent in app.agents.values()):
        return
    kind = "" if table.windowing is None else f" ({type(table.windowing).__name__.lower()} windows)"
    yield Finding(
        "warning",
        f"table {table.name!r}{kind}: keys are kept for ever: give it ttl=, such as ttl=days(30), or delete them",
    )


def has_few_values(type_: Any) -> bool:
    """True for types that have a fixed number of values: bool, enums, literals, None, and unions of those."""
    if typing.get_origin(type_) is Literal or type_ in (bool, None, type(None)):
        return True
    if isinstance(type_, type) and issubclass(type_, enum.Enum):
        return True
    is_union = typing.get_origin(type_) in (typing.Union, types.UnionType)
    return is_union and all(has_few_values(arm) for arm in typing.get_args(type_))


def _deletes(agent: AgentSpec, table: AnyTable[Any, Any]) -> bool:
    """True if the agent's own code deletes keys of the table."""
    import dis

    names = {name for name, value in getattr(agent.function, "__globals__", {}).items() if value is table}
    code = getattr(agent.function, "__code__", None)
    if table not in agent.tables or code is None:
        return False
    steps = list(dis.get_instructions(code))
    deletes = any(step.opname == "DELETE_SUBSCR" for step in steps)
    return deletes and any(step.argval in names for step in steps)


def _ttl(table: AnyTable[Any, Any]) -> Iterator[Finding]:
    if table.ttl is not None and isinstance(table.windowing, Tumbling | Sliding | Cumulative | Session):
        yield Finding(
            "note",
            f"table {table.name!r}: ttl={duration(table.ttl)} has no effect: the state of a window goes when it closes",
        )


def _times(app: App) -> Iterator[Finding]:
    """Topics from outside that feed windows, and whose records name no time."""
    written = {sink.name for agent in app.agents.values() for sink in agent.sinks}
    for topic in app.topics.values():
        if topic.time is not None or topic.name in written:
            continue
        fed = [
            table.name
            for table in app.tables.values()
            if isinstance(table.windowing, Tumbling | Sliding | Cumulative | Session)
            and topic in roots_of((*table.sources, *_written_from(app, table)))
        ]
        if fed:
            yield Finding(
                "warning",
                f"topic {topic.name!r}: feeds the windows of {', '.join(fed)} without time=: on a broker they go by "
                "the time of arrival, and in files everything falls into one window",
            )


def _keys(app: App) -> Iterator[Finding]:
    """What is kept by another key than that by which its events come."""
    for name, by, stream, keys in dict.fromkeys(misplaced(app)):
        yield Finding(
            "warning",
            f"{name!r} is kept by {by!r}, but {stream!r} comes by {' and '.join(map(repr, keys))}: a worker with "
            f"several partitions refuses what belongs to another task (dead letters): use .group_by({by!r})",
        )


def _holding(app: App) -> Iterator[Finding]:
    """Topics of which an empty partition holds the windows of others, since they are sent on by another key."""
    if problems_of(app, rekey=True):
        return
    groups = app.plan(rekey=True).groups
    for group in groups:
        streams = ", ".join(repr(hop.topic.stream.name) for hop in group.hops)
        for topic in group.topics if group.hops else ():
            if not isinstance(topic, Internal) and topic.idle_after is None:
                yield Finding(
                    "note",
                    f"topic {topic.name!r}: is sent on by another key ({streams}): windows there wait for each of its "
                    "partitions, also for one that gets nothing; idle_after= lets them go on without it",
                )


def _written_from(app: App, table: AnyTable[Any, Any]) -> list[Events[Any]]:
    """The streams from which agents write a table."""
    return [source for agent in app.agents.values() if table in agent.tables for source in agent.sources]


def _variables(agent: AgentSpec) -> Iterator[Finding]:
    code = getattr(agent.function, "__code__", None)
    for kept in kept_between_events(agent.function, per_event=agent.per_event):
        at = f"{shown_path(code.co_filename)}:{kept.line}: " if code is not None else ""
        whose = "belongs to the module" if kept.is_global else "is set before the loop"
        yield Finding(
            "warning",
            f"{at}agent {agent.name!r}: {kept.name!r} {whose} and is changed by events: it is no state, a restart "
            "loses it and a failed event does not undo it; keep it in a table",
        )


def _unused(app: App) -> Iterator[Finding]:
    agents = list(app.agents.values())
    taken = [source for agent in agents for source in agent.sources]
    taken += [source for table in app.tables.values() for source in table.sources]
    sources = {root.name for root in roots_of(taken)}
    written = {sink.name for agent in agents for sink in agent.sinks}
    for topic in app.topics.values():
        if topic.name not in sources | written:
            yield Finding("warning", f"topic {topic.name!r}: no agent reads or writes it")
    for sink in app.sinks.values():
        if sink.name not in written:
            yield Finding("warning", f"sink {sink.name!r}: no agent sends to it")
    used = _streams_on_the_way(taken)
    for stream in app.derived.values():
        if stream.name not in used:
            yield Finding("warning", f"stream {stream.name!r}: nothing takes what it makes")
    for table in app.tables.values():
        if isinstance(table, Ticks):
            continue
        if isinstance(table, Timers):
            if table.name not in sources:
                yield Finding("warning", f"timers {table.name!r}: no agent has them among its sources")
            continue
        subscribed = any(stream.name in sources for stream in table.streams)
        read = subscribed or any(table in agent.reads for agent in agents)
        if not table.sources and not any(table in agent.tables for agent in agents):
            if not read:
                yield Finding("warning", f"table {table.name!r}: no agent writes or reads it")
        elif table.words and not read:
            yield Finding("note", f"{table.name!r} ({table.words}): nothing takes what it sends")
        elif table.sources and not read:
            end = f"{table.name}.closed" if table.windowing is not None else f"{table.name}.changes"
            yield Finding("note", f"table {table.name!r}: counts, but no agent reads it or subscribes to {end}")


def _streams_on_the_way(taken: Iterable[Events[Any]]) -> set[str]:
    """The names of all derived streams that lead to what is taken."""
    names: set[str] = set()
    left = list(taken)
    while left:
        stream = left.pop()
        if isinstance(stream, Derived):
            names.add(stream.name)
            left += stream.parents
    return names


# Against the outside


def check_state(app: App, root: Path) -> Iterator[Finding]:
    """Stored state that does not fit what the app declares now. Raises ConfigError if it is not the app's."""
    from flowkit.worker import read_tasks

    told: set[str] = set()
    for store in read_tasks(root, app).values():
        for name, schema in store.meta.get("schemas", {}).items():
            if name in told:
                continue
            told.add(name)
            if name not in app.tables:
                yield Finding("note", f"table {name!r}: is stored in {root}, but no longer declared")
                continue
            try:
                migrates = check_schema(app.tables[name], schema)
            except ConfigError as error:
                yield from (Finding("error", problem) for problem in error.problems)
                continue
            if migrates:
                new = app.tables[name].version
                yield Finding("note", f"table {name!r}: will be migrated from version {schema['version']} to {new}")


def check_broker(app: str, groups: Sequence[Group], url: str) -> Iterator[Finding]:
    """Topics that the broker lacks, partition counts that do not fit each other, and groups that would begin anew."""
    from flowkit.cli.loop import run_loop
    from flowkit.cli.topics import opened
    from flowkit.source import PlacesByGroup
    from flowkit.worker import check_names

    renamed: list[str] = []

    async def partitions() -> dict[str, int]:
        async with opened(url) as broker:
            found: dict[str, int] = await broker.topics()
            if isinstance(broker, PlacesByGroup):
                try:
                    await check_names(broker, app, groups)
                except ConfigError as error:
                    renamed.extend(error.problems)
            return found

    known = run_loop(partitions())
    yield from (Finding("error", problem) for problem in renamed)
    written = {outlet.name for group in groups for outlet in group.outlets if isinstance(outlet, Topic)}
    read = {topic.name for group in groups for topic in group.inputs if topic.pattern is None}
    internal = {hop.topic.name for group in groups for hop in group.hops}  # which the worker makes as they must be
    for name in sorted((read | written) - known.keys() - internal):
        cure = f"flowkit topics create {name} --broker {shlex.quote(url)}"
        yield Finding("note", f"topic {name!r}: is not at {url} yet: {cure}")
    for topic in {topic.name: topic for group in groups for topic in group.patterns}.values():
        if not any(topic.stands_for(name) for name in known):
            yield Finding("note", f"topic {topic.name!r}: nothing at {url} matches it yet: a worker waits")
    for group in groups:
        counts = {name: known[name] for topic in group.topics for name in known if group.input_of(name) is topic}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name} has {number}" for name, number in counts.items())
            tables = ", ".join(table.name for table in group.tables)
            yield Finding(
                "error",
                f"group {group.name!r}: its topics need equal numbers of partitions"
                f"{f', since they share {tables}' if tables else ''}: {told}",
            )
