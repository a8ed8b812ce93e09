import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from flowkit.errors import SinkError
from flowkit.sink.dispatch import Again, Dispatch, Item, Limits, Never, Outcome, Refused, Some, TryAgain


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a wait is for is the service's; here it only takes time."""
    with monkeypatch.context() as patch:
        patch.setattr("flowkit.aws.patience.FIRST_WAIT", 0.0)
        yield


class Service:
    """Answers calls by a list of plans; takes all when they are used up."""

    def __init__(self, plans: Sequence[str] = ()) -> None:
        self.plans = list(plans)
        self.taken: list[Item] = []
        self.calls: list[list[Item]] = []
        self.open: Counter[bytes | None] = Counter()
        self.at_once = self.most = 0

    async def send(self, items: Sequence[Item]) -> Sequence[Outcome]:
        self.calls.append(list(items))
        self.open.update(item.key for item in items)
        assert all(n == 1 for key, n in self.open.items() if key is not None), "two of one key under way"
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        for _ in range(len(items) % 3):
            await asyncio.sleep(0)
        try:
            return self._answer(items)
        finally:
            self.at_once -= 1
            self.open = self.open - Counter(item.key for item in items)

    def _answer(self, items: Sequence[Item]) -> Sequence[Outcome]:
        plan = self.plans.pop() if self.plans else "well"
        poison = [item for item in items if item.body == "poison"]
        if poison:
            raise Refused("Invalid", "one of them is poison")
        if plan == "lost":
            raise TryAgain("connection reset")
        if plan == "done and lost":
            self.taken += items
            raise TryAgain("timed out")
        outcomes: list[Outcome] = [None] * len(items)
        if plan == "part":
            outcomes = [Again("throttled", slow=True) if i % 2 else None for i in range(len(items))]
        if plan == "never":
            outcomes[-1] = Never("TooOld", "not any more")
        self.taken += [item for item, outcome in zip(items, outcomes, strict=True) if outcome is None]
        return outcomes


keys = st.sampled_from([None, b"a", b"b", b"c"])
plans = st.sampled_from(["well", "lost", "part", "never", "done and lost"])


@given(st.lists(st.tuples(keys, st.integers(1, 50))), st.lists(plans, max_size=12), st.integers(1, 4))
async def test_each_is_dealt_with_once_and_keys_keep_their_order(
    rows: list[tuple[bytes | None, int]], script: list[str], calls: int
) -> None:
    service = Service(script)
    items = [Item(n, key, size, "") for n, (key, size) in enumerate(rows)]
    limits = Limits(3, 60, calls)
    never = await Dispatch("x", service.send, limits).run(items)
    refused = {row for row, _ in never}
    times = Counter(item.row for item in service.taken)
    assert {item.row for item in items} - refused == times.keys() - refused
    if "done and lost" not in script:
        assert all(n == 1 for n in times.values())
    for batch in service.calls:
        assert 1 <= len(batch) <= limits.items
        assert len(batch) == 1 or sum(item.size for item in batch) <= limits.bytes
    assert service.most <= calls
    by_key = defaultdict(list)
    for item in service.taken:
        if item.key is not None:
            by_key[item.key].append(item.row)
    assert all(of_key == sorted(of_key) for of_key in by_key.values())


async def test_what_a_call_is_refused_for_is_found_and_left_out() -> None:
    service = Service()
    items = [Item(n, None, 1, "poison" if n in (3, 4) else "") for n in range(10)]
    never = await Dispatch("x", service.send, Limits(10, 1000, 2)).run(items)
    assert never == [(n, Never("Invalid", "one of them is poison")) for n in (3, 4)]
    assert sorted(item.row for item in service.taken) == [0, 1, 2, 5, 6, 7, 8, 9]


async def test_a_service_that_throttles_gets_fewer_calls_at_once_then_more() -> None:
    service = Service(["part"] * 3)
    dispatch = Dispatch("x", service.send, Limits(2, 1000, 8))
    await dispatch.run([Item(n, None, 1, "") for n in range(8)])
    assert dispatch.window < 8
    await dispatch.run([Item(n, None, 1, "") for n in range(400)])
    assert int(dispatch.window) == 8


async def test_what_someone_has_to_mend_ends_it_and_drops_what_is_under_way() -> None:
    dropped = []

    async def send(items: Sequence[Item]) -> Sequence[Outcome]:
        if items[0].row == 1:
            raise SinkError("no such table")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            dropped.append(items[0].row)
            raise
        return []

    with pytest.raises(SinkError, match="no such table"):
        await Dispatch("x", send, Limits(1, 10, 4)).run([Item(n, None, 1, "") for n in range(4)])
    assert sorted(dropped) == [0, 2, 3]


async def test_trying_again_is_told_once_in_a_while() -> None:
    service = Service(["lost"] * 9)
    with capture_logs() as logs:
        await Dispatch("kinesis://orders", service.send, Limits(10, 1000, 1)).run([Item(0, None, 1, "")])
    assert [(entry["sink"], entry["reason"], entry["records"]) for entry in logs] == [
        ("kinesis://orders", "connection reset", 1)
    ]
    assert len(service.calls) == 10


async def test_an_item_may_stand_for_many_rows_of_which_some_are_never_taken() -> None:
    refused = [Never("Poison", str(n)) for n in range(3)]

    async def send(items: Sequence[Item]) -> Sequence[Outcome]:
        return [Some([(item.row + 1, refused[1])]) if item.row < 20 else refused[2] for item in items]

    items = [Item(row, b"lane", 1, "") for row in (10, 0, 20)]
    never = await Dispatch("x", send, Limits(2, 10, 1)).run(items)
    assert never == [(1, refused[1]), (11, refused[1]), (20, refused[2])]
