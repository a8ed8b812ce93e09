"""OpenSearch as a destination, on osmem, which knows bulk requests, mappings and external versions."""

import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from flowkit import ConfigError
from flowkit.clock import SystemClock
from flowkit.errors import SinkError
from flowkit.sink import Rejected, SinkTask, destination
from flowkit.sink.opensearch import OpenSearchDestination
from flowkit.sink.records import RecordSink
from flowkit.worker.outlets import Outgoing
from tests.aws.broken import all_faults, copying, readings, run_through
from tests.aws.proxy import Request, proxy_to
from tests.aws.signatures import wrong

FAULTS = {"throttle", "broken", "reset", "lost", "half", "slow", "part"}


def index() -> str:
    return f"i-{uuid.uuid4().hex[:8]}"


def at(url: str) -> str:
    return url.removeprefix("http://")


async def ask(url: str, method: str, path: str, body: Any = None) -> Any:
    async with aiohttp.ClientSession() as session, session.request(method, url + path, json=body) as answer:
        return await answer.json()


async def documents(url: str, name: str) -> dict[str, Any]:
    """All documents of an index, by their ids."""
    await ask(url, "POST", f"/{name}/_refresh")
    found: dict[str, Any] = {}
    after: list[Any] = []
    while True:
        asked: dict[str, Any] = {"size": 5_000, "sort": [{"at": "asc"}, {"n": "asc"}], "query": {"match_all": {}}}
        if after:
            asked["search_after"] = after
        hits = (await ask(url, "POST", f"/{name}/_search", asked))["hits"]["hits"]
        if not hits:
            return found
        found |= {hit["_id"]: hit["_source"] for hit in hits}
        after = hits[-1]["sort"]


async def test_each_record_is_one_document_whatever_comes_again(osmem: str, tmp_path: Path) -> None:
    rows, name = readings(keys=500), index()
    async with proxy_to(osmem) as proxy:
        proxy.fault = all_faults("_bulk", seed=6, share=0.4)
        url = f"opensearch://{at(proxy.url)}/{name}?tls=no&auth=none&id=n&batch=300&timeout=5"
        assert await run_through(copying(), rows, url, tmp_path, proxy=proxy) == 8
        assert {asked.fault for asked in proxy.requests if asked.action == "_bulk"} >= FAULTS
    assert await documents(osmem, name) == {str(row.n): {"id": row.id, "n": row.n, "at": row.at} for row in rows}
    assert (tmp_path / "dead.jsonl").read_bytes() == b""


async def test_the_document_of_a_key_is_its_last_record(osmem: str, tmp_path: Path) -> None:
    rows, name = readings(keys=3_000), index()
    async with proxy_to(osmem) as proxy:
        proxy.fault = all_faults("_bulk", seed=7, share=0.4)
        url = f"opensearch://{at(proxy.url)}/{name}?tls=no&auth=none&batch=200&timeout=5&gzip=no"
        assert await run_through(copying(), rows, url, tmp_path, proxy=proxy) == 8
        assert {asked.fault for asked in proxy.requests if asked.action == "_bulk"} >= FAULTS
    last = {row.id: {"id": row.id, "n": row.n, "at": row.at} for row in rows}
    assert await documents(osmem, name) == last


@asynccontextmanager
async def sinking(url: str) -> AsyncIterator[tuple[OpenSearchDestination, RecordSink]]:
    to = destination(url, None)
    assert isinstance(to, OpenSearchDestination)
    to.check()
    async with to:
        sink = to.sink(SinkTask("app", "group", 0, 1, SystemClock()))
        await sink.open(None)
        yield to, sink


async def put(sink: RecordSink, *records: tuple[str, Any], order: int | None = None) -> tuple[Any, Sequence[Rejected]]:
    """A hand-off that was delivered, and what was not taken."""
    staged = sink.stage(
        [
            Outgoing(key.encode(), None if value is None else json.dumps(value).encode(), 0, None, order)
            for key, value in records
        ],
        final=False,
    )
    return staged, await sink.deliver(staged)


async def got(osmem: str, name: str, key: str) -> tuple[Any, int, int] | None:
    """A document, its version, and the number of the write that it is from."""
    found = await ask(osmem, "GET", f"/{name}/_doc/{key}")
    return (found["_source"], found["_version"], found["_seq_no"]) if found.get("found") else None


async def test_an_old_hand_off_changes_nothing_and_removes_nothing(osmem: str) -> None:
    name = index()
    async with sinking(f"opensearch://{at(osmem)}/{name}?tls=no&auth=none") as (to, sink):
        first, _ = await put(sink, ("a", {"n": 1}), ("b", {"n": 1}), ("c", {"n": 1}))
        second, _ = await put(sink, ("a", {"n": 2}), ("b", None))
        before = [await got(osmem, name, key) for key in "abc"]
        assert to.unchanged == 0
        await sink.deliver(second)
        await sink.deliver(first)
        assert [await got(osmem, name, key) for key in "abc"] == before
        assert to.unchanged == 5
    assert before[0] is not None
    assert (before[0][0], before[1]) == ({"n": 2}, None)


