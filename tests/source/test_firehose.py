"""The endpoint for Amazon Data Firehose: requests as its documentation shows them, made by hand."""

import asyncio
import base64
import gzip
import io
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from flowkit.clock import SystemClock
from flowkit.errors import BrokerError, ConfigError
from flowkit.source import Endpoint, Target, open_broker, open_feed, serve_firehose
from flowkit.source.embedded import EmbeddedBroker
from flowkit.source.firehose_request import MOST_BYTES

ID = "ed4acda5-034f-9f42-bba1-f29aea6d7d8f"
HEADERS = {
    "Content-Type": "application/json",
    "X-Amz-Firehose-Protocol-Version": "1.0",
    "X-Amz-Firehose-Request-Id": ID,
    "X-Amz-Firehose-Source-Arn": "arn:aws:firehose:us-east-1:123456789012:deliverystream/testStream",
    "X-Amz-Firehose-Access-Key": "open sesame",
    "X-Amz-Firehose-Common-Attributes": '{"commonAttributes":{"deployment-context":"pre-prod","device-types":""}}',
}
AT = 1578090901599


def body(*values: bytes, id_: str = ID) -> bytes:
    records = [{"data": base64.b64encode(value).decode()} for value in values]
    return json.dumps({"requestId": id_, "timestamp": AT, "records": records}).encode()


class Topic:
    """A feed that keeps what is put; `open` is set while it takes anything, `wrong` is what it says otherwise."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes | None, bytes | None, int]] = []
        self.calls = 0
        self.open = asyncio.Event()
        self.open.set()
        self.wrong: list[Exception] = []

    async def partitions(self, topic: str) -> int:
        return 1

    async def put(self, topic: str, records: Sequence[tuple[bytes | None, bytes | None, int]]) -> None:
        self.calls += 1
        await self.open.wait()
        if self.wrong:
            raise self.wrong.pop()
        self.records += records


class Client:
    """Posts to an endpoint; each answer as (status, body), with the body's timestamp checked and taken out."""

    def __init__(self, session: aiohttp.ClientSession, url: str, endpoint: Endpoint) -> None:
        self.session, self.url, self.endpoint = session, url, endpoint

    async def ask(
        self, data: bytes = b"", method: str = "POST", headers: dict[str, str | None] | None = None
    ) -> tuple[int, dict[str, Any]]:
        said = {name: value for name, value in {**HEADERS, **(headers or {})}.items() if value is not None}
        async with self.session.request(method, self.url, data=io.BytesIO(data), headers=said) as answer:
            assert answer.headers["Content-Type"].partition(";")[0] == "application/json"
            told = json.loads(await answer.read()) if method != "HEAD" else {"timestamp": AT + 1}
            assert isinstance(told["timestamp"], int)
            assert told.pop("timestamp") > AT
            return answer.status, told


@asynccontextmanager
async def served(feed: Any, target: Target = Target("t"), secrets: Sequence[str] = ()) -> AsyncIterator[Client]:
    endpoint = Endpoint(feed, target, SystemClock(), secrets)
    async with (
        serve_firehose(endpoint, "127.0.0.1", 0) as port,
        aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as session,
    ):
        yield Client(session, f"http://127.0.0.1:{port}/any/path?at=all", endpoint)


async def test_a_request_is_taken_and_answered_to_the_letter() -> None:
    topic = Topic()
    async with served(topic) as client:
        assert await client.ask(body(b"one", b"", b"\xff\x00")) == (200, {"requestId": ID})
        assert topic.records == [(None, b"one", AT), (None, b"", AT), (None, b"\xff\x00", AT)]
        async with client.session.post(client.url, data=body(b"x"), headers=HEADERS) as answer:
            assert answer.headers["Content-Type"] == "application/json"
            assert list(json.loads(await answer.read())) == ["requestId", "timestamp"]


async def test_a_body_may_be_gzip() -> None:
    topic = Topic()
    async with served(topic) as client:
        packed = gzip.compress(body(b"one"))
        assert await client.ask(packed, headers={"Content-Encoding": "gzip"}) == (200, {"requestId": ID})
    assert topic.records == [(None, b"one", AT)]


DEEP = b"[" * 20_000 + b"]" * 20_000

