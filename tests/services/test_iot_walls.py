"""Simulator and detector know nothing of each other: no import, not even at second hand."""

import ast
from pathlib import Path

from services.iot_maintenance import simulator

HERE = Path(simulator.__file__).parent
PACKAGE = "services.iot_maintenance"
SIMULATOR = {"simulator", "failures", "fleet"}
DETECTOR = {"app", "detector", "records"}
AROUND = {"__init__", "__main__", "baselines", "evaluate", "job", "live", "measure", "series"}


def imported(module: str) -> set[str]:
    """The modules of this service that a module imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((HERE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            found.update({node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)})
    names = {name.removeprefix(f"{PACKAGE}.").split(".")[0] for name in found if name.startswith(f"{PACKAGE}.")}
    return names & (SIMULATOR | DETECTOR | AROUND)


def test_the_walls_are_around_every_module() -> None:
    assert {path.stem for path in HERE.glob("*.py")} == SIMULATOR | DETECTOR | AROUND


def test_detector_and_simulator_reach_only_themselves() -> None:
    for side in (SIMULATOR, DETECTOR):
        assert {name for module in side for name in imported(module)} <= side
