"""What a worker does when the cluster fails it: each case has a behaviour, says so in its log, and is tested.

    broker away at the start      waited for, `broker_patience` ms (60 s) in all, a line in the log for each try; then
                                  BrokerError, exit code 3. A wrong host or port is the same. Refused (password, token,
                                  certificate, rights): BrokerRefused at once, exit code 3
    broker goes away              told within `lease_ttl` + 3 s and once in 10 s; health is not ready, with the reason.
                                  Tasks that fail by it are opened again after 1, 2, 4, 4 … s
    broker comes back             all goes on by itself, exactly, within seconds, whatever time-outs have passed
    leader moves, node killed     the same; nothing is logged as an error
    input topic deleted           the worker stops: ConfigError, exit code 2. At the start a missing one is made, and
    internal topic deleted        that is told; positions that it does not have follow `out_of_range` (below)
    changelog deleted             the worker stops: ConfigError, exit code 2; at the next start too, for to make it anew
                                  would be to begin anew in silence
    offset out of range           earliest, latest: goes on there, with a warning. fail: the task is not opened, told at
                                  each try and by health; the other tasks go on. If the position lies beyond the end,
                                  so that the topic is another one, the worker stops: ConfigError, exit code 2
    rebalance during a restore    the task that is wanted elsewhere is broken off, the other worker restores it
    an agent awaits for long      no matter how long against the session: heartbeats go on. Beyond `stall_after` it is
                                  told and the task started again, each time with twice the time (up to 16 times), until
                                  it commits
    an agent blocks the loop      told with its stack once it is as long as the session. Beyond it others take the
                                  tasks, the blocked one is fenced, and joins again with a session that is long enough
                                  (up to 5 min), so that the event gets done
    a connection is half open     told within `lease_ttl` + 3 s (+ 5 s if a round was under way), and the membership
                                  begins anew with other connections; those of tasks after the address's `timeout_ms`
    a transaction never ends      the next owner ends it (test_hanging); who waits to be shown a commit gives up after
                                  15 s: OutcomeUnknown, and the task is opened again

The last but three are in test_slow_agents and test_liveness_topics.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from flowkit.cli.health import what_is_wrong
from flowkit.source import kafka_tasks
from flowkit.worker import Worker, read_health
from flowkit.worker import ownership as ownership_module
from tests.cli.conftest import place
from tests.cli.place import Place
from tests.kafka.jars import need_kafka
from tests.kafka.proxy import WiredKafka
from tests.kafka.real import Kafka, free_ports
from tests.kafka.traffic import Traffic, at_work, counting, open_broker, said, thread_that_lasts, until, worker_of

__all__ = ["place"]  # the fixture of the command line's own tests

APP = str(Path(__file__).with_name("checkpoint_app.py"))


# --- at the start -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host, why", [("127.0.0.1", "refused"), ("no-such-host.invalid", "its name is not known")])
def test_a_broker_that_is_not_there_is_waited_for_and_given_up(
    place: Place, monkeypatch: pytest.MonkeyPatch, host: str, why: str
) -> None:
    monkeypatch.setenv("CHECKPOINT_APP", "away")
    monkeypatch.setenv("FLOWKIT_BROKER_PATIENCE", "1200")
    (port,) = free_ports(1)
    began = time.monotonic()
    done = place.call("worker", APP, "--broker", f"kafka://{host}:{port}?timeout_ms=1000", "--state", "state")
    assert 1.2 <= time.monotonic() - began < 10
    assert done.code == 3, done.err
    assert done.err.count("the broker is away; trying again") >= 2
    (told,) = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert f"{host}:{port}" in told
    assert why in told
    assert "waited for it for 1.2 s" in told


def test_a_broker_that_refuses_us_is_not_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch, secure_kafka: Kafka
) -> None:
    monkeypatch.setenv("CHECKPOINT_APP", "refused")
    monkeypatch.setenv("FLOWKIT_KAFKA_USERNAME", "ada")
    monkeypatch.setenv("FLOWKIT_KAFKA_PASSWORD", "wrong")
    url = f"kafka://{secure_kafka.addresses['sasl_plaintext']}?security=sasl_plaintext&sasl=plain"
    done = place.call("worker", APP, "--broker", url, "--state", "state")
    assert done.code == 3, done.err
    assert "it refuses what sasl=plain gave" in done.err
    assert "trying again" not in done.err


async def test_a_worker_that_waits_for_its_broker_can_be_stopped(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    worker = worker_of(counting("away"), f"kafka://127.0.0.1:{port}?timeout_ms=1000", tmp_path)
    with capture_logs() as logs:
        job = asyncio.create_task(worker.run())
        await until(lambda: said(logs, "the broker is away"), "it waits")
        await until(lambda: "cannot be used" in read_health(tmp_path).broker, "told to those who ask")
        assert "cannot be used" in what_is_wrong(tmp_path, 10_000)
        worker.stop()
        await asyncio.wait_for(job, 10)
    assert not (tmp_path / "health.json").exists()


# --- going away and coming back ---------------------------------------------------------------------------------------


async def test_a_broker_that_comes_late_goes_away_and_comes_back(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for less than the session, and once for longer than session and transactions last."""
    need_kafka()
    monkeypatch.setattr(kafka_tasks, "TRANSACTION_MS", 2_000)
    monkeypatch.setattr(ownership_module, "FIRST_WAIT", 1.5)
    monkeypatch.setattr(ownership_module, "LONGEST_AWAY", 1.5)
    kafka, state = Kafka(tmp_path / "kafka"), tmp_path / "state"
    url = f"kafka://{kafka.bootstrap}?timeout_ms=3000"
    try:
        async with thread_that_lasts() as call:
            with capture_logs() as logs:
                async with at_work(
                    counting(name), url, state, lease_ttl=2_000, commit_interval=1_000, partitions=2
                ) as worker:
                    await until(lambda: said(logs, "the broker is away"), "told")
                    await call(kafka.start)
                    await until(lambda: said(logs, "worker started"), "started")
                    async with open_broker(url) as broker:
                        traffic = await Traffic(broker, name).begin()
                        await traffic.feed(200)
                        await traffic.all_counted()
                        await call(kafka.pause)
                        feeding = asyncio.create_task(traffic.feed(200))
                        await asyncio.sleep(1)  # so long it is away
                        await call(kafka.resume)
                        await feeding
                        assert await traffic.all_counted() < 12

                        before = has_read(worker)
                        await traffic.feed(200)
                        await until(lambda: has_read(worker) > before, "read, and not committed yet")
                        await call(kafka.kill)
                        failed = len(said(logs, "task failed"))
                        await until(lambda: len(said(logs, "task failed")) > failed, "a commit has failed")
                        await until(lambda: said(logs, "the broker does not answer"), "told")
                        assert not read_health(state).ready
                        assert "is not ready" in what_is_wrong(state, 10_000)
                        await call(kafka.start)
                        assert await traffic.all_counted() < 12
                        await traffic.feed(100)
                        await traffic.all_counted()
                        await until(lambda: read_health(state).ready, "ready again")
            assert said(logs, "the broker answers again")
            assert {entry["wait"] for entry in said(logs, "task failed")} == {1.5}
            assert [entry for entry in logs if entry["log_level"] == "error"] == []
    finally:
        kafka.kill()


