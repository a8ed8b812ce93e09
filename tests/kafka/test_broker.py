"""Commits of tasks on a real cluster: all or nothing, owners fenced, frames found again."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from flowkit.errors import BrokerError, ConfigError, Fenced, OutcomeUnknown, StoreCorrupt
from flowkit.source import Broker, KeepsFrames
from flowkit.source.internal import changelog_of
from flowkit.source.kafka import KafkaBroker
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_frames import PART_BYTES, open_changelog
from flowkit.store import Frame, SpaceChange


@dataclass
class Out:
    """One output of a commit."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    time: int = 0


@pytest.fixture
async def broker(kafka_address: str) -> AsyncIterator[KafkaBroker]:
    async with opened(kafka_address) as broker:
        yield broker


def opened(kafka_address: str) -> KafkaBroker:
    return KafkaBroker(KafkaAddress.parse(f"kafka://{kafka_address}", {}))


def frame(number: int, parent: bytes = b"", size: int = 10) -> Frame:
    change = SpaceChange("t", None, [b"k"], [random.Random(number).randbytes(size)])
    return Frame(number, b"id%d" % number, parent, 0, {}, [change])


async def commit(broker: KafkaBroker, task: str, epoch: int, frame: Frame, *outs: Out) -> None:
    await broker.commit(task, epoch, frame.number, frame.commit_id, {}, outs, frame)


async def shown(broker: KafkaBroker, task: str, number: int) -> None:
    """Wait until readers are shown the commit: the coordinator tells the changelog after it has answered."""
    async with asyncio.timeout(10):
        while True:
            async with open_changelog(broker.address, task) as log:
                _, last = await log.last()
            if last is not None and last.number >= number:
                return


async def test_it_fits_the_seam(broker: KafkaBroker) -> None:
    seam: Broker = broker
    assert isinstance(seam, KeepsFrames)


async def test_a_commit_is_there_with_all_its_outputs(broker: KafkaBroker, name: str) -> None:
    task = f"{name}/g/1"
    await broker.create(name, 2)
    await broker.create(changelog_of(task)[0], 2)
    claim = await broker.claim(task, "/state/here")
    assert (claim.number, claim.commit_id, claim.state) == (0, None, "")
    outs = [Out(name, n % 2, b"%d" % n, None if n == 3 else b"v%d" % n, 1000 + n) for n in range(5)]
    first = frame(1)
    first.meta["positions"] = {f"{name}[1]": 7}
    await commit(broker, task, claim.epoch, first, *outs)
    second = frame(2, first.commit_id)
    await commit(broker, task, claim.epoch, second)
    await shown(broker, task, 2)
    records = await broker.read(name, 1, 0, 100)
    assert list(records.values) == [b"v1", None]
    assert list(records.keys or []) == [b"1", b"3"]
    assert list(records.times or []) == [1001, 1003]
    assert await broker.last_commit(task) == (2, b"id2")
    assert [found async for found in broker.frames(task, 0)] == [first, second]
    assert [found async for found in broker.frames(task, 1)] == [second]


async def test_a_new_owner_goes_on_and_fences_the_one_before(
    kafka_address: str, broker: KafkaBroker, name: str
) -> None:
    task = f"{name}/g/0"
    await broker.create(name, 1)
    await broker.create(changelog_of(task)[0], 1)
    old = await broker.claim(task, "/state/old")
    first = frame(1)
    await commit(broker, task, old.epoch, first)
    async with opened(kafka_address) as other:
        new = await other.claim(task, "/state/new")
        assert new.epoch > old.epoch
        assert (new.number, new.commit_id, new.state) == (1, b"id1", "/state/old")
        zombie = Frame(2, b"zombie", first.commit_id, 0, {}, [])
        with pytest.raises(Fenced, match=rf"{task}: another worker opened it; commit 2 counts only there"):
            await commit(broker, task, old.epoch, zombie, Out(name, 0, None, b"a zombie's"))
        with pytest.raises(OutcomeUnknown):  # it is closed for good
            await commit(broker, task, old.epoch, zombie)
        await commit(other, task, new.epoch, frame(2, first.commit_id), Out(name, 0, None, b"the owner's"))
        assert await other.last_commit(task) == (2, b"id2")
    assert list((await broker.read(name, 0, 0, 100)).values) == [b"the owner's"]