async def test_a_later_window_wins_and_the_same_window_computed_again_replaces_it(osmem: str) -> None:
    name = index()
    async with sinking(f"opensearch://{at(osmem)}/{name}?tls=no&auth=none") as (_, sink):
        await put(sink, ("k", {"total": 2}), order=80)
        await put(sink, ("k", {"total": 1}), order=40)
        assert (await got(osmem, name, "k") or ())[:2] == ({"total": 2}, 80)
        await put(sink, ("k", {"total": 3}), order=80)
        assert (await got(osmem, name, "k") or ())[:2] == ({"total": 3}, 80)
        await put(sink, ("k", None), order=40)
        assert await got(osmem, name, "k") is not None
        await put(sink, ("k", None), order=84)
        await put(sink, ("k", {"total": 4}), order=80)
        assert await got(osmem, name, "k") is None


async def test_what_the_mapping_does_not_take_is_a_dead_letter_with_the_reason(osmem: str) -> None:
    name = index()
    await ask(osmem, "PUT", f"/{name}", {"mappings": {"properties": {"n": {"type": "integer"}}}})
    async with sinking(f"opensearch://{at(osmem)}/{name}?tls=no&auth=none") as (_, sink):
        _, dead = await put(sink, ("a", {"n": 1}), ("b", {"n": "many"}), ("c", {"n": 3}))
        assert [await got(osmem, name, key) is not None for key in "abc"] == [True, False, True]
    assert [(letter.key, letter.error) for letter in dead] == [(b"b", "mapper_parsing_exception")]
    assert "failed to parse field [n] of type [integer]" in dead[0].reason
    assert 'For input string: "many"' in dead[0].reason


async def test_documents_go_into_the_index_of_their_day(osmem: str) -> None:
    name = index()
    async with sinking(f"opensearch://{at(osmem)}/{name}-{{yyyy}}.{{MM}}.{{dd}}?tls=no&auth=none") as (_, sink):
        times = (1_704_067_199_999, 1_704_067_200_000)
        staged = sink.stage([Outgoing(None, b'{"n":%d}' % at, at) for at in times], final=False)
        await sink.deliver(staged)
        await sink.deliver(staged)
    for day, time in zip(("2023.12.31", "2024.01.01"), times, strict=True):
        await ask(osmem, "POST", f"/{name}-{day}/_refresh")
        hits = (await ask(osmem, "GET", f"/{name}-{day}/_search"))["hits"]["hits"]
        assert [hit["_source"] for hit in hits] == [{"n": time}]


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    told = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalr/K7", "AWS_SESSION_TOKEN": "token=="}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    return told


@pytest.mark.parametrize("gzip", ["yes", "no"])
@pytest.mark.parametrize("service", ["es", "aoss"])
async def test_requests_are_signed_as_amazon_asks_for_it(
    osmem: str, keys: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, service: str, gzip: str
) -> None:
    found: list[str] = []

    def judge(asked: Request) -> Any:
        secret, token = keys["AWS_SECRET_ACCESS_KEY"], keys["AWS_SESSION_TOKEN"]
        found.append(wrong(asked.method, asked.raw_path, asked.headers, asked.body, secret, token=token))
        assert asked.service == service
        return "denied" if found[-1] else None

    name = index()
    async with proxy_to(osmem) as proxy:
        proxy.fault = judge
        url = f"opensearch://{at(proxy.url)}/{name}?tls=no&region=eu-west-1&service={service}&gzip={gzip}"
        async with sinking(url) as (_, sink):
            await put(sink, *((f"k{n}", {"n": n}) for n in range(100)))
        assert found == ["", ""]  # HEAD, and the bulk request
        assert await got(osmem, name, "k99") is not None
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        with pytest.raises(ConfigError, match="refuses us"):
            async with sinking(url):
                pass
        assert found[-1] == "the signature is another one"


async def test_a_service_that_refuses_later_ends_the_run_without_a_secret_in_the_message(
    osmem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENSEARCH_USER", "me")
    monkeypatch.setenv("OPENSEARCH_PASSWORD", "geheim")
    async with (
        proxy_to(osmem) as proxy,
        sinking(f"opensearch://{at(proxy.url)}/{index()}?tls=no&auth=basic") as (_, sink),
    ):
        assert proxy.requests[0].headers["Authorization"] == "Basic bWU6Z2VoZWlt"
        proxy.fault = lambda _: "denied"
        with pytest.raises(SinkError) as caught:
            await put(sink, ("k", {"n": 1}))
    assert "geheim" not in str(caught.value)


async def test_a_service_that_does_not_answer_holds_up_no_start(osmem: str) -> None:
    async with proxy_to(osmem) as proxy:
        proxy.fault = lambda _: "reset"
        async with sinking(f"opensearch://{at(proxy.url)}/{index()}?tls=no&auth=none"):
            pass
    assert len(proxy.requests) >= 1
