"""What a pattern means, by brute force: every way to take events of a short history is tried.

Nothing here is an automaton. A way to take events ("taking") is a list of (event, slot); a slot is an item of the
pattern and which repetition of it. A rule says when a taking may be longer by one event (`may_follow`), another when it
is still waiting (`alive`), another when it is a match. Groups are written out: `(a b){1,2} c` means `a b c` or
`a b a b c`, each read on its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

BEGIN, NEXT, FOLLOWED, ANY = "begin", "next", "followed_by", "followed_by_any"
NOT_NEXT, NOT_FOLLOWED = "not_next", "not_followed_by"
NOTS = (NOT_NEXT, NOT_FOLLOWED)

Place = tuple[int, ...]
Taking = tuple[tuple[int, Place, int], ...]
"""(event, place of the item, repetition) of each event taken."""

Sent = tuple[str, tuple[tuple[str, tuple[int, ...]], ...], int, int, int]
"""(output, events by name, start, end or time-out, time it is sent)."""


@dataclass(frozen=True)
class Item:
    """`letters` are what it takes; with `most`, only while the taking has at most so many events before."""

    how: str
    letters: str
    lo: int = 1
    hi: int | None = 1
    optional: bool = False
    inner: str = FOLLOWED
    greedy: bool = False
    until: str = ""
    most: int | None = None
    body: tuple["Item", ...] = ()
    name: str = ""
    place: Place = ()


@dataclass
class History:
    """Events in order: their letters and times."""

    letters: str
    times: list[int]

    def __len__(self) -> int:
        return len(self.letters)


@dataclass
class Flat:
    """One way to write the pattern without groups, read over a history."""

    items: list[Item]
    within: int
    history: History
    indexes: dict[Place, int] = field(init=False)

    def __post_init__(self) -> None:
        self.indexes = {item.place: index for index, item in enumerate(self.items)}

    @cached_property
    def takings(self) -> list[Taking]:
        found: list[Taking] = []
        for event in range(len(self.history)):
            for index, item in enumerate(self.items):
                first = (event, item.place, 1)
                if item.how not in NOTS and self.skippable(-1, index) and self.begins(event, index):
                    found += self.longer((first,))
        return found

    def begins(self, event: int, index: int) -> bool:
        item = self.items[index]
        guarded = any(g.greedy and self.is_range(g) and self.would(g, event, ()) for g in self.items[:index])
        return self.would(item, event, ()) and not guarded

    def longer(self, taking: Taking) -> Iterator[Taking]:
        yield taking
        for event in range(taking[-1][0] + 1, len(self.history)):
            for index, repetition in self.slots(taking):
                if self.may_follow(taking, event, index, repetition):
                    yield from self.longer((*taking, (event, self.items[index].place, repetition)))

    def slots(self, taking: Taking) -> list[tuple[int, int]]:
        """The slots that the next event may be taken for."""
        _, place, repetition = taking[-1]
        here = self.indexes[place]
        item = self.items[here]
        found = [(here, repetition + 1)] if item.hi is None or repetition < item.hi else []
        if repetition >= item.lo:
            later = range(here + 1, len(self.items))
            found += [(i, 1) for i in later if self.items[i].how not in NOTS and self.skippable(here, i)]
        return found

    def skippable(self, after: int, before: int) -> bool:
        return all(item.optional or item.how in NOTS for item in self.items[after + 1 : before])

    def matches(self, item: Item, event: int, taking: Taking) -> bool:
        few = item.most is None or len(taking) <= item.most
        return self.history.letters[event] in item.letters and few

    def would(self, item: Item, event: int, taking: Taking) -> bool:
        """Whether the item takes the event: a loop that is over takes none."""
        return self.matches(item, event, taking) and self.history.letters[event] not in item.until

    def in_time(self, taking: Taking, event: int) -> bool:
        times = self.history.times
        return not self.within or times[event] - times[taking[0][0]] < self.within

    def may_follow(self, taking: Taking, event: int, index: int, repetition: int) -> bool:
        return (
            self.in_time(taking, event)
            and self.may_wait(taking, event - 1, index, repetition)
            and self.unforbidden(taking, event, leaves=repetition == 1)
            and not self.guarded(taking, event, index, repetition)
            and self.would(self.items[index], event, taking)
        )

    def may_wait(self, taking: Taking, last: int, index: int, repetition: int) -> bool:
        """Whether all events behind the taking until `last` may be ignored while the slot is waited for."""
        item = self.items[index]
        how = item.inner if repetition > 1 else item.how
        for event in range(taking[-1][0] + 1, last + 1):
            if how == NEXT or (how == FOLLOWED and self.matches(item, event, taking)):
                return False
            if repetition > 1 and self.history.letters[event] in item.until:
                return False
            if self.guarded(taking, event, index, repetition):
                return False
        return self.unforbidden(taking, last, leaves=repetition == 1)

    def guarded(self, taking: Taking, event: int, index: int, repetition: int) -> bool:
        """Whether a greedy item that is left or passed would take the event, its loop not being over."""
        if repetition > 1:
            return False
        here = self.indexes[taking[-1][1]]
        greedy = [g for g in self.items[here:index] if g.greedy and self.is_range(g)]
        return any(self.would(g, event, taking) and not self.is_over(g, taking, event) for g in greedy)

    def is_over(self, item: Item, taking: Taking, event: int) -> bool:
        return any(letter in item.until for letter in self.history.letters[taking[-1][0] + 1 : event])

    @staticmethod
    def is_range(item: Item) -> bool:
        return item.lo != item.hi

    def unforbidden(self, taking: Taking, last: int, *, leaves: bool) -> bool:
        """No event behind the taking until `last` matches a negation that stands behind its last item.

        A not_next forbids the whole taking to go on, once its last item might be left.
        """
        event, place, repetition = taking[-1]
        here = self.indexes[place]
        for item in self.nots(here):
            if item.how == NOT_FOLLOWED:
                if any(self.matches(item, e, taking) for e in range(event + 1, last + 1)):
                    return False
            elif last > event and repetition >= self.items[here].lo:
                first = event + 1
                if not self.guarded(taking, first, here + 1, 1) and self.matches(item, first, taking):
                    return False
        return True

    def nots(self, here: int) -> list[Item]:
        found = []
        for item in self.items[here + 1 :]:
            if item.how not in NOTS:
                break
            found.append(item)
        return found

    # --- ends -------------------------------------------------------------------------------------------------------

    def ends(self, taking: Taking) -> str:
        """Whether nothing more is needed ("now"), or only that a negation is not met ("next", "time"), or more: ""."""
        _, place, repetition = taking[-1]
        here = self.indexes[place]
        if repetition < self.items[here].lo or not self.skippable(here, len(self.items)):
            return ""
        hows = {item.how for item in self.nots(here)}
        return "time" if NOT_FOLLOWED in hows else "next" if NOT_NEXT in hows else "now"

    def complete_at(self, taking: Taking) -> int | None:
        """The event at which it is a match; None if none is."""
        match self.ends(taking):
            case "now":
                return taking[-1][0]
            case "next":
                event = taking[-1][0] + 1
                here = self.indexes[taking[-1][1]]
                ok = event < len(self.history) and self.in_time(taking, event)
                if ok and self.unforbidden(taking, event, leaves=True):
                    return None if self.guarded(taking, event, here + 1, 1) else event
        return None

    def pending(self, taking: Taking, last: int) -> bool:
        """Whether it will be a match unless something comes, `last` being the last event so far."""
        if self.ends(taking) != "time":
            return False
        here, event = self.indexes[taking[-1][1]], taking[-1][0]
        free = all(not self.guarded(taking, e, here + 1, 1) for e in range(event + 1, last + 1))
        return free and self.unforbidden(taking, last, leaves=True)

    def waits(self, taking: Taking, last: int) -> bool:
        """Whether it waits for an event, `last` being the last event so far."""
        if self.ends(taking) == "next" and taking[-1][0] == last:
            return True
        return any(self.may_wait(taking, last, index, repetition) for index, repetition in self.slots(taking))


@dataclass
class Model:
    """A pattern's meaning over a history, with an after-match strategy: ("to_next", ""), ("to_last", "e1") ..."""

    items: tuple[Item, ...]
    within: int
    history: History
    after: tuple[str, str] = ("no_skip", "")

    def __post_init__(self) -> None:
        flats = [Flat(items, self.within, self.history) for items in written_out(self.items, len(self.history))]
        self.ways: dict[Taking, list[Flat]] = {}
        for flat in flats:
            for taking in flat.takings:
                self.ways.setdefault(taking, []).append(flat)
        self.names = {item.place: item.name for flat in flats for item in flat.items}
        self.held: list[Taking] = []
        self.first = 0
        self.sent: list[Sent] = []

    def run(self) -> list[Sent]:
        """Everything that is sent, in order: at one time, time-outs go before events."""
        times = self.history.times
        for event, t in enumerate(times):
            self.time_out(event - 1, t)
            done = [taking for taking, flats in self.ways.items() if any(f.complete_at(taking) == event for f in flats)]
            self.settle(done, event, t, t)
        self.time_out(len(times) - 1, None)
        return self.sent

    def start(self, taking: Taking) -> int:
        return self.history.times[taking[0][0]]

    def time_out(self, last: int, until: int | None) -> None:
        """`last` is the last event so far; those at and after `until` have not come."""
        if not self.within:
            return
        before = self.history.times[last] if last >= 0 else None
        for due in sorted({t + self.within for t in self.history.times[: last + 1]}):
            if (until is not None and due > until) or (before is not None and due <= before):
                continue
            over = [t for t in self.ways if self.start(t) + self.within == due and t[-1][0] <= last]
            done = [t for t in over if any(f.pending(t, last) for f in self.ways[t])]
            lost = [t for t in over if t[0][0] >= self.first and any(f.waits(t, last) for f in self.ways[t])]
            self.settle(done, last, due, due)
            self.sent += [("timed_out", self.events(t), self.start(t), due, due) for t in sorted(lost, key=self.key)]

    def settle(self, done: list[Taking], last: int, now: int, t: int) -> None:
        queue = self.held + sorted((d for d in done if d[0][0] >= self.first), key=self.key)
        if self.after[0] != "no_skip":
            queue.sort(key=lambda taking: taking[0][0])
        while queue:
            if self.after[0] != "no_skip" and self.earliest(last, now) < queue[0][0][0]:
                break
            taking = queue.pop(0)
            end = self.history.times[taking[-1][0]]
            self.sent.append(("", self.events(taking), self.start(taking), end, t))
            self.first = max(self.first, self.skip(taking))
            queue = [other for other in queue if other[0][0] >= self.first]
        self.held = queue

    def earliest(self, last: int, now: int) -> int:
        """The first event of the earliest taking that may still become a match."""
        alive = [
            taking[0][0]
            for taking, flats in self.ways.items()
            if taking[0][0] >= self.first
            and taking[-1][0] <= last
            and (not self.within or now < self.start(taking) + self.within)
            and any(f.waits(taking, last) or f.pending(taking, last) for f in flats)
        ]
        return min(alive, default=len(self.history))

    def skip(self, taking: Taking) -> int:
        how, name = self.after
        of = [event for event, place, _ in taking if self.names[place] == name]
        match how:
            case "to_next":
                return taking[0][0] + 1
            case "past_last":
                return taking[-1][0] + 1
            case "to_first":
                return of[0] if of else 0
            case "to_last":
                return of[-1] if of else 0
        return 0

    def events(self, taking: Taking) -> tuple[tuple[str, tuple[int, ...]], ...]:
        found: dict[str, tuple[int, ...]] = {}
        for event, place, _ in taking:
            name = self.names[place]
            found[name] = (*found.get(name, ()), event)
        return tuple(found.items())

    def key(self, taking: Taking) -> list[tuple[int, Place, int]]:
        """The order of those that are sent at once: taking an event goes before leaving it."""
        return [*taking, (len(self.history), (), 0)]


def written_out(items: tuple[Item, ...], longest: int, place: Place = ()) -> list[list[Item]]:
    """All ways to write the items without groups that a history of `longest` events can tell apart."""
    ways: list[list[Item]] = [[]]
    for index, item in enumerate(items):
        here = (*place, index)
        if not item.body:
            ways = [[*way, replace(item, place=here)] for way in ways]
            continue
        most = longest + 1 if item.hi is None else item.hi
        counts = [*([0] if item.optional else []), *range(item.lo, most + 1)]
        longer: list[list[Item]] = []
        for way in ways:
            for count in counts:
                bodies = [way]
                for number in range(count):
                    head = replace(item.body[0], how=item.inner if number else item.how)
                    body = (head, *item.body[1:])
                    bodies = [[*b, *more] for b in bodies for more in written_out(body, longest, (*here, number))]
                longer += bodies
        ways = longer
    return ways
