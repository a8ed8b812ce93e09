"""What SQS, SNS and EventBridge call a message, and how each says what became of it."""

import hashlib
import re
from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from flowkit.aws import Blame, arn, blame_of_code
from flowkit.errors import SinkError
from flowkit.sink.dispatch import Again, Never, Outcome
from flowkit.sink.record_id import with_id
from flowkit.sink.records import Row

QUEUE_BYTES = 1 << 20
"""Of a message and of a request (botocore, SendMessageBatch). It was 256 KiB until 2025: where it still is a request
that is refused is halved."""
TOPIC_BYTES = 256 << 10
"""Of a message and of a request, unless the topic's MaximumMessageSize says more (botocore, PublishBatch)."""
EVENTS_BYTES = 999_999
"""Of an event and of a request: "less than 1MB" (botocore, PutEvents)."""

ID, KEY = "flowkit_id", "flowkit_key"
UNFIT = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What is no character of a message (botocore, SendMessageBatch: those of XML)."""
GROUP = re.compile(r"[!-~]{1,128}")
QUEUE = re.compile(
    r"(arn:[a-z0-9-]+:sqs:[a-z0-9-]+:(?P<owner>\d{12}):)?(?P<name>[a-zA-Z0-9_-]{1,80}|[a-zA-Z0-9_-]{1,75}\.fifo)"
)
TOPIC = re.compile(r"arn:[a-z0-9-]+:sns:[a-z0-9-]+:\d{12}:([a-zA-Z0-9_-]{1,256}|[a-zA-Z0-9_-]{1,251}\.fifo)")
BUS = re.compile(r"(arn:[a-z0-9-]+:events:[a-z0-9-]+:\d{12}:event-bus/)?[a-zA-Z0-9._/-]{1,256}")


class Service(Protocol):
    """One queue, topic or bus."""

    name: str
    """As botocore calls it."""
    codec: str | None
    guarantee: str
    fifo: bool
    most_bytes: int
    """Of a request, and `message_bytes` of a message."""
    message_bytes: int
    right: str
    """To ask for it ("sqs:GetQueueUrl"), and `sends` to send there ("SendMessage")."""
    sends: str
    missing: str

    def resource(self, region: str | None) -> str:
        """Its ARN, as `flowkit.aws.arn` gives it."""

    def problems(self) -> list[str]: ...

    def ask(self, client: Any) -> Awaitable[Mapping[str, Any]]:
        """Is it there?"""

    def learn(self, found: Mapping[str, Any]) -> None:
        """What it says of itself."""

    def entry(self, row: Row) -> tuple[dict[str, Any], int] | Never:
        """A message, and how many bytes it counts for."""

    def call(self, client: Any, entries: Sequence[Any]) -> Awaitable[Mapping[str, Any]]: ...

    def outcomes(self, answer: Mapping[str, Any], count: int, where: str) -> Sequence[Outcome]: ...


class _Text:
    """What SQS and SNS have in common. `body` is what they call a message's text."""

    codec: str | None = None
    body: str

    def __init__(self, *, fifo: bool) -> None:
        self.fifo = fifo
        self.guarantee = (
            "in each key's order, and once if nothing is out for more than five minutes"
            if fifo
            else "at least once, in no order"
        ) + f": after a failure a message may come again, under the same id in attribute {ID!r}"

    def entry(self, row: Row) -> tuple[dict[str, Any], int] | Never:
        """As the protocol says."""
        text = _text(b"null" if row.value is None else row.value)
        if isinstance(text, Never):
            return text
        attributes = {ID: {"DataType": "String", "StringValue": row.id}}
        key = None if row.key is None else _text(row.key)
        if isinstance(key, str):
            attributes[KEY] = {"DataType": "String", "StringValue": key}
        size = len(text.encode()) + sum(len(n) + 6 + len(a["StringValue"].encode()) for n, a in attributes.items())
        entry: dict[str, Any] = {self.body: text, "MessageAttributes": attributes}
        if self.fifo:
            entry |= {"MessageGroupId": group_of(row), "MessageDeduplicationId": row.id}
        return entry, size

    def outcomes(self, answer: Mapping[str, Any], count: int, where: str) -> Sequence[Outcome]:
        """As the protocol says."""
        found: list[Outcome] = [None] * count
        for failed in answer.get("Failed", ()):
            fault = failed.get("SenderFault", False)
            found[int(failed["Id"])] = _outcome(failed.get("Code", ""), failed.get("Message"), where, fault=fault)
        return found


