"""`flowkit topics` and `flowkit dlq` on a real cluster, where marks of transactions lie between the records."""

import asyncio
import json
from pathlib import Path

import anyio
from aiokafka import AIOKafkaProducer

from flowkit.source.internal import changelog_of
from flowkit.source.kafka import KafkaBroker
from flowkit.source.kafka_address import KafkaAddress
from tests.cli.conftest import place
from tests.cli.place import Place
from tests.kafka.test_broker import Out, commit, frame


async def write(kafka_address: str, name: str) -> None:
    """Records of five commits, two each."""
    async with KafkaBroker(KafkaAddress.parse(f"kafka://{kafka_address}", {})) as broker:
        task = f"{name}/g/0"
        await broker.create(name, 1)
        await broker.create(changelog_of(task)[0], 1)
        claim = await broker.claim(task, "")
        for number in range(1, 6):
            outs = [Out(name, 0, b"k", b'{"n":%d}' % (2 * number + m), 1000 * number) for m in range(2)]
            await commit(broker, task, claim.epoch, frame(number, b"id%d" % (number - 1) if number > 1 else b""), *outs)
        await broker.last_commit(task)


__all__ = ["place"]  # the fixture of the command line's own tests


def test_topics_are_listed_and_shown(kafka_address: str, name: str, place: Place) -> None:
    asyncio.run(write(kafka_address, name))
    url = f"kafka://{kafka_address}"
    listed = place.call("topics", "list", "--broker", url, "--json")
    assert listed.code == 0, listed.err
    rows = {row["topic"]: row for row in map(json.loads, listed.out.splitlines())}
    assert (rows[name]["partitions"], rows[name]["internal"]) == (1, False)
    shown = place.call("topics", "tail", name, "-n", "3", "--broker", url, "--json")
    assert [json.loads(line)["value"]["n"] for line in shown.out.splitlines()] == [9, 10, 11]
    assert [json.loads(line)["offset"] for line in shown.out.splitlines()] == [10, 12, 13]


def test_tail_finds_and_follows_what_transactions_commit(kafka_address: str, name: str, place: Place) -> None:
    """Far before the end where transactions were aborted; and what lies there uncommitted is shown once it counts."""

    async def work() -> bytes:
        options = {"bootstrap_servers": kafka_address, "transactional_id": name}
        async with KafkaBroker(KafkaAddress.parse(url)) as broker:
            await broker.create(name, 1)
            await broker.put(name, [(None, b"0", 0), (b"-", b"1", 1)])
        async with AIOKafkaProducer(**options) as producer:
            await producer.begin_transaction()
            await asyncio.gather(*[await producer.send(name, b"aborted", timestamp_ms=2) for _ in range(20)])
            await producer.abort_transaction()
            await producer.begin_transaction()
            await producer.send_and_wait(name, b"2", timestamp_ms=2)
            tail = place.spawn("topics", "tail", name, "-n", "2", "--follow", "--broker", url, "--json")
            assert tail.stdout is not None
            try:
                with anyio.fail_after(20):
                    shown = [await asyncio.to_thread(tail.stdout.readline) for _ in range(2)]
                    assert [json.loads(line)["key"] for line in shown] == [None, "-"]
                    await producer.commit_transaction()
                    return await asyncio.to_thread(tail.stdout.readline)
            finally:
                tail.kill()
                await asyncio.to_thread(tail.communicate)

    url = f"kafka://{kafka_address}"
    assert json.loads(asyncio.run(work()))["value"] == 2


def test_topics_are_made_and_filled(kafka_address: str, name: str, place: Place) -> None:
    url = f"kafka://{kafka_address}"
    assert place.call("topics", "create", name, "-p", "2", "--broker", url).code == 0
    Path("in.jsonl").write_text('{"user":"ada"}\n{"user":"bob"}\n')
    done = place.call("topics", "put", name, "in.jsonl", "--key", "user", "--broker", url)
    assert done.code == 0, done.err
    assert len(place.call("topics", "tail", name, "--broker", url).out.splitlines()) == 2


def test_dead_letters_of_a_cluster_can_be_asked_for(kafka_address: str, place: Place) -> None:
    done = place.call("dlq", "list", "--broker", f"kafka://{kafka_address}")
    assert done.code == 0, done.err
