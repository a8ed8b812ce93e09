"""Amazon Data Firehose as a source: an endpoint that its delivery streams post to, and that feeds a topic.

A request is answered with 200 once all its records are in the topic, durably. What Firehose tries again under the same
id, because an answer was lost, is put once as long as this process remembers the id (`WINDOW_SECONDS`): so a record
comes at least once, and twice only after a restart, or after a failure in the middle of what a broker takes in parts.
"""

import asyncio
import hmac
import ssl
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import structlog
from aiohttp import web

from flowkit.clock import Clock
from flowkit.codec import encode_key
from flowkit.errors import ConfigError, FlowkitError
from flowkit.source.feeding import Feed
from flowkit.source.firehose_request import (
    KEY,
    MOST_BYTES,
    ODD,
    Delivery,
    Refused,
    answer,
    attributes_of,
    check_head,
    read_delivery,
    too_large,
)
from flowkit.source.rules import KeyValueTime

log = structlog.get_logger("flowkit.firehose")

AT_ONCE = 4
"""So many requests are read and put at a time, each of up to 64 MiB; others wait before their bodies are read."""
BODY_SECONDS = 60.0
LINGER_SECONDS = 3.0
"""So long the rest of a refused body is read, or who sends it would not see the answer."""
WINDOW_SECONDS = 900.0
WINDOW_IDS = 100_000


@dataclass(frozen=True)
class Target:
    """Where records go: with the value of their field `key` as key (None: without), if they are JSON with such a field.

    Common attributes of the delivery stream become the field `attributes` of records that are JSON objects.
    """

    topic: str
    key: str | None = None
    attributes: str | None = None


class Seen(NamedTuple):
    """A request that is being put, or was, until it is forgotten (monotonic seconds)."""

    put: "asyncio.Task[int]"
    until: float


