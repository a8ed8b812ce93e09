"""AWS KMS as a key provider: FLOWKIT_STORE_KMS_KEY=alias/NAME, a key's id or its ARN.

    wrapped := msgpack [1, context {str: str}, data key as KMS has encrypted it, nonce:12 bytes AES-256-GCM(store key)]

Envelope encryption: KMS makes a data key, under which the store's key is encrypted here; the store's key never leaves
the process, and a store that has many needs no more of KMS. The encryption context names the app and the store's
directory at the time: KMS's log shows it, a policy can ask for it (`kms:EncryptionContext:flowkit-app`), and without it
KMS does not decrypt. Copies keep that of their origin.

Data keys are kept in memory for a while, so that a checkpoint a minute is not a request a minute. KMS is asked by
botocore in threads: opening a store must not block an event loop, and may be asked for where there is none.
"""

import asyncio
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from flowkit.aws import EXPIRED, SUSPECT, Blame, Condition, Right, blame_of, code_of, key_right, told
from flowkit.errors import StoreError, StoreKeyError
from flowkit.store.cipher import KEY_BYTES

FORMAT = 1
APP, STORE = "flowkit-app", "flowkit-store"
"""The names in the encryption context."""
KEPT_SECONDS = 600.0
"""How long a data key is used before KMS is asked again: so long a key that was disabled may still open what it has."""
KEPT = 1_000
TRIES = 5
_PURPOSE = b"flowkit store key"

_CURES = {
    "AccessDeniedException": "allow {right} on the key to this role, in its policy or the key's",
    "DisabledException": "the key is disabled: enable it (`aws kms enable-key`), or restore it",
    "KMSInvalidStateException": "the key is on its way to be deleted or not ready: `aws kms cancel-key-deletion`",
    "NotFoundException": "there is no such key or alias in this account and region: see to the name",
    "InvalidCiphertextException": "the key or the encryption context is another one, or KEYS was changed",
    "IncorrectKeyException": "it was encrypted under another key: name that one",
    "InvalidKeyUsageException": "the key is not for encrypting (its usage): a symmetric ENCRYPT_DECRYPT key is needed",
}


class Kept(NamedTuple):
    """A data key in memory: `made` by the monotonic clock."""

    plain: bytes
    sealed: bytes
    made: float


class DataKeys:
    """Data keys that KMS gave not long ago, by what they are asked for; used from several threads."""

    def __init__(self, seconds: float = KEPT_SECONDS, most: int = KEPT) -> None:
        self.seconds, self.most = seconds, most
        self._kept: OrderedDict[Any, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, asked: Any) -> Kept | None:
        """The key, if it is there still."""
        with self._lock:
            found = self._kept.get(asked)
            if found is not None and time.monotonic() - found.made >= self.seconds:
                del self._kept[asked]
                return None
            return found

    def put(self, asked: Any, plain: bytes, sealed: bytes) -> Kept:
        """Keep one; the oldest goes."""
        with self._lock:
            made = self._kept[asked] = Kept(plain, sealed, time.monotonic())
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
            return made


class HalfAnswer(Exception):
    """What came was cut off, which botocore takes for an answer without anything in it."""


class NoClient(Exception):
    """KMS cannot even be asked; why."""


class Kms:
    """KMS in one region (None: as the environment says), by a client for all threads, and the data keys it gave."""

    def __init__(self, region: str | None, data_keys: DataKeys | None = None) -> None:
        self.region, self.data_keys = region, data_keys or DataKeys()
        self.worked = False
        """True once there was an answer: from then on keys that are refused may be replaced."""
        self._client: Any = None
        self._lock = threading.Lock()

    def ask(self, action: str, **options: Any) -> Any:
        """One call, which botocore tries again. Raises NoClient, HalfAnswer, or what botocore raises."""
        try:
            answer = self._call(action, options)
        except Exception as error:
            code = code_of(error)
            if code not in EXPIRED and not (self.worked and code in SUSPECT):
                raise
            with self._lock:
                self._client = None  # with another one credentials are had anew
            answer = self._call(action, options)
        self.worked = True
        return answer

    def _call(self, action: str, options: dict[str, Any]) -> Any:
        client = self._opened()
        for _ in range(TRIES):
            answer = (client.generate_data_key if action == "GenerateDataKey" else client.decrypt)(**options)
            if "Plaintext" in answer:
                return answer
        raise HalfAnswer("the answer has no key in it")

    def _opened(self) -> Any:
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        with self._lock:
            if self._client is None:
                retries = {"mode": "standard", "total_max_attempts": TRIES}
                config = Config(connect_timeout=5, read_timeout=10, retries=retries)
                try:
                    session = botocore.session.get_session()
                    self._client = session.create_client("kms", region_name=self.region, config=config)
                except (BotoCoreError, ValueError) as error:
                    raise NoClient(told(error)) from None
            return self._client


