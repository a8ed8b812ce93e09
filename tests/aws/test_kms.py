"""Stores whose key is wrapped by data keys of KMS, on two emulators, with faults between."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from flowkit.aws import AwsOptions, open_client
from flowkit.cli import main
from flowkit.errors import StoreCorrupt, StoreError, StoreKeyError
from flowkit.source import open_storage
from flowkit.store import (
    Checkpoints,
    KmsKey,
    StaticKey,
    keys_from_environment,
    open_directory,
    open_store,
    read_store,
    rotate,
    verify,
)
from flowkit.store.keys import NAME, decode_keys
from flowkit.store.kms import DataKeys, Kms
from flowkit.store.records import KEYS, encode_header
from tests.aws.proxy import Proxy, proxy_to
from tests.aws.recording import Recorder
from tests.aws.servers import aws_environment
from tests.store.making import opened, rows

WORDS = ("words", None)
FAULTS = ("throttle", "broken", "reset", "lost", "half", "slow")


class Made(NamedTuple):
    """A key, its alias, and the proxy before its service."""

    client: Any
    id: str
    alias: str
    proxy: Proxy


@pytest.fixture(params=["moto", "ministack"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either emulator."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    for name, value in aws_environment(url).items():
        monkeypatch.setenv(name, value)
    return url


@pytest.fixture
async def kms(server: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Made]:
    """A fresh key."""
    async with open_client("kms", AwsOptions(), "kms") as client, proxy_to(server) as proxy:
        key = (await client.create_key())["KeyMetadata"]["KeyId"]
        alias = f"alias/{uuid.uuid4().hex[:8]}"
        await client.create_alias(AliasName=alias, TargetKeyId=key)
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", proxy.url)
        yield Made(client, key, alias, proxy)


async def filled(path: Path, keys: KmsKey) -> None:
    async with open_store(path, keys=keys) as store:
        await store.commit({WORDS: rows(0, 100)})


async def looked(path: Path, keys: Any) -> Any:
    """The content, read in a thread: the proxy lives in this loop."""
    store = await asyncio.to_thread(read_store, path, keys)
    return dict(store.scan(WORDS))


async def looked_at(path: Path) -> bytes:
    """Every byte of every file."""
    return await asyncio.to_thread(lambda: b"".join(each.read_bytes() for each in path.iterdir()))


def fresh(key: str, app: str | None = "shop") -> KmsKey:
    """A provider that nobody has asked yet, as a new process has it."""
    return KmsKey(key, app=app)


async def test_a_store_is_encrypted_under_a_data_key_and_opens_again(kms: Made, tmp_path: Path) -> None:
    await filled(tmp_path, fresh(kms.alias))
    assert await looked(tmp_path, fresh(kms.alias)) == rows(0, 100)
    async with open_store(tmp_path, keys=fresh(kms.alias)) as store:
        await store.commit({WORDS: rows(100, 200)})
    assert (await asyncio.to_thread(verify, tmp_path, fresh(kms.alias))).problems == []
    asked = [(request.action, request.json) for request in kms.proxy.requests]
    assert {action for action, _ in asked} == {"GenerateDataKey", "Decrypt"}
    for _, body in asked:
        assert body["EncryptionContext"] == {"flowkit-app": "shop", "flowkit-store": str(tmp_path)}
    assert b"word" not in await looked_at(tmp_path)


async def test_what_kms_gave_is_used_for_a_while(kms: Made, tmp_path: Path) -> None:
    keys = fresh(kms.alias)
    async with opened(tmp_path / "s", keys) as store, open_storage(str(tmp_path / "c")) as storage:
        checkpoints = Checkpoints(storage.blobs("t"), keys=keys)
        await checkpoints.claim()
        for number in range(3):
            await store.commit({WORDS: rows(0, number + 1)})
            await checkpoints.publish(store)
    assert kms.proxy.times("GenerateDataKey") == 1
    for _ in range(3):
        assert await looked(tmp_path / "s", keys) == rows(0, 3)
    assert kms.proxy.times("Decrypt") <= 2  # the store's own key, and that of its checkpoints

    short = KmsKey(kms.alias, kms=Kms(None, DataKeys(seconds=0)))
    for _ in range(3):
        await looked(tmp_path / "s", short)
    assert kms.proxy.times("Decrypt") >= 3 + 1


@pytest.mark.parametrize("name", ["alias", "id"])
async def test_without_the_right_it_says_which_one(kms: Made, tmp_path: Path, name: str) -> None:
    key = getattr(kms, name)
    await filled(tmp_path / "s", fresh(key))
    kms.proxy.fault = lambda _: "denied"
    with pytest.raises(StoreKeyError, match=rf"KEYS: encrypted under KMS key {key}, and not .*allow kms:Decrypt on"):
        await looked(tmp_path / "s", fresh(key))
    with pytest.raises(
        StoreKeyError, match=rf"KMS key {key}: GenerateDataKey: AccessDenied.*allow kms:GenerateDataKey"
    ):
        await filled(tmp_path / "new", fresh(key))
    assert not (tmp_path / "new" / NAME).exists()


@pytest.mark.parametrize("server", ["ministack"], indirect=True)  # moto makes data keys with it all the same
async def test_a_disabled_key_is_named(kms: Made, tmp_path: Path) -> None:
    await filled(tmp_path, fresh(kms.alias))
    await kms.client.disable_key(KeyId=kms.id)
    with pytest.raises(StoreKeyError, match=r"DisabledException.*the key is disabled: enable it"):
        await fresh(kms.alias).wrap(bytes(32))
    await kms.client.enable_key(KeyId=kms.id)
    assert await looked(tmp_path, fresh(kms.alias)) == rows(0, 100)


async def test_a_key_that_is_not_there_is_named(kms: Made) -> None:
    with pytest.raises(
        StoreKeyError, match=r"KMS key alias/none-such: GenerateDataKey: NotFound.*there is no such key"
    ):
        await fresh("alias/none-such").wrap(bytes(32))


@pytest.mark.parametrize("server", ["ministack"], indirect=True)
@pytest.mark.parametrize("fault", FAULTS)
async def test_what_passes_is_tried_again(kms: Made, tmp_path: Path, fault: Any) -> None:
    kms.proxy.fault = lambda _: fault if len(kms.proxy.requests) % 2 else None
    await filled(tmp_path, fresh(kms.alias))
    assert await looked(tmp_path, fresh(kms.alias)) == rows(0, 100)
    assert any(request.fault == fault for request in kms.proxy.requests)


@pytest.mark.parametrize("server", ["ministack"], indirect=True)
@pytest.mark.parametrize("fault", ["expired", "unknown"])
async def test_credentials_that_have_expired_are_asked_for_anew(
    kms: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A")
    key = fresh(kms.alias)
    await filled(tmp_path / "first", key)
    kms.proxy.fault = lambda request: fault if request.key != "B" else None
    with pytest.raises(StoreError, match="try again") as caught:
        await filled(tmp_path / "second", key)
    assert not isinstance(caught.value, StoreKeyError)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "B")
    await filled(tmp_path / "third", key)
    assert await looked(tmp_path / "third", fresh(kms.alias)) == rows(0, 100)


async def test_a_service_that_does_not_answer_is_no_wrong_key(
    kms: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(tmp_path, fresh(kms.alias))
    monkeypatch.setattr("flowkit.store.kms.TRIES", 2)
    kms.proxy.fault = lambda _: "broken"
    with pytest.raises(StoreError, match=r"KEYS: encrypted under KMS key .*KMS does not answer now") as caught:
        await looked(tmp_path, fresh(kms.alias))
    assert not isinstance(caught.value, StoreKeyError | StoreCorrupt)


async def test_the_event_loop_goes_on_meanwhile(kms: Made) -> None:
    # The proxy answers from this loop: if KMS were asked in it, neither would ever go on.
    kms.proxy.fault, kms.proxy.delay = (lambda _: "slow"), 0.5
    asking = asyncio.create_task(fresh(kms.alias).wrap(bytes(32)))
    turns = 0
    while not asking.done():
        await asyncio.sleep(0.005)
        turns += 1
    await asking
    assert turns > 20


async def test_another_context_does_not_open_it(kms: Made, tmp_path: Path, recording: Recorder) -> None:
    recording.refused.add("kms:Decrypt")  # nor would IAM let it ask for another app's
    await filled(tmp_path, fresh(kms.alias))
    path = tmp_path / NAME
    found = decode_keys(path.read_bytes(), "KEYS")
    parts = msgspec.msgpack.decode(found.wrapped)
    parts[1] = {**parts[1], "flowkit-app": "another"}
    changed = msgspec.msgpack.encode(parts)
    path.write_bytes(encode_header(KEYS, provider=found.provider, wrapped=changed))
    with pytest.raises(StoreKeyError, match=r"InvalidCiphertext|opens the data key, and that not"):
        await looked(tmp_path, fresh(kms.alias))
    with pytest.raises(StoreKeyError, match="is not what it was encrypted under"):
        await fresh(kms.alias).unwrap(b"\x00" * 60)


async def test_keys_are_rotated_by_kms_by_an_alias_and_to_another_kind(kms: Made, tmp_path: Path) -> None:
    await filled(tmp_path, fresh(kms.alias))
    other = (await kms.client.create_key())["KeyMetadata"]["KeyId"]
    await kms.client.update_alias(AliasName=kms.alias, TargetKeyId=other)
    assert await looked(tmp_path, fresh(kms.alias)) == rows(0, 100)  # KMS knows which key it was
    await rotate(tmp_path, fresh(kms.alias), fresh(kms.alias))
    await kms.client.disable_key(KeyId=kms.id)
    assert await looked(tmp_path, fresh(kms.alias)) == rows(0, 100)
    assert await looked(tmp_path, fresh(other)) == rows(0, 100)
    static = StaticKey(bytes(range(32)))
    await rotate(tmp_path, fresh(other), static)
    assert await looked(tmp_path, static) == rows(0, 100)


async def test_a_checkpoint_in_s3_is_restored_with_it(kms: Made, tmp_path: Path) -> None:
    bucket = f"b-{uuid.uuid4().hex[:8]}"
    async with open_client("s3", AwsOptions(), "s3") as s3:
        await s3.create_bucket(Bucket=bucket)
    keys = fresh(kms.alias)
    async with opened(tmp_path / "a", keys) as store, open_storage(f"s3://{bucket}/x") as storage:
        await store.commit({WORDS: rows(0, 100)})
        found = Checkpoints(storage.blobs("t"), keys=keys)
        await found.claim()
        await found.publish(store)
        there = Checkpoints(storage.blobs("t"), keys=fresh(kms.alias))
        await there.restore(tmp_path / "b")
        with pytest.raises(StoreKeyError, match="but no key was given"):
            await Checkpoints(storage.blobs("t")).restore(tmp_path / "c")
    assert await looked(tmp_path / "b", fresh(kms.alias)) == rows(0, 100)


@pytest.fixture
def words(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line; what it printed."""

    def run(*words: str) -> str:
        capsys.readouterr()
        code = main(list(words))
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out + printed.err

    return run


