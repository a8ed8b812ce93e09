"""Each destination behind a gate of its own policy: a run is allowed what that says, works, and needs all of it.

The policy is what `flowkit iam` prints for such a run. Set-up goes around the gate.
"""

import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowkit import App, Record
from flowkit.aws import AwsOptions, open_client, policy_of
from flowkit.options import WorkerOptions
from flowkit.worker import rights_of_run, run
from tests.aws.gate import Gate, gated
from tests.aws.policies import ACCOUNT, AREA
from tests.aws.proxy import Fault, Request
from tests.aws.test_dynamodb_sink import table
from tests.aws.test_firehose_sink import stream as delivery_stream
from tests.aws.test_kinesis_sink import stream
from tests.aws.test_lambda_sink import function
from tests.aws.test_messages_sink import place


class Reading(Record):
    id: str
    n: int
    at: int
    filler: str = ""


def app_of(element: Any = Reading) -> App:
    """An app that passes on what it gets; of a type that may be None also tombstones."""
    app = App("gated")
    readings = app.topic("readings", Reading, key="id", time="at")
    out: Any = app.sink("out", element, key=lambda reading: reading.id)

    @app.each(readings, sinks=[out])
    def keep(reading: Reading) -> None:
        out.emit(reading)
        if element is not Reading and reading.n % 3 == 0:
            out.emit(None, key=reading.id)

    return app


