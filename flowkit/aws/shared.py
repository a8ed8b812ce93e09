"""Rules of single services that both who reads there and who writes there must follow alike."""

import hashlib
import importlib.util

from flowkit.errors import ConfigError


def hash_of(key: bytes) -> int:
    """By what Kinesis tells which shard a partition key belongs to (PutRecord: "MD5 … 128-bit integer values")."""
    return int.from_bytes(hashlib.md5(key, usedforsecurity=False).digest(), "big")


def need_pyarrow(where: str) -> None:
    """Raise ConfigError if what reads and writes Parquet is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(f"{where}: Parquet needs pyarrow: pip install 'flowkit[parquet]'")
