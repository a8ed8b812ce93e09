"""Where the server listens, and who may ask: on this machine anyone, from elsewhere who has the token."""

import hmac
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from flowkit.errors import ConfigError

TOKEN = "FLOWKIT_HTTP_TOKEN"  # noqa: S105  the variable's name
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Address:
    """`host` and `port` (0: a free one) to listen at. Without a `token` anyone on this machine may ask."""

    host: str
    port: int
    token: str = field(default="", repr=False)

    @property
    def local(self) -> bool:
        """True if only this machine can reach it."""
        return is_local(self.host)

    def allows(self, authorization: str) -> bool:
        """True if a request with this header may see more than health. Takes as long for every wrong token."""
        if not self.token:
            return self.local
        scheme, _, given = authorization.partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self.token.encode())
        return right and scheme.lower() == "bearer"


def is_local(host: str) -> bool:
    """True if a host is this machine and nothing else.

    >>> [is_local(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "example.com")]
    [True, True, True, False, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def split_host(text: str) -> str:
    """The host of a Host header or of HOST:PORT.

    >>> split_host("127.0.0.1:80"), split_host("[::1]:80"), split_host("localhost"), split_host("[::1]")
    ('127.0.0.1', '::1', 'localhost', '::1')
    """
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] or text


def listen_at(option: str, text: str) -> tuple[str, int, bool]:
    """Host and port of `PORT` (on 127.0.0.1) or `HOST:PORT`, and whether only this machine can ask there.

    Raises ConfigError if it is neither.

    >>> listen_at("--listen", "8088"), listen_at("--listen", "[::]:80")
    (('127.0.0.1', 8088, True), ('::', 80, False))
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdigit() or int(port) > 65_535 or (colon and not host):
        raise ConfigError(
            f"{option} {text}: write PORT, such as 8080 (then only this machine can ask), or HOST:PORT, such as "
            "0.0.0.0:8080"
        )
    return host or LOOPBACK, int(port), is_local(host or LOOPBACK)


def address_of(text: str, environ: Mapping[str, str] | None = None) -> Address:
    """`PORT` (on 127.0.0.1) or `HOST:PORT`, with the token of the environment.

    Raises ConfigError if it is neither, or if others could reach it and there is no token.

    >>> address_of("8080", {})
    Address(host='127.0.0.1', port=8080)
    >>> address_of("[::1]:0", {}).local
    True
    """
    token = (os.environ if environ is None else environ).get(TOKEN, "")
    host, port, _ = listen_at("--http", text)
    address = Address(host, port, token)
    if not address.local and not token:
        raise ConfigError(
            f"--http {text}: others than this machine could ask there, so a token is needed: set {TOKEN} "
            f"(requests then need `Authorization: Bearer …`), or listen at {LOOPBACK} by --http {port}"
        )
    return address
