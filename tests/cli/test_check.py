"""`flowkit check` and what it finds; silence where all is well."""

import linecache
import re

import pytest

from flowkit.cli.check_code import kept_between_events
from tests.cli.place import APP, Place, sale

CLEAN = APP.replace('seen = app.table("seen", str, int)', 'seen = app.table("seen", str, int, ttl=minutes(5))').replace(
    'unread = app.topic("unread", Sale)', ""
)

HEAD = """
import enum
from typing import Any, Literal
import flowkit
from flowkit import *
app = flowkit.App("shop")
class Sale(flowkit.Record):
    user: str
    amount: float
    at: int
sales = app.topic("sales", Sale, key="user", time="at")
undated = app.topic("undated", Sale, key="user")
out = app.sink("out", Sale)
"""


def findings(place: Place, text: str, *words: str) -> list[str]:
    """What is found in an app that is HEAD and `text`, but for what HEAD leaves unused."""
    place.app(HEAD + text)
    done = place.call("check", "app.py", *words)
    assert done.code in (0, 1), done
    return [line for line in done.out.splitlines()[:-1] if not re.search("'(sales|undated|out)': no agent", line)]


def test_a_clean_app_has_no_findings(place: Place) -> None:
    place.app(CLEAN)
    done = place.call("check", "app.py")
    assert (done.code, done.out) == (0, "shop: nothing found\n")


def test_findings_are_counted_and_make_the_exit_code(place: Place) -> None:
    place.app()
    done = place.call("check", "app.py")
    assert done.code == 1
    assert done.out.splitlines() == [
        "warning: table 'seen': keys are kept for ever: give it ttl=, such as ttl=days(30), or delete them",
        "warning: topic 'unread': no agent reads or writes it",
        "shop: 2 warnings",
    ]


AGENT = "@app.each(sales, tables=[t])\ndef a(sale: Sale) -> None:\n    t[sale.user] = 1\n"


@pytest.mark.parametrize(
    "table, grows",
    [
        ("app.table('t', str, int)", True),
        ("app.table('t', str, int, window=Global())", True),
        ("app.table('t', str, int, window=Count(3))", True),
        ("app.table('t', str, int, ttl=days(1))", False),
        ("app.table('t', str, int, window=Tumbling(5))", False),
        ("app.table('t', bool, int)", False),
        ("app.table('t', Literal['a', 'b'], int)", False),
        ("app.table('t', Literal['a'] | None, int)", False),
        ("app.table('t', enum.Enum('E', 'a b'), int)", False),
        ("app.table('t', str | None, int)", True),
        ("app.table('t', str, int, local=True)", False),
        ("app.table('t', of=sales, by='user', n=Count())", True),
    ],
)
def test_tables_that_grow_for_ever_are_found(place: Place, table: str, grows: bool) -> None:
    agent = "" if "of=" in table else AGENT
    found = [line for line in findings(place, f"t = {table}\n{agent}") if "kept for ever" in line]
    assert bool(found) is grows


def test_a_table_whose_agent_deletes_keys_does_not_grow(place: Place) -> None:
    assert findings(place, "t = app.table('t', str, int)\n" + AGENT + "    del t[sale.user]\n") == []


def test_a_ttl_without_effect_is_noted(place: Place) -> None:
    found = findings(place, "t = app.table('t', str, int, window=Tumbling(minutes(1)), ttl=hours(1))\n" + AGENT)
    assert found == ["note: table 't': ttl=1 h has no effect: the state of a window goes when it closes"]


@pytest.mark.parametrize(
    "text, found",
    [
        ("t = app.table('t', str, int, window=Tumbling(5))\n" + AGENT.replace("sales", "undated"), True),
        ("t = app.table('t', of=undated, by='user', window=Session(5), n=Count())\n", True),
        ("t = app.table('t', str, int, ttl=5)\n" + AGENT.replace("sales", "undated"), False),
        ("t = app.table('t', str, int, window=Count(3), ttl=5)\n" + AGENT.replace("sales", "undated"), False),
        (
            "t = app.table('t', str, int, window=Tumbling(5))\n" + AGENT.replace("sales", "undated")
            + "@app.each(sales, sinks=[undated])\ndef b(sale: Sale) -> Sale:\n    return sale\n",
            False,
        ),
    ],
)  # fmt: skip
def test_windows_fed_by_topics_without_time_are_found(place: Place, text: str, found: bool) -> None:
    assert any("without time=" in line for line in findings(place, text)) is found


def test_names_that_nothing_uses_are_found(place: Place) -> None:
    place.app(HEAD + "t = app.table('t', str, int, ttl=5)\n")
    shown = place.call("check", "app.py").out
    for line in (
        "warning: topic 'sales': no agent reads or writes it",
        "warning: sink 'out': no agent sends to it",
        "warning: table 't': no agent writes or reads it",
    ):
        assert line in shown


def test_a_count_that_nobody_looks_at_is_noted(place: Place) -> None:
    found = findings(place, "t = app.table('t', of=sales, by='user', window=Tumbling(5), n=Count())\n")
    assert found == ["note: table 't': counts, but no agent reads it or subscribes to t.closed"]


