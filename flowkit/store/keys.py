"""Whose key a store is encrypted under: key providers, and the file `KEYS`, which holds the store's key wrapped by one.

    KEYS    := header                              as in `records`, with nothing after it
    facts   := {"provider": str, "wrapped": bin}   who wrapped the key, in words; and what came of it
    wrapped := nonce:12 bytes  AES-256-GCM(store key)          by the providers here
    store key := 32 bytes, or several times 32: the first is the store's own, the others came with files of other stores

The store's key never changes, so turning to another provider's key (`rotate`) writes this one file and no data.
"""

import asyncio
import base64
import binascii
import contextlib
import fcntl
import hashlib
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import anyio

from flowkit.errors import ConfigError, StoreCorrupt, StoreError, StoreKeyError
from flowkit.store.cipher import KEY_BYTES, StoreKey
from flowkit.store.files import Disk, Files
from flowkit.store.log import logs
from flowkit.store.manifest import manifests
from flowkit.store.records import KEYS, LOG, MANIFEST, TABLE, decode_facts, encode_header

NAME = "KEYS"
HOW_TO_GIVE = "pass keys=, or set FLOWKIT_STORE_KEY_FILE (or FLOWKIT_STORE_KEY, or FLOWKIT_STORE_KMS_KEY)"
_PURPOSE = b"flowkit store key"


class KeyProvider(Protocol):
    """Wraps the keys of stores: with a key of its own, or by asking a service that keeps one."""

    @property
    def name(self) -> str:
        """Kind and key in words, for messages and for `KEYS`; it tells one key from another and gives none away."""

    async def wrap(self, key: bytes) -> bytes:
        """Encrypt a store's key. Raises StoreKeyError if that cannot be done; StoreError if not just now."""

    async def unwrap(self, wrapped: bytes) -> bytes:
        """Decrypt it again. Raises StoreKeyError if another key wrapped it, or this one cannot be had.

        StoreError if it cannot be had just now.
        """


@runtime_checkable
class Placed(Protocol):
    """A provider that is told which store it wraps the key of."""

    def at(self, directory: Path) -> KeyProvider:
        """The provider for the store in a directory."""


class StaticKey:
    """A key of 32 bytes that the application gives.

    >>> StaticKey(bytes(32)).name
    'static key 523d9730'
    """

    kind = "static key"

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise StoreKeyError(f"a key has {KEY_BYTES} bytes, this one {len(key)}: make one by `openssl rand 32`")
        self._key = key

    @property
    def name(self) -> str:
        """The kind, and a fingerprint of the key."""
        return f"{self.kind} {hashlib.sha256(_PURPOSE + self._key).hexdigest()[:8]}"

    async def wrap(self, key: bytes) -> bytes:
        """Encrypt a store's key."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(12)
        return nonce + AESGCM(self._key).encrypt(nonce, key, _PURPOSE)

    async def unwrap(self, wrapped: bytes) -> bytes:
        """Decrypt it again. Raises StoreKeyError if another key wrapped it."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            return AESGCM(self._key).decrypt(wrapped[:12], wrapped[12:], _PURPOSE)
        except (InvalidTag, ValueError):
            raise StoreKeyError(f"{self.name} is not the key that it was encrypted under") from None


class FileKey(StaticKey):
    """A key in a file: 32 raw bytes, or as hex or base64. Only its owner (and group) may read the file.

    Raises StoreKeyError if the file cannot be read, may be read by everyone, or holds no key.
    """

    kind = "key file"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                data = file.read(4096)
        except OSError as error:
            raise StoreKeyError(f"{self.path}: the key file cannot be read: {error.strerror}") from error
        if stat.S_ISREG(mode) and mode & 0o027:
            raise StoreKeyError(
                f"{self.path}: the key file is open to others (mode {stat.S_IMODE(mode):04o}): chmod 0600 it "
                "(a mounted secret: set its mode to 0400 or 0440)"
            )
        super().__init__(parse_key(data, str(self.path)))


def parse_key(data: bytes, name: str) -> bytes:
    """A key from 32 raw bytes, or from text as hex or base64. Raises StoreKeyError.

    >>> parse_key(b"00" * 32, "x") == parse_key(b"A" * 43 + b"=", "x") == bytes(32)
    True
    """
    if len(data) == KEY_BYTES:
        return data
    text = data.strip()
    for decode in (bytes.fromhex, _from_base64):
        with contextlib.suppress(ValueError):
            key = decode(text.decode("ascii"))
            if len(key) == KEY_BYTES:
                return key
    raise StoreKeyError(
        f"{name}: holds no key: {KEY_BYTES} bytes, raw, hex or base64, were expected, and it has {len(data)} bytes: "
        "make one by `openssl rand -hex 32`"
    )


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


