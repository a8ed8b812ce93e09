"""The scripts that compare and kill on Kafka still run, on a little."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kafka.jars import need_kafka
from tests.kafka.real import Kafka

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    given = os.environ.get("FLOWKIT_TEST_KAFKA")
    if given:
        yield given
        return
    need_kafka()
    with Kafka(tmp_path_factory.mktemp("kafka")) as kafka:
        yield kafka.bootstrap


@pytest.mark.parametrize(
    "words, told",
    [
        ("kafka_rivals --events 2000 --rounds 1 --only flowkit", "Its counts and sums are the model's"),
        ("kafka_recovery --keys 2000 --partitions 2", "0 counts missing, 0 twice"),
    ],
)
def test_it_runs(words: str, told: str, kafka: str) -> None:
    command = [sys.executable, "-m", *f"tests.benchmarks.{words}".split()]
    env = {**os.environ, "FLOWKIT_TEST_KAFKA": kafka, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert told in done.stdout
    assert "WRONG" not in done.stdout
