"""From a URL to the destination: files, and what each scheme's own file offers, which is loaded when it is used."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl

from flowkit.errors import ConfigError
from flowkit.sink.file import FileDestination
from flowkit.sink.seam import Destination, Typed

SERVICES: dict[str, tuple[str, str]] = {
    "cloudwatch": ("flowkit.sink.cloudwatch", "cloudwatch://NAMESPACE"),
    "dynamodb": ("flowkit.sink.dynamodb", "dynamodb://TABLE"),
    "events": ("flowkit.sink.messages", "events://BUS"),
    "firehose": ("flowkit.sink.firehose", "firehose://STREAM"),
    "kinesis": ("flowkit.sink.kinesis", "kinesis://STREAM"),
    "kinesis-internal": ("flowkit.sink.kinesis_internal", ""),
    "lambda": ("flowkit.sink.lambda_function", "lambda://FUNCTION"),
    "logs": ("flowkit.sink.cloudwatch_logs", "logs://GROUP/STREAM"),
    "opensearch": ("flowkit.sink.opensearch", "opensearch://HOST/INDEX"),
    "redshift": ("flowkit.sink.redshift", "redshift://HOST/DATABASE/SCHEMA.TABLE"),
    "redshift-data": ("flowkit.sink.redshift", "redshift-data://WORKGROUP/DATABASE/SCHEMA.TABLE"),
    "s3": ("flowkit.sink.s3", "s3://BUCKET/PREFIX"),
    "sns": ("flowkit.sink.messages", "sns://TOPIC_ARN"),
    "sqs": ("flowkit.sink.messages", "sqs://QUEUE"),
}
"""By scheme: the module, and what a URL of it looks like ('': not for people). The module's
`open_destination(place, options, where, fields)` makes one, or raises ConfigError."""


def is_file(url: str) -> bool:
    """True if `url` is a path, or a file's URL."""
    return "://" not in url or url.startswith("file://")


def destination(url: str, fields: Sequence[str] | None, *, sync: bool = True, element: Any = None) -> Destination:
    """Where `url` leads. `fields` are the columns of the records, if they have such; `element` is their type.

    `sync` is for files: a delivery is on disk when it returns. Raises ConfigError with all that is wrong.
    """
    if is_file(url):
        return FileDestination(url.removeprefix("file://"), fields, sync=sync)
    scheme, _, rest = url.partition("://")
    if scheme not in SERVICES:
        known = ", ".join(["a path", "file://PATH", *(shape for _, shape in SERVICES.values() if shape)])
        raise ConfigError(f"{scheme}://…: unknown scheme {scheme!r}; there are {known}")
    place, _, query = rest.partition("?")
    if "@" in place.partition("/")[0]:
        raise ConfigError(
            f"{scheme}://…@…: credentials do not belong into a URL: they come from environment, profile or role"
        )
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise ConfigError(f"{scheme}://{place}: what stands behind ? is not NAME=VALUE&NAME=VALUE") from None
    module: Any = import_module(SERVICES[scheme][0])
    made: Destination = module.open_destination(place, options, f"{scheme}://{place}", fields)
    if isinstance(made, Typed):
        made.of(element)
    return made