VARIABLES = ("FLOWKIT_STORE_KEY", "FLOWKIT_STORE_KEY_FILE", "FLOWKIT_STORE_KMS_KEY")


def keys_from_environment(environ: Mapping[str, str] | None = None, *, app: str | None = None) -> KeyProvider | None:
    """The provider that the environment names; None if it names none.

    FLOWKIT_STORE_KEY_FILE is a path, FLOWKIT_STORE_KEY a key in hex or base64, FLOWKIT_STORE_KMS_KEY a key that AWS KMS
    keeps, which is told the `app`. Raises ConfigError if several are set, StoreKeyError.
    """
    found = os.environ if environ is None else environ
    given = [name for name in VARIABLES if found.get(name)]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are {'both' if len(given) == 2 else 'all'} set: keep one")
    text, path, kms_key = map(found.get, VARIABLES)
    if kms_key:
        from flowkit.store.kms import KmsKey

        return KmsKey(kms_key, app=app)
    if path:
        return FileKey(path)
    return StaticKey(parse_key(text.encode(), "FLOWKIT_STORE_KEY")) if text else None


# The file


class Wrapped(NamedTuple):
    """What a `KEYS` file says."""

    provider: str
    wrapped: bytes


def read_keys(directory: Path) -> Wrapped | None:
    """The `KEYS` file of a store; None if there is none. Raises StoreCorrupt."""
    path = directory / NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreCorrupt(f"{path}: cannot be read: {error.strerror}") from error
    return decode_keys(data, str(path))


def decode_keys(data: bytes, name: str) -> Wrapped:
    """The content of a `KEYS` file. Raises StoreCorrupt."""
    found = decode_facts(data, KEYS, name)
    if found is None:
        raise StoreCorrupt(f"{name}: ends after {len(data)} bytes: restore this file from a copy")
    size, facts = found
    provider, wrapped = facts.get("provider"), facts.get("wrapped")
    if size != len(data) or not isinstance(provider, str) or not isinstance(wrapped, bytes):
        raise StoreCorrupt(f"{name}: is no key file of this format (offset {size}): restore it from a copy")
    return Wrapped(provider, wrapped)


async def encode_keys(key: bytes, keys: KeyProvider, directory: Path) -> bytes:
    """A `KEYS` file for the key of the store in `directory`. Raises StoreKeyError, StoreError."""
    here = keys.at(directory) if isinstance(keys, Placed) else keys
    return encode_header(KEYS, provider=here.name, wrapped=await here.wrap(key))


def write_keys(files: Files, directory: Path, data: bytes) -> None:
    """Put a `KEYS` file in its place, over one that is there; durable. Raises OSError."""
    draft = directory / f".{NAME}"
    files.unlink(draft)
    with closing(files.create(draft)) as writer:
        writer.append(data)
        writer.sync()
    files.rename(draft, directory / NAME)
    files.sync_directory(directory)


# Opening


async def unlock(directory: Path, keys: KeyProvider | None) -> StoreKey | None:
    """The key of the store in `directory`; None if it is not encrypted, or nothing is there yet.

    Raises StoreKeyError if it is encrypted and `keys` is missing or another's, or it is not and `keys` is given;
    StoreCorrupt.
    """
    found = read_keys(directory)
    if found is None:
        if _is_encrypted(directory):
            raise StoreCorrupt(f"{directory / NAME}: missing, though the store is encrypted: restore it from a copy")
        if keys is not None and not is_empty(directory):
            raise StoreKeyError(
                f"{directory}: not encrypted, but a key was given ({keys.name}): go on without, or encrypt a copy: "
                f"flowkit store copy {directory} NEW --to-key-file FILE"
            )
        return None
    if keys is None:
        raise StoreKeyError(f"{directory}: encrypted under {found.provider}, but no key was given: {HOW_TO_GIVE}")
    return await _unwrap(found, keys, directory / NAME)


async def unlock_data(data: bytes, keys: KeyProvider | None, name: str) -> StoreKey:
    """The key in the content of a `KEYS` file that lies in `name`. Raises StoreKeyError, StoreCorrupt."""
    found = decode_keys(data, name)
    if keys is None:
        raise StoreKeyError(f"{name}: encrypted under {found.provider}, but no key was given: {HOW_TO_GIVE}")
    return await _unwrap(found, keys, name)


