"""Redshift behind gates: the worker's role, as each way to sign in needs it, and the role that COPY reads by."""

from pathlib import Path
from typing import Any

import pytest

from flowkit.aws import AwsOptions, open_client, policy_of
from flowkit.sink.redshift import RedshiftDestination
from flowkit.worker import rights_of_run, run
from tests.aws.broken import copying
from tests.aws.gate import gated
from tests.aws.policies import ACCOUNT, AREA
from tests.aws.redshift import data_api
from tests.aws.test_iam_sinks import written
from tests.aws.test_redshift_sink import Cluster, cluster, server

__all__ = ["cluster", "server"]

SECRET = f"arn:aws:secretsmanager:{AREA}:{ACCOUNT}:secret:shop-abcdef"
WAYS = {
    "": ["redshift-serverless:GetCredentials"],
    "&kind=cluster": ["redshift:GetClusterCredentialsWithIAM"],
    "&kind=cluster&user=me": ["redshift:GetClusterCredentials"],
    f"&secret={SECRET}": ["secretsmanager:GetSecretValue"],
}


@pytest.mark.parametrize("way", ["wire", *WAYS])
async def test_redshift(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    async with open_client("kms", AwsOptions(), "x") as kms:
        key = (await kms.create_key())["KeyMetadata"]["KeyId"]
    sealed = f"&kms_key={key}&owner={ACCOUNT}"
    url = cluster.url(sealed) if way == "wire" else cluster.url(way + sealed, "redshift-data")
    inputs = [("readings", str(written(tmp_path / "in.jsonl")))]
    outputs = [("out", url), ("dead-letters", str(tmp_path / "dead.jsonl"))]
    asked = policy_of(rights_of_run(copying(), inputs, outputs), account=ACCOUNT, region=AREA)
    assert signs_in(asked) == WAYS.get(way, [])
    s3 = cluster.s3.meta.endpoint_url
    async with (
        data_api(cluster.connect) as (api, _),
        gated(asked, *([s3] if way == "wire" else [s3, api])) as (gate, proxies),
        gated(copy_policy(url), s3) as (copies, (reads,)),
        open_client("s3", AwsOptions(endpoint=reads.url), "x") as reader,
    ):
        cluster.s3, copies.reader.objects = reader, gate.reader.objects
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxies[0].url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_REDSHIFT_DATA", proxies[-1].url)
        await run(copying(), inputs, outputs)
    assert len(await cluster.rows()) == 30
    assert (tmp_path / "dead.jsonl").read_bytes() == b""


def signs_in(asked: dict[str, Any]) -> list[str]:
    """Whom the policy allows to sign in by."""
    actions = [action for statement in asked["Statement"] for action in statement["Action"]]
    return [action for action in actions if "Get" in action and not action.startswith(("s3:", "redshift-data:"))]


def copy_policy(url: str) -> dict[str, Any]:
    from flowkit.sink import destination

    to = destination(url, None)
    assert isinstance(to, RedshiftDestination)
    return policy_of(to.copy_rights(), account=ACCOUNT, region=AREA)
