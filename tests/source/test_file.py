"""Files as a source: every record once, in order, with its line; and on from any record."""

# ruff: noqa: ASYNC240 - a test's own files may block its event loop

import contextlib
import csv
import gzip
import io
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import cramjam
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.errors import ConfigError, InputError
from flowkit.source import Batch, Reader, Source
from flowkit.source.file import FileReader, FileSource
from flowkit.source.file_cut import HEAD_BYTES, ends_open
from tests.depth import examples
from tests.matrix import matrix

Found = tuple[bytes | None, str, int]
"""A record, where it lies, and its number."""

OPEN_FILES = Path("/proc/self/fd")
COMPRESSIONS = ["", ".gz", ".zst"]


def pack(data: bytes, compression: str, members: int = 2) -> bytes:
    """`data` as a file of that compression, of several members or frames."""
    if compression == "":
        return data
    step = -(-len(data) // members) or 1
    parts = [data[at : at + step] for at in range(0, len(data), step)] or [b""]
    compress = gzip.compress if compression == ".gz" else lambda part: bytes(cramjam.zstd.compress(part, 3))
    return b"".join(map(compress, parts))


@contextlib.contextmanager
def file_of(data: bytes, suffix: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, f"data{suffix}")
        path.write_bytes(pack(data, path.suffix if path.suffix in COMPRESSIONS else ""))
        yield str(path)


async def drain(reader: FileReader, max_records: int = 1000) -> list[Found]:
    found: list[Found] = []
    while not reader.at_end:
        batch = await reader.fetch(max_records)
        if batch is not None:
            assert 0 < len(batch) == len(batch.values) <= max_records
            found += [(value, batch.where(i), batch.offset(i)) for i, value in enumerate(batch.values)]
    assert await reader.fetch(max_records) is None
    return found


async def read(source: FileSource, position: Any = None, max_records: int = 1000) -> list[Found]:
    reader = await source.open(0, position)
    try:
        return await drain(reader, max_records)
    finally:
        await reader.close()


async def positions(source: FileSource, max_records: int) -> list[tuple[int, Any]]:
    """How many records lie before each position that can be asked for, and that position as a commit stores it."""
    reader = await source.open(0, None)
    found: list[tuple[int, Any]] = []
    before = 0
    while not reader.at_end:
        batch = await reader.fetch(max_records)
        if batch is not None:
            found += [(before + count, batch.position(count)) for count in range(len(batch) + 1)]
            before += len(batch)
    await reader.close()
    return [(count, msgspec.msgpack.decode(msgspec.msgpack.encode(position))) for count, position in found]


async def test_it_fits_the_seam(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n2\n")
    source: Source = FileSource([str(path)])
    assert list(await source.splits()) == [0]
    reader: Reader = await source.open(0, None)
    batch: Batch | None = await reader.fetch(10)
    assert batch is not None
    assert batch.values == [b"1", b"2"]
    assert batch.keys is None
    assert batch.times is None
    await reader.close()


# --- lines ----------------------------------------------------------------------------------------------------------

LINE = st.one_of(
    st.sampled_from([b"", b" ", b"\t \t", b'{"a":1}', b"\x00", b"\xff\xfe", b"a\rb", b'"', b"[1", b"\xef\xbb\xbf"]),
    st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"n")),
)
ENDS = st.sampled_from([b"\n", b"\n", b"\r\n"])


def lines_of(data: bytes, *, json_lines: bool) -> list[Found]:
    """What a file of lines means, said slowly. `NAME` stands for the file's name."""
    found: list[Found] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n")):
        line = line[:-1] if line.endswith(b"\r") else line
        if line.strip(b" \t\r") if json_lines else line:
            found.append((line, f"NAME:{number + 1}", number))
    return found


def unnamed(found: list[Found], path: str) -> list[Found]:
    return [(value, where.replace(path, "NAME"), number) for value, where, number in found]


