"""The HTTP server beside a real worker: what it tells, to whom, and how it answers what is asked wrongly."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from flowkit import App, Record, Session, Tumbling, seconds
from flowkit.clock import SystemClock, VirtualClock
from flowkit.errors import ConfigError
from flowkit.options import WorkerOptions
from flowkit.source import MemoryBroker
from flowkit.source.memory_store import store_named
from flowkit.web import Address, address_of, serve_http
from flowkit.worker import RunView, Worker, WorkerView, run
from flowkit.worker.task import Task

OTHERS = "0.0.0.0"
"""The tests ask by 127.0.0.1 only."""


class Event(Record):
    key: str
    at: int
    n: int = 1


def an_app(name: str) -> App:
    app = App(name)
    events = app.topic("events", Event, key="key", time="at")
    totals = app.table("totals", str, int)
    app.table("unused", str, int)
    windows = app.table("windows", tuple[str, int], int, window=Tumbling(seconds(10)), local=True)
    sessions = app.table("sessions", str, int, window=Session(seconds(5)), merge=lambda a, b: a + b)
    shared = app.table("shared", str, bytes, ttl=seconds(600))
    echoes = app.topic("echoes", Event, key="key")

    @app.each(events, tables=[totals, windows, sessions, shared], sinks=[echoes])
    def add(event: Event) -> Event | None:
        totals[event.key] += event.n
        windows[event.key, 1] += event.n
        sessions[event.key] += event.n
        shared[event.key] = b"\xff"
        if event.n < 0:
            raise ValueError("negative")
        return event if event.n > 5 else None

    return app


class Asked:
    """An answer."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Site:
    """A worker on a broker in memory, with its server."""

    def __init__(self, worker: Worker, broker: MemoryBroker, port: int, session: aiohttp.ClientSession) -> None:
        self.worker, self.broker, self.port, self.session = worker, broker, port, session

    async def get(self, path: str, method: str = "GET", **headers: str) -> Asked:
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.session.request(method, url, headers=headers) as answer:
            return Asked(answer.status, answer.headers, await answer.read())

    async def put(self, *events: tuple[str, int, int]) -> None:
        rows = [(k.encode(), json.dumps({"key": k, "at": at, "n": n}).encode(), 0) for k, at, n in events]
        await self.broker.put("events", rows)

    async def until(self, path: str, check: Any) -> Asked:
        """Ask until the answer is as it should be."""
        async with asyncio.timeout(20):
            while not check(answer := await self.get(path)):  # noqa: ASYNC110  what it waits for is over HTTP
                await asyncio.sleep(0.01)
        return answer


@asynccontextmanager
async def site(tmp_path: Path, address: Address, *, partitions: int = 1, app: App | None = None) -> AsyncIterator[Site]:
    name = tmp_path.name
    app = app or an_app("shop")
    options = WorkerOptions(commit_interval=20, lease_ttl=2_000, grace=5_000, partitions=partitions)
    worker = Worker(app, f"memory://{name}", tmp_path / "state", options=options)
    async with (
        MemoryBroker(SystemClock(), store_named(name), name) as broker,
        serve_http(WorkerView(worker), address) as port,
        aiohttp.ClientSession() as session,
    ):
        made = Site(worker, broker, port, session)
        assert (await made.get("/readyz")).status == 503  # it serves before anything is there
        assert (await made.get("/metrics", Authorization=f"Bearer {address.token}")).status == 200
        job = asyncio.create_task(worker.run())
        try:
            await made.until("/readyz", lambda answer: answer.status == 200)
            yield made
        finally:
            worker.stop()
            await job
        answer = await made.get("/readyz")
        assert (answer.status, answer.json["ready"]) == (503, False)


LOCAL = Address("127.0.0.1", 0)


