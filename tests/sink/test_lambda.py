"""Lambda's batches and what becomes of what a function fails on, without a server."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from flowkit import ConfigError
from flowkit.clock import SystemClock
from flowkit.errors import SinkError
from flowkit.sink import Rejected, SinkTask, destination
from flowkit.sink.dispatch import Item
from flowkit.sink.lambda_batches import OnError, batch_id, entry_of, lane_of, packed, payload
from flowkit.sink.lambda_function import LambdaDestination
from flowkit.sink.records import Row
from flowkit.worker.outlets import Outgoing


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr("flowkit.aws.patience.FIRST_WAIT", 0.0)
        yield


def row(n: int, key: bytes | None = b"k", value: bytes | None = b'{"a":1}') -> Row:
    return Row(key, value, 5, None, n, "me")


def items(rows: Sequence[Row], lanes: int, batch: int) -> list[Item]:
    found = []
    for index, one in enumerate(rows):
        lane = lane_of(one.key, index, lanes, batch) if lanes else None
        entry = entry_of(index, one, lane)
        found.append(Item(index, lane, len(entry.body), entry))
    return found


def test_the_payload_is_what_the_head_says() -> None:
    rows = [row(1), row(2, None, None), row(3, b"\xff", b"7")]
    entries = [entry_of(n, one, None) for n, one in enumerate(rows)]
    assert json.loads(payload(entries)) == {
        "id": batch_id(entries),
        "records": [
            {"id": "me-1", "key": "k", "time": 5, "value": {"a": 1}},
            {"id": "me-2", "key": None, "time": 5, "value": None},
            {"id": "me-3", "key": {"base64": "/w=="}, "time": 5, "value": 7},
        ],
    }
    assert batch_id(entries) != batch_id(entries[:2]) != batch_id([entries[0], entries[1]._replace(named=1)])


@given(
    st.lists(st.tuples(st.sampled_from([None, b"a", b"b", b"c", b"d"]), st.integers(0, 300)), max_size=60),
    st.integers(0, 4),
    st.integers(1, 9),
)
def test_batches_hold_all_in_order_within_what_a_payload_may_have(
    shapes: list[tuple[bytes | None, int]], lanes: int, batch: int
) -> None:
    rows = [row(n, key, b'"%b"' % (b"x" * size)) for n, (key, size) in enumerate(shapes)]
    found = packed(items(rows, lanes, batch), batch, 1000, OnError())
    parts = [item.body.part for item in found]
    assert sorted(entry.row for part in parts for entry in part) == list(range(len(rows)))
    for item, part in zip(found, parts, strict=True):
        assert 1 <= len(part) <= batch
        assert len(payload(part)) <= max(1000, item.size) == max(1000, len(payload(part)) + 1)
        assert [entry.row for entry in part] == sorted(entry.row for entry in part)
        assert {entry.lane for entry in part} == {item.key}
    of_key: dict[bytes | None, list[int]] = {}
    for part in parts:
        for entry in part:
            of_key.setdefault(rows[entry.row].key, []).append(entry.row)
    if lanes:
        assert all(numbers == sorted(numbers) for key, numbers in of_key.items() if key is not None)
    assert [payload(part) for part in parts] == [
        payload(item.body.part) for item in packed(items(rows, lanes, batch), batch, 1000, OnError())
    ]


class Body:
    def __init__(self, body: bytes) -> None:
        self.body = body

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        return self.body


class Client:
    """Answers as Lambda's client does what `function` makes of a payload; raises what it raises as a ClientError."""

    def __init__(self, function: Callable[[list[int]], Any]) -> None:
        self.function = function
        self.asked: list[list[int]] = []
        self.ids: list[str] = []

    async def invoke(self, **asked: Any) -> Mapping[str, Any]:
        got = json.loads(asked["Payload"])
        numbers = [record["value"] for record in got["records"]]
        self.asked.append(numbers)
        self.ids.append(got["id"])
        try:
            answer = self.function(numbers)
        except ValueError as error:
            raised = {"errorType": "ValueError", "errorMessage": str(error)}
            return {"FunctionError": "Unhandled", "Payload": Body(json.dumps(raised).encode())}
        if isinstance(answer, set):
            names = [record["id"] for record in got["records"] if record["value"] in answer]
            answer = {"batchItemFailures": [{"itemIdentifier": name} for name in names]}
        return {"Payload": Body(json.dumps(answer).encode())}


def service_error(code: str, status: int) -> ClientError:
    said: Any = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(said, "Invoke")


async def deliver(client: Client, count: int, options: str = "") -> Sequence[Rejected]:
    to = destination(f"lambda://f?batch=8&calls=1{options}", None)
    assert isinstance(to, LambdaDestination)
    to.check()
    to._client = client
    sink = to.sink(SinkTask("app", "group", 0, 1, SystemClock()))
    await sink.open(None)
    return await sink.deliver(sink.stage([Outgoing(b"k", b"%d" % n, 0) for n in range(count)], final=False))


def poisoned(*poison: int) -> Callable[[list[int]], Any]:
    def function(numbers: list[int]) -> None:
        if set(numbers) & set(poison):
            raise ValueError("poison")

    return function