def written(path: Path, count: int = 30, filler: int = 0) -> Path:
    rows = [Reading(f"k{n % 7}", n, n * 100, "x" * filler) for n in range(count)]
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def policy(app: App, inputs: Sequence[tuple[str, str]], outputs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return policy_of(rights_of_run(app, inputs, outputs), account=ACCOUNT, region=AREA)


async def run_gated(
    server: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, app: App | None = None
) -> Gate:
    """Run an app over some records into `url`, at whose gate it has to be content; the gate."""
    app = app or app_of()
    inputs = [("readings", str(written(tmp_path / "in.jsonl")))]
    outputs = [("out", url), ("dead-letters", str(tmp_path / "dead.jsonl"))]
    async with gated(policy(app, inputs, outputs), server) as (gate, (proxy,)):
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        await run(app, inputs, outputs, options=WorkerOptions(commit_every=10, commit_interval=60_000))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    assert (tmp_path / "dead.jsonl").read_bytes() == b""
    return gate


@pytest.mark.parametrize("named", ["name", "arn"])
async def test_kinesis(ministack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    async with stream() as (name, _):
        at = name if named == "name" else f"arn:aws:kinesis:{AREA}:{ACCOUNT}:stream/{name}"
        await run_gated(ministack, f"kinesis://{at}", tmp_path, monkeypatch)


async def test_firehose(moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with delivery_stream() as (name, _):
        await run_gated(moto, f"firehose://{name}", tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("options", "removes"),
    [
        ("", False),
        ("", True),
        ("?tombstone=mark", True),
        ("?write=batch", True),
        ("?ttl=until&ttl_after=1h", False),
    ],
)
async def test_dynamodb(
    ministack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, removes: bool
) -> None:
    element: Any = Reading | None
    async with table() as (name, client):
        if "ttl" in options:
            told = {"Enabled": True, "AttributeName": "until"}
            await client.update_time_to_live(TableName=name, TimeToLiveSpecification=told)
        app = app_of(element if removes else Reading)
        await run_gated(ministack, f"dynamodb://{name}{options}", tmp_path, monkeypatch, app=app)


@pytest.mark.parametrize("shape", ["{name}", "{name}?mode=event", "arn:aws:lambda:{area}:{account}:function:{name}"])
async def test_lambda(ministack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str) -> None:
    code = "def handler(event, context):\n    return {}"
    async with function(tmp_path, code) as (name, _):
        await run_gated(
            ministack, "lambda://" + shape.format(name=name, area=AREA, account=ACCOUNT), tmp_path, monkeypatch
        )


async def test_a_functions_alias_is_all_that_may_be_invoked(
    ministack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with function(tmp_path, "def handler(event, context):\n    return {}") as (name, _):
        async with open_client("lambda", AwsOptions(), "x") as client:
            version = (await client.publish_version(FunctionName=name))["Version"]
            await client.create_alias(FunctionName=name, Name="live", FunctionVersion=version)
        gate = await run_gated(ministack, f"lambda://{name}:live", tmp_path, monkeypatch)
        assert {grant.resource.rpartition(":")[2] for grant in gate.policy.used} == {"live"}


@pytest.mark.parametrize("kind", ["sqs", "sqs.fifo", "sns", "events"])
async def test_messages(ministack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    async with place(kind) as at:
        owner = f"?owner={ACCOUNT}" if kind == "sqs" else ""
        await run_gated(ministack, at.url + owner, tmp_path, monkeypatch)


async def test_metrics_of_one_namespace(moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowkit.sink.cloudwatch.OLDEST_MS", 1 << 60)  # records of 1970
    name = f"shop/{uuid.uuid4().hex[:8]}"
    gate = await run_gated(moto, f"cloudwatch://{name}?value=n&dimensions=id", tmp_path, monkeypatch)
    assert gate.policy.statements[0]["Condition"] == {"StringEquals": {"cloudwatch:namespace": name}}


@pytest.mark.parametrize("create", [True, False])
async def test_logs(moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, create: bool) -> None:
    group = f"/gated/{uuid.uuid4().hex[:8]}"
    if not create:
        async with open_client("logs", AwsOptions(), "x") as logs:
            await logs.create_log_group(logGroupName=group)
            await logs.create_log_stream(logGroupName=group, logStreamName="out")
    monkeypatch.setattr("flowkit.sink.cloudwatch_logs.refusals", lambda _, count: [None] * count)  # of 1970
    await run_gated(moto, f"logs://{group}/out{'?create=yes' if create else ''}", tmp_path, monkeypatch)


async def test_opensearch(osmem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": AREA}.items():
        monkeypatch.setenv(name, value)
    app, name = app_of(), f"i-{uuid.uuid4().hex[:8]}"
    inputs = [("readings", str(written(tmp_path / "in.jsonl")))]
    # The policy names no domain, whatever the port is.
    asked = policy(app, inputs, [("out", f"opensearch://localhost/{name}-{{yyyy}}")])
    async with gated(asked, osmem) as (gate, (proxy,)):
        host = proxy.url.removeprefix("http://")
        outputs = [("out", f"opensearch://{host}/{name}-{{yyyy}}?tls=no"), ("dead-letters", f"{tmp_path}/dead.jsonl")]
        await run(app, inputs, outputs)
    assert {grant.resource.rpartition("/")[2] for grant in gate.policy.used} == {f"{name}-1970", "_bulk"}
    assert (tmp_path / "dead.jsonl").read_bytes() == b""


# --- S3


async def bucket_and_key() -> tuple[str, str, str]:
    """A bucket; a key's alias and its id."""
    name = f"gated-{uuid.uuid4().hex[:8]}"
    async with AsyncExitStack() as stack:
        s3, kms = [await stack.enter_async_context(open_client(each, AwsOptions(), each)) for each in ("s3", "kms")]
        await s3.create_bucket(Bucket=name)
        key = (await kms.create_key())["KeyMetadata"]["KeyId"]
        await kms.create_alias(AliasName=f"alias/{name}", TargetKeyId=key)
    return name, f"alias/{name}", key


async def keys_in(bucket: str) -> list[str]:
    async with open_client("s3", AwsOptions(), "x") as s3:
        return [each["Key"] for each in (await s3.list_objects_v2(Bucket=bucket)).get("Contents", ())]


@pytest.mark.parametrize("server", ["moto", "ministack"])
async def test_s3_in_parts_that_are_let_go_of_and_begun_anew_under_a_key(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    url = request.getfixturevalue(server)
    name, alias, key = await bucket_and_key()
    app, inputs = app_of(), [("readings", str(written(tmp_path / "in.jsonl", 2_000, filler=3_000)))]
    to = f"s3://{name}/a*b/dt={{dt}}?compress=none&part_bytes=5MiB&name=run&kms_key={alias}&owner={ACCOUNT}"
    outputs = [("out", to), ("dead-letters", str(tmp_path / "dead.jsonl"))]
    async with gated(policy(app, inputs, outputs), url, aliases={key: [alias]}) as (gate, (proxy,)):
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)

        # Nothing gets through any more, not even that the upload is let go of: as with a worker that is killed here.
        def cut_off(seen: Request) -> Fault | None:
            return "denied" if "uploadId" in seen.path and seen.action in ("POST", "DELETE") else None

        gate.fault = cut_off
        with pytest.raises(Exception, match="AccessDenied"):
            await run(app, inputs, outputs, state=tmp_path / "s")
        gate.fault = lambda _: None
        await run(app, inputs, outputs, state=tmp_path / "s")
        owners = {seen.headers.get("x-amz-expected-bucket-owner") for seen in proxy.requests}
    assert owners == {ACCOUNT}
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    assert await keys_in(name) == ["a*b/dt=1970-01-01/gated-run-0-run-00000000.jsonl"]