@examples()
@given(
    lines=st.lists(st.tuples(LINE, ENDS).map(b"".join), max_size=12).map(b"".join),
    head=st.sampled_from([b"", b"", b"\xef\xbb\xbf"]),
    tail=LINE,
    suffix=st.sampled_from([".jsonl", ".txt"]),
    compression=st.sampled_from(COMPRESSIONS),
    chunk_bytes=st.sampled_from([1, 2, 3, 7, 16, 1000]),
    max_records=st.integers(1, 5),
    resume=st.data(),
)
async def test_every_line_is_a_record_once_whatever_the_chunks(
    lines: bytes,
    head: bytes,
    tail: bytes,
    suffix: str,
    compression: str,
    chunk_bytes: int,
    max_records: int,
    resume: st.DataObject,
) -> None:
    data = head + lines + tail
    expected = lines_of(data, json_lines=suffix == ".jsonl")
    with file_of(data, suffix + compression) as path:
        source = FileSource([path], chunk_bytes=chunk_bytes)
        assert unnamed(await read(source, None, max_records), path) == expected
        at = await positions(source, max_records)
        if at:
            before, position = resume.draw(st.sampled_from(at))
            again = FileSource([path], chunk_bytes=resume.draw(st.sampled_from([1, 5, 1000])))
            assert unnamed(await read(again, position), path) == expected[before:]


SMALL_FILES = {
    "plain": b'{"a":1}\n{"a":2}\n{"a":3}\n',
    "no end": b'{"a":1}\n{"a":2}',
    "blank lines": b'\n\n{"a":1}\n \n\n{"a":2}\n\n',
    "CRLF": b'{"a":1}\r\n\r\n{"a":2}\r\n{"a":3}',
    "BOM": b'\xef\xbb\xbf{"a":1}\n{"a":2}\n',
    "BOM alone": b"\xef\xbb\xbf",
    "empty": b"",
    "one blank line": b"\n",
}
SMALL_CSV = {
    "plain": b"a,b\n1,2\n3,4\n",
    "no end": b"a,b\n1,2\n3,4",
    "quoted newlines": b'a,b\n"1\n\n1",2\n\n3,"x""\r\ny"\r\n5,6\n',
    "quoted header": b'"a\n""b""",c\n1,2\n',
    "unclosed": b'a,b\n1,2\n3,"4\n5,6\n',
    "header only": b"\xef\xbb\xbfa,b\n",
}
SMALL = {f"json, {name}": (".jsonl", data) for name, data in SMALL_FILES.items()} | {
    f"csv, {name}": (".csv", data) for name, data in SMALL_CSV.items()
}


# What is compressed is cut into the same records: of each compression one JSON and one CSV at each change.
@pytest.mark.parametrize(
    ("name", "compression"),
    matrix(SMALL, COMPRESSIONS, quick=lambda name, how: not how or name in ("json, no end", "csv, quoted newlines")),
)
async def test_reading_goes_on_after_any_record(name: str, compression: str) -> None:
    suffix, data = SMALL[name]
    with file_of(data, suffix + compression) as path:
        for chunk_bytes in (1, 4, 100):
            source = FileSource([path], chunk_bytes=chunk_bytes)
            whole = await read(source)
            for max_records in (1, 2, 100):
                at = await positions(source, max_records)
                assert {count for count, _ in at} == (set(range(len(whole) + 1)) if whole else set())
                for before, position in at:
                    assert await read(source, position) == whole[before:]


async def test_a_batch_says_where_its_records_lie() -> None:
    with file_of(b'a\n\n"b\n', ".txt") as path:
        reader = await FileSource([path]).open(0, None)
        batch = await reader.fetch(10)
        assert batch is not None
        assert [batch.where(i) for i in range(2)] == [f"{path}:1", f"{path}:3"]
        assert [batch.offset(i) for i in range(2)] == [0, 2]
        assert [batch.position(i) for i in range(3)] == [[0, 0], [2, 1], [6, 3]]
        await reader.close()


# --- CSV ------------------------------------------------------------------------------------------------------------

CELL = st.text(st.sampled_from('ab",\n \x00é'), max_size=6)


def rows(text: str) -> list[list[str]]:
    return [row for row in csv.reader(io.StringIO(text, newline="")) if row]


@examples()
@given(
    table=st.lists(st.tuples(CELL, CELL), max_size=6),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
    chunk_bytes=st.sampled_from([1, 3, 10, 1000]),
    max_records=st.integers(1, 4),
)
async def test_csv_records_are_the_rows_that_were_written(
    table: list[tuple[str, str]], quoting: Any, end: str, chunk_bytes: int, max_records: int
) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=end, quoting=quoting).writerows([("x", "y"), *table])
    with file_of(out.getvalue().encode(), ".csv") as path:
        source = FileSource([path], chunk_bytes=chunk_bytes)
        reader = await source.open(0, None)
        assert reader.fields == ("x", "y")
        found = await drain(reader, max_records)
        await reader.close()
        assert [rows((value or b"").decode()) for value, _, _ in found] == [[list(row)] for row in table]
        for before, position in await positions(source, max_records):
            resumed = await source.open(0, position)
            assert resumed.fields == ("x", "y")
            assert await drain(resumed) == found[before:]
            await resumed.close()


