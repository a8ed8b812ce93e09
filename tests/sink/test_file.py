"""Files as a sink: whatever is killed wherever, the file ends as that of an unbroken run."""

# ruff: noqa: ASYNC230, ASYNC240 - a test's own files may block its event loop

import contextlib
import csv
import errno
import gzip
import io
import os
import resource
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cramjam
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.errors import ConfigError, StoreError, StorePoisoned
from flowkit.sink import Sink, file_target
from flowkit.sink import file as sink_file
from flowkit.sink.file import FileDestination, FileSink
from flowkit.sink.file_target import OutputClosed
from tests.depth import examples


@dataclass
class Out:
    value: bytes | None
    key: bytes | None = None
    time: int = 0
    order: int | None = None


def outs(*values: bytes | None) -> list[Out]:
    return [Out(value) for value in values]


def unpack(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        return bytes(cramjam.zstd.decompress(data))
    return data


def stored(value: Any) -> Any:
    """As it comes back from a commit."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value))


async def write(path: Path, commits: Sequence[Sequence[Out]], **options: Any) -> bytes:
    """What an unbroken run makes of it."""
    sink = FileSink(str(path), **options)
    await sink.open(None)
    for i, records in enumerate(commits):
        await sink.deliver(stored(sink.stage(records, i == len(commits) - 1)))
    await sink.close()
    return path.read_bytes()


async def test_it_fits_the_seam(tmp_path: Path) -> None:
    sink: Sink = FileSink(str(tmp_path / "a.jsonl"))
    await sink.open(None)
    assert sink.stage([], False) is None
    await sink.deliver(None)
    await sink.deliver(sink.stage(outs(b"1", b"2"), True))
    await sink.close()
    assert (tmp_path / "a.jsonl").read_bytes() == b"1\n2\n"
    assert "exactly once" in FileDestination(str(tmp_path / "a.jsonl")).guarantee


# --- what is in the file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".jsonl", b"1\nnull\n2\n"),
        (".ndjson", b"1\nnull\n2\n"),
        (".json", b"1\nnull\n2\n"),
        (".txt", b"1\n2\n"),
        (".csv", b'a,"b,"\n1\n2\n'),
    ],
)
async def test_each_format_has_its_lines(suffix: str, content: bytes, compression: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}{compression}"
    fields = ["a", "b,"] if suffix == ".csv" else None
    await write(path, [outs(b"1", None), outs(b"2"), []], fields=fields)
    assert unpack(path) == content


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
async def test_a_run_without_results_leaves_a_file_that_others_can_read(compression: str, tmp_path: Path) -> None:
    path = tmp_path / f"out.jsonl{compression}"
    data = await write(path, [[], []])
    assert unpack(path) == b""
    assert (data == b"") == (compression == "")
    path = tmp_path / f"out.csv{compression}"
    await write(path, [[], []], fields=["a", "b"])
    assert unpack(path) == b"a,b\n"


async def test_csv_without_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    sink = FileSink(str(path))
    assert sink.codec == "csv"
    with pytest.raises(ConfigError, match=r"out\.csv: CSV needs columns"):
        await sink.open(None)
    sink.fields = ["a"]  # known only once somebody has looked at the codec
    await sink.open(None)
    await sink.deliver(sink.stage([], True))
    await sink.close()
    assert list(csv.reader(io.StringIO(path.read_text()))) == [["a"]]


async def test_a_new_run_empties_an_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"old\n" * 1000)
    assert await write(path, [outs(b"1")]) == b"1\n"


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
async def test_a_compressed_file_does_not_show_where_commits_fell(suffix: str, tmp_path: Path) -> None:
    records = [Out(b'{"n":%d,"x":%d}' % (n, n * 7919 % 100_003)) for n in range(40_000)]
    path = tmp_path / f"out{suffix}"
    one = await write(path, [records])
    many = [records[at : at + step] for step in [777] for at in range(0, len(records), step)]
    assert await write(path, many) == one
    assert await write(path, [*many, []]) == one
    assert unpack(path) == b"".join(b'{"n":%d,"x":%d}\n' % (n, n * 7919 % 100_003) for n in range(40_000))
    if suffix == ".jsonl.gz":  # each block is a member of its own, without a time
        assert one.count(b"\x1f\x8b\x08\x00\x00\x00\x00\x00") >= len(unpack(path)) // sink_file.BLOCK_BYTES


# --- kills ----------------------------------------------------------------------------------------------------------

BLOCK = 64
KILLS = ["none", "before", "torn", "after", "twice", "stop"]


@examples()
@given(
    commits=st.lists(
        st.lists(st.binary(max_size=90).map(lambda value: value.replace(b"\n", b"")), max_size=5), max_size=8
    ),
    kills=st.lists(st.sampled_from(KILLS), min_size=9, max_size=9),
    torn=st.integers(0, 10**6),
    suffix=st.sampled_from([".jsonl", ".csv", ".txt.gz", ".csv.gz", ".jsonl.zst"]),
)
async def test_after_any_kills_the_file_is_that_of_an_unbroken_run(
    commits: list[list[bytes]], kills: list[str], torn: int, suffix: str
) -> None:
    runs = [outs(*values) for values in commits] + [[]]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(sink_file, "BLOCK_BYTES", BLOCK)
        expected = await write(Path(directory, f"unbroken{suffix}"), runs, fields=["a"], sync=False)
        path = Path(directory, f"out{suffix}")

        async def reopened(state: Any) -> FileSink:
            sink = FileSink(str(path), ["a"], sync=False)
            await sink.open(state)
            return sink

        sink = await reopened(None)
        for i, (records, kill) in enumerate(zip(runs, kills, strict=False)):
            final = i == len(runs) - 1 or kill == "stop"
            handoff, state = stored(sink.stage(records, final)), stored(sink.state())
            if kill in ("none", "after", "twice", "stop"):
                await sink.deliver(handoff)
            if kill == "twice":
                await sink.deliver(handoff)
            if kill == "torn" and handoff is not None:  # the write got this far, and then the next commit's began
                with path.open("r+b") as file:
                    file.seek(handoff["offset"])
                    file.write(handoff["data"][: torn % (len(handoff["data"]) + 1)])
            if kill == "after":
                with path.open("ab") as behind:
                    behind.write(b"an uncommitted tail" * (torn % 10))
            if kill in ("before", "torn", "after", "stop"):
                await sink.close()
                sink = await reopened(state)
                if kill != "stop":
                    await sink.deliver(handoff)
        await sink.deliver(stored(sink.stage([], True)))  # every run ends with a commit, if it ends by itself
        await sink.close()
        assert path.read_bytes() == expected


async def test_a_finished_file_stays_whole_when_its_run_is_only_looked_at_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl.gz"
    sink = FileSink(str(path))
    await sink.open(None)
    await sink.deliver(sink.stage(outs(b"1"), True))
    state = stored(sink.state())
    await sink.close()
    finished = path.read_bytes()
    for _ in range(2):
        await sink.open(state)
        assert path.read_bytes() == finished
        await sink.close()
    await sink.open(state)
    await sink.deliver(sink.stage([], True))
    await sink.close()
    assert path.read_bytes() == finished


# --- files that somebody else touched -------------------------------------------------------------------------------


async def committed(path: Path) -> Any:
    sink = FileSink(str(path))
    await sink.open(None)
    await sink.deliver(sink.stage(outs(b"1111", b"2222"), False))
    await sink.deliver(sink.stage(outs(b"3333"), False))
    await sink.close()
    return stored(sink.state())


async def test_an_output_that_somebody_cut_is_an_error_with_both_lengths(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    state = await committed(path)
    os.truncate(path, 7)
    with pytest.raises(StoreError, match=r"out\.jsonl: has 7 bytes, but 10 bytes of it are committed"):
        await FileSink(str(path)).open(state)
    path.unlink()
    with pytest.raises(StoreError, match=r"out\.jsonl: is gone, but 10 bytes of it are committed"):
        await FileSink(str(path)).open(state)


async def test_what_the_last_hand_off_would_have_written_may_be_missing_until_it_is_delivered_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "out.jsonl"
    state = await committed(path)
    os.truncate(path, 12)
    sink = FileSink(str(path))
    await sink.open(state)
    with pytest.raises(StoreError, match="has 12 bytes, but 15 bytes of it are committed"):
        await sink.deliver({"offset": 15, "data": b"4444\n"})  # the next one: there must be no hole
    await sink.deliver({"offset": 10, "data": b"3333\n"})
    await sink.deliver(sink.stage(outs(b"4444"), True))
    await sink.close()
    assert path.read_bytes() == b"1111\n2222\n3333\n4444\n"


async def test_a_file_cut_while_it_is_written_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = FileSink(str(path))
    await sink.open(None)
    await sink.deliver(sink.stage(outs(b"1"), False))
    os.truncate(path, 0)
    with pytest.raises(StoreError, match="has 0 bytes, but 2 bytes"):
        await sink.deliver(sink.stage(outs(b"2"), False))
    await sink.close()


# --- what cannot be written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.parquet", "out", "out.gz", ".csv"])
def test_a_name_that_fixes_no_format_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"a name must end in one of \.jsonl"):
        FileSink(name)


async def test_a_place_that_takes_no_file_is_an_error_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "dir.jsonl").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, complaint in {
        "none/out.jsonl": f"does not exist. Make it: mkdir -p {tmp_path}/none",
        "dir.jsonl": "is a directory. Name a file in it",
        "pipe.jsonl": "Write to standard output instead: -",
        "file/out.jsonl": "cannot be opened",
        "\0.jsonl": "cannot be opened",
        "n" * 300 + ".jsonl": "cannot be opened",
    }.items():
        path = tmp_path / name
        with pytest.raises(ConfigError) as caught:
            await FileSink(str(path)).open(None)
        assert str(caught.value).startswith(f"{path}: ")
        assert complaint in str(caught.value)


async def test_a_place_without_the_right_to_write_is_an_error_with_its_cure(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.touch(0o444)
    tmp_path.chmod(0o555)
    with as_nobody(tmp_path):
        for target in (path, tmp_path / "new.jsonl"):
            with pytest.raises(ConfigError, match="cannot be written by this user"):
                await FileSink(str(target)).open(None)
    tmp_path.chmod(0o755)


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


async def test_a_disk_that_takes_only_a_part_is_an_error_and_the_hand_off_may_come_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = FileSink(str(path))
    await sink.open(None)
    await sink.deliver(sink.stage(outs(b"1"), False))
    handoff = sink.stage(outs(b"2" * 10_000), False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(StoreError, match=r"out\.jsonl: cannot be written: File too large.*ulimit -f"):
            await sink.deliver(handoff)
        assert path.stat().st_size == 5000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await sink.deliver(handoff)
    await sink.close()
    assert path.read_bytes() == b"1\n" + b"2" * 10_000 + b"\n"


async def test_a_full_disk_names_the_file_and_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: Any, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sink = FileSink(str(tmp_path / "out.jsonl"))
    await sink.open(None)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match=r"out\.jsonl: cannot be written: No space left on device.*make room"):
        await sink.deliver(sink.stage(outs(b"1"), False))
    await sink.close()


async def test_after_a_failed_sync_nothing_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    sink = FileSink(str(tmp_path / "out.jsonl"))
    await sink.open(None)
    handoff = sink.stage(outs(b"1"), False)
    with monkeypatch.context() as patch:
        patch.setattr(file_target, "sync_data", fails)
        with pytest.raises(StorePoisoned, match=r"out\.jsonl: could not be synced"):
            await sink.deliver(handoff)
    with pytest.raises(StorePoisoned):
        await sink.deliver(handoff)
    await sink.close()


# --- standard output ------------------------------------------------------------------------------------------------


async def test_standard_output_prints_a_hand_off_once_in_a_process(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    sink = FileSink("-")
    assert sink.codec == "json"
    assert "at least once" in sink.guarantee
    await sink.open(None)
    first = sink.stage(outs(b"1", None), False)
    for _ in range(2):
        await sink.deliver(first)
    await sink.deliver(sink.stage(outs(b"2"), False))
    state, last = stored(sink.state()), stored(sink.stage(outs(b"3"), True))
    await sink.deliver(last)
    await sink.close()
    assert capfdbinary.readouterr().out == b"1\nnull\n2\n3\n"
    again = FileSink("-")
    await again.open(state)
    await again.deliver(last)
    await again.close()
    assert capfdbinary.readouterr().out == b"3\n"


async def test_a_reader_that_goes_away_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = os.pipe()
    with os.fdopen(target, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        sink = FileSink("-")
        await sink.open(None)
        await sink.deliver(sink.stage(outs(b"1"), False))
        os.close(source)
        with pytest.raises(OutputClosed):
            await sink.deliver(sink.stage(outs(b"2"), False))
        monkeypatch.undo()
    # Closing the pipe's file flushed what it still held: to nowhere, without a complaint.


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
async def test_a_full_disk_behind_standard_output_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115 - closed below, where it complains again
    monkeypatch.setattr(sys, "stdout", full)
    sink = FileSink("-")
    await sink.open(None)
    with pytest.raises(StoreError, match="standard output cannot be written: No space left on device"):
        await sink.deliver(sink.stage(outs(b"1"), False))
    monkeypatch.undo()
    with pytest.raises(OSError, match="No space"):
        full.close()


async def test_closed_standard_output_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(ConfigError, match="name a file instead"):
        await FileSink("-").open(None)


async def test_one_who_wakes_late_cuts_off_nothing_that_his_successor_has_written(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    late, successor = FileSink(str(path)), FileSink(str(path))
    await late.open(None)
    handoff = late.stage(outs(b"1"), False)
    state = late.state()
    # Stopped between its commit and its delivery; whoever takes over delivers that first, and goes on.
    await successor.open(state)
    await successor.deliver(handoff)
    await successor.deliver(successor.stage(outs(b"2"), False))
    await late.deliver(handoff)
    assert path.read_bytes() == b"1\n2\n"
    await late.close()
    await successor.close()


@pytest.mark.parametrize("before", [0, 1])
async def test_one_who_wakes_late_while_he_opens_cuts_off_nothing_either(tmp_path: Path, before: int) -> None:
    path = tmp_path / "out.jsonl"
    first = FileSink(str(path))
    await first.open(None)
    handoff = first.stage(outs(*[b"1"] * before), False)
    state = first.state() if before else None
    await first.deliver(handoff)
    await first.close()
    late, successor = FileSink(str(path)), FileSink(str(path))
    await successor.open(state)
    await successor.deliver(handoff)
    await successor.deliver(successor.stage(outs(b"2"), False))
    await late.open(state)
    await late.deliver(handoff)
    await late.close()
    await successor.deliver(successor.stage(outs(b"3"), False))
    await successor.close()
    assert path.read_bytes() == b"1\n" * before + b"2\n3\n"
