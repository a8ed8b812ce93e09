"""Where records come from: the seam between flowkit and an outside system, and the systems themselves.

A *source* is one bound topic. It has *splits* (a Kafka partition, a Kinesis shard, a file), each read in order by one
*reader* at a time, from a *position* that only the source understands and that lives in the task's commit.
"""

import importlib
import typing

from flowkit.source.brokers import BOUNDED, bounded_topics, open_broker
from flowkit.source.feeding import Feed, open_feed
from flowkit.source.file import FileReader, FileSource
from flowkit.source.internal import changelog_of, is_internal, may_be_internal
from flowkit.source.memory import MemoryBroker
from flowkit.source.memory_store import MemoryStore
from flowkit.source.partitioner import partition_of
from flowkit.source.placement import Known, Placing
from flowkit.source.seam import (
    BEGIN,
    END,
    AtOffset,
    Batch,
    Broker,
    Claim,
    EndsForOthers,
    Home,
    KeepsFrames,
    NeedsRights,
    Output,
    Part,
    PlacesByGroup,
    Position,
    Pushes,
    Reader,
    Remembers,
    SendsEarly,
    Sharded,
    Source,
    TopicUse,
    is_end,
)
from flowkit.source.storages import check_storage_url, open_storage, storage_rights

if typing.TYPE_CHECKING:
    from flowkit.source.firehose import Endpoint, Target, serve_firehose
    from flowkit.source.kafka_bounded import BoundedTopic as BoundedTopic
    from flowkit.source.kafka_bounded import BoundedTopics as BoundedTopics
    from flowkit.source.s3 import S3Topic as S3Topic

__all__ = [
    "BEGIN",
    "BOUNDED",
    "END",
    "AtOffset",
    "Batch",
    "Broker",
    "Claim",
    "Endpoint",
    "EndsForOthers",
    "Feed",
    "FileReader",
    "FileSource",
    "Home",
    "KeepsFrames",
    "Known",
    "MemoryBroker",
    "MemoryStore",
    "NeedsRights",
    "Output",
    "Part",
    "PlacesByGroup",
    "Placing",
    "Position",
    "Pushes",
    "Reader",
    "Remembers",
    "SendsEarly",
    "Sharded",
    "Source",
    "Target",
    "TopicUse",
    "bounded_topics",
    "changelog_of",
    "check_storage_url",
    "is_end",
    "is_internal",
    "may_be_internal",
    "open_broker",
    "open_feed",
    "open_storage",
    "partition_of",
    "serve_firehose",
    "storage_rights",
]

_HOME = dict.fromkeys(("Endpoint", "Target", "serve_firehose"), "firehose")


def __getattr__(name: str) -> typing.Any:
    """What needs aiohttp is loaded when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"flowkit.source.{_HOME[name]}"), name)
