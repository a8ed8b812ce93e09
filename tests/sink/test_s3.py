"""Objects in S3 without S3: what URLs say, which object a record belongs in, when one is complete, and its bytes."""

import gzip
import io
import json
import random
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import cramjam
import msgspec
import pytest

from flowkit import ConfigError, Record
from flowkit.clock import VirtualClock
from flowkit.codec import fields_of
from flowkit.sink import Outgoing, SinkTask, destination
from flowkit.sink.s3 import S3Destination
from flowkit.sink.s3_formats import BLOCK_BYTES, LineFormat
from flowkit.sink.s3_layout import NO_VALUE, Layout
from flowkit.sink.s3_parquet import GROUP_BYTES, Parquet
from flowkit.sink.s3_sink import Rolling, S3Sink
from flowkit.sink.s3_upload import Objects
from flowkit.store import MemoryStore
from flowkit.worker.outlets import Outgoing as Sent

HOUR, DAY = 3_600_000, 86_400_000
START = 1_767_225_600_000  # 2026-01-01T00:00Z


class Order(Record):
    id: str
    amount: int
    country: str | None = None
    price: float = 0.0
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    tags: list[str] = []


FIELDS = fields_of(Order)

# URLs


WRONG = [
    ("s3://B_x/p?format=xml&colour=red", ["no name of a bucket", "format=xml: there are", "unknown option 'colour'"]),
    ("s3://bucket/p?compress=snappy", ["compress=snappy: there are gz, zst, none"]),
    ("s3://bucket/p?roll_bytes=12parsecs", ["roll_bytes=12parsecs: needs a number with a unit: B, KB"]),
    ("s3://bucket/p?roll_after=5", ["roll_after=5: needs a number with a unit: ms, s, m"]),
    ("s3://bucket/p?roll_after=5ms", ["roll_after=5ms: is less than 1000 ms"]),
    ("s3://bucket/p?part_bytes=1MB", ["part_bytes=1MB: is less than 5242880 bytes"]),
    ("s3://bucket/p?roll_bytes=100GiB", ["may be more than 10,000 parts"]),
    ("s3://bucket/dt={dt}/x={nope}", ["{nope}: there are {dt}, {year}"]),
    ("s3://bucket/dt={dt", ["a lone brace: there are {dt}"]),
    ("s3://bucket/p?name=a/b", ["name=a/b: letters, digits"]),
    ("s3://bucket/p?owner=me", ["owner=me: needs the number of an account, 12 digits"]),
    ("s3://bucket/p?sse=AES256&kms_key=k", ["a kms_key is for sse=aws:kms"]),
    ("s3://bucket/p?retries=never&format=xml", ["retries=never"]),
]


