"""From a URL to the storage that holds checkpoints and savepoints, each task's in a folder of its own.

file:///DIR, or a path                a directory; on a network file system, if that has `flock` and hard links
s3://BUCKET/PREFIX?OPTIONS            an object store that takes conditional puts; options: see `S3Place`
kafka://HOST:PORT/TOPIC/PREFIX?…      a topic that is compacted; options and secrets as for brokers, the PREFIX if
                                      several are to share it
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Union
from urllib.parse import unquote

from flowkit.aws import Right, Use
from flowkit.errors import ConfigError
from flowkit.store import DirectoryStorage, S3Place, Storage, open_s3

if TYPE_CHECKING:
    from flowkit.source.kafka_storage import KafkaPlace

SCHEMES = "file:///DIR, a path, s3://BUCKET/PREFIX, or kafka://HOST:PORT/TOPIC"


def check_storage_url(url: str) -> None:
    """Raise ConfigError, saying what there is, for a URL that cannot be."""
    _place(url)


def storage_rights(url: str, *folder: str, use: Use = "keep") -> Sequence[Right]:
    """What a role has to be allowed on Amazon for blobs in one folder of the storage at `url`; () where nobody asks.

    Raises ConfigError for a URL that cannot be.
    """
    place = _place(url)
    return () if isinstance(place, Path) else place.rights(*folder, use=use)


def _place(url: str) -> Union[Path, S3Place, "KafkaPlace"]:
    scheme, separator, rest = url.partition("://")
    if not separator:
        if not url:
            raise ConfigError(f"checkpoints: no place is named; use {SCHEMES}")
        return Path(url).expanduser()
    if scheme == "s3":
        return S3Place.parse(url)
    if scheme == "kafka":
        from flowkit.source.kafka_storage import KafkaPlace  # aiokafka is loaded by those who use it

        return KafkaPlace.parse(url)
    if scheme != "file":
        raise ConfigError(f"checkpoints {scheme}://…: unknown scheme {scheme!r}; use {SCHEMES}")
    if not rest.startswith("/"):
        raise ConfigError(f"checkpoints {url!r}: a file URL names no host: write file:///{rest.lstrip('/')}")
    return Path(unquote(rest))


@asynccontextmanager
async def open_storage(url: str) -> AsyncIterator[Storage]:
    """The storage at `url`. Raises ConfigError if that names none; nothing is asked or made before it is used."""
    place = _place(url)
    if isinstance(place, Path):
        yield DirectoryStorage(place)
    elif isinstance(place, S3Place):
        async with open_s3(place) as s3:
            yield s3
    else:
        from flowkit.source.kafka_storage import open_kafka

        async with open_kafka(place) as topic:
            yield topic
