"""The statements of one load: what was staged in S3 becomes rows, with a line in the commits table, or not at all.

    LOCK            the commits table: loads of one table come one after the other, and see what those before have done
    COPY            the object into a temporary table
    INSERT | MERGE  from there, unless the commits table knows these records already
    DELETE, INSERT  the line in the commits table, and old ones go

They are one transaction, and can all be said beforehand: nothing has to be decided in between, so that they may be sent
one by one or as a batch. All but COPY means the same to Redshift and to PostgreSQL 15.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

STAGE, LAST = "flowkit_stage", "flowkit_last"
ROW, GONE = "flowkit_row", "flowkit_gone"
"""Columns that stand in each staged line beside the record's own: its number, and 1 for a tombstone."""
KEPT = 100
"""Lines of so many hand-offs are kept of each task."""


class Target(NamedTuple):
    """The table, those of its columns that records have, and its commits table. No `keys`: it is added to."""

    schema: str
    table: str
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    commits: str

    @property
    def name(self) -> str:
        """As SQL has it."""
        return f"{quoted(self.schema)}.{quoted(self.table)}"

    @property
    def commits_name(self) -> str:
        """As SQL has it."""
        return f"{quoted(self.schema)}.{quoted(self.commits)}"


class Load(NamedTuple):
    """Rows `[first, stop)` of hand-off `number` of a task; `handoff` is an id that no other hand-off has."""

    task: str
    number: int
    handoff: str
    first: int
    stop: int
    tombstones: bool
    at: str
    """When, for people: a time as SQL has it."""


class Copied(NamedTuple):
    """Where COPY finds the object: `s3://…`, with the rights of `role`, in `region` (None: the cluster's own)."""

    url: str
    role: str
    region: str | None = None


def columns_sql(schema: str, table: str) -> str:
    """The columns of a table."""
    return (
        "SELECT column_name FROM information_schema.columns "
        f"WHERE table_schema = {literal(schema)} AND table_name = {literal(table)} ORDER BY ordinal_position"
    )


def make_commits_sql(target: Target) -> str:
    """The commits table, if it is not there."""
    return (
        f"CREATE TABLE IF NOT EXISTS {target.commits_name} (task VARCHAR(512) NOT NULL, number BIGINT NOT NULL, "
        "handoff VARCHAR(64) NOT NULL, first_row BIGINT NOT NULL, stop_row BIGINT NOT NULL, loaded TIMESTAMP)"
    )


def loaded_sql(target: Target, task: str, handoff: str) -> str:
    """Which rows of a hand-off are loaded: first, stop."""
    return (
        f"SELECT first_row, stop_row FROM {target.commits_name} "
        f"WHERE task = {literal(task)} AND handoff = {literal(handoff)}"
    )


def newest_sql(target: Target, task: str) -> str:
    """The last hand-off of a task: its number, or null."""
    return f"SELECT MAX(number) FROM {target.commits_name} WHERE task = {literal(task)}"


def load_sql(target: Target, load: Load, copied: Copied) -> list[str]:
    """The statements of one transaction."""
    columns = ", ".join(map(quoted, target.columns))
    unless = (
        f"NOT EXISTS (SELECT 1 FROM {target.commits_name} WHERE task = {literal(load.task)} AND "
        f"handoff = {literal(load.handoff)} AND first_row < {load.stop} AND stop_row > {load.first})"
    )
    statements = [
        # First of all: what the transaction sees is fixed by its first query.
        f"LOCK TABLE {target.commits_name}",
        (
            f"CREATE TEMPORARY TABLE {STAGE} AS SELECT {columns}, CAST(0 AS BIGINT) AS {ROW}, "
            f"CAST(0 AS INTEGER) AS {GONE} FROM {target.name} WHERE 1 = 0"
        ),
        copy_sql(copied),
    ]
    if target.keys:
        statements += _merge(target, columns, unless, tombstones=load.tombstones)
    else:
        statements.append(f"INSERT INTO {target.name} ({columns}) SELECT {columns} FROM {STAGE} WHERE {unless}")
    task, at = literal(load.task), literal(load.at)
    return [
        *statements,
        (
            f"DELETE FROM {target.commits_name} WHERE task = {task} AND (number <= {load.number - KEPT} OR "
            f"handoff = {literal(load.handoff)} AND first_row = {load.first} AND stop_row = {load.stop})"
        ),
        (
            f"INSERT INTO {target.commits_name} (task, number, handoff, first_row, stop_row, loaded) VALUES "
            f"({task}, {load.number}, {literal(load.handoff)}, {load.first}, {load.stop}, CAST({at} AS TIMESTAMP))"
        ),
        f"DROP TABLE {STAGE}",
    ]


def copy_sql(copied: Copied) -> str:
    """COPY of one object of JSON lines into the temporary table."""
    region = "" if copied.region is None else f" REGION {literal(copied.region)}"
    return (
        f"COPY {STAGE} FROM {literal(copied.url)} IAM_ROLE {literal(copied.role)}{region} "
        "FORMAT AS JSON 'auto ignorecase' GZIP TIMEFORMAT 'auto' DATEFORMAT 'auto' COMPUPDATE OFF STATUPDATE OFF"
    )


def _merge(target: Target, columns: str, unless: str, *, tombstones: bool) -> list[str]:
    """The last record of each key. Redshift merges from tables alone, and refuses a key that comes twice."""
    keys = ", ".join(map(quoted, target.keys))
    same = " AND ".join(f"{quoted(target.table)}.{quoted(key)} = {LAST}.{quoted(key)}" for key in target.keys)
    rest = [name for name in target.columns if name not in target.keys] or target.keys
    sets = ", ".join(f"{quoted(name)} = {LAST}.{quoted(name)}" for name in rest)
    values = ", ".join(f"{LAST}.{quoted(name)}" for name in target.columns)
    statements = [
        (
            f"CREATE TEMPORARY TABLE {LAST} AS SELECT {columns}, {GONE} FROM (SELECT {columns}, {GONE}, "
            f"ROW_NUMBER() OVER (PARTITION BY {keys} ORDER BY {ROW} DESC) AS flowkit_nth FROM {STAGE} WHERE {unless}) "
            "AS ranked WHERE flowkit_nth = 1"
        )
    ]
    if tombstones:
        statements += [
            f"DELETE FROM {target.name} USING {LAST} WHERE {same} AND {LAST}.{GONE} = 1",
            f"DELETE FROM {LAST} WHERE {GONE} = 1",
        ]
    return [
        *statements,
        (
            f"MERGE INTO {target.name} USING {LAST} ON {same} WHEN MATCHED THEN UPDATE SET {sets} "
            f"WHEN NOT MATCHED THEN INSERT ({columns}) VALUES ({values})"
        ),
        f"DROP TABLE {LAST}",
    ]


def quoted(name: str) -> str:
    """A name.

    >>> quoted('a"b')
    '"a""b"'
    """
    return '"{}"'.format(name.replace('"', '""'))


def literal(text: str) -> str:
    """A string. There is no backslash in it, which may mean more than itself.

    >>> literal("o'clock")
    "'o''clock'"
    """
    assert "\\" not in text, text
    return "'{}'".format(text.replace("'", "''"))


def plain(names: Sequence[str]) -> list[str]:
    """Those of `names` that cannot be a schema, a table or a column here."""
    return [name for name in names if not re.fullmatch(r"[^\W\d][\w$-]{0,126}", name)]
