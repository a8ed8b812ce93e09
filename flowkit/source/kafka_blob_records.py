"""What stands in a topic of checkpoints, and in which of its partitions.

    layout  key msgpack []                    [format, partitions]: where everything is looked for, for ever
    head    key msgpack [folder, name]        msgpack of Head: the blob is there; without a value: it is not
    chunk   key msgpack [folder, tag, n]      the bytes of a part of a blob, before its head

The first half of the partitions holds heads, the second half chunks: what is there is known without reading through
what it consists of. A folder's heads are all in one partition, and its chunks in one, by the folder's name (murmur2). A
blob that is small lies in its head. Every put has a tag of its own, by which its chunks are told from all others.

The head `.draft-NAME-TAG` says that there may be chunks of that tag, which no other head names: of a put that is under
way or was broken off, or of a blob that is being deleted. Removing it removes them.
"""

from typing import Any, NamedTuple

import msgspec

from flowkit.source.partitioner import partition_of

FORMAT = 1
DRAFT = ".draft-"
LAYOUT_KEY = msgspec.msgpack.encode([])


class Head(msgspec.Struct, array_like=True, frozen=True):
    """A blob of `size` bytes: in `data`, or in `chunks` records from offset `first` to `last`."""

    tag: str
    size: int
    chunks: int = 0
    first: int = -1
    last: int = -1
    data: bytes = b""


class Layout(NamedTuple):
    """Which partition has what."""

    partitions: int

    def heads(self) -> range:
        """The partitions that have heads."""
        return range(max(1, self.partitions // 2))

    def of_heads(self, folder: str) -> int:
        """The partition that has the heads of a folder."""
        return partition_of(folder.encode(), len(self.heads()))

    def of_chunks(self, folder: str) -> int:
        """The partition that has the chunks of a folder."""
        first = len(self.heads()) % self.partitions
        return first + partition_of(folder.encode(), self.partitions - first)


_encode = msgspec.msgpack.Encoder().encode
_head = msgspec.msgpack.Decoder(Head).decode
_key = msgspec.msgpack.Decoder(list[str | int]).decode
_layout = msgspec.msgpack.Decoder(tuple[int, int]).decode


def head_key(folder: str, name: str) -> bytes:
    """The key of a blob's head."""
    return _encode([folder, name])


def chunk_key(folder: str, tag: str, number: int) -> bytes:
    """The key of a chunk."""
    return _encode([folder, tag, number])


def draft_name(name: str, tag: str) -> str:
    """The name of what may be left of a put."""
    return f"{DRAFT}{name}-{tag[:12]}"


def encode_head(head: Head) -> bytes:
    """The value of a head."""
    return _encode(head)


def encode_layout(layout: Layout) -> bytes:
    """The value of the layout."""
    return _encode((FORMAT, layout.partitions))


def decode_key(key: Any) -> list[Any]:
    """The parts of a key. Raises ValueError for what is none."""
    try:
        parts: list[Any] = list(_key(key))
    except (msgspec.MsgspecError, TypeError) as error:
        raise ValueError(str(error)) from None
    if [type(part) for part in parts] not in ([], [str, str], [str, str, int]):
        raise ValueError(f"no key of ours: {parts}")
    return parts


def decode_head(value: bytes) -> Head:
    """A head. Raises ValueError for what is none."""
    try:
        return _head(value)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None


def decode_layout(value: bytes) -> tuple[int, Layout]:
    """Format and layout. Raises ValueError for what is none."""
    try:
        format_, partitions = _layout(value)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
    return format_, Layout(partitions)
