"""The feed of a bounded run: merges all inputs by (time, order of declaration), topics between agents among them.

So a bounded run is a pure function of its inputs.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from flowkit.record import END_OF_TIME, DeadLetter
from flowkit.source import Position
from flowkit.window import Split
from flowkit.worker.engine import Engine
from flowkit.worker.feed import Drained, Ended, Finished, Piece, Records, Tick, Waiting
from flowkit.worker.heads import Head, LinkHead
from flowkit.worker.outlets import BoundOutlet, Outgoing


class BoundedFeed:
    """Merges the heads of all inputs by (time, order)."""

    def __init__(self, engines: Sequence[Engine], outlets: dict[str, BoundOutlet]) -> None:
        self.engines, self.outlets = list(engines), outlets
        self.heads: list[Head] = []
        self.links: dict[str, BoundOutlet] = {}
        self.moved: dict[str, int] = {}
        self.finished: list[Engine] = []
        self.finished_before: list[Engine] = []
        self._by_topic: dict[str, list[Engine]] = {}
        """Who writes a topic: asked for each head at each look."""
        for engine in self.engines:
            for outlet in engine.group.outlets:
                self._by_topic.setdefault(outlet.name, []).append(engine)

    def add(self, head: Head) -> None:
        """Merge one more input; ties in time go to the one added first."""
        self.heads.append(head)
        if head.linked:
            self.links[head.topic] = self.outlets[head.topic]
            self.links[head.topic].linked = True
            self.moved[head.topic] = 0
            # What a group sends itself, and dead letters, come after their cause: waiting for them would hold up both.
            head.split.holds = not self._sends_itself(head) and head.topic != head.engine.app.dead_letters.name

    def position(self, engine: Engine, split: Split, saved: dict[str, Any]) -> Position:
        """Where an earlier run, of which `commit` gave `saved`, stood in a split."""
        found = saved.get("heads", {}).get(engine.group.name, {}).get(split.name)
        return None if found is None else found[0]

    def restore(self, saved: dict[str, Any]) -> None:
        """Take up what `commit` gave in an earlier run. Readers are opened at their positions by the caller."""
        for head in self.heads:
            head.load(saved.get("heads", {}).get(head.engine.group.name, {}).get(head.split.name))
        self.finished = [engine for engine in self.engines if engine.group.name in saved.get("finished", [])]
        self.finished_before = list(self.finished)

    @property
    def replaying(self) -> bool:
        return False  # it merges anew, and nobody has seen anything of it

    async def next(self, limit: int) -> Piece | Waiting | None:
        while True:
            self._move_links()
            ready: list[tuple[int, int, Head]] = []
            awaited: set[str] = set()
            for order, head in enumerate(self.heads):
                if await head.fill():
                    ready.append((head.time, order, head))
                    continue
                awaited.add(head.topic)
                if head.waiting:
                    return Waiting()
                if not head.split.ended and self._has_ended(head):
                    return Ended(head.engine, head.split)
            if ready:
                ready.sort(key=_by_time_and_order)
                now, order, head = ready[0]
                clock = self._clock()
                if clock is not None and clock[0] <= now:
                    return Tick(clock[1], now)
                for name, outlet in self.links.items():
                    outlet.awaited = name in awaited
                rival = ready[1] if len(ready) > 1 else None
                stop = head.until(limit, None if rival is None else rival[0], rival is None or order < rival[1])
                if clock is not None:
                    stop = min(stop, head.until(limit, clock[0], wins_ties=False))
                return Records(head.engine, head.topic, head.split, head.decoded[head.at], head.index, stop)
            return self._end_of_an_engine()

    def _clock(self) -> tuple[int, Engine] | None:
        """The next engine without inputs that waits for the clock, and until when: the events of others move it."""
        waiting = [
            (due, n)
            for n, engine in enumerate(self.engines)
            if not engine.group.inputs and (due := engine.clock_due()) <= END_OF_TIME
        ]
        if not waiting:
            return None
        due, n = min(waiting)
        return due, self.engines[n]

    def _end_of_an_engine(self) -> Ended | Drained | Finished | None:
        """There is nothing to read: the next engine may end, those that read dead letters last of all.

        Those that feed each other in a circle end together, once nobody else is left who feeds them: first all that
        they read, then what they still have to hand over, and only when nothing flows any more their agents. So what
        windows send that fire at the end still finds all of them at work.
        """
        left = [engine for engine in self.engines if engine not in self.finished]
        left = [engine for engine in left if not self._reads_dead_letters(engine)] or left
        feeding = {id(engine): self._feeding(engine, left) for engine in left}
        for first in left:
            circle = [e for e in left if e is first or (e in feeding[id(first)] and first in feeding[id(e)])]
            if any(engine not in circle for engine in feeding[id(first)]):
                continue
            for engine in circle:
                for head in self.heads:
                    if head.engine is engine and self._may_end(head):
                        return Ended(engine, head.split)
            if first in feeding[id(first)]:
                for engine in circle:
                    if engine.has_more:
                        return Drained(engine)
            return Finished(first)
        return None

    def _feeding(self, engine: Engine, left: list[Engine]) -> list[Engine]:
        """Those of `left` who write what it reads, or what they read, and so on; itself too if it does."""
        found: list[Engine] = []
        to_do = [engine]
        while to_do:
            reader = to_do.pop()
            for head in self.heads:
                if head.engine is reader and head.linked and head.topic != engine.app.dead_letters.name:
                    new = [writer for writer in self._writers(head) if writer in left and writer not in found]
                    found += new
                    to_do += new
        return found

    def _may_end(self, head: Head) -> bool:
        return head.linked and not head.split.ended and head.topic != head.engine.app.dead_letters.name

    def _reads_dead_letters(self, engine: Engine) -> bool:
        return any(head.engine is engine and head.topic == engine.app.dead_letters.name for head in self.heads)

    def _writers(self, head: Head) -> list[Engine]:
        return self._by_topic.get(head.topic, [])

    def _sends_itself(self, head: Head) -> bool:
        return head.linked and head.engine in self._writers(head)

    def _move_links(self) -> None:
        for name, outlet in self.links.items():
            new = outlet.records[self.moved[name] :]
            self.moved[name] = len(outlet.records)
            if name == self.engines[0].app.dead_letters.name:
                # An agent that cannot handle a dead letter makes another one, which it would be given for ever.
                new = [record for record in new if not _is_about(name, record)]
            if new:
                for head in self.heads:
                    if head.topic == name and isinstance(head, LinkHead):
                        head.push(new)

    def _has_ended(self, head: Head) -> bool:
        if not head.linked:
            return True
        return head.topic != head.engine.app.dead_letters.name and all(e in self.finished for e in self._writers(head))

    def taken(self, piece: Piece, count: int) -> None:
        if isinstance(piece, Records):
            head = next(h for h in self.heads if h.split is piece.split and h.engine is piece.engine)
            head.take(count)
        elif isinstance(piece, Finished):
            self.finished.append(piece.engine)

    def commit(self) -> dict[str, Any]:
        self._move_links()
        heads: dict[str, dict[str, Any]] = {}
        for head in self.heads:
            head.commit()
            # By group: several may read a broadcast topic, and one may be ahead of the other.
            heads.setdefault(head.engine.group.name, {})[head.split.name] = head.save()
        self.moved = dict.fromkeys(self.links, 0)
        self.finished_before = list(self.finished)
        return {"heads": heads, "finished": [engine.group.name for engine in self.finished]}

    def done(self, engine: Engine) -> None:
        """Nothing: in a bounded run results are waited for."""

    async def rewind(self) -> None:
        for head in self.heads:
            head.rewind()
        self.moved = dict.fromkeys(self.links, 0)
        self.finished = list(self.finished_before)

    async def close(self) -> None:
        for head in self.heads:
            if head.reader is not None:
                await head.reader.close()


def _is_about(topic: str, record: Outgoing) -> bool:
    data = record.value if record.link is None else record.link
    return data is not None and msgspec.json.decode(data, type=DeadLetter).topic == topic


def _by_time_and_order(row: tuple[int, int, Head]) -> tuple[int, int]:
    return row[:2]
