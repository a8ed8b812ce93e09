"""`flowkit explain`: the flow in words and as a diagram."""

import json
import re

import pytest

import flowkit
from tests.cli.place import APP, Place

EVERYTHING = """
import flowkit
from flowkit import *
app = flowkit.App("shop")
class Sale(flowkit.Record):
    user: str
    amount: float
    at: int
def bucket(sale: Sale) -> int:
    return int(sale.amount) // 100
sales = app.topic("sales", Sale, key="user", time="at", out_of_order=seconds(90), idle_after=minutes(2))
rates = app.topic("rates", Sale, key=lambda rate: rate.user)
copies = app.topic("copies", Sale)
lates = app.sink("lates", Sale)
rate = app.table("rate", str, float, broadcast=True)
hops = app.table("hops", of=sales, by="user", window=Sliding(minutes(10), every=minutes(1)), n=Count(),
                 worth=Sum("amount"), most=TopK(bucket, k=3),
                 allowed_lateness=minutes(5), early=seconds(30))
last = app.table("last", str, float, ttl=days(1))

@app.each(rates, tables=[rate])
def learn(r: Sale) -> None:
    rate[r.user] = r.amount

@app.each(sales, tables=[last], reads=[rate], sinks=[copies], retry=flowkit.Retry(attempts=3))
def copy(sale: Sale) -> Sale:
    return sale

@app.each(hops.late, sinks=[lates])
def late(sale: Sale) -> Sale:
    return sale

@app.each(copies)
def again(sale: Sale) -> None: ...

@app.each(app.dead_letters)
def bad(letter: DeadLetter) -> None: ...
"""


def test_the_flow_is_told_from_source_to_sink(place: Place) -> None:
    place.app()
    done = place.call("explain", "app.py")
    assert done.code == 0
    assert done.out == EXPECTED


EXPECTED = """\
app shop: exactly once

group seen: one task for each partition of sales
  topic sales: Sale, keyed by user, time at, up to 5 s out of order
    -> agent add: keeps totals, seen, sends to big
  table totals: keyed by str, values Total, windows tumbling 1 min, gone when its window closes
    closed windows
      -> agent report: sends to reports
  table seen: keyed by str, values int, kept for ever

outputs
  topic big: Big, keyed by user
    exactly once on kafka:// (frame and outputs are one transaction, for readers of what is committed), on \
embedded:// (outputs, positions and state are one transaction, while its disk lives) and in files \
with --state; on standard output at least once; on kinesis:// at least once (delivered once the commit counts)
  sink reports: Report
    exactly once in a file (while its disk lives); on standard output at least once; in a service \
as --bind NAME=URL tells
  dead-letters: what cannot be used or makes an agent fail
    exactly once with the commit of what went well: the topic dead-letters of the broker, or a file dead-letters.jsonl
"""


def test_everything_that_can_be_declared_is_told(place: Place) -> None:
    place.app(EVERYTHING)
    shown = place.call("explain", "app.py").out
    for part in (
        "up to 1 min 30 s out of order, a split silent for 2 min does not hold the watermark",
        "topic rates: Sale, keyed by lambda at app.py:11, time of the transport, in order of time; every task",
        "-> agent learn: keeps rate",
        "-> agent copy: keeps last, reads rate, sends to copies, tries 3 times",
        "-> table hops",
        'table hops: counts sales by user: n=Count(), worth=Sum("amount"), most=TopK(bucket, k=3), windows sliding',
        "windows sliding 10 min every 1 min, late records count for 5 min more, early results each 30 s of event time",
        "late records, whose windows are all closed\n      -> agent late: sends to lates",
        "table rate: keyed by str, values float, kept for ever, all of it in every task",
        "table last: keyed by str, values float, forgotten 1 d after its last use",
        "-> agent again",
        "dead letters of this app\n    -> agent bad",
    ):
        assert part in shown, (part, shown)


def test_the_guarantee_of_a_bound_output_is_told_exactly(place: Place) -> None:
    place.app()
    shown = place.call(
        "explain", "app.py", "--bind", "big=-", "--bind", "reports=r.csv", "--bind", "dead-letters=-"
    ).out
    assert shown.count("at least once: after a crash the records of the last commit may be printed again") == 2
    assert "sink reports: Report\n    exactly once: the file equals that of an unbroken run" in shown
    wrong = place.call("explain", "app.py", "--bind", "bgi=-", "--bind", "sales=-")
    assert wrong.code == 2
    assert "--bind bgi: no agent writes 'bgi'" in wrong.err
    assert "--bind sales: no agent writes 'sales'" in wrong.err


