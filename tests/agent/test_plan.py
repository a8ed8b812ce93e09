"""Which agents, tables and topics make one task, in which order, and what cannot be."""

from collections.abc import Callable
from typing import Any

import pytest

from flowkit.agent import Group, Plan
from flowkit.app import App
from flowkit.errors import ConfigError
from flowkit.record import Record
from flowkit.table import AnyTable
from flowkit.window import Count, Tumbling


class Tx(Record):
    card: str
    amount: float = 0.0


class Small:
    """An app to draw: topics a … d, tables s … w, a broadcast table rates."""

    def __init__(self) -> None:
        self.app = App("small")
        self.a, self.b, self.c, self.d = (self.app.topic(name, Tx, key="card") for name in "abcd")
        self.s, self.t, self.u, self.v, self.w = (
            self.app.table(name, str, int, window=Tumbling(10)) for name in "stuvw"
        )
        self.rates = self.app.table("rates", str, float, broadcast=True)
        self.more = self.app.table("more", str, float, broadcast=True)

    def agent(self, name: str, *sources: Any, **options: Any) -> None:
        async def function(stream: Any) -> None: ...

        self.app.agent(*sources, name=name, **options)(function)


def shape(group: Group) -> str:
    """`inputs > agents [tables]`, those that are broadcast behind a star."""
    inputs = " ".join([*(topic.name for topic in group.topics), *(f"*{t.name}" for t in group.broadcast_topics)])
    return f"{inputs} > {' '.join(a.name for a in group.agents)} [{' '.join(t.name for t in group.tables)}]"


def draw(plan: Plan) -> list[str]:
    return [shape(group) for group in plan.groups]


def one(x: Small) -> None:
    x.agent("f", x.a)


def two_topics_make_two_groups(x: Small) -> None:
    x.agent("f", x.a)
    x.agent("g", x.b)


def an_agent_over_two_topics(x: Small) -> None:
    x.agent("f", x.a, x.b)


def a_topic_joins(x: Small) -> None:
    x.agent("f", x.a)
    x.agent("g", x.a)


def topics_join_through_an_agent(x: Small) -> None:
    x.agent("f", x.a)
    x.agent("g", x.b)
    x.agent("h", x.b, x.a)


def a_read_table_joins(x: Small) -> None:
    x.agent("f", x.a, tables=[x.s])
    x.agent("g", x.b, reads=[x.s])
    x.agent("h", x.c)


def a_reader_registered_before_the_writer(x: Small) -> None:
    x.agent("g", x.b, reads=[x.s])
    x.agent("f", x.a, tables=[x.s])


def a_chain_of_tables_joins(x: Small) -> None:
    x.agent("f", x.a, tables=[x.s])
    x.agent("g", x.b, reads=[x.s], tables=[x.t])
    x.agent("h", x.c, reads=[x.t])


def closed_windows_join(x: Small) -> None:
    x.agent("f", x.a, tables=[x.s])
    x.agent("g", x.s.closed)


def changes_and_late_records_join(x: Small) -> None:
    x.agent("f", x.a, tables=[x.s])
    x.agent("g", x.s.changes, x.b)
    x.agent("h", x.s.late, tables=[x.t])


def a_topic_between_agents_does_not_join(x: Small) -> None:
    x.agent("f", x.a, sinks=[x.b])
    x.agent("g", x.b)


def groups_run_along_the_data(x: Small) -> None:
    x.agent("h", x.c)
    x.agent("g", x.b, sinks=[x.c])
    x.agent("f", x.a, sinks=[x.b])


def a_circle_of_topics_keeps_its_order(x: Small) -> None:
    x.agent("g", x.b, sinks=[x.a])
    x.agent("f", x.a, sinks=[x.b])


def a_topic_that_a_group_feeds_itself(x: Small) -> None:
    x.agent("f", x.a, sinks=[x.a, x.b])
    x.agent("g", x.b)


def a_topic_with_two_writers_waits_for_both(x: Small) -> None:
    x.agent("f", x.a, sinks=[x.a])
    x.agent("g", x.b, sinks=[x.a])


def tables_upstream_first(x: Small) -> None:
    x.agent("h", x.t.closed, tables=[x.s])
    x.agent("g", x.u.closed, tables=[x.t])
    x.agent("f", x.a, tables=[x.u, x.v])