def has_read(worker: Worker) -> int:
    """How far the tasks have read; 0 while one is not open."""
    lives = [owned.live for owned in worker.owned.values()]
    return sum(sum(live.feed.positions.values()) for live in lives if live is not None and live.opened)


async def test_a_node_that_is_killed_and_comes_back_loses_nothing(
    own_kafka: Callable[..., Kafka], tmp_path: Path, name: str
) -> None:
    """Under load: leaders of partitions, and coordinators of the group and of transactions, move."""
    kafka = own_kafka(nodes=3)
    url = f"kafka://{kafka.bootstrap}?timeout_ms=15000"
    async with thread_that_lasts() as call, open_broker(url) as broker:
        traffic = await Traffic(broker, name).begin(3)
        over = asyncio.Event()

        async def load() -> None:
            while not over.is_set():
                await traffic.feed(20)

        with capture_logs() as logs:
            async with at_work(counting(name, hop=True), url, tmp_path / "state"):
                await traffic.feed(100)
                await traffic.all_counted()
                feeding = asyncio.create_task(load())
                await call(kafka.kill, 1)
                await traffic.feed(50)
                await call(kafka.start, 1)
                await traffic.feed(50)
                over.set()
                await feeding
                await traffic.all_counted(60)
        assert [entry for entry in logs if entry["log_level"] == "error"] == []


# --- half open --------------------------------------------------------------------------------------------------------


async def test_a_connection_that_swallows_everything_is_noticed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_kafka()
    monkeypatch.setattr(kafka_tasks, "TRANSACTION_MS", 1_500)
    with WiredKafka(tmp_path / "kafka", 1) as kafka:
        wire = kafka.wires[0]
        url = f"kafka://127.0.0.1:{wire.port}?timeout_ms=2400"
        async with open_broker(f"kafka://{kafka.bootstrap}") as broker:
            traffic = await Traffic(broker, name).begin()
            with capture_logs() as logs:
                async with at_work(counting(name), url, tmp_path / "state", lease_ttl=2_000) as worker:
                    await traffic.feed(50)
                    await traffic.all_counted()
                    await until(lambda: worker.health().ready, "ready")
                    wire.swallow()  # every connection that there is; new ones are made as ever
                    began = time.monotonic()
                    (told,) = await until(lambda: said(logs, "the broker does not answer"), "noticed")
                    assert time.monotonic() - began < 2 + 3 + 4, "the session, a turn, and some time for this machine"
                    assert "its coordinator has not answered for" in told["error"]
                    assert not worker.health().ready
                    await traffic.feed(50)
                    assert await traffic.all_counted() < 20
                    await until(lambda: worker.health().ready, "ready again")
            assert [entry for entry in logs if entry["log_level"] == "error"] == []