def test_the_flow_is_drawn(place: Place) -> None:
    for text in (APP, EVERYTHING):
        place.app(text)
        lines = place.call("explain", "app.py", "--mermaid").out.splitlines()
        assert lines[0] == "flowchart LR"
        node = r"[a-z]\d+"
        kinds = (
            rf'  {node}(\[\("[\w-]+"\)\]|\[\["[\w-]+"\]\])',  # topics, sinks
            rf'  subgraph {node}\["[^"]+"\]',
            rf'    {node}(\[/"[^"]+"/\]|\("[^"]+"\))',  # tables, agents
            "  end",
            rf"  {node} (-->|<-->|-- \w+ -->|-\. reads \.->) {node}",
        )
        for line in lines[1:]:
            assert any(re.fullmatch(kind, line) for kind in kinds), line
        declared = {match[1] for line in lines if (match := re.match(rf"\s+({node})[\[(]", line))}
        used = {name for line in lines for name in re.findall(rf"^  ({node}) .*> ({node})$", line) for name in name}
        assert used <= declared


def test_what_is_wrong_with_an_app_is_told(place: Place) -> None:
    place.app(APP.replace("sinks=[big]", "sinks=[]"))
    done = place.call("explain", "app.py")
    assert done.code == 2
    assert "app.py:32: agent 'add': yields, but declares no sinks=" in done.err


OPERATORS = """
import flowkit
from flowkit import *
from flowkit.pattern import Pattern
app = flowkit.App("shop")
class Sale(flowkit.Record):
    user: str
    amount: float
    at: int
def large(sale: Sale) -> bool:
    return sale.amount > 100
sales = app.topic("sales", Sale, key="user", time="at")
payments = app.topic("payments", Sale, key="user", time="at")
alerts = app.topic("alerts", Sale)
big = sales.filter(large, name="large-sales")
paid = big.join(payments, on="user", within=(0, minutes(5)), how="left", name="paid")
latest = sales.join_as_of(payments, on="user", name="latest")
near = sales.join(payments, on="user", within=(seconds(-10), seconds(90)), name="near")
fresh = sales.join_as_of(payments, on="user", tolerance=seconds(10), name="fresh")
known = sales.join_as_of(payments, on="user", keep_for=days(30), name="known")
twice = sales.match(Pattern.begin("first", large).next("second", large).within(hours(1)), name="twice")
per_user = sales.map(lambda sale: sale, type=Sale).group_by("user").window(Tumbling(hours(1))).aggregate(n=Count())

@app.each(paid.filter(lambda pair: pair.right is None), sinks=[alerts])
def unpaid(pair: object) -> Sale | None: ...

@app.each(near, fresh, known)
def all_taken(pair: object) -> None: ...

@app.each(twice.timed_out, twice.late)
def lonely(event: object) -> None: ...

@app.each(per_user.closed)
def counted(window: Closed[str, object]) -> None: ...
"""


def test_operators_are_told_where_they_stand(place: Place) -> None:
    place.app(OPERATORS)
    shown = place.call("explain", "app.py").out
    for part in (
        "topic sales: Sale, keyed by user, time at, in order of time\n    -> filter(large) -> table paid",
        "table paid: left join: each large-sales with the payments up to 5 min after it,",
        "table near: inner join: each sales with the payments from 10 s before it to 1 min 30 s after it,",
        "table twice: finds first, next second, within 1 h, keyed by",
        "table fresh: each sales with the latest payments up to its time, at most 10 s before it, keyed by",
        "table known: each sales with the latest payments up to its time, forgotten 30 d after its last change, keyed",
        "what it sends\n      -> filter(lambda at app.py:23) -> agent unpaid: sends to alerts",
        "partial matches whose time ran out\n      -> agent lonely",
        "what came when its time had passed\n      -> agent lonely",
        "the newest payments of each key stays for ever: give tolerance= or keep_for=",
        "-> map(lambda at app.py:21) -> re-keyed by user through topic shop.sales.map.by-user, exactly once",
        "topic shop.sales.map.by-user: Sale, internal: sales.map.by-user, re-keyed by user, exactly once",
        "\n    -> table sales.map.by-user.windows",
    ):
        assert part in shown, (part, shown)
    diagram = place.call("explain", "app.py", "--mermaid").out
    assert re.search(r"\w+ -- filter\(large\) --> \w+", diagram), diagram


def test_check_tells_operators_that_keep_for_ever_and_streams_that_nobody_takes(place: Place) -> None:
    place.app(OPERATORS)
    done = place.call("check", "app.py")
    assert "warning: 'latest' (each sales with the latest payments up to its time) may keep more and more" in done.out
    assert "note: 'latest'" in done.out
    assert "'paid'" not in done.out
    place.app(OPERATORS + "\nunused = sales.filter(large, name='unused')\n")
    assert "warning: stream 'unused': nothing takes what it makes" in place.call("check", "app.py").out


