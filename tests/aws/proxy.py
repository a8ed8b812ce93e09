"""A proxy between a client and a server of Amazon's protocols that is as bad as a network and a service can be.

faults      asked for each request: None to pass it on, or one of those below
requests    every request that came: service, action, resource as far as it can be told, and what became of it

throttle    the service asks for fewer requests        nothing done
broken      500                                        nothing done
reset       the connection ends before it is passed    nothing done
lost        it is passed on, and the answer is not     done, and nobody knows
half        it is passed on, and half an answer comes  done, and nobody knows; of a stream of events one and a half
slow        it is passed on after `delay` seconds
hang        nothing comes until `resumed` is set; then it is passed on, though its sender may have given it up long ago
denied      the service says that it may not be        nothing done
expired     … that the token has expired               nothing done
unknown     … that it knows no such key                nothing done
part        of a batch every other record is taken     see partly.py; what is no batch is passed on
"""

import asyncio
import gzip
import io
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qs

import aiohttp
from aiohttp import web

from tests.aws import partly
from tests.aws.serving import serving

watchers: list[Callable[["Proxy"], object]] = []
"""Told of each proxy that is made (recording.py)."""

HOP = ("transfer-encoding", "connection", "expect")
"""Headers that are the proxy's own matter."""

EVENTS = "application/vnd.amazon.eventstream"

Fault = Literal["throttle", "broken", "reset", "lost", "half", "slow", "hang", "denied", "expired", "unknown", "part"]

THROTTLES = {
    "kinesis": "ProvisionedThroughputExceededException",
    "firehose": "ServiceUnavailableException",
    "dynamodb": "ProvisionedThroughputExceededException",
    "lambda": "TooManyRequestsException",
    "s3": "SlowDown",
}

KEYS: dict[str, dict[str, tuple[str, int]]] = {
    "expired": {"s3": ("ExpiredToken", 400), "": ("ExpiredTokenException", 400)},
    "unknown": {"s3": ("InvalidAccessKeyId", 403), "": ("UnrecognizedClientException", 400)},
}
"""What services say of credentials, by service: code and status."""


