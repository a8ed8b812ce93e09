"""`flowkit iam`: a worker is allowed what its policy says and nothing else, works, and needs all of it."""

import asyncio
import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from flowkit.aws import AwsOptions, open_client
from flowkit.source import open_storage
from flowkit.store import Checkpoints, KmsKey, folder_of
from tests.aws.gate import Gate
from tests.aws.policies import ACCOUNT, AREA, Grant
from tests.aws.proxy import proxy_to
from tests.aws.servers import aws_environment
from tests.aws.workers import Fleet, check_counts, split

APP = Path(__file__).parent / "iam_app.py"


async def made(name: str) -> tuple[str, str]:
    """A bucket, a table with a TTL, a delivery stream into the bucket, and a KMS key by an alias; the key's id."""
    async with AsyncExitStack() as stack:
        s3, dynamodb, firehose, kms = [
            await stack.enter_async_context(open_client(service, AwsOptions(), service))
            for service in ("s3", "dynamodb", "firehose", "kms")
        ]
        await s3.create_bucket(Bucket=name)
        await dynamodb.create_table(
            TableName=name,
            AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
            BillingMode="PAY_PER_REQUEST",
        )
        await dynamodb.update_time_to_live(
            TableName=name, TimeToLiveSpecification={"Enabled": True, "AttributeName": "until"}
        )
        target = {"BucketARN": f"arn:aws:s3:::{name}", "RoleARN": f"arn:aws:iam::{ACCOUNT}:role/delivery"}
        await firehose.create_delivery_stream(DeliveryStreamName=name, S3DestinationConfiguration=target)
        key = (await kms.create_key())["KeyMetadata"]["KeyId"]
        await kms.create_alias(AliasName=f"alias/{name}", TargetKeyId=key)
        return f"alias/{name}", key


def printed(words: Sequence[str], environ: dict[str, str]) -> dict[str, Any]:
    """The policy that `flowkit iam` prints."""
    command = [sys.executable, "-m", "flowkit", "iam", *words, "--account", ACCOUNT, "--region", AREA]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    policy: dict[str, Any] = json.loads(done.stdout)
    return policy


