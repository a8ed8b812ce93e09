"""Other people's files of metrics: what is read, what is left out, and what is said of it."""

import gzip
import json
from pathlib import Path

import pytest

from services.anomaly_detection.mapping import Converted, MappingError, TimeReading, convert


def rows(found: Converted) -> list[tuple[str, float, str]]:
    lines = map(json.loads, found.metrics.read_text(encoding="utf-8").splitlines())
    return [(line["timestamp"][11:16], line["value"], line["name"]) for line in lines]


def write(path: Path, *lines: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_a_directory_is_read_whole_and_merged_by_time(tmp_path: Path) -> None:
    write(tmp_path / "in" / "cpu.csv", "timestamp,value", "2014-02-14 14:30:00,1", "2014-02-14 14:40:00,3")
    write(tmp_path / "in" / "web.jsonl", '{"timestamp":"2014-02-14T14:35:00Z","value":2,"name":"hits"}')
    (tmp_path / "in" / "deep").mkdir()
    with gzip.open(tmp_path / "in" / "deep" / "disk.csv.gz", "wt") as file:
        file.write("timestamp;value\n2014-02-14 14:38:00;4\n")
    write(tmp_path / "in" / "labels.json", "{}")
    found = convert([str(tmp_path / "in")], tmp_path)
    assert rows(found) == [("14:30", 1, "cpu"), ("14:35", 2, "hits"), ("14:38", 4, "deep/disk"), ("14:40", 3, "cpu")]
    assert found.series == {"cpu": 2, "hits": 1, "deep/disk": 1}
    assert (found.first.minute, found.last.minute, found.refused) == (30, 40, 0)


def test_within_a_file_the_order_stays_as_it_is(tmp_path: Path) -> None:
    lines = ("2014-02-14 14:30:00,1", "2014-02-14 14:20:00,2", "2014-02-14 14:30:00,3")
    path = write(tmp_path / "a.csv", "timestamp,value", *lines)
    assert [value for _, value, _ in rows(convert([path], tmp_path))] == [1, 2, 3]


def test_lines_that_cannot_be_used_are_counted_and_told(tmp_path: Path) -> None:
    lines = ["2014-02-14 14:30:00,1", "2014-02-14 14:35:00,nan", "2014-02-14 14:40:00,", "2014-02-14 14:45:00,many"]
    path = write(tmp_path / "a.csv", "timestamp,value", *lines, "soon,1", "2014-02-14 14:50:00", ",5")
    found = convert([path], tmp_path)
    assert (found.series, found.refused) == ({"a": 1}, 6)
    assert [text.removeprefix(f"{path}, ") for text in found.examples] == [
        "line 3: value 'nan' is no finite number",
        "line 4: no value",
        "line 5: value 'many' is no number",
    ]


def test_columns_by_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "when,load,host,disk", "1392388200,0.5,web,sda", "1392388500,0.7,web,sdb")
    given = ["timestamp=when", "value=load", "name=host+disk"]
    assert rows(convert([path], tmp_path, given)) == [("14:30", 0.5, "web sda"), ("14:35", 0.7, "web sdb")]
    nested = write(tmp_path / "b.jsonl", '{"t":"14.02.2014 14.30","m":{"v":1}}')
    found = convert([nested], tmp_path, ["timestamp=t", "value=m.v"], times=TimeReading("%d.%m.%Y %H.%M"))
    assert rows(found) == [("14:30", 1, "b")]


@pytest.mark.parametrize(
    "lines,given,said",
    [
        ([""], [], "is empty"),
        (["timestamp,value"], [], "has no rows"),
        (["when,load", "x,1"], [], "which columns are timestamp, value.*has: when, load"),
        (["timestamp,load", "x,1"], ["value=laod"], "no column 'laod'.*has: timestamp, load"),
        (["timestamp,value", "soon,1"], [], "no line of .* can be used:\n.*timestamp 'soon' is no time"),
        (["timestamp,value", "x,1"], ["value"], "write FIELD=COLUMN"),
        (["timestamp,value", "x,1"], ["price=value"], "there is no field 'price'; the fields are timestamp, value"),
        (['{"timestamp":1}', "{"], ["value=timestamp"], "line 2: no JSON"),
        (['{"timestamp":1}', "[]"], ["value=timestamp"], "line 2: an object is expected"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, lines: list[str], given: list[str], said: str) -> None:
    path = write(tmp_path / "a.csv", *lines)
    with pytest.raises(MappingError, match=f"(?s){said}"):
        convert([path], tmp_path, given)


def test_files_that_are_not_there_and_directories_without_any(tmp_path: Path) -> None:
    with pytest.raises(MappingError, match=r"missing.csv cannot be read"):
        convert([str(tmp_path / "missing.csv")], tmp_path)
    with pytest.raises(MappingError, match=r"has no \.csv, \.jsonl, \.ndjson files"):
        convert([str(tmp_path)], tmp_path)
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(MappingError, match="is no UTF-8 text"):
        convert([str(tmp_path / "a.csv")], tmp_path)
