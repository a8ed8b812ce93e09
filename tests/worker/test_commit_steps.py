"""A worker that meets any misfortune at any step of its commits, and any second one after it, against a plain model.

The app has what a commit is made of: a table, outputs to a topic, events by another key with windows, hand-offs to
sinks, and calls of an async function that are under way when the commit is cut. Exactly once, all that is seen is the
model's. At least once, what is derived from a task's own input still is; what others were sent may come again.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.options import Guarantee
from flowkit.source import EndsForOthers, KeepsFrames, SendsEarly
from flowkit.source.seam import Broker
from flowkit.store import Host, open_host
from tests.depth import examples
from tests.matrix import matrix
from tests.model.world import play
from tests.worker.ledger import Cluster, Fault, LedgerBroker, Mistake, Script, Trouble
from tests.worker.stepping import World, compare

WRITES: tuple[Fault, ...] = ("before", "after", "late", "fenced", "fenced after", "hang")
READS: tuple[Fault, ...] = ("before", "hang")
AROUND = ("cut", "prepared", "decided", "resolved", "delivered")
"""Steps of a task's own."""

GROUPS = ("seen", "by-value")
GUARANTEES: tuple[Guarantee, ...] = ("exactly once", "at least once")


def troubles(guarantee: Guarantee) -> list[Trouble]:
    """Every step of either group's tasks under this guarantee, with all that it may meet."""
    sent = ("begin", "outputs", "frame", "end") if guarantee == "exactly once" else ("outputs", "frame", "send")
    found = [Trouble(group, step, fault) for group in GROUPS for step in ("claim", *sent) for fault in WRITES]
    found += [Trouble(group, step, fault) for group in GROUPS for step in ("last_commit", "frames") for fault in READS]
    found += [Trouble(topic, "fetch", fault) for topic in ("events", "by-value") for fault in READS]
    found += [Trouble(group, step, "kill") for group in GROUPS for step in AROUND]
    return [*found, *(Trouble(group, "end", "unshown") for group in GROUPS if guarantee == "exactly once")]


async def played(
    path: Path,
    host: Host,
    guarantee: Guarantee,
    troubles: Sequence[Trouble],
    *,
    lose: bool,
    mistake: Mistake | None = None,
) -> World:
    """A run that meets all of them, held against the model."""
    planned = list(troubles)
    if any(trouble.step == "frames" for trouble in planned):  # they are asked for only where the disk is gone
        lose = True
        if planned[0].step == "frames":
            planned[:1] = [planned[0]._replace(step="decided", fault="kill"), planned[0]._replace(passed=0)]
    place = path / f"run-{os.urandom(4).hex()}"
    place.mkdir()
    world = World(place, host, guarantee, Script(planned), lose=lose, mistake=mistake)
    try:
        async with asyncio.timeout(120):
            found = await world.play()
    finally:
        shutil.rmtree(place)
    compare(found, guarantee)
    return world


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with open_host() as shared:
        yield shared


def the_fourth(trouble: Trouble) -> Trouble:
    """It strikes in the middle of things: tasks are claimed only once each unless something goes wrong."""
    return trouble._replace(passed=1 if trouble.step in ("claim", "last_commit") else 3)


ALL = [(guarantee, trouble) for guarantee in GUARANTEES for trouble in troubles(guarantee)]


def test_the_double_fits_the_seam() -> None:
    broker = LedgerBroker(Cluster(), Script([]), "at least once")
    checked: Broker = broker
    assert isinstance(checked, KeepsFrames)
    assert isinstance(checked, SendsEarly)
    assert isinstance(checked, EndsForOthers)


@pytest.mark.parametrize(
    ("case", "lose"), matrix(ALL, (False, True), quick=lambda case, lose: lose == ALL.index(case) % 2)
)
async def test_any_misfortune_at_any_step_changes_nothing(
    case: tuple[Guarantee, Trouble], lose: bool, tmp_path: Path, host: Host
) -> None:
    guarantee, trouble = case
    world = await played(tmp_path, host, guarantee, [the_fourth(trouble)], lose=lose)
    assert not world.script.troubles, "it never struck"
    assert world.opened > 4
    if guarantee == "exactly once" and trouble.fault == "late" and trouble.step != "claim":
        assert world.cluster.refused, "what came late was not refused"


@st.composite
def two_troubles(draw: st.DrawFn) -> tuple[Guarantee, list[Trouble]]:
    guarantee = draw(st.sampled_from(GUARANTEES))
    any_trouble = st.sampled_from(troubles(guarantee))
    first, second = draw(any_trouble), draw(any_trouble)
    return guarantee, [first._replace(passed=draw(st.integers(0, 6))), second._replace(passed=draw(st.integers(0, 2)))]


@examples(600, quick=40)  # there are some 12,000 pairs
@given(case=two_troubles(), lose=st.booleans())
def test_any_two_misfortunes_change_nothing(case: tuple[Guarantee, list[Trouble]], lose: bool) -> None:
    async def go() -> None:
        with tempfile.TemporaryDirectory() as path:
            async with open_host() as host:
                await played(Path(path), host, *case, lose=lose)

    play(go())


FOUND_BY: dict[Mistake, tuple[Guarantee, list[Trouble]]] = {
    "nobody is fenced": ("exactly once", [Trouble("seen", "frame", "late", 3)]),
    "open transactions count": ("exactly once", [Trouble("seen", "frame", "before", 3)]),
    "outputs by themselves": ("exactly once", [Trouble("seen", "end", "before", 3)]),
    "frame forgotten": ("exactly once", [Trouble("seen", "decided", "kill", 3)]),
}
"""A cluster that is wrong in one way, and what shows it."""


@pytest.mark.parametrize("mistake", FOUND_BY)
async def test_a_cluster_that_makes_a_mistake_is_found_out(mistake: Mistake, tmp_path: Path, host: Host) -> None:
    guarantee, troubles = FOUND_BY[mistake]
    await played(tmp_path, host, guarantee, troubles, lose=True)
    with pytest.raises(AssertionError):
        await played(tmp_path, host, guarantee, troubles, lose=True, mistake=mistake)
