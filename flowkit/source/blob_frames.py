"""The frame log in blob storage (COMMIT.md, "The frame"): one blob a commit, made only if there is none, before any
effect of the commit leaves. For brokers without transactions, at commit intervals of seconds.

    name     := NUMBER-ID-PARENT.frame      a zombie's frame of the same number has another id
    content  := msgpack [CRC-32 of the bytes, bytes]; bytes := the frame as the store's log has it, as an lz4 block

Which of them count the ledger tells by the last one's identity; the names lead back from there.
"""

import asyncio
import zlib
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

import cramjam
import msgspec

from flowkit.aws import Right
from flowkit.errors import StoreCorrupt, StoreError
from flowkit.source.storages import storage_rights
from flowkit.store import Blobs, Frame, Storage, decode_frame, encode_frame, folder_of

AHEAD = 8
"""So many frames are fetched at a time."""
NOTHING = "0"
FOLDER, _SUFFIX = "frames", ".frame"


class Name(NamedTuple):
    """What a blob's name says."""

    number: int
    commit_id: str
    parent: str

    def __str__(self) -> str:
        return f"{self.number:012d}-{self.commit_id}-{self.parent or NOTHING}{_SUFFIX}"

    @classmethod
    def parse(cls, name: str) -> "Name | None":
        """Read one; None if it is none of ours.

        >>> Name.parse("000000000007-0a-0.frame")
        Name(number=7, commit_id='0a', parent='')
        """
        number, _, rest = name.removesuffix(_SUFFIX).partition("-")
        commit_id, _, parent = rest.partition("-")
        if not name.endswith(_SUFFIX) or not number.isdecimal() or not parent:
            return None
        return cls(int(number), commit_id, "" if parent == NOTHING else parent)


def frame_rights(url: str, app: str, *, trims: bool) -> Sequence[Right]:
    """What has to be allowed for the frames of an app's tasks in the storage at `url`, if they are forgotten or not."""
    return storage_rights(url, FOLDER, folder_of(app)[0], use="keep" if trims else "add")


class BlobFrames:
    """The frames of all tasks in `storage`. Every method may raise StoreError."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    async def put(self, task: str, frame: Frame) -> None:
        """Make a frame durable. One that is there already is the same."""
        name = Name(frame.number, frame.commit_id.hex(), frame.parent.hex())
        data = bytes(cramjam.lz4.compress_block(encode_frame(frame)))
        await self._blobs(task).put(str(name), msgspec.msgpack.encode([zlib.crc32(data), data]))

    async def after(self, task: str, number: int, last: tuple[int, bytes | None]) -> AsyncGenerator[Frame, None]:
        """The frames from `number` + 1 up to the `last` commit, in order. Raises StoreCorrupt if one is missing."""
        if last[1] is None or last[0] <= number:
            return
        names = await self._chain(task, number, last[0], last[1].hex())
        for start in range(0, len(names), AHEAD):
            for frame in await asyncio.gather(*(self._get(task, name) for name in names[start : start + AHEAD])):
                yield frame

    async def _chain(self, task: str, number: int, last: int, commit_id: str) -> list[Name]:
        known = {(name.number, name.commit_id): name for name in await self._names(task)}
        chain: list[Name] = []
        for wanted in range(last, number, -1):
            name = known.get((wanted, commit_id))
            if name is None:
                raise StoreCorrupt(
                    f"{self.storage.url}: frame {wanted} of task {task} is not there, and {last} counts: frames were "
                    "deleted before a checkpoint held them"
                )
            chain.append(name)
            commit_id = name.parent
        return chain[::-1]

    async def trim(self, task: str, number: int, last: int) -> None:
        """Forget the frames before `number`; those of the `last` commit stay."""
        gone = [name for name in await self._names(task) if name.number < min(number, last)]
        blobs = self._blobs(task)
        for start in range(0, len(gone), AHEAD):
            await asyncio.gather(*(blobs.delete(str(name)) for name in gone[start : start + AHEAD]))

    async def _names(self, task: str) -> list[Name]:
        return [name for blob in await self._blobs(task).find() if (name := Name.parse(blob.name)) is not None]

    async def _get(self, task: str, name: Name) -> Frame:
        found = await self._blobs(task).get(str(name))
        where = f"{self.storage.url} {task} {name}"
        if found is None:
            raise StoreError(f"{where}: is gone while it was read")
        try:
            crc, data = msgspec.msgpack.decode(found[0], type=tuple[int, bytes])
            if zlib.crc32(data) != crc:
                raise StoreCorrupt(f"{where}: its checksum is wrong")
            whole = bytes(cramjam.lz4.decompress_block(data))
        except (msgspec.MsgspecError, cramjam.DecompressionError) as error:
            raise StoreCorrupt(f"{where}: cannot be unpacked: {error}") from error
        return decode_frame(whole, where, 0)

    def _blobs(self, task: str) -> Blobs:
        return self.storage.blobs(FOLDER, *folder_of(task))