class Queue(_Text):
    """An SQS queue."""

    name, body = "sqs", "MessageBody"
    most_bytes = message_bytes = QUEUE_BYTES
    right, sends = "sqs:GetQueueUrl", "SendMessage"

    def __init__(self, place: str, owner: str | None) -> None:
        super().__init__(fifo=place.endswith(".fifo"))
        self._found = QUEUE.fullmatch(place)
        self._asked = {"QueueName": self._found["name"] if self._found else place}
        owner = owner or (self._found["owner"] if self._found else None)
        if owner:
            self._asked["QueueOwnerAWSAccountId"] = owner
        self.missing = f"make it with `aws sqs create-queue --queue-name {self._asked['QueueName']}`, or mend the name"
        self._url = ""

    def resource(self, region: str | None) -> str:
        """As the protocol says."""
        own = arn("sqs", self._asked["QueueName"], region)
        owner = self._asked.get("QueueOwnerAWSAccountId")
        return ":".join([*own.split(":")[:4], owner, *own.split(":")[5:]]) if owner else own

    def problems(self) -> list[str]:
        """As the protocol says."""
        return [] if self._found else ["needs a queue's name (letters, digits, _ -, 80 at most) or ARN"]

    def ask(self, client: Any) -> Awaitable[Mapping[str, Any]]:
        """As the protocol says."""
        found: Awaitable[Mapping[str, Any]] = client.get_queue_url(**self._asked)
        return found

    def learn(self, found: Mapping[str, Any]) -> None:
        """As the protocol says."""
        self._url = found["QueueUrl"]

    def call(self, client: Any, entries: Sequence[Any]) -> Awaitable[Mapping[str, Any]]:
        """As the protocol says."""
        numbered = [{"Id": str(n), **entry} for n, entry in enumerate(entries)]
        answer: Awaitable[Mapping[str, Any]] = client.send_message_batch(QueueUrl=self._url, Entries=numbered)
        return answer


class Topic(_Text):
    """An SNS topic."""

    name, body = "sns", "Message"
    right, sends = "sns:GetTopicAttributes", "Publish"

    def __init__(self, topic: str) -> None:
        super().__init__(fifo=topic.endswith(".fifo"))
        self.most_bytes = self.message_bytes = TOPIC_BYTES
        self.missing = "make it with `aws sns create-topic`, or mend the ARN"
        self._arn = topic

    def resource(self, region: str | None) -> str:
        """As the protocol says."""
        return self._arn

    def problems(self) -> list[str]:
        """As the protocol says."""
        return [] if TOPIC.fullmatch(self._arn) else ["needs a topic's ARN: sns://arn:aws:sns:REGION:ACCOUNT:NAME"]

    def ask(self, client: Any) -> Awaitable[Mapping[str, Any]]:
        """As the protocol says."""
        found: Awaitable[Mapping[str, Any]] = client.get_topic_attributes(TopicArn=self._arn)
        return found

    def learn(self, found: Mapping[str, Any]) -> None:
        """As the protocol says."""
        self.message_bytes = int(found.get("Attributes", {}).get("MaximumMessageSize", TOPIC_BYTES))

    def call(self, client: Any, entries: Sequence[Any]) -> Awaitable[Mapping[str, Any]]:
        """As the protocol says."""
        numbered = [{"Id": str(n), **entry} for n, entry in enumerate(entries)]
        answer: Awaitable[Mapping[str, Any]] = client.publish_batch(
            TopicArn=self._arn, PublishBatchRequestEntries=numbered
        )
        return answer


