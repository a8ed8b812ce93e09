"""Encryption at rest: key providers, the KEYS file, and that nothing is to be read in any file."""

import asyncio
import base64
import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.errors import ConfigError, StoreCorrupt, StoreError, StoreKeyError
from flowkit.store import (
    FileKey,
    KeyProvider,
    KmsKey,
    LsmStore,
    StaticKey,
    keys_from_environment,
    open_store,
    read_store,
    rotate,
)
from flowkit.store.cipher import StoreKey
from flowkit.store.files import Disk, Writer
from flowkit.store.keys import decode_keys
from flowkit.store.records import (
    CHECKPOINT,
    KEYS,
    KINDS,
    LOG,
    MANIFEST,
    decode_facts,
    decode_header,
    encode_header,
)
from tests.store.making import KEY, OTHER, WINDOW, WORDS, contents, everything, opened, rows

RAW = bytes(range(32))
ANYTHING = st.one_of(
    st.none(), st.integers(-(2**31), 2**31), st.text(max_size=5), st.binary(max_size=80), st.booleans()
)


async def filled(path: Path, keys: KeyProvider | None = KEY) -> None:
    """A store with sstables in two levels and a log."""
    async with opened(path, keys) as store:
        await store.commit({WORDS: rows(0, 500), WINDOW: rows(0, 50)})
        await store.compact()
        await store.commit({WORDS: rows(400, 600, "newer")}, meta={"secret-meta": "secret-meta"})
        await store.flush()
        await store.commit({WORDS: rows(600, 700)}, expires=9_000)


def header_of(data: bytes) -> dict[str, Any]:
    kind = data[7:8]
    assert kind in KINDS
    found = decode_facts(data, kind, "file")
    assert found is not None
    return found[1]


@pytest.mark.parametrize("packing", ["none", "lz4", "zstd"])
async def test_no_plaintext_is_in_any_file(tmp_path: Path, packing: str) -> None:
    async def write(path: Path, keys: KeyProvider | None) -> None:
        async with opened(path, keys, packing=packing) as store:
            await store.commit({WORDS: rows(0, 300), ("window", 61): {b"secret-key": b"secret-value"}})
            await store.flush()
            await store.commit({WORDS: rows(300, 310)}, meta={"secret-meta": 1})

    await write(tmp_path / "plain", None)
    await write(tmp_path / "sealed", KEY)
    needles = (b"secret", b"words-of-users", b"window", RAW)
    plain = contents(tmp_path / "plain").values()
    assert all(any(word in data for data in plain) for word in needles[:3])
    found = contents(tmp_path / "sealed")
    assert {name.partition("-")[0] for name in found} == {"KEYS", "log", "manifest", "000001"}
    for name, data in found.items():
        assert not [word for word in needles if word in data], name


async def test_what_was_encrypted_is_read_back(tmp_path: Path) -> None:
    await filled(tmp_path)
    expected = {**rows(0, 400), **rows(400, 600, "newer"), **rows(600, 700)}
    async with opened(tmp_path, KEY) as store:
        assert everything(store) == {WORDS: expected, WINDOW: rows(0, 50)}
        assert store.get(WORDS, b"secret-key-000450") == rows(450, 451, "newer")[b"secret-key-000450"]
        looked = read_store(tmp_path, KEY)
        assert everything(looked) == everything(store)


async def test_each_file_has_a_key_of_its_own(tmp_path: Path) -> None:
    await filled(tmp_path)
    keys = [header_of(data)["key"] for data in contents(tmp_path, "KEYS").values()]
    assert len(keys) >= 4
    assert len(set(keys)) == len(keys)


async def test_an_encrypted_log_is_never_appended_to_after_reopening(tmp_path: Path) -> None:
    await filled(tmp_path)
    before = {name: data for name, data in contents(tmp_path).items() if name.startswith("log-")}
    async with opened(tmp_path, KEY) as store:
        await store.commit({WORDS: rows(0, 1)})
    assert len(before) == 1
    after = {name: data for name, data in contents(tmp_path).items() if name.startswith("log-")}
    assert {name: after[name] for name in before} == before
    assert len(after) == 2


