"""Other people's files: which columns are what, times of all kinds, and clear words for what does not fit."""

import gzip
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from services.fraud_detection.mapping import Converted, MappingError, TimeReading, convert, read_time

CSV = """trans_date,cc_num,merchant,category,amt,merch_lat,merch_long,is_fraud
2020-06-21 12:14:25,2291163933867244,Kirlin and Sons,personal_care,2.86,33.986391,-81.200714,0
2020-06-21 12:14:33,3573030041201292,Sporer-Keebler,personal_care,29.84,39.450498,-109.960431,1
2020-06-23 00:00:00,2291163933867244,Swaniawski,health_fitness,41.28,40.49581,-74.196111,0
"""
MAP = ["card=cc_num", "amount=amt", "at=trans_date", "lat=merch_lat", "lon=merch_long", "fraud=is_fraud"]


def lines(path: Path | None) -> list[dict[str, Any]]:
    assert path is not None
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def given(tmp_path: Path, text: str, *mapping: str, name: str = "tx.csv", **options: Any) -> Converted:
    source = tmp_path / name
    if name.endswith(".gz"):
        source.write_bytes(gzip.compress(text.encode()))
    else:
        source.write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    return convert(str(source), out, mapping, **options)


def refusal(tmp_path: Path, text: str, *mapping: str, **options: Any) -> str:
    with pytest.raises(MappingError) as caught:
        given(tmp_path, text, *mapping, **options)
    return str(caught.value)


def test_a_csv_with_columns_of_its_own(tmp_path: Path) -> None:
    found = given(tmp_path, CSV, *MAP)
    assert found.payments == 3
    assert lines(found.transactions)[0] == {
        "id": "2",
        "card": "2291163933867244",
        "at": "2020-06-21T12:14:25+00:00",
        "amount": 2.86,
        "merchant": "Kirlin and Sons",
        "category": "personal_care",
        "country": "",
        "entry": "",
        "device": "",
        "lat": 33.986391,
        "lon": -81.200714,
    }
    assert [label["id"] for label in lines(found.labels)] == ["3"]
    assert lines(found.chargebacks) == [{"id": "3", "card": "3573030041201292", "at": "2020-06-22T12:14:33+00:00"}]
    assert (found.first, found.last) == (
        datetime(2020, 6, 21, 12, 14, 25, tzinfo=UTC),
        datetime(2020, 6, 23, tzinfo=UTC),
    )


def test_a_report_that_would_come_after_the_end_does_not_come(tmp_path: Path) -> None:
    found = given(tmp_path, CSV, *MAP, report_after=timedelta(days=3))
    assert lines(found.chargebacks) == []
    assert len(lines(found.labels)) == 1


@pytest.mark.parametrize("name", ["tx.jsonl", "tx.jsonl.gz", "tx.data"])
def test_json_lines_with_nested_columns(tmp_path: Path, name: str) -> None:
    row = {"tx": {"card": 17, "when": 1592741665000}, "amount": "12.5", "merchant": None}
    found = given(tmp_path, json.dumps(row) + "\n\n", "card=tx.card", "at=tx.when", name=name)
    (payment,) = lines(found.transactions)
    assert (payment["card"], payment["at"], payment["merchant"]) == ("17", "2020-06-21T12:14:25+00:00", "")
    assert found.labels is None
    assert found.chargebacks is None


def test_names_that_are_ours_need_no_mapping(tmp_path: Path) -> None:
    found = given(tmp_path, "id;card;at;amount\nx1;c1;2025-03-03T12:00:00+01:00;5\n")
    assert lines(found.transactions)[0]["id"] == "x1"
    assert lines(found.transactions)[0]["at"] == "2025-03-03T11:00:00+00:00"


def test_date_and_time_in_two_columns(tmp_path: Path) -> None:
    text = "card,day,clock,amount\nc,03/04/2025,06:30,1\n"
    times = TimeReading("%d/%m/%Y %H:%M", ZoneInfo("Europe/Paris"))
    found = given(tmp_path, text, "at=day+clock", times=times)
    assert lines(found.transactions)[0]["at"] == "2025-04-03T04:30:00+00:00"


def test_payments_are_put_in_order_of_time(tmp_path: Path) -> None:
    text = "card,at,amount\nc,2025-03-05,1\nc,2025-03-03,2\nc,2025-03-04,3\n"
    assert [row["amount"] for row in lines(given(tmp_path, text).transactions)] == [2, 3, 1]


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("card,at,amount\nc,2025-03-05,1\n"))
    assert convert("-", tmp_path).payments == 1


