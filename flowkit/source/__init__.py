"""Where records come from: the seam between flowkit and an outside system, and the systems themselves.

A *source* is one bound topic. It has *splits* (a Kafka partition, a Kinesis shard, a file), each read in order by one
*reader* at a time, from a *position* that only the source understands and that lives in the task's commit.
"""

import importlib
import typing

from flowkit.source.brokers import bounded_topic, open_broker
from flowkit.source.feeding import Feed, open_feed
from flowkit.source.file import FileReader, FileSource
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
    KeepsFrames,
    NeedsRights,
    Output,
    Part,
    Position,
    Reader,
    SendsEarly,
    Sharded,
    Source,
    TopicUse,
    is_end,
)

if typing.TYPE_CHECKING:
    from flowkit.source.firehose import Endpoint, Target, serve_firehose
    from flowkit.source.kafka_bounded import BoundedTopic as BoundedTopic

__all__ = [
    "BEGIN",
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
    "KeepsFrames",
    "Known",
    "MemoryBroker",
    "MemoryStore",
    "NeedsRights",
    "Output",
    "Part",
    "Placing",
    "Position",
    "Reader",
    "SendsEarly",
    "Sharded",
    "Source",
    "Target",
    "TopicUse",
    "bounded_topic",
    "is_end",
    "open_broker",
    "open_feed",
    "partition_of",
    "serve_firehose",
]

_HOME = dict.fromkeys(("Endpoint", "Target", "serve_firehose"), "firehose")


def __getattr__(name: str) -> typing.Any:
    """What needs aiohttp is loaded when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"flowkit.source.{_HOME[name]}"), name)