class Endpoint:
    """What answers Firehose. Without `secrets` anyone is listened to: for a loopback address only."""

    def __init__(self, feed: Feed, target: Target, clock: Clock, secrets: Sequence[str] = ()) -> None:
        self.feed, self.target, self.clock = feed, target, clock
        self.taken = self.repeated = self.refused = 0
        """How many records were put, how many requests came again, how many were refused."""
        self.guarded = bool(secrets)
        self._secrets = [secret.encode() for secret in secrets]
        self._seen: OrderedDict[str, Seen] = OrderedDict()
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one request, whatever it is."""
        id_ = request.headers.get("X-Amz-Firehose-Request-Id", "")
        try:
            self._check_secret(request)
            check_head(request.method, request.headers)
            attributes = attributes_of(request.headers)
            async with self._slots:
                delivery = await _read(request, id_)
                count = await self._put_once(delivery, attributes)
        except Refused as refused:
            return self._refusal(id_, refused.status, str(refused), request)
        except FlowkitError as error:
            return self._refusal(id_, 503, f"cannot be put into topic {self.target.topic!r} now: {error}", request)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("request failed", request=id_)
            return self._refusal(
                id_, 500, f"flowkit itself failed ({type(error).__name__}): its log says where", request
            )
        log.debug("taken", request=id_, records=count)
        return _json(200, answer(id_, self.clock.now_ms()))

    def _check_secret(self, request: web.Request) -> None:
        given = request.headers.get(KEY, "").encode(errors="replace")
        right = [hmac.compare_digest(given, secret) for secret in self._secrets]  # all, whichever it is
        if self.guarded and not any(right):
            raise Refused(401, f"{KEY}: " + ("is another one" if given else "is missing"))

    def _refusal(self, id_: str, status: int, why: str, request: web.Request) -> web.Response:
        self.refused += 1
        stream = request.headers.get("X-Amz-Firehose-Source-Arn", "")
        log.warning("request not taken", request=id_, status=status, reason=why, stream=stream)
        made = _json(status, answer(id_, self.clock.now_ms(), why))
        if status == 405:
            made.headers["Allow"] = "POST"
        if not request.content.at_eof():
            made.force_close()  # the rest of its body is not waited for
        return made

    async def _put_once(self, delivery: Delivery, attributes: dict[str, str]) -> int:
        now = time.monotonic()
        while self._seen and (len(self._seen) > WINDOW_IDS or next(iter(self._seen.values())).until < now):
            self._seen.popitem(last=False)
        seen = self._seen.get(delivery.id)
        if seen is None:
            # A task of its own: a client that goes away must not break it off in the middle.
            putting = asyncio.create_task(self._put(delivery, attributes), name=f"put {delivery.id}")
            seen = self._seen[delivery.id] = Seen(putting, now + WINDOW_SECONDS)
        else:
            self.repeated += 1
            log.info("request came again", request=delivery.id)
        try:
            return await asyncio.shield(seen.put)
        except Exception:
            if self._seen.get(delivery.id) is seen:
                del self._seen[delivery.id]
            raise

    async def _put(self, delivery: Delivery, attributes: dict[str, str]) -> int:
        if self.target.key is None and (self.target.attributes is None or not attributes):
            records: list[KeyValueTime] = [(None, value, delivery.time) for value in delivery.values]
        else:
            records = await asyncio.to_thread(self._records, delivery, attributes)
        if records:
            await self.feed.put(self.target.topic, records)
        self.taken += len(records)
        return len(records)

    def _records(self, delivery: Delivery, attributes: dict[str, str]) -> list[KeyValueTime]:
        key, field = self.target.key, self.target.attributes
        more = {} if field is None or not attributes else {field: msgspec.Raw(msgspec.json.encode(attributes))}
        records: list[KeyValueTime] = []
        odd = 0
        for value in delivery.values:
            found: dict[str, msgspec.Raw] = {}
            own: bytes | None = None
            with suppress(*ODD):
                found = msgspec.json.decode(value, type=dict[str, msgspec.Raw])
                named = None if key is None or key not in found else msgspec.json.decode(found[key])
                own = None if named is None else encode_key(named)
            odd += not found or (key is not None and own is None)
            whole = msgspec.json.encode({**found, **more}) if found and more else value
            records.append((own, whole, delivery.time))
        if odd:
            what = "no JSON objects" if key is None else f"without a {key!r}: put without a key"
            log.warning("records as they are", request=delivery.id, records=odd, what=what)
        return records


async def _read(request: web.Request, id_: str) -> Delivery:
    if (request.content_length or 0) > MOST_BYTES:
        raise too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise too_large()
    except TimeoutError:
        raise Refused(408, f"the body was not there within {BODY_SECONDS:g} s") from None
    except (web.RequestPayloadError, ConnectionError) as error:
        raise Refused(400, f"the body was cut off: {error}") from None
    gzip = request.headers.get("Content-Encoding", "").lower() == "gzip"
    return await asyncio.to_thread(read_delivery, id_, bytes(body), gzip=gzip)


def _json(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")


@asynccontextmanager
async def serve_firehose(
    endpoint: Endpoint, host: str, port: int, *, tls: ssl.SSLContext | None = None, grace: float = 25.0
) -> AsyncIterator[int]:
    """Answer at `host` and `port` (0: a free one) as long as this context lasts; gives the port. With `tls` by HTTPS.

    At its end requests that are under way have `grace` seconds. Raises ConfigError if the address cannot be used.
    """

    async def handle(request: web.BaseRequest) -> Any:
        assert isinstance(request, web.Request)
        return await endpoint.handle(request)

    application = web.Application(client_max_size=0)
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(
        application, access_log=None, shutdown_timeout=grace, lingering_time=LINGER_SECONDS, auto_decompress=False
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, ssl_context=tls).start()
        except OSError as error:
            raise ConfigError(f"--listen {host}:{port}: cannot be used: {error.strerror or error}") from error
        at: int = runner.addresses[0][1]
        log.info(
            "receiving",
            host=host,
            port=at,
            topic=endpoint.target.topic,
            access_key=endpoint.guarded,
            tls=tls is not None,
        )
        yield at
    finally:
        await runner.cleanup()
        log.info("received", records=endpoint.taken, repeated=endpoint.repeated, refused=endpoint.refused)
