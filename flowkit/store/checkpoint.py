"""Checkpoints: a store's state in blob storage, for owners who come after, on other machines.

    CURRENT              the pointer: header with facts {"epoch", "kept": [name …], "retired": [[name, since ms] …]}
    EEEEEEEE-NNNNNN.sst  an sstable, as it was; E is the epoch of the owner who uploaded it, N its count
    EEEEEEEE-NNNNNN.checkpoint := header record         facts {"keys": the file KEYS, if encrypted}; msgpack of Listing

An owner claims first: it raises the pointer's epoch by compare-and-swap, then reads. It uploads sstables that the last
checkpoint lacks, then the listing, then swaps the pointer. Whoever was stopped and wakes up finds another epoch in the
pointer and is refused (Fenced), whatever it had in hand: names carry its epoch, so it overwrites nothing either.

A listing is kept, later retired, and `grace` after that forgotten with all objects that no other one needs. Objects of
a higher epoch than one's own are never deleted: they may be on the way into a checkpoint that one does not know of.
"""

import asyncio
import os
import re
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec

from flowkit.clock import Clock, SystemClock
from flowkit.errors import Fenced, StoreCorrupt, StoreError, StoreKeyError
from flowkit.store.blobs import Blob, Blobs
from flowkit.store.building import Building, building
from flowkit.store.checksum import crc32
from flowkit.store.cipher import StoreKey
from flowkit.store.events import tell
from flowkit.store.files import Disk
from flowkit.store.keys import KeyProvider, unlock_data
from flowkit.store.lsm import LsmStore
from flowkit.store.pinning import Pinned, pinned_keys
from flowkit.store.progress import OnProgress, Step
from flowkit.store.records import (
    CHECKPOINT,
    POINTER,
    decode_facts,
    decode_header,
    decode_records,
    encode_header,
    encode_record,
)
from flowkit.store.sstable_index import FileMeta
from flowkit.store.verifying import Problem, check_table
from flowkit.store.version import Base, Edit, Hidden

CURRENT = "CURRENT"
_OURS = re.compile(r"(?:\.draft-)?(?:(\d{8,})-\d{6,}\.(?:sst|checkpoint)|CURRENT)(?:-[0-9a-f]{12})?")
AHEAD = 4
"""So many files are fetched at a time: one alone does not fill the way from an object store."""
_TAIL = 4096
"""The last bytes of an sstable hold the checksums of all the rest: two files with the same tail are the same."""


class Stored(msgspec.Struct, array_like=True):
    """An sstable in blob storage: `size` bytes under the name `object`."""

    meta: FileMeta
    object: str
    crc: int
    tail: int


class Listing(msgspec.Struct, array_like=True):
    """What a checkpoint consists of. `at` is when it was made (ms); `base` is [number, commit id, meta, now]."""

    epoch: int
    at: int
    session: int
    base: Base
    files: list[Stored]
    hidden: list[Hidden]


class Pointer(msgspec.Struct):
    """Who owns the checkpoints (the one that claimed `epoch`), and which there are, the newest first."""

    epoch: int = 0
    kept: list[str] = []
    retired: list[tuple[str, int]] = []


class Checkpoint(NamedTuple):
    """One checkpoint: made at `at` (ms) of the commit with the number `commit` and the id `commit_id` (hex).

    `bytes` are those of its `files` together.
    """

    name: str
    epoch: int
    at: int
    commit: int
    files: int
    bytes: int
    encrypted: bool
    commit_id: str


class Published(NamedTuple):
    """What publishing did: the checkpoint's name, its commit (the id in hex), and what was uploaded of how much."""

    name: str
    commit: int
    uploaded_files: int
    uploaded_bytes: int
    files: int
    bytes: int
    commit_id: str


