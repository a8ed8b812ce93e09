"""The pytest plugin, in a user's suite of its own."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent.parent

Run = Callable[..., pytest.RunResult]

SUITE = """
    import flowkit

    app = flowkit.App("app")
    numbers, out = app.topic("numbers", int), app.sink("out", int)

    @app.each(numbers, sinks=[out])
    def double(n: int) -> int:
        return 2 * n

    async def test_double(flowkit_harness):
        async with flowkit_harness(app) as h:
            await h.send(numbers, 1, 2, 3)
            assert h.sent(out) == [2, 4, 6]

    async def test_options(flowkit_harness):
        async with flowkit_harness(app, seed=None, partitions=2) as h:
            await h.send(numbers, 1)
            assert (h.sent(out), h.crashed) == ([2], 0)

    def test_seed(flowkit_seed):
        with open("seeds", "a") as file:
            print(flowkit_seed, file=file)
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs pytest in a process of its own, with the plugin as if flowkit were installed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(*words: str) -> pytest.RunResult:
        plugin = [
            "-p",
            "no:flowkit",
            "-p",
            "flowkit.testing.plugin",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:hypothesispytest",
        ]
        return pytester.runpytest_subprocess(*plugin, "-o", "asyncio_mode=auto", *words)

    return run


def test_fixtures_make_harnesses_with_a_seed(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(SUITE)
    for words in ([], [], ["--flowkit-seed=12"]):
        run(*words).assert_outcomes(passed=3)
    first, second, given = (pytester.path / "seeds").read_text().split()
    assert first == second
    assert given == "12"


def test_one_suite_runs_in_memory_and_on_a_real_broker(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(SUITE)
    run("--flowkit-broker=embedded://topics").assert_outcomes(passed=3)
    assert (pytester.path / "topics" / "broker.sqlite3").exists()


def test_a_broker_that_is_not_there_is_told(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(SUITE)
    result = run("--flowkit-broker=pulsar://localhost", "-k", "double")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ConfigError: broker 'pulsar://localhost': unknown scheme 'pulsar'*"])


def test_a_failure_tells_its_seed(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile("def test(flowkit_seed): assert False\ndef test_good(flowkit_seed): assert True")
    result = run("--flowkit-seed=77")
    result.assert_outcomes(failed=1, passed=1)
    assert result.stdout.str().count("to see it again: --flowkit-seed=77") == 1


def test_the_plugin_loads_nothing_that_the_tests_do_not_use(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(
        """
        import sys

        def test():
            ours = ("flowkit.testing.harness_app", "flowkit.worker")
            heavy = (*ours, "structlog", "sqlite3", "aiokafka", "rich.console")
            assert [name for name in heavy if name in sys.modules] == []
        """
    )
    run().assert_outcomes(passed=1)


def test_it_is_registered_by_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"flowkit": "flowkit.testing.plugin"}
