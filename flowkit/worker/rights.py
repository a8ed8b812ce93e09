"""What a worker's role has to be allowed, from the app's flow and from where its topics, sinks and state are."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from flowkit.app import App
from flowkit.aws import Right
from flowkit.clock import SystemClock
from flowkit.codec import fields_of
from flowkit.sink import destination
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
    rights = [right for found in wiring.destinations.values() for right in found.rights()]
    if broker is not None:
        rights += _of_broker(wiring, broker, trims=bool(checkpoints))
    folder = folder_of(app.name)[0]
    if checkpoints:
        rights += storage_rights(checkpoints, folder)
    if from_savepoint:
        rights += storage_rights(from_savepoint, use="read")
    for place in savepoints:
        rights += storage_rights(place, use="add")
    return rights + _of_key(app)


def rights_of_run(app: App, inputs: Sequence[tuple[str, str]], outputs: Sequence[tuple[str, str]]) -> list[Right]:
    """The same for a bounded run; files are nobody's, and need not be there. Raises ConfigError."""
    check_places(app, app.plan().groups, inputs, outputs)
    served = [(name, url) for name, url in inputs if url.startswith(BOUNDED)]
    sources, destinations = bind_places(app, served, outputs, sync=False)
    places = [*sources.values(), *destinations.values()]
    return [right for place in places if isinstance(place, HasRights) for right in place.rights()] + _of_key(app)


def _of_key(app: App) -> list[Right]:
    keys = keys_from_environment(app=app.name)
    return list(keys.rights()) if isinstance(keys, KmsKey) else []


@runtime_checkable
class HasRights(Protocol):
    """What a role has to be allowed something for."""

    def rights(self) -> Sequence[Right]: ...


def _of_broker(wiring: Wiring, url: str, *, trims: bool) -> list[Right]:
    found = open_broker(url, SystemClock(), wiring.app.guarantee)
    use, rights = wiring.use()._replace(trims=trims), list[Right]()
    if isinstance(found, NeedsRights):
        rights += found.rights(use)
    if isinstance(found, Sharded):
        for name in (*use.written, *use.internal):
            to = destination(found.output(name, internal=name in use.internal), fields_of(wiring.outlet(name)))
            rights += to.rights()
    return rights
