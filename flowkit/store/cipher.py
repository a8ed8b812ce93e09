"""Encryption at rest: AES-256-GCM, a fresh data key for each file, wrapped by the store's key.

key provider   wraps the store's key: a static key, a file, later a service. Rotating it rewrites `KEYS` only
store key      wraps the data key of each file, which the file's header holds
data key       encrypts the file's records and blocks; the nonce is their offset, which no two of a file share
"""

import os
from typing import Any

from flowkit.errors import StoreCorrupt, StoreKeyError

KEY_BYTES = 32


def _aead(key: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


class StoreKey:
    """The key of one store, unwrapped: it makes and opens the data keys of its files.

    `raw` may be several keys of 32 bytes, one after the other: new files are made under the first; the others are those
    of stores that files were taken over from.
    """

    __slots__ = ("_ring", "raw")

    def __init__(self, raw: bytes) -> None:
        if not raw or len(raw) % KEY_BYTES:
            raise ValueError(f"a store key of {len(raw)} bytes: it takes {KEY_BYTES}, or a multiple")
        self.raw = raw
        self._ring = [_aead(raw[at : at + KEY_BYTES]) for at in range(0, len(raw), KEY_BYTES)]

    def new_cipher(self) -> "Cipher":
        """A cipher with a fresh data key, for one new file."""
        data_key, nonce = os.urandom(KEY_BYTES), os.urandom(12)
        return Cipher(data_key, nonce + self._ring[0].encrypt(nonce, data_key, None))

    def unwrap(self, wrapped: bytes, name: str) -> bytes:
        """The data key of a file. Raises StoreKeyError if another key wrapped it."""
        return self._open(wrapped, name)[1]

    def used_by(self, wrapped: bytes, name: str) -> bytes:
        """The one key (32 bytes) of this one that wrapped a file's data key. Raises StoreKeyError."""
        at = KEY_BYTES * self._open(wrapped, name)[0]
        return self.raw[at : at + KEY_BYTES]

    def _open(self, wrapped: bytes, name: str) -> tuple[int, bytes]:
        from cryptography.exceptions import InvalidTag

        for number, aead in enumerate(self._ring):
            try:
                return number, bytes(aead.decrypt(wrapped[:12], wrapped[12:], None))
            except (InvalidTag, ValueError):
                continue
        raise StoreKeyError(f"{name}: encrypted under another store's key: the file belongs elsewhere")


class Cipher:
    """Encrypts the parts of one file, each by its offset in it. `wrapped` is what the file's header holds."""

    __slots__ = ("_aead", "wrapped")

    def __init__(self, data_key: bytes, wrapped: bytes) -> None:
        self.wrapped = wrapped
        self._aead = _aead(data_key)

    @classmethod
    def of_file(cls, wrapped: Any, key: StoreKey | None, name: str) -> "Cipher | None":
        """The cipher of a file whose header holds `wrapped`. Raises StoreKeyError if there is no key for it."""
        if wrapped is None:
            return None
        if type(wrapped) is not bytes:
            raise StoreCorrupt(f"{name}: the key in the header (offset 0) is no key: restore this file from a copy")
        if key is None:
            raise StoreKeyError(
                f"{name}: encrypted, but no key provider was given: pass keys= or set FLOWKIT_STORE_KEY_FILE"
            )
        return cls(key.unwrap(wrapped, name), wrapped)

    def seal(self, offset: int, data: bytes) -> bytes:
        """`data` encrypted for its place at `offset`: 16 bytes longer. Never two texts for one place."""
        return bytes(self._aead.encrypt(offset.to_bytes(12, "little"), data, None))

    def unseal(self, offset: int, data: bytes, name: str) -> bytes:
        """What was sealed for `offset`. Raises StoreCorrupt if it was changed, moved, or belongs to another file."""
        from cryptography.exceptions import InvalidTag

        try:
            return bytes(self._aead.decrypt(offset.to_bytes(12, "little"), data, None))
        except (InvalidTag, ValueError):
            raise StoreCorrupt(f"{name}: what stands at offset {offset} does not decrypt: it was changed") from None