@dataclass
class Request:
    """One request: `service` as in credentials ("kinesis"), `action` ("PutRecords"; for S3 the method)."""

    service: str
    action: str
    path: str
    body: bytes
    fault: Fault | None = None
    status: int = 0
    answer: bytes = b""
    method: str = ""
    raw_path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The access key that it is signed with; '' if it is not signed."""
        return self.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]

    @property
    def json(self) -> Any:
        """The body of a JSON protocol, compressed or not."""
        return json.loads((gzip.decompress(self.body) if self.body.startswith(b"\x1f\x8b") else self.body) or b"{}")


@dataclass
class Proxy:
    """See the head of this file. `fault` decides about each request, in the order in which they come.

    `answered` is told of each that the server has answered, and may say what goes to the client instead.
    """

    url: str = ""
    fault: Callable[[Request], Fault | None] = lambda _: None
    answered: Callable[[Request], Literal["denied"] | None] = lambda _: None
    delay: float = 0.2
    resumed: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[Request] = field(default_factory=list)
    streams: dict[int, web.BaseRequest] = field(default_factory=dict)
    """By id, those whose answers are streams of events, while these last."""

    def cut(self) -> int:
        """End the connections of all streams of events; how many."""
        found = list(self.streams.values())
        for request in found:
            _cut(request)
        return len(found)

    def times(self, action: str) -> int:
        """How many requests of an action came."""
        return sum(request.action == action for request in self.requests)


def request_of(request: web.BaseRequest, body: bytes) -> Request:
    """What is asked of which service, by its signature and headers."""
    scope = request.headers.get("Authorization", "").partition("Credential=")[2].split("/")
    service = scope[3] if len(scope) > 3 else ""
    target = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
    form = parse_qs(body.decode(errors="replace")) if b"Action=" in body[:2000] and not target else {}
    named = "_bulk" if request.path == "/_bulk" else "Invoke" if request.path.endswith("/invocations") else ""
    action = target or named or (form.get("Action") or [request.method])[0]
    raw: dict[str, Any] = {"method": request.method, "raw_path": request.raw_path, "headers": request.headers}
    return Request(service, action, request.path_qs, body, **raw)


@asynccontextmanager
async def proxy_to(url: str, *, watched: bool = True) -> AsyncIterator[Proxy]:
    """A proxy in front of the server at `url`, on a free loopback port. `watched`: the watchers are told of it."""
    proxy = Proxy()
    for watch in watchers if watched else ():
        watch(proxy)
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        async def handle(request: web.BaseRequest) -> Any:
            return await _handle(proxy, session, url, request)

        async with serving(handle, auto_decompress=False) as proxy.url:
            yield proxy


async def _handle(proxy: Proxy, session: aiohttp.ClientSession, url: str, request: web.BaseRequest) -> Any:
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # clients of S3 hold the body back until then
    body = await request.content.read()  # `request.read` takes no more than a MiB
    seen = request_of(request, body)
    proxy.requests.append(seen)
    fault = seen.fault = proxy.fault(seen)
    if fault == "reset":
        _cut(request)
        return web.Response()
    if fault in ("throttle", "broken", "denied", "expired", "unknown"):
        answer = _refusal(seen, fault)
        seen.status = answer.status
        return answer
    if fault == "slow":
        await asyncio.sleep(proxy.delay)
    elif fault == "hang":
        await proxy.resumed.wait()
    headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP}
    halved = partly.split(seen.action, body) if fault == "part" else None
    if halved:
        of_body = ("content-length", "x-amz-crc32", "content-encoding")
        headers = {k: v for k, v in headers.items() if k.lower() not in of_body}
    async with session.request(
        request.method,
        url + request.raw_path,
        data=io.BytesIO(halved[0] if halved else body),
        headers=headers,
        allow_redirects=False,
    ) as got:
        seen.status = got.status
        if got.content_type == EVENTS:
            return await _pass_on(proxy, request, got, fault)
        data = await got.read()
        if halved and got.status == 200:
            data = partly.joined(seen.action, body, data, halved[1])
        seen.answer = data
        if proxy.answered(seen) == "denied":
            return _refusal(seen, "denied")
        if fault == "lost":
            _cut(request)
            return web.Response()
        unfit = (*HOP, "content-length", "x-amz-crc32") if halved else HOP
        kept = {k: v for k, v in got.headers.items() if k.lower() not in unfit}
        if fault == "half":
            response = web.StreamResponse(status=got.status, headers={**kept, "Content-Length": str(len(data) + 100)})
            await response.prepare(request)
            await response.write(data[: len(data) // 2])
            _cut(request)
            return response
        if request.method != "HEAD":
            kept.pop("Content-Length", None)
        return web.Response(status=got.status, headers=kept, body=data)


async def _pass_on(proxy: Proxy, request: web.BaseRequest, got: aiohttp.ClientResponse, fault: Fault | None) -> Any:
    """A stream of events, as they come."""
    response = web.StreamResponse(status=got.status, headers={"Content-Type": EVENTS})
    await response.prepare(request)
    proxy.streams[id(request)] = request
    events = 0
    try:
        async for data in got.content.iter_any():
            events += 1
            if fault == "half" and events > 1:
                await response.write(data[: len(data) // 2])
                _cut(request)
                return response
            await response.write(data)
    except ConnectionError:
        pass  # it was cut, or the client has gone
    finally:
        del proxy.streams[id(request)]
    return response


def _cut(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


def _is_json(seen: Request) -> bool:
    return seen.body.startswith(b"{") or seen.action == "PutMetricData"  # which may be compressed


def _refusal(seen: Request, fault: Fault) -> web.Response:
    code, status = "InternalFailure", 500
    if fault == "throttle":
        code, status = THROTTLES.get(seen.service, "ThrottlingException"), 400
        status = {"s3": 503, "lambda": 429, "firehose": 500}.get(seen.service, 400)
        if seen.action == "_bulk":
            status = 429
    elif fault in ("expired", "unknown"):
        code, status = KEYS[fault].get(seen.service, KEYS[fault][""])
    elif fault == "denied":
        code, status = ("AccessDenied", 403) if seen.service == "s3" else ("AccessDeniedException", 400)
        if seen.service in ("es", "aoss") or seen.action == "_bulk":
            status = 403
    if seen.service in ("s3", "sns", "sqs", "monitoring", "sts") and not _is_json(seen):
        text = f"<ErrorResponse><Error><Code>{code}</Code><Message>{fault}</Message></Error></ErrorResponse>"
        if seen.service == "s3":
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{fault}</Message></Error>"
        return web.Response(status=status, text=text, content_type="application/xml")
    body = json.dumps({"__type": code, "message": fault})
    return web.Response(
        status=status, text=body, content_type="application/x-amz-json-1.1", headers={"x-amzn-ErrorType": code}
    )
