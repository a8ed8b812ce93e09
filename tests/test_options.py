"""Settings of a service and options of a worker, from the environment."""

from enum import Enum
from typing import Any, Literal

import pytest

from flowkit.errors import ConfigError
from flowkit.options import Settings, WorkerOptions, parse_text


class Mode(Enum):
    FAST = "fast"
    EXACT = "exact"


class Limits(Settings, prefix="FRAUD_"):
    model: str
    threshold: float = 0.8
    most: int = 5
    learn: bool = True
    regions: list[str] = []
    weights: dict[str, float] = {}
    region: str | None = None
    top: int | None = None
    mode: Mode = Mode.EXACT
    level: Literal["low", "high"] = "low"


LOADED: list[tuple[dict[str, str], dict[str, Any]]] = [
    ({}, {}),
    ({"FRAUD_MODEL": ""}, {"model": ""}),
    ({"FRAUD_MODEL": "5"}, {"model": "5"}),
    ({"FRAUD_MODEL": "null"}, {"model": "null"}),
    ({"FRAUD_MODEL": '["a"]'}, {"model": '["a"]'}),
    ({"FRAUD_THRESHOLD": "0.9"}, {"threshold": 0.9}),
    ({"FRAUD_THRESHOLD": "1"}, {"threshold": 1.0}),
    ({"FRAUD_THRESHOLD": "1e-3"}, {"threshold": 0.001}),
    ({"FRAUD_MOST": "-7"}, {"most": -7}),
    ({"FRAUD_LEARN": "false"}, {"learn": False}),
    ({"FRAUD_LEARN": "False"}, {"learn": False}),
    ({"FRAUD_LEARN": "0"}, {"learn": False}),
    ({"FRAUD_LEARN": "TRUE"}, {"learn": True}),
    ({"FRAUD_LEARN": "1"}, {"learn": True}),
    ({"FRAUD_REGIONS": '["EU","US"]'}, {"regions": ["EU", "US"]}),
    ({"FRAUD_REGIONS": "[]"}, {"regions": []}),
    ({"FRAUD_WEIGHTS": '{"a": 1}'}, {"weights": {"a": 1.0}}),
    ({"FRAUD_REGION": "EU"}, {"region": "EU"}),
    ({"FRAUD_TOP": "3"}, {"top": 3}),
    ({"FRAUD_TOP": "null"}, {"top": None}),
    ({"FRAUD_MODE": "fast"}, {"mode": Mode.FAST}),
    ({"FRAUD_LEVEL": "high"}, {"level": "high"}),
    ({"fraud_threshold": "0.1", "THRESHOLD": "0.2", "FRAUD_OTHER": "x"}, {}),
]


@pytest.mark.parametrize(("environ", "expected"), LOADED)
def test_settings_come_from_the_environment(environ: dict[str, str], expected: dict[str, Any]) -> None:
    assert Limits.load({"FRAUD_MODEL": "m", **environ}) == Limits(**{"model": "m", **expected})


WRONG: list[tuple[dict[str, str], list[str]]] = [
    ({}, ["FRAUD_MODEL is not set (Limits.model)"]),
    ({"FRAUD_MODEL": "m", "FRAUD_THRESHOLD": "high"}, ["FRAUD_THRESHOLD: Expected `float`, got `str`, found 'high'"]),
    ({"FRAUD_MODEL": "m", "FRAUD_THRESHOLD": ""}, ["FRAUD_THRESHOLD: Expected `float`, got `str`, found ''"]),
    ({"FRAUD_MODEL": "m", "FRAUD_MOST": "1.5"}, ["FRAUD_MOST: Expected `int`, got `float`, found '1.5'"]),
    ({"FRAUD_MODEL": "m", "FRAUD_LEARN": "yes"}, ["FRAUD_LEARN: Expected `bool`, got `str`, found 'yes'"]),
    ({"FRAUD_MODEL": "m", "FRAUD_REGIONS": "EU,US"}, ["FRAUD_REGIONS: Expected `array`, got `str`, found 'EU,US'"]),
    (
        {"FRAUD_MODEL": "m", "FRAUD_REGIONS": "[1]"},
        ["FRAUD_REGIONS: Expected `str`, got `int` - at `$[0]`, found '[1]'"],
    ),
    ({"FRAUD_MODEL": "m", "FRAUD_MODE": "slow"}, ["FRAUD_MODE: Invalid enum value 'slow', found 'slow'"]),
    ({"FRAUD_MODEL": "m", "FRAUD_LEVEL": "mid"}, ["FRAUD_LEVEL: Invalid enum value 'mid', found 'mid'"]),
    (
        {"FRAUD_MOST": "x", "FRAUD_LEARN": "y"},
        [
            "FRAUD_MODEL is not set (Limits.model)",
            "FRAUD_MOST: Expected `int`, got `str`, found 'x'",
            "FRAUD_LEARN: Expected `bool`, got `str`, found 'y'",
        ],
    ),
]


