"""Any sequence of steps leaves the store with what a dict would hold, whether it runs on, is closed, or killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from flowkit.store import Frame, Space
from flowkit.store.cipher import StoreKey
from tests.store.world import KEY, SPACES, Model, everything, frame, hold, kill, look_now, open_now, settle, tiny

STEPS = int(os.environ.get("STORE_MODEL_STEPS", "30"))
EXAMPLES = int(os.environ.get("STORE_MODEL_EXAMPLES", "50"))

keys = st.sampled_from([bytes([65 + n]) * (1 + n % 3) for n in range(14)] + [b"", b"\0", b"\xff" * 40])
values = st.one_of(
    st.binary(max_size=5),
    st.integers(0, 255).map(lambda n: bytes([n]) * (n + 20)),
    st.binary(min_size=90, max_size=120),
)
spaces = st.sampled_from(SPACES)
bounds = st.none() | keys
changes = st.dictionaries(spaces, st.dictionaries(keys, values | st.none(), max_size=8), max_size=3)


class Machine(RuleBasedStateMachine):
    """A store beside its model."""

    key: StoreKey | None = None

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.Runner()
        self.path = Path(tempfile.mkdtemp(prefix="flowkit-model-"))
        self.model = Model()
        self.pending: Frame | None = None
        self.unsure: bytes | None = None
        """The id of a frame that was applied, though nothing on disk says so yet."""
        self.scans: list[tuple[Iterator[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]] = []
        self.frames = 0

    @initialize(durability=st.sampled_from(["commit", "os"]), log_bytes=st.sampled_from([150, 600, 3000]))
    def begin(self, durability: Any, log_bytes: int) -> None:
        self.options = tiny(durability, log_bytes=log_bytes)
        self.open()

    def open(self) -> None:
        async def opened() -> None:
            self.store = open_now(self.path, options=self.options, key=self.key)

        self.loop.run(opened())
        found = self.store.undecided
        if found is not None:
            assert found.commit_id == (self.unsure if self.pending is None else self.pending.commit_id)
            if self.pending is None:
                self.loop.run(self.store.resolve(found.commit_id, applied=True))
        else:
            assert self.pending is None

    def seen(self) -> Model:
        """What readers see: a frame that is not decided counts for them."""
        return self.model if self.pending is None else self.model.copy().apply(self._timeless(self.pending))

    def _timeless(self, pending: Frame) -> Frame:
        return Frame(0, b"", b"", 0, {}, pending.changes, pending.drops)

    def new_frame(self, puts: Any, drops: Any, expires: int | None, later: int, *, decided: bool) -> Frame:
        self.frames += 1
        if expires is not None:
            puts = {s: {k: v if v is None else [expires, v] for k, v in kv.items()} for s, kv in puts.items()}
        now = max(0, self.model.now) + later
        return frame(self.store, puts, drops, number=self.frames, now=now, decided=decided)

    @precondition(lambda self: self.pending is None)
    @rule(
        puts=changes,
        drops=st.lists(spaces, max_size=2, unique=True) | st.just([]),
        expires=st.none() | st.integers(0, 60),
        later=st.integers(0, 3),
    )
    def commit(self, puts: Any, drops: list[Space], expires: int | None, later: int) -> None:
        made = self.new_frame(puts, drops, expires, later, decided=True)

        async def commit() -> None:
            await self.store.prepare(made)
            await self.store.resolve(made.commit_id, applied=True)

        self.loop.run(commit())
        self.model.apply(made)
        self.unsure = None

    @precondition(lambda self: self.pending is None)
    @rule(puts=changes, drops=st.lists(spaces, max_size=1), expires=st.none() | st.integers(0, 60))
    def prepare(self, puts: Any, drops: list[Space], expires: int | None) -> None:
        made = self.new_frame(puts, drops, expires, 1, decided=False)
        self.loop.run(self.store.prepare(made))
        self.pending = made

    @precondition(lambda self: self.pending is not None)
    @rule(applied=st.booleans())
    def resolve(self, applied: bool) -> None:
        assert self.pending is not None
        self.loop.run(self.store.resolve(self.pending.commit_id, applied))
        if applied:
            self.model.apply(self.pending)
            self.unsure = self.pending.commit_id
        self.pending = None

    @rule(space=spaces, some=st.lists(keys, max_size=8))
    def get(self, space: Space, some: list[bytes]) -> None:
        rows = dict(self.seen().rows(space))
        expected = [rows.get(key) for key in some]
        assert [self.store.get(space, key) for key in some] == expected
        assert self.store.get_many(space, some) == expected

    @rule(space=spaces, start=bounds, stop=bounds, reverse=st.booleans())
    def scan(self, space: Space, start: bytes | None, stop: bytes | None, reverse: bool) -> None:
        expected = self.seen().rows(space, start, stop)
        found = list(self.store.scan(space, start, stop, reverse=reverse))
        assert found == (expected[::-1] if reverse else expected)

    @precondition(lambda self: len(self.scans) < 4)
    @rule(space=spaces, start=bounds, reverse=st.booleans())
    def begin_scan(self, space: Space, start: bytes | None, reverse: bool) -> None:
        expected = self.seen().rows(space, start)
        self.scans.append((self.store.scan(space, start, reverse=reverse), expected[::-1] if reverse else expected))

    @precondition(lambda self: self.scans)
    @rule(data=st.data())
    def go_on_with_a_scan(self, data: st.DataObject) -> None:
        chosen = data.draw(st.integers(0, len(self.scans) - 1))
        rows, expected = self.scans[chosen]
        for _ in range(data.draw(st.integers(1, 4))):
            if not expected:
                assert next(rows, None) is None
                del self.scans[chosen]
                return
            assert next(rows) == expected.pop(0)

    @precondition(lambda self: self.pending is None)
    @rule()
    def flush(self) -> None:
        hold(self.store, False)
        self.loop.run(self.store.flush())

    @precondition(lambda self: self.pending is None)
    @rule()
    def compact(self) -> None:
        hold(self.store, False)
        self.loop.run(self.store.compact())

    @rule()
    def wait_for_the_background(self) -> None:
        self.loop.run(settle(self.store))

    @rule()
    def hold_up_the_background(self) -> None:
        hold(self.store, True)

    def end_scans(self) -> None:
        for rows, expected in self.scans:
            assert list(rows) == expected
        self.scans = []

    @rule()
    def close_and_open(self) -> None:
        self.end_scans()
        hold(self.store, False)
        self.loop.run(self.store.close())
        self.open()

    @rule()
    def kill_and_open(self) -> None:
        self.end_scans()
        self.loop.run(kill(self.store))
        self.open()

    @rule()
    def look(self) -> None:
        look = look_now(self.path, self.key)
        expected = self.model if self.pending is None else self.model.copy().apply(self.pending)
        assert everything(look) == expected.everything()

    def teardown(self) -> None:
        try:
            if hasattr(self, "store"):
                self.end_scans()
                assert everything(self.store) == self.seen().everything()
                self.loop.run(settle(self.store))
                assert everything(self.store) == self.seen().everything()
                self.loop.run(self.store.close())
        finally:
            self.loop.close()
            shutil.rmtree(self.path)


class EncryptedMachine(Machine):
    key = KEY


settled = settings(
    max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
)
TestModel = Machine.TestCase
TestModel.settings = settled
TestEncryptedModel = EncryptedMachine.TestCase
TestEncryptedModel.settings = settings(settled, max_examples=EXAMPLES // 2)