WRONG: list[tuple[dict[str, Any], int, str]] = [
    ({"method": "GET"}, 405, "GET: only POST is possible here"),
    ({"method": "PUT", "data": body(b"x")}, 405, "PUT: only POST is possible here"),
    ({"data": b"{}"}, 400, "the body is not as it should be: Object missing required field `requestId`"),
    ({"data": b"{"}, 400, "the body is not as it should be: Input data was truncated"),
    ({"data": b'{"requestId":"x","timestamp":1,"records":[{"data":"?"}]}'}, 400, "Invalid base64"),
    ({"data": body(b"x").replace(b"1578090901599", b"-1")}, 400, "Expected `int` >= 0"),
    ({"data": body(b"x").replace(b"1578090901599", b"9" * 17)}, 400, "Expected `int` <="),
    (
        {"data": body(b"x")[:-1] + b',"x":' + DEEP + b"}"},
        400,
        "the body is not as it should be: maximum recursion depth",
    ),
    ({"data": body(b"x", id_="other")}, 400, "requestId 'other' in the body, and"),
    (
        {"data": body(b"x"), "headers": {"X-Amz-Firehose-Request-Id": None}},
        400,
        "there is no X-Amz-Firehose-Request-Id",
    ),
    ({"data": body(b"x"), "headers": {"X-Amz-Firehose-Protocol-Version": "2.0"}}, 400, "this endpoint speaks 1.0"),
    ({"data": body(b"x"), "headers": {"Content-Type": "text/plain"}}, 400, "application/json was expected"),
    ({"data": body(b"x"), "headers": {"Content-Type": None}}, 400, "application/json was expected"),
    ({"data": body(b"x"), "headers": {"Content-Encoding": "br"}}, 400, "gzip or none was expected"),
    ({"data": body(b"x"), "headers": {"Content-Encoding": "gzip"}}, 400, "the body is no gzip"),
    (
        {"data": gzip.compress(body(b"x"))[:-9], "headers": {"Content-Encoding": "gzip"}},
        400,
        "the body is no whole gzip",
    ),
    (
        {"data": body(b"x"), "headers": {"X-Amz-Firehose-Common-Attributes": "{"}},
        400,
        "X-Amz-Firehose-Common-Attributes: Input data was truncated",
    ),
]


@pytest.mark.parametrize(("asked", "status", "told"), WRONG, ids=[each[2][:40] for each in WRONG])
async def test_what_is_wrong_is_told_in_the_form_that_firehose_logs(
    asked: dict[str, Any], status: int, told: str
) -> None:
    topic = Topic()
    async with served(topic) as client:
        found, answer = await client.ask(**asked)
        assert found == status
        assert told in answer.pop("errorMessage")
        headers = asked.get("headers", {})
        assert answer == {"requestId": "" if headers.get("X-Amz-Firehose-Request-Id", "") is None else ID}
        assert (await client.ask(body(b"well"), headers={"X-Amz-Firehose-Request-Id": ID}))[0] == 200
    assert topic.records == [(None, b"well", AT)]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
async def test_a_body_that_is_too_large_is_refused_for_good(packed: bool) -> None:
    topic = Topic()
    large = b'{"requestId":"' + b"x" * MOST_BYTES + b'"}'
    data = gzip.compress(large, 1) if packed else large
    async with served(topic) as client:
        status, answer = await client.ask(data, headers={"Content-Encoding": "gzip" if packed else None})
        assert status == 413
        assert answer["errorMessage"].startswith(f"the body has more than {MOST_BYTES} bytes")
    assert topic.records == []


async def test_only_who_has_an_access_key_is_listened_to() -> None:
    topic = Topic()
    async with served(topic, secrets=["another", "open sesame"]) as client:
        assert (await client.ask(body(b"x")))[0] == 200
        for key, told in (("open sesam", "is another one"), ("", "is missing"), (None, "is missing"), ("é", "another")):
            status, answer = await client.ask(body(b"x"), headers={"X-Amz-Firehose-Access-Key": key})
            assert (status, answer["requestId"]) == (401, ID)
            assert told in answer["errorMessage"]
            assert "sesame" not in str(answer)
    assert len(topic.records) == 1


