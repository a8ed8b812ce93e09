"""Which streams are sent on by another key, through which topics, and what cannot be."""

from collections.abc import Callable
from typing import Any

import pytest

from flowkit.agent import Group
from flowkit.app import App
from flowkit.errors import ConfigError
from flowkit.record import Record
from flowkit.window import Tumbling


class Tx(Record):
    card: str
    shop: str
    amount: float = 0.0


class Refund(Record):
    card: str
    shop: str


class Small:
    """An app to draw: topics a, b keyed by card, c by nothing, tables s, t, u."""

    def __init__(self) -> None:
        self.app = App("app")
        self.a, self.b = (self.app.topic(name, Tx, key="card") for name in "ab")
        self.c = self.app.topic("c", Tx)
        self.s, self.t, self.u = (self.app.table(name, str, int, window=Tumbling(10)) for name in "stu")
        self.rates = self.app.table("rates", str, float, broadcast=True)

    def agent(self, name: str, *sources: Any, **options: Any) -> None:
        async def function(stream: Any) -> None: ...

        self.app.agent(*sources, name=name, **options)(function)


def shape(group: Group) -> str:
    """`inputs > agents [tables] > internal topics`."""
    inputs = " ".join([*(topic.name for topic in group.topics), *(f"*{t.name}" for t in group.broadcast_topics)])
    members = f"{' '.join(a.name for a in group.agents)} [{' '.join(t.name for t in group.tables)}]"
    sends = " ".join(f"{hop.topic.name}({len(hop.paths)})" for hop in group.hops)
    return f"{group.name}: {inputs} > {members}" + (f" > {sends}" if sends else "")


def same(tx: Tx) -> Tx:
    return tx


def another_key(x: Small) -> None:
    x.agent("f", x.a.group_by("shop"))


def the_same_key(x: Small) -> None:
    x.agent("f", x.a.filter(bool).group_by("card"))


def the_same_key_behind_a_map(x: Small) -> None:
    x.agent("f", x.a.map(same).group_by("card"))


def a_topic_without_a_key(x: Small) -> None:
    x.agent("f", x.c.group_by("card"))


def twice_the_same(x: Small) -> None:
    x.agent("f", x.a.group_by("shop").filter(bool).group_by("shop"))


def several_subscribers(x: Small) -> None:
    by_shop = x.a.group_by("shop")
    x.agent("f", by_shop)
    x.agent("g", by_shop.filter(bool))
    x.agent("h", x.a)


def a_chain(x: Small) -> None:
    x.agent("f", x.a.group_by("shop").map(same).group_by("amount"))


def a_merged_stream(x: Small) -> None:
    x.agent("f", x.a.filter(bool).merge(x.a.map(same), x.b).group_by("shop"))


def merged_by_the_same_key(x: Small) -> None:
    x.agent("f", x.a.merge(x.b).group_by("card"))


def windows_by_their_own_key(x: Small) -> None:
    x.agent("f", x.a, tables=[x.s])
    x.agent("g", x.s.closed.group_by("key"), tables=[x.t])


def windows_by_another_key(x: Small) -> None:
    x.agent("f", x.a, tables=[x.s])
    x.agent("g", x.s.closed.group_by("start"), tables=[x.t])


def for_a_broadcast_table(x: Small) -> None:
    x.agent("f", x.a.group_by("shop"), tables=[x.rates])
    x.agent("g", x.b, reads=[x.rates])


