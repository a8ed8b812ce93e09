"""`flowkit iam` for MSK: a real Kafka allows what the policy says and nothing else, and workers ask for all of it.

MSK's own checks cannot be had here. But each of its actions stands for an operation of Kafka's authorizer (Amazon MSK's
developer guide, "Semantics of IAM authorization policy actions and resources"), so that a policy can be said in access
control lists; the authorizer's log tells what was asked for.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest

from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_topics import KafkaTopics
from tests.kafka.jars import need_kafka
from tests.kafka.real import Kafka
from tests.kafka.security import PASSWORD, USER, Security

APP = Path(__file__).parents[1] / "aws" / "iam_app.py"
ROOT = Path(__file__).parents[2]
CLUSTER = "arn:aws:kafka:us-east-1:123456789012:cluster/shop/0a1b-2c"
IAM = "security=sasl_tls&sasl=msk-iam&region=us-east-1"
LISTS = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",  # of the listener without security
}
KINDS = {"topic": 2, "group": 3, "cluster": 4, "transactional-id": 5}
OPERATIONS = {"READ": 3, "WRITE": 4, "CREATE": 5, "DELETE": 6, "DESCRIBE": 8, "DESCRIBE_CONFIGS": 10}
OPERATIONS["IDEMPOTENT_WRITE"] = 12
MEANS = {
    "CreateTopic": "CREATE",
    "DescribeTopic": "DESCRIBE",
    "DescribeTopicDynamicConfiguration": "DESCRIBE_CONFIGS",
    "ReadData": "READ",
    "WriteData": "WRITE",
    "DeleteTopic": "DELETE",
    "DescribeGroup": "DESCRIBE",
    "AlterGroup": "READ",
    "DescribeTransactionalId": "DESCRIBE",
    "AlterTransactionalId": "WRITE",
    "WriteDataIdempotently": "IDEMPOTENT_WRITE",
}
"""But for Connect, for which Kafka has no operation."""
LITERAL, PREFIXED, ALLOW = 3, 4, 3
ASKED = re.compile(
    rf"Principal = User:{USER} is (Allowed|Denied) operation = (\w+) from host = \S+ "
    r"on resource = (\w+):LITERAL:(\S+) for"
)
SAYS = {"Topic": "topic", "Group": "group", "Cluster": "cluster", "TransactionalId": "transactional-id"}

Grant = tuple[str, str, str]
"""Kind of resource, name or its beginning with `*`, operation."""


def grants_of(policy: dict[str, Any]) -> set[Grant]:
    found = set()
    for statement in policy["Statement"]:
        resources = statement["Resource"]
        for resource in [resources] if isinstance(resources, str) else resources:
            kind, _, name = resource.rpartition(":")[2].partition("/shop/0a1b-2c")
            for action in statement["Action"]:
                if action != "kafka-cluster:Connect":
                    found.add((kind, name.lstrip("/") or "kafka-cluster", MEANS[action.partition(":")[2]]))
    return found


async def allow(address: str, grants: set[Grant]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    for kind, name, operation in sorted(grants):
        pattern = PREFIXED if name.endswith("*") else LITERAL
        acl = (KINDS[kind], name.removesuffix("*"), pattern, f"User:{USER}", "*", OPERATIONS[operation], ALLOW)
        answer = await admin._send_to_controller(CreateAclsRequest(*acl))
        assert [code for code, _ in answer.creation_responses] == [0]
    await admin.close()


def asked_of(log: Path) -> tuple[set[Grant], set[Grant]]:
    """What was allowed, and what was denied."""
    allowed, denied = set[Grant](), set[Grant]()
    for line in log.read_text(errors="replace").splitlines():
        if (match := ASKED.search(line)) is not None:
            (allowed if match[1] == "Allowed" else denied).add((SAYS[match[3]], match[4], match[2]))
    return allowed, denied


def flowkit(words: Sequence[str], environ: dict[str, str]) -> str:
    command = [sys.executable, "-m", "flowkit", *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout


def spawned(command: Sequence[str], environ: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as out:
        return subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out)


def is_of(asked: Grant, grant: Grant) -> bool:
    kind, name, operation = grant
    fits = asked[1].startswith(name[:-1]) if name.endswith("*") else asked[1] == name
    return fits and (asked[0], asked[2]) == (kind, operation)


@pytest.mark.parametrize(("guarantee", "checkpoints"), [("exactly once", "directory"), ("at least once", "topic")])
async def test_workers_are_content_with_their_policy_and_need_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, guarantee: str, checkpoints: str
) -> None:
    need_kafka()
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dorg.slf4j.simpleLogger.log.kafka.authorizer.logger=debug")
    environ = {**os.environ, "KINESIS_APP": name, "IAM_APP_GUARANTEE": guarantee, "PYTHONPATH": str(ROOT)}
    environ |= {"FLOWKIT_KAFKA_USERNAME": USER, "FLOWKIT_KAFKA_PASSWORD": PASSWORD, "FLOWKIT_COMMIT_INTERVAL": "100"}
    with Kafka(tmp_path / "kafka", security=Security(tmp_path / "pem"), properties=LISTS) as kafka:
        here = f"{kafka.addresses['sasl_plaintext']}", "security=sasl_plaintext&sasl=plain"

        def words(host: str, query: str) -> list[str]:
            kept = str(tmp_path / "kept") if checkpoints == "directory" else f"kafka://{host}/states?{query}"
            binds = [f"{out}={tmp_path}/{out}-{{group}}-{{partition}}.jsonl" for out in ("features", "archive")]
            said = [str(APP), "--broker", f"kafka://{host}?{query}", "--checkpoints", kept]
            return [*said, *(word for bind in binds for word in ("--bind", bind))]

        printed = ["iam", *words("boot.us-east-1.amazonaws.com:9098", IAM), "--msk-cluster", CLUSTER]
        done = await asyncio.to_thread(flowkit, printed, environ)
        grants = grants_of(json.loads(done))
        await allow(kafka.bootstrap, grants)
        command = [sys.executable, "-m", "flowkit", "worker", *words(*here), "--state", str(tmp_path / "state")]
        command += ["--checkpoint-interval", "300"]
        worker = spawned(command, environ, tmp_path / "worker.log")
        try:
            needed, denied = await used(kafka, name, worker, grants)
        except BaseException:
            print((tmp_path / "worker.log").read_text()[-4000:])
            raise
        finally:
            worker.send_signal(signal.SIGTERM)
            await asyncio.to_thread(worker.wait, 40)
        assert needed == grants
        assert denied == set()


async def used(
    kafka: Kafka, name: str, worker: "subprocess.Popen[bytes]", grants: set[Grant]
) -> tuple[set[Grant], set[Grant]]:
    """Feed the worker until all is out and every grant was asked for, or nothing more comes; and what was denied."""
    async with KafkaTopics(KafkaAddress.parse(f"kafka://{kafka.bootstrap}")) as topics, asyncio.timeout(60):
        for made in (f"{name}-in", f"{name}-out"):
            while not await topics.partitions(made):
                assert worker.poll() is None
                await asyncio.sleep(0.1)
        numbers = range(200)
        rows = [(b"k%d" % (n % 20), json.dumps({"key": f"k{n % 20}", "number": n}).encode(), 0) for n in numbers]
        await topics.put(f"{name}-in", rows)
        while sum(await topics.end_offsets(f"{name}-out", committed=True)) < 200:
            assert worker.poll() is None
            await asyncio.sleep(0.1)
        await topics.put(f"{name}-in", [(None, b"no event", 0)])  # a dead letter
        while True:
            allowed, denied = asked_of(kafka.log(1))
            needed = {grant for grant in grants if any(is_of(asked, grant) for asked in allowed)}
            if needed == grants:
                return needed, denied
            assert worker.poll() is None
            print("not yet:", sorted(grants - needed))
            await asyncio.sleep(0.3)
            await topics.put(f"{name}-in", rows[:20])  # more commits, whose frames are forgotten one day