def test_what_plan_refuses_is_an_error(place: Place) -> None:
    found = findings(place, "t = app.table('t', str, int, ttl=5)\n@app.agent(sales)\ndef a(s):\n    t\n")
    assert [line.split(":")[0] for line in found] == ["error", "error", "warning"]


# --- variables that are no state ------------------------------------------------------------------------------------

LOCALS = {
    "a counter": ("n = 0", "n += 1", ["n"]),
    "the last one": ("last = None", "print(last); last = event", ["last"]),
    "a set": ("seen = set()", "seen.add(event)", ["seen"]),
    "a dict": ("by_user = {}", "by_user[event] = 1", ["by_user"]),
    "a nested dict": ("by_user: dict = {}", "by_user[event]['n'] += 1", ["by_user"]),
    "an item that is deleted": ("by_user = dict()", "del by_user[event]", ["by_user"]),
    "a deque": ("from collections import deque\n    q = deque()", "q.append(event)", ["q"]),
    "two at once": ("a, b = 0, []", "a, b = b, a", ["a", "b"]),
    "an attribute": ("model = Model()", "model.n = 1", ["model"]),
    "under a condition": ("n = 0", "if event:\n            n = 1", ["n"]),
    "in an inner loop": ("n = 0", "for _ in range(3):\n            n += 1", ["n"]),
    "a walrus": ("n = 0", "print(n := n + 1)", ["n"]),
    "with a batch": ("n = 0", "n += len(event)", ["n"]),
    "set anew each time": ("n = 0", "n = 1; n += 1", []),
    "local to the event": ("", "n = 0; n += 1", []),
    "only read": ("limit = 5", "print(limit)", []),
    "another thing's method": ("client = Client()", "client.add(event)", []),
    "a table under another name": ("t = TABLE", "t[event] = 1", []),
    "in a function of its own": ("def f(x):\n        n = 0\n        n += 1", "f(event)", []),
}


@pytest.mark.parametrize("before, inside, names", LOCALS.values(), ids=LOCALS)
def test_local_variables_that_outlive_an_event_are_found(
    place: Place, before: str, inside: str, names: list[str]
) -> None:
    place.write(
        "code.py",
        f"class Model: pass\nclass Client: pass\nTABLE = {{}}\n"
        f"async def agent(stream):\n    {before}\n    async for event in stream:\n        {inside}\n",
    )
    text = (place.path / "code.py").read_text()
    space: dict[str, object] = {}
    linecache.cache["code.py"] = (len(text), None, text.splitlines(keepends=True), "code.py")
    exec(compile(text, "code.py", "exec"), space)
    agent = space["agent"]
    assert callable(agent)
    assert sorted(kept.name for kept in kept_between_events(agent, per_event=False)) == names


def test_variables_are_told_with_file_and_line(place: Place) -> None:
    text = (
        "cache = {}\nlimits = {}\n@app.agent(sales)\nasync def a(stream: Stream[Sale]) -> None:\n    n = 0\n"
        "    async for batch in stream.batches(10):\n        n += len(batch)\n        cache[n] = limits[n]\n"
        "@app.each(sales)\ndef b(sale: Sale) -> None:\n    global total\n    total = sale\n"
    )
    found = findings(place, text)
    at = (HEAD.lstrip("\n") + text).splitlines().index("        n += len(batch)") + 1
    assert [line.split(" belongs")[0].split(" is set")[0] for line in found] == [
        f"warning: app.py:{at}: agent 'a': 'n'",
        f"warning: app.py:{at + 1}: agent 'a': 'cache'",
        f"warning: app.py:{at + 5}: agent 'b': 'total'",
    ]


# --- against the outside --------------------------------------------------------------------------------------------


def test_stored_state_that_no_longer_fits_is_found(place: Place) -> None:
    place.app(CLEAN)
    place.lines("in.jsonl", sale())
    assert place.call("run", "app.py", "--input", "sales=in.jsonl", "--state", "state").code == 0
    assert place.call("check", "app.py", "--state", "state").code == 0
    text = CLEAN.replace("Tumbling(minutes(1))", "Tumbling(minutes(2))")
    text = text.replace('"seen", str, int', '"seen", str, str').replace("seen[sale.user] += 1", "pass")
    place.app(text)
    done = place.call("check", "app.py", "--state", "state")
    assert done.code == 1
    assert "error: table 'totals': stored with window Tumbling(size=60000, offset=0)" in done.out
    assert "error: table 'seen': stored values have another type" in done.out
    assert done.out.splitlines()[-1] == "shop: 2 errors"


def test_a_table_that_is_gone_or_will_be_migrated_is_noted(place: Place) -> None:
    place.app(CLEAN)
    place.lines("in.jsonl", sale())
    place.call("run", "app.py", "--input", "sales=in.jsonl", "--state", "state")
    text = CLEAN.replace('"seen", str, int', '"viewed", str, int')
    place.app(text.replace("window=Tumbling(minutes(1)))", "window=Tumbling(minutes(1)), version=2)") + MIGRATION)
    done = place.call("check", "app.py", "--state", "state")
    assert done.code == 0
    assert sorted(done.out.splitlines()[:-1]) == [
        "note: table 'seen': is stored in state, but no longer declared",
        "note: table 'totals': will be migrated from version 1 to 2",
    ]


