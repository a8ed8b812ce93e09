"""The lease table on a DynamoDB protocol server: one owner a task, one commit a number, and no clock but one's own."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from flowkit.aws import AwsOptions, open_client
from flowkit.clock import VirtualClock
from flowkit.errors import BrokerError, CommitError, ConfigError, Fenced, OutcomeUnknown
from flowkit.source.dynamo_leases import DynamoLeases
from flowkit.source.placement import place_by_leases
from tests.aws.proxy import Fault, Request, proxy_to

TTL = 8_000
TASKS = [f"shop/orders/{n}" for n in range(5)]


class Table:
    """One table, and the workers that look at it."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.name, self.clock, self._stack = f"leases-{uuid.uuid4().hex[:8]}", VirtualClock(1_000_000), stack

    async def worker(self, name: str = "") -> DynamoLeases:
        leases = DynamoLeases(self.name, AwsOptions(), self.clock)
        await self._stack.enter_async_context(leases)
        if name:
            await leases.join(f"shop/{name}", TTL, TASKS)
        return leases


@pytest.fixture
async def table(ministack: str) -> AsyncIterator[Table]:
    async with AsyncExitStack() as stack:
        yield Table(stack)


async def turn(leases: DynamoLeases, name: str, held: dict[str, int], clock: VirtualClock) -> None:
    """What a worker does about once a second."""
    worker = f"shop/{name}"
    await leases.heartbeat(worker)
    for lost in await leases.renew(worker, list(held)):
        del held[lost]
    claims, releases = await place_by_leases(leases, worker, TASKS, set(held), clock.now_ms())
    for task in releases:
        await leases.release(task, held.pop(task))
    for task, known in claims.items():
        try:
            held[task] = (await leases.claim(task, f"/state/{name}", seen=0 if known is None else known.epoch)).epoch
        except Fenced:
            continue


