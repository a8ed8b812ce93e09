"""Blobs as records of a Kafka topic, changed only by who may: checkpoints for those who have nothing else.

A blob's chunks are sent first; then its head, which makes it be there, in a transaction that counts only if nothing
came in between (`kafka_blob_owner`). What there is, is known from the heads (`kafka_blob_index`), and read by seeking.
The topic is compacted: what was deleted leaves it some time later. `kafka_blob_records` says what stands in it.
"""

import os

import structlog

from flowkit.errors import StoreCorrupt, StoreError
from flowkit.source.kafka_blob_index import Entry
from flowkit.source.kafka_blob_owner import UNSURE, Change
from flowkit.source.kafka_blob_records import (
    DRAFT,
    Head,
    Layout,
    chunk_key,
    decode_head,
    draft_name,
    encode_head,
    head_key,
)
from flowkit.source.kafka_blob_topic import BlobTopic
from flowkit.source.kafka_frames import cut
from flowkit.store import Blob

log = structlog.get_logger("flowkit.kafka")

SMALL = 16 * 1024
"""Bytes of a blob that lies in its head."""
TRIES = 5
"""So often a blob is looked for again that was replaced while it was read."""


class KafkaBlobs:
    """The blobs of one folder. Made by `KafkaStorage.blobs`."""

    def __init__(self, topic: BlobTopic, folder: str) -> None:
        self.topic, self.folder = topic, folder

    async def put(self, name: str, data: bytes, *, over: str | None = None) -> str | None:
        """As the protocol says."""
        return await self.topic.telling(f"putting {name}", lambda: self._put(name, data, over))

    async def get(self, name: str) -> tuple[bytes, str] | None:
        """As the protocol says."""
        return await self.topic.telling(f"getting {name}", lambda: self._get(name))

    async def find(self, prefix: str = "") -> list[Blob]:
        """As the protocol says. What broken puts have left counts as blobs of their own."""

        async def look() -> list[Blob]:
            found = (await self._entries(make=False)).items()
            return sorted(Blob(name, e.head.size, e.modified) for name, e in found if name.startswith(prefix))

        return await self.topic.telling("listing", look)

    async def delete(self, name: str) -> None:
        """As the protocol says."""
        await self.topic.telling(f"deleting {name}", lambda: self._delete(name))

    # --- within -------------------------------------------------------------------------------------------------------

    async def _entries(self, *, make: bool) -> dict[str, Entry]:
        """What there is now. It changes as the index is refreshed."""
        layout = await self.topic.layout(make=make)
        if layout is None:
            return {}
        index = self.topic.index_of(self.folder, layout)
        await index.refresh()
        return index.folders.get(self.folder, {})

    async def _put(self, name: str, data: bytes, over: str | None) -> str | None:
        layout = await self.topic.layout(make=True)
        assert layout is not None
        index, tag = self.topic.index_of(self.folder, layout), os.urandom(16).hex()
        draft, old = draft_name(name, tag), None
        if not _fits((await self._entries(make=True)).get(name), over):
            return None
        small = len(data) <= min(SMALL, self.topic.limit)
        head = Head(tag, len(data), data=data) if small else await self._send_chunks(layout, draft, tag, data)

        def decide() -> list[Change] | None:
            nonlocal old
            there = index.folders.get(self.folder, {})
            old = there.get(name)
            if not _fits(old, over):
                return None
            if not small and draft not in there:
                raise StoreError(f"{self.topic.name}: {name}: was cleaned away while it was put: put it again")
            changes: list[Change] = [(head_key(self.folder, name), encode_head(head))]
            changes += [] if small else [(head_key(self.folder, draft), None)]
            return changes + self._drafted(name, old)

        won = await self.topic.change(self.folder, index, tag, decide)
        if won and old is not None:
            await self._forget(layout, draft_name(name, old.head.tag), old.head)
        if not won and not small:
            await self._forget(layout, draft, head)
        return tag if won else None

    def _drafted(self, name: str, old: Entry | None) -> list[Change]:
        """What says that the chunks of `old` are no more than what is left of it."""
        if old is None or not old.head.chunks:
            return []
        left = Head(old.head.tag, 0, old.head.chunks)
        return [(head_key(self.folder, draft_name(name, old.head.tag)), encode_head(left))]

    async def _send_chunks(self, layout: Layout, draft: str, tag: str, data: bytes) -> Head:
        """Send what is not small; the head that it has then."""
        parts = cut(data, self.topic.limit)
        left = Head(tag, 0, len(parts))
        await self.topic.send(layout.of_heads(self.folder), [(head_key(self.folder, draft), encode_head(left))])
        partition = layout.of_chunks(self.folder)
        before = await self.topic.readers.end(partition)
        chunks: list[Change] = [(chunk_key(self.folder, tag, n), part) for n, part in enumerate(parts)]
        offsets = await self.topic.send(partition, chunks)
        if min(offsets) < 0:
            return Head(tag, len(data), len(parts), before, await self.topic.readers.end(partition) - 1)
        return Head(tag, len(data), len(parts), min(offsets), max(offsets))

    async def _forget(self, layout: Layout, draft: str, head: Head) -> None:
        """Remove chunks that no head names any more. What fails is left to who removes the draft."""
        if not head.chunks:
            return
        try:
            await self._remove(layout, draft, head)
        except UNSURE as error:
            log.debug("chunks of a blob are left", folder=self.folder, draft=draft, why=repr(error))

    async def _remove(self, layout: Layout, draft: str, head: Head) -> None:
        chunks: list[Change] = [(chunk_key(self.folder, head.tag, n), None) for n in range(head.chunks)]
        await self.topic.send(layout.of_chunks(self.folder), chunks)
        await self.topic.send(layout.of_heads(self.folder), [(head_key(self.folder, draft), None)])

    async def _delete(self, name: str) -> None:
        layout = await self.topic.layout(make=False)
        entry = (await self._entries(make=False)).get(name)
        if layout is None or entry is None:
            return
        if name.startswith(DRAFT):
            await self._remove(layout, name, entry.head)
            return
        index, old = self.topic.index_of(self.folder, layout), entry

        def decide() -> list[Change] | None:
            nonlocal old
            there = index.folders.get(self.folder, {}).get(name)
            if there is None:
                return None
            old = there
            return [(head_key(self.folder, name), None), *self._drafted(name, there)]

        if await self.topic.change(self.folder, index, "", decide):
            await self._forget(layout, draft_name(name, old.head.tag), old.head)

    async def _get(self, name: str) -> tuple[bytes, str] | None:
        entry = None
        for _ in range(TRIES):
            before, entry = entry, (await self._entries(make=False)).get(name)
            layout = await self.topic.layout(make=False)
            if entry is None or layout is None:
                return None
            if name.startswith(DRAFT):
                return b"", entry.head.tag
            if entry == before:
                break
            if (data := await self._read(layout, name, entry)) is not None:
                return data, entry.head.tag
        raise StoreCorrupt(
            f"{self.topic.name}: {self.folder}/{name}: some of its records are gone: does the "
            "topic keep all that is not deleted? Restore an older checkpoint"
        )

    async def _read(self, layout: Layout, name: str, entry: Entry) -> bytes | None:
        """The bytes of a blob; None if some are gone."""
        head = entry.head
        if not head.chunks:
            wanted, where = {head_key(self.folder, name): 0}, (layout.of_heads(self.folder), entry.offset, entry.offset)
        else:
            wanted = {chunk_key(self.folder, head.tag, n): n for n in range(head.chunks)}
            where = layout.of_chunks(self.folder), head.first, head.last
        partition, first, last = where
        parts: dict[int, bytes] = {}
        readers = self.topic.readers
        async with readers.reader() as reader:
            async for records in reader.read(partition, first, last + 1, readers.patience):
                for record in records:
                    if (n := wanted.get(record.key)) is not None and record.offset <= last and record.value is not None:
                        parts[n] = record.value
                if len(parts) == len(wanted):
                    break
        if not head.chunks:
            found = decode_head(parts[0]) if parts else None
            return found.data if found is not None and found.tag == head.tag else None
        data = b"".join(parts[n] for n in sorted(parts))
        return data if len(parts) == head.chunks and len(data) == head.size else None


def _fits(now: Entry | None, over: str | None) -> bool:
    """Whether a put may go on: over nothing, or over the blob with that tag."""
    return (None if now is None else now.head.tag) == over
