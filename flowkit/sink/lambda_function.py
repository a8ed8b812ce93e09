"""A Lambda function as a destination: `lambda://FUNCTION`, `lambda://FUNCTION:ALIAS`, or the function's ARN.

    ?mode=sync        waits for what the function makes of a batch (6 MB a payload)
    ?mode=event       leaves it with Lambda's queue (1 MB): what fails there is Lambda's, with the function's own
                      retries, dead-letter queue and destinations
    ?batch=100        records an invocation, at most
    ?calls=8          invocations under way at once, of each task: what the function's concurrency has to bear
    ?order=none       batches of the same keys may be under way at once; default `key` (sync only): one after the other
    ?attempts=3       how often the function is tried with what it fails on; after that
    ?on_error=bisect  the batch is halved until the record to blame stands alone: it becomes a dead letter
    ?on_error=dead    the whole batch becomes dead letters
    ?on_error=retry   it is tried again for as long as it takes

The payload is {"id": BATCH, "records": [{"id", "key", "time", "value"} …]} (lambda_batches.py). Both ids are what an
idempotent function needs: the same batch, and the same record, come again under the same one. A function that answers
{"batchItemFailures": [{"itemIdentifier": ID} …]} has taken the others; what it names is tried again. As with Lambda's
own event sources, no list or an empty one means that all is well, and a name that is none of the batch's that all is
not.

An error that the function raises is told apart from one of the service: when Lambda throttles, or cannot start the
function, that counts as no attempt, and is tried again for as long as it takes.
"""

import re
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, Self

import msgspec

from flowkit.aws import AwsOptions, Right, arn, open_client
from flowkit.errors import ConfigError, SinkError
from flowkit.sink.calls import called, described
from flowkit.sink.dispatch import Dispatch, Item, Limits, Never, Outcome, Refused, Some, TryAgain
from flowkit.sink.lambda_batches import (
    FRAME_BYTES,
    Answer,
    Batch,
    Entry,
    Failed,
    OnError,
    entry_of,
    lane_of,
    packed,
    payload,
)
from flowkit.sink.records import RecordSink, Row
from flowkit.sink.seam import SinkTask
from flowkit.sink.url_options import UrlOptions

PAYLOAD_BYTES = {"sync": 6_000_000, "event": 1_000_000}
"""As the API's model says (botocore, Invoke): 6 MB and 1 MB. It was 256 KB for events until 2025, and where it still is
a payload that is refused is halved."""
SLACK_SECONDS = 5.0

NAME = re.compile(
    r"(arn:[a-z0-9-]+:lambda:[a-z0-9-]+:\d{12}:function:|\d{12}:function:)?[a-zA-Z0-9_-]{1,64}(:[a-zA-Z0-9_$-]{1,128})?"
)

TO_BLAME = {
    *("RequestTooLargeException", "SerializedRequestEntityTooLargeException", "InvalidRequestContentException"),
    *("RequestEntityTooLargeException", "413"),
}
"""Codes of refusals for which a record may be to blame."""

PASSING = {
    *("ResourceConflictException", "SnapStartNotReadyException", "SnapStartTimeoutException", "EFSIOException"),
    *("EFSMountTimeoutException", "EFSMountConnectivityException", "S3FilesMountTimeoutException"),
    *("S3FilesMountConnectivityException", "CodeArtifactUserPendingException", "408", "409"),
}
"""Codes of answers in the 400s that pass: the function is being changed, or what it needs is not ready yet."""


class FunctionOptions(NamedTuple):
    """What a URL says beside how the service is reached. See the head of this file."""

    event: bool = False
    batch: int = 100
    calls: int = 8
    ordered: bool = True
    on_error: OnError = OnError()


