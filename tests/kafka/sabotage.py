"""`flowkit …` with one named mistake in it, or one misfortune: a test that cannot fail proves nothing.

python -m tests.kafka.sabotage NAME[,NAME…] WORDS…

MISTAKES are what the torture test has to find; MISFORTUNES are what flowkit has to bear. TORTURE_DIE=STEP:N makes the
misfortune `dies` kill the process at that step of its Nth commit.
"""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka

from flowkit.cli import main
from flowkit.sink.file_target import DiskFile
from flowkit.source import kafka_frames, kafka_group, kafka_tasks
from flowkit.source.kafka import KafkaBroker
from flowkit.source.kafka_client import all_sent
from flowkit.source.rules import group_outputs
from flowkit.store import Frame, LsmStore, read_store
from flowkit.worker import live, task

STEPS = ("cut", "prepared", "begun", "sent", "decided", "resolved", "delivered")
"""Where a process may die: after each step of a commit, and within the transaction, its sends done or not."""


def _put(owner: Any, name: str, what: Any) -> None:
    setattr(owner, name, what)


# Misfortunes


def dies() -> None:
    """The process is killed at a step of its Nth commit."""
    step, _, times = os.environ["TORTURE_DIE"].partition(":")
    left = int(times)

    def at(passed: str) -> None:
        nonlocal left
        left -= passed == step
        if not left:
            print(f"dies at {step}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    async def hook(passed: str) -> None:
        at(passed)

    begun, sent = AIOKafkaProducer.begin_transaction, AIOKafkaProducer.commit_transaction

    async def begin(producer: Any) -> None:
        await begun(producer)
        at("begun")

    async def commit(producer: Any) -> None:
        at("sent")
        await sent(producer)

    make = live.LiveTask.__init__
    _put(live.LiveTask, "__init__", lambda *words, **more: make(*words, **more, hook=hook))
    _put(AIOKafkaProducer, "begin_transaction", begin)
    _put(AIOKafkaProducer, "commit_transaction", commit)


def slow_commits() -> None:
    """Between a frame on the disk and its transaction a tenth of a second passes."""
    _slow("prepared", 0.1)


def slow_deliveries() -> None:
    """Between a commit and what it writes to files a second passes."""
    _slow("resolved", 1.0)


def _slow(step: str, seconds: float) -> None:
    async def hook(passed: str) -> None:
        if passed == step:
            await asyncio.sleep(seconds)

    make = live.LiveTask.__init__
    _put(live.LiveTask, "__init__", lambda *words, **more: make(*words, **more, hook=hook))


def slow_opens() -> None:
    """Between the claim of a task and its opening three seconds pass."""
    open_ = live.LiveTask._open

    async def opened(self: Any) -> None:
        await asyncio.sleep(3.0)
        await open_(self)

    _put(live.LiveTask, "_open", opened)


def sends_fail() -> None:
    """One batch of outputs in a hundred is refused by the broker."""
    send, chance = AIOKafkaProducer.send_batch, random.Random(1)

    async def send_batch(producer: Any, batch: Any, topic: str, **more: Any) -> Any:
        if chance.random() > 0.01:
            return await send(producer, batch, topic, **more)
        refused = asyncio.get_running_loop().create_future()
        refused.set_exception(kafka.MessageSizeTooLargeError())
        refused.exception()  # whoever forgets it gets no word from asyncio either
        return refused

    _put(AIOKafkaProducer, "send_batch", send_batch)


# Mistakes


def no_fence() -> None:
    """Each owner has a transactional id of its own, and nobody asks the group whose a task is: zombies write."""
    make = AIOKafkaProducer.__init__

    def init(producer: Any, *words: Any, **more: Any) -> None:
        if more.get("transactional_id"):
            more["transactional_id"] += f"-{os.urandom(4).hex()}"
        make(producer, *words, **more)

    _put(AIOKafkaProducer, "__init__", init)
    _put(kafka_group.KafkaGroup, "is_ours", lambda *_: True)


def failed_sends_ignored() -> None:
    """The transaction is committed whatever became of the sends."""

    async def all_(futures: Any) -> None:
        await asyncio.gather(*futures, return_exceptions=True)

    _put(kafka_tasks, "all_sent", all_)


def frame_before_outputs() -> None:
    """The frame is committed by itself, and the outputs after it."""
    commit = kafka_tasks.TaskProducer._commit

    async def in_two(self: Any, frame: Any, outputs: Any) -> int:
        offset = await commit(self, frame, [])
        await asyncio.sleep(0.3)
        producer = self._open_producer()
        await producer.begin_transaction()
        for (topic, partition), columns in group_outputs(outputs).items():
            await all_sent(await self._send(topic, partition, *columns))
        await producer.commit_transaction()
        return offset

    _put(kafka_tasks.TaskProducer, "_commit", in_two)


def positions_early() -> None:
    """Positions are those of what was fetched, not of what was worked on: up to three records ahead of the state."""
    carry_out = task.Task._carry_out

    async def early(self: Any, frame: Frame, *rest: Any) -> None:
        ends = {split.name: reader.lag() for _, split, reader in self.readers_of_live}
        positions = frame.meta.get("positions", {})
        for split, position in positions.items():
            positions[split] = position + min(3, ends.get(split) or 0)
        await carry_out(self, frame, *rest)

    open_ = live.LiveTask._open

    async def opened(self: Any) -> None:
        await open_(self)
        self.task.readers_of_live = self.readers

    _put(task.Task, "_carry_out", early)
    _put(task.Task, "readers_of_live", ())
    _put(live.LiveTask, "_open", opened)


def any_frame_counts() -> None:
    """The last frame on the disk is taken to count, decided or not, and whatever its id."""
    adopt, last = LsmStore.adopt, KafkaBroker.last_commit
    found: dict[str, tuple[int, bytes]] = {}

    async def blindly(store: Any, before: Path, commit_id: bytes) -> bool:
        try:
            look = await asyncio.to_thread(read_store, before)
        except Exception:
            return await adopt(store, before, commit_id)
        if not look.number:
            return await adopt(store, before, commit_id)
        done = await adopt(store, before, look.commit_id)
        if done and look.commit_id != commit_id:
            found[str(store.path.parent.name)] = look.number, look.commit_id
        return done

    async def last_commit(broker: Any, name: str) -> tuple[int, bytes | None]:
        return found.pop(quote(name, safe=""), None) or await last(broker, name)

    _put(LsmStore, "adopt", blindly)
    _put(KafkaBroker, "last_commit", last_commit)


def last_frame_skipped() -> None:
    """A task opens at the frame before the last one that counts."""
    read = kafka_frames.Changelog.read

    async def all_but_one(log: Any, first: int) -> AsyncIterator[Any]:
        held = None
        async for whole in read(log, first):
            if held is not None:
                yield held
            held = whole

    _put(kafka_frames.Changelog, "read", all_but_one)


def outputs_after_frame() -> None:
    """At least once, the frame does not wait for the outputs: they are sent after it."""
    commit = kafka_tasks.TaskProducer._commit
    held: dict[str, list[Any]] = {}

    async def send_early(self: Any, outputs: Any) -> None:
        held.setdefault(self.task, []).extend(outputs)

    async def in_two(self: Any, frame: Any, outputs: Any) -> int:
        late = [*held.pop(self.task, ()), *outputs]
        offset = await commit(self, frame, [])
        await asyncio.sleep(0.3)
        for (topic, partition), columns in group_outputs(late).items():
            await all_sent(await self._send(topic, partition, *columns))
        return offset

    _put(kafka_tasks.TaskProducer, "send_early", send_early)
    _put(kafka_tasks.TaskProducer, "_commit", in_two)


def claims_unheeded() -> None:
    """At least once, an owner does not look whether its frames count, and asks nobody whose the task is."""

    async def counts(*_: Any) -> None:
        return None

    place = kafka_group.KafkaGroup.place

    async def deaf(group: Any, tasks: Any, held: set[str]) -> Any:
        return (await place(group, tasks, held))._replace(releases=[])

    _put(kafka_tasks.TaskProducer, "_check_counts", counts)
    _put(kafka_group.KafkaGroup, "is_ours", lambda *_: True)
    _put(kafka_group.KafkaGroup, "place", deaf)


def files_cut_late() -> None:
    """A hand-off is delivered whatever there is in the file by now."""
    write = DiskFile.write

    def blindly(self: Any, offset: int, data: bytes, *, last: bool = True) -> None:
        self._length = 2**62
        write(self, offset, data, last=last)

    _put(DiskFile, "write", blindly)


def files_cut_at_open() -> None:
    """Who opens a file cuts off what he does not know, before he knows that the task is still his."""
    open_ = DiskFile.open

    def opened(self: Any, known: tuple[int, int] | None) -> None:
        open_(self, known)
        if self.rest:
            self._length, self.rest = known[1] if known else 0, False
            os.ftruncate(self._fd, self._length)

    _put(DiskFile, "open", opened)


MISFORTUNES: dict[str, Callable[[], None]] = {
    f.__name__: f for f in (dies, slow_commits, slow_deliveries, slow_opens, sends_fail)
}
MISTAKES: dict[str, Callable[[], None]] = {
    f.__name__: f
    for f in (
        no_fence,
        failed_sends_ignored,
        frame_before_outputs,
        positions_early,
        any_frame_counts,
        last_frame_skipped,
        outputs_after_frame,
        claims_unheeded,
        files_cut_late,
        files_cut_at_open,
    )
}


if __name__ == "__main__":
    for chosen in filter(None, sys.argv[1].split(",")):
        (MISFORTUNES | MISTAKES)[chosen]()
    # A supervisor starts `-m flowkit.cli`, which would be a worker in good order.
    sys.exit(main(sys.argv[2:]))