def unused_tables_are_in_no_group(x: Small) -> None:
    x.agent("f", x.a, tables=[x.t])


def a_broadcast_table_in_every_reader(x: Small) -> None:
    x.agent("r", x.d, tables=[x.rates])
    x.agent("f", x.a, reads=[x.rates])
    x.agent("g", x.b, reads=[x.rates], tables=[x.s])
    x.agent("h", x.c)


def a_broadcast_table_that_nobody_reads(x: Small) -> None:
    x.agent("f", x.a)
    x.agent("r", x.d, tables=[x.rates])


def a_broadcast_table_behind_another(x: Small) -> None:
    x.agent("q", x.c, tables=[x.more])
    x.agent("r", x.d, tables=[x.rates], reads=[x.more])
    x.agent("f", x.a, reads=[x.rates])


def broadcast_tables_that_nobody_reads_in_the_end(x: Small) -> None:
    x.agent("q", x.c, tables=[x.more])
    x.agent("r", x.d, tables=[x.rates], reads=[x.more])


def declared_tables_without_an_agent(x: Small) -> None:
    x.app.table("n", of=x.a, by="card", n=Count())


def declared_tables_join_those_that_read_their_topic(x: Small) -> None:
    x.app.table("n", of=x.a, by="card", window=Tumbling(10), n=Count())
    x.app.table("m", of=x.app.tables["n"].closed, by="key", n=Count())  # type: ignore[attr-defined]
    x.agent("f", x.a, x.b)


def declared_tables_of_an_agents_table(x: Small) -> None:
    x.agent("f", x.a, tables=[x.s])
    x.app.table("n", of=x.s.closed, by="key", n=Count())


def a_declared_table_that_is_read(x: Small) -> None:
    x.agent("f", x.b, reads=[x.app.table("n", of=x.a, by="card", n=Count())])


PLANS: list[tuple[Callable[[Small], None], list[str]]] = [
    (one, ["a > f []"]),
    (two_topics_make_two_groups, ["a > f []", "b > g []"]),
    (an_agent_over_two_topics, ["a b > f []"]),
    (a_topic_joins, ["a > f g []"]),
    (topics_join_through_an_agent, ["a b > f g h []"]),
    (a_read_table_joins, ["a b > f g [s]", "c > h []"]),
    (a_reader_registered_before_the_writer, ["b a > g f [s]"]),
    (a_chain_of_tables_joins, ["a b c > f g h [s t]"]),
    (closed_windows_join, ["a > f g [s]"]),
    (changes_and_late_records_join, ["a b > f g h [s t]"]),
    (a_topic_between_agents_does_not_join, ["a > f []", "b > g []"]),
    (groups_run_along_the_data, ["a > f []", "b > g []", "c > h []"]),
    (a_circle_of_topics_keeps_its_order, ["b > g []", "a > f []"]),
    (a_topic_that_a_group_feeds_itself, ["a > f []", "b > g []"]),
    (a_topic_with_two_writers_waits_for_both, ["b > g []", "a > f []"]),
    (tables_upstream_first, ["a > h g f [u v t s]"]),
    (unused_tables_are_in_no_group, ["a > f [t]"]),
    (a_broadcast_table_in_every_reader, ["a *d > r f [rates]", "b *d > r g [s rates]", "c > h []"]),
    (a_broadcast_table_that_nobody_reads, ["a > f []", "*d > r [rates]"]),
    (a_broadcast_table_behind_another, ["a *c *d > q r f [more rates]"]),
    (broadcast_tables_that_nobody_reads_in_the_end, ["*c *d > q r [more rates]"]),
    (declared_tables_without_an_agent, ["a >  [n]"]),
    (declared_tables_join_those_that_read_their_topic, ["a b > f [n m]"]),
    (declared_tables_of_an_agents_table, ["a > f [s n]"]),
    (a_declared_table_that_is_read, ["b a > f [n]"]),
]


@pytest.mark.parametrize(("build", "expected"), PLANS, ids=[build.__name__ for build, _ in PLANS])
def test_a_plan(build: Callable[[Small], None], expected: list[str]) -> None:
    x = Small()
    build(x)
    assert draw(x.app.plan()) == expected


