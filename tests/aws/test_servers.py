"""What the servers are good for here: each answers a real client."""

import uuid

from flowkit.aws import AwsOptions, open_client

NOTHING_SAID = AwsOptions()


async def test_moto_holds_tables(moto: str) -> None:
    async with open_client("dynamodb", NOTHING_SAID, "dynamodb://x") as client:
        assert "TableNames" in await client.list_tables()


async def test_ministack_holds_queues(ministack: str) -> None:
    async with open_client("sqs", NOTHING_SAID, "sqs://x") as client:
        made = await client.create_queue(QueueName=f"q-{uuid.uuid4().hex[:8]}")
        await client.send_message(QueueUrl=made["QueueUrl"], MessageBody="one")
        found = await client.receive_message(QueueUrl=made["QueueUrl"])
        assert [message["Body"] for message in found["Messages"]] == ["one"]


async def test_kinesalite_holds_streams(kinesalite: str) -> None:
    name = f"s-{uuid.uuid4().hex[:8]}"
    async with open_client("kinesis", NOTHING_SAID, "kinesis://x") as client:
        await client.create_stream(StreamName=name, ShardCount=2)
        await client.get_waiter("stream_exists").wait(StreamName=name, WaiterConfig={"Delay": 1})
        assert len((await client.list_shards(StreamName=name))["Shards"]) == 2
