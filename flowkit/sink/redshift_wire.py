"""The two ways to Redshift: a connection that speaks PostgreSQL's protocol, and the Data API, which is HTTP.

Both run a query, and a list of statements as one transaction. An error is one of three: TryAgain (it passes, or nobody
knows whether it was done), Refused (the data is to blame) or SinkError (someone has to do something).
"""

import asyncio
import re
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import structlog

from flowkit.aws import Condition, Right, arn
from flowkit.errors import ConfigError, SinkError
from flowkit.sink.calls import called
from flowkit.sink.dispatch import Refused, TryAgain

log = structlog.get_logger("flowkit.sink")

CONNECT_SECONDS = 15.0
STATEMENT_SECONDS = 900.0
"""A statement that takes longer has probably lost its connection."""


class Wire(Protocol):
    """One way."""

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What a query gives."""

    async def transaction(self, statements: Sequence[str]) -> None:
        """All of them, or none."""

    async def close(self) -> None: ...


# --- PostgreSQL's protocol


class Address(NamedTuple):
    """Where a cluster listens. `user` None: PGUSER. The password is PGPASSWORD, or in the file PGPASSFILE names."""

    host: str
    port: int
    database: str
    user: str | None = None
    tls: str = "verify"
    tls_ca: str | None = None


async def connect(address: Address) -> Any:
    """A connection by asyncpg."""
    asyncpg = driver()
    context: Any = False
    if address.tls != "no":
        context = ssl.create_default_context(cafile=address.tls_ca)
        if address.tls == "require":
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return await asyncpg.connect(
        host=address.host,
        port=address.port,
        database=address.database,
        user=address.user,
        ssl=context,
        timeout=CONNECT_SECONDS,
        command_timeout=STATEMENT_SECONDS,
        statement_cache_size=0,  # Redshift, and poolers, keep no prepared statements for us
    )


def driver() -> Any:
    """Asyncpg. Raises ConfigError if it is not installed."""
    try:
        import asyncpg
    except ImportError:
        raise ConfigError("redshift:// needs asyncpg: pip install 'flowkit[redshift]'") from None
    return asyncpg


class PostgresWire:
    """A connection, opened when it is needed and again after any failure. One thing at a time."""

    def __init__(self, address: Address, where: str) -> None:
        self.address, self.where = address, where
        self._connection: Any = None
        self._lock = asyncio.Lock()

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """As the protocol says."""
        async with self._lock:
            try:
                return [tuple(row) for row in await (await self._open()).fetch(sql)]
            except Exception as error:
                await self.close()
                raise told_apart(error, self.where) from error

    async def transaction(self, statements: Sequence[str]) -> None:
        """As the protocol says."""
        async with self._lock:
            try:
                connection = await self._open()
                for sql in ("BEGIN", *statements, "COMMIT"):
                    await connection.execute(sql)
            except Exception as error:
                meaning = told_apart(error, self.where)
                await self._take_back(stay=isinstance(meaning, Refused))
                raise meaning from error
            except BaseException:
                await self._take_back(stay=False)
                raise

    async def close(self) -> None:
        """As the protocol says."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _take_back(self, *, stay: bool) -> None:
        """Undo what was begun; unless the connection is well and shall `stay`, by ending that."""
        if stay:
            try:
                await self._connection.execute("ROLLBACK")
            except Exception:  # noqa: BLE001  it is opened again
                log.debug("no rollback", sink=self.where)
            else:
                return
        await self.close()

    async def _open(self) -> Any:
        if self._connection is None:
            self._connection = await connect(self.address)
        return self._connection


PASSING = ("08", "25", "40", "53", "55", "57", "58")
DATA = ("22", "23")
PERSON = ("0A", "0L", "0P", "28", "3D", "3F", "42")
"""Classes of SQLSTATE."""

_WORDS: tuple[tuple[type[Exception], re.Pattern[str]], ...] = (
    # Another that loads the same has removed the object: it is written again.
    (TryAgain, re.compile(r"s3 prefix .* does not exist|key does not exist|nosuchkey", re.IGNORECASE)),
    (
        Refused,
        re.compile(r"load into table|load_error|value too long|invalid input|violates|null in", re.IGNORECASE),
    ),
    (
        SinkError,
        re.compile(
            r"permission denied|does not exist|syntax error|not authorized|access ?denied|iam_role|nosuchbucket|"
            r"password authentication|already exists|not supported",
            re.IGNORECASE,
        ),
    ),
)
"""By what Redshift says where it gives no SQLSTATE of its own (XX000, and the Data API). All else passes."""


def told_apart(error: Exception, where: str) -> Exception:
    """What an error of the driver means; itself if it is none of a driver."""
    if isinstance(error, TryAgain | Refused | SinkError | ConfigError):
        return error
    state = getattr(error, "sqlstate", None)
    said = f"{type(error).__name__}: {error}" if state is None else f"{error} ({state})"
    if isinstance(error, ssl.SSLCertVerificationError):
        return SinkError(f"{where}: {said}: name who signed it (?tls_ca=FILE), or say ?tls=require")
    if state is None:
        asyncpg = driver()
        passing = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)
        return TryAgain(said) if isinstance(error, passing) else error
    if state.startswith(DATA):
        return Refused(state, said)
    if state.startswith(PERSON):
        return SinkError(f"{where}: {said}")
    return TryAgain(said) if state.startswith(PASSING) else by_words(str(error), where)


