"""A table of Amazon Redshift as a destination.

    redshift://HOST:PORT/DB/SCHEMA.TABLE?stage=s3://BUCKET/PREFIX&role=ARN&mode=merge&key=id
    redshift-data://WORKGROUP/DB/SCHEMA.TABLE?…          by the Data API; &kind=cluster: WORKGROUP names a cluster

    stage        where records lie in S3 while they are loaded
    role         the IAM role by which Redshift reads there
    mode         append: rows are added (the default); merge: the last record of each key is its row, a tombstone none
    key          the columns that tell rows apart (a,b), for merge
    roll_bytes   a load is complete with so many bytes of records …                                     (16MiB)
    roll_after   … or so long after its first record, by the clock: each takes seconds, however small   (60s)
    commits      the table that tells what was loaded, made beside the other                 (TABLE_flowkit_commits)
    user, tls, tls_ca      redshift://: PGUSER; verify (the default), require, no; who signed the certificate
    secret, user           redshift-data://: a secret's ARN, or a database user; else the worker's own role
    bucket_region          if the bucket is not in the cluster's
    sse, kms_key, owner    how what is staged is encrypted, and whose the bucket has to be: as for s3://
    region, endpoint, profile, …    as for all services; for redshift:// they are those of the bucket

The password is never in a URL: PGPASSWORD, or the file that PGPASSFILE names (~/.pgpass) hold it. Columns are those of
the fields' names, in any case. `redshift_sql` says what is done in which transaction.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple, Self

import structlog

from flowkit.aws import AwsOptions, Condition, Right, S3Place, bucket_arn, literal, open_client
from flowkit.errors import ConfigError, SinkError
from flowkit.sink.dispatch import Refused, TryAgain
from flowkit.sink.redshift_sink import RedshiftSink, Rolling
from flowkit.sink.redshift_sql import GONE, ROW, Target, columns_sql, make_commits_sql, plain
from flowkit.sink.redshift_stage import Stage
from flowkit.sink.redshift_wire import Address, Cluster, DataWire, PostgresWire, Wire, ca_problem, driver
from flowkit.sink.seam import SinkTask
from flowkit.sink.url_options import UrlOptions

log = structlog.get_logger("flowkit.sink")

PORT = 5439
ROLL_BYTES, ROLL_AFTER = 16 << 20, 60_000
_ARN = re.compile(r"arn:[a-z0-9-]+:iam::\d{12}:role/[\w+=,.@/-]+|default")
_STAGE = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w!.*()/=-]*)?")


class TableOptions(NamedTuple):
    """What a URL says of the table, beside how it is reached."""

    schema: str
    table: str
    stage: S3Place | None
    role: str
    merge: bool
    keys: tuple[str, ...]
    commits: str
    rolling: Rolling
    bucket_region: str | None = None


class RedshiftDestination:
    """One table. See the head of this file. `way` is how its cluster is reached."""

    codec: str | None = "json"

    def __init__(
        self, way: Address | Cluster, aws: AwsOptions, where: str, fields: Sequence[str] | None, options: TableOptions
    ) -> None:
        self.where, self.aws, self.fields, self.options, self._way = where, aws, fields, options, way
        self.keys = options.keys
        last = ", of each key its last record alone" if options.merge else ""
        self.guarantee = (
            f"exactly once{last}: rows are committed together with a line in {options.commits!r} by which a load that "
            "comes again is known"
        )
        self.wire: Wire
        self.stage: Stage
        self._target: Target | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Raises ConfigError if there is no such table, or the records do not fit it."""
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(open_client("s3", self.aws, self.where))
            assert self.options.stage is not None
            self.stage = Stage(client, self.options.stage, self.options.role, self.options.bucket_region, self.where)
            if isinstance(self._way, Address):
                driver()
                self.wire = PostgresWire(self._way, self.where)
            else:
                data = await stack.enter_async_context(open_client("redshift-data", self.aws, self.where))
                self.wire = DataWire(data, self._way, self.where)
            stack.push_async_callback(self.wire.close)
            try:
                await self.ready()
            except TryAgain as error:
                log.warning("does not answer; what is for it waits", sink=self.where, reason=str(error))
            except SinkError as error:
                raise ConfigError(str(error)) from None
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def ready(self) -> Target:
        """The table, looked at once; its commits table is made. Raises SinkError, TryAgain."""
        if self._target is None:
            options = self.options
            there = [str(row[0]) for row in await self.wire.rows(columns_sql(options.schema, options.table))]
            target = self._fitting(there)
            try:
                if not await self.wire.rows(columns_sql(options.schema, options.commits)):
                    await self.wire.transaction([make_commits_sql(target)])
            except Refused as error:  # another made it just now
                raise TryAgain(str(error)) from error
            self._target = target
        return self._target

    def _fitting(self, there: Sequence[str]) -> Target:
        """The table's columns that records have. Raises SinkError with all that is lacking."""
        options = self.options
        name = f"{options.schema}.{options.table}"
        if not there:
            raise SinkError(f"{self.where}: there is no table {name}, or it may not be seen: make it, or mend the name")
        by_name = {column.lower(): column for column in there}
        wanted = there if self.fields is None else self.fields
        lacking = sorted({each for each in (*wanted, *options.keys) if each.lower() not in by_name})
        if lacking:
            raise SinkError(
                f"{self.where}: {name} has no column {', '.join(map(repr, lacking))}; it has {', '.join(there)}: "
                "add it, or name the fields so"
            )
        columns = tuple(by_name[each.lower()] for each in wanted)
        keys = tuple(by_name[each.lower()] for each in options.keys)
        return Target(options.schema, options.table, columns, keys, options.commits)

    def check(self) -> None:
        """As the protocol says."""
        options, problems = self.options, []
        names = [options.schema, options.table, options.commits, *options.keys, *(self.fields or ())]
        problems += [f"{self.where}: {name!r} can be no name of a table or column here" for name in plain(names)]
        if options.stage is None:
            problems.append(f"{self.where}: needs stage=s3://BUCKET/PREFIX: where records lie while they are loaded")
        if not _ARN.fullmatch(options.role):
            problems.append(f"{self.where}: needs role=ARN: the IAM role by which Redshift reads from there")
        if options.merge and not options.keys:
            problems.append(f"{self.where}: mode=merge needs key=COLUMN: what tells rows apart")
        if options.keys and not options.merge:
            problems.append(f"{self.where}: key= is for mode=merge")
        for name in {ROW, GONE} & set(self.fields or ()):
            problems.append(f"{self.where}: records have a field {name!r}, which flowkit writes: rename it")
        there = ", ".join(self.fields or ())
        problems += [
            f"{self.where}: key={name}: no record has such a field; there are {there}"
            for name in options.keys
            if self.fields is not None and name not in self.fields
        ]
        if isinstance(self._way, Address):
            problem = ca_problem(self.where, self._way.tls_ca)
            problems += [problem] if problem else []
        if problems:
            raise ConfigError(*problems)

    def rights(self) -> Sequence[Right]:
        """As the protocol says. The role by which Redshift reads what is staged is another: see `copy_rights`."""
        staged = Right("s3", ("DeleteObject", "PutObject"), self._staged())
        keys = self._place().key_rights("GenerateDataKey")
        return [staged, *keys, *(self._way.rights(self.aws.region) if isinstance(self._way, Cluster) else ())]

    def copy_rights(self) -> Sequence[Right]:
        """What the role has to be allowed that Redshift reads by (`role=`), as COPY is documented."""
        place = self._place()
        start = literal(place.start)
        under = (Condition("StringLike", "s3:prefix", (f"{start}*",)),) if start else ()
        return [
            Right("s3", ("GetObject",), self._staged()),
            Right("s3", ("ListBucket",), bucket_arn(place.bucket), under),
            *place.key_rights("Decrypt"),
        ]

    def _place(self) -> S3Place:
        assert self.options.stage is not None
        return self.options.stage._replace(region=self.options.bucket_region or self.aws.region)

    def _staged(self) -> str:
        place = self._place()
        return bucket_arn(place.bucket, f"{literal(place.start)}*")

    def writers(self, groups: Sequence[str], tasks: int, largest: int) -> str:
        """Any number can: their loads come one after the other."""
        return ""

    def sink(self, task: SinkTask) -> RedshiftSink:
        """As the protocol says."""
        return RedshiftSink(task, self, self.options.rolling)