class Checkpoints:
    """The checkpoints of one store in blob storage, as one owner sees them.

    The newest `keep` are kept; `grace` (ms) later what is no longer needed is deleted. `keys` opens encrypted ones.
    """

    def __init__(
        self,
        blobs: Blobs,
        *,
        keys: KeyProvider | None = None,
        keep: int = 2,
        grace: int = 3_600_000,
        clock: Clock | None = None,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep}: at least the newest checkpoint is kept")
        self.blobs, self.keys, self.keep, self.grace = blobs, keys, keep, grace
        self.clock = clock or SystemClock()
        self.epoch: int | None = None
        """The epoch that this owner has claimed."""
        self._next = 1
        self._key: StoreKey | None = None
        """That of the store which was published last: it opens listings whatever they were wrapped by."""
        self._objects: dict[str, set[str]] = {}
        """What each checkpoint needs, as far as it was read: a listing never changes."""
        self._turn = anyio.Lock()

    # Owning

    async def claim(self, epoch: int | None = None) -> int:
        """Become the owner: nothing that earlier owners do counts any more. The epoch, one more than the last one's.

        With `epoch`, that one: raises Fenced if it is not higher than the last. After a StoreError it may have been
        claimed or not: claim again.
        """
        while True:
            pointer, tag = await self._pointer()
            mine = pointer.epoch + 1 if epoch is None else epoch
            if mine <= pointer.epoch:
                raise Fenced(f"checkpoints: epoch {mine} was asked for, but {pointer.epoch} has been claimed already")
            if await self._swap(msgspec.structs.replace(pointer, epoch=mine), tag):
                self.epoch, self._next = mine, 1
                return mine

    async def _pointer(self) -> tuple[Pointer, str | None]:
        found = await self.blobs.get(CURRENT)
        if found is None:
            return Pointer(), None
        data, tag = found
        facts = decode_facts(data, POINTER, CURRENT)
        if facts is None or facts[0] != len(data):
            raise StoreCorrupt(f"{CURRENT}: ends after {len(data)} bytes: restore this object from a copy")
        try:
            return msgspec.convert(facts[1], Pointer), tag
        except msgspec.ValidationError as error:
            raise StoreCorrupt(f"{CURRENT}: {error}") from error

    async def _swap(self, pointer: Pointer, tag: str | None) -> bool:
        data = encode_header(POINTER, **msgspec.to_builtins(pointer))
        return await self.blobs.put(CURRENT, data, over=tag) is not None

    async def _own(self) -> tuple[Pointer, str | None]:
        """The pointer, which must be ours. Raises Fenced."""
        if self.epoch is None:
            raise StoreError("checkpoints: claim them first")
        pointer, tag = await self._pointer()
        if pointer.epoch != self.epoch:
            raise Fenced(
                f"checkpoints: owned by epoch {pointer.epoch} now, this is {self.epoch}: leave them to the new owner"
            )
        return pointer, tag

    # Publishing

    async def publish(self, store: LsmStore, progress: OnProgress | None = None) -> Published:
        """Make a checkpoint of `store` as it is now. Commits go on meanwhile.

        Raises Fenced if another owner has claimed, StoreError. Whenever this is broken off, the last checkpoint stands.
        """
        started = time.monotonic()
        async with self._turn:
            pointer, _ = await self._own()
            self._key = store.key
            known = await self._known(pointer)
            async with store.pin() as pinned:
                wrapped = await pinned_keys(pinned, self.keys or store.keys)
                files, uploaded = await self._upload(pinned, known, progress)
                name = await self._put_listing(pinned, files, wrapped)
            await self._turn_to(name)
        await self._tidy()
        sizes = [stored.meta.bytes for stored in files]
        store.counts.checkpoints += 1
        store.counts.checkpoint_uploaded += sum(uploaded)
        store.counts.checkpoint_seconds += time.monotonic() - started
        number, commit_id, *_ = pinned.base
        return Published(name, number, len(uploaded), sum(uploaded), len(sizes), sum(sizes), commit_id.hex())

    async def _known(self, pointer: Pointer) -> dict[str, Stored]:
        """The sstables of the last checkpoint, by their names in the store."""
        try:
            listing = (await self._listing(pointer.kept[0]))[0] if pointer.kept else None
        except (StoreCorrupt, StoreKeyError) as error:
            tell("warning", "the last checkpoint cannot be read: all files are uploaded again", error=str(error))
            return {}
        return {} if listing is None else {stored.meta.name: stored for stored in listing.files}

    async def _upload(
        self, pinned: Pinned, known: dict[str, Stored], progress: OnProgress | None
    ) -> tuple[list[Stored], list[int]]:
        files, uploaded, done, total = [], [], 0, pinned.size()
        for name, meta in pinned.files.items():
            tail = await anyio.to_thread.run_sync(_tail_of, pinned.directory / name)
            stored = known.get(name)
            if stored is not None and stored.meta.bytes == meta.bytes and stored.tail == tail:
                files.append(msgspec.structs.replace(stored, meta=meta))
            else:
                data, crc = await anyio.to_thread.run_sync(_whole, pinned, meta)
                files.append(Stored(meta, await self._put(".sst", data), crc, tail))
                uploaded.append(len(data))
            done += meta.bytes
            if progress is not None:
                progress(Step(name, done, total))
        return files, uploaded

    async def _put_listing(self, pinned: Pinned, files: list[Stored], wrapped: bytes | None) -> str:
        assert self.epoch is not None
        listing = Listing(self.epoch, self.clock.now_ms(), pinned.session, pinned.base, files, list(pinned.hidden))
        cipher = None if pinned.key is None else pinned.key.new_cipher()
        data = encode_header(CHECKPOINT, cipher, **({} if wrapped is None else {"keys": wrapped}))
        data += encode_record(msgspec.msgpack.encode(listing), len(data), 0, cipher)
        return await self._put(".checkpoint", data)

    async def _put(self, suffix: str, data: bytes) -> str:
        """Write an object under a name that was never used."""
        while True:
            name = f"{self.epoch:08}-{self._next:06}{suffix}"
            self._next += 1
            # A name that is taken is one of ours, of a try whose answer was lost: it is left to the sweep.
            if await self.blobs.put(name, data) is not None:
                return name

    async def _turn_to(self, name: str) -> None:
        while True:
            pointer, tag = await self._own()
            if name in pointer.kept:
                return  # an earlier swap had come through
            now = self.clock.now_ms()
            names = [name, *pointer.kept]
            retired = [*pointer.retired, *((old, now) for old in names[self.keep :])]
            if await self._swap(msgspec.structs.replace(pointer, kept=names[: self.keep], retired=retired), tag):
                return

    # Deleting

    async def _tidy(self) -> None:
        try:
            await self.sweep()
        except StoreError as error:
            tell("warning", "old checkpoints are not removed; trying again with the next one", error=str(error))

    async def sweep(self) -> int:
        """Delete what no checkpoint needs, once `grace` has passed; how many objects. Raises Fenced, StoreError."""
        async with self._turn:
            pointer, tag = await self._own()
            now = self.clock.now_ms()
            left = [(name, since) for name, since in pointer.retired if now - since < self.grace]
            if len(left) < len(pointer.retired):
                pointer = msgspec.structs.replace(pointer, retired=left)
                if not await self._swap(pointer, tag):
                    await self._own()
                    return 0  # a swap of ours, whose answer was lost: the next time
            names = [*pointer.kept, *(name for name, _ in left)]
            for name in names:
                if name not in self._objects:
                    self._objects[name] = await self._needed_by(name)
            self._objects = {name: self._objects[name] for name in names}
            needed = {CURRENT}.union(*self._objects.values())
            gone = [blob.name for blob in await self.blobs.find() if self._is_garbage(blob, needed, now)]
            for name in gone:
                await self.blobs.delete(name)
            return len(gone)

    async def _needed_by(self, name: str) -> set[str]:
        listing, _, _ = await self._listing(name)
        return {name, *(stored.object for stored in listing.files)}

    def _is_garbage(self, blob: Blob, needed: set[str], now: int) -> bool:
        match = _OURS.fullmatch(blob.name)
        if match is None or blob.name in needed or now - blob.modified < self.grace:
            return False
        assert self.epoch is not None
        return int(match[1] or 0) <= self.epoch

    # Reading

    async def kept(self, *, skip_damaged: bool = False) -> list[Checkpoint]:
        """All checkpoints that are kept, the newest first. Raises StoreCorrupt, StoreKeyError, StoreError.

        With `skip_damaged` those are left out, and told, whose listing cannot be read.
        """
        pointer, _ = await self._pointer()
        found = []
        for name in pointer.kept:
            try:
                found.append(await self._described(name))
            except (StoreCorrupt, StoreKeyError) as error:
                if not skip_damaged:
                    raise
                tell("error", "a checkpoint cannot be read", error=str(error))
        return found

    async def look(self, name: str | None = None) -> tuple[Checkpoint, Listing]:
        """What a checkpoint (None: the newest) consists of. Raises StoreCorrupt, StoreKeyError, StoreError."""
        name = await self._chosen(name)
        return await self._described(name), (await self._listing(name))[0]

    async def _described(self, name: str) -> Checkpoint:
        listing, key, _ = await self._listing(name)
        size, base = sum(stored.meta.bytes for stored in listing.files), listing.base
        encrypted, commit_id = key is not None, bytes(base[1]).hex()
        return Checkpoint(name, listing.epoch, listing.at, int(base[0]), len(listing.files), size, encrypted, commit_id)

    async def _listing(self, name: str) -> tuple[Listing, StoreKey | None, bytes | None]:
        """A listing, the key that it and its files are under, and that key wrapped."""
        found = await self.blobs.get(name)
        if found is None:
            raise StoreCorrupt(f"{name}: the checkpoint is not there: name one that is listed")
        data = found[0]
        facts = decode_facts(data, CHECKPOINT, name)
        wrapped = None if facts is None else facts[1].get("keys")
        if wrapped is None:
            return _decoded(data, None, name), None, None
        if type(wrapped) is not bytes:
            raise StoreCorrupt(f"{name}: the key in the header (offset 0) is no key: restore an older checkpoint")
        if self._key is not None:
            with suppress(StoreKeyError):
                return _decoded(data, self._key, name), self._key, wrapped
        key = await unlock_data(wrapped, self.keys, name)
        return _decoded(data, key, name), key, wrapped

    async def _chosen(self, name: str | None) -> str:
        if name is not None:
            return name
        pointer, _ = await self._pointer()
        if not pointer.kept:
            raise StoreError("there is no checkpoint yet")
        return pointer.kept[0]

    async def restore(
        self, path: str | os.PathLike[str], name: str | None = None, progress: OnProgress | None = None
    ) -> Checkpoint:
        """Make a store in `path`, which must be empty or not there, from the newest checkpoint, or from that `name`.

        Claim first: else the files may be deleted meanwhile. If it is broken off, the directory is refused until it is
        done again. Raises StoreCorrupt, StoreKeyError, StoreError.
        """
        name = await self._chosen(name)
        listing, key, wrapped = await self._listing(name)
        directory, done, total = Path(path), 0, sum(stored.meta.bytes for stored in listing.files)
        try:
            with building(Disk(), directory, f"restoring checkpoint {name}") as made:
                async with aclosing(self._fetched(listing.files)) as fetched:
                    async for stored, data in fetched:
                        await anyio.to_thread.run_sync(made.add, stored.meta.name, data)
                        done += len(data)
                        if progress is not None:
                            progress(Step(stored.meta.name, done, total))
                await anyio.to_thread.run_sync(_finish, made, listing, key, wrapped)
        except OSError as error:
            raise StoreError(f"{path}: checkpoint {name} cannot be restored: {error.strerror or error}") from error
        return await self._described(name)

    async def _fetched(self, files: list[Stored]) -> AsyncGenerator[tuple[Stored, bytes], None]:
        """The files one after the other, while the next ones are on their way."""
        coming: deque[asyncio.Task[bytes]] = deque()
        try:
            for n, stored in enumerate(files):
                while len(coming) < AHEAD and n + len(coming) < len(files):
                    coming.append(asyncio.create_task(self._fetch(files[n + len(coming)])))
                yield stored, await coming[0]
                del coming[0]
        finally:
            for task in coming:
                task.cancel()
            await asyncio.gather(*coming, return_exceptions=True)

    async def _fetch(self, stored: Stored) -> bytes:
        found = await self.blobs.get(stored.object)
        if found is None:
            raise StoreCorrupt(f"{stored.object}: missing, though a checkpoint names it: restore an older one")
        data = found[0]
        if len(data) != stored.meta.bytes:
            raise StoreCorrupt(
                f"{stored.object}: has {len(data)} bytes, but had {stored.meta.bytes}: restore an older checkpoint"
            )
        if await anyio.to_thread.run_sync(crc32, data) != stored.crc:
            raise StoreCorrupt(f"{stored.object}: checksum mismatch: restore an older checkpoint")
        return data

    async def verify(self, name: str | None = None, progress: OnProgress | None = None) -> list[Problem]:
        """Fetch every object of all checkpoints that are kept (or of the one `name`); all that is wrong with them."""
        problems: list[Problem] = []
        names = [name] if name is not None else (await self._pointer())[0].kept
        files: dict[str, Stored] = {}
        for each in names:
            try:
                listing, _, _ = await self._listing(each)
            except StoreCorrupt as error:
                problems.append(Problem.of(error, each))
            else:
                files |= {stored.object: stored for stored in listing.files}
        done, total = 0, sum(stored.meta.bytes for stored in files.values())
        for stored in files.values():
            try:
                await self._fetch(stored)
            except StoreCorrupt as error:
                problems.append(Problem.of(error, stored.object))
            done += stored.meta.bytes
            if progress is not None:
                progress(Step(stored.object, done, total))
        return problems


