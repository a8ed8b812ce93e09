"""Simulator and detector know nothing of each other: no import, not even at second hand, and no common words."""

import ast
from collections.abc import Iterator
from pathlib import Path

from services.fraud_detection import population, scenarios

HERE = Path(population.__file__).parent
PACKAGE = "services.fraud_detection"
SIMULATOR = {"simulator", "scenarios", "population"}
DETECTOR = {"app", "detector", "features", "history", "model", "records", "reputation", "rules"}


def tree(module: str) -> ast.Module:
    return ast.parse((HERE / f"{module}.py").read_text(encoding="utf-8"))


def imported(module: str) -> set[str]:
    """The modules of this service that a module imports."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            found.update({node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)})
    return {name.removeprefix(f"{PACKAGE}.").split(".")[0] for name in found if name.startswith(f"{PACKAGE}.")}


def reached(modules: set[str]) -> set[str]:
    todo, seen = set(modules), set[str]()
    while todo:
        module = todo.pop()
        seen.add(module)
        todo |= {name for name in imported(module) if (HERE / f"{name}.py").exists()} - seen
    return seen


def words(module: str) -> Iterator[str]:
    """The texts in a module's code, docstrings left out."""
    root = tree(module)
    documentation = {
        id(node.value) for node in ast.walk(root) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(root):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


def test_the_walls_are_around_every_module() -> None:
    around = {"__init__", "__main__", "evaluate", "job", "live", "mapping", "measure"}
    assert {path.stem for path in HERE.glob("*.py")} == SIMULATOR | DETECTOR | around


def test_the_detector_reaches_nothing_of_the_simulator() -> None:
    assert reached(DETECTOR) == DETECTOR


def test_the_simulator_reaches_nothing_of_the_detector() -> None:
    assert reached(SIMULATOR) == SIMULATOR


def test_the_detector_has_never_heard_of_the_simulators_categories_places_and_scenarios() -> None:
    names = {habit.category for habit in population.HABITS} | set(scenarios.SCENARIOS)
    names |= {city.name for city in population.CITIES} | {"contactless", "swipe", "chip", "online"}
    known = {word for module in DETECTOR for word in words(module)}
    assert names & known == {"travel"}  # one of the three rules, and what people buy