@pytest.mark.parametrize(("url", "told"), WRONG)
def test_all_that_is_wrong_with_a_url_is_told(url: str, told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        destination(url, FIELDS)
    for problem, words in zip(caught.value.problems, told, strict=True):
        assert words in problem


def test_a_url_says_how_objects_are_made() -> None:
    found = destination(
        "s3://bucket/a/dt={dt}?format=csv&compress=zst&roll_bytes=5MiB&roll_after=2h&partition_delay=90s&owner=123456789012",
        FIELDS,
        element=Order,
    )
    assert isinstance(found, S3Destination)
    found.check()
    assert (found.codec, found.rolling) == ("csv", Rolling(5 << 20, 7_200_000, 90_000))
    assert found.place.target == {"Bucket": "bucket", "ExpectedBucketOwner": "123456789012"}
    assert "exactly once" in found.guarantee


def test_columns_are_needed_where_a_format_has_such() -> None:
    for form, told in (("csv", "CSV needs columns"), ("parquet", "Parquet needs columns")):
        found = destination(f"s3://bucket/a?format={form}", None, element=dict[str, Any])
        with pytest.raises(ConfigError, match=told):
            found.check()


def test_without_pyarrow_parquet_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    found = destination("s3://bucket/a?format=parquet", FIELDS, element=Order)
    with pytest.raises(ConfigError, match=r"pip install 'flowkit\[parquet\]'"):
        found.check()


# Paths


PATHS = [
    ("a/dt={dt}/hour={hour}", START + 5 * HOUR + 1, "a/dt=2026-01-01/hour=05"),
    ("{year}/{month}/{day}/{hour}", START + 31 * DAY, "2026/02/01/00"),
    ("x/{minute}", START + 61_000, "x/01"),
    ("dt={dt}", -1, "dt=1969-12-31"),
    ("", START, ""),
    ("{app}/{group}/{partition}", START, "shop/g/0"),
]


@pytest.mark.parametrize(("template", "time", "path"), PATHS)
def test_a_path_is_made_of_the_time(template: str, time: int, path: str) -> None:
    layout = Layout(template, FIELDS, "json", "x")
    [(key, *_)] = layout.runs([time], [b"{}"])
    assert layout.path(key, {"app": "shop", "group": "g", "partition": "0"}) == path


VALUES = [
    (b'{"country":"DE"}', "DE"),
    (b'{"country":"a/b=c \xc3\xa9"}', "a%2Fb%3Dc %C3%A9"),
    (b'{"country":null}', NO_VALUE),
    (b'{"id":"x"}', NO_VALUE),
    (b'"x"', NO_VALUE),
    (b'{"country":""}', NO_VALUE),
    (b'{"country":".."}', "%2E%2E"),
    (b'{"country":12}', "12"),
    (b'{"country":true}', "true"),
]


@pytest.mark.parametrize(("value", "path"), VALUES)
def test_a_path_is_made_of_fields(value: bytes, path: str) -> None:
    layout = Layout("{country}", FIELDS, "json", "x")
    [(key, *_)] = layout.runs([START], [value])
    assert layout.path(key, {}) == path


@pytest.mark.parametrize("character", ["x", "é", "𝄞", ".", "%"])
def test_a_field_that_is_too_long_for_a_key_is_told_from_others_all_the_same(character: str) -> None:
    layout = Layout("{country}", FIELDS, "json", "x")

    def path(country: str) -> str:
        value = json.dumps({"country": country}).encode()
        return layout.path(next(layout.runs([0], [value]))[0], {})

    long, other = path(character * 100_000), path(character * 99_999)
    assert long == path(character * 100_000) != other
    assert len(long) <= 200
    unquote(long.partition("~")[0], errors="strict")
    assert path("x" * 200) == "x" * 200


def test_fields_of_csv_are_found_by_their_columns() -> None:
    layout = Layout("{country}-{amount}", FIELDS, "csv", "x")
    [(key, *_)] = layout.runs([START], [b'"a,b",7,DE,0.0,x,[]'])
    assert layout.path(key, {}) == "DE-7"


def test_partitions_end_where_their_path_has_a_day() -> None:
    ends = {}
    for template in ("dt={dt}/hour={hour}", "dt={dt}", "{hour}", "x", "{country}/{year}-{month}-{day}"):
        layout = Layout(template, FIELDS, "json", "x")
        [(key, *_)] = layout.runs([START + 1], [b"{}"])
        ends[template] = layout.end(key)
    assert list(ends.values()) == [START + HOUR, START + DAY, None, None, START + DAY]


# When an object is complete


def order(n: int, time: int, **fields: Any) -> Outgoing:
    return Sent(None, b'{"id":"%d","amount":%d,"country":"%s"}' % (n, n, fields.get("country", "DE").encode()), time)


class Desk:
    """A sink of which hand-offs are kept: what was written where."""

    def __init__(self, layout: str = "dt={dt}/hour={hour}", *, bounded: bool = True, **rolling: int) -> None:
        self.clock = VirtualClock(START)
        self.layout, self.bounded = Layout(layout, FIELDS, "json", "x"), bounded
        self.rolling = Rolling(rolling.get("bytes", 1 << 20), rolling.get("after", 60_000), rolling.get("delay", 0))
        self.store = MemoryStore()
        self.objects: dict[str, bytes] = {}

    async def sink(self) -> S3Sink:
        place = SinkTask("shop", "g", 0, 1, self.clock, self.bounded)
        form = LineFormat("jsonl", "none", None)
        nobody: Any = None
        objects = Objects(nobody, nobody, 5 << 20, 1)
        sink = S3Sink(place, objects, self.layout, form, self.rolling, "id")
        sink.attach(self.store, "sink out")
        await sink.open(None)
        return sink

    async def commit(self, sink: S3Sink, records: Sequence[Outgoing], *, final: bool = False) -> list[str]:
        """Cut and apply; the names of the objects that are handed over."""
        handoff = sink.stage(records, final)
        drops, changes = sink.drops(), sink.changes()
        puts = {(c.table, c.end): dict(zip(c.keys, c.values, strict=True)) for c in changes}
        await self.store.commit(puts, drops)
        for number, key, chunks in handoff or ():
            lines = [data async for data in sink._bytes(number, chunks, sink._format.begin())]
            self.objects[key] = b"".join(lines)
        return [key for _, key, _ in handoff or ()]


async def test_small_commits_make_no_small_objects() -> None:
    desk = Desk()
    sink = await desk.sink()
    for n in range(50):
        assert await desk.commit(sink, [order(n, START + n)]) == []
    assert await desk.commit(sink, [], final=True) == ["dt=2026-01-01/hour=00/shop-g-0-id-00000000.jsonl"]
    assert [data.count(b"\n") for data in desk.objects.values()] == [50]


async def test_a_live_task_keeps_what_is_open_at_a_stop_and_hands_it_over_at_its_end() -> None:
    desk = Desk(bounded=False)
    sink = await desk.sink()
    assert await desk.commit(sink, [order(1, START)], final=True) == []
    sink.end()
    assert await desk.commit(sink, [], final=True) == ["dt=2026-01-01/hour=00/shop-g-0-id-00000000.jsonl"]
    assert await desk.commit(sink, [], final=True) == []
    assert [data.count(b"\n") for data in desk.objects.values()] == [1]


async def test_lines_are_dropped_with_the_commit_after_they_were_handed_over() -> None:
    desk = Desk(bytes=100)
    sink = await desk.sink()
    await desk.commit(sink, [order(n, START) for n in range(5)])
    assert desk.store.ends("sink out")
    await desk.commit(sink, [], final=True)
    await desk.commit(sink, [])
    assert desk.store.ends("sink out") == []


@pytest.mark.parametrize("template", ["dt={dt}/hour={hour}", "{country}/dt={dt}/hour={hour}", "x"])
async def test_where_commits_fall_does_not_show_in_the_objects_of_a_bounded_run(template: str) -> None:
    chance = random.Random(5)
    records = []
    for n in range(3_000):
        late = chance.choice([0] * 9 + [2 * HOUR])
        records.append(order(n, START + n * 10_000 - late, country=chance.choice(["DE", "FR"])))
    seen = []
    for step in (1, 7, 500, 3_000):
        desk = Desk(template, bytes=5_000, delay=60_000)
        sink = await desk.sink()
        for at in range(0, len(records), step):
            await desk.commit(sink, records[at : at + step])
        await desk.commit(sink, [], final=True)
        seen.append(desk.objects)
    assert all(objects == seen[0] for objects in seen)
    lines = b"".join(seen[0].values()).splitlines()
    assert sorted(lines) == sorted(record.value or b"" for record in records)
    assert len(seen[0]) > 20


async def test_an_object_is_rolled_when_it_is_large_enough() -> None:
    desk = Desk(bytes=1_000)
    sink = await desk.sink()
    await desk.commit(sink, [order(n, START) for n in range(100)], final=True)
    sizes = [len(data) for data in desk.objects.values()]
    assert all(1_000 <= size < 1_050 for size in sizes[:-1])
    assert sizes[-1] < 1_050


async def test_a_partition_that_is_over_is_rolled_once_late_records_have_had_their_time() -> None:
    desk = Desk(delay=60_000)
    sink = await desk.sink()
    assert await desk.commit(sink, [order(0, START), order(1, START + HOUR + 59_999)]) == []
    names = await desk.commit(sink, [order(2, START + HOUR + 60_000)])
    assert names == ["dt=2026-01-01/hour=00/shop-g-0-id-00000000.jsonl"]


@pytest.mark.parametrize("bounded", [True, False])
async def test_late_records_gather_in_one_object(bounded: bool) -> None:
    desk = Desk(bounded=bounded, after=60_000)
    sink = await desk.sink()
    sink.look(START + 2 * HOUR)
    names = []
    for n in range(50):
        names += await desk.commit(sink, [order(n, START + 2 * HOUR + n), order(n, START + n)])
    assert names == []
    desk.clock.advance(60_000)
    assert len(await desk.commit(sink, [], final=True)) == 2
    assert sorted(data.count(b"\n") for data in desk.objects.values()) == [50, 50]


async def test_a_live_task_rolls_by_its_clock_though_nothing_comes() -> None:
    desk = Desk(bounded=False, after=60_000)
    sink = await desk.sink()
    assert await desk.commit(sink, [order(0, START)]) == []
    desk.clock.advance(59_999)
    assert not sink.look(START)
    desk.clock.advance(1)
    assert sink.look(START)
    assert len(await desk.commit(sink, [])) == 1
    assert not sink.look(START)


async def test_a_live_task_rolls_by_the_watermark() -> None:
    desk = Desk(bounded=False, delay=1_000)
    sink = await desk.sink()
    assert await desk.commit(sink, [order(0, START)]) == []
    assert not sink.look(START + HOUR + 998)
    assert sink.look(START + HOUR + 999)
    assert len(await desk.commit(sink, [])) == 1


async def test_at_a_clean_stop_a_live_task_keeps_what_is_not_complete() -> None:
    desk = Desk(bounded=False)
    sink = await desk.sink()
    assert await desk.commit(sink, [order(0, START)], final=True) == []
    assert [row[0] for row in sink.state()["open"]] == ["dt=2026-01-01/hour=00"]


async def test_who_goes_on_from_a_savepoint_writes_under_other_names() -> None:
    desk = Desk()
    sink = await desk.sink()
    sink._named = ""
    assert sink.forked(sink.state())["id"] != sink.state()["id"]


async def test_of_too_many_open_objects_the_oldest_is_rolled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowkit.sink.s3_sink.MOST_OPEN", 3)
    desk = Desk("{country}")
    sink = await desk.sink()
    names = await desk.commit(sink, [order(n, START, country=f"c{n}") for n in range(5)])
    assert [name.partition("/")[0] for name in names] == ["c0", "c1"]


async def test_tombstones_are_left_out() -> None:
    desk = Desk()
    sink = await desk.sink()
    await desk.commit(sink, [Sent(b"k", None, START), order(1, START)], final=True)
    assert [data.count(b"\n") for data in desk.objects.values()] == [1]


# Bytes


def lines(count: int) -> bytes:
    chance = random.Random(3)
    return b"".join(b'{"id":"%d","amount":%d}\n' % (chance.randrange(10**9), n) for n in range(count))


@pytest.mark.parametrize("compression", ["gz", "zst", "none"])
def test_the_bytes_do_not_hang_on_the_pieces(compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowkit.sink.s3_formats.FLUSH_BLOCKS", 2)
    data = lines(BLOCK_BYTES * 6 // 32)
    made = set()
    for step in (100_003, 1 << 20, len(data)):
        encoder = LineFormat("jsonl", compression, None).begin()
        made.add(
            b"".join([*(encoder.feed(data[at : at + step]) for at in range(0, len(data), step)), encoder.finish()])
        )
    [found] = made
    plain = {
        "gz": lambda: gzip.decompress(found),
        "zst": lambda: bytes(cramjam.zstd.decompress(found)),
        "none": lambda: found,
    }[compression]()
    assert plain == data
    if compression == "gz":
        assert found[4:8] == b"\0\0\0\0"  # no time (RFC 1952)
        member = zlib.decompressobj(16 + zlib.MAX_WBITS)
        member.decompress(found)
        assert member.eof
        assert not member.unused_data


def test_csv_begins_with_its_header() -> None:
    encoder = LineFormat("csv", "none", ["id", "a,b"]).begin()
    assert encoder.feed(b"1,2\n") + encoder.finish() == b'id,"a,b"\n1,2\n'
    assert LineFormat("csv", "none", ["id"]).begin().finish() == b"id\n"


def test_parquet_has_the_types_of_the_record_and_row_groups() -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [b'{"id":"%d","amount":%d,"at":"2026-01-01T00:00:%02dZ","tags":["x"]}\n' % (n, n, n % 60) for n in range(9)]
    big = b'{"id":"%s","amount":7,"country":"DE"}\n' % (b"x" * GROUP_BYTES)
    encoder = Parquet("zst", Order).begin()
    data = encoder.feed(b"".join(rows)) + encoder.feed(big) + encoder.feed(rows[0]) + encoder.finish()
    file = pq.ParquetFile(io.BytesIO(data))
    assert file.num_row_groups == 2
    table = file.read()
    assert {field.name: str(field.type) for field in table.schema} == {
        "id": "string",
        "amount": "int64",
        "country": "string",
        "price": "double",
        "at": "timestamp[us, tz=UTC]",
        "tags": "list<element: string>",
    }
    assert [field.name for field in table.schema if field.nullable] == ["country"]
    assert table["amount"].to_pylist() == [*range(9), 7, 0]
    assert table["at"].to_pylist()[3] == datetime(2026, 1, 1, 0, 0, 3, tzinfo=UTC)
    assert table["country"].to_pylist()[8:10] == [None, "DE"]


class Score(Record):
    of: str
    value: float
    also: float | None = None


class Odd(Record):
    id: int
    mean: float
    parts: list[float]
    by: dict[str, float | None]
    score: Score | None = None


def test_parquet_has_nan_where_json_has_none_and_refuses_what_fits_no_column() -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    nan, never = float("nan"), Score("y", float("inf"), float("nan"))
    rows = [Odd(1, 0.5, [1.0], {}), Odd(2**63, 0.5, [], {}), Odd(3, nan, [nan, 2], {"a": nan, "b": 1}, never)]
    encoder = Parquet("none", Odd).begin()
    lines = [msgspec.json.encode(row) + b"\n" for row in rows] + [b'{"id":"x","mean":null,"parts":[],"by":{}}\n']
    data = encoder.feed(b"".join(lines)) + encoder.finish()
    assert [(json.loads(line)["id"], why) for line, why in encoder.refused] == [
        (2**63, "Python int too large to convert to C long"),
        ("x", "Expected `int`, got `str` - at `$.id`"),
    ]
    found = pq.read_table(io.BytesIO(data)).to_pylist()
    assert str(found[1]) == str(
        {
            "id": 3,
            "mean": nan,
            "parts": [nan, 2.0],
            "by": [("a", None), ("b", 1.0)],
            "score": {"of": "y", "value": nan, "also": None},
        }
    )
    assert (len(found), found[0]["mean"]) == (2, 0.5)


async def test_what_fits_no_column_is_rejected_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    desk = Desk()
    sink = await desk.sink()
    sink._format = Parquet("none", Odd)
    rows = [Odd(2**63 * n, 0.5, [], {}) for n in (0, 1)]
    handoff = sink.stage([Sent(b"k", msgspec.json.encode(row), START) for row in rows], True)
    puts = {(c.table, c.end): dict(zip(c.keys, c.values, strict=True)) for c in sink.changes()}
    await desk.store.commit(puts, sink.drops())

    async def write(key: str, kind: str, begin: Any) -> None:
        for _ in range(2):  # tried again
            assert [piece async for piece in begin()]

    monkeypatch.setattr(sink._objects, "write", write)
    (found,) = await sink.deliver(handoff)
    assert (found.value, found.error) == (msgspec.json.encode(rows[1]), "Unfit")


def test_parquet_refuses_what_has_no_column_type() -> None:
    class Odd(Record):
        one: int | str
        two: Any

    found = destination("s3://bucket/a?format=parquet", fields_of(Odd), element=Odd)
    with pytest.raises(ConfigError) as caught:
        found.check()
    assert [("'one'" in p, "'two'" in p) for p in caught.value.problems] == [(True, False), (False, True)]
