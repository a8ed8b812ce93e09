"""Objects in S3 as an input, without S3: which come after which, and JSON values without lines between them."""

import io
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from flowkit.errors import InputError
from flowkit.source.json_stream import JsonLines
from flowkit.source.s3 import S3Topic
from flowkit.source.s3_listing import Entry, arranged, check_same, is_data, period_of

DAY, HOUR, MINUTE = 86_400_000, 3_600_000, 60_000
START = 1_767_225_600_000  # 2026-01-01T00:00Z

# Times in keys


PERIODS = [
    ("a/dt=2026-01-01/x.jsonl", (START, DAY)),
    ("a/dt=20260101/hour=05/x.jsonl", (START + 5 * HOUR, HOUR)),
    ("a/date=2026-01-01/hour=5/minute=7/x", (START + 5 * HOUR + 7 * MINUTE, MINUTE)),
    ("year=2026/month=1/day=1/hour=23/country=DE/x", (START + 23 * HOUR, HOUR)),
    ("orders/2026/01/01/05/orders-1-2026-01-01-05-07-uuid", (START + 5 * HOUR, HOUR)),
    ("orders/2026/01/01/x", (START, DAY)),
    ("orders/part-2026.jsonl", None),
    ("orders/dt=2026-13-01/x", None),
    ("orders/2026/77/01/05/x", None),
    ("hour=05/x", None),
]


@pytest.mark.parametrize(("key", "period"), PERIODS)
def test_a_key_tells_the_time_of_its_records(key: str, period: tuple[int, int] | None) -> None:
    assert period_of(key) == period


def test_markers_and_folders_are_no_data() -> None:
    assert [is_data(key) for key in ("a/x", "a/", "a/_SUCCESS", "a/.part", "_a/x", "x")] == [
        *(True, False, False, False, True, True)
    ]


def test_a_prefix_that_ends_in_a_slash_is_a_folder() -> None:
    for word, prefix in (("orders/", "orders/"), ("orders", "orders"), ("a%20b/c/", "a b/c/"), ("", ""), ("/", "")):
        topic = S3Topic(f"s3://bucket/{word}")
        assert topic.place.prefix == prefix
        assert topic.rights()[0].resource.endswith(f":::bucket/{prefix}*")


# Order and lanes


def entries(*keys: str) -> list[Entry]:
    return [Entry(key, 1, f'"{key}"', 1_000) for key in keys]


def keys(found: Any) -> list[list[str]]:
    return [[entry.key for entry in lane] for lane in found.lanes]


def test_objects_are_in_order_of_the_time_in_their_keys_then_of_their_names() -> None:
    found = entries("c=DE/dt=2026-01-02/1", "c=DE/dt=2026-01-01/10", "c=FR/dt=2026-01-01/9", "c=DE/dt=2026-01-01/9")
    by_time = arranged(found, by_time=True, lanes=1)
    assert keys(by_time) == [
        ["c=DE/dt=2026-01-01/9", "c=DE/dt=2026-01-01/10", "c=FR/dt=2026-01-01/9", "c=DE/dt=2026-01-02/1"]
    ]
    assert keys(arranged(found, by_time=False, lanes=1))[0][-1] == "c=FR/dt=2026-01-01/9"


def test_there_are_as_many_lanes_as_objects_of_one_time() -> None:
    names = [f"dt=2026-01-0{day}/w{writer}" for day in (1, 2, 3) for writer in range(4 if day == 2 else 2)]
    found = arranged(entries(*names), by_time=True, lanes=None)
    assert len(found.lanes) == 4
    assert sorted(key for lane in keys(found) for key in lane) == names
    assert keys(found)[1] == [names[1], names[5]]
    assert len(arranged(entries(*map(str, range(100))), by_time=True, lanes=None).lanes) == 16
    assert len(arranged(entries("a", "b"), by_time=True, lanes=9).lanes) == 2


def test_only_what_may_hold_a_part_of_the_range_is_read() -> None:
    found = entries("dt=2026-01-01/a", "dt=2026-01-02/b", "dt=2026-01-03/c", "d")
    since, until = START + DAY + HOUR, START + 2 * DAY
    [lane] = keys(arranged(found, by_time=True, lanes=1, since=since, until=until))
    assert lane == ["d", "dt=2026-01-02/b"]


def test_what_has_changed_since_is_told() -> None:
    before = arranged(entries("a", "b", "c"), by_time=True, lanes=1)
    check_same(before, before.stamp, "s3://bucket/p", [])
    other = [*entries("a", "b"), Entry("c", 1, '"new"', 1_000)]
    with pytest.raises(
        InputError, match=r's3://bucket/c: has changed since the run began: its ETag was "c", and is "new"'
    ):
        check_same(arranged(other, by_time=True, lanes=1), before.stamp, "s3://bucket/p", [("c", '"c"')])
    with pytest.raises(InputError, match=r"3 objects then, 2 now"):
        check_same(arranged(entries("a", "b"), by_time=True, lanes=1), before.stamp, "s3://bucket/p", [("a", '"a"')])


# JSON values one after another


class Piecewise:
    """Bytes that come in pieces of any size."""

    size: int | None = None
    taken = 0

    def __init__(self, data: bytes, piece: Callable[[], int]) -> None:
        self._data, self._piece = io.BytesIO(data), piece

    def read(self, limit: int) -> bytes:
        return self._data.read(min(limit, self._piece()))

    def ended(self) -> bool:
        return False

    def close(self) -> None: ...


def lines(data: bytes, piece: Callable[[], int]) -> bytes:
    found, stream = [], JsonLines(Piecewise(data, piece))
    while part := stream.read(1_000):
        found.append(part)
    return b"".join(found)


def test_values_become_lines_wherever_the_pieces_end() -> None:
    chance = random.Random(1)
    for _ in range(300):
        values, text = [], ""
        for _ in range(chance.randrange(12)):
            value = {
                "a": chance.choice(['x"y', "}{", "\\", "[", 'é"\\"', "{"]),
                "n": [1, {"q": chance.random()}],
                "t": "\n",
            }
            values.append(value)
            text += json.dumps(value, indent=chance.choice([None, None, 2])) + chance.choice(["", "\n", "\r\n", " "])
        ways = (lambda: 1, lambda: 7, lambda: 10**6, lambda: chance.randrange(1, 50))
        [found] = {lines(text.encode(), way) for way in ways}
        assert [json.loads(line) for line in found.split(b"\n") if line.strip()] == values


def test_what_is_no_json_is_left_to_the_codec() -> None:
    assert lines(b'1\n"a"\n}{"a":1}[2]\nx', lambda: 3) == b'1\n"a"\n}{"a":1}\n[2]\nx'
    assert lines(b'{"a":1}{"never', lambda: 5) == b'{"a":1}\n{"never'
