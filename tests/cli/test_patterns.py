"""Topics by pattern, as commands show and take them."""

import json

from tests.cli.place import Place

APP = r"""
import flowkit
from flowkit import Tumbling, minutes, seconds
app = flowkit.App("shop")
class Order(flowkit.Record):
    user: str
    at: int
orders = app.topic("orders", Order, key="user", time="at", pattern=r"orders\.\w+", out_of_order=seconds(3))
copies = app.topic("copies", Order)
counts = app.table("counts", str, int, window=Tumbling(minutes(1)))

@app.each(orders, tables=[counts], sinks=[copies])
def count(order: Order) -> Order:
    counts[order.user] += 1
    return order
"""
BROKER = ("--broker", "embedded://topics")


def test_a_run_takes_files_for_a_pattern(place: Place) -> None:
    place.app(APP)
    place.lines("eu.jsonl", {"user": "ann", "at": 1}, {"user": "ann", "at": 3}, b"{\n")
    place.lines("us.jsonl", {"user": "bob", "at": 2})
    inputs = ("--input", "orders=eu.jsonl", "--input", "orders=us.jsonl")
    done = place.call("run", "app.py", *inputs, "--output", "copies=copies.jsonl", "--state", "state")
    assert done.code == 0, done.err
    assert [row["at"] for row in place.read("copies.jsonl")] == [1, 2, 3]
    (letter,) = place.read("state/dead-letters.jsonl")
    assert (letter["topic"], letter["position"]) == ("orders", "eu.jsonl:3")
    told = json.loads(place.call("why", "app.py", "--window", "counts", "--state", "state", "--json").out)
    assert {split["out_of_order"] for task in told["tasks"] for split in task["splits"]} == {3_000}


def test_a_cluster_without_a_topic_is_for_patterns_only(place: Place) -> None:
    place.app(APP.replace(r', pattern=r"orders\.\w+"', ""))
    done = place.call("run", "app.py", "--input", "orders=kafka://127.0.0.1:1")
    assert done.code == 2
    assert "kafka://127.0.0.1:1: names no topic: use kafka://HOST:PORT/TOPIC" in done.err


def test_check_tells_what_matches_and_what_does_not_fit(place: Place) -> None:
    place.app(APP)
    place.call("topics", "create", "copies", *BROKER)
    found = place.call("check", "app.py", *BROKER)
    assert "topic 'orders': nothing at embedded://topics matches it yet: a worker waits" in found.out + found.err
    assert "topic 'orders': is not at" not in found.out + found.err
    place.call("topics", "create", "orders.eu", "-p", "2", *BROKER)
    assert "matches it yet" not in place.call("check", "app.py", *BROKER).out
    place.call("topics", "create", "orders.us", "-p", "3", *BROKER)
    found = place.call("check", "app.py", *BROKER)
    assert "its topics need equal numbers of partitions" in found.out + found.err
    assert "orders.eu has 2, orders.us has 3" in found.out + found.err
    done = place.call("worker", "app.py", *BROKER, "--state", "state")
    assert done.code == 2
    assert "orders.eu has 2, orders.us has 3: make them with as many, or let the pattern leave some out" in done.err


def test_a_pattern_cannot_be_bound_as_an_output(place: Place) -> None:
    place.app(APP)
    done = place.call("worker", "app.py", *BROKER, "--state", "state", "--bind", "orders=orders.jsonl")
    assert done.code == 2
    assert "no agent writes 'orders'" in done.err
