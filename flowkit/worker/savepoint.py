"""A savepoint: an app's state at one moment between events, from which it can be started elsewhere or later.

    CHECKPOINTS/APP/SAVEPOINT     the request: which savepoint, where to, and what has become of it
    TO/ID.plan                    the tasks that it takes
    TO/ID.TASK.seal               a task's part: its commit, and the checkpoint of it
    TO/APP/GROUP/PARTITION/…      the checkpoints, as `flowkit checkpoint` reads them
    TO/MANIFEST                   written last, once: without it there is no savepoint

Who wants one writes the request where the app's checkpoints go: all workers look there, whatever the broker. Then:

    stop     every task stops reading topics that are not flowkit's own, and does what it has taken in
    drain    it reads its internal topics on, until all who send into them have sealed and it has come to the end
    seal     one more commit, made whether or not there is anything to commit: whoever is not the owner any more fails
             at it. Its state goes into the savepoint, then its seal. From here it does nothing at all
    verify   one worker finds all seals there, and that the commit of each is still the last one of its task: then no
             task has sent anything that another's part does not know of. It writes the manifest; all go on, or stop

The order in which tasks seal is that of the hops between them, which make no circle. Calls that are under way need not
end: they are part of the state. A task that is opened anew in between takes its seal up if that is of its very commit;
if it is not, the savepoint fails, and one asks again. Nothing that fails harms the app: it goes on.

`draining` is the workers' side of this, `beginning` what starts from a savepoint.
"""

import os
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from flowkit.clock import Clock
from flowkit.errors import ConfigError, StoreCorrupt
from flowkit.store import Blobs, Storage, folder_of

REQUEST, MANIFEST = "SAVEPOINT", "MANIFEST"
FORMAT = 1
LOST_MS = 60_000
"""A request that nobody has ended so long after its time belongs to nobody any more."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for at `asked` (ms), for at most `timeout` (ms). `why` tells people why it failed."""

    id: str
    app: str
    to: str
    stop: bool
    timeout: int
    asked: int
    state: Literal["asked", "done", "failed"] = "asked"
    why: str = ""


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """A task's part of a savepoint: the checkpoint `name` of its commit (id in hex)."""

    task: str
    commit: int
    commit_id: str
    name: str
    bytes: int
    positions: dict[str, Any]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A savepoint that is whole. `groups` are the partitions of each; `internal` the names of flowkit's own topics."""

    format: int
    id: str
    app: str
    at: int
    groups: dict[str, int]
    internal: list[str]
    seals: list[Seal]

    @property
    def bytes(self) -> int:
        """Of all checkpoints together."""
        return sum(seal.bytes for seal in self.seals)


# Requests


class Requests:
    """The requests of one app, where its checkpoints go. All raise StoreError."""

    def __init__(self, checkpoints: Storage, app: str, clock: Clock) -> None:
        self.app, self.clock = app, clock
        self._blobs: Blobs = checkpoints.blobs(folder_of(f"{app}/-/0")[0])

    async def last(self) -> Request | None:
        """The last one; None if there has never been one. Raises StoreCorrupt."""
        return (await self._last())[0]

    async def _last(self) -> tuple[Request | None, str | None]:
        found = await self._blobs.get(REQUEST)
        return (None, None) if found is None else (_decoded(found[0], Request, REQUEST), found[1])

    async def ask(self, to: str, *, stop: bool, within: int) -> Request:
        """Ask for a savepoint at `to`, `within` ms. Raises ConfigError if another one is under way."""
        before, tag = await self._last()
        now = self.clock.now_ms()
        if before is not None and before.state == "asked" and now < before.asked + before.timeout + LOST_MS:
            left = (before.asked + before.timeout + LOST_MS - now) // 1000
            raise ConfigError(
                f"app {self.app!r}: a savepoint to {before.to} is under way; wait for it, or at most {left} s if who "
                "asked for it is gone"
            )
        request = Request(id=os.urandom(16).hex(), app=self.app, to=to, stop=stop, timeout=within, asked=now)
        if await self._blobs.put(REQUEST, msgspec.json.encode(request), over=tag) is None:
            raise ConfigError(f"app {self.app!r}: another savepoint was asked for at the same moment: wait for that")
        return request

    async def end(self, request: Request, state: Literal["done", "failed"], why: str = "") -> Request:
        """Say what has become of it, if nobody has yet: what it is now."""
        while True:
            now, tag = await self._last()
            if now is None or now.id != request.id or now.state != "asked":
                return (
                    msgspec.structs.replace(request, state="failed", why="another one was asked for")
                    if (now is None or now.id != request.id)
                    else now
                )
            ended = msgspec.structs.replace(now, state=state, why=why)
            if await self._blobs.put(REQUEST, msgspec.json.encode(ended), over=tag) is not None:
                return ended


