"""Who runs which task, and what it has committed, in a DynamoDB table: one row a task.

The rows have the shape of the Kinesis Client Library's, so that tools for its lease tables can read them.

    leaseKey                       the task; of a worker's own row `worker NAME`
    leaseOwner                     the worker that runs it; none: it is free
    leaseCounter                   grows with every sign of life
    checkpoint                     the sequence number up to which it has committed; TRIM_HORIZON, SHARD_END
    ownerSwitchesSinceCheckpoint   how often it changed hands since
    parentShardId                  the shards that its shard came from
    epoch, state, number, commitId, positions, ttl         what the task's next owner needs, and how long a lease lasts

No clock is compared with another one's: a lease is dead once its counter has stood still for its `ttl` as seen from
here. Each change is one conditional write, so of two owners one gets through: a commit counts by its write.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, Self, TypeVar

import msgspec
import structlog

from flowkit.aws import AwsOptions, Blame, Right, arn, blame_of, code_of, open_client, told
from flowkit.clock import Clock
from flowkit.errors import BrokerError, BrokerRefused, ConfigError, Fenced, OutcomeUnknown
from flowkit.source.rules import DEFAULT_TTL_MS, Claimed, Lease, must_apply

T = TypeVar("T")
log = structlog.get_logger("flowkit.leases")

WORKER = "worker "
START, END = "TRIM_HORIZON", "SHARD_END"
LOOKS = 4
"""So often within a lease's time the table is read whole."""
CREATE_SECONDS = 120

Item = dict[str, dict[str, Any]]


class Row(NamedTuple):
    """What is watched of a row: its counter, and when it was first seen to stand there (ms, this worker's clock)."""

    counter: int
    since: int