def test_the_store_commands_work_with_it(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any
) -> None:
    async def key() -> str:
        async with open_client("kms", AwsOptions(), "kms") as client:
            made: str = (await client.create_key())["KeyMetadata"]["Arn"]
            return made

    first, second = asyncio.run(key()), asyncio.run(key())
    monkeypatch.setenv("FLOWKIT_STORE_KMS_KEY", first)
    open_directory(tmp_path / "state", "shop")
    store = tmp_path / "state" / "run"

    async def fill() -> None:
        found = keys_from_environment(app="shop")
        assert isinstance(found, KmsKey)
        await filled(store, found)

    asyncio.run(fill())
    assert f"encrypted under KMS key {first}" in words("store", "inspect", str(store))
    assert "sound" in words("store", "verify", str(tmp_path / "state"))
    words("store", "copy", str(store), str(tmp_path / "copy"), "--to-kms-key", second)
    assert f"now under KMS key {second}" in words("store", "rotate", str(tmp_path / "state"), "--to-kms-key", second)
    monkeypatch.setenv("FLOWKIT_STORE_KMS_KEY", second)
    for place in (store, tmp_path / "copy"):
        assert words("store", "dump", str(place)).count("\n") == 100
    context = msgspec.msgpack.decode(decode_keys((store / NAME).read_bytes(), "KEYS").wrapped)[1]
    assert context == {"flowkit-app": "shop", "flowkit-store": str(store)}
    words("store", "checkpoint", str(store), str(tmp_path / "points"))
    words("store", "restore", str(tmp_path / "points"), str(tmp_path / "restored"))
    assert "sound" in words("store", "verify", str(tmp_path / "restored"))