@given(st.text(st.sampled_from('a",\n'), max_size=20))
def test_quotes_are_read_as_pythons_csv_module_reads_them(text: str) -> None:
    records: list[str] = []
    inside = False
    for line in text.split("\n"):
        if inside:
            records[-1] += "\n" + line
        elif line:
            records.append(line)
        inside = ends_open(line.encode(), inside=inside)
    assert [row for record in records for row in rows(record)] == rows(text)
    assert all(len(rows(record)) == 1 for record in records)


async def test_a_csv_record_is_where_it_begins() -> None:
    with file_of(b'a\n\n"1\n2"\n3\n', ".csv") as path:
        assert await read(FileSource([path])) == [(b'"1\n2"', f"{path}:3", 2), (b"3", f"{path}:5", 4)]


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (b"a,b,a\n1,2,3\n", ":1: the header names a column twice: a"),
        (b"\n\xff,b\n", ":2: not a CSV header"),
        (b'a,"b\n1,2\n', ":1: not a CSV header"),
    ],
)
async def test_a_header_that_names_no_columns_is_an_error(header: bytes, complaint: str) -> None:
    with file_of(header, ".csv") as path, pytest.raises(InputError) as caught:
        await FileSource([path]).open(0, None)
    assert f"{path}{complaint}" in str(caught.value)


async def test_an_empty_csv_file_has_no_columns_and_is_at_its_end() -> None:
    with file_of(b"", ".csv") as path:
        reader = await FileSource([path]).open(0, None)
        assert (reader.fields, reader.at_end) == ((), True)
        await reader.close()


# --- archives that are cut off or damaged ---------------------------------------------------------------------------


async def read_until_error(path: str, **options: int) -> tuple[list[bytes | None], InputError | None]:
    values: list[bytes | None] = []
    try:
        reader = await FileSource([path], **options).open(0, None)
    except InputError as error:
        return [], error
    try:
        while not reader.at_end:
            batch = await reader.fetch(100)
            values += [] if batch is None else batch.values
    except InputError as error:
        with pytest.raises(InputError):  # and it stays an error: nobody takes it for the end
            await reader.fetch(1)
        return values, error
    else:
        return values, None
    finally:
        await reader.close()


@pytest.mark.parametrize("compression", [".gz", ".zst"])
async def test_an_archive_cut_off_anywhere_gives_whole_records_and_then_an_error(
    compression: str, tmp_path: Path
) -> None:
    data = b"".join(b'{"n":%d}\n' % n for n in range(8))
    first, second = pack(data[:40], compression, 1), pack(data[40:], compression, 1)
    path = tmp_path / f"a.jsonl{compression}"
    for length in range(1, len(first) + len(second)):
        path.write_bytes((first + second)[:length])
        for chunk_bytes in (3, 1000):
            values, error = await read_until_error(str(path), chunk_bytes=chunk_bytes)
            assert values == data.split(b"\n")[: len(values)]
            assert (error is None) == (length == len(first))  # between members an archive is whole
            assert len(values) >= 5 or length < len(first)
            if error is not None:
                assert str(path) in str(error)
                assert f"byte {length}" in str(error) or "damaged" in str(error)


