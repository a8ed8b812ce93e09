"""What an app reads, where its state goes and its log lines, behind gates of the policy that `flowkit iam` prints."""

import asyncio
import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from flowkit.aws import AwsOptions, open_client, policy_of
from flowkit.cli.log_shipping import Shipper, rights_of_logs
from flowkit.clock import SystemClock
from flowkit.errors import ConfigError
from flowkit.source.kinesis_batch import Arrivals
from flowkit.source.kinesis_reader import KinesisSource
from flowkit.source.kinesis_streams import KinesisStreams
from flowkit.worker import run
from tests.aws.broken import copying
from tests.aws.gate import gated
from tests.aws.policies import ACCOUNT, AREA
from tests.aws.proxy import proxy_to
from tests.aws.servers import aws_environment
from tests.aws.test_iam_sinks import bucket_and_key, policy, written
from tests.cli.place import APP, ROOT, sale


@pytest.mark.parametrize("sealed", [True, False])
async def test_objects_as_an_input(moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed: bool) -> None:
    """In a bucket whose default encryption is under a key, which the URL tells, since no request does."""
    name, alias, key = await bucket_and_key()
    async with open_client("s3", AwsOptions(), "x") as s3:
        for n in range(3):
            body = written(tmp_path / "in.jsonl", 10 * (n + 1)).read_bytes()
            await s3.put_object(Bucket=name, Key=f"in/dt=1970-01-0{n + 1}/x.jsonl", Body=body)
        await s3.put_object(Bucket=name, Key="other/x.jsonl", Body=b"")
    inputs = [("readings", f"s3://{name}/in/?owner={ACCOUNT}" + (f"&kms_key={alias}" if sealed else ""))]
    outputs = [("out", str(tmp_path / "out.jsonl")), ("dead-letters", str(tmp_path / "dead.jsonl"))]
    known: Any = {"aliases": {key: [alias]}, "buckets": {name: alias}} if sealed else {}
    async with gated(policy(copying(), inputs, outputs), moto, **known) as (_, (proxy,)):
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        await run(copying(), inputs, outputs, state=tmp_path / "s")
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 60


async def test_log_lines_of_any_host(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    group = f"/gated/{uuid.uuid4().hex[:8]}"
    url = f"logs://{group}/{{host}}-{{pid}}?create=yes"
    async with gated(policy_of(rights_of_logs(url), account=ACCOUNT, region=AREA), moto) as (_, (proxy,)):
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        shipper = Shipper(url, every=0.01)
        shipper.start()
        shipper.processor(None, "", {"event": "said"})
        await asyncio.to_thread(shipper.stop, 20.0)
        assert shipper.sent == 1


async def test_a_stream_that_is_not_there_is_told_though_others_may_not_be_listed(
    ministack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"gone-{uuid.uuid4().hex[:8]}"
    streams = KinesisStreams(AwsOptions(), SystemClock(), "kinesis://")
    source = KinesisSource(streams, Arrivals(), name, start="earliest", out_of_range="fail")
    async with proxy_to(ministack) as proxy:
        proxy.fault = lambda request: "denied" if request.action == "ListStreams" else None
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        await streams.open()
        with pytest.raises(ConfigError, match=f"^no stream {name!r} at kinesis://$"):
            await source.splits()
        proxy.fault = lambda _: None
        with pytest.raises(ConfigError, match=rf"^no stream {name!r} at kinesis:// \(streams: .*\)$"):
            await source.splits()
        await streams.close()


class Commands:
    """flowkit's commands in processes of their own, in a directory with an app."""

    def __init__(self, place: Path, environ: dict[str, str]) -> None:
        self.place = place
        self.environ = {**os.environ, **environ, "PYTHONPATH": str(ROOT), "FLOWKIT_COMMIT_INTERVAL": "100"}
        self.letters = ["--bind", "dead-letters=dead.jsonl", "--bind", "reports=reports.jsonl"]
        (place / "app.py").write_text(APP)
        (place / "sales.jsonl").write_text("".join(json.dumps(sale("ann", n, n * 1000)) + "\n" for n in range(90)))

    async def run(self, *words: str) -> str:
        """One to its end."""
        running = await self.start(*words)
        out, err = await running.communicate()
        assert running.returncode == 0, f"flowkit {' '.join(words)}: {err.decode()}"
        return out.decode()

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        pipes: Any = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "flowkit", *words, cwd=self.place, env=self.environ, **pipes
        )

    async def fill(self, broker: str) -> None:
        """Put events into a new broker."""
        await self.run("topics", "create", "sales", "--broker", broker)
        await self.run("topics", "put", "sales", "sales.jsonl", "--broker", broker)

    async def policy(self, *words: str) -> dict[str, Any]:
        """What `flowkit iam` prints."""
        found: dict[str, Any] = json.loads(
            await self.run("iam", "app.py", *self.letters, *words, "--account", ACCOUNT, "--region", AREA)
        )
        return found


async def test_checkpoints_and_savepoints(ministack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker, a savepoint of it, after which it ends, and one that begins there; all under keys."""
    name, alias, key = await bucket_and_key()
    more = {"FLOWKIT_STORE_KMS_KEY": alias, "FLOWKIT_S3_KMS_KEY": alias, "FLOWKIT_S3_BUCKET_OWNER": ACCOUNT}
    commands = Commands(tmp_path, {**aws_environment(ministack), **more})
    await commands.fill("embedded://topics")
    kept, saved = f"s3://{name}/kept", f"s3://{name}/saved"
    words = ["app.py", *commands.letters, "--broker", "embedded://topics", "--checkpoints", kept]
    aliases = {key: [alias]}
    asked = await commands.policy("--checkpoints", kept, "--savepoints", saved)
    async with gated(asked, ministack, aliases=aliases) as (gate, (proxy,)):
        commands.environ["AWS_ENDPOINT_URL"] = proxy.url
        words += ["--checkpoint-interval", "300", "--state"]
        worker = await commands.start("worker", *words, "a")
        async with asyncio.timeout(40):
            while not any(seen.action == "PUT" and ".checkpoint" in seen.path for seen in proxy.requests):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        worker.terminate()
        await worker.communicate()
        worker = await commands.start("worker", *words, "on-another-machine")
        await commands.run("savepoint", "app.py", "--checkpoints", kept, "--to", saved, "--stop")
        _, err = await worker.communicate()
        assert worker.returncode == 0, err.decode()
        gate.policy.used |= {
            grant for grant in gate.policy.unused() if grant.action == "s3:DeleteObject"
        }  # an hour later
    commands.environ["AWS_ENDPOINT_URL"] = ministack
    asked = await commands.policy("--from", saved)
    known = gate.reader
    async with gated(asked, ministack, aliases=aliases) as (gate, (proxy,)):
        gate.reader.sealed, gate.reader.objects = known.sealed, known.objects
        commands.environ["AWS_ENDPOINT_URL"] = proxy.url
        words = ["app.py", *commands.letters, "--broker", "embedded://others", "--from", saved, "--state", "b"]
        await commands.fill("embedded://others")
        nowhere = await commands.start("worker", *words[:-3], f"{saved}/nothing", "--state", "c")
        _, err = await nowhere.communicate()
        assert (nowhere.returncode, b"no savepoint" in err) == (2, True), err.decode()
        worker = await commands.start("worker", *words)
        async with asyncio.timeout(40):
            while gate.policy.unused():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        worker.terminate()
        _, err = await worker.communicate()
        assert worker.returncode == 0, err.decode()
