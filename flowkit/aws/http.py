"""The HTTP of Amazon's clients, with an end to sending: loaded when the first client is opened.

aiohttp begins to wait for an answer, and to count the seconds, when all of a request is sent. So a service that accepts
connections and reads nothing would hold a large request for ever, and one that never says `100 Continue` any of S3's.
"""

import asyncio
import io
from typing import Any

from aiobotocore.httpsession import AIOHTTPSession
from botocore.exceptions import ReadTimeoutError

SLOWEST = 256 << 10
"""Bytes a second at which a request is sent at least, or it is given up."""
AT_ONCE = 64 << 10
"""Bytes that a connection takes of a request without waiting for its other end (asyncio's high-water mark)."""
LARGE = 1 << 20
"""Bytes of a body that aiohttp takes a piece at a time, or warns that it blocks the event loop."""


class Http(AIOHTTPSession):  # type: ignore[misc]  # it has no types
    """A session whose requests end in time, whatever becomes of them."""

    async def send(self, request: Any) -> Any:
        """As aiobotocore asks for it."""
        size = int(request.headers.get("Content-Length") or 0)
        if size <= AT_ONCE and "Expect" not in request.headers:
            return await super().send(request)
        if size > LARGE and isinstance(request.body, bytes | bytearray):
            request.body = io.BytesIO(request.body)
        answer: float = (getattr(request, "context", None) or {}).get("read_timeout") or self._timeout.sock_read
        try:
            async with asyncio.timeout(self._timeout.sock_connect + size / SLOWEST + answer):
                return await super().send(request)
        except TimeoutError:
            raise ReadTimeoutError(endpoint_url=request.url) from None
