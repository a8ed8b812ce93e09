"""Lookups: over HTTP, in SQL, in a file; the cache before them, and one call for all who want the same."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from flowkit import App, ConfigError, Enriched, LookupFailed, Record, Retry, minutes
from flowkit.lookup import Cache, begin, file, http, result_type, sql
from flowkit.testing import harness
from tests.model.world import World, lines


class Device(Record):
    id: str
    model: str
    limit: float = 0.0


class Reading(Record):
    device: str | None
    at: int = 0


# --- where answers come from ------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(handler: Any) -> AsyncIterator[str]:
    server = web.Application()
    server.router.add_get("/devices/{key}", handler)
    runner = web.AppRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}/devices/{{key}}"
    finally:
        await runner.cleanup()


async def test_http_decodes_takes_404_for_nothing_and_raises_on_other_errors() -> None:
    asked: list[tuple[str, str | None]] = []

    async def answer(request: web.Request) -> web.Response:
        key = request.match_info["key"]
        asked.append((key, request.headers.get("X-Token")))
        if key == "none":
            raise web.HTTPNotFound
        if key == "down":
            raise web.HTTPServiceUnavailable
        return web.json_response({"id": key, "model": "m"})

    async with serving(answer) as url:
        lookup = http(url, Device, headers=lambda: {"X-Token": "t"}).begin()
        assert await lookup("a/b c") == Device("a/b c", "m")
        assert await lookup("none") is None
        with pytest.raises(LookupFailed, match="/devices/down: status 503 Service Unavailable"):
            await lookup("down")
        await lookup.aclose()
    assert asked == [("a/b c", "t"), ("none", "t"), ("down", "t")]
    with pytest.raises(ConfigError, match="give an http:// or https:// URL with"):
        http("http://127.0.0.1/devices", Device)


async def test_sql_asks_sqlite_a_function_that_connects_or_one_that_fetches(tmp_path: Path) -> None:
    path = tmp_path / "devices.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE devices (id TEXT, model TEXT, lim REAL)")
        db.execute("INSERT INTO devices VALUES ('a', 'm', 5)")
    db.close()
    query = 'SELECT id, model, lim AS "limit" FROM devices WHERE id = ?'

    async def fetch(text: str, key: Any) -> dict[str, Any] | None:
        return {"id": key, "model": "fetched"} if key == "a" else None

    def connect() -> Any:
        return sqlite3.connect(path, check_same_thread=False)

    for source, found in ((path, Device("a", "m", 5)), (connect, Device("a", "m", 5)), (fetch, Device("a", "fetched"))):
        lookup = sql(source, query, Device).begin()
        assert [await lookup("a"), await lookup("b")] == [found, None]
        await lookup.aclose()
    missing = sql(tmp_path / "missing.db", query, Device).begin()
    with pytest.raises(sqlite3.OperationalError):
        await missing("a")
    assert not (tmp_path / "missing.db").exists()


async def test_a_file_is_read_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "devices.jsonl"
    path.write_text('{"id": "a", "model": "m"}\n\n{"id": "a", "model": "n"}\n')
    lookup = file(path, Device, key="id").begin()
    first = await lookup("a")
    assert first == Device("a", "n")
    assert await lookup("a") is first
    path.write_text('{"id": "b", "model": "m"}\n')
    os.utime(path, ns=(1, 1))
    assert [await lookup("a"), await lookup("b")] == [None, Device("b", "m")]
    path.write_text("{")
    with pytest.raises(LookupFailed, match=r"devices\.jsonl: cannot be read"):
        await lookup("b")
    path.unlink()
    with pytest.raises(LookupFailed, match="cannot be read: No such file"):
        await lookup("b")


async def test_a_csv_file_is_read_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "devices.csv"
    path.write_text("id,model,limit\na,m,2.5\n")
    assert await file(path, Device, key="id").begin()("a") == Device("a", "m", 2.5)
    with pytest.raises(ConfigError, match="key='missing' is no field of Device"):
        file(path, Device, key="missing")
    with pytest.raises(ConfigError, match=r"give a \.jsonl or \.csv file"):
        file("devices.xml", Device, key="id")


def test_the_type_of_what_is_found_is_known() -> None:
    async def find(key: str) -> Device | None: ...
    async def several(key: str) -> Device | Reading | None: ...
    async def untold(key):  # type: ignore[no-untyped-def]
        ...

    assert result_type(find) is Device
    assert result_type(several) == Device | Reading
    assert result_type(untold) is Any
    assert result_type(http("http://127.0.0.1/{key}", Device)) is Device


# --- the cache --------------------------------------------------------------------------------------------------------


class Registry:
    """A lookup that counts its calls, and answers when the test lets it."""

    def __init__(self, **found: Device) -> None:
        self.found, self.asked = found, [""][:0]
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, key: str) -> Device | None:
        self.asked.append(key)
        await self.open.wait()
        return self.found.get(key)


class Time:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


async def test_a_cache_keeps_answers_for_a_time_also_that_there_is_none() -> None:
    registry, time = Registry(a=Device("a", "m")), Time()
    cache = Cache(ttl=100, missing_ttl=10)
    lookup = begin(registry, cache, time)
    for key in ("a", "a", "none", "none"):
        await lookup(key)
    assert (registry.asked, cache.hits, cache.misses) == (["a", "none"], 2, 2)
    time.now = 10
    await lookup("none")
    await lookup("a")
    time.now = 100
    await lookup("a")
    assert registry.asked == ["a", "none", "none", "a"]


async def test_a_full_cache_forgets_the_least_lately_used() -> None:
    registry = Registry()
    lookup = begin(registry, Cache(size=2), Time())
    for key in ("a", "b", "a", "c", "a", "b"):
        await lookup(key)
    assert registry.asked == ["a", "b", "c", "b"]


async def test_nothing_is_kept_of_missing_keys_if_so_told() -> None:
    registry = Registry()
    lookup = begin(registry, Cache(missing_ttl=0), Time())
    for _ in range(3):
        await lookup("a")
    assert registry.asked == ["a"] * 3


async def test_who_wants_the_same_key_at_the_same_time_shares_a_call_and_its_error() -> None:
    registry = Registry(a=Device("a", "m"))
    registry.open.clear()
    lookup = begin(registry, Cache(), Time())
    waiting = [asyncio.create_task(lookup("a")) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    later = asyncio.create_task(lookup("a"))  # one that was broken off is not waited for
    await asyncio.sleep(0)
    registry.open.set()
    assert await asyncio.gather(*waiting[1:], later) == [Device("a", "m")] * 5
    await asyncio.sleep(0)
    assert registry.asked == ["a", "a"]

    async def fails(key: str) -> Device | None:
        raise OSError(key)

    failing = begin(fails, Cache(), Time())
    results = await asyncio.gather(failing("a"), failing("a"), return_exceptions=True)
    assert [type(result) for result in results] == [OSError, OSError]
    await failing.aclose()
    await lookup.aclose()


async def test_the_misses_of_one_turn_go_into_one_call_where_a_lookup_can() -> None:
    class Many(Registry):
        async def many(self, keys: list[str]) -> dict[str, Device]:
            self.asked.append(",".join(keys))
            return {key: self.found[key] for key in keys if key in self.found}

    registry = Many(a=Device("a", "m"))
    lookup = begin(registry, None, Time())
    assert list(await asyncio.gather(lookup("a"), lookup("b"), lookup("a"))) == [
        Device("a", "m"),
        None,
        Device("a", "m"),
    ]
    assert registry.asked == ["a,b"]
    await lookup.aclose()


# --- in a flow --------------------------------------------------------------------------------------------------------


def enriching(lookup: Any, **options: Any) -> App:
    app = App("app")
    readings = app.topic("readings", Reading, time="at")
    sink = app.sink("out", dict)

    @app.each(readings.enrich(lookup, key="device", **options), sinks=[sink])
    def tell(event: Enriched[Reading, Device | None]) -> dict[str, Any]:
        return {"device": event.event.device, "model": event.found.model if event.found else None}

    return app


@pytest.mark.parametrize("how", ["left", "inner"])
@pytest.mark.parametrize("cache", [None, Cache(ttl=minutes(5))])
async def test_each_event_gets_what_is_found_for_it(how: Any, cache: Cache | None) -> None:
    registry = Registry(a=Device("a", "m"))
    given = [Reading(device, n) for n, device in enumerate(["a", "b", None, "a", "a"])]
    world = World([("readings", lines(given))])
    await world.run(enriching(registry, how=how, cache=cache), commit_every=2)
    rows = [{"device": r.device, "model": "m" if r.device == "a" else None} for r in given]
    assert world.out("out", dict) == [row for row in rows if how == "left" or row["model"]]
    if cache is not None:
        assert sorted(set(registry.asked)) == ["a", "b"]


async def test_a_lookup_that_fails_is_tried_again_and_its_session_closed(tmp_path: Path) -> None:
    path = tmp_path / "devices.jsonl"
    app = enriching(file(path, Device, key="id"), retry=Retry(attempts=2, backoff=0))
    async with harness(app, seed=3) as h:
        await h.send(app.topics["readings"], Reading("a"))
        await h.drain()
        (letter,) = h.sent(h.app.dead_letters)
        assert (letter.error, letter.attempts, letter.agent) == ("LookupFailed", 2, "readings.enrich")
        path.write_text('{"id": "a", "model": "m"}\n')
        await h.send(app.topics["readings"], Reading("a", 1))
        await h.drain()
        assert h.sent(app.sinks["out"]) == [{"device": "a", "model": "m"}]
