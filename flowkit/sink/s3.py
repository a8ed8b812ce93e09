"""Objects in S3 as a destination: `s3://BUCKET/PREFIX/dt={dt}/hour={hour}?format=jsonl&compress=gz&roll_bytes=128MiB`.

    format            jsonl (the default), csv, parquet (the extra `parquet`)
    compress          gz, zst, none; for parquet snappy, zst, gz, none. The first one is the default
    roll_bytes        an object is complete with so many bytes of lines, before compression         (128MiB)
    roll_after        … or this long after its first record, by the clock; not in a bounded run     (5m)
    partition_delay   … or this long, in event time, after its partition's end: for late records    (0s)
    part_bytes        what becomes larger is uploaded in parts of so many                           (8MiB)
    name              stands in the objects' names instead of an id that is drawn when a run begins anew: then a
                      bounded run that is done again writes over what it wrote
    sse, kms_key, owner, addressing, and what all services of Amazon have (region, endpoint, profile, …)

`s3_layout` has what may stand in braces; names are TASK-ID-NUMBER, so any number of tasks write one place.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self
from urllib.parse import unquote

import structlog

from flowkit.aws import AwsOptions, Blame, Right, S3Place, blame_of, bucket_arn, literal, open_client, told
from flowkit.errors import ConfigError
from flowkit.sink.s3_formats import COMPRESSIONS, FORMATS, format_of
from flowkit.sink.s3_layout import Layout
from flowkit.sink.s3_sink import Rolling, S3Sink
from flowkit.sink.s3_upload import LEAST_PART, MOST_PARTS, Objects
from flowkit.sink.seam import SinkTask
from flowkit.sink.url_options import UrlOptions

log = structlog.get_logger("flowkit.sink")

ROLL_BYTES, ROLL_AFTER, PART_BYTES = 128 << 20, 300_000, 8 << 20
CALLS = 16
"""How many requests a worker makes at once for one output: they hold at most as many parts in memory."""

_PLACE = ("sse", "kms_key", "owner", "addressing")
"""What `S3Place` reads."""
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def open_destination(
    place: str, options: Mapping[str, str], where: str, fields: Sequence[str] | None
) -> "S3Destination":
    """As the registry asks for it. Raises ConfigError with all that is wrong."""
    aws, rest = AwsOptions.take(options, where)
    own = UrlOptions(rest, where)
    bucket, _, template = place.partition("/")
    found, problems = S3Place.read(bucket, {name: own.text(name) or "" for name in _PLACE}, where)
    own.problems += problems
    form = own.choice("format", FORMATS)
    compression = own.choice("compress", COMPRESSIONS.get(form, COMPRESSIONS["jsonl"]))
    roll_bytes = own.size("roll_bytes", 1) or ROLL_BYTES
    after, delay = own.duration("roll_after", 1_000) or ROLL_AFTER, own.duration("partition_delay") or 0
    part = own.size("part_bytes", LEAST_PART) or PART_BYTES
    name = own.text("name") or ""
    if roll_bytes > part * MOST_PARTS:
        own.problems.append(f"{where}: roll_bytes={roll_bytes} may be more than {MOST_PARTS:,} parts of {part} bytes")
    if name and not _NAME.fullmatch(name):
        own.problems.append(f"{where}: name={name}: letters, digits, _ . and - may be in it")
    layout = None
    try:
        layout = Layout(unquote(template).strip("/"), fields, "csv" if form == "csv" else "json", where)
    except ConfigError as error:
        own.problems += error.problems
    own.done(*AwsOptions._fields)
    assert layout is not None
    return S3Destination(
        found, aws, layout, (form, compression, fields), Rolling(roll_bytes, after, delay), part, name, where
    )


class S3Destination:
    """See the head of this file."""

    guarantee = (
        "exactly once: records wait in the task's state until their object is complete, and each object is written "
        "whole, under one name and with the same bytes however often"
    )

    def __init__(
        self,
        place: S3Place,
        aws: AwsOptions,
        layout: Layout,
        form: tuple[str, str, Sequence[str] | None],
        rolling: Rolling,
        part_bytes: int,
        name: str,
        where: str,
    ) -> None:
        self.place, self.aws, self.layout, self.rolling = place, aws, layout, rolling
        self.part_bytes, self.name, self.where = part_bytes, name, where
        self._form = form
        self.codec: str | None = "csv" if form[0] == "csv" else "json"
        self._element: Any = None
        self._stack = AsyncExitStack()
        self.objects: Objects

    def of(self, element: Any) -> None:
        """As `Typed` says."""
        self._element = element

    def check(self) -> None:
        """As the protocol says."""
        self._format().check(self.where)

    def writers(self, groups: Sequence[str], tasks: int, largest: int) -> str:
        """As the protocol says: names bear the task's."""
        return ""

    async def __aenter__(self) -> Self:
        client = await self._stack.enter_async_context(
            open_client("s3", self.aws, self.where, connections=CALLS, **self.place.config)
        )
        self.objects = Objects(client, self.place, self.part_bytes, CALLS)
        try:
            await self._look(client)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _look(self, client: Any) -> None:
        """See whether the bucket can be used, by the request that cleaning up begins with."""
        try:
            await client.list_multipart_uploads(**self.place.target, Prefix=self.layout.stem, MaxUploads=1)
        except Exception as error:
            blame = blame_of(error)
            if blame is None:
                raise
            if blame in (Blame.PERSON, Blame.REQUEST):
                owner = "" if self.place.owner is None else f", and that account {self.place.owner} owns it"
                raise ConfigError(
                    f"{self.where}: {told(error)}. See that the bucket is there{owner}, and that s3:PutObject, "
                    "s3:AbortMultipartUpload and s3:ListBucketMultipartUploads are allowed"
                ) from error
            log.warning("S3 does not answer yet", sink=self.where, reason=told(error))

    def rights(self) -> Sequence[Right]:
        """As the protocol says."""
        objects = bucket_arn(self.place.bucket, f"{literal(self.layout.stem)}*")
        return [
            Right("s3", ("AbortMultipartUpload", "PutObject"), objects),
            Right("s3", ("ListBucketMultipartUploads",), bucket_arn(self.place.bucket)),
            *self.place._replace(region=self.aws.region).key_rights("Decrypt", "GenerateDataKey"),
        ]

    def sink(self, task: SinkTask) -> S3Sink:
        """As the protocol says."""
        return S3Sink(task, self.objects, self.layout, self._format(), self.rolling, self.name)

    def _format(self) -> Any:
        return format_of(*self._form, self._element)
