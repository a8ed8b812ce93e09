"""A bounded run, or a worker, whose agent waits for ever: the watchdog says where, and a stop ends it all the same."""

import signal
from pathlib import Path

from tests.integration.processes import Crew

APP = """
import asyncio
import time

import flowkit

app = flowkit.App("hang")
events, seen = app.topic("events", int), app.sink("seen", int)


@app.each(events, sinks=[seen])
async def wait_for_ever(n: int) -> int:
    if n == 3:
        {wait}
    return n
"""


def hanging(crew: Crew, directory: Path, wait: str) -> str:
    """Run it until it hangs, tell it to stop, and wait for its end; what it said."""
    (directory / "app.py").write_text(APP.format(wait=wait))
    (directory / "in.jsonl").write_text("1\n2\n3\n4\n")
    words = ("--input", "events=in.jsonl", "--output", "seen=out.jsonl", "--state", "state", "--commit-every", "1")
    env = {"FLOWKIT_STALL_AFTER": "300", "FLOWKIT_GRACE": "500"}
    run = crew.flowkit("run", "run", "app.py", *words, env=env)
    run.heard("no progress" if "asyncio" in wait else "the event loop is blocked")
    run.send(signal.SIGTERM)
    assert run.wait(30) == -signal.SIGTERM
    assert (directory / "out.jsonl").read_text() in {"1\n", "1\n2\n"}  # a commit under way needs the event loop
    return run.said()


def test_a_run_whose_agent_waits_for_ever_says_where_and_ends_after_the_grace(crew: Crew, tmp_path: Path) -> None:
    said = hanging(crew, tmp_path, "await asyncio.Event().wait()")
    assert "wait_for_ever" in said
    assert "not at rest 0.5 s after it was told to stop" in said


def test_a_run_whose_agent_blocks_everything_does_so_too(crew: Crew, tmp_path: Path) -> None:
    said = hanging(crew, tmp_path, "[time.sleep(0.01) for _ in range(100_000)]")
    assert "wait_for_ever" in said
    assert "not at rest 0.5 s after it was told to stop" in said


def test_a_worker_whose_agent_blocks_everything_ends_after_the_grace(crew: Crew, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP.format(wait="[time.sleep(0.01) for _ in range(100_000)]"))
    crew.flowkit("topic", "topics", "create", "events", "--broker", "embedded://topics").wait(30)
    (tmp_path / "in.jsonl").write_text("1\n2\n3\n4\n")
    crew.flowkit("put", "topics", "put", "events", "in.jsonl", "--broker", "embedded://topics").wait(30)
    words = ("--broker", "embedded://topics", "--state", "state", "--bind", "seen=out.jsonl")
    env = {"FLOWKIT_STALL_AFTER": "300", "FLOWKIT_GRACE": "200"}
    worker = crew.flowkit("worker", "worker", "app.py", *words, env=env)
    worker.heard("the event loop is blocked")
    worker.send(signal.SIGTERM)
    assert worker.wait(30) == -signal.SIGTERM
    assert "not at rest 5.2 s after it was told to stop" in worker.said()
