"""Trying again, for as long as what keeps a call from success passes by itself: how soon, and told how often."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from flowkit.aws.failures import Blame, blame_of, let_go, told
from flowkit.errors import FlowkitError

T = TypeVar("T")

FIRST_WAIT, LONGEST_WAIT = 0.05, 10.0
"""Seconds between tries: half of it is left to chance."""
TELL_SECONDS = 10.0


class Backoff:
    """How long to wait between tries: twice as long after each failure; and whether it is time to tell of it."""

    def __init__(self) -> None:
        self.failures = 0
        self._told: float | None = None

    def wait(self) -> float:
        """Seconds until the next try, after one more failure. Half is chance: workers do not come all at once."""
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2.0**self.failures)
        self.failures = min(self.failures + 1, 20)
        return longest * (0.5 + random.random() / 2)

    def over(self) -> None:
        """It has passed."""
        self.failures = 0

    def is_to_tell(self) -> bool:
        """True now and then, the first time too."""
        now = time.monotonic()
        if self._told is not None and now - self._told < TELL_SECONDS:
            return False
        self._told = now
        return True


async def patiently(
    where: str, call: Callable[[], Awaitable[T]], raising: type[FlowkitError], *, seconds: float | None = None
) -> T:
    """What `call` gives, made anew while its failure is one that passes (for at most `seconds`, None: for ever).

    Raises `raising`, with what went wrong where, if a person has to mend it, if the request itself is refused, or if
    the time is over; the cause is the client's error.
    """
    backoff, started = Backoff(), time.monotonic()
    while True:
        try:
            return await call()
        except Exception as error:
            blame = blame_of(error)
            if blame is None:
                raise
            let_go(error)
            over = seconds is not None and time.monotonic() - started >= seconds
            if over or blame in (Blame.PERSON, Blame.REQUEST):
                raise raising(f"{where}: {told(error)}") from error
            if backoff.failures and backoff.is_to_tell():
                import structlog  # what only reads files loads no more than it needs

                structlog.get_logger("flowkit.aws").warning(
                    "no success; trying again", where=where, reason=told(error), tries=backoff.failures + 1
                )
        await asyncio.sleep(backoff.wait())