async def test_what_the_function_raises_on_is_found_and_dead_after_as_many_attempts_alone() -> None:
    client = Client(poisoned(5))
    dead = await deliver(client, 12, "&attempts=2")
    assert [(letter.value, letter.error, letter.reason) for letter in dead] == [(b"5", "ValueError", "poison")]
    whole, rest = list(range(8)), [8, 9, 10, 11]
    assert client.asked == [whole, whole, [0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [4], [5], [5], [6, 7], rest]
    assert client.ids[0] == client.ids[1]


async def test_on_error_dead_gives_the_batch_up_and_retry_never_does() -> None:
    client = Client(poisoned(1))
    dead = await deliver(client, 12, "&attempts=2&on_error=dead")
    assert [letter.value for letter in dead] == [b"%d" % n for n in range(8)]
    assert client.asked == [list(range(8))] * 2 + [[8, 9, 10, 11]]
    left = 20

    def function(numbers: list[int]) -> None:
        nonlocal left
        left -= 1
        if left:
            raise ValueError("not yet")

    client = Client(function)
    assert await deliver(client, 3, "&attempts=2&on_error=retry") == []
    assert client.asked == [[0, 1, 2]] * 20


async def test_what_the_function_names_is_tried_again_and_the_others_are_not() -> None:
    client = Client(lambda numbers: {2, 5} & set(numbers) if len(client.asked) < 3 else {5})
    dead = await deliver(client, 8, "&attempts=4")
    assert client.asked == [list(range(8)), [2, 5], [2, 5], [5]]
    assert len(set(client.ids)) == 4  # a function that remembers its answers is asked anew
    assert [(letter.value, letter.error) for letter in dead] == [(b"5", "BatchItemFailure")]


@pytest.mark.parametrize(
    ("answer", "well"),
    [
        (None, True),
        ("done", True),
        ({"batchItemFailures": []}, True),
        ({"batchItemFailures": None}, True),
        ({"batchItemFailures": [{"itemIdentifier": ""}]}, False),
        ({"batchItemFailures": [{"itemIdentifier": "another"}]}, False),
        ({"batchItemFailures": [{"id": "me-1"}]}, False),
    ],
)
async def test_answers_mean_what_lambdas_own_event_sources_take_them_for(answer: Any, well: bool) -> None:
    dead = await deliver(Client(lambda _: answer), 3, "&attempts=1")
    assert {letter.error for letter in dead} == (set() if well else {"InvalidBatchResponse"})
    assert len(dead) == (0 if well else 3)


async def test_an_error_of_the_service_is_no_attempt() -> None:
    errors = [
        service_error("TooManyRequestsException", 429),
        service_error("ServiceException", 500),
        service_error("ResourceConflictException", 409),
        service_error("EC2ThrottledException", 502),
        TimeoutError(),
    ]

    def function(numbers: list[int]) -> None:
        if errors:
            raise errors.pop()

    client = Client(function)
    assert await deliver(client, 3, "&attempts=1") == []
    assert client.asked == [[0, 1, 2]] * 6


async def test_a_payload_that_is_too_large_there_is_halved() -> None:
    def function(numbers: list[int]) -> None:
        if len(numbers) > 3 or 7 in numbers:
            raise service_error("RequestTooLargeException", 413)

    client = Client(function)
    assert [(letter.value, letter.error) for letter in await deliver(client, 8)] == [(b"7", "RequestTooLargeException")]
    assert [len(numbers) for numbers in client.asked] == [8, 4, 2, 2, 4, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("code", "status"), [("ResourceNotFoundException", 404), ("InvalidParameterValueException", 400)]
)
async def test_what_a_person_has_to_mend_ends_it(code: str, status: int) -> None:
    def function(numbers: list[int]) -> None:
        raise service_error(code, status)

    with pytest.raises(SinkError, match=f"lambda://f: {code}"):
        await deliver(Client(function), 1)


async def test_a_record_above_the_limit_is_never_sent() -> None:
    to = destination("lambda://f?mode=event", None)
    assert isinstance(to, LambdaDestination)
    fits, over = (to._make(0, row(1, value=b"1" * size)) for size in (990_000, 1_000_000))
    assert isinstance(fits, Item)
    assert over[0] == "RecordTooLarge"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("lambda://", "needs a function's name"),
        ("lambda://f/g", "needs a function's name"),
        ("lambda://f?mode=later", "mode=later: there are sync, event"),
        ("lambda://f?mode=event&attempts=2", "attempts= is for mode=sync"),
        ("lambda://f?mode=event&on_error=dead", "on_error= is for mode=sync"),
        ("lambda://f?on_error=ignore", "there are bisect, dead, retry"),
        ("lambda://f?btach=2", "unknown option 'btach'"),
    ],
)
def test_what_is_wrong_is_told(url: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        destination(url, None).check()
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "lambda://f",
        "lambda://f:live",
        "lambda://f:$LATEST",
        "lambda://arn:aws:lambda:eu-west-1:123456789012:function:f:7?mode=event",
    ],
)
def test_these_name_a_function(url: str) -> None:
    destination(url, None).check()
