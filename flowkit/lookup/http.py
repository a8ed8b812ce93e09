"""Lookups over HTTP: GET, JSON back. 404 is no answer; any other status but 2xx is an error to try again."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from flowkit.codec import Codec
from flowkit.errors import ConfigError, LookupFailed

U = TypeVar("U")

Headers = Mapping[str, str] | Callable[[], Mapping[str, str]] | None


def http(url: str, type_: type[U], *, headers: Headers = None) -> "HttpLookup[U]":
    """Ask `url`, in which `{key}` stands for the key (escaped), and decode the JSON of the answer as `type_`.

    `headers` may be a function that gives them, called for each request (a token that runs out). Raises ConfigError
    for a URL without `{key}`.

    >>> http("http://127.0.0.1:8080/devices/{key}", dict).url_of("a/b")
    'http://127.0.0.1:8080/devices/a%2Fb'
    """
    return HttpLookup(url, type_, headers)


class HttpLookup(Generic[U]):
    """Made by `http`."""

    def __init__(self, url: str, type_: type[U], headers: Headers) -> None:
        if "{key}" not in url or not url.startswith(("http://", "https://")):
            raise ConfigError(f"lookup.http({url!r}): give an http:// or https:// URL with {{key}} in it")
        self.url, self.type, self.headers = url, type_, headers
        self._codec: Codec = Codec("json", type_)
        self._session: Any = None

    def __repr__(self) -> str:
        return f"http({self.url!r})"

    def begin(self) -> "HttpLookup[U]":
        return HttpLookup(self.url, self.type, self.headers)

    def url_of(self, key: Any) -> str:
        """Where the key is asked for."""
        return self.url.replace("{key}", quote(str(key), safe=""))

    async def __call__(self, key: Any, /) -> U | None:
        if self._session is None:
            import aiohttp

            self._session = aiohttp.ClientSession()
        headers = self.headers() if callable(self.headers) else self.headers
        # The URL is escaped already: aiohttp's own normalisation would undo some of it.
        from yarl import URL

        async with self._session.get(URL(self.url_of(key), encoded=True), headers=headers) as answer:
            body = await answer.read()
            if answer.status == 404:
                return None
            if not 200 <= answer.status < 300:
                raise LookupFailed(f"{self.url_of(key)}: status {answer.status} {answer.reason or ''}".rstrip())
            found: U = self._codec.decode(body)
            return found

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
