"""Blobs in S3: conditional puts, listings of many pages, encryption there, and errors that say what is wrong."""

import asyncio
import os
from typing import Any, Self

import pytest

from flowkit.errors import ConfigError, StoreError
from flowkit.source import check_storage_url, open_storage
from flowkit.store.s3 import S3Place, S3Storage, open_s3
from tests.store.s3_server import own_bucket

# Where


PLACES: list[tuple[str, dict[str, str], S3Place]] = [
    ("s3://states", {}, S3Place("states")),
    ("s3://states/prod/eu/", {}, S3Place("states", "prod/eu")),
    ("s3://a.b-c/x%20y?region=eu-west-1", {}, S3Place("a.b-c", "x y", "eu-west-1")),
    ("s3://states?addressing=path&sse=AES256", {}, S3Place("states", addressing="path", sse="AES256")),
    ("s3://states?kms_key=k1", {}, S3Place("states", sse="aws:kms", kms_key="k1")),
    ("s3://states", {"FLOWKIT_S3_SSE": "AES256"}, S3Place("states", sse="AES256")),
    ("s3://states", {"FLOWKIT_S3_KMS_KEY": "k2", "FLOWKIT_S3_SSE": ""}, S3Place("states", sse="aws:kms", kms_key="k2")),
    ("s3://states?kms_key=k1", {"FLOWKIT_S3_KMS_KEY": "k2"}, S3Place("states", sse="aws:kms", kms_key="k1")),
]


@pytest.mark.parametrize(("url", "environ", "place"), PLACES)
def test_a_url_says_where_and_how(url: str, environ: dict[str, str], place: S3Place) -> None:
    assert S3Place.parse(url, environ) == place


WRONG: list[tuple[str, list[str]]] = [
    ("", ["checkpoints: no place is named; use file:///DIR, a path, s3://BUCKET/PREFIX, or kafka://HOST:PORT/TOPIC"]),
    (
        "ftp://x/y",
        [
            "checkpoints ftp://…: unknown scheme 'ftp'; use file:///DIR, a path, s3://BUCKET/PREFIX, or kafka://HOST:PORT/TOPIC"
        ],
    ),
    ("file://x/y", ["checkpoints 'file://x/y': a file URL names no host: write file:///x/y"]),
    ("s3://", ["checkpoints s3://: '' is no name of a bucket; write s3://BUCKET/PREFIX"]),
    (
        "s3://Big_Bucket/x?sse=none&colour=red",
        [
            "checkpoints s3://Big_Bucket/x: 'Big_Bucket' is no name of a bucket; write s3://BUCKET/PREFIX",
            "checkpoints s3://Big_Bucket/x: unknown option 'colour'; there are region, addressing, sse, kms_key, owner",
            "checkpoints s3://Big_Bucket/x: sse=none: no such encryption; there are AES256, aws:kms, aws:kms:dsse",
        ],
    ),
    ("s3://states?sse=AES256&kms_key=k", ["checkpoints s3://states: a kms_key is for sse=aws:kms, not for sse=AES256"]),
    ("s3://states?addressing=x", ["checkpoints s3://states: addressing=x: there are auto, path, virtual"]),
]


@pytest.mark.parametrize(("url", "problems"), WRONG)
def test_all_that_is_wrong_with_a_url_is_told(url: str, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_storage_url(url)
    assert list(caught.value.problems) == problems


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="credentials do not belong into a URL") as caught:
        check_storage_url("s3://AKIAKEY:hush@states/prod")
    assert "hush" not in str(caught.value)
    assert "AKIAKEY" not in str(caught.value)


# Blobs


@pytest.mark.usefixtures("s3")
async def test_a_listing_has_all_pages_and_no_other_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    async with own_bucket() as storage:
        blobs = storage.blobs("app", "group", "1")
        names = [f"{n:08}" for n in range(25)]
        await asyncio.gather(*(blobs.put(name, name.encode()) for name in names))
        await storage.blobs("app", "group", "10").put("other", b"")
        await storage.blobs("app", "group", "1", "beneath").put("other", b"")
        ask = storage.client.list_objects_v2
        pages: list[Any] = []

        async def few(**options: Any) -> Any:
            pages.append(options)
            return await ask(**options, MaxKeys=10)

        monkeypatch.setattr(storage.client, "list_objects_v2", few)
        assert [blob.name for blob in await blobs.find()] == names
        assert len(pages) == 3
        assert [blob.size for blob in await blobs.find("0000001")] == [8] * 10
        assert await storage.folders("app", "group") == ["1", "10"]


