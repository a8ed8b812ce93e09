"""OpenSearch's documents, versions and answers, without a server."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from flowkit import ConfigError
from flowkit.clock import SystemClock
from flowkit.errors import SinkError
from flowkit.sink import Rejected, SinkTask, destination
from flowkit.sink.dispatch import Item, Never, TryAgain
from flowkit.sink.opensearch import OpenSearchDestination
from flowkit.sink.opensearch_auth import SigV4
from flowkit.sink.opensearch_documents import settled
from flowkit.sink.records import Row
from flowkit.worker.outlets import Outgoing

HOST = "opensearch://search.example"


def opened(url: str, fields: Sequence[str] | None = None) -> OpenSearchDestination:
    found = destination(url, fields)
    assert isinstance(found, OpenSearchDestination)
    found.check()
    return found


def lines(item: Item | Never) -> list[Any]:
    assert isinstance(item, Item), item
    return [json.loads(line) for line in item.body.body.splitlines()]


NEW_YEAR = 1_704_067_199_999  # 2023-12-31T23:59:59.999Z


@pytest.mark.parametrize(
    ("url", "row", "action"),
    [
        ("/x", Row(b"k", b"{}", NEW_YEAR, None, 7, "me"),
         {"index": {"_index": "x", "_id": "k", "version": 7, "version_type": "external"}}),
        ("/x", Row(None, b"{}", NEW_YEAR, None, 7, "me"),
         {"index": {"_index": "x", "_id": "me-7", "version": 7, "version_type": "external"}}),
        ("/x?id=n", Row(b"k", b'{"n":5}', NEW_YEAR, None, 7, "me"),
         {"index": {"_index": "x", "_id": "5", "version": 7, "version_type": "external"}}),
        ("/x", Row(b"k", b"{}", NEW_YEAR, 40, 7, "me"),
         {"index": {"_index": "x", "_id": "k", "version": 40, "version_type": "external_gte"}}),
        ("/x?version=number", Row(b"k", b"{}", NEW_YEAR, 40, 7, "me"),
         {"index": {"_index": "x", "_id": "k", "version": 7, "version_type": "external"}}),
        ("/x?version=none", Row(b"k", b"{}", NEW_YEAR, 40, 7, "me"), {"index": {"_index": "x", "_id": "k"}}),
        ("/x-{yyyy}.{MM}.{dd}-{HH}", Row(b"k", b"{}", NEW_YEAR, None, 7, "me"),
         {"index": {"_index": "x-2023.12.31-23", "_id": "k", "version": 7, "version_type": "external"}}),
    ],
)  # fmt: skip
def test_a_record_is_a_document_with_a_version(url: str, row: Row, action: Any) -> None:
    assert lines(opened(HOST + url).documents.make(0, row)) == [action, json.loads(row.value or b"")]


@pytest.mark.parametrize("value", [None, b"null"])
def test_a_tombstone_removes_the_document_of_its_key(value: bytes | None) -> None:
    found = opened(f"{HOST}/x?id=n").documents.make(0, Row(b"k", value, 0, None, 7, "me"))
    assert lines(found) == [{"delete": {"_index": "x", "_id": "k", "version": 7, "version_type": "external"}}]


@pytest.mark.parametrize(
    ("url", "key", "value", "error"),
    [
        ("/x", b"\xff", b"{}", "KeyNoText"),
        ("/x", b"", b"{}", "NoKey"),
        ("/x", None, None, "NoKey"),
        ("/x", b"k" * 513, b"{}", "IdTooLong"),
        ("/x?id=n", b"k", b'{"m":1}', "NoId"),
        ("/x?id=n", b"k", b'{"n":1.5}', "NoId"),
        ("/x?id=n", b"k", b"{", "NoJson"),
    ],
)
def test_what_can_be_no_document_is_never_sent(url: str, key: bytes | None, value: bytes | None, error: str) -> None:
    found = opened(HOST + url).documents.make(0, Row(key, value, 0, None, 7, "me"))
    assert isinstance(found, Never)
    assert found.error == error


def test_of_one_commit_the_newest_of_a_document_is_sent() -> None:
    make = opened(f"{HOST}/x").documents.make
    rows = [(b"a", 8, 1), (b"b", 8, 2), (b"a", 12, 3), (b"a", 8, 4), (b"b", 8, 5)]
    items = [make(n, Row(key, b"{}", 0, order, number, "")) for n, (key, order, number) in enumerate(rows)]
    assert [item.row for item in settled([item for item in items if isinstance(item, Item)])] == [2, 4]


class Server:
    """Answers bulk requests by a script: what becomes of each document by its id, or (status, body) of all."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.asked: list[list[str]] = []

    async def request(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        actions = [json.loads(line) for line in body.splitlines()[::2]]
        ids = [entry["_id"] for action in actions for entry in action.values()]
        self.asked.append(ids)
        plan = self.script.pop(0) if self.script else {}
        if isinstance(plan, Exception):
            raise plan
        if isinstance(plan, tuple):
            return plan
        items = [{"index": plan.get(name, {"status": 201})} for name in ids]
        errors = any("error" in item["index"] for item in items)
        return 200, json.dumps({"errors": errors, "items": items}).encode()


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr("flowkit.aws.patience.FIRST_WAIT", 0.0)
        yield


async def deliver(server: Server, ids: str) -> Sequence[Rejected]:
    to = opened(f"{HOST}/x?calls=1")
    to.http = server  # type: ignore[assignment]
    sink = to.sink(SinkTask("app", "group", 0, 1, SystemClock()))
    await sink.open(None)
    return await sink.deliver(sink.stage([Outgoing(name.encode(), b'"v"', 0) for name in ids], final=False))


def failed(status: int, kind: str) -> Mapping[str, Any]:
    return {"status": status, "error": {"type": kind, "reason": "so it is", "caused_by": {"reason": "deep down"}}}


async def test_of_a_batch_each_document_has_its_own_fate(no_waits: None) -> None:
    server = Server(
        {
            "a": failed(429, "es_rejected_execution_exception"),
            "b": failed(400, "mapper_parsing_exception"),
            "c": failed(409, "version_conflict_engine_exception"),
            "d": failed(503, "unavailable_shards_exception"),
            "e": failed(403, "cluster_block_exception"),
        }
    )
    dead = await deliver(server, "abcdef")
    assert [(letter.key, letter.error, letter.reason) for letter in dead] == [
        (b"b", "mapper_parsing_exception", "so it is: deep down")
    ]
    assert server.asked == [list("abcdef"), ["a", "d", "e"]]


async def test_what_passes_is_tried_again_as_a_whole(no_waits: None) -> None:
    server = Server(
        (429, b"busy"), (502, b""), (504, b"{}"), (200, b'{"errors":fal'), (200, b'{"errors":true,"items":[]}')
    )
    assert await deliver(server, "ab") == []
    assert server.asked == [["a", "b"]] * 6


async def test_a_request_that_is_too_large_is_halved(no_waits: None) -> None:
    server = Server((413, b"too large"), (413, b"too large"))
    dead = await deliver(server, "abc")
    assert [(letter.key, letter.error) for letter in dead] == [(b"a", "RequestTooLarge")]
    assert server.asked == [["a", "b", "c"], ["a"], ["b", "c"]]


@pytest.mark.parametrize(
    "plan",
    [
        (403, b'{"message":"User: x is not authorized to perform: es:ESHttpPost"}'),
        (401, b"Unauthorized"),
        (404, b"{}"),
        {"a": failed(404, "index_not_found_exception")},
        {"a": failed(403, "security_exception")},
    ],
)
async def test_what_a_person_has_to_mend_ends_it(plan: Any, no_waits: None) -> None:
    with pytest.raises(SinkError, match=f"{HOST}/x: "):
        await deliver(Server(plan), "a")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("opensearch://search.example", "write opensearch://HOST/INDEX"),
        ("opensearch://search.example/x/y", "write opensearch://HOST/INDEX"),
        (f"{HOST}/Orders", "needs an index's name"),
        (f"{HOST}/orders-{{year}}", "needs an index's name"),
        (f"{HOST}/x?auth=kerberos", "there are sigv4, basic, none"),
        (f"{HOST}/x?auth=basic", "set OPENSEARCH_USER and OPENSEARCH_PASSWORD"),
        (f"{HOST}/x?auth=basic&credentials=/nowhere", "credentials=/nowhere: cannot be read"),
        (f"{HOST}/x?ca=/nowhere", "ca=/nowhere: is no file of certificates"),
        (f"{HOST}/x?id=other", "id=other: records have no such field"),
        (f"{HOST}/x?endpoint=http://y", "endpoint=: is not for this service"),
        (f"{HOST}/x?pasword=1", "unknown option 'pasword'"),
        ("opensearch://me:geheim@search.example/x", "credentials do not belong into a URL"),
    ],
)
def test_what_is_wrong_is_told(url: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENSEARCH_USER", raising=False)
    with pytest.raises(ConfigError) as caught:
        opened(url, ("n",))
    assert told in str(caught.value)
    assert "geheim" not in str(caught.value)


async def test_a_password_may_be_changed_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    path.write_text("me:old\n")
    auth = opened(f"{HOST}/x?auth=basic&credentials={path}").http.auth
    await auth.open()
    assert (await auth.sign("POST", "", {}, b""))["Authorization"] == "Basic bWU6b2xk"
    assert not auth.refused("Unauthorized")
    path.write_text("me:new\n")
    assert auth.refused("Unauthorized")
    assert (await auth.sign("POST", "", {}, b""))["Authorization"] == "Basic bWU6bmV3"


EXPIRED = '{"message":"The security token included in the request is expired"}'


async def test_credentials_that_have_expired_are_asked_for_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    auth = opened(f"{HOST}/x?region=eu-west-1&profile=mine").http.auth

    async def key() -> str:
        signed = await auth.sign("POST", "https://search.example/_bulk", {}, b"x")
        return signed["Authorization"].partition("Credential=")[2].partition("/")[0]

    path.write_text("[mine]\naws_access_key_id = OLD\naws_secret_access_key = s\n")
    await auth.open()
    path.write_text("[mine]\naws_access_key_id = NEW\naws_secret_access_key = s\n")
    assert await key() == "OLD"
    assert not auth.refused('{"message":"User: x is not authorized to perform: es:ESHttpPost"}')
    assert await key() == "OLD"
    assert auth.refused(EXPIRED)
    assert await key() == "NEW"
    path.write_text("[mine]\n")  # for a while there are none
    assert auth.refused(EXPIRED)
    with pytest.raises(TryAgain, match="no credentials now"):
        await key()
    path.write_text("[mine]\naws_access_key_id = THIRD\naws_secret_access_key = s\n")
    assert await key() == "THIRD"


@pytest.mark.parametrize(
    ("url", "told"), [(f"{HOST}/x?region=r&profile=nobody", "nobody"), (f"{HOST}/x?profile=mine", "no region")]
)
async def test_what_is_wrong_with_credentials_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, told: str
) -> None:
    path = tmp_path / "credentials"
    path.write_text("[mine]\naws_access_key_id = OLD\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=told):
        async with opened(url):
            pass


@pytest.mark.parametrize(
    ("host", "options", "service", "region"),
    [
        ("search-shop-x.eu-west-1.es.amazonaws.com", "", "es", "eu-west-1"),
        ("search-shop-x.eu-west-1.es.amazonaws.com:443", "?region=us-east-2", "es", "us-east-2"),
        ("abc.ap-southeast-2.aoss.amazonaws.com", "", "aoss", "ap-southeast-2"),
        ("vpc-shop-x.cn-north-1.es.amazonaws.com.cn", "", "es", "cn-north-1"),
        ("search-shop-x.us-gov-west-1.on.aws", "?service=aoss", "aoss", "us-gov-west-1"),
        ("search.example.com", "", "es", None),
    ],
)
def test_a_host_at_amazon_says_how_it_is_signed_for(host: str, options: str, service: str, region: str | None) -> None:
    found = destination(f"opensearch://{host}/index{options}", None)
    assert isinstance(found, OpenSearchDestination)
    auth = found.http.auth
    assert isinstance(auth, SigV4)
    assert (auth.service, auth.region) == (service, region)
