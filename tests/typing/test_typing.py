"""What users write, as mypy and pyright see it: right uses pass, wrong ones give the errors that api.py says.

The marks in api.py are the checkers' own ("type: ignore[…]" for mypy, "pyright: ignore[…]"). Both checkers complain about
a mark that hides nothing, so "no complaint" means that each expected error is there, and no other. The canary shows
that they do complain: it has an error without a mark, and a mark without an error.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [str(Path(__file__).with_name(name)) for name in ("api.py", "operators.py")]
CANARY = """\
import flowkit

topic = flowkit.App("canary").topic("t", flowkit.DeadLetter)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
topic.emit("text")
"""

Found = set[tuple[str, int, str]]
"""File name, line, rule."""


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "canary.py"
    path.write_text(CANARY, encoding="utf-8")
    return path


def test_mypy_finds_exactly_the_marked_errors(canary: Path, pytestconfig: pytest.Config) -> None:
    assert pytestconfig.cache is not None
    cache = pytestconfig.cache.mkdir("mypy")  # a second run takes a second instead of ten
    options = ["--cache-dir", str(cache), "--follow-imports=silent", "--no-pretty", "--no-error-summary"]
    done = run("mypy", *options, *FILES, str(canary))
    found: Found = set()
    for line in done.stdout.splitlines():
        match = re.fullmatch(r"(.+?):(\d+): error: .*\[([a-z-]+)\]", line)
        if match:
            found.add((Path(match[1]).name, int(match[2]), match[3]))
        else:
            assert ": note: " in line, done.stdout + done.stderr
    assert found == {("canary.py", 3, "unused-ignore"), ("canary.py", 4, "arg-type")}, done.stdout


def test_pyright_finds_exactly_the_marked_errors(canary: Path) -> None:
    done = run("pyright", "--pythonpath", sys.executable, "--outputjson", *FILES, str(canary))
    try:
        diagnostics = json.loads(done.stdout)["generalDiagnostics"]
    except ValueError:
        pytest.skip(f"pyright does not start: {done.stderr.strip()[-200:]}")  # it fetches Node.js when first used
    found: Found = {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1, each.get("rule", each["message"]))
        for each in diagnostics
    }
    expected = {("canary.py", 3, "reportUnnecessaryTypeIgnoreComment"), ("canary.py", 4, "reportArgumentType")}
    assert found == expected, done.stdout


def run(checker: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", checker, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