def open_destination(
    place: str, options: Mapping[str, str], where: str, fields: Sequence[str] | None
) -> RedshiftDestination:
    """As the registry asks for it."""
    aws, rest = AwsOptions.take(options, where)
    own = UrlOptions(rest, where)
    parts = place.split("/")
    host, _, port = parts[0].partition(":")
    database, name = (parts[1], parts[2]) if len(parts) == 3 else ("", "")
    if not (host and database and name):
        own.problems.append(f"{where}: needs {where.partition('://')[0]}://HOST/DATABASE/SCHEMA.TABLE")
    way: Address | Cluster
    if where.startswith("redshift-data:"):
        named = own.choice("kind", ("workgroup", "cluster"))
        group, cluster = (host, None) if named == "workgroup" else (None, host)
        way = Cluster(group, cluster, database, own.text("secret"), own.text("user"))
        if port:
            own.problems.append(f"{where}: the Data API has no port")
    else:
        if port and not port.isdecimal():
            own.problems.append(f"{where}: port {port!r}: needs a number")
        number = int(port) if port.isdecimal() else PORT
        way = Address(host, number, database, own.text("user"), own.choice("tls", ("verify", "require", "no")),
                      own.text("tls_ca"))  # fmt: skip
    schema, _, table = name.rpartition(".")
    found = TableOptions(
        schema=schema or "public",
        table=table,
        stage=_stage(own),
        role=own.text("role") or "",
        merge=own.choice("mode", ("append", "merge")) == "merge",
        keys=tuple(key.strip() for key in (own.text("key") or "").split(",") if key.strip()),
        commits=own.text("commits") or f"{table}_flowkit_commits",
        rolling=_rolling(own),
        bucket_region=own.text("bucket_region"),
    )
    own.done(*AwsOptions._fields)
    return RedshiftDestination(way, aws, where, fields, found)


def _stage(own: UrlOptions) -> S3Place | None:
    stage = own.text("stage") or ""
    said = {name: own.text(name) or "" for name in ("sse", "kms_key", "owner")}
    if not _STAGE.fullmatch(stage):
        return None
    found, problems = S3Place.read(stage.removeprefix("s3://"), said, own.where)
    own.problems += problems
    return found


def _rolling(own: UrlOptions) -> Rolling:
    after = own.duration("roll_after")
    return Rolling(own.size("roll_bytes", 1, 1 << 30) or ROLL_BYTES, ROLL_AFTER if after is None else after)