def test_lines_that_cannot_be_used_are_told_and_left_out(tmp_path: Path) -> None:
    text = """card,at,amount,lat,lon,fraud
c,2025-03-05,1,,,0
c,yesterday,1,,,0
,2025-03-05,1,,,0
c,2025-03-05,a lot,,,0
c,2025-03-05,nan,,,0
c,2025-03-05,1,95,0,0
c,2025-03-05,1,,,perhaps
c,2025-03-05
"""
    found = given(tmp_path, text)
    assert (found.payments, found.refused) == (1, 7)
    assert found.examples == [
        "line 3: at 'yesterday' is no time; try --time-format",
        "line 4: no card",
        "line 5: amount 'a lot' is no number",
    ]


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    assert "no column 'amount2'. " in refusal(tmp_path, CSV, *MAP, "amount=amount2")
    assert "has: trans_date, cc_num, merchant, category, amt," in refusal(tmp_path, CSV, *MAP, "amount=amount2")


def test_fields_that_are_needed_are_asked_for(tmp_path: Path) -> None:
    said = refusal(tmp_path, CSV, "amount=amt")
    assert said.startswith("which columns are card, at? Give --map card=COLUMN --map at=COLUMN. ")
    assert "has: trans_date, cc_num," in said


@pytest.mark.parametrize(
    "mapping,said",
    [
        ("card", "write FIELD=COLUMN"),
        ("card=", "write FIELD=COLUMN"),
        ("sum=amt", "there is no field 'sum'; the fields are id, card, at, amount"),
    ],
)
def test_a_mapping_that_is_none_is_refused(tmp_path: Path, mapping: str, said: str) -> None:
    assert said in refusal(tmp_path, CSV, mapping)


@pytest.mark.parametrize(
    "text,name,said",
    [
        ("", "tx.csv", "is empty"),
        ("card,at,amount\n", "tx.csv", "has no rows"),
        ("card,at,amount\nc,never,1\n", "tx.csv", "no line of"),
        ('{"card": 1\n', "tx.jsonl", "line 1: no JSON"),
        ("[1, 2]\n", "tx.jsonl", "an object is expected"),
        ("not gzip", "tx.csv.gz.csv.gz", "cannot be read"),
    ],
)
def test_a_file_that_is_no_file_of_payments_is_refused(tmp_path: Path, text: str, name: str, said: str) -> None:
    if "not gzip" in text:
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(MappingError, match=said):
            convert(str(tmp_path / name), tmp_path)
    else:
        assert said in refusal(tmp_path, text, name=name)


def test_a_missing_file_a_directory_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    for source in (tmp_path / "missing.csv", tmp_path):
        with pytest.raises(MappingError, match="cannot be read"):
            convert(str(source), tmp_path)
    (tmp_path / "x.csv").write_bytes(b"card,at,amount\n\xff\xfe\xfa,1,1\n")
    with pytest.raises(MappingError, match="no UTF-8"):
        convert(str(tmp_path / "x.csv"), tmp_path)


@pytest.mark.parametrize(
    "text,form,expected",
    [
        ("2025-03-03T12:00:00Z", "", "2025-03-03T12:00:00+00:00"),
        ("2025-03-03", "", "2025-03-03T00:00:00+00:00"),
        ("1741003200", "", "2025-03-03T12:00:00+00:00"),
        ("1741003200000", "", "2025-03-03T12:00:00+00:00"),
        ("1741003200000000", "", "2025-03-03T12:00:00+00:00"),
        ("1741003200.5", "s", "2025-03-03T12:00:00.500000+00:00"),
        ("1741003200500", "ms", "2025-03-03T12:00:00.500000+00:00"),
        ("1741003200500000", "us", "2025-03-03T12:00:00.500000+00:00"),
        ("Mar 3 2025 12:00", "%b %d %Y %H:%M", "2025-03-03T12:00:00+00:00"),
        ("-86400", "s", "1969-12-31T00:00:00+00:00"),
    ],
)
def test_times(text: str, form: str, expected: str) -> None:
    assert read_time(text, TimeReading(form)).isoformat() == expected


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "1e300", "2025-13-01", "9" * 40])
@pytest.mark.parametrize("form", ["", "s", "ms", "%Y"])
def test_what_is_no_time_is_refused(text: str, form: str) -> None:
    with pytest.raises(ValueError, match="time"):
        read_time(text, TimeReading(form))