async def test_outputs_that_are_too_large_for_their_topic(broker: KafkaBroker, name: str) -> None:
    """A batch is sent again as smaller ones, with the task's next producer; of a record it is told which."""
    task = f"{name}/g/0"
    await broker._topics.create(name, 1, {"max.message.bytes": "2000"})
    await broker.create(changelog_of(task)[0], 1)
    outs = [Out(name, 0, b"k", b"%d" % n * 300) for n in range(10)]
    claim = await broker.claim(task, "")
    with pytest.raises(OutcomeUnknown, match=rf"commit 1 counts: topic '{name}' takes no batch of 10 records: sending"):
        await commit(broker, task, claim.epoch, frame(1), *outs)
    broker._most[name] = 2_000  # as after two more of these
    claim = await broker.claim(task, "")
    await commit(broker, task, claim.epoch, frame(1), *outs)
    assert list((await broker.read(name, 0, 0, 100)).values) == [out.value for out in outs]
    with pytest.raises(OutcomeUnknown, match=r"takes no record of 3,003 bytes \(key b'key'\): raise its max.message"):
        await commit(broker, task, claim.epoch, frame(2, b"id1"), outs[0], Out(name, 0, b"key", b"x" * 3_000))
    with pytest.raises(BrokerError, match=r"takes no record as large as that: raise the topic's max.message.bytes"):
        await broker.put(name, [(b"key", b"x" * 3_000_000, 0)])


async def test_a_commit_that_was_broken_off_is_not_there(kafka_address: str, name: str) -> None:
    task = f"{name}/g/0"
    async with opened(kafka_address) as broker:
        await broker.create(name, 1)
        await broker.create(changelog_of(task)[0], 1)
        claim = await broker.claim(task, "")
        await commit(broker, task, claim.epoch, frame(1))
        producer = broker._owned[task]._producer
        await producer.begin_transaction()
        await producer.send_and_wait(name, b"half of a commit", partition=0)
    async with opened(kafka_address) as broker:
        claim = await broker.claim(task, "")
        assert claim.number == 1
        assert list((await broker.read(name, 0, 0, 10)).values) == []
        await commit(broker, task, claim.epoch, frame(2, b"id1"), Out(name, 0, None, b"whole"))
        assert list((await broker.read(name, 0, 0, 10)).values) == [b"whole"]


async def test_a_frame_beyond_the_limit_on_records_goes_in_parts(broker: KafkaBroker, name: str) -> None:
    task = f"{name}/g/0"
    await broker.create(changelog_of(task)[0], 1)
    claim = await broker.claim(task, "")
    frames = [frame(1), frame(2, b"id1", size=3 * PART_BYTES + 5), frame(3, b"id2")]
    for one in frames:
        await commit(broker, task, claim.epoch, one)
    await shown(broker, task, 3)
    assert [found async for found in broker.frames(task, 0)] == frames
    assert [found async for found in broker.frames(task, 1)] == frames[1:]
    again = await broker.claim(task, "")
    assert (again.number, again.commit_id) == (3, b"id3")


async def test_many_frames_are_found_from_the_end(broker: KafkaBroker, name: str) -> None:
    task = f"{name}/g/0"
    await broker.create(changelog_of(task)[0], 1)
    claim = await broker.claim(task, "")
    parent = b""
    for number in range(1, 151):
        one = Frame(number, b"id%d" % number, parent, 0, {}, [])
        await commit(broker, task, claim.epoch, one)
        parent = one.commit_id
    await shown(broker, task, 150)
    for after in (0, 1, 80, 148, 149, 150):
        assert [found.number async for found in broker.frames(task, after)] == list(range(after + 1, 151))


async def test_the_last_frame_is_found_though_those_before_are_trimmed_meanwhile(
    broker: KafkaBroker, name: str
) -> None:
    task = f"{name}/g/0"
    topic, partition = changelog_of(task)
    await broker.create(topic, 1)
    claim = await broker.claim(task, "")
    for number in range(1, 5):
        await commit(broker, task, claim.epoch, frame(number, b"id%d" % (number - 1) if number > 1 else b""))
    await shown(broker, task, 4)
    async with open_changelog(broker.address, task) as log:
        await broker.delete_before(topic, partition, 6)
        epoch, last = await log.last()
    assert (epoch, last is not None and last.number) == (claim.epoch, 4)


