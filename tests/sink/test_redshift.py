"""Redshift as a destination without a server: its statements, what is told of a URL, and what its errors mean."""

import pytest

from flowkit import ConfigError
from flowkit.errors import SinkError
from flowkit.sink import destination
from flowkit.sink.dispatch import Never, Refused, TryAgain
from flowkit.sink.redshift_lines import Lines
from flowkit.sink.redshift_sql import Copied, Load, Target, load_sql
from flowkit.sink.redshift_wire import by_words, told_apart

ROLE = "arn:aws:iam::123456789012:role/copy"
PLACE = "redshift://h:5439/dev/s.t?stage=s3://bucket/x&role=" + ROLE

LOAD = Load("app-g-0-ab", 7, "f00d", 0, 50, False, "2026-01-02 03:04:05")
COPIED = Copied("s3://bucket/x/y.json.gz", ROLE, "eu-west-1")


def test_the_statements_of_a_load_that_adds_rows() -> None:
    unless = (
        "NOT EXISTS (SELECT 1 FROM \"s\".\"c\" WHERE task = 'app-g-0-ab' AND handoff = 'f00d' AND first_row < 50 "
        "AND stop_row > 0)"
    )
    assert load_sql(Target("s", "t", ("id", "n"), (), "c"), LOAD, COPIED) == [
        'LOCK TABLE "s"."c"',
        (
            'CREATE TEMPORARY TABLE flowkit_stage AS SELECT "id", "n", CAST(0 AS BIGINT) AS flowkit_row, '
            'CAST(0 AS INTEGER) AS flowkit_gone FROM "s"."t" WHERE 1 = 0'
        ),
        (
            f"COPY flowkit_stage FROM 's3://bucket/x/y.json.gz' IAM_ROLE '{ROLE}' REGION 'eu-west-1' "
            "FORMAT AS JSON 'auto ignorecase' GZIP TIMEFORMAT 'auto' DATEFORMAT 'auto' COMPUPDATE OFF STATUPDATE OFF"
        ),
        f'INSERT INTO "s"."t" ("id", "n") SELECT "id", "n" FROM flowkit_stage WHERE {unless}',
        (
            "DELETE FROM \"s\".\"c\" WHERE task = 'app-g-0-ab' AND (number <= -93 OR handoff = 'f00d'"
            " AND first_row = 0 AND stop_row = 50)"
        ),
        (
            'INSERT INTO "s"."c" (task, number, handoff, first_row, stop_row, loaded) VALUES '
            "('app-g-0-ab', 7, 'f00d', 0, 50, CAST('2026-01-02 03:04:05' AS TIMESTAMP))"
        ),
        "DROP TABLE flowkit_stage",
    ]


def test_a_load_that_merges_is_no_more_than_redshift_takes_in_a_batch() -> None:
    statements = load_sql(Target("s", "t", ("id", "n"), ("id",), "c"), LOAD._replace(tombstones=True), COPIED)
    assert len(statements) <= 40
    assert (
        'MERGE INTO "s"."t" USING flowkit_last ON "t"."id" = flowkit_last."id" WHEN MATCHED THEN UPDATE SET '
        '"n" = flowkit_last."n" WHEN NOT MATCHED THEN INSERT ("id", "n") VALUES (flowkit_last."id", flowkit_last."n")'
    ) in statements
    assert (
        'DELETE FROM "s"."t" USING flowkit_last WHERE "t"."id" = flowkit_last."id" AND flowkit_last.flowkit_gone = 1'
        in (statements)
    )


