"""The format on disk: FORMAT.md says what the code does, and stores of each version open as they were recorded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import flowkit.errors
from flowkit.errors import StoreError
from flowkit.store import KeyProvider, Reading, read_store, verify
from tests.store.golden.document import FORMAT, bytes_of, filled, make_examples
from tests.store.golden.make import make
from tests.store.making import KEY, OTHER, everything, opened

GOLDEN = Path(__file__).parent / "golden"
KEYS: dict[str, KeyProvider | None] = {"none": None, "static": KEY, "other": OTHER}
CASES = [
    (version, name, expected)
    for version in sorted(path.name for path in GOLDEN.glob("v*"))
    for name, expected in json.loads((GOLDEN / version / "content.json").read_text()).items()
]
SOUND = [pytest.param(v, n, e, id=f"{v}-{n}") for v, n, e in CASES if "error" not in e]
DAMAGED = [pytest.param(v, n, e, id=f"{v}-{n}") for v, n, e in CASES if "error" in e]


def described(store: Reading) -> dict[str, Any]:
    """What content.json records of a store."""
    spaces = {
        table if end is None else f"{table} {end}": {k.decode("latin-1"): v.decode("latin-1") for k, v in held.items()}
        for (table, end), held in everything(store).items()
    }
    return {
        "number": store.number,
        "commit_id": store.commit_id.hex(),
        "meta": store.meta,
        "now": store.now,
        "spaces": spaces,
    }


def test_the_document_says_what_the_code_does() -> None:
    text = FORMAT.read_text()
    assert filled(text) == text, "run: python -m tests.store.golden.make"
    assert text.count("```text\n\n```") == 0


async def test_the_examples_are_whole_files() -> None:
    for name, example in (await make_examples()).items():
        assert bytes_of(example).startswith(b"FLOWKIT"), name
        assert f"```text\n{example}\n```" in FORMAT.read_text()


@pytest.mark.parametrize("version, name, expected", SOUND)
async def test_a_golden_store_opens_with_what_was_recorded(
    tmp_path: Path, version: str, name: str, expected: dict[str, Any]
) -> None:
    keys = KEYS[expected["keys"]]
    assert verify(GOLDEN / version / name, keys).problems == []
    shutil.copytree(GOLDEN / version / name, tmp_path / name)
    wanted = {key: expected[key] for key in ("number", "commit_id", "meta", "now", "spaces")}
    async with opened(tmp_path / name, keys) as store:
        undecided = store.undecided
        assert undecided is not None
        assert undecided.number == expected["undecided"]
        assert store.get(("users", None), b"user-000") == b"undecided"
        await store.resolve(undecided.commit_id, applied=False)
        assert described(store) == wanted
        await store.compact()
        assert described(store) == wanted
    async with opened(tmp_path / name, keys) as store:
        assert described(store) == wanted
    looked = read_store(GOLDEN / version / name, keys)  # takes the last frame to count
    assert looked.number == expected["undecided"]


@pytest.mark.parametrize("version, name, expected", DAMAGED)
async def test_a_golden_store_that_is_damaged_is_refused(
    tmp_path: Path, version: str, name: str, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowkit.store.opening.READ_TRIES", 1)  # here is no owner at work
    keys, error = KEYS[expected["keys"]], getattr(flowkit.errors, expected["error"])
    shutil.copytree(GOLDEN / version / name, tmp_path / name)
    with pytest.raises(error) as raised:
        async with opened(tmp_path / name, keys) as store:
            described(store)
    assert expected["message"] in str(raised.value)
    with pytest.raises(error) as raised:
        described(read_store(GOLDEN / version / name, keys))
    assert expected["message"] in str(raised.value)
    try:
        problems = verify(GOLDEN / version / name, keys).problems
    except StoreError as refused:
        assert expected["message"] in str(refused)  # noqa: PT017
    else:
        assert problems


def test_golden_stores_can_be_made_by_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowkit.store.catalog.MANIFEST_BYTES", 4 * 2**20)  # our conftest makes it small
    make(tmp_path / "made")
    made = json.loads((tmp_path / "made" / "content.json").read_text())
    assert made == json.loads((GOLDEN / "v1" / "content.json").read_text())
