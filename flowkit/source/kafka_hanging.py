"""Transactions whose end a cluster has lost: they are ended once more before a task goes on.

A coordinator that is shut down together with the leaders that it has to tell writes down that a transaction is
complete, and tells nobody (seen with 4.4: one node, stopped in good order). What was written stays open for readers of
committed records, for ever as it seems; but the next transaction of the same producer ends it too, whatever it was.
So a task whose last commit hangs would open one commit behind, do the same again, and both would count. The same was
seen of a transaction that timed out while a killed node started again: outputs of which there was no frame hung, and
were committed by the next transaction.

The way out: to enter every partition that the task may have written to into a transaction with nothing in it, and end
that. Its markers end what hangs there. A claim is sent before all outputs of a commit, so that the changelog tells by
itself whether something hangs, and its frame after all: if it is there, everything is, and it is committed. If not,
nobody can have asked for the commit, and it is aborted.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import structlog

from flowkit.source.internal import changelog_of
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_frames import Part, open_changelog

_log = structlog.get_logger("flowkit.kafka")

LOOK_AGAIN_S = 0.1
"""A replica may hear of a marker a little later."""


async def hangs(address: KafkaAddress, task: str, stable: int | None = None) -> bool:
    """Whether something is open in the task's changelog. Only an owner may ask: nobody else can have begun it.

    `stable`: where readers of committed records had its end just now.
    """
    for wait in (LOOK_AGAIN_S, LOOK_AGAIN_S, 0.0):
        async with open_changelog(address, task, committed=False) as written:
            end = written.end
        if stable is None:
            async with open_changelog(address, task) as log:
                stable = log.end
        if stable >= end:
            return False
        stable = None
        await asyncio.sleep(wait)
    return True


async def end_again(
    address: KafkaAddress, task: str, producer: Any, last: Part | None, writes: Mapping[str, int]
) -> None:
    """End what hangs, by a transaction of `producer`, after which it is read as everything else is.

    `writes` has the topics that the task may write to, with their partitions. Raises KafkaError, TimeoutError.
    """
    from aiokafka import TopicPartition

    number = 0 if last is None else last.number
    commit = False
    async with open_changelog(address, task) as stable, open_changelog(address, task, committed=False) as written:
        end = written.end
        async for whole in written.read(stable.end):  # before that are others, which were aborted
            commit = commit or whole.last.number == number + 1
    _log.warning(
        "the cluster has lost the end of a transaction: it is ended again",
        task=task,
        commit=number + 1,
        counts=commit,
    )
    changelog, partition = changelog_of(task)
    parts = [TopicPartition(topic, n) for topic, count in writes.items() for n in range(count)]
    await end_in(producer, [TopicPartition(changelog, partition), *parts], commit=commit)
    while True:  # the coordinator answers before it has told the partitions
        async with open_changelog(address, task) as stable:
            if stable.end >= end:
                return
        await asyncio.sleep(LOOK_AGAIN_S)


async def end_in(producer: Any, parts: Iterable[Any], *, commit: bool) -> None:
    """End what hangs in some partitions, by a transaction with nothing in it. Raises KafkaError."""
    await producer.begin_transaction()
    for part in parts:
        # aiokafka has no public way to enter a partition without a record.
        producer._txn_manager.maybe_add_partition_to_txn(part)  # noqa: SLF001
    await (producer.commit_transaction() if commit else producer.abort_transaction())
