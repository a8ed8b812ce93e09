"""Lives of a store on a recording file system, and what may be found after a power failure at any moment of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowkit.store import Frame, LsmStore, Space
from flowkit.store.cipher import StoreKey
from flowkit.store.options import Durability
from tests.store.recording import Operation, Recorder
from tests.store.world import SPACES, Model, frame, hold, kill, open_now, settle, tiny


class Oracle:
    """Knows from the recorded operations which frames may be the last one found: see `possible`.

    Frames are counted from 1 in the order in which they were prepared; 0 stands for the empty store.
    """

    def __init__(self, frames: list[Frame], parents: list[int], last: int = 0) -> None:
        self.frames, self.parents = frames, parents
        self.models: list[Model] = [Model()]
        for made, parent in zip(frames, parents, strict=True):
            self.models.append(self.models[parent].copy().apply(made))
        self.last = self.floor = last
        self.appended = last
        self.applied: set[int] = set()
        self.dying: set[int] = set()
        self._ends: dict[int, list[tuple[int, int]]] = {}
        self._sizes: dict[int, int] = {}

    def feed(self, operation: Operation) -> None:
        kind, file = operation.kind, operation.file
        if kind == "create" and operation.name.startswith("log-"):
            self._ends[file], self._sizes[file] = [], 0
        elif kind == "mark":
            assert isinstance(operation.mark, tuple)
            what, number = operation.mark
            if what == "applied":
                self.applied.add(number)
            elif what == "promised":
                assert self.floor == number, f"frame {number} was promised, but is not durable"
        elif file not in self._ends:
            return
        elif kind == "append":
            self._sizes[file] += len(operation.data)
            if self._sizes[file] > len(operation.data):  # the first is the header
                self.appended += 1
                self.last = self.appended
                self._ends[file].append((self.last, self._sizes[file]))
        elif kind == "truncate":
            self._sizes[file] = operation.size
            while self._ends[file] and self._ends[file][-1][1] > operation.size:
                gone, _ = self._ends[file].pop()
                self.dying.add(gone)
                self.last = self.parents[gone - 1]
                self.floor = min(self.floor, self.last)
        elif kind == "sync":
            self.dying.clear()
            if self._ends[file]:
                self.floor = max(self.floor, self._ends[file][-1][0])

    def possible(self) -> set[int]:
        """The frames of which one must be the last that is found."""
        found, at = {self.last}, self.last
        while at > self.floor:
            at = self.parents[at - 1]
            found.add(at)
        return found | self.dying

    def check(self, store: LsmStore, rows: dict[Space, Any]) -> int:
        """The number of the last frame in a store that was opened after the failure; all it holds must be of that."""
        if store.undecided is not None:
            number = int(store.undecided.meta["n"])
            made = self.frames[number - 1]
            assert not made.decided, f"frame {number} counts, but came back undecided"
            counts = self.parents[number - 1]
        else:
            number = counts = int(store.meta.get("n", 0))
            if number:
                made = self.frames[number - 1]
                assert made.decided or number in self.applied, f"frame {number} counts, though nobody said so"
        assert number in self.possible(), f"frame {number} was found, but one of {self.possible()} must be"
        assert store.number == (0 if counts == 0 else self._depth(counts))
        expected = self.models[counts]
        if store.undecided is not None:
            expected = expected.copy()
            now, expected = expected.now, expected.apply(store.undecided)
            expected.now = now
        assert rows == expected.everything(), f"what was found is not the state of frame {number}"
        return number

    def _depth(self, number: int) -> int:
        depth = 0
        while number:
            depth, number = depth + 1, self.parents[number - 1]
        return depth


class Life:
    """A store that lives through random steps, on a recorder."""

    def __init__(self, root: Path, durability: Durability, key: StoreKey | None, seed: int) -> None:
        self.recorder = Recorder(root)
        self.options, self.key = tiny(durability, log_bytes=400), key
        self.luck = random.Random(seed)
        self.frames: list[Frame] = []
        self.parents: list[int] = []
        self.last = 0
        self.root = root

    def oracle(self) -> Oracle:
        return Oracle(self.frames, self.parents)

    def open(self) -> LsmStore:
        return open_now(self.root, files=self.recorder, options=self.options, key=self.key)

    async def live(self, steps: int) -> None:
        """Open, do so many steps, and close."""
        store = self.open()
        for _ in range(steps):
            step = self.luck.choices(
                [self.commit, self.undone, self.decided_later, self.flush, self.compact, self.close, self.kill],
                [12, 1, 1, 1, 1, 1, 1],
            )[0]
            hold(store, step == self.commit and self.luck.random() < 0.7)
            store = await step(store)
            if self.luck.random() < 0.3:
                await settle(store)
        hold(store, False)
        await store.close()

    def _frame(self, store: LsmStore, *, decided: bool) -> Frame:
        luck = self.luck
        puts: dict[Space, dict[bytes, Any]] = {}
        for space in luck.sample(SPACES, luck.randint(1, 2)):
            rows: dict[bytes, Any] = {}
            for _ in range(luck.randint(1, 6)):
                value: Any = bytes([luck.randint(0, 255)]) * luck.choice([1, 9, 40, 700 if luck.random() < 0.1 else 20])
                if luck.random() < 0.2:
                    value = None
                elif luck.random() < 0.2:
                    value = [luck.randint(0, 40), value]
                rows[b"k%d" % luck.randint(0, 12)] = value
            puts[space] = rows
        drops = [luck.choice(SPACES)] if luck.random() < 0.2 else []
        number = len(self.frames) + 1
        made = frame(store, puts, drops, number=number, now=number + luck.randint(0, 2), decided=decided)
        self.frames.append(made)
        self.parents.append(self.last)
        return made

    async def _prepare(self, store: LsmStore, *, decided: bool) -> Frame:
        made = self._frame(store, decided=decided)
        await store.prepare(made)
        if self.options.durability == "commit":
            self.recorder.mark(("promised", len(self.frames)))
        return made

    async def _apply(self, store: LsmStore, made: Frame) -> None:
        self.last = made.meta["n"]
        self.recorder.mark(("applied", self.last))
        await store.resolve(made.commit_id, applied=True)

    async def commit(self, store: LsmStore) -> LsmStore:
        await self._apply(store, await self._prepare(store, decided=True))
        return store

    async def undone(self, store: LsmStore) -> LsmStore:
        made = await self._prepare(store, decided=False)
        await store.resolve(made.commit_id, applied=False)
        return store

    async def decided_later(self, store: LsmStore) -> LsmStore:
        made = await self._prepare(store, decided=False)
        store = await (self.kill if self.luck.random() < 0.5 else self.close)(store)
        assert store.undecided is not None
        if self.luck.random() < 0.5:
            await self._apply(store, made)
        else:
            await store.resolve(made.commit_id, applied=False)
        return store

    async def flush(self, store: LsmStore) -> LsmStore:
        await store.flush()
        return store

    async def compact(self, store: LsmStore) -> LsmStore:
        await store.compact()
        return store

    async def close(self, store: LsmStore) -> LsmStore:
        await store.close()
        return await self._again()

    async def kill(self, store: LsmStore) -> LsmStore:
        await kill(store)
        return await self._again()

    async def _again(self) -> LsmStore:
        store = self.open()
        if store.undecided is not None and store.undecided.meta["n"] == self.last:
            await store.resolve(store.undecided.commit_id, applied=True)  # it was; only nothing on disk said so
        return store


def strangers(store: LsmStore) -> Iterator[str]:
    """Files in a store's directory that it has no use for."""
    for path in store.path.iterdir():
        ours = [store.path / "LOCK", store._core.catalog.manifest.path, *store._journal.logs]
        if path not in ours and path.name not in store.version.files:
            yield path.name