async def test_an_answer_waits_until_the_records_are_in_the_topic() -> None:
    topic = Topic()
    topic.open.clear()
    async with served(topic) as client:
        asking = asyncio.create_task(client.ask(body(b"one")))
        while not topic.calls:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert not asking.done()
        topic.open.set()
        assert (await asking)[0] == 200


async def test_what_cannot_be_put_now_is_refused_and_taken_when_it_comes_again() -> None:
    topic = Topic()
    topic.wrong = [RuntimeError("a secret"), BrokerError("kafka://x does not answer")]
    async with served(topic) as client:
        status, answer = await client.ask(body(b"one"))
        assert (status, answer) == (
            503,
            {"requestId": ID, "errorMessage": "cannot be put into topic 't' now: kafka://x does not answer"},
        )
        status, answer = await client.ask(body(b"one"))
        assert status == 500
        assert "secret" not in answer["errorMessage"]
        assert (await client.ask(body(b"one")))[0] == 200
    assert topic.records == [(None, b"one", AT)]


async def test_a_request_that_comes_again_is_put_once() -> None:
    topic = Topic()
    topic.open.clear()
    async with served(topic) as client:
        first = asyncio.create_task(client.ask(body(b"one")))
        while not topic.calls:  # noqa: ASYNC110
            await asyncio.sleep(0)
        first.cancel()  # Firehose has given up waiting
        again = asyncio.create_task(client.ask(body(b"one")))
        while not client.endpoint.repeated:  # noqa: ASYNC110
            await asyncio.sleep(0)
        topic.open.set()
        assert (await again)[0] == 200
        assert (await client.ask(body(b"one")))[0] == 200
        assert (await client.ask(body(b"one", id_="b"), headers={"X-Amz-Firehose-Request-Id": "b"}))[0] == 200
    assert topic.records == [(None, b"one", AT)] * 2


async def test_records_have_the_key_and_the_attributes_that_are_asked_for() -> None:
    topic = Topic()
    async with served(topic, Target("t", "card", "from")) as client:
        odd = [b"[1]", b"\xff", b'{"n":%s}' % DEEP]  # what of them is not taken apart must not hold up the others
        never = [b'{"card":1e999}', b'{"card":%s}' % DEEP]
        values = [b'{"card": "c1", "n": 1}', b'{"card": 7}', b'{"n": 2}', *odd, *never]
        assert (await client.ask(body(*values)))[0] == 200
        assert (
            await client.ask(
                body(b'{"card":"c2"}', id_="b"),
                headers={"X-Amz-Firehose-Request-Id": "b", "X-Amz-Firehose-Common-Attributes": None},
            )
        )[0] == 200
    assert [key for key, _, _ in topic.records] == [b"c1", b"7", *[None] * 6, b"c2"]
    common = {"deployment-context": "pre-prod", "device-types": ""}
    assert [json.loads(value or b"") for _, value, _ in topic.records[:3]] == [
        {"card": "c1", "n": 1, "from": common},
        {"card": 7, "from": common},
        {"n": 2, "from": common},
    ]
    assert [value for _, value, _ in topic.records[3:6]] == odd
    assert json.loads(topic.records[6][1] or b"")["from"] == common
    assert [value for _, value, _ in topic.records[7:]] == [never[1], b'{"card":"c2"}']


async def test_a_topic_of_a_broker_is_fed(tmp_path: Path) -> None:
    url = f"embedded://{tmp_path}"
    async with open_broker(url, SystemClock()) as broker:
        await broker.create("t", 2)
    async with open_feed(url, SystemClock()) as feed:
        assert await feed.partitions("t") == 2
        async with served(feed, Target("t", "k")) as client:
            assert (await client.ask(body(*(b'{"k":%d}' % n for n in range(100)))))[0] == 200
            status, answer = await client.ask(body(b"x"), method="POST")
            assert (status, answer) == (200, {"requestId": ID})  # again: it was taken before
    async with open_broker(url, SystemClock()) as broker:
        assert isinstance(broker, EmbeddedBroker)
        assert sum([(await broker.bounds("t", number))[1] for number in range(2)]) == 100


@pytest.mark.parametrize(
    ("url", "problem"), [("memory://x", "lives in one process only"), ("embedded://none-such", "no broker at")]
)
async def test_what_cannot_be_fed_is_told(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        async with open_feed(url, SystemClock()):
            pass