def by_words(said: str, where: str) -> Exception:
    """What a message means.

    >>> by_words("ERROR: Load into table 't' failed. Check 'sys_load_error_detail' system table", "x")
    Refused("ERROR: Load into table 't' failed. Check 'sys_load_error_detail' system table")
    """
    for kind, words in _WORDS:
        if words.search(said):
            if kind is TryAgain:
                break
            return Refused("LoadError", said) if kind is Refused else SinkError(f"{where}: {said}")
    return TryAgain(said)


# --- The Data API


class Cluster(NamedTuple):
    """Which one: a serverless workgroup, or a cluster. None: the credentials of the worker itself."""

    workgroup: str | None
    cluster: str | None
    database: str
    secret: str | None = None
    user: str | None = None

    def arguments(self) -> dict[str, str]:
        """As the API's calls take it."""
        named = {
            "WorkgroupName": self.workgroup,
            "ClusterIdentifier": self.cluster,
            "Database": self.database,
            "SecretArn": self.secret,
            "DbUser": self.user,
        }
        return {name: value for name, value in named.items() if value is not None}

    def rights(self, region: str | None) -> list[Right]:
        """What a role has to be allowed to hand statements in there, and to sign in as what it says.

        Whom the API signs in by is as its operation ExecuteStatement is documented.
        """
        if self.workgroup is not None:  # whose ARN ends with an id that nobody has named
            place = arn("redshift-serverless", "workgroup/*", region)
            signs_in = [Right("redshift-serverless", ("GetCredentials",), place)]
        else:
            place = arn("redshift", f"cluster:{self.cluster}", region)
            named = arn("redshift", f"dbname:{self.cluster}/{self.database}", region)
            if self.user is None:
                signs_in = [Right("redshift", ("GetClusterCredentialsWithIAM",), named)]
            else:
                user = arn("redshift", f"dbuser:{self.cluster}/{self.user}", region)
                signs_in = [Right("redshift", ("GetClusterCredentials",), each) for each in (user, named)]
        if self.secret is not None:
            signs_in = [Right("secretsmanager", ("GetSecretValue",), self.secret)]
        asks = Right("redshift-data", ("DescribeStatement", "GetStatementResult"), "*", (_OURS,))
        return [Right("redshift-data", ("BatchExecuteStatement", "ExecuteStatement"), place), asks, *signs_in]


_OURS = Condition("StringEquals", "redshift-data:statement-owner-iam-userid", ("${aws:userid}",))
"""A statement's id is no resource: it is told by who has handed it in."""

FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0
"""Seconds between questions whether a statement has ended."""


class DataWire:
    """The Data API: statements are handed in, and asked after until they have ended."""

    def __init__(self, client: Any, cluster: Cluster, where: str) -> None:
        self.client, self.cluster, self.where = client, cluster, where

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """As the protocol says."""
        made = await called(self.where, self.client.execute_statement(Sql=sql, **self.cluster.arguments()))
        await self._ended(made["Id"])
        found: list[tuple[Any, ...]] = []
        more: dict[str, str] = {}
        while True:
            page = await called(self.where, self.client.get_statement_result(Id=made["Id"], **more))
            found += [tuple(map(_value, record)) for record in page["Records"]]
            if not page.get("NextToken"):
                return found
            more = {"NextToken": page["NextToken"]}

    async def transaction(self, statements: Sequence[str]) -> None:
        """As the protocol says: a batch is one."""
        call = self.client.batch_execute_statement(Sqls=list(statements), **self.cluster.arguments())
        await self._ended((await called(self.where, call))["Id"])

    async def close(self) -> None:
        """As the protocol says."""

    async def _ended(self, number: str) -> None:
        wait = FIRST_WAIT
        while True:
            found = await called(self.where, self.client.describe_statement(Id=number))
            if found["Status"] == "FINISHED":
                return
            if found["Status"] in ("FAILED", "ABORTED"):
                failed = [str(each["Error"]) for each in found.get("SubStatements", ()) if each.get("Error")]
                raise by_words("; ".join([found.get("Error") or found["Status"], *failed]), self.where)
            await asyncio.sleep(wait)
            wait = min(LONGEST_WAIT, wait * 1.5)


def _value(field: dict[str, Any]) -> Any:
    return None if field.get("isNull") else next(iter(field.values()))


def ca_problem(where: str, tls_ca: str | None) -> str:
    """What can be told of a certificate's file beforehand; '' if nothing."""
    if tls_ca is not None and not Path(tls_ca).is_file():
        return f"{where}: tls_ca={tls_ca}: no such file"
    return ""
