"""What stands in for Redshift in tests: real PostgreSQL, and here what it does not have.

`COPY … FROM 's3://…'`   read here, by the client's side, from the S3 server, and put into the temporary table; the
                         statement's words are checked, what the role may do is not
the Data API             an HTTP server of ours that does on PostgreSQL what it is asked

So what is proved is the protocol: transactions, their order, MERGE, what a loss between any two steps leaves. That
Redshift itself understands the words is taken from its documentation.
"""

import gzip
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
from aiohttp import web

from flowkit.aws import AwsOptions, open_client
from flowkit.sink import redshift_wire
from tests.aws.serving import serving

COPY = re.compile(
    r"COPY (\w+) FROM 's3://([^/']+)/([^']+)' IAM_ROLE 'arn:aws:iam::123456789012:role/copy'(?: REGION '([a-z0-9-]+)')?"
    r" FORMAT AS JSON 'auto ignorecase' GZIP TIMEFORMAT 'auto' DATEFORMAT 'auto' COMPUPDATE OFF STATUPDATE OFF"
)


def stand_in(look: Callable[[str], None]) -> None:
    """From now on the sink of this process, which is to end with it, gets such connections.

    `look` hears of each statement: `statement before`, and when that is done `statement after`.
    """
    real, opened = redshift_wire.connect, AsyncExitStack()
    s3: Any = None

    async def connect(address: Any) -> AsRedshift:
        nonlocal s3
        if s3 is None:
            s3 = await opened.enter_async_context(open_client("s3", AwsOptions(), "s3"))
        return AsRedshift(await real(address), s3, lambda when, sql: look(f"statement {when}"))

    redshift_wire.connect = connect


class AsRedshift:
    """A connection to PostgreSQL that can COPY. `step` is called before and after each statement, and may raise."""

    def __init__(self, connection: Any, s3: Any, step: Callable[[str, str], Any] | None = None) -> None:
        self.connection, self.s3 = connection, s3
        self.step = step or (lambda when, sql: None)

    async def execute(self, sql: str) -> None:
        await self._step("before", sql)
        if sql.startswith("COPY"):
            await self._copy(sql)
        else:
            await self.connection.execute(sql)
        await self._step("after", sql)

    async def fetch(self, sql: str) -> Any:
        await self._step("before", sql)
        return await self.connection.fetch(sql)

    def terminate(self) -> None:
        self.connection.terminate()

    async def _step(self, when: str, sql: str) -> None:
        waiting = self.step(when, sql)
        if waiting is not None:
            await waiting(self.connection)

    async def _copy(self, sql: str) -> None:
        match = COPY.fullmatch(sql)
        assert match is not None, sql
        try:
            listed = await self.s3.list_objects_v2(Bucket=match[2], Prefix=match[3])
            (key,) = [each["Key"] for each in listed.get("Contents", ())]
            got = await self.s3.get_object(Bucket=match[2], Key=key)
        except (ValueError, self.s3.exceptions.NoSuchKey):
            raise asyncpg.InternalServerError(f"The specified S3 prefix '{match[3]}' does not exist") from None
        lines = gzip.decompress(await got["Body"].read()).decode().splitlines()
        lowered = [json.dumps({name.lower(): value for name, value in json.loads(line).items()}) for line in lines]
        try:
            await self.connection.execute(
                f"INSERT INTO {match[1]} SELECT row.* FROM unnest($1::text[]) AS line, "
                f"json_populate_record(NULL::{match[1]}, line::json) AS row",
                lowered,
            )
        except asyncpg.DataError as error:  # as Redshift words it, which gives no SQLSTATE of its own
            table = match[1]
            raise asyncpg.InternalServerError(
                f"Load into table '{table}' failed.  Check 'sys_load_error_detail' system table for details. [{error}]"
            ) from error


@asynccontextmanager
async def data_api(connect: Callable[[], Any]) -> AsyncIterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """A server of the Data API that works by connections that `connect` gives; its URL, and what it was asked."""
    asked: list[tuple[str, dict[str, Any]]] = []
    statements: dict[str, dict[str, Any]] = {}
    tokens: dict[str, str] = {}

    async def run(sqls: list[str], batch: bool) -> dict[str, Any]:
        connection = await connect()
        try:
            if not batch:
                rows = [list(row) for row in await connection.fetch(sqls[0])]
                return {"Status": "FINISHED", "rows": rows}
            for sql in ("BEGIN", *sqls, "COMMIT"):
                await connection.execute(sql)
        except asyncpg.PostgresError as error:
            return {"Status": "FAILED", "Error": f"ERROR: {error}"}
        finally:
            connection.terminate()
        return {"Status": "FINISHED", "rows": []}

    async def answer(action: str, given: dict[str, Any]) -> Any:
        if action in ("ExecuteStatement", "BatchExecuteStatement"):
            assert given["Database"] == "postgres"
            assert given.get("WorkgroupName", given.get("ClusterIdentifier")) == "group"
            sqls = given["Sqls"] if action.startswith("Batch") else [given["Sql"]]
            assert 1 <= len(sqls) <= 40
            number = tokens.get(given["ClientToken"])
            if number is None:  # else it is the same once more
                number = tokens[given["ClientToken"]] = str(uuid.uuid4())
                statements[number] = {**await run(sqls, action.startswith("Batch")), "asked": 0}
            return {"Id": number}
        found = statements[given["Id"]]
        if action == "DescribeStatement":
            found["asked"] += 1
            if found["asked"] == 1:
                return {"Id": given["Id"], "Status": "STARTED"}
            return {"Id": given["Id"], **{name: found[name] for name in ("Status", "Error") if name in found}}
        assert action == "GetStatementResult"
        at = int(given.get("NextToken", "0"))
        page = {"Records": [[_field(value) for value in row] for row in found["rows"][at : at + 2]]}
        return page | ({"NextToken": str(at + 2)} if at + 2 < len(found["rows"]) else {})

    async def handle(request: web.BaseRequest) -> web.Response:
        action = request.headers["X-Amz-Target"].removeprefix("RedshiftData.")
        given = json.loads(await request.read())
        asked.append((action, given))
        body = json.dumps(await answer(action, given))
        return web.Response(text=body, content_type="application/x-amz-json-1.1")

    async with serving(handle) as url:
        yield url, asked


def _field(value: Any) -> dict[str, Any]:
    if value is None:
        return {"isNull": True}
    return {"longValue": value} if isinstance(value, int) else {"stringValue": str(value)}