async def test_health_flow_metrics_and_tables_tell_of_the_same_worker(tmp_path: Path) -> None:
    async with site(tmp_path, LOCAL, partitions=2) as s:
        assert (await s.get("/healthz")).json == {"alive": True, "trouble": ""}
        assert (await s.get("/readyz")).json == {"ready": True, "reason": ""}
        events = [(f"k{n}", 1_000 + n, n) for n in range(10)]
        await s.put(*events, ("bad", 2_000, -1))
        done = lambda answer: sum(t.get("records", {}).get("events", 0) for t in answer.json["tasks"]) == 11  # noqa: E731
        flow = (await s.until("/flow", done)).json
        assert (flow["app"], flow["ready"], len(flow["tasks"])) == ("shop", True, 2)
        (group,) = flow["groups"]
        assert (group["agents"], group["topics"], group["sinks"]) == (["add"], ["events"], ["echoes"])
        assert {table["name"] for table in group["tables"]} == {"totals", "windows", "sessions", "shared"}
        for task in flow["tasks"]:
            assert task["ready"]
            assert not task["stalled"]
            assert task["source_lag"] == {"events": 0}
            assert task["commit"]["number"] > 0
            assert 0 <= flow["now"] - task["commit"]["at"] < 60_000
            assert task["watermark_lag"] == pytest.approx(flow["now"] - task["watermark"], abs=1_000)
            times = [task[f"{name}_ms_per_second"] for name in ("busy", "idle", "back_pressured")]
            assert sum(times) == pytest.approx(1000, abs=1)
        assert sum(task["dead_letters"] for task in flow["tasks"]) == 1
        assert sum(task["rollbacks"] for task in flow["tasks"]) == 1
        assert {split["name"] for task in flow["tasks"] for split in task["splits"]} == {"events[0]", "events[1]"}

        samples: dict[str, float] = {}
        for family in text_string_to_metric_families((await s.get("/metrics")).body.decode()):
            for sample in family.samples:
                if sample.name.startswith("flowkit_") and "le" not in sample.labels:
                    samples[sample.name] = samples.get(sample.name, 0) + sample.value
        assert samples["flowkit_records_total"] == 11
        assert samples["flowkit_dead_letters_total"] == 1
        assert samples["flowkit_emitted_records_total"] == 4 + 1  # a dead letter is sent as well
        assert samples["flowkit_source_lag_records"] == 0
        assert samples["flowkit_task_ready"] == 2
        assert samples["flowkit_commit_bytes_sum"] > 0
        assert samples["flowkit_commit_seconds_count"] == samples["flowkit_commit_bytes_count"] >= 2

        rows = (await s.get("/tables/totals")).json
        assert {(row["key"], row["value"]) for row in rows["rows"]} == {(f"k{n}", n) for n in range(10)}
        assert not rows["more"]


