"""Amazon's services through flowkit beside a bare client on the same server, in turn.

    pytest tests/benchmarks/test_aws.py -m benchmark -s

Told in records a second of this process's CPU, which what else the machine does changes little, and of the clock, which
the server's own speed bounds. The bare loop makes the same requests of the same encoded records, cuts them into batches
as large as the service takes, and has as many calls under way as the sink: it counts no sizes, keeps no order of keys,
and tries nothing again.
"""

import asyncio
import gzip
import io
import os
import ssl
import time
import uuid
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from statistics import median
from typing import Any, NamedTuple

import aiohttp
import asyncpg
import msgspec
import pytest
from isal import igzip

from flowkit.aws import AwsOptions, open_client
from flowkit.clock import SystemClock
from flowkit.sink import SinkTask, destination, redshift_wire
from flowkit.sink.redshift_sink import RedshiftSink
from flowkit.store import MemoryStore
from flowkit.worker.outlets import Outgoing
from tests.aws import servers
from tests.aws.postgres import PASSWORD, USER, Postgres, postgres
from tests.aws.redshift import AsRedshift
from tests.benchmarks.workload import show

RECORDS = int(os.environ.get("FLOWKIT_BENCH_AWS_RECORDS", "10000"))
ROUNDS = int(os.environ.get("FLOWKIT_BENCH_AWS_ROUNDS", "5"))


class Rate(NamedTuple):
    """Records a second."""

    cpu: float
    wall: float


async def rate(records: int, work: Awaitable[object]) -> Rate:
    cpu, wall = time.process_time(), time.perf_counter()
    await work
    return Rate(records / (time.process_time() - cpu), records / (time.perf_counter() - wall))


async def in_turn(
    capsys: object,
    name: str,
    records: int,
    sink: Callable[[], Awaitable[object]],
    bare: Callable[[], Awaitable[object]],
) -> float:
    """Both, round after round; the median of the CPU ratios."""
    await sink(), await bare()
    pairs = [(await rate(records, sink()), await rate(records, bare())) for _ in range(ROUNDS)]
    cpu = median(ours.cpu / theirs.cpu for ours, theirs in pairs)
    wall = median(ours.wall / theirs.wall for ours, theirs in pairs)
    ours, theirs = (max(pair[n].cpu for pair in pairs) for n in (0, 1))
    show(capsys, f"{name}: {ours:,.0f} records a CPU-second, bare {theirs:,.0f}: ratio {cpu:.2f} (wall {wall:.2f})")
    return cpu


async def bare_calls(batches: Sequence[Any], call: Callable[[Any], Awaitable[object]], at_once: int) -> None:
    """One call a batch, so many at once."""
    left = iter(batches)

    async def lane() -> None:
        for batch in left:
            await call(batch)

    await asyncio.gather(*(lane() for _ in range(at_once)))


def cut(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]


class Card(msgspec.Struct):
    """What the records are."""

    id: str
    count: int
    total: float
    country: str
    until: int


VALUES = [
    b'{"id":"card-%d","count":%d,"total":%d.25,"country":"DE","until":1704067800000}' % (n, n, n)
    for n in range(RECORDS)
]


def outgoing() -> list[Outgoing]:
    return [Outgoing(b"card-%d" % n, value, 1_704_067_799_999) for n, value in enumerate(VALUES)]


@asynccontextmanager
async def sending(url: str, rows: Sequence[Outgoing]) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """Stages and delivers `rows` to where `url` leads."""
    async with destination(url, None) as to:
        sink = to.sink(SinkTask("bench", "group", 0, 1, SystemClock()))
        await sink.open(None)
        yield lambda: sink.deliver(sink.stage(rows, final=False))


