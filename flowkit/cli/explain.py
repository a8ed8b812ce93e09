"""`flowkit explain`: an app's flow from source to sink, as text or as a Mermaid diagram."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer

from flowkit.agent import AgentSpec, Group, Internal, Outlet, Topic
from flowkit.app import App
from flowkit.cli.arguments import Module, pairs
from flowkit.cli.explain_json import facts_of
from flowkit.cli.load import load_app, problems_of
from flowkit.cli.outcome import EXIT_CODES, OK, out, say
from flowkit.cli.show import iso, type_name, window_words
from flowkit.cli.spell import aggregate_words, function_words
from flowkit.errors import ConfigError
from flowkit.flow import Called, Events, Path, Step, roots_of
from flowkit.options import Start
from flowkit.record import duration
from flowkit.sink import destination
from flowkit.table import AnyTable, ProcessTable, TableEvents, Ticks, Timers
from flowkit.window import Cumulative, Every, Schedule, Session, Sliding, Tumbling

HERE = "in files with --state; on standard output at least once"
TOPIC_GUARANTEES = {
    "exactly once": (
        "exactly once on kafka:// (frame and outputs are one transaction, for readers of what is committed), on "
        f"embedded:// (outputs, positions and state are one transaction, while its disk lives) and {HERE}; "
        "on kinesis:// at least once (delivered once the commit counts)"
    ),
    "at least once": (
        "at least once on kafka:// (sent before the frame: again, if a worker dies between them); exactly once on "
        f"embedded:// (while its disk lives) and {HERE}; on kinesis:// at least once, too"
    ),
}
SINK_GUARANTEE = (
    "exactly once in a file (while its disk lives); on standard output at least once; in a service as --bind NAME=URL "
    "tells"
)
LETTERS_GUARANTEE = (
    "{} with the commit of what went well: the topic dead-letters of the broker, or a file dead-letters.jsonl"
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("explain", epilog=EXIT_CODES)(explain)


def explain(
    module: Module,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="As a Mermaid flowchart, for a README.")] = False,
    bind: Annotated[
        list[str] | None,
        typer.Option("--bind", "-o", metavar="NAME=URL", help="Tell the guarantee of this output exactly."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As one JSON object, for other programs.")] = False,
) -> int:
    """Show the flow of an app from source to sink: what is keyed, windowed and stateful, what runs together as a task,
    and what can be relied on at each output.
    """
    bound = dict(pairs("--bind", bind or [], "NAME=FILE"))
    app = load_app(module)
    problems = problems_of(app, rekey=True)
    groups = app.plan(rekey=not problems).groups
    written = {app.dead_letters.name, *(outlet.name for outlet in _outlets(groups))}
    if unknown := [f"--bind {name}: no agent writes {name!r}" for name in bound if name not in written]:
        raise ConfigError(*unknown)
    if json:
        import msgspec

        outlets = {outlet.name: _guarantee(app, outlet, bound) for outlet in _outlets(groups)}
        letters = {app.dead_letters.name: _letters_guarantee(app, bound)}
        out(msgspec.json.encode(facts_of(app, groups, outlets | letters)).decode())
    else:
        out(mermaid_of(app, groups) if mermaid else "\n".join(text_of(app, groups, bound)))
    for problem in problems:
        say(f"as a bounded run has it; a worker cannot run it: {problem}")
    return OK


# As text


def text_of(app: App, groups: list[Group], bound: dict[str, str]) -> Iterator[str]:
    """The lines that describe an app."""
    yield f"app {app.name}: {app.guarantee}"
    for group in groups:
        yield ""
        yield f"group {group.name}: {_tasks(group)}"
        for topic in group.topics:
            yield f"  topic {topic.name}: {_topic_words(topic)}"
            yield from _readers(group, topic.name, "    ")
        for topic in group.broadcast_topics:
            yield f"  topic {topic.name}: {_topic_words(topic)}; every task reads all of it"
            yield from _readers(group, topic.name, "    ")
        for table in group.tables:
            yield f"  {_table_kind(table)} {table.name}: {table_words(table)}"
            if isinstance(table, Ticks | Timers):
                yield from _readers(group, table.name, "    ")
                continue
            for stream in table.streams:
                readers = list(_readers(group, stream.name, "      "))
                if readers:
                    too_late = stream.kind == "late" and isinstance(table, ProcessTable)
                    yield "    what came when its time had passed" if too_late else f"    {EVENT_WORDS[stream.kind]}"
                    yield from readers
        for called in group.called:
            yield f"  calls {called.name}: {call_words(called)}"
            yield from _readers(group, called.name, "    ")
        if app.dead_letters in roots_of(source for agent in group.agents for source in agent.sources):
            yield "  dead letters of this app"
            yield from _readers(group, app.dead_letters.name, "    ")
    yield ""
    yield "outputs"
    for outlet in _outlets(groups):
        if isinstance(outlet, Internal):
            continue
        yield f"  {_kind(outlet)} {outlet.name}: {type_name(outlet.element)}{_key_words(outlet)}"
        yield f"    {_guarantee(app, outlet, bound)}"
    yield f"  {app.dead_letters.name}: what cannot be used or makes an agent fail"
    yield f"    {_letters_guarantee(app, bound)}"


EVENT_WORDS = {
    "closed": "closed windows",
    "changes": "changes, event by event",
    "late": "late records, whose windows are all closed",
    "": "what it sends",
    "timed_out": "partial matches whose time ran out",
}


def call_words(stream: Called[Any]) -> str:
    """What is called for what, and how."""
    spec = stream.spec
    called = function_words(spec.function)
    words = [f"await {called} for each event of {', '.join(parent.name for parent in stream.parents)}"]
    if spec.size is not None:
        words = [f"await {called} for up to {spec.size} events of {', '.join(p.name for p in stream.parents)}"]
    if spec.within is not None:
        words.append(f"which wait for {duration(spec.within)} at most")
    words.append(f"{spec.concurrency} at once")
    if spec.timeout is not None:
        words.append(f"{duration(spec.timeout)} for each try")
    if spec.retry is not None and spec.retry.attempts > 1:
        words.append(f"tries {spec.retry.attempts} times")
    words.append("in order" if spec.ordered else "as they are ready (in a bounded run in order)")
    words.append("the watermark waits for what is under way, and a commit saves it")
    return ", ".join(words)


CLOCK_WORDS = {"event": "in event time", "wall": "by the clock (in a bounded run by event time)"}


def schedule_words(schedule: Schedule) -> str:
    """When something periodic is due, in words."""
    return f"every {duration(schedule.period)}" if isinstance(schedule, Every) else schedule.words


def _table_kind(table: AnyTable[Any, Any]) -> str:
    return "timers" if isinstance(table, Timers) else "ticks" if isinstance(table, Ticks) else "table"


def _tasks(group: Group) -> str:
    names = [topic.name for topic in group.topics]
    if not names:
        return "one task"
    if len(names) == 1:
        many = " (all that match have equal numbers of them)" if group.topics[0].pattern is not None else ""
        return f"one task for each partition of {names[0]}{many}"
    return f"one task for each partition, the same of {', '.join(names)} (which need equal numbers of them)"


def _topic_words(topic: Topic[Any]) -> str:
    if isinstance(topic, Internal):
        return f"{type_name(topic.type)}, internal: {topic.stream.name}, re-keyed by {_getter(topic.key)}, exactly once"
    words = [type_name(topic.type) + _key_words(topic)]
    if topic.pattern is not None:
        words.insert(0, f"all topics that match {topic.pattern.pattern}, also those that come later")
    words.append(f"time {_getter(topic.time)}" if topic.time is not None else "time of the transport")
    words.append(f"up to {duration(topic.out_of_order)} out of order" if topic.out_of_order else "in order of time")
    if topic.idle_after is not None:
        words.append(f"a split silent for {duration(topic.idle_after)} does not hold the watermark")
    if topic.close_after_idle is not None:
        words.append(f"after {duration(topic.close_after_idle)} of silence the clock moves the watermark")
    if topic.start != "earliest":
        words.append(start_words(topic.start))
    if topic.out_of_range != "fail":
        words.append(f"goes on at the {topic.out_of_range} record if its position is gone")
    return ", ".join(words)


def start_words(start: Start) -> str:
    """Where a topic is read from without a position, in words.

    >>> start_words("latest"), start_words(1_700_000_000_000)
    ('begins at the latest record', 'begins at 2023-11-14T22:13:20Z')
    >>> start_words({0: 7, 2: 9})
    'begins at offset 7 of partition 0 and 9 of partition 2 (others at the earliest)'
    """
    match start:
        case "earliest" | "latest":
            return f"begins at the {start} record"
        case int():
            return f"begins at {iso(start)}"
        case _:
            offsets = " and ".join(f"{offset} of partition {number}" for number, offset in sorted(start.items()))
            return f"begins at offset {offsets} (others at the earliest)"


def table_words(table: AnyTable[Any, Any]) -> str:
    """What a table keeps, for how long, in words."""
    if isinstance(table, Ticks):
        return f"{schedule_words(table.schedule)}, {CLOCK_WORDS[table.clock]}"
    words = [f"keyed by {type_name(table.key_type)}"]
    if isinstance(table, ProcessTable):
        return ", ".join([table.words, *words, table.grows or "kept as long as the watermark asks for"])
    if isinstance(table, Timers):
        return f"{words[0]}, one time a key, {CLOCK_WORDS[table.clock]}"
    if table.source is not None:
        counted = ", ".join(f"{name}={aggregate_words(aggregate)}" for name, aggregate in table.aggregates.items())
        words = [f"counts {table.source.name} by {_getter(table.by)}: {counted}"]
    elif table.words:
        words.insert(0, table.words)
    else:
        words.append(f"values {type_name(table.value_type)}")
    if table.windowing is not None:
        words.append(f"windows {window_words(table.windowing)}")
        if table.allowed_lateness:
            words.append(f"late records count for {duration(table.allowed_lateness)} more")
        if table.early:
            words.append(f"early results each {duration(table.early)} of event time")
        if table.late_policy == "deliver":
            words.append("late records go to the agent")
    if isinstance(table.windowing, Tumbling | Sliding | Cumulative | Session):
        words.append("gone when its window closes")
    elif table.ttl is not None:
        words.append(f"forgotten {duration(table.ttl)} after its last use")
    else:
        words.append("kept for ever")
    if table.broadcast:
        words.append("all of it in every task")
    if table.local:
        words.append("keys are each task's own")
    return ", ".join(words)


def _readers(group: Group, source: str, indent: str) -> Iterator[str]:
    for agent in group.agents:
        for way in _ways(group, source, agent.sources):
            yield f"{indent}{way}-> agent {agent.name}{_agent_words(agent)}"
    for table in group.tables:
        for way in _ways(group, source, table.sources):
            yield f"{indent}{way}-> table {table.name}"
    for called in group.called:
        for way in _ways(group, source, called.parents):
            yield f"{indent}{way}-> calls {called.name}"
    for hop in group.hops:
        for way in _ways_on(source, hop.paths):
            key = _getter(hop.topic.stream.key)
            yield f"{indent}{way}-> re-keyed by {key} through topic {hop.topic.name}, exactly once"


def _ways(group: Group, root: str, streams: Iterable[Events[Any]]) -> Iterator[str]:
    """The ways from a stream to those that are taken, each as the operators on it."""
    return _ways_on(root, (path for stream in streams for path in group.paths_of(stream)))


def _ways_on(root: str, paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        if path.root.name == root:
            yield "".join(f"-> {step_words(step)} " for step in path.steps)


def step_words(step: Step) -> str:
    """An operator as it was written, more or less."""
    return f"{step.kind}({function_words(step.function)})"


def _agent_words(agent: AgentSpec) -> str:
    words = []
    if agent.tables:
        kept = [table for table in agent.tables if not isinstance(table, Timers)]
        timers = [table for table in agent.tables if isinstance(table, Timers)]
        words += [f"keeps {_names(kept)}"] if kept else []
        words += [f"sets {_names(timers)}"] if timers else []
    if agent.reads:
        words.append(f"reads {_names(agent.reads)}")
    if agent.sinks:
        words.append(f"sends to {_names(agent.sinks)}")
    if agent.retry.attempts > 1:
        words.append(f"tries {agent.retry.attempts} times")
    return f": {', '.join(words)}" if words else ""


def _guarantee(app: App, outlet: Outlet[Any], bound: dict[str, str]) -> str:
    if outlet.name in bound:
        from flowkit.codec import fields_of

        return destination(bound[outlet.name], fields_of(outlet.element), element=outlet.element).guarantee
    return TOPIC_GUARANTEES[app.guarantee] if isinstance(outlet, Topic) else SINK_GUARANTEE


def _letters_guarantee(app: App, bound: dict[str, str]) -> str:
    letters = bound.get(app.dead_letters.name)
    return LETTERS_GUARANTEE.format(app.guarantee) if letters is None else destination(letters, None).guarantee


def _outlets(groups: Iterable[Group]) -> list[Outlet[Any]]:
    found = {outlet.name: outlet for group in groups for outlet in group.outlets}
    return list(found.values())


def _kind(outlet: Outlet[Any]) -> str:
    return "topic" if isinstance(outlet, Topic) else "sink"


def _key_words(outlet: Outlet[Any]) -> str:
    return "" if outlet.key is None else f", keyed by {_getter(outlet.key)}"


def _getter(getter: Any) -> str:
    return getter if isinstance(getter, str) else function_words(getter)


def _names(things: Iterable[Any]) -> str:
    return ", ".join(thing.name for thing in things)


# As a diagram


def mermaid_of(app: App, groups: list[Group]) -> str:
    """A Mermaid flowchart: topics and sinks as they are, agents and tables boxed by the task that they make up."""
    ids: dict[str, str] = {}

    def id_of(kind: str, name: str) -> str:
        return ids.setdefault(f"{kind} {name}", f"{kind[0]}{len(ids)}")

    def outside(events: Events[Any] | Outlet[Any]) -> str:
        return id_of("topic", events.name)

    lines = ["flowchart LR"]
    shown: set[str] = set()
    for thing in [*(topic for group in groups for topic in group.inputs), *_outlets(groups)]:
        if thing.name not in shown:
            shown.add(thing.name)
            shape = ('[("', '")]') if isinstance(thing, Topic) else ('[["', '"]]')
            lines.append(f"  {outside(thing)}{shape[0]}{_quoted(thing.name)}{shape[1]}")
    edges: list[str] = []
    for number, group in enumerate(groups):
        edges += _edges(group, number, id_of, outside)
        if not group.agents and not group.tables and not group.called:
            continue  # it only sends on, which an arrow tells
        lines.append(f'  subgraph g{number}["{_quoted(f"{group.name}: {_tasks(group)}")}"]')
        for table in group.tables:
            words = window_words(table.windowing) if table.windowing is not None else _box_words(table)
            box = f'[/"{_quoted(table.name)}<br>{_quoted(words)}"/]'
            lines.append(f"    {id_of('table_of', f'{number} {table.name}')}{box}")
        for called in group.called:
            box = f'{{{{"{_quoted(called.name)}"}}}}'
            lines.append(f"    {id_of('calls', f'{number} {called.name}')}{box}")
        lines += [f'    {id_of("agent", f"{number} {a.name}")}("{_quoted(a.name)}")' for a in group.agents]
        lines.append("  end")
    return "\n".join([*lines, *dict.fromkeys(edges)])


def _box_words(table: AnyTable[Any, Any]) -> str:
    return schedule_words(table.schedule) if isinstance(table, Ticks) else _table_kind(table)


def _edges(group: Group, number: int, id_of: Any, outside: Any) -> Iterator[str]:
    def table_id(table: AnyTable[Any, Any]) -> str:
        return str(id_of("table_of", f"{number} {table.name}"))

    def called_id(stream: Events[Any]) -> str:
        return str(id_of("calls", f"{number} {stream.name}"))

    def arrows(source: Events[Any], target: str) -> Iterator[str]:
        yield from along(group.paths_of(source), target)

    def along(paths: Iterable[Path], target: str) -> Iterator[str]:
        for path in paths:
            root = path.root
            words = [root.kind] if isinstance(root, TableEvents) and root.kind else []
            label = _quoted(", ".join([*words, *map(step_words, path.steps)]))
            if isinstance(root, TableEvents):
                start = table_id(root.table)
            else:
                start = called_id(root) if isinstance(root, Called) else outside(root)
            yield f"  {start} -- {label} --> {target}" if label else f"  {start} --> {target}"

    for table in group.tables:
        for source in table.sources:
            yield from arrows(source, table_id(table))
    for called in group.called:
        for parent in called.parents:
            yield from arrows(parent, called_id(called))
    for agent in group.agents:
        target = id_of("agent", f"{number} {agent.name}")
        for source in agent.sources:
            yield from arrows(source, target)
        for table in agent.tables:
            yield f"  {target} <--> {table_id(table)}"
        for table in agent.reads:
            yield f"  {table_id(table)} -. reads .-> {target}"
        for sink in agent.sinks:
            yield f"  {target} --> {outside(sink)}"
    for hop in group.hops:
        yield from along(hop.paths, outside(hop.topic))


def _quoted(words: str) -> str:
    return words.replace('"', "#quot;")