PLANS: list[tuple[Callable[[Small], None], list[str]]] = [
    (another_key, ["from-a: a >  [] > app.a.by-shop(1)", "f: app.a.by-shop > f []"]),
    (the_same_key, ["f: a > f []"]),
    (the_same_key_behind_a_map, ["from-a: a >  [] > app.a.map.by-card(1)", "f: app.a.map.by-card > f []"]),
    (a_topic_without_a_key, ["from-c: c >  [] > app.c.by-card(1)", "f: app.c.by-card > f []"]),
    (twice_the_same, ["from-a: a >  [] > app.a.by-shop(1)", "f: app.a.by-shop > f []"]),
    (several_subscribers, ["from-a: a > h [] > app.a.by-shop(1)", "f: app.a.by-shop > f g []"]),
    (
        a_chain,
        [
            "from-a: a >  [] > app.a.by-shop(1)",
            "from-app.a.by-shop: app.a.by-shop >  [] > app.a.by-shop.map.by-amount(1)",
            "f: app.a.by-shop.map.by-amount > f []",
        ],
    ),
    (
        a_merged_stream,
        [
            "from-a: a >  [] > app.a.filter.merge.by-shop(2)",
            "from-b: b >  [] > app.a.filter.merge.by-shop(1)",
            "f: app.a.filter.merge.by-shop > f []",
        ],
    ),
    (merged_by_the_same_key, ["f: a b > f []"]),
    (windows_by_their_own_key, ["s: a > f g [s t]"]),
    (windows_by_another_key, ["s: a > f [s] > app.s.closed.by-start(1)", "t: app.s.closed.by-start > g [t]"]),
    (
        for_a_broadcast_table,
        ["from-a: a >  [] > app.a.by-shop(1)", "f: b *app.a.by-shop > f g [rates]"],
    ),
]


@pytest.mark.parametrize(("build", "expected"), PLANS, ids=[build.__name__ for build, _ in PLANS])
def test_what_is_sent_on_by_another_key(build: Callable[[Small], None], expected: list[str]) -> None:
    x = Small()
    build(x)
    assert sorted(shape(group) for group in x.app.plan(rekey=True).groups) == sorted(expected)
    assert [hop for group in x.app.plan().groups for hop in group.hops] == []


def test_a_sender_keeps_its_name_when_an_agent_joins_it() -> None:
    """Its positions are found by it: under another one it would send everything again."""
    before, after = Small(), Small()
    another_key(before)
    another_key(after)
    after.agent("a", after.a)
    names = [{group.name for group in x.app.plan(rekey=True).groups} for x in (before, after)]
    assert names[0] == names[1] == {"from-a", "f"}


def test_senders_stand_before_those_that_take_what_they_send() -> None:
    x = Small()
    a_chain(x)
    names = [group.name for group in x.app.plan(rekey=True).groups]
    assert names == ["from-a", "from-app.a.by-shop", "f"]


def test_how_receivers_go_by_the_clock_is_told_to_their_senders() -> None:
    x = Small()
    table: Any = x.app.table("v", str, int, window=Tumbling(10), close_after_idle=500)
    x.agent("f", x.a.group_by("shop").map(same).group_by("amount"), tables=[table])
    assert [group.close_after_idle for group in x.app.plan(rekey=True).groups] == [500, 500, 500]


# --- what cannot be ---------------------------------------------------------------------------------------------------


def events_of_no_known_type(x: Small) -> None:
    x.agent("f", x.a.map(lambda tx: tx).group_by(lambda tx: tx.shop))


def events_that_cannot_be_told_apart(x: Small) -> None:
    refunds = x.app.topic("refunds", Refund, key="card")
    x.agent("f", x.a.merge(refunds).group_by("shop"))


def a_reader_of_both_sides(x: Small) -> None:
    x.agent("f", x.a, x.a.group_by("shop"))


def a_circle_of_two(x: Small) -> None:
    x.agent("f", x.a, x.b.group_by("shop"))
    x.agent("g", x.b, x.a.group_by("shop"))


def a_name_that_is_taken(x: Small) -> None:
    x.app.topic("app.a.by-shop", Tx)
    x.agent("f", x.a.group_by("shop"))


WRONG: list[tuple[Callable[[Small], None], str]] = [
    (events_of_no_known_type, "annotate the function's return type or give type="),
    (events_that_cannot_be_told_apart, "is sent on by another key, so its events are encoded: .*cannot be used"),
    (a_reader_of_both_sides, r"comes back to where it is sent from: 'f' <- 'f'"),
    (a_circle_of_two, r"comes back to where it is sent from: '[fg]' <- '[fg]' <- '[fg]'"),
    (a_name_that_is_taken, "'a.by-shop' goes through a topic named 'app.a.by-shop': give your own another name"),
]


@pytest.mark.parametrize(("build", "problem"), WRONG, ids=[build.__name__ for build, _ in WRONG])
def test_what_cannot_be_sent_on(build: Callable[[Small], None], problem: str) -> None:
    x = Small()
    build(x)
    with pytest.raises(ConfigError, match=problem):
        x.app.plan(rekey=True)
    x.app.plan()  # one task that has everything needs none of that
