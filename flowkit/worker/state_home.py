"""Where a worker keeps the state of its tasks: a directory for each ownership of a task, never shared.

    STATE/tasks/TASK/OWNERSHIP/log-…      frames, and FROM: where the state was before, until the first commit here

A worker that takes a task over begins a directory of its own and copies what the last commit that counts left, so that
a zombie which still writes to the old one can spoil nothing. Which commit counts is the broker's word.
"""

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import structlog

from flowkit.errors import FlowkitError, StoreCorrupt, StoreLocked
from flowkit.source import Claim
from flowkit.store import Store, claim_directory, open_store, sync_directory

log = structlog.get_logger("flowkit.state")


class StateHome:
    """The state directory of one worker."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, task: str) -> Path:
        return self.root / "tasks" / quote(task, safe="")

    def begin(self, task: str, before: str) -> Path:
        """A new directory for a task whose state has been in `before` ('' if nowhere); durable before it is claimed."""
        place = self.directory(task) / os.urandom(8).hex()
        place.mkdir(parents=True)
        draft = place / ".FROM"
        draft.write_text(before)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.rename(place / "FROM")
        sync_directory(place)
        sync_directory(place.parent)
        return place

    @asynccontextmanager
    async def open(self, task: str, place: Path, claim: Claim) -> AsyncIterator[Store]:
        """The store of a claimed task, as the last commit that counts left it.

        Raises StoreCorrupt if that state is nowhere: computing on from an older one would be wrong in silence.
        """
        with ExitStack() as locks:
            locks.enter_context(claim_directory(place))
            async with open_store(place) as store:
                if claim.number:
                    seen = await self._adopt(store, task, place, claim)
                else:
                    seen = []
                yield store
                if store.number > claim.number:
                    self._sweep(place, seen)

    async def _adopt(self, store: Store, task: str, place: Path, claim: Claim) -> list[Path]:
        """Copy the state from the nearest earlier directory that has the commit; the directories looked into."""
        seen: list[Path] = []
        before = _origin(place)
        while before is not None and before not in seen:
            seen.append(before)
            if await store.adopt(before, claim.commit_id or b""):
                log.info("state taken over", task=task, path=str(before), commit=claim.number)
                return seen
            before = _origin(before)
        looked = ", ".join(map(str, seen)) or "nowhere"
        raise StoreCorrupt(
            f"task {task}: its state at commit {claim.number} was looked for in {looked} and is not there: bring the "
            "directory back, or run the app under another name to begin anew"
        )

    def _sweep(self, place: Path, seen: list[Path]) -> None:
        """Remove directories whose state lives on here; never one whose owner is alive."""
        others = [path for path in place.parent.iterdir() if path != place and path.is_dir()]
        for path in {*seen, *others}:
            with contextlib.suppress(StoreLocked, FlowkitError, OSError), claim_directory(path):
                shutil.rmtree(path)


def _origin(place: Path) -> Path | None:
    try:
        text = (place / "FROM").read_text()
    except OSError:
        return None
    return Path(text) if text else None
