"""The top level of the repository stays the short list that a newcomer can take in at once."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {"Dockerfile", "LICENSE", "README.md", "flowkit", "pyproject.toml", "services", "tests"}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only a git checkout knows which files are the repository's")
def test_the_top_level_is_exactly_what_the_design_names() -> None:
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=True, text=True).stdout
    names = {path.split("/", 1)[0] for path in listed.split("\0") if path}
    assert {name for name in names if not name.startswith(".")} == TOP_LEVEL
