"""Encryption at rest: AES-256-GCM, a fresh data key for each file, wrapped by the store's key.

key provider   wraps the store's key: a static key, a file, later a service. Rotating it rewrites `KEYS` only
store key      wraps the data key of each file, which the file's header holds
data key       encrypts the file's records and blocks; the nonce is their offset, which no two of a file share
"""

import os
from typing import Any

from flowkit.errors import StoreCorrupt, StoreKeyError

KEY_BYTES = 32
TAG_BYTES = 16


def _aead(key: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


class StoreKey:
    """The key of one store, unwrapped: it makes and opens the data keys of its files."""

    __slots__ = ("_aead", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._aead = _aead(raw)

    def new_cipher(self) -> "Cipher":
        """A cipher with a fresh data key, for one new file."""
        data_key, nonce = os.urandom(KEY_BYTES), os.urandom(12)
        return Cipher(data_key, nonce + self._aead.encrypt(nonce, data_key, None))

    def unwrap(self, wrapped: bytes, name: str) -> bytes:
        """The data key of a file. Raises StoreKeyError if another key wrapped it."""
        from cryptography.exceptions import InvalidTag

        try:
            return bytes(self._aead.decrypt(wrapped[:12], wrapped[12:], None))
        except (InvalidTag, ValueError):
            raise StoreKeyError(f"{name}: encrypted under another store's key: the file belongs elsewhere") from None


class Cipher:
    """Encrypts the parts of one file, each by its offset in it. `wrapped` is what the file's header holds."""

    __slots__ = ("_aead", "wrapped")

    def __init__(self, data_key: bytes, wrapped: bytes) -> None:
        self.wrapped = wrapped
        self._aead = _aead(data_key)

    @classmethod
    def of_file(cls, wrapped: bytes | None, key: StoreKey | None, name: str) -> "Cipher | None":
        """The cipher of a file whose header holds `wrapped`. Raises StoreKeyError if there is no key for it."""
        if wrapped is None:
            return None
        if key is None:
            raise StoreKeyError(
                f"{name}: encrypted, but no key provider was given: pass keys= or set FLOWKIT_STORE_KEY"
            )
        return cls(key.unwrap(wrapped, name), wrapped)

    def seal(self, offset: int, data: bytes) -> bytes:
        """`data` encrypted for its place at `offset`: 16 bytes longer."""
        return bytes(self._aead.encrypt(offset.to_bytes(12, "little"), data, None))

    def unseal(self, offset: int, data: bytes, name: str) -> bytes:
        """What was sealed for `offset`. Raises StoreCorrupt if it was changed, moved, or belongs to another file."""
        from cryptography.exceptions import InvalidTag

        try:
            return bytes(self._aead.decrypt(offset.to_bytes(12, "little"), data, None))
        except (InvalidTag, ValueError):
            raise StoreCorrupt(f"{name}: what stands at offset {offset} does not decrypt: it was changed") from None
