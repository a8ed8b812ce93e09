"""Where in S3 and how: what a URL says, encryption there, whose bucket it has to be, and checksums of what is sent.

What S3 stores for checkpoints, sinks and sources have in common. Credentials and endpoints are `open_client`'s.
"""

import base64
import os
import re
import zlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote

from flowkit.aws.rights import Condition, Right, bucket_arn, key_right, literal, via
from flowkit.errors import ConfigError

ENCRYPTIONS = ("AES256", "aws:kms", "aws:kms:dsse")
ADDRESSING = ("auto", "path", "virtual")
OPTIONS = ("region", "addressing", "sse", "kms_key", "owner")
"""What the URL of a place for checkpoints may say."""

REFUSED = ("PreconditionFailed", "412")
MISSING = ("NoSuchKey", "404")

Use = Literal["keep", "add", "read"]
"""What is done with blobs: all, all but deleting them, or reading only."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_OWNER = re.compile(r"[0-9]{12}")


class S3Place(NamedTuple):
    """Where in which bucket, and how: `s3://BUCKET/PREFIX?region=…&addressing=path&sse=aws:kms&kms_key=…&owner=…`.

    `sse` and `kms_key` are server-side encryption (FLOWKIT_S3_SSE and FLOWKIT_S3_KMS_KEY where the URL is silent); the
    bucket's own default otherwise. `addressing=path` is for servers that know no buckets in host names. `owner` (or
    FLOWKIT_S3_BUCKET_OWNER) is the account, in 12 digits, that the bucket must belong to: S3 refuses every request to
    another's, so that a name that someone else has taken gets no data.
    """

    bucket: str
    prefix: str = ""
    region: str | None = None
    addressing: str = "auto"
    sse: str | None = None
    kms_key: str | None = None
    owner: str | None = None

    @classmethod
    def parse(cls, url: str, environ: Mapping[str, str] | None = None) -> "S3Place":
        """Read the URL of a place for checkpoints. Raises ConfigError with all that is wrong, and no secret in it."""
        rest, _, query = url.removeprefix("s3://").partition("?")
        if "@" in rest.partition("/")[0]:
            raise ConfigError(
                "checkpoints s3://…@…: credentials do not belong into a URL: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, a profile or a role"
            )
        shown, options = f"checkpoints s3://{rest}", dict(parse_qsl(query, keep_blank_values=True))
        unknown = [
            f"{shown}: unknown option {n!r}; there are {', '.join(OPTIONS)}" for n in options if n not in OPTIONS
        ]
        place, problems = cls.read(rest, options, shown, environ)
        if problems or unknown:
            at = 1 if problems and "is no name of a bucket" in problems[0] else 0
            raise ConfigError(*problems[:at], *unknown, *problems[at:])
        return place._replace(region=options.get("region") or None)

    @classmethod
    def read(
        cls, rest: str, options: Mapping[str, str], shown: str, environ: Mapping[str, str] | None = None
    ) -> "tuple[S3Place, list[str]]":
        """`BUCKET/PREFIX` and those of `options` that say how (but for the region); and all that is wrong with them."""
        found = os.environ if environ is None else environ
        bucket, _, prefix = rest.partition("/")
        problems = []
        if not _BUCKET.fullmatch(bucket):
            problems.append(f"{shown}: {bucket!r} is no name of a bucket; write s3://BUCKET/PREFIX")
        kms_key = options.get("kms_key") or found.get("FLOWKIT_S3_KMS_KEY") or None
        sse = options.get("sse") or found.get("FLOWKIT_S3_SSE") or ("aws:kms" if kms_key else None)
        addressing = options.get("addressing") or "auto"
        owner = options.get("owner") or found.get("FLOWKIT_S3_BUCKET_OWNER") or None
        if sse is not None and sse not in ENCRYPTIONS:
            problems.append(f"{shown}: sse={sse}: no such encryption; there are {', '.join(ENCRYPTIONS)}")
        elif kms_key is not None and sse == "AES256":
            problems.append(f"{shown}: a kms_key is for sse=aws:kms, not for sse=AES256")
        if addressing not in ADDRESSING:
            problems.append(f"{shown}: addressing={addressing}: there are {', '.join(ADDRESSING)}")
        if owner is not None and not _OWNER.fullmatch(owner):
            problems.append(f"{shown}: owner={owner}: needs the number of an account, 12 digits")
        return cls(bucket, unquote(prefix).strip("/"), None, addressing, sse, kms_key, owner), problems

    def rights(self, *folder: str, use: Use = "keep") -> list[Right]:
        """What a role has to be allowed for the objects of one folder, and for a look whether it can be used."""
        start = self.start
        here = start + "".join(f"{name}/" for name in folder)
        actions = {"keep": ("DeleteObject", "GetObject", "PutObject"), "add": ("GetObject", "PutObject")}
        rights = [Right("s3", actions.get(use, ("GetObject",)), bucket_arn(self.bucket, f"{literal(here)}*"))]
        looked = tuple(dict.fromkeys((literal(start), f"{literal(here)}*")))
        under = (Condition("StringLike", "s3:prefix", looked),) if here else ()
        rights.append(Right("s3", ("ListBucket",), bucket_arn(self.bucket), under))
        return rights + self.key_rights("Decrypt", *(() if use == "read" else ("GenerateDataKey",)))

    def key_rights(self, *actions: str) -> list[Right]:
        """What a role has to be allowed with the key that objects are encrypted by there, if one is named."""
        if self.kms_key is None:
            return []
        named = self.kms_key.split(":")[3] if self.kms_key.startswith("arn:") else None
        region = self.region or named  # a bucket's key is in its region
        return [key_right(self.kms_key, actions, region, via("s3", region))]

    def __str__(self) -> str:
        return f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    @property
    def start(self) -> str:
        """What all keys there begin with."""
        return f"{self.prefix}/" if self.prefix else ""

    @property
    def target(self) -> dict[str, str]:
        """What every request names: the bucket, and whose it has to be."""
        return {"Bucket": self.bucket} | ({} if self.owner is None else {"ExpectedBucketOwner": self.owner})

    @property
    def encryption(self) -> dict[str, str]:
        """What a request that makes an object says about its encryption."""
        options = {} if self.sse is None else {"ServerSideEncryption": self.sse}
        return options | ({} if self.kms_key is None else {"SSEKMSKeyId": self.kms_key})

    @property
    def config(self) -> dict[str, Any]:
        """What a client of this place is configured with, beside what all clients are."""
        return {"s3": {"addressing_style": self.addressing}}


def checksum(data: bytes) -> str:
    """A crc32 as S3 takes it, which refuses what arrives otherwise."""
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
