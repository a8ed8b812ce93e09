"""Where the tokens of SASL OAUTHBEARER come from: a file, a token endpoint (client credentials), or Amazon's signer.

aiokafka asks for a token at each new connection, so a token that is renewed on disk is used from then on. It never
authenticates a connection again: a broker that wants that closes the connection, and the next one has a new token.

Whatever goes wrong here is raised as aiokafka's own kind of error: it asks within its background tasks, too, and any
other kind would end those for good, in silence.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Protocol

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaError

from flowkit.errors import ConfigError


class Secrets(Protocol):
    """What tokens are made from: an address, and where its secrets are."""

    @property
    def url(self) -> str: ...
    @property
    def sasl(self) -> str | None: ...
    @property
    def region(self) -> str | None: ...
    @property
    def timeout_ms(self) -> int: ...
    @property
    def environ(self) -> Mapping[str, str]: ...
    def secret(self, name: str) -> str | None: ...


def token_provider(address: Secrets) -> AbstractTokenProvider:
    """The provider for `address`, whose `sasl` is oauthbearer or msk-iam.

    Raises ConfigError if a variable or the signer is missing.
    """
    if address.sasl == "msk-iam":
        return SignedToken(address)
    if address.environ.get("FLOWKIT_KAFKA_TOKEN_URL"):
        return EndpointToken(address)
    if not address.secret("TOKEN"):
        raise ConfigError(
            f"{address.url}: sasl=oauthbearer needs FLOWKIT_KAFKA_TOKEN_FILE (or FLOWKIT_KAFKA_TOKEN), or "
            "FLOWKIT_KAFKA_TOKEN_URL with FLOWKIT_KAFKA_CLIENT_ID and FLOWKIT_KAFKA_CLIENT_SECRET"
        )
    return StoredToken(address)


class NoToken(KafkaError):  # type: ignore[misc]  # aiokafka has no types
    """No token could be had now; the message says why, without any secret."""

    retriable = True


class StoredToken(AbstractTokenProvider):  # type: ignore[misc]
    """The token that the environment or a file holds at the moment."""

    def __init__(self, address: Secrets) -> None:
        self._address = address

    async def token(self) -> str:
        try:
            return (self._address.secret("TOKEN") or "").strip()
        except ConfigError as error:
            raise NoToken(str(error)) from None


class EndpointToken(AbstractTokenProvider):  # type: ignore[misc]
    """A token from an OAuth token endpoint (RFC 6749, section 4.4), asked for again when 80% of its life is over."""

    def __init__(self, address: Secrets) -> None:
        self._address = address
        self._url = address.environ["FLOWKIT_KAFKA_TOKEN_URL"]
        if "@" in self._url:
            raise ConfigError(
                f"{address.url}: FLOWKIT_KAFKA_TOKEN_URL has an @, but no secret may stand in it: set "
                "FLOWKIT_KAFKA_CLIENT_ID and FLOWKIT_KAFKA_CLIENT_SECRET"
            )
        self._client = address.environ.get("FLOWKIT_KAFKA_CLIENT_ID")
        if not self._client or not address.secret("CLIENT_SECRET"):
            raise ConfigError(
                f"{address.url}: FLOWKIT_KAFKA_TOKEN_URL needs FLOWKIT_KAFKA_CLIENT_ID and FLOWKIT_KAFKA_CLIENT_SECRET "
                "(or FLOWKIT_KAFKA_CLIENT_SECRET_FILE)"
            )
        self._token, self._until = "", 0.0
        self._lock = asyncio.Lock()

    async def token(self) -> str:
        async with self._lock:  # connections to several brokers open at once
            if time.monotonic() >= self._until:
                answer = await self._ask()
                self._token = str(answer["access_token"])
                self._until = time.monotonic() + 0.8 * _seconds(answer.get("expires_in"))
            return self._token

    async def _ask(self) -> dict[str, Any]:
        import aiohttp

        form = {"grant_type": "client_credentials"}
        if scope := self._address.environ.get("FLOWKIT_KAFKA_SCOPE"):
            form["scope"] = scope
        try:
            secret = self._address.secret("CLIENT_SECRET") or ""
        except ConfigError as error:
            raise NoToken(str(error)) from None
        auth = aiohttp.encode_basic_auth(self._client or "", secret)
        timeout = aiohttp.ClientTimeout(total=self._address.timeout_ms / 1000)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(self._url, data=form, headers={"Authorization": auth}) as response,
            ):
                if response.status != 200:
                    raise NoToken(f"the token endpoint {self._url} answered with status {response.status}")
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise NoToken(f"the token endpoint {self._url} gave no token: {type(error).__name__}") from None
        if not isinstance(answer, dict) or not answer.get("access_token"):
            raise NoToken(f"the token endpoint {self._url} answered without an access_token")
        return answer


def _seconds(value: Any) -> float:
    """How long a token lives; 0 (ask again each time) if the endpoint does not say."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0


class SignedToken(AbstractTokenProvider):  # type: ignore[misc]
    """Amazon MSK: a request for the cluster, signed by the credentials that boto finds. Good for 15 minutes."""

    def __init__(self, address: Secrets) -> None:
        try:
            from aws_msk_iam_sasl_signer import MSKAuthTokenProvider
        except ImportError:
            raise ConfigError(f"{address.url}: sasl=msk-iam needs the extra msk: pip install 'flowkit[msk]'") from None
        self._sign = MSKAuthTokenProvider.generate_auth_token
        self._region = address.region or address.environ["AWS_REGION"]

    async def token(self) -> str:
        try:
            token, _ = await asyncio.to_thread(self._sign, self._region)  # looks for credentials: files, the network
        except Exception as error:  # noqa: BLE001  # of boto, of botocore, or of what they call
            raise NoToken(f"boto found no credentials to sign with ({type(error).__name__})") from None
        return str(token)
