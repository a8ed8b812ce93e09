"""What a worker's role has to be allowed, from the app's flow and from where its topics, sinks and state are."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from flowkit.app import App
from flowkit.aws import Right
from flowkit.clock import SystemClock
from flowkit.codec import fields_of
from flowkit.sink import Destination, destination
from flowkit.source import BOUNDED, NeedsRights, Sharded, open_broker, storage_rights
from flowkit.store import KmsKey, folder_of, keys_from_environment
from flowkit.worker.run_places import bind_places, check_places
from flowkit.worker.wiring import Wiring


def rights_of(
    app: App,
    binds: Mapping[str, str],
    *,
    broker: str | None = None,
    checkpoints: str | None = None,
    from_savepoint: str | None = None,
    savepoints: Sequence[str] = (),
) -> list[Right]:
    """All that is needed; nobody is asked. Raises ConfigError with all that is wrong."""
    wiring = Wiring(app, app.plan(rekey=broker is not None), binds, 1)
    wiring.check()
    rights = list[Right]()
    for name, found in wiring.destinations.items():
        rights += _for(f"{name} leads there", found.rights())
    if broker is not None:
        rights += _of_broker(wiring, broker, trims=bool(checkpoints))
    folder = folder_of(app.name)[0]
    if checkpoints:
        rights += _for("checkpoints", storage_rights(checkpoints, folder))
    if from_savepoint:
        rights += _for("the savepoint to begin with", storage_rights(from_savepoint, use="read"))
    for place in savepoints:
        rights += _for("savepoints", storage_rights(place, use="add"))
    return rights + _of_key(app)


def rights_of_run(app: App, inputs: Sequence[tuple[str, str]], outputs: Sequence[tuple[str, str]]) -> list[Right]:
    """The same for a bounded run; files are nobody's, and need not be there. Raises ConfigError."""
    check_places(app, app.plan().groups, inputs, outputs)
    served = [(name, url) for name, url in inputs if url.startswith(BOUNDED)]
    sources, destinations = bind_places(app, served, outputs, sync=False)
    rights = list[Right]()
    for name, source in sources.items():
        if isinstance(source, HasRights):
            rights += _for(f"{name} is read from there", source.rights())
    for name, found in destinations.items():
        rights += _for(f"{name} leads there", found.rights())
    return rights + _of_key(app)


def copy_rights_of(app: App, binds: Mapping[str, str]) -> list[Right]:
    """What the role has to be allowed that Redshift reads staged objects by: () where nothing leads to Redshift."""
    wiring = Wiring(app, app.plan(), binds, 1)
    wiring.check()
    return _copied(wiring.destinations)


def copy_rights_of_run(app: App, inputs: Sequence[tuple[str, str]], outputs: Sequence[tuple[str, str]]) -> list[Right]:
    """The same for a bounded run."""
    check_places(app, app.plan().groups, inputs, outputs)
    return _copied(bind_places(app, [], outputs, sync=False)[1])


def _copied(destinations: Mapping[str, Destination]) -> list[Right]:
    found = [(name, to) for name, to in destinations.items() if isinstance(to, Copies)]
    return [right for name, to in found for right in _for(f"COPY of {name}", to.copy_rights())]


def _of_key(app: App) -> list[Right]:
    keys = keys_from_environment(app=app.name)
    return _for("the state is encrypted under it", keys.rights()) if isinstance(keys, KmsKey) else []


def _for(why: str, rights: Iterable[Right]) -> list[Right]:
    """What does not say itself why it is needed."""
    return [right if right.why else right._replace(why=why) for right in rights]


@runtime_checkable
class HasRights(Protocol):
    """What a role has to be allowed something for."""

    def rights(self) -> Sequence[Right]: ...


@runtime_checkable
class Copies(Protocol):
    """A destination whose service reads what was put somewhere, by a role of its own."""

    def copy_rights(self) -> Sequence[Right]: ...


def _of_broker(wiring: Wiring, url: str, *, trims: bool) -> list[Right]:
    found = open_broker(url, SystemClock(), wiring.app.guarantee)
    use, rights = wiring.use()._replace(trims=trims), list[Right]()
    if isinstance(found, NeedsRights):
        rights += _for("the broker", found.rights(use))
    if isinstance(found, Sharded):
        for name in (*use.written, *use.internal):
            to = destination(found.output(name, internal=name in use.internal), fields_of(wiring.outlet(name)))
            what = "streams that the app writes" if name in use.written else "streams between agents"
            rights += _for(what, to.rights())
    return rights
