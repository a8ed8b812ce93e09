"""CloudWatch Logs as a destination: `logs://GROUP/STREAM`; what stands behind the last slash is the stream.

    ?create=yes    the group and the stream are made if they are not there; default `no`
    ?calls=4       requests under way at once, of each task

A record is an event at its own time; a tombstone is `null`, as in a file of JSON lines. The service refuses what is
more than two hours ahead, or older than two weeks or than the group keeps: that becomes a dead letter. A call holds
events in order of time, 24 hours apart at most. Readers see all events of a stream by time, whoever sent them.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self
from urllib.parse import unquote

from flowkit.aws import AwsOptions, Right, arn, code_of
from flowkit.errors import ConfigError
from flowkit.sink.calls import bulk_client, called, described, until_known
from flowkit.sink.dispatch import Dispatch, Item, Limits, Never, Outcome, Refused, TryAgain
from flowkit.sink.records import RecordSink, Row
from flowkit.sink.seam import SinkTask
from flowkit.sink.url_options import UrlOptions

CALL_EVENTS = 10_000
CALL_BYTES = 1 << 20
EVENT_OVERHEAD = 26
"""As the API's model says (botocore, PutLogEvents): 10,000 events and 1 MiB a call, 26 bytes an event on top."""
SPAN_MS = 86_400_000

GROUP = re.compile(r"[._/#A-Za-z0-9-]{1,512}")
STREAM = re.compile(r"[^:*]{1,512}")