@pytest.mark.usefixtures("s3")
async def test_objects_are_encrypted_there_as_asked_for() -> None:
    async with own_bucket() as storage:
        for sse, key in (("AES256", None), ("aws:kms", "arn:aws:kms:us-east-1:123456789012:key/k")):
            place = storage.place._replace(sse=sse, kms_key=key)
            async with open_s3(place) as encrypting:
                blobs = encrypting.blobs("t")
                tag = await blobs.put(f"{sse}-object", b"data")
                assert await blobs.put(f"{sse}-object", b"more", over=tag) is not None
                head = await storage.client.head_object(Bucket=place.bucket, Key=f"some/prefix/t/{sse}-object")
                assert head["ServerSideEncryption"] == sse
                assert head.get("SSEKMSKeyId") == key


# What goes wrong


@pytest.mark.usefixtures("s3")
async def test_a_bucket_that_is_not_there_is_told_at_the_start() -> None:
    async with open_storage("s3://no-such-bucket/x") as storage:
        with pytest.raises(ConfigError, match=r"^checkpoints s3://no-such-bucket/x: listing: NoSuchBucket: "):
            await storage.check()
        with pytest.raises(StoreError, match=r"^s3://no-such-bucket/x: putting y: NoSuchBucket: .* \(HTTP 404\)$"):
            await storage.blobs().put("y", b"")
        with pytest.raises(StoreError, match="getting y: NoSuchBucket"):
            await storage.blobs().get("y")


@pytest.mark.usefixtures("s3")
async def test_missing_credentials_are_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", os.devnull)
    async with open_storage("s3://states") as storage:
        with pytest.raises(ConfigError, match=r"s3://states: listing: no credentials: set AWS_ACCESS_KEY_ID"):
            await storage.check()


@pytest.mark.usefixtures("s3")
async def test_a_server_that_does_not_answer_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setattr("flowkit.store.s3.TRIES", 1)
    async with open_storage("s3://states") as storage:
        with pytest.raises(StoreError, match=r"^s3://states: listing: Could not connect to the endpoint") as caught:
            await storage.check()
        assert not isinstance(caught.value, ConfigError)
        assert "very-secret" not in str(caught.value)


@pytest.mark.usefixtures("s3")
async def test_a_put_that_another_is_in_the_way_of_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers 409 while two conditional writes of one name go on: which one wins is not decided yet."""
    from botocore.exceptions import ClientError

    monkeypatch.setattr("flowkit.store.s3.FIRST_WAIT", 0.001)
    async with own_bucket() as storage:
        put, left = storage.client.put_object, [3]

        async def busy(**options: Any) -> Any:
            if left[0]:
                left[0] -= 1
                raise ClientError({"Error": {"Code": "ConditionalRequestConflict", "Message": "busy"}}, "PutObject")
            return await put(**options)

        monkeypatch.setattr(storage.client, "put_object", busy)
        assert await storage.blobs("t").put("x", b"1") is not None
        left[0] = 99
        with pytest.raises(StoreError, match="putting y: ConditionalRequestConflict: busy"):
            await storage.blobs("t").put("y", b"1")


@pytest.mark.usefixtures("s3")
async def test_an_answer_that_breaks_off_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from aiohttp import ClientPayloadError

    monkeypatch.setattr("flowkit.store.s3.FIRST_WAIT", 0.001)

    class Torn:
        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None: ...

        async def read(self) -> bytes:
            raise ClientPayloadError("Response payload is not completed")

    async with own_bucket() as storage:
        tag = await _put(storage)
        get, left = storage.client.get_object, [2]

        async def torn(**options: Any) -> Any:
            if left[0]:
                left[0] -= 1
                return {"Body": Torn(), "ETag": tag}
            return await get(**options)

        monkeypatch.setattr(storage.client, "get_object", torn)
        assert await storage.blobs("t").get("x") == (b"data", tag)
        left[0] = 99
        with pytest.raises(StoreError, match=r"getting x: .*not completed"):
            await storage.blobs("t").get("x")


async def _put(storage: S3Storage) -> str | None:
    return await storage.blobs("t").put("x", b"data")


@pytest.mark.usefixtures("s3")
async def test_whose_the_bucket_has_to_be_every_request_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """No emulator looks at it: S3 refuses a request if the bucket is another account's."""
    monkeypatch.setenv("FLOWKIT_S3_BUCKET_OWNER", "123456789012")
    seen: list[tuple[str, str | None]] = []

    def note(request: Any, **_: Any) -> None:
        seen.append((request.method, request.headers.get("x-amz-expected-bucket-owner")))

    async with own_bucket() as plain, open_storage(f"s3://{plain.place.bucket}/p") as storage:
        assert isinstance(storage, S3Storage)
        storage.client.meta.events.register("before-send.s3", note)
        await storage.check()
        blobs = storage.blobs("t")
        await blobs.put("x", b"data")
        assert await blobs.get("x") is not None
        await blobs.delete("x")
    assert {method for method, _ in seen} == {"GET", "PUT", "DELETE"}
    assert {owner if owner is None else str(owner) for _, owner in seen} <= {"123456789012", "b'123456789012'"}
