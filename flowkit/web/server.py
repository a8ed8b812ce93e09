"""The server: routes, who may ask, and errors that say what was wrong.

    /healthz       200 while the process lives and the watchdog is content, else 503 with what it says
    /readyz        200 once all tasks are recovered and running, else 503 with the reason
    /metrics       Prometheus
    /flow          the running flow
    /tables        the app's tables; /tables/NAME?key=KEY&limit=N: rows of one, in this process's tasks
    /why/TABLE     why its windows are not out; ?key=KEY

The first two are open to all; the others need the token, where there is one.
"""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import structlog
from aiohttp import web

from flowkit.errors import ConfigError, FlowkitError
from flowkit.web import pages
from flowkit.web.address import Address, is_local, split_host
from flowkit.worker import Watched, exposition

log = structlog.get_logger("flowkit.web")

PAGES = ("/healthz", "/readyz", "/metrics", "/flow", "/tables", "/tables/NAME", "/why/TABLE")
OPEN = ("/healthz", "/readyz")
ENDS_SECONDS = 1.0
"""How long an answer waits for the broker to say how long its topics are."""
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serve_http(watched: Watched, address: Address) -> AsyncIterator[int]:
    """Serve at `address` as long as this context lasts; gives the port. Raises ConfigError if it cannot be used."""
    runner = web.AppRunner(_application(watched, address), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, address.host, address.port).start()
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {_words(error)}"
            raise ConfigError(f"--http {address.host}:{address.port}: {why}: name another port or address") from error
        port: int = runner.addresses[0][1]
        log.info("serving http", host=address.host, port=port, token=bool(address.token))
        yield port
    finally:
        await runner.cleanup()


def _words(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _application(watched: Watched, address: Address) -> web.Application:
    served = _Served(watched)

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path not in OPEN:
                _check(request, address)
            return await handler(request)
        except web.HTTPException as answer:
            if answer.status < 400:
                raise
            return _error(answer.status, _reason(answer, request), answer.headers.get("Allow"))
        except ConfigError as error:
            return _error(404 if isinstance(error, pages.Unknown) else 400, str(error))
        except TimeoutError:
            return _error(503, "a commit takes long: try again")
        except FlowkitError as error:
            return _error(503, str(error))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("request failed", path=request.path)
            return _error(500, f"flowkit itself failed ({type(error).__name__}): its log says where")

    application = web.Application(middlewares=[guarded])
    application.add_routes(
        [
            web.get("/", served.index),
            web.get("/healthz", served.healthz),
            web.get("/readyz", served.readyz),
            web.get("/metrics", served.metrics),
            web.get("/flow", served.flow),
            web.get("/tables", served.tables),
            web.get("/tables/{name}", served.table),
            web.get("/why/{name}", served.why),
        ]
    )
    return application


def _check(request: web.Request, address: Address) -> None:
    """Refuse who may not ask."""
    if not address.token and not is_local(split_host(request.headers.get("Host", ""))):
        # Without a token a page of another site, under a name that leads here, could ask through a browser.
        raise web.HTTPForbidden(text="without a token it answers only under 127.0.0.1 or localhost")
    if not address.allows(request.headers.get("Authorization", "")):
        raise web.HTTPUnauthorized(text="give the token: Authorization: Bearer TOKEN")


def _reason(answer: web.HTTPException, request: web.Request) -> str:
    match answer.status:
        case 404:
            return f"there is no {request.path} here; there are {', '.join(PAGES)}"
        case 405:
            return f"{request.method} is not possible: everything here is only read (GET)"
        case _:
            return answer.text or answer.reason


def _error(status: int, what: str, allow: str | None = None) -> web.Response:
    headers = {} if allow is None else {"Allow": allow}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _json({"error": what}, status, headers)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    safe = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **(headers or {})}
    return web.Response(body=body + b"\n", status=status, content_type="application/json", headers=safe)


class _Served:
    """The pages."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched

    async def index(self, _request: web.Request) -> web.Response:
        return _json({"app": self.watched.app.name, "pages": PAGES})

    async def healthz(self, _request: web.Request) -> web.Response:
        trouble = self.watched.trouble()
        return _json({"alive": True, "trouble": trouble}, 503 if trouble else 200)

    async def readyz(self, _request: web.Request) -> web.Response:
        reason = self.watched.unready()
        return _json({"ready": not reason, "reason": reason}, 503 if reason else 200)

    async def _ends(self) -> dict[str, int]:
        try:
            async with asyncio.timeout(ENDS_SECONDS):
                return await self.watched.ends()
        except (TimeoutError, FlowkitError):
            return {}  # a broker that does not answer is no reason to tell nothing at all

    async def metrics(self, _request: web.Request) -> web.Response:
        text = exposition(self.watched, await self._ends())
        return web.Response(body=text, headers={"Content-Type": METRICS_TYPE, "Cache-Control": "no-store"})

    async def flow(self, _request: web.Request) -> web.Response:
        return _json(pages.flow(self.watched, await self._ends()))

    async def tables(self, _request: web.Request) -> web.Response:
        return _json({"tables": pages.tables(self.watched)})

    async def table(self, request: web.Request) -> web.Response:
        _known(request, "key", "limit")
        text = request.query.get("limit", str(pages.DEFAULT_ROWS))
        if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= pages.MOST_ROWS):
            raise ConfigError(f"limit={text!r}: give a whole number from 1 to {pages.MOST_ROWS}")
        return _json(await pages.rows(self.watched, request.match_info["name"], request.query.get("key"), int(text)))

    async def why(self, request: web.Request) -> web.Response:
        _known(request, "key")
        return _json(await pages.why(self.watched, request.match_info["name"], request.query.get("key")))


def _known(request: web.Request, *names: str) -> None:
    """Raise ConfigError for a parameter that means nothing here: a typing error would change the answer unnoticed."""
    wrong = [name for name in request.query if name not in names]
    if wrong:
        raise ConfigError(f"no parameter {wrong[0]!r} here: there are {', '.join(names)}")
