"""A task that fails is opened again in the same directory; in a new one, if another worker has had it meanwhile."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from flowkit.errors import BrokerError, OutcomeUnknown, StoreCorrupt, StoreError
from flowkit.options import WorkerOptions
from flowkit.source.rules import Claimed
from flowkit.worker import ownership
from flowkit.worker.ownership import Ownership
from flowkit.worker.state_home import StateHome


class Ledger:
    """A broker that gives every claim."""

    def __init__(self, away: BaseException | None = None) -> None:
        self.claims: list[str] = []
        self.away = away
        """What it says to who asks for leases."""

    async def claim(self, task: str, state: str, **_: Any) -> Claimed:
        self.claims.append(state)
        return Claimed(len(self.claims), 0, None, "")

    async def release(self, task: str, epoch: int) -> None:
        return None

    async def leases(self, prefix: str = "") -> list[Any]:
        if self.away is not None:
            raise self.away
        return []

    async def wait(self, timeout_ms: float, seen: int | None = None) -> int:
        await asyncio.sleep(0)
        return 0


async def hold(
    home: StateHome,
    errors: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    first_wait: float = 0.0,
    away: BaseException | None = None,
) -> list[Path]:
    """The directories that were tried, when one try after the other ends with these errors."""
    monkeypatch.setattr(ownership, "FIRST_WAIT", first_wait)
    tried: list[Path] = []
    ledger = Ledger(away)

    def make(place: Path, _claim: Any) -> Any:
        tried.append(place)
        if not errors:
            owned.hand_over()
            raise OutcomeUnknown("the last one")
        raise errors.pop(0)

    owned = Ownership("app/group/0", None, worker="ada", ledger=ledger, home=home, make=make, options=WorkerOptions())
    await owned.hold()
    assert ledger.claims == [str(place) for place in tried]
    return tried


async def test_what_fails_is_opened_again_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = await hold(StateHome(tmp_path), [OutcomeUnknown("?"), OutcomeUnknown("?")], monkeypatch)
    assert one == two == three


async def test_a_state_that_others_have_left_behind_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Any] = [OutcomeUnknown("?"), StoreCorrupt("commit 19 is not there, the next one is 23")]
    one, two, three = await hold(StateHome(tmp_path), errors, monkeypatch)
    assert one == two != three
    assert (three / "FROM").read_text() == str(one)


async def test_what_is_found_corrupt_under_a_new_claim_too_is_for_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreCorrupt, match="worse"):
        await hold(StateHome(tmp_path), [StoreCorrupt("bad"), StoreCorrupt("worse")], monkeypatch)


async def test_who_stood_still_may_find_what_a_successor_has_left_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await hold(StateHome(tmp_path), [StoreCorrupt("moved on")], monkeypatch)
    assert one != two


async def test_and_so_is_what_stays_corrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Any] = [OutcomeUnknown("?"), StoreCorrupt("one"), StoreCorrupt("two"), StoreCorrupt("three")]
    with pytest.raises(StoreCorrupt, match="three"):
        await hold(StateHome(tmp_path), errors, monkeypatch)


async def test_what_the_broker_fails_is_tried_again_soon_however_often_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "LONGEST_AWAY", 0.0)
    errors: list[Any] = [BrokerError("away"), OutcomeUnknown("?"), BrokerError("away")]
    async with asyncio.timeout(10):
        assert len(await hold(StateHome(tmp_path), errors, monkeypatch, first_wait=60.0)) == 4


@pytest.mark.parametrize("away", [BrokerError("no lease table now"), StoreError("no lease file now")])
async def test_where_nobody_can_say_whose_it_is_now_it_is_opened_again_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: BaseException
) -> None:
    assert len(await hold(StateHome(tmp_path), [OutcomeUnknown("?")], monkeypatch, away=away)) == 2
