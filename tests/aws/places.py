"""Every destination with what it holds in the end, for tests that are the same for all of them.

A `Place` is made anew for each test, on the server that is named beside it in `PLACES`.
"""

import asyncio
import io
import json
import uuid
import zipfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from flowkit.aws import AwsOptions, open_client
from tests.aws.postgres import PASSWORD, USER, Postgres
from tests.aws.proxy import Proxy, Request
from tests.aws.test_cloudwatch_sink import read as log_events
from tests.aws.test_dynamodb_sink import read_all as items_of
from tests.aws.test_dynamodb_sink import table
from tests.aws.test_firehose_sink import read_all as lines_of
from tests.aws.test_firehose_sink import stream as delivery_stream
from tests.aws.test_kinesis_sink import read_all as records_of
from tests.aws.test_kinesis_sink import stream
from tests.aws.test_messages_sink import place as queue
from tests.aws.test_opensearch_sink import ask, documents, index
from tests.aws.test_redshift_sink import Cluster
from tests.aws.test_s3_sink import bucket, objects, rows_of
from tests.jsonl import whole_lines

FUNCTION = """
import json, os

def handler(event, context):
    with open(os.environ["OUT"], "a") as out:  # one write: several of us append to it
        out.write(json.dumps(event) + chr(10))
    return {"batchItemFailures": []}
"""


class Found(NamedTuple):
    """One record as its reader sees it: its stable id ('' if there is none to be seen), its key, and its number."""

    id: str
    key: str
    n: int


@dataclass
class Place:
    """`url` of an endpoint; `read` gives all that is there, in its order, or what `proxy` has seen of it."""

    url: Callable[[str], str]
    read: Callable[[Proxy], Awaitable[list[Found]]]
    once: bool = False
    """No record may be there twice."""
    told: bool = True
    """What is there twice is told by its id."""
    ordered: bool = False
    """The records of each key came first in their order."""
    environ: dict[str, str] = field(default_factory=dict)
    """What a worker needs beside the clients' environment."""

    def check(self, found: Iterable[Found], numbers: Iterable[int]) -> int:
        """That it is what a reader was told to rely on, for these numbers. How many records are there again."""
        found = list(found)
        wanted, times = sorted(numbers), Counter(each.n for each in found)
        missing, foreign = sorted(set(wanted) - set(times)), sorted(set(times) - set(wanted))
        assert (missing[:10], foreign[:10]) == ([], []), f"{len(missing)} lost, {len(foreign)} of nowhere"
        again = len(found) - len(times)
        if self.once:
            assert not again, f"twice: {[n for n, count in times.items() if count > 1][:10]}"
        elif self.told:
            assert len({(each.id, each.n) for each in found}) == len({each.id for each in found}) == len(times)
        if self.ordered:
            by_key: dict[str, dict[int, None]] = defaultdict(dict)
            for each in found:
                by_key[each.key].setdefault(each.n)
            assert all(list(of_key) == sorted(of_key) for of_key in by_key.values())
        return again


Make = Callable[..., AbstractAsyncContextManager[Place]]


def _with(place: str, options: str = "") -> Callable[[str], str]:
    return lambda endpoint: f"{place}?endpoint={endpoint}{options}"


def _json(value: Any, id_field: str = "record_id") -> Found:
    return Found(value.get(id_field, ""), value["id"], value["n"])


@asynccontextmanager
async def kinesis(where: Path, server: str) -> AsyncIterator[Place]:
    async with stream() as (name, client):

        async def read(_: Proxy) -> list[Found]:
            return [_json(json.loads(each["Data"])) for each in await records_of(client, name)]

        yield Place(_with(f"kinesis://{name}", "&id=record_id"), read, ordered=True)


@asynccontextmanager
async def firehose(where: Path, server: str) -> AsyncIterator[Place]:
    async with delivery_stream() as (name, s3):

        async def read(_: Proxy) -> list[Found]:
            return [_json(json.loads(line)) for line in (await lines_of(s3, name)).splitlines()]

        yield Place(_with(f"firehose://{name}", "&id=record_id"), read)


def dynamodb(write: str) -> Make:
    @asynccontextmanager
    async def made(where: Path, server: str) -> AsyncIterator[Place]:
        async with table("id", "n:N") as (name, client):

            async def read(_: Proxy) -> list[Found]:
                return [Found("", each["id"]["S"], int(each["n"]["N"])) for each in await items_of(client, name)]

            yield Place(_with(f"dynamodb://{name}", f"&write={write}"), read, once=True)

    return made


@asynccontextmanager
async def s3(where: Path, server: str) -> AsyncIterator[Place]:
    async with bucket() as (client, name):

        async def read(_: Proxy) -> list[Found]:
            return [_json(row) for row in rows_of(await objects(client, name))]

        yield Place(_with(f"s3://{name}/out/", "&roll_bytes=1000&roll_after=1s"), read, once=True)


@asynccontextmanager
async def opensearch(where: Path, server: str) -> AsyncIterator[Place]:
    name = index()
    numbers = {field: {"type": "long"} for field in ("at", "n")}
    await ask(server, "PUT", f"/{name}", {"mappings": {"properties": numbers}})

    async def read(_: Proxy) -> list[Found]:
        return [_json(each) for each in (await documents(server, name)).values()]

    def url(endpoint: str) -> str:
        return f"opensearch://{endpoint.removeprefix('http://')}/{name}?tls=no&auth=none&id=n"

    yield Place(url, read, once=True)


