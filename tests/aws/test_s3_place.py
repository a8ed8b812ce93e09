"""Checkpoints in S3: whose bucket it is, and what a role may find out that cannot list all of it."""

import uuid

import pytest

from flowkit.aws import AwsOptions, open_client
from flowkit.errors import ConfigError, StoreError
from flowkit.source import open_storage
from tests.aws.proxy import Request, proxy_to


async def bucket() -> str:
    """A fresh one."""
    name = f"b-{uuid.uuid4().hex[:8]}"
    async with open_client("s3", AwsOptions(), "s3") as s3:
        await s3.create_bucket(Bucket=name)
    return name


async def test_every_request_names_the_owner_that_the_bucket_must_have(
    moto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await bucket()
    async with proxy_to(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        for url, owner in ((f"s3://{name}/p?owner=123456789012", "123456789012"), (f"s3://{name}/p", "210987654321")):
            monkeypatch.setenv("FLOWKIT_S3_BUCKET_OWNER", "210987654321")
            proxy.requests.clear()
            async with open_storage(url) as storage:
                blobs = storage.blobs("t")
                await storage.check()
                await blobs.put(f"a{owner}", b"x")
                await blobs.get(f"a{owner}")
                await blobs.find()
                await storage.folders()
                await blobs.delete(f"a{owner}")
            assert [request.headers.get("x-amz-expected-bucket-owner") for request in proxy.requests] == [owner] * 6


async def test_a_bucket_of_another_account_is_refused_before_anything_starts(ministack: str) -> None:
    name = await bucket()
    async with proxy_to(ministack) as proxy:
        proxy.fault = lambda request: (
            None if request.headers["x-amz-expected-bucket-owner"] == "000000000000" else "denied"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", proxy.url)
            async with open_storage(f"s3://{name}?owner=111111111111") as storage:
                with pytest.raises(ConfigError, match=rf"s3://{name}: listing: AccessDenied"):
                    await storage.check()
            async with open_storage(f"s3://{name}?owner=000000000000") as storage:
                await storage.check()


@pytest.mark.parametrize("owner", ["1234", "12345678901x", "１２３４５６７８９０１２"])
async def test_an_owner_is_the_number_of_an_account(owner: str) -> None:
    with pytest.raises(ConfigError, match=f"owner={owner}: needs the number of an account, 12 digits"):
        async with open_storage(f"s3://states?owner={owner}"):
            pass


async def test_who_may_list_under_a_prefix_only_is_denied_what_is_missing_and_finds_that_out(
    moto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await bucket()
    async with proxy_to(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        async with open_storage(f"s3://{name}/p") as storage:
            blobs = storage.blobs("t")
            await blobs.put("there", b"x")

            def as_s3_does(request: Request) -> bool:
                return request.action == "GET" and "/missing" in request.path and "list-type" not in request.path

            proxy.fault = lambda request: "denied" if as_s3_does(request) else None
            assert await blobs.get("missing") is None
            assert await blobs.get("there") is not None
            # One that is there may indeed not be read; and who may not list either is told what was denied.
            proxy.fault = lambda request: "denied" if "list-type" not in request.path else None
            with pytest.raises(StoreError, match="getting there: AccessDenied"):
                await blobs.get("there")
            proxy.fault = lambda _: "denied"
            with pytest.raises(StoreError, match="getting missing: AccessDenied"):
                await blobs.get("missing")
