"""Timers against a sorted list: with commits, roll-backs and reopening between any two steps."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit.record import END_OF_TIME
from flowkit.store import Frame, MemoryStore
from flowkit.table.timers import Timers

TIMES = st.integers(-50, 400)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arm"), TIMES, st.sampled_from([b"", b"a", b"b", b"\xff"])),
        st.tuples(st.just("pass"), st.integers(0, 60), st.just(b"")),
        st.tuples(st.just("commit"), st.booleans(), st.just(b"")),
        st.tuples(st.just("reopen"), st.just(0), st.just(b"")),
        st.tuples(st.just("rollback"), st.just(0), st.just(b"")),
    ),
    max_size=80,
)


class World:
    """Timers over a store, and what they must do. A popped entry may come again only after a roll-back or reopening."""

    def __init__(self, near: int) -> None:
        self.near, self.disk = near, list[bytes]()
        self.store = MemoryStore(self.disk)
        self.timers = Timers(self.store, "t!ends", 40, near=near)
        self.timers.open()
        self.model: set[tuple[int, bytes]] = set()
        self.saved: set[tuple[int, bytes]] = set()
        """Entries that the last commit has left to come."""
        self.now = -100
        self.number = 0
        self.pending: Frame | None = None

    def arm(self, time: int, key: bytes) -> None:
        time = max(time, self.now + 1)
        self.timers.arm(time, key)
        self.model.add((time, key))

    def pass_(self, ms: int) -> None:
        self.now += ms
        got = []
        while self.timers.due <= self.now:
            got.append(self.timers.pop())
        due = sorted(entry for entry in self.model if entry[0] <= self.now)
        self.model -= set(due)
        assert list(dict.fromkeys(got)) == due, "once each is due, in order"
        assert sorted(got) == got

    async def prepared(self) -> None:
        """As in a task: a frame is prepared some time after it was cut, and before the next one is."""
        if self.pending is not None:
            frame, self.pending = self.pending, None
            await self.store.prepare(frame)
            await self.store.resolve(frame.commit_id, applied=True)

    async def commit(self, *, at_once: bool) -> None:
        await self.prepared()
        changes, drops = self.timers.cut()
        self.number += 1
        identity = self.number.to_bytes(4, "big")
        self.pending = Frame(self.number, identity, self.store.commit_id, 0, {}, changes, drops)
        self.saved = set(self.model)
        if at_once:
            await self.prepared()

    async def back(self, *, reopen: bool) -> None:
        await self.prepared()
        if reopen:
            self.store = MemoryStore(self.disk)
            if self.store.undecided is not None:
                await self.store.resolve(self.store.undecided.commit_id, applied=True)
            self.timers = Timers(self.store, "t!ends", 40, near=self.near)
        self.timers.open()
        # What had passed may come once more: hints are judged when they come.
        again = []
        while self.timers.due <= self.now:
            again.append(self.timers.pop())
        missed = {entry for entry in self.saved if entry[0] <= self.now}
        assert missed <= set(again)
        self.model = self.saved - missed
        self.saved = set(self.model)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, near=st.sampled_from([1, 2, 5, 1000]))
async def test_every_entry_comes_once_in_order_whatever_lies_in_memory(steps: list[Any], near: int) -> None:
    world = World(near)
    for step, number, key in steps:
        match step:
            case "arm":
                world.arm(number, key)
            case "pass":
                world.pass_(number)
            case "commit":
                await world.commit(at_once=bool(number))
            case "reopen" | "rollback":
                await world.back(reopen=step == "reopen")
    world.pass_(1000)
    assert world.timers.first is None


async def test_far_entries_leave_memory_and_come_back() -> None:
    world = World(100)
    for n in range(10_000):
        world.arm(n, b"%d" % n)
        if n % 1000 == 999:
            await world.commit(at_once=True)
    assert len(world.timers._heap) <= 101
    world.pass_(20_000)
    assert not world.model


async def test_buckets_go_once_their_time_is_over() -> None:
    world = World(1000)
    for n in range(400):
        world.arm(n, b"k")
    await world.commit(at_once=True)
    assert world.store.ends("t!ends") == list(range(40, 401, 40))
    world.pass_(300)  # 200
    await world.commit(at_once=True)
    assert world.store.ends("t!ends")[0] == 240
    world.pass_(1000)
    await world.commit(at_once=True)
    assert world.store.ends("t!ends") == []


def test_nothing_armed_is_never_due() -> None:
    timers = Timers(MemoryStore(), "t", 10)
    timers.open()
    assert timers.due > END_OF_TIME
    assert timers.cut() == ([], [])
    with pytest.raises(AssertionError):
        timers.pop()
