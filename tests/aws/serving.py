"""A server of ours in the test's own event loop, on a free loopback port."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


@asynccontextmanager
async def serving(handle: Callable[[web.BaseRequest], Awaitable[Any]], **options: Any) -> AsyncIterator[str]:
    """The URL at which `handle` answers meanwhile; `options` are aiohttp's for a server."""
    runner = web.ServerRunner(web.Server(handle, **options), shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        host, port = site._server.sockets[0].getsockname()[:2]  # type: ignore[attr-defined]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