def test_an_app_that_is_content_with_at_least_once_is_told_so(place: Place) -> None:
    place.app("""
import flowkit
app = flowkit.App("loose", guarantee="at least once")
class E(flowkit.Record):
    k: str
there = app.topic("there", E, key="k")
here = app.topic("here", E, key="k")
@app.each(there, sinks=[here])
def pass_on(e: E) -> E:
    return e
""")
    told = place.call("explain", "app.py").out
    assert "  topic here: E, keyed by k\n    at least once on kafka:// (sent before the frame" in told
    assert "at least once with the commit of what went well" in told


def test_an_unknown_guarantee_is_refused() -> None:
    with pytest.raises(flowkit.ConfigError, match="guarantee='twice', but there are exactly once and at least once"):
        flowkit.App("x", guarantee="twice")  # type: ignore[arg-type]


BEGINNING = """
import flowkit
from datetime import UTC, datetime
app = flowkit.App("shop", guarantee="at least once")
class Sale(flowkit.Record):
    user: str
news = app.topic("news", Sale, start="latest", out_of_range="earliest")
since = app.topic("since", Sale, start=datetime(2024, 1, 1, tzinfo=UTC), out_of_range="latest")
there = app.topic("there", Sale, key="user", start={0: 7, 2: 9})
orders = app.topic("orders", Sale, pattern=r"orders\\.(eu|us)")
copies = app.topic("copies", Sale)

@app.each(news, since, there, sinks=[copies])
def look(sale: Sale) -> Sale:
    return sale

@app.each(orders)
def buy(sale: Sale) -> None: ...
"""


def test_where_topics_begin_and_what_if_they_cannot_go_on_is_told(place: Place) -> None:
    place.app(BEGINNING)
    lines = place.call("explain", "app.py").out.splitlines()
    assert lines[0] == "app shop: at least once"
    in_order = "time of the transport, in order of time"
    gone, r = "if its position is gone", "(others at the earliest)"
    for line in (
        f"  topic news: Sale, {in_order}, begins at the latest record, goes on at the earliest record {gone}",
        f"  topic since: Sale, {in_order}, begins at 2024-01-01T00:00:00Z, goes on at the latest record {gone}",
        f"  topic there: Sale, keyed by user, {in_order}, begins at offset 7 of partition 0 and 9 of partition 2 {r}",
        f"  topic orders: all topics that match orders\\.(eu|us), also those that come later, Sale, {in_order}",
        "group buy: one task for each partition of orders (all that match have equal numbers of them)",
    ):
        assert line in lines, (line, lines)


def test_the_flow_is_told_to_programs(place: Place) -> None:
    place.app(BEGINNING)
    told = json.loads(place.call("explain", "app.py", "--json").out)
    assert (told["app"], told["guarantee"]) == ("shop", "at least once")
    topics = {topic["name"]: topic for group in told["groups"] for topic in group["topics"]}
    assert {name: (topic["start"], topic["out_of_range"]) for name, topic in topics.items()} == {
        "news": ("latest", "earliest"),
        "since": (1_704_067_200_000, "latest"),
        "there": ({"0": 7, "2": 9}, "fail"),
        "orders": ("earliest", "fail"),
    }
    assert topics["orders"]["pattern"] == r"orders\.(eu|us)"
    outputs = {output["name"]: output["guarantee"] for output in told["outputs"]}
    assert set(outputs) == {"copies", "dead-letters"}
    assert outputs["copies"].startswith("at least once on kafka://")
    agents = {agent["name"]: agent for group in told["groups"] for agent in group["agents"]}
    assert (agents["look"]["reads"], agents["look"]["sends"]) == (["news", "since", "there"], ["copies"])


def test_all_that_can_be_declared_is_told_to_programs(place: Place) -> None:
    place.app(EVERYTHING)
    told = json.loads(place.call("explain", "app.py", "--json").out)
    tables = {table["name"]: table for group in told["groups"] for table in group["tables"]}
    assert tables["hops"]["window"] == "sliding 10 min every 1 min"
    assert tables["rate"]["broadcast"]
    topics = {topic["name"]: topic for group in told["groups"] for topic in group["topics"]}
    assert (topics["rates"]["broadcast"], topics["rates"]["key"]) == (True, "lambda at app.py:11")
    assert (topics["sales"]["out_of_order"], topics["sales"]["idle_after"]) == (90_000, 120_000)