class LambdaDestination:
    """One function. See the head of this file."""

    codec = "json"

    def __init__(
        self,
        function: str,
        aws: AwsOptions,
        where: str,
        options: FunctionOptions = FunctionOptions(),  # noqa: B008
    ) -> None:
        self.where, self.aws, self.options = where, aws, options
        self.bytes = PAYLOAD_BYTES["event" if options.event else "sync"]
        self._name = function
        self._ask = {"FunctionName": function, "InvocationType": "Event" if options.event else "RequestResponse"}
        self._client: Any = None
        self._stack = AsyncExitStack()

    @property
    def guarantee(self) -> str:
        """As the protocol says."""
        again = "after a failure a batch may come again, under the same id, and so may its records"
        if self.options.event:
            return f"at least once into Lambda's queue, in no order: {again}; what the function fails on is Lambda's"
        order = ", in each key's order" if self.options.ordered else ""
        return f"at least once{order}: {again}"

    async def __aenter__(self) -> Self:
        """Raises ConfigError if there is no such function, or it cannot run."""
        async with AsyncExitStack() as stack:
            self._client = await stack.enter_async_context(self._open(self.aws))
            found = await described(
                self.where,
                self._client.get_function_configuration(FunctionName=self._name),
                right="lambda:GetFunctionConfiguration",
                missing="make it with `aws lambda create-function`, or mend the name, version or alias",
            )
            if found is not None:
                if found.get("State") == "Failed":
                    raise ConfigError(f"{self.where}: cannot run: {found.get('StateReason')}: mend it, or its rights")
                longest = found.get("Timeout", 3) + SLACK_SECONDS
                if not self.options.event and longest > self.aws.timeout:
                    aws = self.aws._replace(timeout=longest)  # or a slow function would be asked twice at once
                    self._client = await stack.enter_async_context(self._open(aws))
            self._stack = stack.pop_all()
        return self

    def _open(self, aws: AwsOptions) -> Any:
        return open_client("lambda", aws, self.where, connections=max(32, self.options.calls))

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def check(self) -> None:
        """As the protocol says."""
        if not NAME.fullmatch(self._name):
            raise ConfigError(f"{self.where}: needs a function's name, NAME:ALIAS, or ARN")

    def writers(self, groups: Sequence[str], tasks: int, largest: int) -> str:
        """Any number can."""
        return ""

    def rights(self) -> Sequence[Right]:
        """As the protocol says."""
        name = self._name
        function = name if name.startswith("arn:") else arn("lambda", f"function:{name}", self.aws.region)
        return [Right("lambda", ("GetFunctionConfiguration", "InvokeFunction"), function)]

    def sink(self, task: SinkTask) -> RecordSink:
        """As the protocol says."""
        dispatch = Dispatch(self.where, self._send, Limits(1, self.bytes, self.options.calls))
        return RecordSink(dispatch, self._make, task.clock, codec=self.codec, settle=self._pack)

    def _make(self, index: int, row: Row) -> Item | Never:
        options = self.options
        lane = lane_of(row.key, index, options.calls, options.batch) if options.ordered and not options.event else None
        entry = entry_of(index, row, lane)
        size = len(entry.body)
        if size + FRAME_BYTES > self.bytes:
            return Never("RecordTooLarge", f"{size} bytes with its ids, and a payload may have {self.bytes}")
        return Item(index, lane, size, entry)

    def _pack(self, items: list[Item]) -> list[Item]:
        return packed(items, self.options.batch, self.bytes, self.options.on_error)

    async def _send(self, items: Sequence[Item]) -> Sequence[Outcome]:
        (item,) = items
        batch: Batch = item.body
        while (part := batch.part) is not None:
            try:
                answer = await self._invoke(part)
            except Refused as refused:
                batch.refused(self._blamed(refused))
                continue
            again = batch.answered(answer)
            if again is not None:
                return (again,)
        return (Some(batch.never),)

    def _blamed(self, refused: Refused) -> Never:
        """The part's fault; raises TryAgain or SinkError if it is not."""
        why = refused.never
        if why.error in PASSING:
            raise TryAgain(why.reason) from refused
        if why.error not in TO_BLAME:
            raise SinkError(f"{self.where}: {why.reason}") from refused
        return why

    async def _invoke(self, part: Sequence[Entry]) -> Answer:
        failed, body = await called(self.where, _whole(self._client.invoke(Payload=payload(part), **self._ask)))
        if failed is not None:
            return _raised(body)
        return frozenset() if self.options.event else _named(body, part)


async def _whole(call: Awaitable[Mapping[str, Any]]) -> tuple[str | None, bytes]:
    """An answer with its body: it may break off in there."""
    answer = await call
    async with answer["Payload"] as stream:
        return answer.get("FunctionError"), await stream.read()


def _raised(body: bytes) -> Failed:
    """What a function raised, or how it died."""
    try:
        said: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        said = None
    if not isinstance(said, dict):
        return Failed("FunctionError", body[:1000].decode(errors="replace"))
    return Failed(str(said.get("errorType") or "FunctionError"), str(said.get("errorMessage") or "no reason given"))


def _named(body: bytes, part: Sequence[Entry]) -> Answer:
    """Which records an answer names as failed: Lambda's rules for `batchItemFailures`."""
    if b"batchItemFailures" not in body:
        return frozenset()
    try:
        said: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return Failed("InvalidBatchResponse", f"the function's answer is no JSON: {error}")
    listed = said.get("batchItemFailures") if isinstance(said, dict) else None
    if not listed:
        return frozenset()
    known = {entry.id for entry in part}
    named: set[str] = set()
    for one in listed:
        name = one.get("itemIdentifier") if isinstance(one, dict) else None
        if not isinstance(name, str) or name not in known:
            return Failed("InvalidBatchResponse", f"the function names {name!r}, which is no record of the batch")
        named.add(name)
    return frozenset(named)


def open_destination(
    place: str, options: Mapping[str, str], where: str, fields: Sequence[str] | None
) -> LambdaDestination:
    """As the registry asks for it."""
    aws, rest = AwsOptions.take(options, where)
    own = UrlOptions(rest, where)
    event = own.choice("mode", ("sync", "event")) == "event"
    if event:
        own.problems += [
            f"{where}: {name}= is for mode=sync: what an event does is Lambda's (its queue keeps no order, and the "
            "function has retries, a dead-letter queue and destinations of its own)"
            for name in ("order", "attempts", "on_error")
            if name in rest
        ]
    on_error = own.choice("on_error", ("bisect", "dead", "retry"))
    function = FunctionOptions(
        event=event,
        batch=own.whole("batch", 100, most=10_000),
        calls=own.whole("calls", 8),
        ordered=own.choice("order", ("key", "none")) == "key",
        on_error=OnError(own.whole("attempts", 3), on_error == "bisect", on_error == "retry"),
    )
    own.done(*AwsOptions._fields)
    return LambdaDestination(place, aws, where, function)