@pytest.mark.parametrize(
    ("keys", "key", "value", "found"),
    [
        ((), b"k", b'{"id":1}', b'{"flowkit_row":5,"flowkit_gone":0,"id":1}'),
        ((), b"k", b'{"id":\n1}', b'{"flowkit_row":5,"flowkit_gone":0,"id": 1}'),
        ((), b"k", b"{}", b'{"flowkit_row":5,"flowkit_gone":0}'),
        ((), b"k", None, None),
        (("id",), b"k", None, b'{"flowkit_row":5,"flowkit_gone":1,"id":"k"}'),
        ((), b"k", b"[1]", "NoObject"),
        ((), b"k", b'{"a":"%b"}' % (b"x" * (4 << 20)), "RecordTooLarge"),
        (("id",), b"k", b'{"id":null}', "NoKey"),
        (("id",), b"k", b'{"n":1}', "NoKey"),
        (("id",), b"k", b'{"n":1', "NoObject"),
        (("id", "n"), b"k", None, "NoKey"),
        (("id",), None, None, "NoKey"),
        (("id",), b"\xff", None, "NoKey"),
    ],
)
def test_a_record_is_a_line_or_never_one(
    keys: tuple[str, ...], key: bytes | None, value: bytes | None, found: bytes | str | None
) -> None:
    made = Lines(keys).line(5, key, value)
    assert (made.error if isinstance(made, Never) else made) == found


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redshift://h/dev?stage=s3://bucket&role=" + ROLE, "needs redshift://HOST/DATABASE/SCHEMA.TABLE"),
        ("redshift://h:x/dev/t?stage=s3://bucket&role=" + ROLE, "port 'x': needs a number"),
        ("redshift-data://g:1/dev/t?stage=s3://bucket&role=" + ROLE, "the Data API has no port"),
        ("redshift://h/dev/t?role=" + ROLE, "needs stage=s3://BUCKET/PREFIX"),
        ("redshift://h/dev/t?stage=s3://bucket&role=me", "needs role=ARN"),
        (PLACE + "&mode=merge", "mode=merge needs key=COLUMN"),
        (PLACE + "&key=id", "key= is for mode=merge"),
        (PLACE + "&mode=merge&key=city", "key=city: no record has such a field; there are id, n"),
        (PLACE + "&tls=maybe", "there are verify, require, no"),
        (PLACE + "&tls_ca=/nowhere", "no such file"),
        (PLACE + '&commits=a"b', "can be no name"),
        (PLACE + "&roll_after=soon", "such as 7d"),
        (PLACE + "&kind=cluster", "unknown option 'kind'"),
        ("redshift://me:geheim@h/dev/t", "credentials do not belong into a URL"),
    ],
)
def test_what_is_wrong_with_a_url_is_told(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        destination(url, ["id", "n"]).check()
    assert "geheim" not in str(caught.value)


def test_what_is_right_is_not_complained_of_and_guarantees_are_told() -> None:
    destination(PLACE, ["id", "n"]).check()
    merging = destination(
        PLACE.replace("redshift:", "redshift-data:").replace(":5439", "") + "&mode=merge&key=id", None
    )
    merging.check()
    assert merging.guarantee.startswith("exactly once, of each key its last record alone")
    with pytest.raises(ConfigError, match="a field 'flowkit_row', which flowkit writes"):
        destination(PLACE, ["id", "flowkit_row"]).check()


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Load into table 't' failed.  Check 'sys_load_error_detail' system table for details.", Refused),
        ("ERROR: Cannot insert a NULL value; null value in column violates not-null constraint", Refused),
        ("ERROR: permission denied for relation t", SinkError),
        ('ERROR: relation "t" does not exist', SinkError),
        ("ERROR: User arn:aws:redshift:… is not authorized to assume IAM Role", SinkError),
        ("ERROR: 1023 DETAIL: Serializable isolation violation on table - 100", TryAgain),
        ("ERROR: The specified S3 prefix 'x/y.json.gz' does not exist", TryAgain),
        ("ABORTED", TryAgain),
    ],
)
def test_what_an_error_means_is_told_by_its_words_where_it_has_no_code(said: str, kind: type[Exception]) -> None:
    assert type(by_words(said, "x")) is kind


@pytest.mark.parametrize(
    ("state", "kind"),
    [("22001", Refused), ("23502", Refused), ("40001", TryAgain), ("57P01", TryAgain), ("42501", SinkError),
     ("28P01", SinkError), ("XX000", TryAgain)],
)  # fmt: skip
def test_what_an_error_means_is_told_by_its_code(state: str, kind: type[Exception]) -> None:
    error = RuntimeError("it failed")
    error.sqlstate = state  # type: ignore[attr-defined]
    assert type(told_apart(error, "x")) is kind


def test_what_is_no_error_of_the_driver_stays_what_it_is() -> None:
    error = RuntimeError("ours")
    assert told_apart(error, "x") is error
    assert type(told_apart(OSError("gone"), "x")) is TryAgain


PLAIN: list[bytes | None] = [b'{"id":1}', b'{"id":"{"}', b'{"a":{"b":1}}']
ODD = {
    "empty": b"{}",
    "space": b'{ "id":1}',
    "two lines": b'{"id":\n1}',
    "array": b'[{"id":1}]',
    "long": b'{"id":"%b"}' % (b"x" * (4 << 20)),
    "tombstone": None,
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("place", range(4))
def test_values_are_lines_as_they_are_if_all_are_plainly_objects_on_a_line(odd: str, place: int) -> None:
    assert Lines(()).of([None] * 3, PLAIN) is PLAIN
    values = [*PLAIN[:place], ODD[odd], *PLAIN[place:]]
    made = Lines(()).of([None] * 4, values)
    assert made == [Lines(()).line(n, None, value) for n, value in enumerate(values)]
