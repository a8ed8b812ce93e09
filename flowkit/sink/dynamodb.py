"""DynamoDB as a destination: `dynamodb://TABLE`, or the table's ARN. A record is an item, a tombstone removes one.

    ?write=conditional   each write under a condition on the item's version: what comes again or late changes nothing
    ?write=batch         25 items a request, without conditions: cheaper, and the last one to write wins
    ?version=NAME        the attribute of the version; default flowkit_version (dynamodb_versions.py has the rule)
    ?ttl=NAME            the attribute that the table's TTL looks at, in epoch seconds: the record's own time of this
                         name (ISO 8601, or ms since the epoch) if it has one, else its event time with `ttl_after`
    ?ttl_after=7d        how long after that time the item expires
    ?tombstone=mark      a tombstone leaves the item's key, its version, and `flowkit_deleted`; default `remove`
    ?every=yes           each record is written; default `no`: of one commit only the last one for an item
    ?calls=32            requests under way at once, of each task

The table's key is read from the table: each record needs these fields. DynamoDB removes expired items when it finds
time, hours later too: who reads has to look at the TTL attribute, as for `flowkit_deleted`.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, Self

import structlog

from flowkit.aws import AwsOptions, Right, arn, code_of
from flowkit.errors import ConfigError
from flowkit.sink.calls import bulk_client, called, described, until_known
from flowkit.sink.dispatch import Again, Dispatch, Item, Limits, Never, Outcome
from flowkit.sink.dynamodb_items import ITEM_BYTES, KeySchema, Unfit, decoded, item_of, key_bytes
from flowkit.sink.dynamodb_ttl import Expiry
from flowkit.sink.dynamodb_versions import Versions, settled
from flowkit.sink.records import RecordSink, Row
from flowkit.sink.seam import SinkTask
from flowkit.sink.url_options import UrlOptions

log = structlog.get_logger("flowkit.sink")

BATCH_ITEMS, BATCH_BYTES = 25, 16_000_000
"""As the API's model says (botocore, BatchWriteItem). Of an item's bytes as they are counted; JSON adds to them."""

DELETED = "flowkit_deleted"
NAME = re.compile(r"[a-zA-Z0-9_.-]{3,255}|arn:[a-z0-9-]+:dynamodb:[a-z0-9-]+:\d+:table/[a-zA-Z0-9_.-]{3,255}")


class Write(NamedTuple):
    """What is to become of one item: `item` None removes it. `version` as `Versions` tells it apart."""

    key: dict[str, Any]
    item: dict[str, Any] | None
    order: int | None
    number: int


class TableOptions(NamedTuple):
    """What a URL says beside how the service is reached. See the head of this file."""

    batch: bool = False
    version: str = "flowkit_version"
    ttl: str | None = None
    ttl_after: int | None = None
    mark: bool = False
    every: bool = False
    calls: int = 32


class DynamoDestination:
    """One table. See the head of this file."""

    codec = "json"

    def __init__(
        self,
        table: str,
        aws: AwsOptions,
        where: str,
        fields: Sequence[str] | None = None,
        options: TableOptions = TableOptions(),  # noqa: B008
    ) -> None:
        self.where, self.aws, self.fields, self.options = where, aws, fields, options
        self.versions = Versions(options.version)
        self.expiry = None if options.ttl is None else Expiry(options.ttl, options.ttl_after)
        self.keys: KeySchema | None = None
        self.unchanged = 0
        """How many writes found a version that was as new: they had come before, or too late."""
        self._table = table
        self._client: Any = None
        self._stack = AsyncExitStack()

    @property
    def guarantee(self) -> str:
        """As the protocol says."""
        if self.options.batch:
            return "at least once, and the last one to write an item wins: what comes late after a failure may do so"
        return "effectively once: an item is written only by what is newer than it"

    async def __aenter__(self) -> Self:
        """Raises ConfigError if there is no such table, or the records do not fit its key or its TTL."""
        async with AsyncExitStack() as stack:
            self._client = await stack.enter_async_context(
                bulk_client("dynamodb", self.aws, self.where, self.options.calls)
            )
            await self._look()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _look(self) -> None:
        """Learn the table's key, if the service answers."""
        found = await described(
            self.where,
            self._client.describe_table(TableName=self._table),
            right="dynamodb:DescribeTable",
            missing="make it with `aws dynamodb create-table`, or mend the name",
        )
        if found is None:
            return
        table = found["Table"]
        if table.get("TableStatus") in ("CREATING", "DELETING"):
            status = table["TableStatus"]
            raise ConfigError(f"{self.where}: is {status}: wait until it is ACTIVE, or make it again")
        keys = KeySchema.of(table)
        problems = self._key_problems(keys)
        if self.expiry is not None:
            told = await described(
                self.where,
                self._client.describe_time_to_live(TableName=self._table),
                right="dynamodb:DescribeTimeToLive",
                missing="make it again",
            )
            if told is not None:
                problems += self.expiry.problems(self._table, self.where, told["TimeToLiveDescription"])
        if problems:
            raise ConfigError(*problems)
        self.keys = keys

    def _key_problems(self, keys: KeySchema) -> list[str]:
        lacking = [name for name in keys.names if self.fields is not None and name not in self.fields]
        ours = {*self.versions.names, DELETED, self.options.ttl}
        problems = [
            f"{self.where}: {name!r} is a key of the table, and cannot be what flowkit writes: name another attribute"
            for name in keys.names
            if name in ours
        ]
        if lacking:
            key, has = " and ".join(map(repr, keys.names)), ", ".join(map(repr, self.fields or ()))
            problems.append(
                f"{self.where}: the table's key is {key}, and the records have {has}: "
                f"{' and '.join(map(repr, lacking))} is missing: add the field, or name it so (rename= of a Record)"
            )
        return problems

    def check(self) -> None:
        """As the protocol says."""
        problems, options = [], self.options
        if not NAME.fullmatch(self._table):
            problems.append(f"{self.where}: needs a table's name (3 to 255 letters, digits, _ . -) or ARN")
        taken = {*(() if options.batch else self.versions.names), *((DELETED,) if options.mark else ())}
        problems += [
            f"{self.where}: records have a field {name!r}, which flowkit writes: rename it"
            + ("" if name == DELETED else ", or give another ?version=NAME")
            for name in sorted(taken & set(self.fields or ()))
        ]
        if options.batch and options.mark:
            problems.append(f"{self.where}: tombstone=mark keeps a version, and write=batch has none: leave one out")
        if options.ttl in taken:
            problems.append(f"{self.where}: ttl={options.ttl}: is the attribute of the version: name another one")
        if options.ttl is None and options.ttl_after is not None:
            problems.append(f"{self.where}: ttl_after= needs ttl=NAME: the attribute that the table's TTL looks at")
        if options.ttl is not None and options.ttl_after is None and options.ttl not in (self.fields or (options.ttl,)):
            problems.append(
                f"{self.where}: ttl={options.ttl}: no record has such a field: name one that is a time, "
                "or say ttl_after=7d, which counts from the event's time"
            )
        if problems:
            raise ConfigError(*problems)

    def writers(self, groups: Sequence[str], tasks: int, largest: int) -> str:
        """Any number can: each item tells what is newer."""
        return ""

    def rights(self) -> Sequence[Right]:
        """As the protocol says. What removes an item is a record that is None: one of a type with fields never is."""
        actions = ["DescribeTable"]
        if self.expiry is not None:
            actions.append("DescribeTimeToLive")
        if self.options.batch:
            actions.append("BatchWriteItem")
        else:
            actions.append("PutItem")
            if self.fields is None and not self.options.mark:
                actions.append("DeleteItem")
        return (Right("dynamodb", tuple(actions), arn("dynamodb", f"table/{self._table}", self.aws.region)),)

    def sink(self, task: SinkTask) -> RecordSink:
        """As the protocol says."""
        if self.options.batch:
            dispatch = Dispatch(self.where, self._send_batch, Limits(BATCH_ITEMS, BATCH_BYTES, self.options.calls))
        else:
            dispatch = Dispatch(self.where, self._send_one, Limits(1, BATCH_BYTES, self.options.calls))
        settle = None if self.options.every else self._settle
        return RecordSink(dispatch, self._make, task.clock, codec=self.codec, ready=self._ready, settle=settle)

    async def _ready(self) -> None:
        """The key is known. Tried for as long as it takes: no record can be made into an item before."""
        await until_known(self._look, lambda: self.keys is not None)

    def _settle(self, items: list[Item]) -> list[Item]:
        return settled(items, batch=self.options.batch)

    def _make(self, index: int, row: Row) -> Item | Never:
        try:
            return self._made(index, row)
        except Unfit as unfit:
            return unfit.never

    def _made(self, index: int, row: Row) -> Item:
        assert self.keys is not None
        if row.value is None or row.value == b"null":
            key = self.keys.of_record_key(row.key)
            item, size = ({**key, DELETED: {"BOOL": True}} if self.options.mark else None), 0
            value: Mapping[str, Any] = {}
        else:
            value = decoded(row.value)
            key = self.keys.of_value(value)
            item, size = item_of(value)
            item |= key  # of type B if the table says so
        if item is not None:
            if not self.options.batch:
                size += self.versions.stamp(item, row.order, row.number)
            if self.expiry is not None:
                size += self.expiry.stamp(item, value, row.time)
            if size > ITEM_BYTES:
                raise Unfit("ItemTooLarge", f"{size} bytes as DynamoDB counts, and an item may have {ITEM_BYTES}")
        return Item(index, key_bytes(key), size or 1, Write(key, item, row.order, row.number))

    async def _send_one(self, items: Sequence[Item]) -> None:
        (item,) = items
        await called(self.where, self._write(item.body))

    async def _write(self, write: Write) -> None:
        from botocore.exceptions import ClientError

        condition = self.versions.condition(write.order, write.number)
        try:
            if write.item is None:
                await self._client.delete_item(TableName=self._table, Key=write.key, **condition)
            else:
                await self._client.put_item(TableName=self._table, Item=write.item, **condition)
        except ClientError as error:
            if code_of(error) != "ConditionalCheckFailedException":
                raise
            self.unchanged += 1

    async def _send_batch(self, items: Sequence[Item]) -> Sequence[Outcome] | None:
        requests = [
            {"DeleteRequest": {"Key": write.key}} if write.item is None else {"PutRequest": {"Item": write.item}}
            for write in (item.body for item in items)
        ]
        answer = await called(self.where, self._client.batch_write_item(RequestItems={self._table: requests}))
        left = [request for of_table in answer.get("UnprocessedItems", {}).values() for request in of_table]
        if not left:
            return None
        keys = {self._key_of(request) for request in left}
        again = Again(f"{len(left)} of {len(items)} items were left unprocessed: too fast for the table", slow=True)
        return [again if item.key in keys else None for item in items]

    def _key_of(self, request: Mapping[str, Any]) -> bytes:
        assert self.keys is not None
        found = request["PutRequest"]["Item"] if "PutRequest" in request else request["DeleteRequest"]["Key"]
        return key_bytes({name: found[name] for name in self.keys.names})


def open_destination(
    place: str, options: Mapping[str, str], where: str, fields: Sequence[str] | None
) -> DynamoDestination:
    """As the registry asks for it."""
    aws, rest = AwsOptions.take(options, where)
    own = UrlOptions(rest, where)
    table = TableOptions(
        batch=own.choice("write", ("conditional", "batch")) == "batch",
        version=own.text("version") or TableOptions().version,
        ttl=own.text("ttl"),
        ttl_after=own.duration("ttl_after"),
        mark=own.choice("tombstone", ("remove", "mark")) == "mark",
        every=own.choice("every", ("no", "yes")) == "yes",
        calls=own.whole("calls", 32),
    )
    own.done(*AwsOptions._fields)
    return DynamoDestination(place, aws, where, fields, table)