class Bus:
    """An event bus."""

    name, fifo = "events", False
    codec: str | None = "json"
    most_bytes = message_bytes = EVENTS_BYTES
    right, sends = "events:DescribeEventBus", "PutEvents"
    missing = "make it with `aws events create-event-bus`, or mend the name"

    def __init__(self, bus: str, source: str, kind: str, id_field: str | None, fields: Sequence[str] | None) -> None:
        self._bus, self._source, self._kind, self._id_field, self._fields = bus, source, kind, id_field, fields or ()
        self._size = 14 + len(source.encode()) + len(kind.encode())
        self.guarantee = "at least once, in no order: after a failure an event may come again, " + (
            f"under the same id in field {id_field!r}" if id_field else "with nothing to tell it by (add ?id=FIELD)"
        )

    def resource(self, region: str | None) -> str:
        """As the protocol says."""
        return self._bus if self._bus.startswith("arn:") else arn("events", f"event-bus/{self._bus}", region)

    def problems(self) -> list[str]:
        """As the protocol says."""
        found = [] if BUS.fullmatch(self._bus) else ["needs an event bus's name (`default` is each account's) or ARN"]
        if self._source.startswith("aws."):
            found.append(f"source={self._source}: names that begin with aws. are Amazon's own")
        if len(self._kind) > 128:
            found.append("detail_type=: may have 128 characters")
        if self._id_field in self._fields:
            found.append(f"id={self._id_field}: records have such a field already: name another one")
        return found

    def ask(self, client: Any) -> Awaitable[Mapping[str, Any]]:
        """As the protocol says."""
        found: Awaitable[Mapping[str, Any]] = client.describe_event_bus(Name=self._bus)
        return found

    def learn(self, found: Mapping[str, Any]) -> None:
        """As the protocol says."""

    def entry(self, row: Row) -> tuple[dict[str, Any], int] | Never:
        """As the protocol says."""
        if row.value is None or not row.value.startswith(b"{"):
            return Never("NoObject", "an event's detail is a JSON object, and the value is none")
        detail = with_id(row.value, self._id_field, row.id)
        if isinstance(detail, Never):
            return detail
        entry = {
            "Source": self._source,
            "DetailType": self._kind,
            "Detail": detail.decode(),
            "EventBusName": self._bus,
            "Time": datetime.fromtimestamp(row.time / 1000, UTC),
        }
        return entry, self._size + len(detail)

    def call(self, client: Any, entries: Sequence[Any]) -> Awaitable[Mapping[str, Any]]:
        """As the protocol says."""
        answer: Awaitable[Mapping[str, Any]] = client.put_events(Entries=entries)
        return answer

    def outcomes(self, answer: Mapping[str, Any], count: int, where: str) -> Sequence[Outcome]:
        """As the protocol says."""
        if not answer.get("FailedEntryCount"):
            return [None] * count
        return [
            _outcome(entry["ErrorCode"], entry.get("ErrorMessage"), where, fault=True)
            if entry.get("ErrorCode")
            else None
            for entry in answer["Entries"]
        ]


def _outcome(code: str, reason: str | None, where: str, *, fault: bool) -> Outcome:
    """Of one message that was not taken. `fault`: by its own, as the service sees it."""
    blame = blame_of_code(code)
    if blame is Blame.PERSON:
        raise SinkError(f"{where}: {code}: {reason}")
    if blame is Blame.REQUEST and fault:
        return Never(code, str(reason))
    return Again(f"{code}: {reason}", slow=blame is Blame.SLOW)


def _text(value: bytes) -> str | Never:
    """A message's text."""
    try:
        found = value.decode()
    except UnicodeDecodeError:
        return Never("NoText", "a message is text, and the value is none")
    unfit = UNFIT.search(found)
    if unfit is not None:
        return Never("InvalidMessageContents", f"{unfit[0]!r} is no character of a message")
    return found or Never("EmptyMessage", "a message may not be empty")


def group_of(row: Row) -> str:
    """The group of a message: of one key always the same one, of a record without a key one of its own.

    >>> group_of(Row(b"card-7", b"", 0, None, 1, "me")), group_of(Row(None, b"", 0, None, 1, "me"))
    ('card-7', 'me-1')
    """
    if row.key is None:
        return row.id
    text = row.key.decode("ascii", "replace")
    return text if GROUP.fullmatch(text) else hashlib.sha256(row.key).hexdigest()