@asynccontextmanager
async def lambda_function(where: Path, server: str) -> AsyncIterator[Place]:
    """A reader that looks at the ids of batches has each record once."""
    name, out, archive = f"f-{uuid.uuid4().hex[:8]}", where / "seen.jsonl", io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("app.py", FUNCTION)
    out.touch()
    async with open_client("lambda", AwsOptions(), "lambda://x") as client:
        await client.create_function(
            FunctionName=name,
            Runtime="python3.11",
            Handler="app.handler",
            Role="arn:aws:iam::123456789012:role/r",
            Code={"ZipFile": archive.getvalue()},
            Environment={"Variables": {"OUT": str(out)}},
        )

        async def read(_: Proxy) -> list[Found]:
            batches = {batch["id"]: batch for batch in whole_lines(out)}
            records = [record for batch in batches.values() for record in batch["records"]]
            return [Found(each["id"], each["key"], each["value"]["n"]) for each in records]

        yield Place(_with(f"lambda://{name}", "&calls=2"), read, once=True, ordered=True)
        await client.delete_function(FunctionName=name)


def messages(kind: str) -> Make:
    @asynccontextmanager
    async def made(where: Path, server: str) -> AsyncIterator[Place]:
        async with queue(kind) as to:

            async def read(_: Proxy) -> list[Found]:
                got = await to.read()
                if kind == "events":
                    return [_json(json.loads(each["Body"])["detail"]) for each in got]
                ids = [each["MessageAttributes"]["flowkit_id"]["StringValue"] for each in got]
                return [_json({**json.loads(each["Body"]), "record_id": i}) for each, i in zip(got, ids, strict=True)]

            more = "&source=shop&detail_type=reading&id=record_id" if kind == "events" else ""
            fifo = kind == "sqs.fifo"
            yield Place(_with(to.url, more), read, once=fifo, ordered=fifo)

    return made


@asynccontextmanager
async def metrics(where: Path, server: str) -> AsyncIterator[Place]:
    """What the service has said that it took: it can be asked for sums alone."""

    async def read(proxy: Proxy) -> list[Found]:
        taken = [each for each in proxy.requests if each.action == "PutMetricData" and each.status == 200]
        data = [datum for request in taken for datum in request.json["MetricData"]]
        return [Found("", datum["Dimensions"][0]["Value"], round(datum["Value"])) for datum in data]

    space = f"flowkit/{uuid.uuid4().hex[:8]}"
    yield Place(_with(f"cloudwatch://{space}", "&value=n&dimensions=id"), read, told=False)


@asynccontextmanager
async def logs(where: Path, server: str) -> AsyncIterator[Place]:
    group = f"g-{uuid.uuid4().hex[:8]}"
    async with open_client("logs", AwsOptions(), "logs") as client:

        async def read(_: Proxy) -> list[Found]:
            events = await log_events(client, group, "main")
            return [_json(json.loads(event["message"])) for event in events]

        yield Place(_with(f"logs://{group}/main", "&create=yes"), read, told=False)


@asynccontextmanager
async def redshift(where: Path, server: str, postgres: Postgres) -> AsyncIterator[Place]:
    """A worker has to take tests.aws.redshift's stand-in."""
    async with open_client("s3", AwsOptions(), "s3") as client:
        name = f"t{uuid.uuid4().hex[:8]}"
        await client.create_bucket(Bucket=name)
        cluster = Cluster(postgres, None, client, name)
        cluster.admin = (await cluster.connect()).connection
        await cluster.admin.execute(f'CREATE SCHEMA "{name}"')
        await cluster.again()

        async def read(_: Proxy) -> list[Found]:
            return [Found("", key, n) for key, n in await cluster.rows("id, n")]

        def url(endpoint: str) -> str:
            return cluster.url(f"&roll_bytes=1000&region=us-east-1&endpoint={endpoint}")

        yield Place(url, read, once=True, environ={"PGUSER": USER, "PGPASSWORD": PASSWORD})
        await cluster.admin.close()


@asynccontextmanager
async def file(where: Path, server: str) -> AsyncIterator[Place]:
    path = where / "out.jsonl"

    async def read(_: Proxy) -> list[Found]:
        lines = await asyncio.to_thread(lambda: path.read_bytes().splitlines())
        return [_json(json.loads(line)) for line in lines]

    yield Place(lambda _: str(path), read, once=True, ordered=True)


PLACES: dict[str, tuple[tuple[str, ...], Make]] = {
    "dynamodb": (("ministack_url",), dynamodb("conditional")),
    "dynamodb-batch": (("ministack_url",), dynamodb("batch")),
    "events": (("ministack_url",), messages("events")),
    "file": (("moto_url",), file),
    "firehose": (("moto_url",), firehose),
    "kinesis": (("ministack_url",), kinesis),
    "lambda": (("ministack_url",), lambda_function),
    "logs": (("moto_url",), logs),
    "metrics": (("moto_url",), metrics),
    "opensearch": (("osmem",), opensearch),
    "redshift": (("moto_url", "postgres_server"), redshift),
    "s3": (("moto_url",), s3),
    "sns": (("ministack_url",), messages("sns")),
    "sqs": (("ministack_url",), messages("sqs")),
    "sqs.fifo": (("ministack_url",), messages("sqs.fifo")),
}
"""By name: the fixtures of its servers, that of AWS first, and what makes one of a directory and these."""


def writes(request: Request) -> bool:
    """True if it is to change something."""
    return not request.action.startswith(("Describe", "Get", "GET", "List", "HEAD"))
