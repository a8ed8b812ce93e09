"""Blobs in a topic: they do what those in directories and buckets do, whoever else writes, and whatever breaks off."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition

from flowkit.errors import ConfigError, StoreCorrupt, StoreError
from flowkit.source import check_storage_url, open_storage
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_blob_records import Layout, chunk_key, head_key
from flowkit.source.kafka_storage import KafkaPlace, KafkaStorage
from flowkit.source.kafka_topics import KafkaTopics
from tests.kafka.real import Kafka
from tests.store.test_blobs import (  # noqa: F401  # they run here, on a topic
    test_a_blob_is_read_as_it_was_written_whatever_its_size,
    test_a_counter_that_many_raise_by_replacing_it_misses_none,
    test_names_are_found_by_how_they_begin_and_not_in_other_folders,
    test_of_many_who_write_one_name_one_wins,
    test_tasks_are_found_by_their_names,
    test_what_is_replaced_is_gone_whole,
)
from tests.store.test_checkpoint import (  # noqa: F401  # and so do these
    Home,
    test_a_checkpoint_is_restored_as_the_store_was,
    test_a_claim_broken_off_at_any_step_leaves_the_checkpoint,
    test_a_publishing_broken_off_at_any_step_leaves_a_whole_checkpoint,
    test_a_restore_that_is_broken_off_is_refused_and_can_be_done_again,
    test_a_zombie_is_fenced_and_changes_nothing,
    test_an_empty_store_has_an_empty_checkpoint,
    test_an_owner_that_is_overtaken_while_it_uploads_is_fenced,
    test_an_unreadable_last_checkpoint_is_not_in_the_way_of_the_next,
    test_commits_go_on_while_files_are_uploaded,
    test_damage_is_found_and_not_restored,
    test_each_owner_has_a_higher_epoch,
    test_nothing_is_to_be_read_in_an_encrypted_checkpoint,
    test_only_what_is_new_is_uploaded,
    test_owners_that_claim_at_once_get_epochs_of_their_own,
)

BIG = 3_000_000


@pytest.fixture
def url(kafka_address: str, name: str) -> str:
    """Where a topic may be made that no other test has."""
    return f"kafka://{kafka_address}/{name}"


@pytest.fixture
async def storage(url: str) -> AsyncIterator[KafkaStorage]:
    """A topic, and a prefix in it."""
    async with opened(f"{url}/some/prefix") as storage:
        yield storage


def opened(url: str) -> Any:
    """As another process has it."""
    return open_storage(url)


@pytest.fixture
async def home(tmp_path: Path, storage: KafkaStorage) -> Home:
    """Where the tests of checkpoints have theirs."""
    return Home(tmp_path, storage)


@pytest.fixture
async def topics(kafka_address: str) -> AsyncIterator[KafkaTopics]:
    async with KafkaTopics(KafkaAddress.parse(f"kafka://{kafka_address}", {})) as topics:
        yield topics


# Where


def test_a_url_names_topic_prefix_and_options() -> None:
    place = KafkaPlace.parse("kafka://one,two:9094/states/prod/e%20u/?timeout_ms=3000")
    assert (place.address.servers, place.topic, place.prefix) == (("one:9092", "two:9094"), "states", "prod/e u")
    assert str(place) == "kafka://one:9092,two:9094/states/prod/e u?timeout_ms=3000"


@pytest.mark.parametrize(
    "wrong, told",
    [
        ("kafka://h:9092", "checkpoints kafka://h:9092: names no topic: use kafka://HOST:PORT/TOPIC"),
        ("kafka://h:9092/?timeout_ms=1", "names no topic"),
        ("kafka://h:x/t", "is no HOST:PORT"),
        ("kafka://h/t?colour=red", "unknown option 'colour'"),
        ("kafka://h/b%C3%BC/x", "topic"),
        ("kafka://me:hush@h/t", "no secret may stand in it"),
    ],
)
def test_a_url_that_cannot_be_is_told(wrong: str, told: str) -> None:
    with pytest.raises(ConfigError, match=r".*".join(told.split("?"))) as caught:
        check_storage_url(wrong)
    assert "hush" not in str(caught.value)


# The topic


async def test_the_topic_is_made_to_keep_everything(storage: KafkaStorage, topics: KafkaTopics, name: str) -> None:
    assert await storage.blobs("a").find() == []
    assert await topics.partitions(name) == 0, "who only looks makes nothing"
    await storage.check()
    settings = await topics.config(name)
    assert settings["cleanup.policy"] == "compact"
    assert settings["retention.ms"] == settings["retention.bytes"] == "-1"
    assert await topics.partitions(name) == 16


@pytest.mark.parametrize("partitions", [1, 2, 3])
async def test_a_topic_that_is_there_is_taken_with_its_partitions_and_limit(
    url: str, topics: KafkaTopics, name: str, partitions: int
) -> None:
    await topics.create(name, partitions, {"cleanup.policy": "compact", "max.message.bytes": "60000"})
    data = os.urandom(BIG)
    async with opened(url) as storage:
        for n in range(3):
            assert await storage.blobs("a", "b", str(n)).put("x", data) is not None
    async with opened(url) as storage:
        assert await storage.folders("a", "b") == ["0", "1", "2"]
        for n in range(3):
            found = await storage.blobs("a", "b", str(n)).get("x")
            assert found is not None
            assert found[0] == data


async def test_a_topic_that_would_lose_checkpoints_is_refused(url: str, topics: KafkaTopics, name: str) -> None:
    for policy in ("delete", "compact,delete"):
        each = f"{name}-{len(policy)}"
        await topics.create(each, 2, {"cleanup.policy": policy, "retention.ms": "604800000"})
        async with opened(url.replace(name, each)) as storage:
            with pytest.raises(ConfigError, match=f"has cleanup.policy={policy} and retention.ms=604800000, which"):
                await storage.check()
            with pytest.raises(StoreError, match="deletes checkpoints that are needed"):
                await storage.blobs("a").put("x", b"")
    await topics.create(name, 2, {"cleanup.policy": "delete", "retention.ms": "-1"})
    async with opened(url) as storage:
        await storage.check()


async def test_a_topic_of_something_else_is_refused(url: str, topics: KafkaTopics, name: str) -> None:
    await topics.create(name, 1, {"cleanup.policy": "compact"})
    await topics.put(name, [(b"k", b"v", 0)])
    async with opened(url) as storage:
        with pytest.raises(StoreCorrupt, match=r"record at offset 0 is none of a checkpoint: .* a topic of their own"):
            await storage.check()


async def test_partitions_that_are_added_change_nothing(url: str, topics: KafkaTopics, name: str) -> None:
    from aiokafka.admin import NewPartitions

    await topics.create(name, 2, {"cleanup.policy": "compact"})
    async with opened(url) as storage:
        for n in range(8):
            await storage.blobs(f"{n}").put("x", os.urandom(BIG) if n < 2 else b"%d" % n)
    await topics._admin.create_partitions({name: NewPartitions(9)})
    async with opened(url) as storage:
        assert await storage.folders() == [f"{n}" for n in range(8)]
        for n in range(2, 8):
            assert (await storage.blobs(f"{n}").get("x") or (b"",))[0] == b"%d" % n


# Others who write, and zombies


async def test_of_owners_in_different_processes_one_wins(url: str) -> None:
    async with opened(url) as one, opened(url) as two, opened(url) as three:
        every = [storage.blobs("a", "b", "0") for storage in (one, two, three)]
        for n in range(5):
            tags = await asyncio.gather(*(blobs.put(f"{n}", b"%d" % k) for k, blobs in enumerate(every)))
            (winner,) = [k for k, tag in enumerate(tags) if tag is not None]
            for blobs in every:
                assert await blobs.get(f"{n}") == (b"%d" % winner, tags[winner])


async def test_a_counter_that_several_processes_raise_misses_none(url: str) -> None:
    async with opened(url) as one, opened(url) as two:
        await one.blobs("a").put("n", b"0")

        async def count(storage: KafkaStorage, times: int) -> None:
            blobs = storage.blobs("a")
            while times:
                data, tag = await blobs.get("n") or (b"", "")
                if await blobs.put("n", b"%d" % (int(data) + 1), over=tag) is not None:
                    times -= 1

        await asyncio.gather(count(one, 8), count(two, 8))
        assert (await two.blobs("a").get("n") or (b"",))[0] == b"16"


class Paused:
    """Stops one change of an owner just before its transaction ends, as a process that is stopped then."""

    def __init__(self, storage: KafkaStorage, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        producer = storage.topic._owners[folder]._producer
        commit = producer.commit_transaction

        async def late() -> None:
            self.reached.set()
            await self.go_on.wait()
            await commit()

        monkeypatch.setattr(producer, "commit_transaction", late)


@pytest.mark.parametrize("in_the_way", [True, False])
async def test_a_zombie_that_wakes_in_its_transaction_overwrites_nothing(
    url: str, in_the_way: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with opened(url) as old, opened(url) as new:
        tag = await old.blobs("a").put("x", b"1")
        pause = Paused(old, "a", monkeypatch)
        zombie = asyncio.create_task(old.blobs("a").put("x", b"zombie", over=tag))
        await pause.reached.wait()
        other = await new.blobs("a").put("x" if in_the_way else "y", b"new", over=tag if in_the_way else None)
        assert other is not None
        pause.go_on.set()
        if in_the_way:
            assert await zombie is None
            assert await new.blobs("a").get("x") == (b"new", other)
        else:  # it was fenced, but what it wanted still holds
            late = await zombie
            assert await new.blobs("a").get("x") == (b"zombie", late)
    gc.collect()
    assert complaints == []


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_put_whose_answer_is_lost_is_known_to_have_won(
    url: str, replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(url) as one, opened(url) as two:
        tag = await one.blobs("a").put("x", b"1")
        producer = one.topic._owners["a"]._producer
        commit = producer.commit_transaction

        async def lost() -> None:
            await commit()
            if replaced:
                _, now = await two.blobs("a").get("x")
                assert await two.blobs("a").put("x", b"3", over=now) is not None
            raise TimeoutError

        monkeypatch.setattr(producer, "commit_transaction", lost)
        again = await one.blobs("a").put("x", b"2", over=tag)
        assert again is not None
        found = await one.blobs("a").get("x")
        assert found[0] == (b"3" if replaced else b"2")
        assert (found[1] == again) is not replaced


async def test_readers_are_not_held_up_for_long_by_who_died_in_a_transaction(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not until the cluster ends it, after ten seconds and more: whoever is held up ends it."""
    async with opened(url) as dead, opened(url) as alive:
        await dead.blobs("a").put("x", b"1")
        pause = Paused(dead, "a", monkeypatch)
        dying = asyncio.create_task(dead.blobs("a").put("y", b"2"))
        await pause.reached.wait()
        async with asyncio.timeout(8):
            assert [blob.name for blob in await alive.blobs("a").find()] == ["x"]
        dying.cancel()
        await asyncio.wait([dying])


