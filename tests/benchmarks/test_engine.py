"""The engine against a bare loop. Every figure is a ratio of CPU time in one run, best of several."""

import asyncio
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from tests.benchmarks.workload import (
    EVENTS,
    Event,
    agent_app,
    bare_loop,
    best,
    declared_app,
    empty_app,
    flow,
    show,
    write_events,
)


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(tmp_path_factory.mktemp("bench") / "events.jsonl", EVENTS, 10_000)


def test_agent_and_declared_form_against_a_bare_loop(events: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare, agent, declared = best(
        lambda: bare_loop(events), lambda: flow(agent_app(), events), lambda: flow(declared_app(), events)
    )
    per = 1e6 / EVENTS
    show(
        capsys,
        f"bare loop      {bare * per:.2f} µs an event",
        f"agent form     {agent * per:.2f} µs an event, {agent / bare:.2f}x the bare loop (at most 1.6x)",
        f"declared form  {declared * per:.2f} µs an event, {declared / bare:.2f}x the bare loop (less than 1x)",
    )


def test_empty_agent_over_a_decoded_stream(capsys: pytest.CaptureFixture[str]) -> None:
    """The turn between engine and agent alone: decoding taken out."""
    from flowkit.clock import SystemClock
    from flowkit.store import open_store
    from flowkit.window import Split
    from flowkit.worker.build import make_engine, make_inlet, make_outlets
    from flowkit.worker.engine import Counters
    from flowkit.worker.inlet import Decoded

    app = empty_app()
    times = list(range(1_700_000_000_000, 1_700_000_000_000 + 200_000))
    records = [Event("k", 1.0, t, "DE", "m") for t in times]
    decoded = Decoded(None, records, times, {})  # type: ignore[arg-type]

    async def measure() -> float:
        (group,) = app.plan().groups
        async with open_store(None) as store:
            engine = make_engine(app, group, store, make_outlets(app, [group], {}), SystemClock(), Counters())
            split: Split = engine.splits.add("events[0]", 1000, 0)
            make_inlet(engine, app.topics["events"], 0)
            engine.open({})
            await engine.start()
            started = time.process_time()
            await engine.process("events", split, decoded, 0, len(records), careful=False)
            took = time.process_time() - started
            await engine.stop()
            return took / len(records)

    def bare() -> float:
        started = time.process_time()
        for _ in records:
            pass
        return (time.process_time() - started) / len(records)

    empty, loop = best(lambda: asyncio.run(measure()), bare, rounds=5)
    show(capsys, f"empty agent {empty * 1e6:.2f} µs an event (at most 0.6), a bare for loop {loop * 1e6:.3f}")
    assert empty < 0.6e-6


def test_import_and_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`import flowkit`, and `flowkit run` on ten lines, beside a bare interpreter."""
    data = write_events(tmp_path / "ten.jsonl", 10, 3)
    (tmp_path / "small.py").write_text(
        "import flowkit\n"
        "app = flowkit.App('small')\n"
        "class E(flowkit.Record):\n    key: str\n    ts: int\n"
        "events = app.topic('events', E, key='key', time='ts')\n"
        "out = app.topic('out', E)\n"
        "@app.each(events, sinks=[out])\ndef same(e: E) -> E:\n    return e\n"
    )

    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def timed(*command: str) -> tuple[float, float]:
        """Wall and CPU seconds: on a busy machine the first tells of the others."""
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=env)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return time.perf_counter() - started, cpu

    python = sys.executable
    bare, imported, ran = (
        [min(column) for column in zip(*(timed(*command) for _ in range(7)), strict=True)]
        for command in (
            (python, "-c", "pass"),
            (python, "-c", "import flowkit"),
            (python, "-m", "flowkit", "run", "small.py", "--input", f"events={data}", "--output", "out=out.jsonl"),
        )
    )
    loaded = subprocess.run(
        (python, "-X", "importtime", "-c", "import flowkit"), check=True, capture_output=True, text=True, env=env
    ).stderr
    heavy = re.findall(r"\| +(aiobotocore|aiokafka|sqlglot|sqlite3|rich|typer)\b", loaded)
    show(
        capsys,
        *(
            f"{kind}: bare interpreter {bare[n] * 1e3:.0f} ms, import flowkit {(imported[n] - bare[n]) * 1e3:.0f} ms "
            f"more (at most 150), flowkit run on ten lines {ran[n] * 1e3:.0f} ms (at most 600)"
            for n, kind in enumerate(("wall", "CPU"))
        ),
    )
    assert not heavy
    assert msgspec.json.decode((tmp_path / "out.jsonl").read_bytes().splitlines()[0])["key"]
