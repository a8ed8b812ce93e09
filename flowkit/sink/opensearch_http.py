"""Requests to an OpenSearch server by aiohttp, signed, compressed, and what their failures mean."""

import re
import ssl
from contextlib import AsyncExitStack
from typing import Any, Self

from isal import igzip

from flowkit.aws import Right, arn, literal
from flowkit.errors import ConfigError, SinkError
from flowkit.sink.dispatch import TryAgain
from flowkit.sink.opensearch_auth import Auth, SigV4

LEAST_GZIP = 1_000
"""Bytes below which compressing does not pay."""


class Http:
    """One server. Used within `async with`."""

    def __init__(
        self, url: str, auth: Auth, where: str, *, ca: str | None, gzip: bool, timeout: float, connections: int
    ) -> None:
        self.url, self.auth, self.where = url, auth, where
        self._ca, self._gzip, self._timeout, self._connections = ca, gzip, timeout, connections
        self._session: Any = None
        self._stack = AsyncExitStack()

    def problems(self) -> list[str]:
        """What is wrong and can be told from here."""
        found = [f"{self.where}: {problem}" for problem in self.auth.problems()]
        try:
            self._tls()
        except (OSError, ssl.SSLError) as error:
            found.append(f"{self.where}: ca={self._ca}: is no file of certificates that can be read: {error}")
        return found

    def rights(self, **paths: str) -> list[Right]:
        """What a role has to be allowed there, if requests are signed by one: by method ("Post"), on which path."""
        if not isinstance(self.auth, SigV4):
            return []
        if self.auth.service == "aoss":
            return [Right("aoss", ("APIAccessAll",), arn("aoss", "collection/*", self.auth.region))]
        # What AWS calls the domain: search-NAME-<26 letters and digits>.REGION.es.amazonaws.com
        named = re.match(r"https?://(?:search|vpc)-(.+)-[a-z0-9]{26}\.", self.url)
        domain = f"domain/{named[1] if named else '*'}"
        return [
            Right("es", (f"ESHttp{method}",), arn("es", f"{domain}/{literal(path)}", self.auth.region))
            for method, path in paths.items()
        ]

    def _tls(self) -> ssl.SSLContext | bool:
        return True if self._ca is None else ssl.create_default_context(cafile=self._ca)

    async def __aenter__(self) -> Self:
        """Raises ConfigError."""
        import aiohttp

        try:
            await self.auth.open()
        except ConfigError as error:
            raise ConfigError(f"{self.where}: {error}") from None
        connector = aiohttp.TCPConnector(limit=self._connections, ssl=self._tls())
        limit = aiohttp.ClientTimeout(total=self._timeout, connect=min(10.0, self._timeout))
        self._session = await self._stack.enter_async_context(aiohttp.ClientSession(connector=connector, timeout=limit))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of an answer. Raises TryAgain if there is none, SinkError if nobody but a person can help."""
        import aiohttp
        from yarl import URL

        url = f"{self.url}{path}"
        headers = {"Content-Type": "application/x-ndjson"} if body else {}
        if self._gzip and len(body) >= LEAST_GZIP:
            body = igzip.compress(body, 1)
            headers["Content-Encoding"] = "gzip"
        try:
            signed = await self.auth.sign(method, url, headers, body)
        except SinkError as error:
            raise SinkError(f"{self.where}: {error}") from None
        try:
            async with self._session.request(
                method, URL(url, encoded=True), data=body or None, headers=signed, allow_redirects=False
            ) as answer:
                status, got = answer.status, await answer.read()
        except aiohttp.ClientConnectorCertificateError as error:
            raise SinkError(f"{self.where}: its certificate is none that is trusted here: {error}: say ?ca=") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise TryAgain(f"{type(error).__name__}: {error}") from error
        if status in (401, 403):
            reason = got[:1000].decode(errors="replace")
            if self.auth.refused(reason):
                raise TryAgain(f"HTTP {status}, and there are other credentials now: {reason}")
        return status, got