def _tail_of(path: Path) -> int:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return crc32(os.pread(file.fileno(), _TAIL, max(0, size - _TAIL)))
    except OSError as error:
        raise StoreCorrupt(f"{path}: cannot be read: {error.strerror}") from error


def _whole(pinned: Pinned, meta: FileMeta) -> tuple[bytes, int]:
    """The bytes of a file, and their checksum. Raises StoreCorrupt."""
    path = pinned.directory / meta.name
    for problem in check_table(path, pinned.key, meta):  # what is damaged must not replace what is not
        raise StoreCorrupt(str(problem))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreCorrupt(f"{path}: cannot be read: {error.strerror}") from error
    return data, crc32(data)


def _decoded(data: bytes, key: StoreKey | None, name: str) -> Listing:
    header = decode_header(data, CHECKPOINT, name, key)
    records = [] if header is None else list(decode_records(data, header, name))
    if len(records) != 1 or records[0].end != len(data):
        raise StoreCorrupt(f"{name}: ends after {len(data)} bytes: restore this object from a copy")
    try:
        return msgspec.msgpack.decode(records[0].payload, type=Listing)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(f"{name}: unreadable: {error}") from error


def _finish(made: Building, listing: Listing, key: StoreKey | None, wrapped: bytes | None) -> None:
    state = Edit([stored.meta for stored in listing.files], [], listing.hidden, 0, listing.base)
    made.finish(wrapped, listing.session, state, key)