async def test_a_transaction_whose_end_the_cluster_has_lost_is_ended(
    own_kafka: Callable[..., Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = own_kafka(properties={"transaction.partition.verification.enable": "false"})
    url = f"kafka://{kafka.bootstrap}/states"
    async with opened(url) as one, opened(url) as two:
        await one.blobs("a").put("x", b"1")
        assert len(await two.blobs("a").find()) == 1
        producer = one.topic._owners["a"]._producer
        monkeypatch.setattr(producer._txn_manager, "maybe_add_partition_to_txn", lambda _part: None)
        tag = await one.blobs("a").put("y", b"2")
        async with asyncio.timeout(30):
            assert await two.blobs("a").get("y") == (b"2", tag)
            assert await two.blobs("a").put("z", b"3") is not None
            assert [blob.name for blob in await one.blobs("a").find()] == ["x", "y", "z"]


# What breaks off, and what is lost


async def test_what_a_broken_put_leaves_is_found_and_removed(storage: KafkaStorage, monkeypatch: Any) -> None:
    blobs: Any = storage.blobs("a")

    async def fails(*_: Any) -> bool:
        raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(storage.topic, "change", fails)
        with pytest.raises(StoreError, match="no answer within 15000 ms"):
            await blobs.put("x.sst", os.urandom(BIG))
    (left,) = await blobs.find()
    assert left.name.startswith(".draft-x.sst-")
    assert len(left.name) == len(".draft-x.sst-") + 12
    assert await blobs.get(left.name) is not None
    assert await blobs.get("x.sst") is None
    await blobs.delete(left.name)
    assert await blobs.find() == []
    assert await blobs.put("x.sst", b"again") is not None


async def values(topics: KafkaTopics, topic: str, partition: int) -> dict[bytes, bytes | None]:
    """What compaction will leave of a partition."""
    _, end = await topics.bounds(topic, partition)
    batch = await topics.read(topic, partition, 0, end)
    return {key or b"": value for key, value in zip(batch.keys or (), batch.values, strict=True)}


async def test_of_what_is_deleted_nothing_is_left_when_the_topic_is_compacted(
    url: str, topics: KafkaTopics, name: str
) -> None:
    async with opened(url) as storage:
        blobs = storage.blobs("a", "b", "0")
        await blobs.put("gone", os.urandom(BIG))
        tag = await blobs.put("replaced", os.urandom(BIG))
        await blobs.put("replaced", b"small", over=tag)
        assert await blobs.put("replaced", os.urandom(BIG)) is None
        await blobs.delete("gone")
    layout = Layout(16)
    heads = await values(topics, name, layout.of_heads("a/b/0"))
    left = {key for key, value in heads.items() if value is not None}
    assert head_key("a/b/0", "replaced") in left
    assert len(left) <= 2, "the layout may be there too"
    chunks = await values(topics, name, layout.of_chunks("a/b/0"))
    assert len(chunks) == 8
    assert not any(chunks.values())


async def test_blobs_stay_when_the_topic_is_compacted(
    url: str, topics: KafkaTopics, name: str, kafka_address: str
) -> None:
    settings = {"cleanup.policy": "compact", "segment.bytes": "1048576", "min.cleanable.dirty.ratio": "0.01"}
    await topics.create(name, 2, {**settings, "delete.retention.ms": "0"})
    async with opened(url) as storage:
        blobs = storage.blobs("a")
        kept = {f"kept-{n}": os.urandom(BIG if n % 2 else 10) for n in range(4)}
        for key, data in kept.items():
            await blobs.put(key, data)
            await blobs.put(f"gone-{key}", os.urandom(BIG))
            await blobs.delete(f"gone-{key}")
        where = TopicPartition(name, 1)
        async with asyncio.timeout(60):
            while len(found := await values(topics, name, where.partition)) >= 24 or any(
                key == chunk_key("a", "", 0) for key in found
            ):
                await blobs.put(f"gone-{os.urandom(4).hex()}", b"")
                await asyncio.sleep(0.2)
        for key, data in kept.items():
            assert (await blobs.get(key) or (b"",))[0] == data
    async with opened(url) as storage:
        for key, data in kept.items():
            assert (await storage.blobs("a").get(key) or (b"",))[0] == data


async def test_a_blob_with_a_chunk_that_is_gone_is_told(url: str, kafka_address: str, name: str) -> None:
    async with opened(url) as storage:
        blobs = storage.blobs("a")
        tag = await blobs.put("x", os.urandom(BIG))
        producer = AIOKafkaProducer(bootstrap_servers=kafka_address)
        await producer.start()
        entry = storage.topic.index(Layout(16).of_heads("a"))
        await entry.refresh()
        await storage.topic.send(Layout(16).of_chunks("a"), [(chunk_key("a", str(tag), 1), None)])
        await producer.stop()
        assert await blobs.get("x") is not None, "before the topic is compacted"
        head = entry.folders["a"]["x"]
        broken = head.head.__class__(str(tag), head.head.size, head.head.chunks + 1, head.head.first, head.head.last)
        entry.folders["a"]["x"] = head._replace(head=broken)
        with pytest.raises(StoreCorrupt, match=r"a/x: some of its records are gone"):
            await blobs.get("x")


# A cluster that is away


async def test_a_cluster_that_is_away_is_told_and_may_come_back(own_kafka: Callable[..., Kafka]) -> None:
    kafka = own_kafka()
    url = f"kafka://{kafka.bootstrap}/states?timeout_ms=2000"
    async with opened(url) as storage:
        blobs = storage.blobs("a")
        await blobs.put("x", b"1")
        kafka.kill()
        for act in (lambda: blobs.put("y", b"2"), lambda: blobs.get("x"), blobs.find):
            with pytest.raises(StoreError, match=r"checkpoints in topic 'states': "):
                async with asyncio.timeout(30):
                    await act()
        kafka.start()
        async with asyncio.timeout(60):
            while True:
                try:
                    assert (await blobs.get("x") or (b"",))[0] == b"1"
                    assert (await blobs.get("y")) is None
                    assert await blobs.put("y", b"2") is not None
                except StoreError:
                    await asyncio.sleep(0.2)
                else:
                    break
