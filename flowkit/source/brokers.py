"""From a broker's URL to the broker: `kafka://HOST:PORT`, `kinesis://REGION`, `embedded://DIR` or `memory://NAME`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Union

from flowkit.clock import Clock
from flowkit.errors import ConfigError
from flowkit.options import Guarantee, Start

if TYPE_CHECKING:
    from flowkit.source.embedded import EmbeddedBroker
    from flowkit.source.kafka import KafkaBroker
    from flowkit.source.kafka_bounded import BoundedTopics
    from flowkit.source.kinesis import KinesisBroker
    from flowkit.source.memory import MemoryBroker
    from flowkit.source.s3 import S3Topic

SCHEMES = (
    "kafka://HOST:PORT (Apache Kafka, MSK), kinesis://REGION (Kinesis Data Streams), embedded://DIR (topics in a "
    "directory) or memory://NAME (for tests)"
)


def open_broker(
    url: str, clock: Clock, guarantee: Guarantee = "exactly once"
) -> Union["EmbeddedBroker", "MemoryBroker", "KafkaBroker", "KinesisBroker"]:
    """The broker of `url`, to be used within `async with`.

    `embedded://DIR` takes a relative (`embedded://state/topics`) or an absolute path (`embedded:///var/topics`), and
    `?sync=normal` (no fsync a commit: a power cut may take the last ones). It commits exactly once whatever `guarantee`
    says, since that costs it nothing. Raises ConfigError, listing what there is.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ConfigError(f"broker {url!r}: this is no URL; use {SCHEMES}")
    if scheme == "kafka":
        from flowkit.source.kafka import KafkaBroker
        from flowkit.source.kafka_address import KafkaAddress

        return KafkaBroker(KafkaAddress.parse(url), guarantee)
    if scheme == "kinesis":
        from flowkit.source.kinesis import open_kinesis

        return open_kinesis(url, clock)
    if scheme == "memory":
        from flowkit.source.memory import MemoryBroker
        from flowkit.source.memory_store import store_named

        return MemoryBroker(clock, store_named(rest), rest)
    if scheme != "embedded":
        raise ConfigError(f"broker {url!r}: unknown scheme {scheme!r}; use {SCHEMES}")
    path, _, query = rest.partition("?")
    if not path:
        raise ConfigError(f"broker {url!r}: names no directory; use embedded://DIR")
    if query not in ("", "sync=full", "sync=normal"):
        raise ConfigError(f"broker {url!r}: unknown option {query!r}; use ?sync=full (the default) or ?sync=normal")
    from flowkit.source.embedded import EmbeddedBroker  # loads sqlite3, which files and `--help` do without

    return EmbeddedBroker(Path(path).expanduser(), clock, sync="normal" if query == "sync=normal" else "full")


BOUNDED = ("kafka://", "s3://")
"""What URLs of inputs of a bounded run begin with, beside files."""


def bounded_topics(
    url: str, start: Start = "earliest", pattern: "re.Pattern[str] | None" = None
) -> Union["BoundedTopics", "S3Topic"]:
    """Topics of a cluster, to their end: `kafka://HOST:PORT/TOPIC`, or all that match; or objects: `s3://BUCKET/PREFIX`.

    Raises ConfigError.
    """
    if url.startswith("s3://"):
        from flowkit.source.s3 import S3Topic

        return S3Topic(url)
    from flowkit.source.kafka_bounded import BoundedTopics

    return BoundedTopics(url, start, pattern)