MIGRATION = """
@totals.migrate(1)
def same(old: object) -> object:
    return old
"""


def test_a_state_directory_that_is_not_the_apps_is_wrong_usage(place: Place) -> None:
    place.app(CLEAN)
    place.write("state/flowkit.json", '{"format": 1, "app": "other"}')
    done = place.call("check", "app.py", "--state", "state")
    assert done.code == 2
    assert "belongs to the app 'other'" in done.err


def test_topics_that_do_not_fit_are_found(place: Place) -> None:
    text = (
        "more = app.topic('more', Sale, key='user', time='at')\nt = app.table('t', str, int, ttl=5)\n"
        "@app.each(sales, more, tables=[t])\ndef a(sale: Sale) -> None:\n    t[sale.user] = 1\n"
    )
    broker = ("--broker", "embedded://topics")
    place.call("topics", "create", "sales", "-p", "2", *broker)
    found = findings(place, text, *broker)
    create = "flowkit topics create more --broker embedded://topics"
    assert found == [f"note: topic 'more': is not at embedded://topics yet: {create}"]
    place.call("topics", "create", "more", "-p", "3", *broker)
    found = findings(place, text, *broker)
    assert found == [
        "error: group 't': its topics need equal numbers of partitions, since they share t: sales has 2, more has 3"
    ]


# --- keys that do not fit ---------------------------------------------------------------------------------------------

BY_SHOP = """
class Sold(flowkit.Record):
    user: str
    shop: str
    at: int
sold = app.topic("sold", Sold, key="user", time="at")
t = app.table("t", str, int, window=Tumbling(minutes(1)))
"""
REFUSED = "warning: 't' is kept by 'shop', but 'sold' comes by 'user'"


@pytest.mark.parametrize(
    "text, told",
    [
        ("@app.each(sold, tables=[t])\ndef f(s: Sold) -> None:\n    t[s.shop] += 1\n", True),
        ("@app.each(sold, tables=[t])\ndef f(s: Sold) -> None:\n    t[s.user] += 1\n", False),
        ("@app.each(sold.group_by('shop'), tables=[t])\ndef f(s: Sold) -> None:\n    t[s.shop] += 1\n", False),
        ("@app.each(sold.filter(bool), tables=[t])\ndef f(s: Sold) -> None:\n    t.windows(s.shop)\n", True),
        (
            "@app.agent(sold, tables=[t])\nasync def f(st: Stream[Sold]):\n    async for s in st: t[s.shop] += 1\n",
            True,
        ),
        (
            "@app.each(sold.map(lambda s: s, type=Sold), tables=[t])\ndef f(s: Sold) -> None:\n    t[s.shop] += 1\n",
            False,
        ),
    ],
)
def test_a_table_kept_by_another_key_than_its_events_come_by(place: Place, text: str, told: bool) -> None:
    found = [line for line in findings(place, BY_SHOP + text) if "is kept by" in line]
    assert [
        line.startswith(REFUSED.replace("'sold'", "'sold.filter'") if "filter" in text else REFUSED) for line in found
    ] == [True] * told


def test_a_declared_table_by_another_key(place: Place) -> None:
    wrong = "n = app.table('n', of=sold, by='shop', n=Count(), ttl=days(1))\n"
    right = "n = app.table('n', of=sold.group_by('shop'), by='shop', n=Count(), ttl=days(1))\n"
    told = [line for line in findings(place, BY_SHOP + wrong) if "kept by" in line]
    (line,) = told
    assert line == (
        "warning: 'n' is kept by 'shop', but 'sold' comes by 'user': a worker with several partitions refuses what "
        "belongs to another task (dead letters): use .group_by('shop')"
    )
    assert [line for line in findings(place, BY_SHOP + right) if "kept by" in line] == []


def test_a_partition_that_may_hold_the_windows_behind_it(place: Place) -> None:
    held = BY_SHOP + "@app.each(sold.group_by('shop'), tables=[t])\ndef f(s: Sold) -> None:\n    t[s.shop] += 1\n"
    (line,) = [line for line in findings(place, held) if "wait for each" in line]
    assert line.startswith("note: topic 'sold': is sent on by another key ('sold.by-shop'): windows there wait")
    free = held.replace('time="at")', 'time="at", idle_after=minutes(1))')
    assert not any("wait for each" in line for line in findings(place, free))


def test_what_only_a_worker_cannot_do_is_an_error(place: Place) -> None:
    text = BY_SHOP + "@app.each(sold.map(lambda s: s).group_by(lambda s: s.shop))\ndef f(s: Any) -> None: ...\n"
    assert any("annotate the function's return type or give type=" in line for line in findings(place, text))
    done = place.call("explain", "app.py")
    assert done.code == 0
    assert "a worker cannot run it: 'sold.map.by-lambda' is sent on by another key" in done.err
