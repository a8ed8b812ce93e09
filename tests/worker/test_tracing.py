"""Traces: a span a commit and a batch, with what they were; none, and nothing loaded, where nobody wants them."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import StatusCode

from flowkit import App, Record
from flowkit.clock import VirtualClock
from flowkit.errors import ConfigError, OutcomeUnknown
from flowkit.options import WorkerOptions
from flowkit.source import MemoryBroker
from flowkit.store import open_store
from flowkit.worker import LiveTask, Meter, Tracing, random_ids, tracing
from flowkit.worker.tracing import tracing_from_environment


class Event(Record):
    n: int


def an_app() -> App:
    app = App("traced")
    events = app.topic("events", Event)

    @app.each(events)
    def look(event: Event) -> None:
        if event.n < 0:
            raise ValueError(event.n)

    return app


class Traced:
    """A live task on a store on disk, with spans kept in memory."""

    def __init__(self, directory: Path, sampler: Sampler = ALWAYS_ON) -> None:
        self.directory = directory
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meter = Meter()
        self.meter.tracing = Tracing(provider)

    async def open(self, broker: MemoryBroker) -> LiveTask:
        app = an_app()
        (group,) = app.plan().groups
        for topic in ("events", "dead-letters"):
            await broker.create(topic, 1)
        claim = await broker.claim(f"traced/{group.name}/0", "")
        live = LiveTask(
            app, group, 0, 1,
            broker=broker,
            topics={"dead-letters": 1},
            sinks={},
            store=open_store(self.directory / "store"),
            epoch=claim.epoch,
            clock=VirtualClock(),
            options=WorkerOptions(),
            new_id=random_ids(1),
            meter=self.meter,
        )  # fmt: skip
        await live.open()
        return live

    def spans(self, name: str) -> Sequence[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


async def work(live: LiveTask, broker: MemoryBroker, *numbers: int) -> None:
    await broker.put("events", [(None, b'{"n": %d}' % n, 0) for n in numbers])
    await live.fetch(1_000)
    while (piece := await live.task.next(1_000)) is not None:
        await live.task.handle(piece)  # type: ignore[arg-type]
    await live.task.commit()
    await live.task.settled()


async def test_batches_and_commits_are_spans_with_what_they_were(tmp_path: Path) -> None:
    traced = Traced(tmp_path)
    async with MemoryBroker(VirtualClock()) as broker:
        live = await traced.open(broker)
        await work(live, broker, 1, 2, 3)
        await work(live, broker, 4, 5)
        await live.close()
    commits, batches = traced.spans("flowkit.commit"), traced.spans("flowkit.batch")
    shown = [dict(span.attributes or {}) for span in commits]
    assert all(facts.pop("flowkit.bytes") > 0 for facts in shown)  # type: ignore[operator]
    assert shown == [
        {"flowkit.task": "traced/look/0", "flowkit.commit": 1, "flowkit.records": 3},
        {"flowkit.task": "traced/look/0", "flowkit.commit": 2, "flowkit.records": 2},
    ]
    assert [dict(span.attributes or {}) for span in batches] == [
        {"flowkit.task": "traced/look/0", "flowkit.topic": "events", "flowkit.split": "events[0]", "flowkit.records": n}
        for n in (3, 2)
    ]
    for span in (*commits, *batches):
        assert span.start_time is not None
        assert span.end_time is not None
        assert 0 < span.end_time - span.start_time < 60 * 10**9
        assert span.status.status_code is StatusCode.UNSET


async def test_records_that_come_again_are_told_once_a_commit(tmp_path: Path) -> None:
    traced = Traced(tmp_path)
    async with MemoryBroker(VirtualClock()) as broker:
        live = await traced.open(broker)
        await work(live, broker, 1, -1, 2)
        await live.close()
    (commit,) = traced.spans("flowkit.commit")
    assert (commit.attributes or {})["flowkit.records"] == 3


async def test_a_commit_that_fails_is_a_span_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = Traced(tmp_path)

    async def dead(*_: Any) -> None:
        raise OutcomeUnknown("the line went dead")

    async with MemoryBroker(VirtualClock()) as broker:
        live = await traced.open(broker)
        monkeypatch.setattr(broker, "commit", dead)
        with pytest.raises(OutcomeUnknown):
            await work(live, broker, 1)
        await live.close()
    (commit,) = traced.spans("flowkit.commit")
    assert (commit.status.status_code, commit.status.description) == (StatusCode.ERROR, "the line went dead")
    assert [event.name for event in commit.events] == ["exception"]


async def test_what_is_not_sampled_is_not_sent(tmp_path: Path) -> None:
    traced = Traced(tmp_path, ALWAYS_OFF)
    async with MemoryBroker(VirtualClock()) as broker:
        live = await traced.open(broker)
        await work(live, broker, 1)
        await live.close()
    assert traced.exporter.get_finished_spans() == ()


# --- by the environment -----------------------------------------------------------------------------------------------

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("environ", "on"),
    [
        ({}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9"}, True),
        ({"FLOWKIT_OTEL": "1"}, True),
        ({"FLOWKIT_OTEL": "0", **ENDPOINT}, False),
        ({"FLOWKIT_OTEL": "", **ENDPOINT}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
    ],
)
def test_the_environment_says_whether_there_are_traces(environ: dict[str, str], on: bool) -> None:
    with tracing_from_environment("app", environ) as found:
        assert (found is not None) is on


def test_without_the_extra_wanting_traces_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_installed", lambda: False)
    with (
        pytest.raises(ConfigError, match=r"pip install 'flowkit\[otel\]'"),
        tracing_from_environment("app", {"FLOWKIT_OTEL": "1"}),
    ):
        pass
    with tracing_from_environment("app", ENDPOINT) as found:  # it may be meant for others
        assert found is None


@pytest.mark.integration
def test_nothing_is_loaded_where_nobody_asks() -> None:
    code = (
        "import sys, flowkit.worker, flowkit.cli.worker;"
        "from flowkit.worker.tracing import tracing_from_environment as t;"
        "t('app', {}).__enter__();"
        "found = {m.split('.')[0] for m in sys.modules} & {'opentelemetry', 'prometheus_client', 'aiohttp'};"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