async def test_a_missing_wrong_or_needless_key_is_told(tmp_path: Path) -> None:
    await filled(tmp_path / "sealed")
    await filled(tmp_path / "plain", None)
    for path, keys, told in [
        (
            "sealed",
            None,
            f"encrypted under {KEY.name}, but no key was given: pass keys=, or set FLOWKIT_STORE_KEY_FILE",
        ),
        ("sealed", OTHER, f"KEYS: encrypted under {KEY.name}, .*{OTHER.name} is not the key"),
        ("plain", KEY, "not encrypted, but a key was given .*flowkit store copy .*plain NEW --to-key-file FILE"),
    ]:
        before = contents(tmp_path / path)
        with pytest.raises(StoreKeyError, match=told):
            async with opened(tmp_path / path, keys):
                pass
        with pytest.raises(StoreKeyError, match=told):
            read_store(tmp_path / path, keys)
        assert contents(tmp_path / path) == before


async def test_a_lost_or_damaged_key_file_is_told(tmp_path: Path) -> None:
    await filled(tmp_path)
    whole = (tmp_path / "KEYS").read_bytes()
    for at in range(len(whole)):
        (tmp_path / "KEYS").write_bytes(whole[:at])
        with pytest.raises(StoreCorrupt, match="KEYS: "):
            read_store(tmp_path, KEY)
        (tmp_path / "KEYS").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(StoreCorrupt, match="KEYS: "):
            read_store(tmp_path, KEY)
    (tmp_path / "KEYS").unlink()
    for keys in (KEY, None):
        with pytest.raises(StoreCorrupt, match="KEYS: missing, though the store is encrypted"):
            read_store(tmp_path, keys)
    (tmp_path / "KEYS").write_bytes(whole)
    assert read_store(tmp_path, KEY).number == 3


async def test_the_key_file_of_another_store_is_told(tmp_path: Path) -> None:
    await filled(tmp_path / "a")
    await filled(tmp_path / "b")
    (tmp_path / "a" / "KEYS").replace(tmp_path / "b" / "KEYS")
    with pytest.raises(StoreKeyError, match="encrypted under another store's key"):
        read_store(tmp_path / "b", KEY)


async def test_turning_to_another_key_writes_no_data(tmp_path: Path) -> None:
    await filled(tmp_path)
    before = contents(tmp_path, "KEYS")
    await rotate(tmp_path, KEY, OTHER)
    assert contents(tmp_path, "KEYS") == before
    assert read_store(tmp_path, OTHER).number == 3
    with pytest.raises(StoreKeyError, match="is not the key"):
        read_store(tmp_path, KEY)
    with pytest.raises(StoreKeyError, match="is not the key"):
        await rotate(tmp_path, KEY, OTHER)


async def test_keys_turn_while_the_owner_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path, KEY) as store:
        await store.commit({WORDS: rows(0, 10)})
        await rotate(tmp_path, KEY, OTHER)
        await store.commit({WORDS: rows(10, 20)})
        await store.flush()
        assert everything(read_store(tmp_path, OTHER)) == {WORDS: rows(0, 20)}


async def test_nothing_is_rotated_where_nothing_is_encrypted(tmp_path: Path) -> None:
    await filled(tmp_path, None)
    with pytest.raises(StoreKeyError, match="not encrypted"):
        await rotate(tmp_path, KEY, OTHER)
    with pytest.raises(ConfigError, match="nowhere: cannot be used"):
        await rotate(tmp_path / "nowhere", KEY, OTHER)


class Failing(Disk):
    """Fails at the n-th thing that is done to the directory."""

    def __init__(self, after: int) -> None:
        self.left = after

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")

    def create(self, path: Path) -> Writer:
        self._count()
        return super().create(path)

    def rename(self, old: Path, new: Path) -> None:
        self._count()
        super().rename(old, new)

    def sync_directory(self, path: Path) -> None:
        self._count()
        super().sync_directory(path)


@pytest.mark.parametrize("steps", range(4))
async def test_a_rotation_that_is_broken_off_leaves_one_of_both_keys(tmp_path: Path, steps: int) -> None:
    await filled(tmp_path)
    if steps < 3:
        with pytest.raises(StoreKeyError, match="cannot be written"):
            await rotate(tmp_path, KEY, OTHER, files=Failing(steps))
    else:
        await rotate(tmp_path, KEY, OTHER, files=Failing(steps))
    right = KEY if steps < 2 else OTHER
    async with opened(tmp_path, right) as store:
        assert store.number == 3
    await rotate(tmp_path, right, KEY)
    assert read_store(tmp_path, KEY).number == 3