async def test_a_worker_is_content_with_its_policy_and_needs_all_of_it(
    kinesalite: str, ministack_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environ = {**aws_environment(ministack_url), "AWS_ENDPOINT_URL_KINESIS": kinesalite}
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    name = f"iam-{uuid.uuid4().hex[:8]}"
    alias, key = await made(name)
    async with proxy_to(ministack_url) as others, proxy_to(kinesalite) as streams:
        environ |= {"AWS_ENDPOINT_URL": others.url, "AWS_ENDPOINT_URL_KINESIS": streams.url}
        own = {"FLOWKIT_STORE_KMS_KEY": alias, "FLOWKIT_S3_KMS_KEY": alias, "FLOWKIT_S3_BUCKET_OWNER": ACCOUNT}
        environ |= own
        for variable, value in own.items():
            monkeypatch.setenv(variable, value)
        async with Fleet(tmp_path, environ, options=f"&frames=s3://{name}/app", app=APP, gates=True) as fleet:
            binds = [f"features=dynamodb://{name}?ttl=until&ttl_after=1h", f"archive=firehose://{name}"]
            words = [word for bind in binds for word in ("--bind", bind)]
            words += ["--checkpoints", f"s3://{name}/state"]
            letters = ["--bind", "dead-letters=letters.jsonl"]
            policy = printed([str(APP), "--broker", fleet.broker, *words, *letters], fleet.environ)
            gate = Gate(policy, {key: [alias]})
            gate.stand_before(others)
            gate.stand_before(streams)
            words += ["--checkpoint-interval", "300"]
            fleet.start("a", *words)
            await fleet.put(range(200))
            await fleet.until(200)
            await split(fleet.streams, f"{fleet.name}-in", 0)
            await fleet.put(range(200, 400))
            await fleet.until(400)
            fleet.kill("a")
            shutil.rmtree(tmp_path / "a")
            await fleet.put(range(400, 600))
            fleet.start("b", *words)
            check_counts(await fleet.until(600), 600)
            async with asyncio.timeout(30):
                while not any(_is_trim(grant) for grant in gate.policy.used):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert await fleet.stop("b") == 0
            # What a worker does an hour later.
            monkeypatch.setenv("AWS_ENDPOINT_URL", others.url)
            assert await swept(f"s3://{name}/state", KmsKey(alias, app=fleet.name)) > 0
    gate.check()


async def test_pushed_records_need_a_consumer_and_for_want_of_it_what_polling_needs(
    ministack: str, tmp_path: Path
) -> None:
    app = APP.with_name("kinesis_app.py")
    async with (
        proxy_to(ministack) as proxy,
        Fleet(tmp_path, aws_environment(proxy.url), options="&fan_out=yes", app=app) as fleet,
    ):
        policy = printed([str(app), "--broker", fleet.broker, "--bind", "dead-letters=x.jsonl"], fleet.environ)
        gate = Gate(policy, {})
        gate.stand_before(proxy)
        fleet.start("a")
        await fleet.put(range(200))
        await fleet.until(200)
        unused = {grant.action for grant in gate.policy.unused() if f"{fleet.name}-in" in grant.resource}
        assert unused == {"kinesis:GetRecords", "kinesis:GetShardIterator"}
        for statement in policy["Statement"]:
            statement["Action"] = [a for a in statement["Action"] if a != "kinesis:SubscribeToShard"]
        assert gate.denied == []
        proxy.cut()
        await fleet.put(range(200, 400))
        check_counts(await fleet.until(400), 400)
        assert await fleet.stop("a") == 0
    assert {asked.action for asked in gate.denied} == {"kinesis:SubscribeToShard"}
    assert gate.policy.unused() == set()
    assert (tmp_path / "a.log").read_text().count("no enhanced fan-out") == 1


def _is_trim(grant: Grant) -> bool:
    return grant.action == "s3:DeleteObject" and "/frames/" in grant.resource


async def swept(url: str, keys: KmsKey) -> int:
    """Delete what no checkpoint needs any more; how many objects."""
    async with open_storage(url) as storage:
        gone = 0
        for task in await tasks_in_app(storage, keys.app or ""):
            found = Checkpoints(storage.blobs(*folder_of(task)), keys=keys, grace=0)
            await found.claim()
            gone += await found.sweep()
        return gone


async def tasks_in_app(storage: Any, app: str) -> list[str]:
    """As `tasks_in`, by listing no more than the app's own folder."""
    (folder,) = folder_of(app)
    groups = await storage.folders(folder)
    return [f"{app}/{group}/{number}" for group in groups for number in await storage.folders(folder, group)]


async def test_without_a_right_a_worker_says_which_it_lacks(ministack: str, tmp_path: Path) -> None:
    name = f"iam-{uuid.uuid4().hex[:8]}"
    await made(name)
    async with proxy_to(ministack) as proxy:
        environ = {**aws_environment(proxy.url)}
        async with Fleet(tmp_path, environ, app=APP, gates=True) as fleet:
            binds = [f"features=dynamodb://{name}", f"archive=firehose://{name}"]
            words = [word for bind in binds for word in ("--bind", bind)]
            policy = printed(
                [str(APP), "--broker", fleet.broker, *words, "--bind", "dead-letters=x.jsonl"], fleet.environ
            )
            for statement in policy["Statement"]:
                statement["Action"] = [a for a in statement["Action"] if a != "firehose:DescribeDeliveryStream"]
            gate = Gate(policy, {})
            gate.stand_before(proxy)
            fleet.start("a", *words)
            assert await asyncio.to_thread(fleet.workers.pop("a").wait, 60) == 2
            assert [asked.action for asked in gate.denied] == ["firehose:DescribeDeliveryStream"]
            assert "allow firehose:DescribeDeliveryStream" in (tmp_path / "a.log").read_text()