class LogsDestination:
    """One log stream. See the head of this file."""

    codec: str | None = None
    guarantee = (
        "at least once: after a failure an event may come again, at the same time and with nothing to tell it by"
    )

    def __init__(self, group: str, stream: str, aws: AwsOptions, where: str, *, create: bool, calls: int = 4) -> None:
        self.where, self.aws, self.calls = where, aws, calls
        self.group, self.stream, self._create = group, stream, create
        self._there = False
        self._client: Any = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Raises ConfigError if there is no such stream, and it is not to be made."""
        async with AsyncExitStack() as stack:
            self._client = await stack.enter_async_context(bulk_client("logs", self.aws, self.where, self.calls))
            await self._look()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _look(self) -> None:
        """See that group and stream are there, or make them, if the service answers."""
        if self._create:
            made = await described(
                self.where, self._make_both(), right="logs:CreateLogGroup, logs:CreateLogStream", missing=""
            )
            self._there = made is not None
            return
        missing = "make them with `aws logs create-log-group` and `create-log-stream`, or say ?create=yes"
        asked = self._client.describe_log_streams(
            logGroupName=self.group,
            logStreamNamePrefix=self.stream,
            limit=1,  # the shortest name comes first
        )
        found = await described(self.where, asked, right="logs:DescribeLogStreams", missing=missing)
        if found is None:
            return
        if not any(stream["logStreamName"] == self.stream for stream in found["logStreams"]):
            raise ConfigError(f"{self.where}: group {self.group!r} has no stream {self.stream!r}: {missing}")
        self._there = True

    async def _make_both(self) -> bool:
        stream = {"logGroupName": self.group, "logStreamName": self.stream}
        try:
            await _unless_there(self._client.create_log_stream(**stream))
        except Exception as error:
            if code_of(error) != "ResourceNotFoundException":
                raise
            await _unless_there(self._client.create_log_group(logGroupName=self.group))
            await _unless_there(self._client.create_log_stream(**stream))
        return True

    def check(self) -> None:
        """As the protocol says."""
        problems = []
        if not GROUP.fullmatch(self.group) or not STREAM.fullmatch(self.stream):
            problems.append(
                f"{self.where}: needs GROUP/STREAM: a group of letters, digits and . - _ / #, and a stream without "
                "colon and asterisk (a slash in its name is %2F)"
            )
        if problems:
            raise ConfigError(*problems)

    def writers(self, groups: Sequence[str], tasks: int, largest: int) -> str:
        """Any number can."""
        return ""

    def rights(self) -> Sequence[Right]:
        """As the protocol says."""
        group = arn("logs", f"log-group:{self.group}", self.aws.region)
        stream = Right("logs", ("PutLogEvents",), f"{group}:log-stream:{self.stream}")
        if self._create:
            return [stream, Right("logs", ("CreateLogGroup", "CreateLogStream"), f"{group}:*")]
        return [stream, Right("logs", ("DescribeLogStreams",), f"{group}:*")]

    def sink(self, task: SinkTask) -> RecordSink:
        """As the protocol says."""
        return RecordSink(self._dispatch(), _make, task.clock, codec=self.codec, ready=self.ready)

    async def put(self, lines: Sequence[tuple[int, str]]) -> int:
        """Send lines, each with its time (ms), for as long as it takes: how many the service never takes.

        Raises SinkError if someone has to do something.
        """
        await self.ready()
        made = [event_of(row, time, line) for row, (time, line) in enumerate(lines)]
        items = [each for each in made if isinstance(each, Item)]
        never = await self._dispatch().run(items)
        return len(lines) - len(items) + len(never)

    def _dispatch(self) -> Dispatch:
        return Dispatch(self.where, self.send, Limits(CALL_EVENTS, CALL_BYTES, self.calls))

    async def ready(self) -> None:
        """The stream is there. Tried for as long as it takes. Raises SinkError if someone has to do something."""
        await until_known(self._look, lambda: self._there)

    async def send(self, items: Sequence[Item]) -> Sequence[Outcome] | None:
        """As `Dispatch` asks for it: some calls, if the events are more than a day apart."""
        found: dict[int, Outcome] = {}
        times = [item.body["timestamp"] for item in items]
        in_order = times == sorted(times)  # of numbers that are: 0.03 µs an event, to sort these by a function 0.2
        for run in spans(items if in_order else sorted(items, key=_time)):
            found |= await self._put(run)
        return [found.get(item.row) for item in items] if found else None

    async def _put(self, run: Sequence[Item]) -> dict[int, Outcome]:
        """By row, what became of events that may go in one call, but for those taken.

        Refused as a whole, they are halved here: of the calls before some may have been taken, and must not come again.
        """
        call = self._client.put_log_events(
            logGroupName=self.group, logStreamName=self.stream, logEvents=[item.body for item in run]
        )
        try:
            answer = await called(self.where, call)
        except TryAgain as error:
            return {item.row: error.again for item in run}
        except Refused as error:
            if len(run) == 1:
                return {run[0].row: error.never}
            half = len(run) // 2
            return await self._put(run[:half]) | await self._put(run[half:])
        if not answer.get("rejectedLogEventsInfo"):
            return {}
        return dict(zip((item.row for item in run), refusals(answer, len(run)), strict=True))


def spans(items: Sequence[Item]) -> Sequence[Sequence[Item]]:
    """Events in order of time, cut where one is a day after the first one of its call."""
    if items and _time(items[-1]) - _time(items[0]) < SPAN_MS:
        return [items]
    found: list[list[Item]] = []
    for item in items:
        if not found or _time(item) - _time(found[-1][0]) >= SPAN_MS:
            found.append([])
        found[-1].append(item)
    return found


def refusals(answer: Mapping[str, Any], events: int) -> list[Outcome]:
    """What an answer says of each of the call's events.

    >>> [outcome and outcome.error for outcome in refusals({"rejectedLogEventsInfo": {"tooOldLogEventEndIndex": 1}}, 2)]
    ['TooOld', None]
    """
    outcomes: list[Outcome] = [None] * events
    info = answer.get("rejectedLogEventsInfo") or {}
    for row in range(min(events, info.get("expiredLogEventEndIndex", 0))):
        outcomes[row] = Never("Expired", "it is older than the log group keeps events")
    for row in range(min(events, info.get("tooOldLogEventEndIndex", 0))):
        outcomes[row] = Never("TooOld", "it is more than two weeks old")
    for row in range(info.get("tooNewLogEventStartIndex", events), events):
        outcomes[row] = Never("TooNew", "it is more than two hours ahead of the clock")
    return outcomes


def event_of(row: int, time: int, message: str, length: int | None = None) -> Item | Never:
    """An event to be sent. Never if it can be none. `length` is that of its UTF-8, if it is known."""
    size = (len(message.encode()) if length is None else length) + EVENT_OVERHEAD
    if size > CALL_BYTES:
        return Never("RecordTooLarge", f"{size} bytes as CloudWatch Logs counts, and an event may have {CALL_BYTES}")
    if not message:
        return Never("Empty", "an event has one character at least")
    time = max(time, 0)
    return Item(row, None, size, {"timestamp": time, "message": message})


def _make(index: int, row: Row) -> Item | Never:
    value = row.value
    if value is None:
        value = b"null"
    try:
        return event_of(index, row.time, value.decode(), len(value))
    except UnicodeDecodeError as error:
        return Never("NoText", f"an event is UTF-8 text: {error}")


def _time(item: Item) -> int:
    time: int = item.body["timestamp"]
    return time


async def _unless_there(call: Any) -> None:
    try:
        await call
    except Exception as error:
        if code_of(error) != "ResourceAlreadyExistsException":
            raise


def open_destination(
    place: str, options: Mapping[str, str], where: str, fields: Sequence[str] | None
) -> LogsDestination:
    """As the registry asks for it."""
    aws, rest = AwsOptions.take(options, where)
    own = UrlOptions(rest, where)
    create, calls = own.choice("create", ("no", "yes")), own.whole("calls", 4)
    own.done(*AwsOptions._fields)
    group, _, stream = place.rpartition("/")
    return LogsDestination(unquote(group), unquote(stream), aws, where, create=create == "yes", calls=calls)