async def test_frames_that_were_deleted_too_early_are_told(broker: KafkaBroker, name: str) -> None:
    task = f"{name}/g/0"
    topic, partition = changelog_of(task)
    await broker.create(topic, 1)
    claim = await broker.claim(task, "")
    for number in range(1, 5):
        await commit(broker, task, claim.epoch, frame(number, b"id%d" % (number - 1) if number > 1 else b""))
    await shown(broker, task, 4)
    await broker.delete_before(topic, partition, 4)  # each commit has a record and a marker
    with pytest.raises(StoreCorrupt, match=r"commit 1 is not there, the next one is 3"):
        async for _ in broker.frames(task, 0):
            pass
    assert [found.number async for found in broker.frames(task, 2)] == [3, 4]


async def test_an_output_without_its_topic_counts_as_unknown_and_leaves_nothing(broker: KafkaBroker, name: str) -> None:
    task = f"{name}/g/0"
    await broker.create(changelog_of(task)[0], 1)
    claim = await broker.claim(task, "")
    with pytest.raises((OutcomeUnknown, ConfigError)):
        await commit(broker, task, claim.epoch, frame(1), Out(name, 0, None, b"nowhere to go"))
    claim = await broker.claim(task, "")
    assert claim.number == 0
    await commit(broker, task, claim.epoch, frame(1))
    assert await broker.last_commit(task) == (1, b"id1")


# --- at least once ---------------------------------------------------------------------------------------------------


def loose(kafka_address: str) -> KafkaBroker:
    address = KafkaAddress.parse(f"kafka://{kafka_address}", {})
    return KafkaBroker(address, "at least once")


async def test_at_least_once_outputs_and_frames_are_there_too(kafka_address: str, name: str) -> None:
    task = f"{name}/g/0"
    async with loose(kafka_address) as broker:
        await broker.create(name, 2)
        await broker.create(changelog_of(task)[0], 1)
        claim = await broker.claim(task, "/state")
        first = frame(1)
        await commit(broker, task, claim.epoch, first, Out(name, 0, b"k", b"v"), Out(name, 1, b"l", b"w"))
        again = await broker.claim(task, "/state")
        assert (again.number, again.commit_id, again.state) == (1, b"id1", "/state")
        second = frame(2, b"id1", size=2 * PART_BYTES)
        await commit(broker, task, again.epoch, second)
        assert await broker.last_commit(task) == (2, b"id2")
        assert [found async for found in broker.frames(task, 0)] == [first, second]
        assert list((await broker.read(name, 1, 0, 10)).values) == [b"w"]


async def test_at_least_once_a_zombies_frames_do_not_count(kafka_address: str, name: str) -> None:
    task = f"{name}/g/0"
    async with loose(kafka_address) as zombie, loose(kafka_address) as owner:
        await owner.create(changelog_of(task)[0], 1)
        old = await zombie.claim(task, "")
        await commit(zombie, task, old.epoch, frame(1))
        new = await owner.claim(task, "")
        assert (new.number, new.epoch) == (1, old.epoch + 1)
        with pytest.raises(Fenced, match=rf"{task}: another worker claimed it; commit 2 counts only there"):
            await commit(zombie, task, old.epoch, Frame(2, b"zombie 2", b"id1", 0, {}, []))
        with pytest.raises(OutcomeUnknown):  # it is closed for good
            await commit(zombie, task, old.epoch, Frame(2, b"zombie 2", b"id1", 0, {}, []))
        for number in (2, 3):  # the zombie's frame is passed over, also by the owner who looks what lies between
            await commit(owner, task, new.epoch, frame(number, b"id%d" % (number - 1)))
    async with loose(kafka_address) as outside:
        assert await outside.last_commit(task) == (3, b"id3")
        assert [found.commit_id async for found in outside.frames(task, 0)] == [b"id1", b"id2", b"id3"]


