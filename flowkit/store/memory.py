"""A store in memory: for tests, and for runs that keep nothing."""

from typing import Any

from flowkit.errors import StoreError
from flowkit.store.cache import BlockCache, Rows
from flowkit.store.frame import Frame, decode_frame, encode_frame
from flowkit.store.memtable import Memtable
from flowkit.store.reading import Reading, frame_of


class MemoryStore(Reading):
    """Frames applied to a memtable. `disk` stands for a directory in tests that crash: its frames are found again."""

    def __init__(self, disk: list[bytes] | None = None) -> None:
        super().__init__(Memtable(keep_deletes=False), BlockCache(0), Rows(0))
        self.disk = disk
        self._purged = 0
        for record in disk or ():
            frame = decode_frame(record, "memory", 0)
            if self.undecided is not None and frame.parent == self.undecided.commit_id:
                self.take(self.undecided)
            self.show(frame)
        if self.undecided is not None and self.undecided.decided:
            self.take(self.undecided)
            self.show(None)

    async def prepare(self, frame: Frame) -> None:
        """Take `frame`, undecided. At most one frame may be."""
        if self.undecided is not None:
            raise StoreError(f"frame {self.undecided.number} is still undecided")
        if self.disk is not None:
            self.disk.append(encode_frame(frame))
        self.show(frame)

    async def resolve(self, commit_id: bytes, applied: bool) -> None:
        """Say whether the undecided frame counts. If not, it leaves no trace."""
        frame = self.undecided
        if frame is None or frame.commit_id != commit_id:
            raise StoreError(f"no undecided frame {commit_id.hex()}")
        self.show(None)
        if applied:
            self.take(frame)
            self._purge()
        elif self.disk is not None:
            self.disk.pop()

    def _purge(self) -> None:
        """Forget what has expired, once there is twice as much as after the last time."""
        size = self.memtable.bytes()
        if size > 2 * self._purged + 2**20:
            for keys in self.memtable.spaces.values():
                keys.purge(self.now)
            self._purged = self.memtable.bytes()

    async def commit(
        self,
        puts: Any = (),
        drops: Any = (),
        *,
        expires: int | None = None,
        now: int | None = None,
        meta: dict[str, Any] | None = None,
    ) -> int:
        """Change keys, all or nothing, as `LsmStore.commit` does."""
        frame = frame_of(self, puts, drops, expires=expires, now=now, meta=meta)
        await self.prepare(frame)
        await self.resolve(frame.commit_id, applied=True)
        return frame.number

    async def close(self) -> None:
        """Nothing to let go of."""