async def test_rows_of_every_kind_of_table_are_told_by_key_and_limit(tmp_path: Path) -> None:
    async with site(tmp_path, LOCAL) as s:
        await s.put(("a", 1_000, 1), ("a", 2_000, 2), ("b", 12_000, 3), ("a", 13_000, 4))
        await s.until("/tables/totals", lambda answer: len(answer.json["rows"]) == 2)
        await s.until("/flow", lambda answer: answer.json["tasks"][0]["records"].get("events") == 4)
        assert (await s.get("/tables/totals?key=a")).json == {
            "table": "totals",
            "rows": [{"task": "sessions/0", "key": "a", "value": 7}],
            "more": False,
        }
        limited = (await s.get("/tables/totals?limit=1")).json
        assert [row["key"] for row in limited["rows"]] == ["a"]
        assert limited["more"]
        rows = (await s.get("/tables/windows")).json["rows"]
        assert [(r["key"], r["value"], r["start"], r["end"]) for r in rows] == [
            (["a", 1], 4, 10_000, 20_000),
            (["b", 1], 3, 10_000, 20_000),
        ]
        found = (await s.get('/tables/windows?key=["b",1]')).json["rows"]
        assert [row["value"] for row in found] == [3]
        rows = (await s.get("/tables/sessions?key=a")).json["rows"]
        assert [(r["value"], r["start"], r["end"]) for r in rows] == [(4, 13_000, 18_000)]
        assert (await s.get("/tables/shared?key=a")).json["rows"][0]["value"]  # bytes, in some form
        assert (await s.get("/tables/totals?key=nobody")).json["rows"] == []
        names = [table["name"] for table in (await s.get("/tables")).json["tables"]]
        assert set(names) == {"totals", "unused", "windows", "sessions", "shared"}
        assert (await s.get("/tables/unused")).json["rows"] == []
        why = (await s.get("/why/windows?key=[%22b%22,1]")).json
        assert [w["end"] for w in why["tasks"][0]["windows"]] == [20_000]


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/nothing", 404, "there is no /nothing here; there are /healthz"),
        ("/tables/nope", 404, "app 'shop' has no table 'nope' (it has "),
        ("/why/nope", 404, "has no table 'nope'"),
        ("/why/totals", 400, "table 'totals' has no windows"),
        ("/tables/totals?limit=x", 400, "limit='x': give a whole number from 1 to 1000"),
        ("/tables/totals?limit=0", 400, "limit='0'"),
        ("/tables/totals?limit=1001", 400, "limit='1001'"),
        ("/tables/totals?limit=%C2%B2", 400, "give a whole number"),
        ("/tables/totals?lmit=3", 400, "no parameter 'lmit' here: there are key, limit"),
        ("/tables/windows?key=%7B", 400, "is no key of table 'windows'"),
        ("/tables/..%2f..%2fetc", 404, "has no table '../../etc'"),
    ],
)
async def test_what_is_asked_wrongly_is_told(tmp_path: Path, path: str, status: int, told: str) -> None:
    async with watched(tmp_path) as (s, _):
        answer = await s.get(path)
        assert (answer.status, answer.headers["Content-Type"]) == (status, "application/json")
        assert told in answer.json["error"]


@asynccontextmanager
async def watched(
    tmp_path: Path, address: Address = LOCAL, app: App | None = None
) -> AsyncIterator[tuple[Site, Worker]]:
    """A worker that has not been started, with its server."""
    worker = Worker(app or an_app("shop"), "memory://x", tmp_path / "state", options=WorkerOptions())
    async with (
        MemoryBroker(SystemClock()) as broker,
        serve_http(WorkerView(worker), address) as port,
        aiohttp.ClientSession() as session,
    ):
        yield Site(worker, broker, port, session), worker


async def test_only_reading_is_possible(tmp_path: Path) -> None:
    async with watched(tmp_path) as (s, _):
        for method in ("POST", "PUT", "DELETE"):
            answer = await s.get("/flow", method)
            assert (answer.status, "only read" in answer.json["error"]) == (405, True)
        assert (await s.get("/flow", "HEAD")).status == 200


async def test_our_own_mistakes_are_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with watched(tmp_path) as (s, worker):
        monkeypatch.setattr(worker, "owned", None)
        answer = await s.get("/flow")
        assert answer.status == 500
        assert answer.json == {"error": "flowkit itself failed (AttributeError): its log says where"}


async def test_a_token_is_asked_of_all_but_probes(tmp_path: Path) -> None:
    async with watched(tmp_path, Address(OTHERS, 0, "secret")) as (s, _):
        assert (await s.get("/healthz")).status == 200
        assert (await s.get("/readyz")).status == 503
        for path in ("/", "/metrics", "/flow", "/tables", "/tables/totals", "/why/windows", "/nothing"):
            answer = await s.get(path)
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer"), path
            assert (await s.get(path, Authorization="Bearer secre")).status == 401, path
            assert (await s.get(path, Authorization="Basic secret")).status == 401, path
            assert (await s.get(path, Authorization="Bearer sécret")).status == 401, path
        assert (await s.get("/flow", Authorization="Bearer secret")).status == 200
        assert (await s.get("/flow", Authorization="bearer secret")).status == 200


async def test_without_a_token_no_other_name_leads_here(tmp_path: Path) -> None:
    async with watched(tmp_path) as (s, _):
        assert (await s.get("/flow", Host="evil.example")).status == 403
        assert (await s.get("/flow", Host=f"localhost:{s.port}")).status == 200


