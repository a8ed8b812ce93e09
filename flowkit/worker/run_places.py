"""Where a bounded run reads from, and where it writes to: what its words say, looked at before anything is made."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from flowkit.agent import Outlet, Topic
from flowkit.app import App
from flowkit.codec import fields_of
from flowkit.errors import ConfigError, InputError
from flowkit.sink import Destination, destination, is_file
from flowkit.source import BOUNDED, FileSource, bounded_topics

if TYPE_CHECKING:
    from flowkit.source import BoundedTopics, S3Topic

    Source = FileSource | BoundedTopics | S3Topic

log = structlog.get_logger("flowkit.run")


def places_of(
    app: App,
    groups: Sequence[Any],
    inputs: Sequence[tuple[str, str]],
    outputs: Sequence[tuple[str, str]],
    *,
    sync: bool,
) -> tuple[dict[str, "Source"], dict[str, Destination]]:
    """Where all comes from and goes to. Raises ConfigError or InputError with all that is wrong; changes nothing.

    What nothing is given for, and what leads nowhere, is logged.
    """
    check_places(app, groups, inputs, outputs)
    _tell_unbound(app, groups, inputs, outputs)
    return bind_places(app, inputs, outputs, sync=sync)


def check_places(
    app: App, groups: Sequence[Any], inputs: Sequence[tuple[str, str]], outputs: Sequence[tuple[str, str]]
) -> None:
    """Raise ConfigError with all that is wrong with what is to lead where."""
    problems: list[str] = []
    read, written = _read_and_written(app, groups)
    if not groups:
        problems.append(f"app {app.name!r} has no agents and no declared tables: there is nothing to run")
    elif not inputs:
        problems.append(f"no --input: app {app.name!r} reads {', '.join(sorted(read)) or 'no topics'}")
    for name, path in inputs:
        if name not in app.topics:
            problems.append(
                f"--input {name}={path}: app {app.name!r} has no topic {name!r} (it has {_names(app.topics)})"
            )
        elif name not in read:
            problems.append(f"--input {name}={path}: no agent reads topic {name!r} (agents read {_names(read)})")
    for name, path in outputs:
        if name not in app.topics and name not in app.sinks and name != app.dead_letters.name:
            known = {**app.topics, **app.sinks}
            problems.append(
                f"--output {name}={path}: app {app.name!r} has no topic or sink {name!r} (it has {_names(known)})"
            )
        elif name not in written:
            problems.append(f"--output {name}={path}: no agent writes {name!r} (agents write {_names(written)})")
    for n, (name, path) in enumerate(outputs):
        if path != "-" and any(_same(path, other) for _, other in inputs):
            problems.append(f"--output {name}={path}: is an input of this run")
        if any(name == other for other, _ in outputs[:n]):
            problems.append(f"--output {name}={path}: {name!r} has an output already")
        if any(_same(path, other) for _, other in outputs[:n]):
            problems.append(f"--output {name}={path}: another output writes there")
    if [path for _, path in inputs].count("-") > 1:
        problems.append("--input: standard input can be read only once")
    if problems:
        raise ConfigError(*problems)


def bind_places(
    app: App, inputs: Sequence[tuple[str, str]], outputs: Sequence[tuple[str, str]], *, sync: bool
) -> tuple[dict[str, "Source"], dict[str, Destination]]:
    """As `places_of`, of what `check_places` has passed."""
    paths: dict[str, list[str]] = {}
    for name, path in inputs:
        paths.setdefault(name, []).append(path)
    sources: dict[str, Source] = {}
    sinks: dict[str, Destination] = {}
    wrong: list[ConfigError | InputError] = []
    for name, files in paths.items():
        try:
            sources[name] = _source(app.topics[name], files)
        except (ConfigError, InputError) as error:
            wrong.append(error)
    for name, path in outputs:
        try:
            element = _outlet(app, name).element
            sinks[name] = destination(path, fields_of(element), sync=sync, element=element)
            sinks[name].check()
        except ConfigError as error:
            wrong.append(error)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        raise ConfigError(*(problem for error in wrong for problem in getattr(error, "problems", [str(error)])))
    return sources, sinks


def dead_letters_path(app: App, state: str | Path | None) -> str:
    """In the state directory; else under a free name beside the user, or in /tmp if nothing may be written there."""
    if state is not None:
        return str(Path(state) / "dead-letters.jsonl")
    place = Path() if os.access(".", os.W_OK) else Path(tempfile.gettempdir())
    path = place / f"{app.name}-dead-letters.jsonl"
    number = 1
    while path.exists():
        number += 1
        path = place / f"{app.name}-dead-letters-{number}.jsonl"
    return str(path)


def _tell_unbound(
    app: App, groups: Sequence[Any], inputs: Sequence[tuple[str, str]], outputs: Sequence[tuple[str, str]]
) -> None:
    read, written = _read_and_written(app, groups)
    given = {name for name, _ in inputs}
    for name in sorted(read - given - written):
        log.warning("topic has no --input: taken as empty", topic=name)
    bound = {name for name, _ in outputs}
    for name in sorted(written - bound - read - {app.dead_letters.name}):
        log.warning("no --output: what agents send there is dropped", name=name)


def _outlet(app: App, name: str) -> Outlet[Any]:
    if name == app.dead_letters.name:
        return app.dead_letters
    found: Outlet[Any] | None = app.topics.get(name) or app.sinks.get(name)
    assert found is not None
    return found


def _source(topic: Topic[Any], paths: list[str]) -> "Source":
    """What a topic is read from. Raises ConfigError, or InputError for a file that cannot be read."""
    places = [path for path in paths if path.startswith(BOUNDED)]
    if places:
        if len(paths) > 1:
            what = "a topic of a cluster" if places[0].startswith("kafka://") else "a prefix in S3"
            raise ConfigError(f"--input {topic.name}: {what} is all of an input; name nothing beside it")
        return bounded_topics(places[0], topic.start, topic.pattern)
    for path in paths:
        if not is_file(path):
            known = " and ".join(f"{start}…" for start in BOUNDED)
            raise ConfigError(
                f"--input {topic.name}={path}: what a run can read are files, {known}; other topics are for "
                "`flowkit worker`"
            )
    source = FileSource([path.removeprefix("file://") for path in paths])
    source.check()
    return source


def _read_and_written(app: App, groups: Sequence[Any]) -> tuple[set[str], set[str]]:
    read = {topic.name for group in groups for topic in group.inputs}
    return read, {outlet.name for group in groups for outlet in group.outlets} | {app.dead_letters.name}


def _names(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"


def _same(a: str, b: str) -> bool:
    if not (is_file(a) and is_file(b)):
        return False
    return a != "-" and b != "-" and Path(a).absolute() == Path(b).absolute()