async def test_at_least_once_those_who_open_a_task_at_once_have_not_one_epoch(kafka_address: str, name: str) -> None:
    task = f"{name}/g/0"
    async with AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(loose(kafka_address)) for _ in range(4)]
        await brokers[0].create(changelog_of(task)[0], 1)
        claims = await asyncio.gather(*(broker.claim(task, "") for broker in brokers))
        order = sorted(range(4), key=lambda n: claims[n].epoch)
        assert len({claim.epoch for claim in claims}) == 4
        for n in order[:-1]:
            with pytest.raises(Fenced):
                await commit(brokers[n], task, claims[n].epoch, Frame(1, b"no%d" % n, b"", 0, {}, []))
        await commit(brokers[order[-1]], task, claims[order[-1]].epoch, frame(1))
        assert [found.commit_id async for found in brokers[0].frames(task, 0)] == [b"id1"]


async def test_at_least_once_an_owner_hears_at_once_that_someone_claimed_and_went(
    kafka_address: str, name: str
) -> None:
    task = f"{name}/g/0"
    async with loose(kafka_address) as owner:
        await owner.create(changelog_of(task)[0], 1)
        claim = await owner.claim(task, "")
        await commit(owner, task, claim.epoch, frame(1))
        async with loose(kafka_address) as late:  # one who woke late, and left when he was told
            await late.claim(task, "")
        with pytest.raises(Fenced):  # else its frames, and what is trimmed behind them, would be lost in silence
            await commit(owner, task, claim.epoch, frame(2, b"id1"))
        again = await owner.claim(task, "")
        assert again.number == 1
        await commit(owner, task, again.epoch, frame(2, b"id1"))
        assert await owner.last_commit(task) == (2, b"id2")


async def test_guarantees_can_be_changed(kafka_address: str, name: str) -> None:
    task = f"{name}/g/0"
    epochs = []
    for number, make in enumerate((opened, loose, opened, loose), 1):
        async with make(kafka_address) as broker:
            if number == 1:
                await broker.create(changelog_of(task)[0], 1)
            claim = await broker.claim(task, "")
            epochs.append(claim.epoch)
            assert claim.number == number - 1
            await commit(broker, task, claim.epoch, frame(number, b"id%d" % (number - 1) if number > 1 else b""))
            assert await broker.last_commit(task) == (number, b"id%d" % number)
            await shown(broker, task, number)
            assert [found.number async for found in broker.frames(task, 0)] == list(range(1, number + 1))
    assert epochs == [1, 2, 3, 4]


async def test_at_least_once_outputs_do_not_wait_for_their_commit(kafka_address: str, name: str) -> None:
    task = f"{name}/g/0"
    async with loose(kafka_address) as broker:
        await broker.create(name, 1)
        await broker.create(changelog_of(task)[0], 1)
        claim = await broker.claim(task, "")
        await broker.send(task, claim.epoch, [Out(name, 0, None, b"early")])
        async with asyncio.timeout(10):
            while not len(await broker.read(name, 0, 0, 10)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await commit(broker, task, claim.epoch, frame(1), Out(name, 0, None, b"with it"))
        assert list((await broker.read(name, 0, 0, 10)).values) == [b"early", b"with it"]
        with pytest.raises(OutcomeUnknown):
            await broker.send(task, claim.epoch + 1, [Out(name, 0, None, b"whose?")])


async def test_at_least_once_nothing_overtakes_what_was_refused(kafka_address: str, name: str) -> None:
    task = f"{name}/g/0"
    async with loose(kafka_address) as broker:
        await broker._topics.create(name, 1, {"max.message.bytes": "1000"})
        await broker.create(changelog_of(task)[0], 1)
        claim = await broker.claim(task, "")
        await commit(broker, task, claim.epoch, frame(1))
        # The first that this producer sends there, so that the broker does not miss it.
        await broker.send(task, claim.epoch, [Out(name, 0, None, b"an event" * 1000)])
        with pytest.raises(OutcomeUnknown):
            await commit(broker, task, claim.epoch, frame(2, b"id1"), Out(name, 0, None, b"its mark"))
        with pytest.raises(OutcomeUnknown):
            await broker.send(task, claim.epoch, [Out(name, 0, None, b"the next event")])
        assert list((await broker.read(name, 0, 0, 10)).values) == []
        assert (await broker.claim(task, "")).number == 1