def test_an_app_without_agents_has_no_groups() -> None:
    assert App("empty").plan().groups == []


def test_a_group_is_named_after_its_first_table_else_its_first_agent() -> None:
    x = Small()
    x.agent("f", x.a, tables=[x.t, x.s], reads=[x.rates])
    x.agent("r", x.d, tables=[x.rates])
    x.agent("h", x.b)
    x.agent("g", x.b)
    assert [group.name for group in x.app.plan().groups] == ["s", "g"]


def test_names_of_groups_differ() -> None:
    """A group's state is found by its name."""
    x = Small()
    x.agent("f", x.a, tables=[x.s])
    x.agent("s", x.b)
    x.agent("r", x.d, tables=[x.rates])
    names = [group.name for group in x.app.plan().groups]
    assert names == ["s", "agent-s", "r"]


def test_what_a_group_sends_and_who_reads_a_topic() -> None:
    x = Small()
    out = x.app.sink("out", Tx)
    x.agent("f", x.a, sinks=[x.b, out])
    x.agent("g", x.b, sinks=[out])
    x.agent("r", x.d, tables=[x.rates])
    plan = x.app.plan()
    assert [outlet.name for outlet in plan.groups[0].outlets] == ["b", "out"]
    assert plan.readers("b") == [group for group in plan.groups if group.name == "g"]
    assert [group.name for group in plan.readers("d")] == ["r"]
    assert plan.readers("out") == []


def test_the_shortest_wait_closes_an_idle_group() -> None:
    app = App("idle")
    slow = app.topic("slow", Tx, close_after_idle=500)
    never = app.topic("never", Tx)
    table = app.table("t", str, int, window=Tumbling(10), close_after_idle=300)

    @app.agent(slow, tables=[table])
    async def f(stream: Any) -> None: ...

    @app.agent(never)
    async def g(stream: Any) -> None: ...

    assert [group.close_after_idle for group in app.plan().groups] == [300, None]


# --- what cannot be -------------------------------------------------------------------------------------------------


def two_writers(x: Small) -> None:
    x.agent("f", x.a, tables=[x.s])
    x.agent("g", x.b, tables=[x.s])


def read_but_never_written(x: Small) -> None:
    x.agent("f", x.a, reads=[x.s])


def closed_but_never_written(x: Small) -> None:
    x.agent("f", x.s.closed)


def declared_over_a_table_never_written(x: Small) -> None:
    x.app.table("n", of=x.s.closed, by="key", n=Count())
    x.agent("f", x.s.changes)


def writes_a_declared_table(x: Small) -> None:
    x.agent("f", x.a, tables=[x.app.table("n", of=x.a, by="card", n=Count())])


def a_circle_of_one(x: Small) -> None:
    x.agent("f", x.a, x.s.closed, tables=[x.s])


def a_circle_of_two(x: Small) -> None:
    x.agent("f", x.a, x.t.closed, tables=[x.s])
    x.agent("g", x.s.closed, tables=[x.t])


def a_circle_of_changes(x: Small) -> None:
    x.agent("f", x.a, x.t.changes, tables=[x.s])
    x.agent("g", x.s.changes, tables=[x.t])


def late_records_into_the_same_table(x: Small) -> None:
    x.agent("f", x.a, x.s.late, tables=[x.s])


def a_circle_through_a_declared_table(x: Small) -> None:
    n = x.app.table("n", of=x.s.closed, by="key", window=Tumbling(10), n=Count())
    x.agent("f", x.a, n.closed, tables=[x.s])


def a_broadcast_writer_that_sends(x: Small) -> None:
    x.agent("r", x.d, tables=[x.rates], sinks=[x.a])


def a_broadcast_writer_with_a_table_of_one_partition(x: Small) -> None:
    x.agent("r", x.d, tables=[x.rates, x.s])


def a_broadcast_writer_that_reads_one_partition(x: Small) -> None:
    x.agent("f", x.a, tables=[x.s])
    x.agent("r", x.d, tables=[x.rates], reads=[x.s])


def a_broadcast_writer_of_closed_windows(x: Small) -> None:
    x.agent("f", x.a, tables=[x.s])
    x.agent("r", x.s.closed, tables=[x.rates])