async def _unwrap(found: Wrapped, keys: KeyProvider, path: Path | str) -> StoreKey:
    try:
        return StoreKey(await keys.unwrap(found.wrapped))
    except StoreKeyError as error:
        raise StoreKeyError(
            f"{path}: encrypted under {found.provider}, and not to be opened with what was given: {error}"
        ) from error
    except StoreCorrupt:
        raise
    except StoreError as error:
        raise StoreError(f"{path}: encrypted under {found.provider}: {error}") from error
    except ValueError as error:
        raise StoreCorrupt(f"{path}: {error}") from error


async def unlock_or_begin(files: Files, directory: Path, keys: KeyProvider | None) -> StoreKey | None:
    """As `unlock`; a store that is not there yet gets a key of its own, which is durable before anything is written.

    Raises OSError as well.
    """
    key = await unlock(directory, keys)
    if key is not None or keys is None:
        return key
    raw = os.urandom(KEY_BYTES)
    data = await encode_keys(raw, keys, directory)
    await anyio.to_thread.run_sync(write_keys, files, directory, data)
    return StoreKey(raw)


def unlock_here(directory: Path, keys: KeyProvider | None) -> StoreKey | None:
    """As `unlock`, for those who do not await: a provider that does is run in a thread of its own."""
    coroutine = unlock(directory, keys)
    try:
        coroutine.send(None)
    except StopIteration as done:
        key: StoreKey | None = done.value
        return key
    coroutine.close()
    answer: list[Any] = []
    thread = threading.Thread(target=lambda: answer.append(_outcome(directory, keys)), name="unlock a store")
    thread.start()
    thread.join()
    if isinstance(answer[0], BaseException):
        raise answer[0]
    found: StoreKey | None = answer[0]
    return found


def _outcome(directory: Path, keys: KeyProvider | None) -> Any:
    try:
        return asyncio.run(unlock(directory, keys))
    except Exception as error:  # noqa: BLE001  the waiting thread raises it
        return error


async def rotate(
    path: str | os.PathLike[str], old: KeyProvider, new: KeyProvider, *, files: Files | None = None
) -> None:
    """Wrap the key of a store by `new` instead of `old`. No data is written; its owner may be running.

    Whenever this is broken off, either `old` or `new` opens the store. Snapshots and checkpoints keep the wrapping that
    they were made with. Raises StoreKeyError if the store is not encrypted or not under `old`, StoreCorrupt.
    """
    directory = Path(path)
    with _one_at_a_time(directory):
        found = read_keys(directory)
        if found is None:
            raise StoreKeyError(f"{directory}: not encrypted (there is no {NAME} in it): nothing to rotate")
        key = await _unwrap(found, old, directory / NAME)
        data = await encode_keys(key.raw, new, directory)
        try:
            await anyio.to_thread.run_sync(write_keys, files or Disk(), directory, data)
        except OSError as error:
            raise StoreKeyError(
                f"{directory / NAME}: cannot be written ({error.strerror}); the key in use goes on to be the right one"
            ) from error


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    # Not the store's own lock: its owner may go on. Of two that rotate at once, the second must see what the first did.
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def keys_of(directory: Path, names: list[str], key: StoreKey) -> bytes:
    """Which of the keys in `key`, its first left out, some sstables are under: 32 bytes each. Raises StoreCorrupt."""
    used: dict[bytes, None] = {}
    for name in names:
        with (directory / name).open("rb") as file:
            found = decode_facts(file.read(4096), TABLE, str(directory / name))
        if found is not None and "key" in found[1]:
            used[key.used_by(found[1]["key"], str(directory / name))] = None
    used.pop(key.raw[:KEY_BYTES], None)
    return b"".join(used)


def is_empty(directory: Path) -> bool:
    """True if no store was begun here."""
    return not manifests(directory) and not logs(directory)


def _is_encrypted(directory: Path) -> bool:
    for path, kind in [(p, MANIFEST) for p in manifests(directory)] + [(p, LOG) for p in logs(directory)]:
        with contextlib.suppress(StoreCorrupt, OSError), path.open("rb") as file:
            found = decode_facts(file.read(4096), kind, str(path))
            if found is not None and "key" in found[1]:
                return True
    return False