# Providers


@pytest.mark.parametrize(
    "content",
    [RAW, RAW.hex().encode(), RAW.hex().upper().encode() + b"\n", base64.b64encode(RAW), base64.urlsafe_b64encode(RAW)],
)
async def test_a_key_file_holds_bytes_hex_or_base64(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    assert FileKey(path).name.split()[-1] == KEY.name.split()[-1]
    assert await KEY.unwrap(await FileKey(path).wrap(b"x" * 32)) == b"x" * 32


@pytest.mark.parametrize(
    "content", [b"", RAW[:31], RAW + b"\n", b"00" * 31, b"not a key at all, but 44 characters long: ==="]
)
def test_a_file_without_a_key_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StoreKeyError, match=rf"key: holds no key: 32 bytes.*it has {len(content)} bytes"):
        FileKey(path)


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(RAW)
    for mode in (0o644, 0o604, 0o620, 0o666):
        path.chmod(mode)
        with pytest.raises(StoreKeyError, match=rf"open to others \(mode {mode:04o}\): chmod 0600"):
            FileKey(path)
    for mode in (0o600, 0o400, 0o440):
        path.chmod(mode)
        FileKey(path)
    with pytest.raises(StoreKeyError, match="cannot be read: No such file"):
        FileKey(tmp_path / "none")
    with pytest.raises(StoreKeyError, match="cannot be read: Is a directory"):
        FileKey(tmp_path)


def test_a_static_key_has_32_bytes() -> None:
    with pytest.raises(StoreKeyError, match="a key has 32 bytes, this one 16"):
        StaticKey(bytes(16))


