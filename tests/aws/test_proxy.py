"""The proxy: each fault looks to a client as the real one would, and what is said to be done is done."""

import uuid
from collections.abc import Callable

import pytest

from flowkit.aws import AwsOptions, Blame, blame_of, open_client
from tests.aws.proxy import Fault, Request, proxy_to

ONCE = AwsOptions(tries=1, timeout=5)


def first(fault: Fault, action: str) -> Callable[[Request], Fault | None]:
    """That fault for the first request of an action."""
    left = [fault]
    return lambda request: left.pop() if left and request.action == action else None


@pytest.mark.parametrize(
    ("fault", "done", "blame"),
    [
        ("throttle", False, Blame.SLOW),
        ("broken", False, Blame.PASSING),
        ("reset", False, Blame.PASSING),
        ("lost", True, Blame.PASSING),
        ("half", True, Blame.PASSING),
        ("denied", False, Blame.PERSON),
        ("slow", True, None),
    ],
)
async def test_faults(moto: str, monkeypatch: pytest.MonkeyPatch, fault: Fault, done: bool, blame: Blame) -> None:
    name = f"t-{uuid.uuid4().hex[:8]}"
    async with proxy_to(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        async with open_client("dynamodb", ONCE, "dynamodb://x") as client:
            key = [{"AttributeName": "k", "AttributeType": "S"}]
            await client.create_table(
                TableName=name,
                AttributeDefinitions=key,
                KeySchema=[{"AttributeName": "k", "KeyType": "HASH"}],
                BillingMode="PAY_PER_REQUEST",
            )
            proxy.fault = first(fault, "PutItem")
            failed: Exception | None = None
            try:
                await client.put_item(TableName=name, Item={"k": {"S": "a"}})
            except Exception as error:
                failed = error
            assert (failed and blame_of(failed)) is blame
            found = await client.get_item(TableName=name, Key={"k": {"S": "a"}}, ConsistentRead=True)
            assert ("Item" in found) is done
    assert [(r.service, r.action) for r in proxy.requests] == [
        ("dynamodb", "CreateTable"),
        ("dynamodb", "PutItem"),
        ("dynamodb", "GetItem"),
    ]
