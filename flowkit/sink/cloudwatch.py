"""Metrics of CloudWatch as a destination: `cloudwatch://NAMESPACE?value=FIELD&metric=NAME&dimensions=a,b&unit=Count`.

    value=FIELD      the record's number; a record without one (null) gives nothing
    metric=NAME      the metric's name                                                      the field's, unless given
    dimensions=a,b   fields that tell one metric from another: 30 at most
    unit=Count       as CloudWatch names units, such as Milliseconds, Bytes/Second          None
    resolution=1     seconds: kept by the second instead of the minute                      60
    calls=4          requests under way at once, of each task

A record is one value at its event's time. CloudWatch takes what is at most two weeks old and two hours ahead; anything
else, and a record that lacks a dimension, is a dead letter. A namespace needs not be made: it is there with its first
value, so that a name that is mistyped is told by nobody. botocore compresses requests of 10 KiB and more.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self
from urllib.parse import unquote

import msgspec

from flowkit.aws import AwsOptions, Condition, Right
from flowkit.clock import Clock
from flowkit.errors import ConfigError
from flowkit.sink.calls import bulk_client, called
from flowkit.sink.dispatch import Dispatch, Item, Limits, Never, Outcome
from flowkit.sink.records import RecordSink, Row
from flowkit.sink.seam import SinkTask
from flowkit.sink.url_options import UrlOptions

CALL_METRICS = 1_000
CALL_BYTES = 900_000
"""The service takes 1 MB a request. What an item adds is estimated, upwards, for the body depends on the protocol."""
DATUM_BYTES, DIMENSION_BYTES = 160, 40
DIMENSIONS = 30
NAME_LENGTH, DIMENSION_LENGTH = 255, 1_024
OLDEST_MS, NEWEST_MS = 14 * 86_400_000, 2 * 3_600_000
LARGEST = 2.0**360

NAMESPACE = re.compile(r"[A-Za-z0-9._/# -][A-Za-z0-9._/#: -]{0,254}")
_SIZES = ("Bytes", "Kilobytes", "Megabytes", "Gigabytes", "Terabytes", "Bits", "Kilobits", "Megabits", "Gigabits")
_AMOUNTS = (*_SIZES, "Terabits", "Count")
UNITS = (
    "None",
    "Seconds",
    "Microseconds",
    "Milliseconds",
    "Percent",
    *_AMOUNTS,
    *(f"{each}/Second" for each in _AMOUNTS),
)


class MetricOptions(NamedTuple):
    """What a URL says beside how the service is reached. See the head of this file."""

    value: str
    metric: str
    dimensions: tuple[str, ...] = ()
    unit: str = "None"
    resolution: int = 60
    calls: int = 4


class CloudWatchDestination:
    """One metric, with its dimensions. See the head of this file."""

    codec: str | None = "json"
    guarantee = (
        "at least once: after a failure a value may come again at the same time, which Average, Minimum and Maximum "
        "hardly show; Sum and SampleCount count it twice"
    )

    def __init__(
        self, namespace: str, aws: AwsOptions, where: str, fields: Sequence[str] | None, options: MetricOptions
    ) -> None:
        self.where, self.aws, self.options = where, aws, options
        self._namespace, self._fields = namespace, fields
        self._client: Any = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Nothing can be looked at: a namespace is made by its first value."""
        self._client = await self._stack.enter_async_context(
            bulk_client("cloudwatch", self.aws, self.where, self.options.calls)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def check(self) -> None:
        """As the protocol says."""
        problems, options = [], self.options
        if not NAMESPACE.fullmatch(self._namespace):
            problems.append(
                f"{self.where}: needs a namespace: up to 255 letters, digits and . - _ / # :, no : in front"
            )
        if self._namespace.startswith("AWS/"):
            problems.append(f"{self.where}: namespaces that begin with AWS/ are Amazon's own: name another one")
        if not options.value:
            problems.append(f"{self.where}: needs value=FIELD: which field is the number")
        if len(options.metric) > NAME_LENGTH:
            problems.append(f"{self.where}: metric=: has {len(options.metric)} characters, and may have {NAME_LENGTH}")
        if len(options.dimensions) > DIMENSIONS:
            problems.append(
                f"{self.where}: dimensions=: {len(options.dimensions)} are named, and a metric has {DIMENSIONS}"
            )
        known = (options.value, *options.dimensions) if self._fields is None else self._fields
        problems += [
            f"{self.where}: no record has a field {name!r}; there are {', '.join(known)}"
            for name in (options.value, *options.dimensions)
            if name and name not in known
        ]
        if problems:
            raise ConfigError(*problems)

    def writers(self, groups: Sequence[str], tasks: int, largest: int) -> str:
        """Any number can."""
        return ""

    def rights(self) -> Sequence[Right]:
        """As the protocol says: metrics are no resources, only their namespace can be told apart."""
        here = Condition("StringEquals", "cloudwatch:namespace", (self._namespace,))
        return [Right("cloudwatch", ("PutMetricData",), "*", (here,))]

    def sink(self, task: SinkTask) -> RecordSink:
        """As the protocol says."""
        dispatch = Dispatch(self.where, self._send, Limits(CALL_METRICS, CALL_BYTES, self.options.calls))
        make = _Maker(self.options, task.clock)
        return RecordSink(dispatch, make.item, task.clock, codec=self.codec)

    async def _send(self, items: Sequence[Item]) -> Sequence[Outcome] | None:
        data = [item.body for item in items]
        await called(self.where, self._client.put_metric_data(Namespace=self._namespace, MetricData=data))
        return None


class _Maker:
    """Makes a record a datum."""

    def __init__(self, options: MetricOptions, clock: Clock) -> None:
        self.options, self.clock = options, clock
        size = DATUM_BYTES + len(options.metric) * 4
        self._size = size + sum(DIMENSION_BYTES + len(name) * 4 for name in options.dimensions)

    def item(self, index: int, row: Row) -> Item | Never | None:
        if row.value is None:
            return None
        try:
            record = msgspec.json.decode(row.value)
        except msgspec.MsgspecError as error:
            return Never("NoObject", f"the value is no JSON: {error}")
        if not isinstance(record, dict):
            return Never("NoObject", "the value is no JSON object, and has no fields")
        value = record.get(self.options.value)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            return Never(
                "NoNumber", f"field {self.options.value!r} is {value!r:.80}, and CloudWatch takes finite numbers"
            )
        late = self._out_of_time(row.time)
        if late is not None:
            return late
        dimensions, size = [], self._size
        for name in self.options.dimensions:
            said = _dimension(record.get(name))
            if not 1 <= len(said) <= DIMENSION_LENGTH or not said.isascii():
                return Never(
                    "NoDimension",
                    f"field {name!r} is {said!r:.80}, and a dimension is 1 to {DIMENSION_LENGTH} ASCII characters",
                )
            size += len(said)
            dimensions.append({"Name": name, "Value": said})
        datum: dict[str, Any] = {
            "MetricName": self.options.metric,
            "Value": float(value),
            "Timestamp": datetime.fromtimestamp(row.time / 1000, UTC),
            "StorageResolution": self.options.resolution,
        }
        if dimensions:
            datum["Dimensions"] = dimensions
        if self.options.unit != "None":
            datum["Unit"] = self.options.unit
        return Item(index, None, size, datum)

    def _out_of_time(self, time: int) -> Never | None:
        now = self.clock.now_ms()
        if time < now - OLDEST_MS:
            return Never("TooOld", f"it is of {time} (ms), more than two weeks before {now}")
        if time > now + NEWEST_MS:
            return Never("TooNew", f"it is of {time} (ms), more than two hours ahead of {now}")
        return None


def _dimension(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None or isinstance(value, dict | list) else str(value)


def open_destination(
    place: str, options: Mapping[str, str], where: str, fields: Sequence[str] | None
) -> CloudWatchDestination:
    """As the registry asks for it."""
    aws, rest = AwsOptions.take(options, where)
    own = UrlOptions(rest, where)
    value = own.text("value") or ""
    found = MetricOptions(
        value=value,
        metric=own.text("metric") or value,
        dimensions=tuple(name.strip() for name in (own.text("dimensions") or "").split(",") if name.strip()),
        unit=own.choice("unit", UNITS),
        resolution=int(own.choice("resolution", ("60", "1"))),
        calls=own.whole("calls", 4),
    )
    own.done(*AwsOptions._fields)
    return CloudWatchDestination(unquote(place), aws, where, fields, found)