def a_topic_that_is_read_both_ways(x: Small) -> None:
    x.agent("r", x.a, tables=[x.rates])
    x.agent("f", x.a, reads=[x.rates])


def changes_of_a_broadcast_table(x: Small) -> None:
    x.agent("r", x.d, tables=[x.rates])
    x.agent("f", x.rates.changes)


def declared_over_a_broadcast_table(x: Small) -> None:
    x.agent("r", x.d, tables=[x.rates])
    x.app.table("n", of=x.rates.changes, by="key", n=Count())


PROBLEMS: list[tuple[Callable[[Small], None], str]] = [
    (two_writers, "table 's' is written by 'f', 'g': one agent writes a table, others name it in reads="),
    (read_but_never_written, "table 's' is read by 'f', but no agent writes it"),
    (closed_but_never_written, "table 's' is read by 'f', but no agent writes it"),
    (declared_over_a_table_never_written, "table 's' is read by 'f', but no agent writes it"),
    (writes_a_declared_table, "agent 'f': table 'n' counts 'a' by itself; name it in reads="),
    (a_circle_of_one, "tables feed each other in a circle: 's.closed' -> 's'"),
    (a_circle_of_two, "in a circle: "),
    (a_circle_of_changes, "in a circle: "),
    (late_records_into_the_same_table, "tables feed each other in a circle: 's.late' -> 's': an event could go round"),
    (a_circle_through_a_declared_table, "in a circle: "),
    (a_broadcast_writer_that_sends, "it can have neither sinks nor anything of tables of one partition"),
    (a_broadcast_writer_with_a_table_of_one_partition, "agent 'r' writes the broadcast table 'rates'"),
    (a_broadcast_writer_that_reads_one_partition, "agent 'r' writes the broadcast table 'rates'"),
    (a_broadcast_writer_of_closed_windows, "agent 'r' writes the broadcast table 'rates'"),
    (changes_of_a_broadcast_table, "agent 'f': 'rates.changes' would come once in every task"),
    (a_topic_that_is_read_both_ways, "topic 'a': 'r' read all of it for a broadcast table, and others"),
    (declared_over_a_broadcast_table, "table 'n': 'rates.changes' would come once in every task"),
]


@pytest.mark.parametrize(("build", "problem"), PROBLEMS, ids=[build.__name__ for build, _ in PROBLEMS])
def test_what_cannot_be(build: Callable[[Small], None], problem: str) -> None:
    x = Small()
    build(x)
    with pytest.raises(ConfigError) as caught:
        x.app.plan()
    (found,) = caught.value.problems
    assert problem in found


def test_a_circle_is_told_by_the_way_that_an_event_takes() -> None:
    x = Small()
    x.agent("f", x.a, x.u.late, tables=[x.s])
    x.agent("g", x.s.closed, tables=[x.t])
    x.agent("h", x.t.changes, tables=[x.u])
    with pytest.raises(ConfigError) as caught:
        x.app.plan()
    way = str(caught.value).split("circle: ")[1].split(":")[0]
    names = way.replace("'", "").split(" -> ")
    start = names.index("s.closed")
    assert [*names[start:-1], *names[:start]] == ["s.closed", "t.changes", "u.late"]
    assert names[-1] == names[0].split(".")[0]


def test_all_problems_are_told_at_once() -> None:
    x = Small()
    x.agent("f", x.a, tables=[x.s], reads=[x.t])
    x.agent("g", x.b, tables=[x.s])

    @x.app.each(x.c)  # type: ignore[arg-type]
    def h(tx: str) -> int: ...  # type: ignore[empty-body]

    with pytest.raises(ConfigError) as caught:
        x.app.plan()
    assert list(caught.value.problems) == [
        "agent 'h': takes str, but 'c' sends Tx",
        "agent 'h': gives int, but declares no sinks=",
        "table 's' is written by 'f', 'g': one agent writes a table, others name it in reads=",
        "table 't' is read by 'f', but no agent writes it",
    ]
    assert str(caught.value).count("\n") == 3


def test_a_table_of_another_app_is_told() -> None:
    theirs: AnyTable[str, int] = App("theirs").table("x", str, int)
    x = Small()
    x.agent("f", x.a, tables=[theirs])
    with pytest.raises(ConfigError, match="agent 'f': table 'x' belongs to another app"):
        x.app.plan()