async def test_a_stalled_task_makes_it_unhealthy(tmp_path: Path) -> None:
    async with site(tmp_path, LOCAL) as s:
        (owned,) = s.worker.owned.values()
        owned.stalled = True
        answer = await s.get("/healthz")
        assert (answer.status, answer.json["trouble"]) == (503, "no progress: shop/sessions/0")


async def test_a_task_that_cannot_be_opened_is_the_reason_of_not_being_ready(tmp_path: Path) -> None:
    async with site(tmp_path, LOCAL) as s:
        (owned,) = s.worker.owned.values()
        live, owned.live, owned.failing = owned.live, None, "the disk is full"
        answer = await s.get("/readyz")
        assert (answer.status, answer.json["reason"]) == (503, "task shop/sessions/0: the disk is full")
        assert (await s.get("/flow")).json["tasks"][0]["failing"] == "the disk is full"
        owned.live, owned.failing = live, ""


async def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    async with watched(tmp_path) as (s, worker):
        with pytest.raises(ConfigError, match=f"--http 127.0.0.1:{s.port}: is in use: name another port"):
            async with serve_http(WorkerView(worker), Address("127.0.0.1", s.port)):
                pass


async def test_a_run_is_shown_while_it_goes_on(tmp_path: Path) -> None:
    app = an_app("bounded")
    (tmp_path / "in.jsonl").write_text("".join(f'{{"key": "k{n % 3}", "at": {n}}}\n' for n in range(300)))
    seen: list[Any] = []

    @asynccontextmanager
    async def beside(task: Task) -> AsyncIterator[None]:
        real = task.hook

        async def look(step: str) -> None:
            if step == "resolved" and task.commits == 2:
                async with aiohttp.ClientSession() as session:
                    for path in ("flow", "tables/totals", "metrics", "readyz"):
                        async with session.get(f"http://127.0.0.1:{port}/{path}") as answer:
                            seen.append((answer.status, await answer.read()))
            await real(step)

        task.hook = look
        async with serve_http(RunView(task, VirtualClock()), LOCAL) as port:
            yield

    options = WorkerOptions(commit_every=50, commit_interval=3_600_000, batch_size=25)
    await run(app, [("events", str(tmp_path / "in.jsonl"))], state=tmp_path / "state", options=options, beside=beside)
    assert [status for status, _ in seen] == [200, 200, 200, 200]
    (task,) = json.loads(seen[0][1])["tasks"]
    assert task["records"] == {"events": 150}
    assert [row["value"] for row in json.loads(seen[1][1])["rows"]] == [50, 50, 50]
    assert b'flowkit_records_total{app="bounded",task="run",topic="events"} 150.0' in seen[2][1]


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("8080", "127.0.0.1", 8080),
        ("localhost:1", "localhost", 1),
        ("[::1]:80", "::1", 80),
        ("127.0.0.2:0", "127.0.0.2", 0),
    ],
)
def test_addresses_of_this_machine_need_no_token(text: str, host: str, port: int) -> None:
    address = address_of(text, {})
    assert (address.host, address.port, address.allows("")) == (host, port, True)


@pytest.mark.parametrize("text", ["0.0.0.0:80", "[::]:80", "example.com:80", "10.0.0.1:80"])
def test_others_need_one(text: str) -> None:
    with pytest.raises(ConfigError, match="a token is needed: set FLOWKIT_HTTP_TOKEN"):
        address_of(text, {"FLOWKIT_HTTP_TOKEN": ""})
    address = address_of(text, {"FLOWKIT_HTTP_TOKEN": "t"})
    assert (address.allows(""), address.allows("Bearer t")) == (False, True)
    assert "'t'" not in repr(address)


@pytest.mark.parametrize("text", ["", "x", ":80", "host:", "80:x", "65536", "-1", "1.5", "²"])
def test_what_is_no_address_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="write PORT, such as 8080"):
        address_of(text, {})