def test_the_environment_names_a_key(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(RAW)
    path.chmod(0o600)
    assert keys_from_environment({}) is None
    assert keys_from_environment({"FLOWKIT_STORE_KEY": "", "FLOWKIT_STORE_KEY_FILE": ""}) is None
    by_text, by_file = (
        keys_from_environment({"FLOWKIT_STORE_KEY": RAW.hex()}),
        keys_from_environment({"FLOWKIT_STORE_KEY_FILE": str(path)}),
    )
    assert by_text is not None
    assert by_file is not None
    assert by_text.name == KEY.name
    assert by_file.name.startswith("key file ")
    by_kms = keys_from_environment({"FLOWKIT_STORE_KMS_KEY": "alias/states"}, app="shop")
    assert isinstance(by_kms, KmsKey)
    assert (by_kms.name, by_kms.context) == ("KMS key alias/states", {"flowkit-app": "shop"})
    with pytest.raises(ConfigError, match="FLOWKIT_STORE_KEY and FLOWKIT_STORE_KMS_KEY are both set: keep one"):
        keys_from_environment({"FLOWKIT_STORE_KEY": RAW.hex(), "FLOWKIT_STORE_KMS_KEY": "alias/states"})
    with pytest.raises(StoreKeyError, match="'arn:aws:kms' is no KMS key: give its id, its ARN, or alias/NAME"):
        keys_from_environment({"FLOWKIT_STORE_KMS_KEY": "arn:aws:kms"})
    with pytest.raises(ConfigError, match="both set"):
        keys_from_environment({"FLOWKIT_STORE_KEY": RAW.hex(), "FLOWKIT_STORE_KEY_FILE": str(path)})
    with pytest.raises(StoreKeyError, match="FLOWKIT_STORE_KEY: holds no key"):
        keys_from_environment({"FLOWKIT_STORE_KEY": "hunter2"})


class Service:
    """A provider that has to wait for its answer, as a key service does."""

    name = "service key 7"

    def __init__(self, *, up: bool = True) -> None:
        self.up = up

    async def wrap(self, key: bytes) -> bytes:
        return await KEY.wrap(key)

    async def unwrap(self, wrapped: bytes) -> bytes:
        await asyncio.sleep(0)
        if not self.up:
            raise StoreKeyError("the key service does not answer")
        return await KEY.unwrap(wrapped)


async def test_a_provider_may_have_to_be_waited_for(tmp_path: Path) -> None:
    await filled(tmp_path, Service())
    assert read_store(tmp_path, Service()).number == 3
    with pytest.raises(StoreKeyError, match=r"encrypted under service key 7.*: the key service does not answer"):
        read_store(tmp_path, Service(up=False))


async def test_a_store_that_was_given_up_before_its_first_commit_opens_again(tmp_path: Path) -> None:
    async with opened(tmp_path, KEY):
        pass
    for name in contents(tmp_path, "KEYS"):
        (tmp_path / name).unlink()
    async with opened(tmp_path, KEY) as store:
        await store.commit({WORDS: rows(0, 1)})
    assert everything(read_store(tmp_path, KEY)) == {WORDS: rows(0, 1)}


def test_importing_the_store_does_not_load_cryptography() -> None:
    code = "import sys, flowkit, flowkit.store; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ}).returncode == 0


async def test_an_encrypted_state_moves_to_an_owner_with_a_key_of_its_own(tmp_path: Path) -> None:
    await filled(tmp_path / "a")
    before = read_store(tmp_path / "a", KEY)
    place = tmp_path / "a"
    for name in "bcd":
        async with opened(tmp_path / name, KEY) as store:
            assert await store.adopt(place, before.commit_id)
            assert everything(store) == everything(before)
        place = tmp_path / name
    async with opened(place, KEY) as store:
        await store.commit({WORDS: rows(0, 5, "moved")})
        await store.compact()
    assert everything(read_store(place, KEY))[WORDS] == {**everything(before)[WORDS], **rows(0, 5, "moved")}
    async with opened(tmp_path / "plain") as store:
        with pytest.raises(StoreKeyError, match="encrypted under"):
            await store.adopt(tmp_path / "a", before.commit_id)
    await filled(tmp_path / "open", None)
    async with opened(tmp_path / "sealed", KEY) as store:
        with pytest.raises(StoreError, match="not encrypted, but a key was given"):
            await store.adopt(tmp_path / "open", read_store(tmp_path / "open").commit_id)


async def test_keys_of_stores_that_no_file_is_from_any_more_are_forgotten(tmp_path: Path) -> None:
    await filled(tmp_path / "0")
    for number in range(1, 5):
        before = read_store(tmp_path / f"{number - 1}", KEY)
        async with opened(tmp_path / f"{number}", KEY) as store:
            assert await store.adopt(tmp_path / f"{number - 1}", before.commit_id)
            assert everything(store) == everything(before)
            assert store.key is not None
            assert len(store.key.raw) == 2 * 32
            await store.commit({WORDS: rows(0, 3, f"n{number}")})
            await store.compact()


async def test_flushes_and_compactions_in_a_process_of_their_own_are_encrypted_too(tmp_path: Path) -> None:
    async with open_store(tmp_path / "db", keys=KEY) as store:
        assert isinstance(store, LsmStore)
        await store.commit({WORDS: rows(0, 200)})
        await store.compact()
        await store.commit({WORDS: rows(100, 300, "new")})
        await store.snapshot(tmp_path / "snap")
        expected = everything(store)
    for place in ("db", "snap"):
        assert everything(read_store(tmp_path / place, KEY)) == expected
        assert not [name for name, data in contents(tmp_path / place).items() if b"secret" in data]


@given(
    facts=st.dictionaries(st.sampled_from(["provider", "wrapped", "key", "x"]), ANYTHING), tail=st.binary(max_size=4)
)
def test_whatever_a_key_file_holds_only_our_errors_come(facts: dict[str, Any], tail: bytes) -> None:
    data = encode_header(KEYS, **facts) + tail
    with contextlib.suppress(StoreCorrupt):
        assert isinstance(decode_keys(data, "KEYS").wrapped, bytes)
    for kind in (LOG, MANIFEST, CHECKPOINT):
        with contextlib.suppress(StoreCorrupt, StoreKeyError):
            decode_header(encode_header(kind, **facts) + tail, kind, "file", StoreKey(RAW))


@given(data=st.binary(max_size=80))
def test_whatever_bytes_a_key_file_has_only_our_errors_come(data: bytes) -> None:
    for prefix in (b"", b"FLOWKITK", b"FLOWKITK\x01\x00"):
        with contextlib.suppress(StoreCorrupt):
            decode_keys(prefix + data, "KEYS")
