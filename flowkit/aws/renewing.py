"""Credentials that are had anew when a service says that they have expired: botocore does so only when their time says.

    a service refuses them     the whole chain is asked again, from the environment on: files, processes, endpoints of
                               containers and instances, roles. What it gives goes into the same client, and the call
                               is made again
    there are no others        that is told, the call fails as one that passes, and the chain is asked again with a
                               later one: who calls waits and comes back, and nothing is lost
    their time is over, and    likewise, once they have worked; before that it is an error
    they cannot be refreshed

Imported when the first client is opened: it loads aiobotocore.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiobotocore.credentials import create_credential_resolver
from aiobotocore.session import AioSession
from botocore.exceptions import BotoCoreError

from flowkit.aws.failures import EXPIRED, SUSPECT, WAITS, told

log = structlog.get_logger("flowkit.aws")

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds between two questions to the chain, which may run a program or ask another service."""
TELL_SECONDS = 30.0
MOST = 3
"""So often one call is made with fresh credentials: a chain may give others each time, and none of them any good."""
SIGNED, TRIED = "flowkit.signed", "flowkit.tried"


class NoCredentialsNow(BotoCoreError):  # type: ignore[misc]
    """They have expired, and there are no others: that passes."""

    fmt = "the credentials have expired, and there are no fresh ones: {reason}"


class Renewing:
    """The credentials of one client, as botocore asks for them. `load` gives what there is now (None: nothing)."""

    def __init__(self, load: Callable[[], Awaitable[Any]], where: str) -> None:
        self.where = where
        self.generation = 0
        """Grows with each change."""
        self._load = load
        self._inner: Any = None
        self._frozen: Any = None
        self._worked = False
        self._waits = False
        """True while there are none that are any good."""
        self._reason = ""
        self._pause = FIRST_WAIT
        self._not_before = self._told = 0.0
        self._turn = asyncio.Lock()

    async def first(self) -> bool:
        """Load them; False if there are none."""
        self._inner = await self._load()
        return self._inner is not None

    @property
    def method(self) -> str:
        """How botocore calls the way by which they were found."""
        return str(self._inner.method)

    async def get_account_id(self) -> str | None:
        """The account, if it is known."""
        account: str | None = (await self.get_frozen_credentials()).account_id
        return account

    def get_deferred_property(self, name: str) -> Callable[[], Awaitable[Any]]:
        """What botocore asks for later on: the account."""
        assert name == "account_id"
        return self.get_account_id

    async def get_frozen_credentials(self) -> Any:
        """Those to sign with."""
        if self._waits and self._frozen is None and time.monotonic() < self._not_before:
            raise NoCredentialsNow(reason=self._reason)
        try:
            frozen = await self._inner.get_frozen_credentials()
        except Exception as error:  # a refresh may fail with anything
            if not self._worked:
                raise
            self._frozen = None
            if not await self.renew(self.generation, told(error)):
                raise NoCredentialsNow(reason=self._reason) from error
            return self._frozen
        if frozen != self._frozen:
            self._frozen = frozen
            self.generation += 1
        return frozen

    def works(self) -> None:
        """A service has taken them."""
        self._worked, self._pause = True, FIRST_WAIT
        if self._waits:
            self._waits = False
            log.info("credentials are good again", where=self.where)

    def refused(self, code: str) -> bool:
        """True if an error's code says that they are of no use any more."""
        return code in EXPIRED or (self._worked and code in SUSPECT)

    async def renew(self, generation: int, reason: str) -> bool:
        """Ask the chain; True if there are others now than those of `generation`."""
        async with self._turn:
            if self.generation != generation:
                return True
            if time.monotonic() < self._not_before:
                self._reason = self._reason or reason
                return False
            try:
                inner = await self._load()
                frozen = None if inner is None else await inner.get_frozen_credentials()
            except Exception as error:  # noqa: BLE001  a chain may fail with anything
                frozen, why = None, told(error)
            else:
                why = "there are none any more" if frozen is None else "there are only these still"
            self._not_before = time.monotonic() + self._pause
            self._pause = min(LONGEST_WAIT, self._pause * 2)
            if frozen is not None and frozen != self._frozen:
                self._inner, self._frozen = inner, frozen
                self.generation += 1
                log.info("credentials renewed", where=self.where, by=self.method, reason=reason)
                return True
            self._wait(f"{reason}; {why}")
            return False

    def _wait(self, reason: str) -> None:
        self._waits, self._reason = True, reason
        if time.monotonic() - self._told >= TELL_SECONDS or not self._told:
            self._told = time.monotonic()
            log.warning(
                "credentials have expired, and there are no fresh ones; waiting for some", where=self.where,
                reason=reason,
            )  # fmt: skip

    def watch(self, client: Any) -> None:
        """Be told by a client how its calls end."""
        client.meta.events.register("before-sign", self._signs)
        client.meta.events.register("needs-retry", self._ended)

    def _signs(self, request: Any, **_: Any) -> None:
        request.context[SIGNED] = self.generation

    async def _ended(self, response: Any, request_dict: Any, **_: Any) -> float | None:
        """Of one try: the seconds after which it is to be made again, None for what others say."""
        if response is None:
            return None
        answer, said = response
        if answer.status_code < 300:
            self.works()
            return None
        code = str(said.get("Error", {}).get("Code", ""))
        if not self.refused(code):
            return None
        context = request_dict["context"]
        tried = context.get(TRIED, 0)
        if tried < MOST and await self.renew(context.get(SIGNED, 0), code):
            context[TRIED] = tried + 1
            return 0.0
        said.setdefault("ResponseMetadata", {})[WAITS] = True
        return None


class _Provider:
    """What a session takes its credentials from."""

    def __init__(self, credentials: Renewing) -> None:
        self._credentials = credentials

    async def load_credentials(self) -> Renewing | None:
        return self._credentials if await self._credentials.first() else None


def renewing_session(profile: str | None, region: str | None, where: str) -> tuple[AioSession, Renewing]:
    """A session whose credentials are renewed; `watch` has to be told of its client. Raises ProfileNotFound."""

    async def load() -> Any:
        fresh = AioSession(profile=profile)
        resolver = create_credential_resolver(fresh, region_name=region or fresh.get_config_variable("region"))
        return await resolver.load_credentials()

    session, credentials = AioSession(profile=profile), Renewing(load, where)
    session.register_component("credential_provider", _Provider(credentials))
    return session, credentials
