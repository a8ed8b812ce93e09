"""What `import flowkit` gives: exactly the names of `__all__`, each documented, and nothing heavy behind them."""

import inspect
import json
import subprocess
import sys
from types import ModuleType

import pytest

import flowkit
import flowkit.agent
import flowkit.codec
import flowkit.flow
import flowkit.lookup
import flowkit.sink
import flowkit.source
import flowkit.store
import flowkit.table
import flowkit.window

PACKAGES = [
    flowkit,
    flowkit.agent,
    flowkit.codec,
    flowkit.flow,
    flowkit.lookup,
    flowkit.sink,
    flowkit.source,
    flowkit.store,
    flowkit.table,
    flowkit.window,
]
HEAVY = {
    "aiobotocore",
    "aiohttp",
    "aiokafka",
    "asyncio",
    "asyncpg",
    "botocore",
    "cramjam",
    "cryptography",
    "logging",
    "multiprocessing",
    "opentelemetry",
    "prometheus_client",
    "pyarrow",
    "rich",
    "river",
    "sqlglot",
    "sqlite3",
    "ssl",
    "structlog",
    "typer",
    "uvloop",
}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_all_is_exact(package: ModuleType) -> None:
    """Every public name of a package's door is in `__all__`, and every name there can be imported."""
    imported = {
        name for name, value in vars(package).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    # What a door opens only when it is asked for (PEP 562) says where it is.
    assert imported | set(vars(package).get("_HOME", ())) == set(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)
    assert package.__all__ == sorted(package.__all__, key=_ruffs_order)
    assert len(package.__all__) == len(set(package.__all__))


def _ruffs_order(name: str) -> tuple[int, str]:
    """Constants, classes, the rest: each by the alphabet."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_the_names_of_the_design_are_there() -> None:
    design = """
        App Record Stream Closed Change DeadLetter Settings Topic Table WindowedTable Retry
        Tumbling Sliding Session Cumulative Count Global milliseconds seconds minutes hours days
        Sum Mean Min Max Variance First Last CountDistinct TopK Quantile Custom
        FlowkitError NoEvent WindowClosed WrongPartition
    """
    assert set(design.split()) <= set(flowkit.__all__)
    methods = "agent each resource sink table topic"
    assert all(callable(getattr(flowkit.App, name)) for name in methods.split())


@pytest.mark.parametrize("name", flowkit.__all__)
def test_a_public_name_is_documented(name: str) -> None:
    value = getattr(flowkit, name)
    assert inspect.getdoc(value)
    if inspect.isclass(value):
        assert value.__doc__, "of its own, not its base's"
        assert value.__doc__ != inspect.getdoc(object)
        for member, function in vars(value).items():
            if not member.startswith("_") and inspect.isfunction(function):
                assert function.__doc__ or _is_told_by_a_protocol(value, member), f"{name}.{member}"


def _is_told_by_a_protocol(cls: type, member: str) -> bool:
    """Windows and aggregates fill a protocol, which says what its methods mean (see D102 in pyproject.toml)."""
    return cls.__module__ in ("flowkit.window.kinds", "flowkit.table.aggregates")


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        assert version("flowkit") == flowkit.__version__
    except PackageNotFoundError:
        pytest.skip("flowkit is not installed")


def test_the_import_loads_nothing_heavy_and_starts_nothing() -> None:
    code = (
        "import sys, json, threading; before = set(sys.modules); import flowkit;"
        "print(json.dumps([sorted(set(sys.modules) - before), threading.active_count()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, threads = json.loads(done.stdout)
    assert sorted(HEAVY & {name.split(".")[0] for name in loaded}) == []
    assert "flowkit.worker" not in loaded
    assert "flowkit.cli" not in loaded
    assert threads == 1
    assert done.stderr == ""