async def test_a_large_cut_archive_gives_nearly_everything_before_the_cut(tmp_path: Path) -> None:
    data = b"".join(b'{"n":%d,"x":%d}\n' % (n, n * 7919 % 100_003) for n in range(100_000))
    for compression in (".gz", ".zst"):
        packed = pack(data, compression, 1)
        path = tmp_path / f"a.jsonl{compression}"
        path.write_bytes(packed[: len(packed) * 3 // 4])
        values, error = await read_until_error(str(path), chunk_bytes=1 << 16)
        assert values == data.split(b"\n")[: len(values)]
        assert len(values) > 50_000
        assert f"{path}: the archive is cut off" in str(error)
        assert "bytes into the decompressed data" in str(error)


@pytest.mark.parametrize("compression", [".gz", ".zst"])
async def test_what_is_no_archive_is_an_error_that_names_the_file(compression: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl{compression}"
    path.write_bytes(b'{"a":1}\n')
    with pytest.raises(InputError, match=r"a\.jsonl\.(gz|zst): the archive is damaged"):
        await FileSource([str(path)]).open(0, None)


async def test_a_gzip_member_with_a_wrong_checksum_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    packed = bytearray(gzip.compress(b'{"a":1}\n') + gzip.compress(b'{"a":2}\n'))
    packed[-6] ^= 1
    path.write_bytes(packed)
    values, error = await read_until_error(str(path))
    assert values == [b'{"a":1}']
    assert "incorrect data check" in str(error)


async def test_zero_bytes_around_gzip_members_are_padding(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"a\n") + b"\0" * 700 + gzip.compress(b"b\n") + b"\0" * 512)
    assert [value for value, _, _ in await read(FileSource([str(path)]))] == [b"a", b"b"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_a_file_of_no_bytes_is_at_its_end_at_once(compression: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl{compression}"
    path.touch()
    reader = await FileSource([str(path)]).open(0, None)
    assert reader.at_end
    assert await reader.fetch(1) is None
    await reader.close()


async def test_a_reader_closed_half_way_lets_go_of_everything(tmp_path: Path) -> None:
    data = b"".join(b"%d\n" % n for n in range(400_000))
    for compression in COMPRESSIONS:
        path = tmp_path / f"a.txt{compression}"
        path.write_bytes(pack(data, compression))
        before = set(OPEN_FILES.iterdir()) if OPEN_FILES.exists() else set()
        reader = await FileSource([str(path)], chunk_bytes=1000).open(0, None)
        assert await reader.fetch(10) is not None
        await reader.close()
        await reader.close()
        assert (set(OPEN_FILES.iterdir()) if before else set()) <= before


# --- long and odd records -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt.gz", ".jsonl.zst"])
@pytest.mark.parametrize("chunk_bytes", [100, 1024, 5000, 1 << 20])
async def test_a_record_that_is_too_long_is_marked_and_the_rest_goes_on(suffix: str, chunk_bytes: int) -> None:
    fits, long = b"f" * 2000, b"l" * 2001
    data = b"\n".join([b"head", b"1", fits, long, b"2", b"", long * 3, b"3", long])
    with file_of(data, suffix) as path:
        source = FileSource([path], chunk_bytes=chunk_bytes, max_record_bytes=2000)
        header = suffix == ".csv"
        expected = [b"head", b"1", fits, long[:HEAD_BYTES], b"2", long[:HEAD_BYTES], b"3", long[:HEAD_BYTES]][header:]
        reader = await source.open(0, None)
        values: list[bytes | None] = []
        marked: list[int] = []
        lines: list[str] = []
        while not reader.at_end:
            batch = await reader.fetch(3)
            if batch is not None:
                marked += [len(values) + i for i in sorted(batch.oversize)]
                lines += [batch.where(i).rpartition(":")[2] for i in range(len(batch))]
                values += batch.values
        await reader.close()
        assert values == expected
        assert marked == [3 - header, 5 - header, 7 - header]
        assert lines == ["1", "2", "3", "4", "5", "7", "8", "9"][header:]
        for before, position in await positions(source, 3):
            assert [value for value, _, _ in await read(source, position)] == expected[before:]


@pytest.mark.parametrize("chunk_bytes", [64, 1024, 1 << 20])
async def test_a_csv_record_of_many_lines_may_be_too_long_too(chunk_bytes: int) -> None:
    with file_of(b'a\n1\n"' + b"long\n" * 1000 + b'",x\n2\n"open ' + b"long\n" * 1000, ".csv") as path:
        source = FileSource([path], chunk_bytes=chunk_bytes, max_record_bytes=2000)
        found = await read(source)
        assert [(value or b"")[:9] for value, _, _ in found] == [b"1", b'"long\nlon', b"2", b'"open lon']
        assert [len(value or b"") for value, _, _ in found] == [1, HEAD_BYTES, 1, HEAD_BYTES]
        assert [number for _, _, number in found] == [1, 2, 1003, 1004]
        for before, position in await positions(source, 1):
            assert await read(source, position) == found[before:]


@pytest.mark.parametrize(
    ("megabytes", "compression"), matrix([5, 50], COMPRESSIONS, quick=lambda megabytes, _: megabytes == 5)
)
async def test_a_record_of_many_megabytes_comes_whole(megabytes: int, compression: str) -> None:
    big = b'"' + b"x" * (megabytes * 1_000_000) + b'"'
    with file_of(b"1\n" + big + b"\n2\n", f".jsonl{compression}") as path:
        assert [value for value, _, _ in await read(FileSource([path]))] == [b"1", big, b"2"]


# --- what cannot be read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "complaint"),
    [
        (["a.parquet"], "a.parquet: a name must end in one of .jsonl .ndjson .json .csv .txt"),
        (["a.gz"], "a.gz: a name must end in"),
        ([".jsonl"], ".jsonl: a name must end in"),
        (["a.csv", "b.jsonl"], "b.jsonl: is json, but a.csv is csv"),
        (["-", "-"], "standard input can be read only once"),
        ([], "no file is named"),
    ],
)
def test_names_that_fix_no_format_are_refused(paths: Sequence[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FileSource(paths)
    assert complaint in str(caught.value)


def test_all_wrong_names_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        FileSource(["a.x", "b.y"])
    assert len(caught.value.problems) == 2


async def test_what_is_no_readable_file_is_an_error_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "dir.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, complaint in {
        "none.jsonl": "no such file",
        "dir.jsonl": "is a directory. Name a file in it",
        "pipe.jsonl": "Feed pipes and devices through standard input: -",
        "dir.jsonl/a.jsonl": "no such file",
        "\0.jsonl": "cannot be opened",
        "n" * 300 + ".jsonl": "cannot be opened",
    }.items():
        path = tmp_path / name
        with pytest.raises(InputError) as caught:
            await FileSource([str(path)]).open(0, None)
        assert str(caught.value).startswith(f"{path}: ")
        assert complaint in str(caught.value)


async def test_a_file_without_the_right_to_read_is_an_error_with_its_cure(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n")
    path.chmod(0)
    tmp_path.chmod(0o755)
    with as_nobody(tmp_path), pytest.raises(InputError, match=r"chmod \+r"):
        await FileSource([str(path)]).open(0, None)


@contextlib.contextmanager
def as_nobody(directory: Path) -> Iterator[None]:
    """Root may do everything, so it must not be root that finds the place closed."""
    if os.geteuid() != 0:
        yield
        return
    closed = [(path, path.stat().st_mode) for path in directory.parents if not path.stat().st_mode & stat.S_IXOTH]
    for path, mode in closed:
        path.chmod(mode | stat.S_IXOTH)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for path, mode in closed:
            path.chmod(mode)


@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_a_file_that_changed_under_a_position_is_an_error(compression: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl{compression}"
    source = FileSource([str(path)])
    path.write_bytes(pack(b'{"a":1}\n{"a":2}\n{"a":3}\n', compression))
    position = dict(await positions(source, 100))[2]
    assert position == [16, 2]
    for changed, complaint in {
        b'{"a":1}\n': "was read up to byte 16, but now has 8 bytes",
        b'{"a":1000000000000000}\n{"a":2}\n': "was read up to byte 16, but now no line begins there",
        b"": "was read up to byte 16, but now has 0 bytes",
    }.items():
        path.write_bytes(pack(changed, compression))
        with pytest.raises(InputError) as caught:
            await source.open(0, position)
        assert complaint in str(caught.value)
        assert "start anew" in str(caught.value)


async def test_a_file_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a":1}\n' * 100)
    reader = await FileSource([str(path)], chunk_bytes=80).open(0, None)
    os.truncate(path, 8)
    with pytest.raises(InputError, match="now has 8 bytes"):
        await drain(reader)
    await reader.close()


@pytest.mark.parametrize("position", [7, "x", {"offset": 1}, [1, 2, 3]])
async def test_a_position_of_another_source_is_refused(position: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n")
    with pytest.raises(InputError, match="no position in a file"):
        await FileSource([str(path)]).open(0, position)


# --- standard input -------------------------------------------------------------------------------------------------


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The end of a pipe that standard input reads from."""
    source, target = os.pipe()
    with os.fdopen(source) as replaced:
        monkeypatch.setattr(sys, "stdin", replaced)
        yield target
    with contextlib.suppress(OSError):
        os.close(target)


async def test_standard_input_gives_what_is_there_and_ends_with_its_pipe(stdin: int) -> None:
    os.write(stdin, b"1\n2\n3")
    reader = await FileSource(["-"]).open(0, None)
    assert reader.size is None
    batch = await reader.fetch(10)
    assert batch is not None
    assert list(batch.values) == [b"1", b"2"]
    assert batch.where(1) == "<stdin>:2"
    assert await reader.fetch(10) is None
    assert not reader.at_end
    os.write(stdin, b"3\n")
    while (batch := await reader.fetch(10)) is None:
        pass
    assert list(batch.values) == [b"33"]
    os.write(stdin, b"4")
    os.close(stdin)
    assert await drain(reader) == [(b"4", "<stdin>:4", 3)]
    assert reader.read == 8
    await reader.close()


async def test_a_fetch_that_is_cancelled_loses_nothing(stdin: int) -> None:
    reader = await FileSource(["-"]).open(0, None)
    with anyio.move_on_after(0.01) as patience:
        await reader.fetch(10)
    assert patience.cancelled_caught
    os.write(stdin, b"1\n")
    os.close(stdin)
    assert [value for value, _, _ in await drain(reader)] == [b"1"]
    await reader.close()


async def test_standard_input_is_not_resumed_once_something_was_read(stdin: int) -> None:
    os.write(stdin, b"1\n2\n")
    os.close(stdin)
    source = FileSource(["-"])
    (_, untouched), (_, after_one), _ = await positions(source, 10)
    with pytest.raises(InputError, match="cannot be resumed: 1 lines of it were already used"):
        await source.open(0, after_one)
    assert await read(source, untouched) == []  # nothing was committed, so nothing is missing


async def test_standard_input_may_be_an_object_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1\n2")))
    assert [value for value, _, _ in await read(FileSource(["-"], chunk_bytes=2))] == [b"1", b"2"]


async def test_standard_input_may_be_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1\n2")
    with path.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert [value for value, _, _ in await read(FileSource(["-"]))] == [b"1", b"2"]


async def test_closed_standard_input_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="name a file instead"):
        await FileSource(["-"]).open(0, None)


# --- several files, and how far they are ----------------------------------------------------------------------------


async def test_each_file_is_a_split(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(f"{name}\n{name}1\n")
    source = FileSource([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")])
    assert source.codec == "csv"
    for split in await source.splits():
        reader = await source.open(split, None)
        assert reader.fields == (("a",), ("b",))[split]
        assert [value for value, _, _ in await drain(reader)] == [(b"a1", b"b1")[split]]
        await reader.close()


@pytest.mark.parametrize("compression", ["", ".gz"])
async def test_a_progress_bar_reaches_its_end(compression: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl{compression}"
    path.write_bytes(pack(b"".join(json.dumps(n).encode() + b"\n" for n in range(1000)), compression, 20))
    reader = await FileSource([str(path)], chunk_bytes=100).open(0, None)
    assert reader.size == path.stat().st_size
    assert 0 < reader.read < reader.size
    seen = [reader.read]
    while not reader.at_end:
        await reader.fetch(10)
        seen.append(reader.read)
    assert seen == sorted(seen)
    assert seen[-1] == reader.size
    await reader.close()


async def test_a_chunk_of_several_pieces_gives_what_small_chunks_give(tmp_path: Path) -> None:
    """Short lines, a blank one, lines longer than a piece of 128 KiB, and a last one without its end."""
    lines = [b'{"n":%d}' % n for n in range(30_000)]
    lines[20_000:20_000] = [b"", b'"' + b"x" * 300_000 + b'"', b'"' + b"y" * 131_071 + b'"', b" 7"]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    found, expected = [
        await read(FileSource([str(path)], chunk_bytes=size), max_records=100_000) for size in (1 << 20, 1 << 12)
    ]
    assert len(found) == len(lines) - 1
    assert found == expected


async def test_a_file_goes_on_after_any_piece(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(b'{"n":%d}\n' % n for n in range(60_000)))
    source = FileSource([str(path)])
    reader = await source.open(0, None)
    seen = 0
    while not reader.at_end:
        batch = await reader.fetch(5_000)
        assert batch is not None
        seen += len(batch)
        again = await source.open(0, batch.position(len(batch)))
        follows = await again.fetch(1)
        assert (follows is None) == (seen == 60_000)
        assert follows is None or follows.values[0] == b'{"n":%d}' % seen
        await again.close()
    await reader.close()
