"""Workers that are killed and handed each other's tasks: what their metrics count together is what there was, once."""

import urllib.request
from collections import Counter

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.processes import Crew, Process, until
from tests.integration.test_worker_kill import APP, Outside


def start(crew: Crew, outside: Outside, name: str) -> Process:
    words = ["worker", APP, "--broker", f"embedded://{outside.directory}", "--state", f"state-{name}", "--http", "0"]
    env = {"COMMIT_INTERVAL": "40", "COMMIT_EVERY": "100", "LEASE_TTL": "1500", "BATCH_SIZE": "200"}
    return crew.flowkit(
        name, *words, "--bind", "ledger=ledger-{partition}.jsonl", env={f"FLOWKIT_{k}": v for k, v in env.items()}
    )


def counted(workers: list[Process]) -> "Counter[str]":
    """All that is counted, by metric and topic or table; no task may be told by two workers."""
    found: Counter[str] = Counter()
    tasks: list[str] = []
    for worker in workers:
        port = worker.heard("serving http")["port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        for sample in (sample for family in families for sample in family.samples):
            what = sample.labels.get("topic") or sample.labels.get("table")
            found[f"{sample.name} {what}"] += int(sample.value)
            if sample.name == "flowkit_task_ready":
                tasks.append(sample.labels["task"])
    assert len(tasks) == len(set(tasks))
    return found


def test_what_workers_count_together_is_exact_though_they_are_killed(crew: Crew) -> None:
    with Outside(crew.directory / "topics", 3) as outside:
        workers = {name: start(crew, outside, name) for name in ("ada", "bob")}
        for name in ("ada", "bob", "ada", "bob"):
            outside.put(400)
            outside.wait_for_windows(20)
            workers[name].kill()
            workers[name] = start(crew, outside, name)
        outside.put_last()
        until(lambda: outside.behind() == 0, "everything is committed", 40)
        alive = list(workers.values())
        until(lambda: counted(alive)["flowkit_task_ready None"] == 7, "all tasks are told", 40)
        found = counted(alive)
        windows = sum(len(ends) for ends in outside.sums.values())
        assert found["flowkit_records_total events"] == 1600 + 4
        assert found["flowkit_window_results_total sums"] == windows
        assert found["flowkit_emitted_records_total windows"] == windows
        assert found["flowkit_records_total windows"] == windows
        assert found["flowkit_emitted_records_total totals"] == windows
        assert found["flowkit_source_lag_records events"] == 0
