"""Queues, topics and event buses as destinations, ten messages a request.

    sqs://QUEUE          a queue's name or ARN                     ?owner=ACCOUNT    of another account's queue
    sns://TOPIC_ARN
    events://BUS         an event bus of EventBridge, or its ARN   ?source=flowkit   ?detail_type=record
                                                                   ?id=FIELD         the stable id in the detail
    ?calls=16            requests under way at once, of each task

A message of SQS and SNS is the record's value as text (`null` for a tombstone), with its stable id in the attribute
`flowkit_id`, and its key in `flowkit_key`: readers tell by the id what came again. In a queue or topic whose name ends
in .fifo the key is the message's group (its SHA-256 in hex, if it can be none), of each key one message is under way at
a time, and the id is the one for deduplication: what comes again within five minutes is not delivered again.

An event's detail is the record's JSON object, its time the record's. EventBridge keeps no order, and tells no record
that came again: ?id=FIELD does.
"""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

from flowkit.aws import AwsOptions, Right
from flowkit.errors import ConfigError
from flowkit.sink.calls import bulk_client, called, described, until_known
from flowkit.sink.dispatch import Dispatch, Item, Limits, Never, Outcome
from flowkit.sink.messages_services import Bus, Queue, Service, Topic
from flowkit.sink.records import RecordSink, Row
from flowkit.sink.seam import SinkTask
from flowkit.sink.url_options import UrlOptions

CALL_MESSAGES = 10
"""As the API's models say (botocore: SendMessageBatch, PublishBatch, PutEvents)."""


class MessagesDestination:
    """One queue, topic or bus. See the head of this file."""

    def __init__(self, service: Service, aws: AwsOptions, where: str, *, calls: int = 16) -> None:
        self.service, self.aws, self.where, self.calls = service, aws, where, calls
        self.codec, self.guarantee = service.codec, service.guarantee
        self._known = False
        self._client: Any = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Raises ConfigError if there is no such thing."""
        async with AsyncExitStack() as stack:
            self._client = await stack.enter_async_context(
                bulk_client(self.service.name, self.aws, self.where, self.calls)
            )
            await self._look()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _look(self) -> None:
        service = self.service
        found = await described(self.where, service.ask(self._client), right=service.right, missing=service.missing)
        if found is not None:
            service.learn(found)
            self._known = True

    async def _ready(self) -> None:
        """It was found: a queue's URL, and what a topic takes, are not known before."""
        await until_known(self._look, lambda: self._known)

    def check(self) -> None:
        """As the protocol says."""
        problems = [f"{self.where}: {problem}" for problem in self.service.problems()]
        if problems:
            raise ConfigError(*problems)

    def writers(self, groups: Sequence[str], tasks: int, largest: int) -> str:
        """Any number can."""
        return ""

    def rights(self) -> Sequence[Right]:
        """As the protocol says."""
        service = self.service
        looks = service.right.partition(":")[2]
        return [Right(service.name, (looks, service.sends), service.resource(self.aws.region))]

    def sink(self, task: SinkTask) -> RecordSink:
        """As the protocol says."""
        dispatch = Dispatch(self.where, self._send, Limits(CALL_MESSAGES, self.service.most_bytes, self.calls))
        return RecordSink(dispatch, self._make, task.clock, codec=self.codec, ready=self._ready)

    def _make(self, index: int, row: Row) -> Item | Never:
        made = self.service.entry(row)
        if isinstance(made, Never):
            return made
        entry, size = made
        if size > self.service.message_bytes:
            return Never("MessageTooLarge", f"{size} bytes, and {self.where} takes {self.service.message_bytes}")
        return Item(index, row.key if self.service.fifo else None, size, entry)

    async def _send(self, items: Sequence[Item]) -> Sequence[Outcome]:
        answer = await called(self.where, self.service.call(self._client, [item.body for item in items]))
        return self.service.outcomes(answer, len(items), self.where)


def open_destination(
    place: str, options: Mapping[str, str], where: str, fields: Sequence[str] | None
) -> MessagesDestination:
    """As the registry asks for it."""
    aws, rest = AwsOptions.take(options, where)
    own = UrlOptions(rest, where)
    service: Service
    match where.partition("://")[0]:
        case "sqs":
            service = Queue(place, own.text("owner"))
        case "sns":
            service = Topic(place)
        case _:
            source, kind = own.text("source") or "flowkit", own.text("detail_type") or "record"
            service = Bus(place, source, kind, own.text("id"), fields)
    calls = own.whole("calls", 16)
    own.done(*AwsOptions._fields)
    return MessagesDestination(service, aws, where, calls=calls)