# Parts


class Parts:
    """The parts of the savepoint `id`, as they come to lie in its storage. All raise StoreError."""

    def __init__(self, storage: Storage, id_: str) -> None:
        self.storage, self.id = storage, id_
        self._blobs: Blobs = storage.blobs()

    async def plan(self) -> list[str] | None:
        """The tasks that it takes; None before any worker has heard of it."""
        found = await self._blobs.get(f"{self.id}.plan")
        return None if found is None else _decoded(found[0], list[str], f"{self.id}.plan")

    async def put_plan(self, tasks: list[str]) -> None:
        """Tell which tasks it takes."""
        await self._blobs.put(f"{self.id}.plan", msgspec.json.encode(tasks))

    async def sealed(self, among: list[str]) -> set[str]:
        """Those of some tasks that have sealed."""
        names = {blob.name for blob in await self._blobs.find(f"{self.id}.")}
        return {task for task in among if self._name(task) in names}

    async def seal(self, task: str) -> Seal | None:
        """A task's seal; None if it has none yet."""
        found = await self._blobs.get(self._name(task))
        return None if found is None else _decoded(found[0], Seal, self._name(task))

    async def put_seal(self, seal: Seal) -> bool:
        """Seal a task's part; False if there is another seal already."""
        if await self._blobs.put(self._name(seal.task), msgspec.json.encode(seal)) is not None:
            return True
        return await self.seal(seal.task) == seal

    def _name(self, task: str) -> str:
        return f"{self.id}.{quote(task, safe='')}.seal"

    async def put_manifest(self, manifest: Manifest) -> bool:
        """Make it a savepoint; False if there is another one at that place."""
        if await self._blobs.put(MANIFEST, msgspec.json.encode(manifest)) is not None:
            return True
        found = await read_manifest(self.storage)
        return found is not None and found.id == self.id


async def read_manifest(storage: Storage) -> Manifest | None:
    """The savepoint that lies in a storage; None if there is none. Raises ConfigError, StoreCorrupt, StoreError."""
    found = await storage.blobs().get(MANIFEST)
    if found is None:
        return None
    where = f"{storage.url}/{MANIFEST}"
    version = _decoded(found[0], _Version, where).format
    if version > FORMAT:
        raise ConfigError(f"{where}: is of format {version}, this flowkit reads up to {FORMAT}: use a newer flowkit")
    manifest: Manifest = _decoded(found[0], Manifest, where)
    return manifest


async def need_manifest(storage: Storage) -> Manifest:
    """The savepoint that lies in a storage. Raises ConfigError if there is none, StoreCorrupt, StoreError."""
    manifest = await read_manifest(storage)
    if manifest is None:
        raise ConfigError(
            f"{storage.url}: there is no savepoint (no {MANIFEST}, which is written last): take one with `flowkit "
            "savepoint`, or name the place of one that is whole"
        )
    return manifest


class _Version(msgspec.Struct):
    format: int


def _decoded(data: bytes, type_: Any, where: str) -> Any:
    try:
        return msgspec.json.decode(data, type=type_)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(f"{where}: unreadable: {error}") from error


def check_place(to: str, checkpoints: str) -> None:
    """Raise ConfigError if a savepoint would lie where checkpoints go."""
    if to.rstrip("/") == checkpoints.rstrip("/"):
        raise ConfigError(f"--to {to}: is where checkpoints go, which change: give the savepoint a place of its own")