class KmsKey:
    """A key that KMS keeps: its id or ARN, or an alias ("alias/NAME", or its ARN).

    `context` is added to each data key's encryption context. Raises StoreKeyError if `key` is none.
    """

    def __init__(
        self,
        key: str,
        *,
        app: str | None = None,
        context: Mapping[str, str] | None = None,
        kms: "Kms | None" = None,
    ) -> None:
        if not key or (key.startswith("arn:") and key.count(":") < 5):
            raise StoreKeyError(f"{key!r} is no KMS key: give its id, its ARN, or alias/NAME")
        self.key, self.app = key, app
        self.context = {**({} if app is None else {APP: app}), **(context or {})}
        self._kms = kms or Kms(key.split(":")[3] if key.startswith("arn:") else None)

    @property
    def name(self) -> str:
        """The kind, and the key's name as it was given."""
        return f"KMS key {self.key}"

    def rights(self) -> Sequence[Right]:
        """What a role has to be allowed; only for this app's data keys, if the app is known."""
        ours = () if self.app is None else (Condition("StringEquals", f"kms:EncryptionContext:{APP}", (self.app,)),)
        return (key_right(self.key, ("Decrypt", "GenerateDataKey"), self._kms.region, *ours),)

    def at(self, directory: Path) -> "KmsKey":
        """The same for the store in a directory, which the encryption context names."""
        context = {**self.context, STORE: str(directory.absolute())}
        return KmsKey(self.key, app=self.app, context=context, kms=self._kms)

    async def wrap(self, key: bytes) -> bytes:
        """Encrypt a store's key. Raises StoreKeyError; StoreError if KMS does not answer now."""
        return await _in_thread(self._wrap, key)

    async def unwrap(self, wrapped: bytes) -> bytes:
        """Decrypt it again. Raises StoreKeyError; StoreError if KMS does not answer now."""
        return await _in_thread(self._unwrap, wrapped)

    def _wrap(self, key: bytes) -> bytes:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        asked = ("make", self.key, tuple(sorted(self.context.items())))
        data = self._kms.data_keys.get(asked)
        if data is None:
            answer = self._ask("GenerateDataKey", KeyId=self.key, KeySpec="AES_256", EncryptionContext=self.context)
            data = self._kms.data_keys.put(asked, answer["Plaintext"], answer["CiphertextBlob"])
        nonce = os.urandom(12)
        sealed = nonce + AESGCM(data.plain).encrypt(nonce, key, _PURPOSE)
        return msgspec.msgpack.encode([FORMAT, self.context, data.sealed, sealed])

    def _unwrap(self, wrapped: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            _, context, blob, sealed = msgspec.msgpack.decode(wrapped, type=tuple[int, dict[str, str], bytes, bytes])
        except msgspec.MsgspecError:
            raise StoreKeyError(
                f"{self.name} is not what it was encrypted under: no data key of KMS is in it"
            ) from None
        asked = ("open", tuple(sorted(context.items())), blob)
        data = self._kms.data_keys.get(asked)
        if data is None:
            answer = self._ask("Decrypt", CiphertextBlob=blob, EncryptionContext=context, **self._pinned())
            data = self._kms.data_keys.put(asked, answer["Plaintext"], blob)
        try:
            return AESGCM(data.plain).decrypt(sealed[:12], sealed[12:], _PURPOSE)
        except (InvalidTag, ValueError):
            raise StoreKeyError(
                f"{self.name} opens the data key, and that not the store's key: was KEYS changed?"
            ) from None

    def _pinned(self) -> dict[str, str]:
        # By an alias, which may lead to another key by now, KMS would refuse: it finds the key by itself.
        return {} if "alias/" in self.key else {"KeyId": self.key}

    def _ask(self, action: str, **options: Any) -> Any:
        """One call, tried again by botocore. Raises StoreKeyError if it is for a person to mend, else StoreError."""
        try:
            return self._kms.ask(action, **options)
        except NoClient as error:
            raise StoreKeyError(f"{self.name}: {error}") from error
        except Exception as error:
            code, blame = code_of(error), blame_of(error)
            if isinstance(error, HalfAnswer) or (self._kms.worked and code in SUSPECT):
                blame = Blame.PASSING
            if blame is None:
                raise
            said = f"{self.name}: {action}: {told(error)}"
            if blame in (Blame.SLOW, Blame.PASSING):
                raise StoreError(f"{said}: KMS does not answer now; try again") from error
            cure = _CURES.get(code, "see to the key's name, region and rights").format(right=f"kms:{action}")
            raise StoreKeyError(f"{said}: {cure}") from error


async def _in_thread(work: Any, data: bytes) -> bytes:
    # Where there is no loop to wait in, who drives this coroutine by hand sees by the bare yield that it has to wait.
    await asyncio.sleep(0)
    done: bytes = await asyncio.to_thread(work, data)
    return done


assert KEY_BYTES == 32  # AES_256