async def test_tasks_are_shared_out_balanced_and_come_back_from_the_dead(table: Table) -> None:
    names = ["a", "b", "c"]
    workers = {name: await table.worker(name) for name in names}
    held: dict[str, dict[str, int]] = {name: {} for name in names}
    for _ in range(8):
        for name in names:
            await turn(workers[name], name, held[name], table.clock)
        await table.clock.sleep(TTL // 4)
    assert sorted(len(tasks) for tasks in held.values()) == [1, 2, 2]
    assert sorted(task for tasks in held.values() for task in tasks) == TASKS
    dead = held.pop("a")
    for _ in range(8):  # twice its time: the counters of a stand still
        for name in ("b", "c"):
            await turn(workers[name], name, held[name], table.clock)
        await table.clock.sleep(TTL // 4)
    assert sorted(task for tasks in held.values() for task in tasks) == TASKS
    for task, epoch in dead.items():
        with pytest.raises(Fenced):
            await workers["a"].commit(task, epoch, 1, b"zombie", {})


async def test_who_leaves_gives_all_up_at_once(table: Table) -> None:
    a, b = await table.worker("a"), await table.worker("b")
    held: dict[str, int] = {}
    await a.claim(TASKS[0], "/x")
    await a.commit(TASKS[0], 1, 1, b"one", {"orders[0]": "7"}, "7")
    await a.leave("shop/a")
    await turn(b, "b", held, table.clock)
    assert sorted(held) == TASKS
    with pytest.raises(Fenced):
        await a.heartbeat("shop/a")
    assert await b.last_commit(TASKS[0]) == (1, b"one")
    assert await b.positions(TASKS[0]) == {"orders[0]": "7"}


async def test_of_many_who_claim_one_gets_it(table: Table) -> None:
    workers = [await table.worker(f"w{n}") for n in range(8)]
    claims = [w.claim(TASKS[0], f"/s{n}", seen=0) for n, w in enumerate(workers)]
    got = await asyncio.gather(*claims, return_exceptions=True)
    assert len([claim for claim in got if not isinstance(claim, BaseException)]) == 1
    assert all(isinstance(claim, Fenced) for claim in got if isinstance(claim, BaseException))
    claimed = await workers[0].claim(TASKS[0], "/again")
    assert claimed.epoch == 2
    assert claimed.state.startswith("/s")


async def test_a_commit_counts_once_under_the_newest_epoch(table: Table) -> None:
    a, b = await table.worker("a"), await table.worker("b")
    first = await a.claim(TASKS[0], "/a")
    await a.commit(TASKS[0], first.epoch, 1, b"1", {})
    await a.commit(TASKS[0], first.epoch, 1, b"1", {})  # again: it counts already
    with pytest.raises(CommitError):
        await a.commit(TASKS[0], first.epoch, 1, b"other", {})
    second = await b.claim(TASKS[0], "/b")
    assert (second.number, second.commit_id, second.state) == (1, b"1", "/a")
    with pytest.raises(Fenced):
        await a.commit(TASKS[0], first.epoch, 2, b"2", {})
    await b.commit(TASKS[0], second.epoch, 2, b"2'", {})
    await b.release(TASKS[0], second.epoch)
    with pytest.raises(Fenced):
        await b.commit(TASKS[0], second.epoch, 3, b"3", {})
    assert await a.last_commit(TASKS[0]) == (2, b"2'")


@pytest.mark.parametrize("fault", ["lost", "half", "reset", "throttle", "broken"])
async def test_a_commit_whose_answer_is_lost_counts_or_is_unknown(
    table: Table, ministack: str, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    setting_up = await table.worker("a")
    claimed = await setting_up.claim(TASKS[0], "/a")
    async with proxy_to(ministack) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        left = 2

        def once(request: Request) -> Fault | None:
            nonlocal left
            left -= request.action == "UpdateItem"
            return fault if request.action == "UpdateItem" and left >= 0 else None

        async with DynamoLeases(table.name, AwsOptions(tries=3, timeout=3), table.clock) as leases:
            proxy.fault = once
            await leases.commit(TASKS[0], claimed.epoch, 1, b"1", {"x": 1})
            assert await leases.last_commit(TASKS[0]) == (1, b"1")
            left = 100
            with pytest.raises(OutcomeUnknown):
                await leases.commit(TASKS[0], claimed.epoch, 2, b"2", {})


async def test_the_table_has_the_shape_that_tools_know(table: Table) -> None:
    worker = await table.worker("a")
    claimed = await worker.claim(TASKS[0], "/a")
    await worker.describe(TASKS[0], ["shardId-000000000001"])
    await worker.commit(TASKS[0], claimed.epoch, 1, b"1", {}, "4951")
    await worker.renew("shop/a", [TASKS[0]])
    async with open_client("dynamodb", AwsOptions(), "x") as client:
        found = await client.get_item(TableName=table.name, Key={"leaseKey": {"S": TASKS[0]}})
    row = found["Item"]
    assert row["leaseOwner"] == {"S": "shop/a"}
    assert row["leaseCounter"] == {"N": "2"}
    assert row["checkpoint"] == {"S": "4951"}
    assert row["ownerSwitchesSinceCheckpoint"] == {"N": "0"}
    assert row["parentShardId"] == {"SS": ["shardId-000000000001"]}


async def test_another_table_and_missing_rights_are_told(ministack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"other-{uuid.uuid4().hex[:8]}"
    async with open_client("dynamodb", AwsOptions(), "x") as client:
        await client.create_table(
            TableName=name,
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            BillingMode="PAY_PER_REQUEST",
        )
    with pytest.raises(ConfigError, match="is no lease table"):
        await DynamoLeases(name, AwsOptions(), VirtualClock()).open()
    async with proxy_to(ministack) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.fault = lambda _: "denied"
        with pytest.raises(BrokerError, match=r"AccessDenied.*rights"):
            await DynamoLeases(name, AwsOptions(), VirtualClock()).open()
