"""Calls that are made again for as long as what keeps them from success passes by itself."""

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


async def patiently(
    where: str, call: Callable[[], Awaitable[T]], raising: type[FlowkitError], *, seconds: float | None = None
) -> T:
    """What `call` gives, made anew while its failure is one that passes (for at most `seconds`, None: for ever).

    Raises `raising`, with what went wrong where, if a person has to mend it, if the request itself is refused, or if
    the time is over; the cause is the client's error.
    """
    failures, started, told_at = 0, time.monotonic(), 0.0
    while True:
        try:
            return await call()
        except Exception as error:
            blame = blame_of(error)
            if blame is None:
                raise
            let_go(error)
            now = time.monotonic()
            over = seconds is not None and now - started >= seconds
            if over or blame in (Blame.PERSON, Blame.REQUEST):
                raise raising(f"{where}: {told(error)}") from error
            if failures and now - told_at >= TELL_SECONDS:
                told_at = now
                import structlog  # what only reads files loads no more than it needs

                structlog.get_logger("flowkit.aws").warning(
                    "no success; trying again", where=where, reason=told(error), tries=failures + 1
                )
        await asyncio.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2**failures) * (0.5 + random.random() / 2))
        failures = min(failures + 1, 20)
