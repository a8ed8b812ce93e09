"""What a failed call of an Amazon service means: for the records that it carried, and when a destination is opened."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from flowkit.aws import Blame, blame_of, code_of, told
from flowkit.errors import ConfigError, SinkError
from flowkit.sink.dispatch import LONGEST_WAIT, Refused, TryAgain

log = structlog.get_logger("flowkit.sink")

T = TypeVar("T")

LOOK_AGAIN = 0.1
"""Seconds to the second look at a service that does not answer; then twice as long each."""

ABSENT = {
    *("ResourceNotFoundException", "ResourceNotFound", "NotFound", "NotFoundException", "QueueDoesNotExist"),
    "AWS.SimpleQueueService.NonExistentQueue",
}
"""Codes by which services say that there is no such thing."""


async def called(where: str, call: Awaitable[T]) -> T:
    """What a call gives. Raises TryAgain, Refused, or, if someone has to do something, SinkError."""
    try:
        return await call
    except Exception as error:
        blame = blame_of(error)
        if blame is None:
            raise
        if blame is Blame.PERSON:
            raise SinkError(f"{where}: {told(error)}") from error
        if blame is Blame.REQUEST:
            raise Refused(code_of(error) or type(error).__name__, told(error)) from error
        raise TryAgain(told(error), slow=blame is Blame.SLOW) from error


async def until_there(look: Callable[[], Awaitable[bool]]) -> None:
    """Look until it is known what has to be known of a service before anything can be sent, for as long as it takes.

    Raises SinkError if someone has to do something, which `look` tells by a ConfigError.
    """
    wait = LOOK_AGAIN
    while True:
        try:
            if await look():
                return
        except ConfigError as error:
            raise SinkError(str(error)) from None
        await asyncio.sleep(wait)
        wait = min(LONGEST_WAIT, wait * 2)


async def described(where: str, call: Awaitable[T], *, right: str, missing: str) -> T | None:
    """What a service says of the thing that `where` names; None, with a warning, if it does not answer now.

    Raises ConfigError if it is not there, which `missing` says what to do about, or may not be asked: `right` is what
    the role has to allow.
    """
    try:
        return await call
    except Exception as error:
        blame, code = blame_of(error), code_of(error)
        if blame is None:
            raise
        if code in ABSENT:
            raise ConfigError(f"{where}: is not there ({told(error)}): {missing}") from None
        if blame is Blame.PERSON and code.startswith("AccessDenied"):
            raise ConfigError(f"{where}: {told(error)}: allow {right}") from None
        if blame in (Blame.PERSON, Blame.REQUEST):
            raise ConfigError(f"{where}: {told(error)}") from None
        log.warning("does not answer; what is for it waits", sink=where, reason=told(error))
        return None