@pytest.fixture
def ministack(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with servers.ministack() as url:
        for name, value in servers.aws_environment(url).items():
            monkeypatch.setenv(name, value)
        yield url


@pytest.mark.benchmark
@pytest.mark.timeout(600)
async def test_kinesis_sink(capsys: object, ministack: str) -> None:
    name = f"s-{uuid.uuid4().hex[:8]}"
    async with open_client("kinesis", AwsOptions(), "kinesis://x") as client:
        await client.create_stream(StreamName=name, ShardCount=2)
        await client.get_waiter("stream_exists").wait(StreamName=name, WaiterConfig={"Delay": 1})

        async def put(batch: Sequence[Outgoing]) -> None:
            entries = [{"Data": row.value, "PartitionKey": (row.key or b"").decode()} for row in batch]
            await client.put_records(StreamName=name, Records=entries)

        rows = outgoing()
        async with sending(f"kinesis://{name}", rows) as send:
            ratio = await in_turn(
                capsys,
                "kinesis sink",
                RECORDS,
                send,
                lambda: bare_calls(cut(rows, 500), put, 8),
            )
    assert ratio > 0.7


@pytest.mark.benchmark
@pytest.mark.timeout(600)
async def test_firehose_sink(capsys: object, ministack: str) -> None:
    name = f"f-{uuid.uuid4().hex[:8]}"
    async with open_client("firehose", AwsOptions(), "firehose://x") as client:
        await client.create_delivery_stream(DeliveryStreamName=name)

        async def put(batch: Sequence[Outgoing]) -> None:
            entries = [{"Data": (row.value or b"") + b"\n"} for row in batch]
            await client.put_record_batch(DeliveryStreamName=name, Records=entries)

        rows = outgoing()
        async with sending(f"firehose://{name}", rows) as send:
            ratio = await in_turn(
                capsys,
                "firehose sink",
                RECORDS,
                send,
                lambda: bare_calls(cut(rows, 500), put, 8),
            )
    assert ratio > 0.7


@pytest.mark.benchmark
@pytest.mark.timeout(600)
@pytest.mark.parametrize("write", ["conditional", "batch"])
async def test_dynamodb_sink(capsys: object, ministack: str, write: str) -> None:
    """The bare loop puts without conditions; `conditional` has one a record, and two attributes more in it."""
    name, count = f"t-{uuid.uuid4().hex[:8]}", RECORDS if write == "batch" else RECORDS // 10
    async with open_client("dynamodb", AwsOptions(), "dynamodb://x") as client:
        key = [{"AttributeName": "id", "AttributeType": "S"}]
        await client.create_table(
            TableName=name,
            AttributeDefinitions=key,
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            BillingMode="PAY_PER_REQUEST",
        )
        values, decode = VALUES[:count], msgspec.json.Decoder(Card).decode

        def item_of(value: bytes) -> dict[str, Any]:
            card = decode(value)
            return {
                "id": {"S": card.id},
                "count": {"N": str(card.count)},
                "total": {"N": str(card.total)},
                "country": {"S": card.country},
                "until": {"N": str(card.until)},
            }

        async def put_all(batch: Sequence[bytes]) -> None:
            requests = [{"PutRequest": {"Item": item_of(value)}} for value in batch]
            await client.batch_write_item(RequestItems={name: requests})

        version = 0

        async def put(value: bytes) -> None:
            nonlocal version
            version += 1
            number = {"N": str((1_704_067_800_000 << 16) + version)}
            await client.put_item(
                TableName=name,
                Item={**item_of(value), "version": number},
                ConditionExpression="attribute_not_exists(#n) OR #n < :n",
                ExpressionAttributeNames={"#n": "version"},
                ExpressionAttributeValues={":n": number},
            )

        async def bare() -> None:
            if write == "batch":
                await bare_calls(cut(values, 25), put_all, 32)
            else:
                await bare_calls(values, put, 32)

        async with sending(f"dynamodb://{name}?write={write}", outgoing()[:count]) as send:
            ratio = await in_turn(capsys, f"dynamodb sink, {write}", count, send, bare)
    assert ratio > 0.7


FUNCTION = """
def handler(event, context):
    return {"batchItemFailures": []}
"""


@pytest.mark.benchmark
@pytest.mark.timeout(600)
async def test_lambda_sink(capsys: object, ministack: str) -> None:
    """The bare loop has its payloads ready, in the shape of the sink's: ours makes them, too."""
    name, archive = f"f-{uuid.uuid4().hex[:8]}", io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("app.py", FUNCTION)
    async with open_client("lambda", AwsOptions(), "lambda://x") as client:
        await client.create_function(
            FunctionName=name,
            Runtime="python3.11",
            Handler="app.handler",
            Role="arn:aws:iam::123456789012:role/r",
            Code={"ZipFile": archive.getvalue()},
        )
        record = b'{"id":"0123456789abcdef-1a2b3c4d5e6f70","key":"card-%d","time":1704067799999,"value":%b}'
        records = [record % (n, value) for n, value in enumerate(VALUES)]
        frame = b'{"id":"0123456789abcdef0123456789abcdef","records":[%b]}'
        payloads = [frame % b",".join(batch) for batch in cut(records, 100)]

        async def invoke(payload: bytes) -> None:
            answer = await client.invoke(FunctionName=name, Payload=payload)
            assert await answer["Payload"].read() == b'{"batchItemFailures": []}'

        for order in ("key", "none"):
            async with sending(f"lambda://{name}?calls=2&order={order}", outgoing()) as send:
                ratio = await in_turn(
                    capsys, f"lambda sink, order={order}", RECORDS, send, lambda: bare_calls(payloads, invoke, 2)
                )
            assert ratio > 0.5


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


class WithoutCopy(AsRedshift):
    """What COPY does is the cluster's work: nothing, here."""

    async def _copy(self, sql: str) -> None:
        assert sql.startswith("COPY flowkit_stage")


@pytest.mark.benchmark
@pytest.mark.timeout(600)
async def test_redshift_sink(
    capsys: object, ministack: str, postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bare loop joins its lines, compresses them as Python does, puts the object, copies it and adds its rows."""
    name = f"b-{uuid.uuid4().hex[:12]}"
    monkeypatch.setenv("PGUSER", USER)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    trusted, rows = ssl.create_default_context(cafile=str(postgres_server.ca)), outgoing()
    async with open_client("s3", AwsOptions(), "benchmark") as s3:
        await s3.create_bucket(Bucket=name)
        real = redshift_wire.connect

        async def connect(address: Any) -> AsRedshift:
            return WithoutCopy(await real(address), s3)

        monkeypatch.setattr(redshift_wire, "connect", connect)
        connection = await asyncpg.connect(
            host="localhost", port=postgres_server.port, database="postgres", user=USER, password=PASSWORD, ssl=trusted
        )
        columns = "id VARCHAR(40), count BIGINT, total FLOAT8, country VARCHAR(2), until BIGINT"
        await connection.execute(f'CREATE SCHEMA "{name}"; CREATE TABLE "{name}".out ({columns})')

        async def bare() -> None:
            body = await asyncio.to_thread(gzip.compress, b"\n".join([*VALUES, b""]), 6)
            await s3.put_object(Bucket=name, Key="bare", Body=body)
            async with connection.transaction():
                await connection.execute(f'CREATE TEMPORARY TABLE new AS SELECT * FROM "{name}".out WHERE 1 = 0')
                await connection.execute(f'INSERT INTO "{name}".out SELECT * FROM new')
                await connection.execute("DROP TABLE new")
            await s3.delete_object(Bucket=name, Key="bare")

        role = "arn:aws:iam::123456789012:role/copy"
        url = f"redshift://localhost:{postgres_server.port}/postgres/{name}.out?stage=s3://{name}/x&role={role}"
        async with destination(f"{url}&tls_ca={postgres_server.ca}", list(Card.__struct_fields__)) as to:

            async def send() -> None:
                sink, store = to.sink(SinkTask("bench", "group", 0, 1, SystemClock())), MemoryStore()
                assert isinstance(sink, RedshiftSink)
                sink.attach(store, "sink out")
                await sink.open(None)
                handoff = sink.stage(rows, final=True)
                puts = {(c.table, c.end): dict(zip(c.keys, c.values, strict=True)) for c in sink.changes()}
                await store.commit(puts, sink.drops())
                await sink.deliver(handoff)

            ratio = await in_turn(capsys, "redshift sink", RECORDS, send, bare)
        await connection.close()
    assert ratio > 0.7


@pytest.mark.benchmark
@pytest.mark.timeout(600)
@pytest.mark.parametrize("packed", ["yes", "no"])
async def test_opensearch_sink(capsys: object, packed: str) -> None:
    """The bare loop makes its lines as clients do, without versions, and looks at no document's answer.

    Of the clock both are bound by the server; of the CPU there is little in either, ten microseconds a record in ours.
    """
    name = f"i-{uuid.uuid4().hex[:8]}"
    batches = cut(list(enumerate(VALUES)), 1000)
    with servers.osmem() as url:
        async with aiohttp.ClientSession() as session:

            async def bulk(batch: Sequence[tuple[int, bytes]]) -> None:
                lines = []
                for n, value in batch:
                    lines += [msgspec.json.encode({"index": {"_index": name, "_id": f"card-{n}"}}), value]
                body = b"\n".join([*lines, b""])
                headers = {"Content-Type": "application/x-ndjson"}
                if packed == "yes":
                    body = igzip.compress(body, 1)
                    headers["Content-Encoding"] = "gzip"
                path = "/_bulk?filter_path=errors"
                async with session.post(url + path, data=body, headers=headers) as answer:
                    assert not (await answer.json())["errors"]

            place = url.removeprefix("http://")
            async with sending(f"opensearch://{place}/{name}?tls=no&auth=none&gzip={packed}", outgoing()) as send:
                ratio = await in_turn(
                    capsys, f"opensearch sink, gzip={packed}", RECORDS, send, lambda: bare_calls(batches, bulk, 4)
                )
    assert ratio > 0.1


@pytest.mark.benchmark
@pytest.mark.timeout(600)
@pytest.mark.parametrize("service", ["sqs", "sns", "events"])
async def test_messages_sink(capsys: object, ministack: str, service: str) -> None:
    """The bare loop sends the same attributes."""
    name, count = f"m-{uuid.uuid4().hex[:8]}", RECORDS // 5
    attributes = {
        name: {"DataType": "String", "StringValue": value}
        for name, value in (("flowkit_id", "0123456789abcdef-1a2b3c4d5e6f70"), ("flowkit_key", "card-1234"))
    }
    texts = [value.decode() for value in VALUES[:count]]
    async with open_client(service, AwsOptions(), "x") as client:

        async def bare() -> None:
            if service == "sqs":
                rows = [{"MessageBody": text, "MessageAttributes": attributes} for text in texts]
                batches = [[{"Id": str(n), **row} for n, row in enumerate(batch)] for batch in cut(rows, 10)]
                await bare_calls(batches, lambda b: client.send_message_batch(QueueUrl=place, Entries=b), 16)
            elif service == "sns":
                rows = [{"Message": text, "MessageAttributes": attributes} for text in texts]
                batches = [[{"Id": str(n), **row} for n, row in enumerate(batch)] for batch in cut(rows, 10)]
                await bare_calls(
                    batches, lambda b: client.publish_batch(TopicArn=place, PublishBatchRequestEntries=b), 16
                )
            else:
                more = {"Source": "flowkit", "DetailType": "record", "EventBusName": name, "Time": 1_704_067_799.999}
                events = cut([{"Detail": text, **more} for text in texts], 10)
                await bare_calls(events, lambda b: client.put_events(Entries=b), 16)

        if service == "sqs":
            place = (await client.create_queue(QueueName=name))["QueueUrl"]
            url = f"sqs://{name}"
        elif service == "sns":
            place = (await client.create_topic(Name=name))["TopicArn"]
            url = f"sns://{place}"
        else:
            await client.create_event_bus(Name=name)
            url = f"events://{name}"
        async with sending(url, outgoing()[:count]) as send:
            ratio = await in_turn(capsys, f"{service} sink", count, send, bare)
    assert ratio > 0.8