class DynamoLeases:
    """The lease table `table`. Use it within `async with`. Every method may raise BrokerError, naming the table."""

    def __init__(self, table: str, aws: AwsOptions, clock: Clock) -> None:
        self.table, self.url = table, f"dynamodb://{table}"
        self._aws, self._clock = aws, clock
        self._worker, self._ttl = "", DEFAULT_TTL_MS
        self._client: Any = None
        self._stack = AsyncExitStack()
        self._watched: dict[str, Row] = {}
        self._items: list[Item] = []
        self._read_at: int | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect, and make the table if it is not there. Raises ConfigError if it is not such a table."""
        self._client = await self._stack.enter_async_context(open_client("dynamodb", self._aws, self.url))
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise

    async def _open(self) -> None:
        found = await self._describe()
        if found is None:
            key = [{"AttributeName": "leaseKey", "AttributeType": "S"}]
            try:
                await self._client.create_table(
                    TableName=self.table,
                    AttributeDefinitions=key,
                    KeySchema=[{"AttributeName": "leaseKey", "KeyType": "HASH"}],
                    BillingMode="PAY_PER_REQUEST",
                )
                log.info("lease table made", table=self.table)
            except Exception as error:
                if code_of(error) != "ResourceInUseException":  # another worker has just made it
                    raise self._failed("creating it", error) from error
        for _ in range(CREATE_SECONDS):
            found = await self._describe()
            if found is not None and found["TableStatus"] == "ACTIVE":
                break
            await self._clock.sleep(1000)
        else:
            raise BrokerError(f"{self.url}: is not active after {CREATE_SECONDS} s")
        keys = [(each["AttributeName"], each["KeyType"]) for each in found["KeySchema"]]
        if keys != [("leaseKey", "HASH")]:
            raise ConfigError(f"{self.url}: is no lease table (its key is {keys}): name another one with leases=TABLE")

    async def _describe(self) -> dict[str, Any] | None:
        try:
            answer = await self._client.describe_table(TableName=self.table)
        except Exception as error:
            if code_of(error) == "ResourceNotFoundException":
                return None
            raise self._failed("looking at it", error) from error
        found: dict[str, Any] = answer["Table"]
        return found

    def rights(self) -> Sequence[Right]:
        """What has to be allowed. CreateTable is for the first worker of all, unless the table was made by hand."""
        return (Right("dynamodb", ACTIONS, arn("dynamodb", f"table/{self.table}", self._aws.region)),)

    async def close(self) -> None:
        """Disconnect. Leases stay until they are dead or released."""
        await self._stack.aclose()

    # Workers

    async def join(self, worker: str, ttl_ms: int, tasks: Sequence[str] = ()) -> None:
        """Become a member until `ttl_ms` after the last heartbeat. Claims are made under this name from now on."""
        item = {"leaseKey": {"S": WORKER + worker}, "leaseCounter": {"N": "0"}, "ttl": {"N": str(ttl_ms)}}
        await self._do("joining", self._client.put_item(TableName=self.table, Item=item))
        self._worker, self._ttl = worker, ttl_ms
        self._read_at = None

    async def heartbeat(self, worker: str) -> None:
        """A sign of life. Raises Fenced if the worker is unknown."""
        if not await self._update(
            WORKER + worker, "SET leaseCounter = leaseCounter + :one", "attribute_exists(leaseKey)"
        ):
            raise Fenced(f"worker {worker} is no member: join first")

    async def leave(self, worker: str) -> None:
        """Be no member any more, and give all tasks up."""
        key = {"leaseKey": {"S": WORKER + worker}}
        await self._do("leaving", self._client.delete_item(TableName=self.table, Key=key))
        self._read_at = None
        held = [item for item in await self._read() if _text(item, "leaseOwner") == worker]
        await asyncio.gather(*(self._let_go(_text(item, "leaseKey"), worker) for item in held))
        self._read_at = None

    async def _let_go(self, task: str, worker: str) -> None:
        await self._update(task, "REMOVE leaseOwner", "leaseOwner = :owner", {":owner": {"S": worker}}, grows=False)

    async def members(self, prefix: str = "") -> list[str]:
        """The living workers whose name begins with `prefix`, by name."""
        rows = [(_text(item, "leaseKey").removeprefix(WORKER), item) for item in await self._read() if _is_worker(item)]
        now = self._clock.now_ms()
        found = {name for name, item in rows if name.startswith(prefix) and self._expires(item) > now}
        if self._worker.startswith(prefix) and self._worker:
            found &= {name for name, _ in rows}  # never seen, and yet a member: it is we
        return sorted(found)

    # Tasks

    async def leases(self, prefix: str = "") -> list[Lease]:
        """The tasks whose name begins with `prefix` and that were ever claimed, by name."""
        items = [item for item in await self._read() if not _is_worker(item)]
        return sorted(
            (self._lease(item) for item in items if _text(item, "leaseKey").startswith(prefix)),
            key=lambda lease: lease.task,
        )

    async def claim(self, task: str, state: str, *, worker: str | None = None, seen: int | None = None) -> Claimed:
        """Become the task's owner: fences every earlier one. See `EmbeddedBroker.claim`."""
        owner = self._worker if worker is None else worker
        condition = "attribute_exists(leaseKey) OR attribute_not_exists(leaseKey)"
        values: Item = {
            ":owner": {"S": owner},
            ":state": {"S": state},
            ":ttl": {"N": str(self._ttl)},
            ":zero": {"N": "0"},
            ":one": {"N": "1"},
            ":start": {"S": START},
        }
        if seen is not None:
            condition = "epoch = :seen" if seen else "attribute_not_exists(epoch) OR epoch = :seen"
            values[":seen"] = {"N": str(seen)}
        call = self._client.update_item(
            TableName=self.table,
            Key={"leaseKey": {"S": task}},
            UpdateExpression="SET leaseOwner = :owner, #state = :state, #ttl = :ttl, "
            "epoch = if_not_exists(epoch, :zero) + :one, "
            "leaseCounter = if_not_exists(leaseCounter, :zero) + :one, "
            "checkpoint = if_not_exists(checkpoint, :start), "
            "ownerSwitchesSinceCheckpoint = if_not_exists(ownerSwitchesSinceCheckpoint, :zero) + :one",
            ConditionExpression=condition,
            ExpressionAttributeNames={"#state": "state", "#ttl": "ttl"},
            ExpressionAttributeValues=values,
            ReturnValues="ALL_OLD",
        )
        self._read_at = None
        try:
            answer = await self._do(f"claiming {task}", call)
        except _Refused:
            lease = await self._get(task)
            holder = "nobody" if lease is None or not lease.owner else lease.owner
            raise Fenced(f"task {task}: claimed meanwhile (by {holder}): it was free under epoch {seen}") from None
        before = answer.get("Attributes") or {}
        lease = self._lease({"leaseKey": {"S": task}, **before})
        return Claimed(lease.epoch + 1, lease.number, lease.commit_id, lease.state)

    async def last_commit(self, task: str) -> tuple[int, bytes | None]:
        """Number and id of the last commit of `task` that counts (0, None: none yet)."""
        lease = await self._get(task)
        return (0, None) if lease is None else (lease.number, lease.commit_id)

    async def positions(self, task: str) -> Any:
        """The positions in the last commit that counts; None if there is none yet."""
        item = await self._item(task)
        return msgspec.msgpack.decode(item["positions"]["B"]) if item is not None and "positions" in item else None

    async def commit(
        self, task: str, epoch: int, number: int, commit_id: bytes, positions: Any, checkpoint: str = START
    ) -> None:
        """Store positions and identity, if `epoch` is still the task's: by this the commit counts.

        `checkpoint` is what the table shows of the positions. Raises Fenced, CommitError as `EmbeddedBroker.commit`
        does; OutcomeUnknown if nobody knows whether it was written.
        """
        values: Item = {
            ":epoch": {"N": str(epoch)},
            ":number": {"N": str(number)},
            ":id": {"B": commit_id},
            ":positions": {"B": msgspec.msgpack.encode(positions)},
            ":checkpoint": {"S": checkpoint},
            ":zero": {"N": "0"},
        }
        call = self._client.update_item(
            TableName=self.table,
            Key={"leaseKey": {"S": task}},
            UpdateExpression="SET #number = :number, commitId = :id, positions = :positions, checkpoint = :checkpoint, "
            "ownerSwitchesSinceCheckpoint = :zero",
            ConditionExpression="epoch = :epoch AND attribute_exists(leaseOwner) AND "
            "(attribute_not_exists(#number) OR #number < :number)",
            ExpressionAttributeNames={"#number": "number"},
            ExpressionAttributeValues=values,
        )
        try:
            await self._do(f"committing {task}", call)
        except _Refused:
            # Also if it was written by a try of which no answer came: then it is ours.
            must_apply(await self._get(task), task, epoch, number, commit_id)
        except BrokerError as error:
            raise OutcomeUnknown(f"task {task}: commit {number}: {error}") from error

    async def renew(self, worker: str, tasks: Sequence[str]) -> list[str]:
        """Prolong the worker's leases. The answer: which of the tasks it does not own any more."""
        update, mine = "SET leaseCounter = leaseCounter + :one", "leaseOwner = :owner"
        kept = await asyncio.gather(*(self._update(task, update, mine, {":owner": {"S": worker}}) for task in tasks))
        return [task for task, ours in zip(tasks, kept, strict=True) if not ours]

    async def release(self, task: str, epoch: int) -> None:
        """Give the task up; does nothing if another has claimed it. Commits under `epoch` are fenced from now on."""
        await self._update(task, "REMOVE leaseOwner", "epoch = :epoch", {":epoch": {"N": str(epoch)}}, grows=False)
        self._read_at = None

    async def describe(self, task: str, parents: Iterable[str]) -> None:
        """Note the shards that a task's shard came from, for other tools."""
        names = sorted(parents)
        if names:
            await self._update(
                task,
                "SET parentShardId = :parents",
                "attribute_exists(epoch)",
                {":parents": {"SS": names}},
                grows=False,
            )

    # Reading and writing

    async def _update(
        self, key: str, update: str, condition: str, values: Mapping[str, Any] | None = None, *, grows: bool = True
    ) -> bool:
        """One conditional write; False if the condition does not hold."""
        all_values = {**({":one": {"N": "1"}} if grows else {}), **(values or {})}
        call = self._client.update_item(
            TableName=self.table,
            Key={"leaseKey": {"S": key}},
            UpdateExpression=update,
            ConditionExpression=condition,
            **({"ExpressionAttributeValues": all_values} if all_values else {}),
        )
        try:
            await self._do(f"writing {key}", call)
        except _Refused:
            return False
        return True

    async def _item(self, key: str) -> Item | None:
        call = self._client.get_item(TableName=self.table, Key={"leaseKey": {"S": key}}, ConsistentRead=True)
        answer = await self._do(f"reading {key}", call)
        found: Item | None = answer.get("Item")
        return found

    async def _get(self, task: str) -> Lease | None:
        item = await self._item(task)
        return None if item is None else self._lease(item)

    async def _read(self) -> list[Item]:
        """All rows, as of a short while ago."""
        async with self._turn:
            now = self._clock.now_ms()
            if self._read_at is None or now - self._read_at >= self._ttl // LOOKS:
                items: list[Item] = []
                more: dict[str, Any] = {}
                while True:
                    call = self._client.scan(TableName=self.table, ConsistentRead=True, **more)
                    page = await self._do("reading it", call)
                    items += page["Items"]
                    if "LastEvaluatedKey" not in page:
                        break
                    more = {"ExclusiveStartKey": page["LastEvaluatedKey"]}
                self._items, self._read_at = items, now
                self._watch(now)
        return self._items

    def _watch(self, now: int) -> None:
        watched = {}
        for item in self._items:
            key, counter = _text(item, "leaseKey"), _number(item, "leaseCounter")
            before = self._watched.get(key)
            watched[key] = before if before is not None and before.counter == counter else Row(counter, now)
        self._watched = watched

    def _expires(self, item: Item) -> int:
        row = self._watched.get(_text(item, "leaseKey"))
        return 0 if row is None else row.since + (_number(item, "ttl") or DEFAULT_TTL_MS)

    def _lease(self, item: Item) -> Lease:
        return Lease(
            _text(item, "leaseKey"),
            _text(item, "leaseOwner"),
            _number(item, "epoch"),
            self._expires(item),
            _text(item, "state"),
            _number(item, "number"),
            item["commitId"]["B"] if "commitId" in item else None,
        )

    async def _do(self, doing: str, call: Awaitable[T]) -> T:
        try:
            return await call
        except Exception as error:
            if code_of(error) == "ConditionalCheckFailedException":
                raise _Refused from error
            raise self._failed(doing, error) from error

    def _failed(self, doing: str, error: Exception) -> Exception:
        blame = blame_of(error)
        if blame is None:
            return error
        if blame is Blame.PERSON:
            return BrokerRefused(f"{self.url}: {doing}: {told(error)}{_CURE}")
        return BrokerError(f"{self.url}: {doing}: {told(error)}")


ACTIONS = ("CreateTable", "DeleteItem", "DescribeTable", "GetItem", "PutItem", "Scan", "UpdateItem")
_CURE = f": see to its name, region and rights ({', '.join(ACTIONS)})"


class _Refused(Exception):
    """A condition does not hold."""


def _is_worker(item: Item) -> bool:
    return _text(item, "leaseKey").startswith(WORKER)


def _text(item: Item, name: str) -> str:
    return str(item[name].get("S", "")) if name in item else ""


def _number(item: Item, name: str) -> int:
    return int(item[name]["N"]) if name in item else 0
