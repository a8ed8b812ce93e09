"""What happens where Kafka cannot run: tests say so and skip, and fail where they must not."""

from pathlib import Path

import pytest

from tests.kafka.jars import need_kafka


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for variable in ("CI", "FLOWKIT_TEST_KAFKA_REQUIRED"):
        monkeypatch.delenv(variable, raising=False)


def test_without_java_and_maven_it_is_skipped_loudly() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"KAFKA IS NOT TESTED: .*needs java and mvn on the PATH"):
        need_kafka()


@pytest.mark.parametrize("variable", ["CI", "FLOWKIT_TEST_KAFKA_REQUIRED"])
def test_where_it_must_run_it_fails(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(pytest.fail.Exception, match="must run here"):
        need_kafka()