@pytest.mark.parametrize(("environ", "problems"), WRONG)
def test_all_wrong_settings_are_told_at_once(environ: dict[str, str], problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Limits.load(environ)
    assert list(caught.value.problems) == problems


def test_settings_come_from_the_real_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAUD_MODEL", "from the environment")
    assert Limits.load().model == "from the environment"


def test_a_class_without_prefix_has_that_of_its_base() -> None:
    class Plain(Settings):
        port: int

    class Mine(Limits):
        extra: int = 0

    class Yours(Limits, prefix="YOURS_"):
        extra: int = 0

    assert Plain.load({"PORT": "5"}).port == 5
    assert Mine.load({"FRAUD_MODEL": "m", "FRAUD_EXTRA": "5"}).extra == 5
    assert Yours.load({"YOURS_MODEL": "m", "YOURS_EXTRA": "5"}).extra == 5


def test_settings_do_not_change() -> None:
    limits = Limits(model="m")
    with pytest.raises(AttributeError):
        limits.threshold = 0.5  # type: ignore[misc]


TEXTS: list[tuple[str, Any, Any]] = [
    ("5", int, 5),
    ("5", str, "5"),
    ("5", Any, "5"),
    ("a", str | None, "a"),
    ("[1, 2]", tuple[int, int], (1, 2)),
    ('{"a": 1}', dict[str, int], {"a": 1}),
]


@pytest.mark.parametrize(("text", "of", "value"), TEXTS)
def test_parse_text(text: str, of: Any, value: Any) -> None:
    assert parse_text(text, of) == value


@pytest.mark.parametrize(("text", "of"), [("x", int), ("", int), ("[1", list[int]), ("x" * 1000, int), ("\0", float)])
def test_parse_text_refuses_in_a_few_words(text: str, of: Any) -> None:
    with pytest.raises(ValueError, match="Expected") as caught:
        parse_text(text, of)
    assert len(str(caught.value)) < 150


# --- the worker's ---------------------------------------------------------------------------------------------------


def test_every_option_can_be_set_by_the_environment() -> None:
    environ = {f"FLOWKIT_{name.upper()}": "7" for name in WorkerOptions.__struct_fields__}
    options = WorkerOptions.from_environment(environ)
    assert {str(getattr(options, name)) for name in WorkerOptions.__struct_fields__} == {"7"}


def test_a_flag_goes_before_the_environment_and_this_before_the_default() -> None:
    options = WorkerOptions.from_environment(
        {"FLOWKIT_BATCH_SIZE": "7", "FLOWKIT_GRACE": "8"}, batch_size=9, commit_every=None
    )
    assert (options.batch_size, options.grace, options.commit_every) == (9, 8, WorkerOptions().commit_every)


def test_an_empty_variable_counts_as_not_set() -> None:
    """Compose files and Kubernetes templates set variables to nothing."""
    assert WorkerOptions.from_environment({"FLOWKIT_GRACE": ""}) == WorkerOptions()


WRONG_OPTIONS: list[tuple[dict[str, str], dict[str, Any], list[str]]] = [
    ({"FLOWKIT_GRACE": "soon"}, {}, ["FLOWKIT_GRACE='soon' is no whole number"]),
    ({"FLOWKIT_GRACE": "1.5"}, {}, ["FLOWKIT_GRACE='1.5' is no whole number"]),
    ({"FLOWKIT_GRACE": "0"}, {}, ["FLOWKIT_GRACE='0' must be at least 1"]),
    ({}, {"batch_size": -1}, ["batch_size=-1 must be at least 1"]),
    (
        {"FLOWKIT_GRACE": "x"},
        {"batch_size": 0},
        ["batch_size=0 must be at least 1", "FLOWKIT_GRACE='x' is no whole number"],
    ),
]


@pytest.mark.parametrize(("environ", "flags", "problems"), WRONG_OPTIONS)
def test_all_wrong_options_are_told_at_once(
    environ: dict[str, str], flags: dict[str, Any], problems: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        WorkerOptions.from_environment(environ, **flags)
    assert list(caught.value.problems) == problems
