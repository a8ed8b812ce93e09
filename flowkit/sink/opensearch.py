"""An OpenSearch index as a destination: `opensearch://HOST[:PORT]/INDEX`.

A record is a document, a tombstone removes it.

    INDEX               may hold the event's time in UTC: logs-{yyyy}.{MM}.{dd}, with {HH} too
    ?id=FIELD           the document's id is this field of the record; default: the record's key, or, if it has none,
                        an id that no other record has
    ?auth=none          default `sigv4`: signed as Amazon OpenSearch Service asks for it, with ?region=, ?profile=, and
                        ?service=aoss for OpenSearch Serverless (region and service are taken from the host's name
                        where it tells them); `basic`: a user and a password, from
                        ?credentials=FILE (USER:PASSWORD) or OPENSEARCH_USER and OPENSEARCH_PASSWORD
    ?version=number     default `order`: see below; `none`: the last one to write wins
    ?batch=1000         documents a request, at most
    ?calls=4            requests under way at once, of each task
    ?gzip=no            requests as they are; default `yes`
    ?tls=no             http://; default `yes`, with ?ca=FILE for a CA of your own
    ?timeout=30         seconds to wait for an answer

A document has an external version, so that what comes again or late changes nothing: for the result of a window its
(window end, pane), and as new is new enough, so that mended code may replace it (`external_gte`); for all else the
record's number (`external`). The two cannot be compared: where one document gets both, say version=number. OpenSearch
forgets the version of a removed document after a minute (index.gc_deletes).

Of one commit only the newest record for a document is sent.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, Self

import msgspec
import structlog

from flowkit.aws import AwsOptions, Right
from flowkit.errors import ConfigError, SinkError
from flowkit.sink.dispatch import Again, Dispatch, Item, Limits, Never, Outcome, Refused, TryAgain
from flowkit.sink.opensearch_auth import SERVICES, Auth, Basic, NoAuth, SigV4
from flowkit.sink.opensearch_documents import PARTS, Documents, Index, settled
from flowkit.sink.opensearch_http import Http
from flowkit.sink.records import RecordSink
from flowkit.sink.seam import SinkTask
from flowkit.sink.url_options import UrlOptions

log = structlog.get_logger("flowkit.sink")

CALL_BYTES = 5 << 20
"""Before gzip. Amazon's smallest instances take 10 MiB a request ("network limits" of its developer guide); a document
that is larger has a request of its own, and is never taken if the service says 413."""

AT_AMAZON = re.compile(
    r"\.(?P<region>[a-z]{2}(?:-[a-z]+)+-\d)\.(?:(?P<service>es|aoss)\.amazonaws\.com(?:\.cn)?|on\.aws)(?::\d+)?$"
)
"""The host of a domain or collection at Amazon, which says where it is."""
PLACE = re.compile(r"(?P<host>[a-zA-Z0-9.-]+(:\d{1,5})?|\[[0-9a-fA-F:]+\](:\d{1,5})?)/(?P<index>[^/]+)")
BULK = "/_bulk?filter_path=errors%2Citems.%2A.status%2Citems.%2A.error"
"""Only what is read of an answer; written as it is signed."""


class IndexOptions(NamedTuple):
    """What a URL says beside how the service is reached. See the head of this file."""

    id_field: str | None = None
    version: str = "order"
    batch: int = 1000
    calls: int = 4


class OpenSearchDestination:
    """One index, or one for each day. See the head of this file."""

    codec = "json"

    def __init__(
        self,
        index: str,
        http: Http,
        where: str,
        fields: Sequence[str] | None = None,
        options: IndexOptions | None = None,
    ) -> None:
        self.where, self.http, self.fields, self.options = where, http, fields, options or IndexOptions()
        self.index = Index(index)
        self.documents = Documents(self.index, self.options.id_field, self.options.version, where)
        self.unchanged = 0
        """How many writes found a version that was newer, or the same: they had come before, or too late."""
        self._stack = AsyncExitStack()

    @property
    def guarantee(self) -> str:
        """As the protocol says."""
        if self.options.version == "none":
            return "at least once, and the last one to write a document wins: what comes late after a failure may do so"
        return "effectively once: a document is written only by what is newer than it"

    async def __aenter__(self) -> Self:
        """Raises ConfigError if the service refuses us."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.http)
            try:
                status, body = await self.http.request("HEAD", f"/{self.index.at(0)}")
                if status in (401, 403):
                    right = "es:ESHttpHead and es:ESHttpPost, or give the user the rights `indices:data/write/bulk*`"
                    raise ConfigError(f"{self.where}: refuses us (HTTP {status}) {said(body)}: allow {right}")
                if status >= 500:
                    log.warning("does not answer; what is for it waits", sink=self.where, reason=f"HTTP {status}")
            except TryAgain as error:
                log.warning("does not answer; what is for it waits", sink=self.where, reason=error.again.reason)
            except SinkError as error:
                raise ConfigError(str(error)) from None
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def check(self) -> None:
        """As the protocol says."""
        problems = [*self.http.problems()]
        if not self.index.is_right:
            problems.append(
                f"{self.where}: needs an index's name (letters in lower case, digits, . _ -), in which "
                f"{' '.join(PARTS)} stand for the event's time"
            )
        if self.options.id_field not in (None, *(self.fields or (self.options.id_field,))):
            problems.append(f"{self.where}: id={self.options.id_field}: records have no such field")
        if problems:
            raise ConfigError(*problems)

    def writers(self, groups: Sequence[str], tasks: int, largest: int) -> str:
        """Any number can."""
        return ""

    def rights(self) -> Sequence[Right]:
        """As the protocol says; none for a user with a password, whose rights are the cluster's own matter."""
        return self.http.rights(Head=self.index.at(0), Post=BULK.partition("?")[0].lstrip("/"))

    def sink(self, task: SinkTask) -> RecordSink:
        """As the protocol says."""
        dispatch = Dispatch(self.where, self._send, Limits(self.options.batch, CALL_BYTES, self.options.calls))
        return RecordSink(dispatch, self.documents.make, task.clock, codec=self.codec, settle=settled)

    async def _send(self, items: Sequence[Item]) -> Sequence[Outcome] | None:
        status, body = await self.http.request("POST", BULK, b"".join([item.body.body for item in items]))
        if status != 200:
            raise self._refusal(status, body)
        try:
            answer = _answer(body)
            if not answer.errors:
                return None
            results = _results(answer.items)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise TryAgain(f"an answer that is none: {error}") from None
        if len(results) != len(items):
            raise TryAgain(f"an answer on {len(results)} of {len(items)} documents")
        return [self._outcome(result) for of_item in results for result in of_item.values()]

    def _refusal(self, status: int, body: bytes) -> Exception:
        """Of a whole request."""
        told = f"HTTP {status} {said(body)}"
        if status == 429:
            return TryAgain(told, slow=True)
        if status >= 500 or status == 408:
            return TryAgain(told)
        if status in (400, 413):
            return Refused("RequestTooLarge" if status == 413 else "BadRequest", told)
        return SinkError(f"{self.where}: {told}")

    def _outcome(self, result: "Result") -> Outcome:
        """Of one document."""
        error, status = result.error, result.status
        if error is None or status == 409:  # to remove what is not there is a 404 without an error
            self.unchanged += status == 409
            return None
        kind, reason = str(error.get("type")), str(error.get("reason"))
        cause = error.get("caused_by")
        if isinstance(cause, dict):
            reason += f": {cause.get('reason')}"
        if status == 429 or status >= 500 or kind == "cluster_block_exception":
            return Again(f"{kind}: {reason}", slow=status == 429)
        if status in (401, 403, 404):
            raise SinkError(f"{self.where}: {kind}: {reason}")
        return Never(kind, reason)


