"""Files of JSON lines that somebody may still be writing."""

import json
from pathlib import Path
from typing import Any


def whole_lines(path: Path) -> list[Any]:
    """What a file's whole lines hold; its last line is left out until its end is there. Nothing if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