class Result(msgspec.Struct):
    """What became of one line of a request."""

    status: int
    error: dict[str, Any] | None = None


class _Answer(msgspec.Struct):
    errors: bool
    items: msgspec.Raw = msgspec.Raw(b"[]")


_answer = msgspec.json.Decoder(_Answer).decode
_results = msgspec.json.Decoder(list[dict[str, Result]]).decode


def said(body: bytes) -> str:
    """The reason that an answer gives, shortened."""
    try:
        answer = msgspec.json.decode(body)
        error = answer.get("error") or answer["message"]
        return f"{error['type']}: {error['reason']}" if isinstance(error, dict) else str(error)
    except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError, KeyError):
        return body[:300].decode(errors="replace")


def open_destination(
    place: str, options: Mapping[str, str], where: str, fields: Sequence[str] | None
) -> OpenSearchDestination:
    """As the registry asks for it."""
    aws, rest = AwsOptions.take(options, where)
    own = UrlOptions(rest, where)
    found = PLACE.fullmatch(place)
    if found is None:
        own.problems.append(f"{where}: write opensearch://HOST/INDEX, or opensearch://HOST:PORT/INDEX")
    own.problems += [
        f"{where}: {name}=: is not for this service: the host stands in the URL, and what passes is tried again for as "
        "long as it takes"
        for name in ("endpoint", "retries", "tries")
        if name in options
    ]
    kind = own.choice("auth", ("sigv4", "basic", "none"))
    service, credentials = own.choice("service", SERVICES), own.text("credentials")
    tls, ca, gzip = own.choice("tls", ("yes", "no")) == "yes", own.text("ca"), own.choice("gzip", ("yes", "no"))
    index = IndexOptions(
        id_field=own.text("id"),
        version=own.choice("version", ("order", "number", "none")),
        batch=own.whole("batch", 1000, most=10_000),
        calls=own.whole("calls", 4),
    )
    own.done("region", "profile", "timeout")
    assert found is not None
    auth: Auth = NoAuth()
    if kind == "sigv4":
        at_amazon = AT_AMAZON.search(found["host"])
        region = aws.region or (at_amazon and at_amazon["region"])
        if at_amazon and "service" not in options:
            service = at_amazon["service"] or service
        auth = SigV4(service, region, aws.profile)
    elif kind == "basic":
        auth = Basic(credentials)
    url = f"{'https' if tls else 'http'}://{found['host']}"
    http = Http(url, auth, where, ca=ca, gzip=gzip == "yes", timeout=aws.timeout, connections=max(32, index.calls))
    return OpenSearchDestination(found["index"], http, where, fields, index)
