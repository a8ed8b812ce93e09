"""What a failed call of an Amazon service means: for the records that it carried, and when a destination is opened."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import structlog

from flowkit.aws import AwsOptions, Backoff, Blame, blame_of, code_of, let_go, open_client, told
from flowkit.errors import ConfigError, SinkError
from flowkit.sink.dispatch import Refused, TryAgain

log = structlog.get_logger("flowkit.sink")

T = TypeVar("T")

ABSENT = {
    *("ResourceNotFoundException", "ResourceNotFound", "NotFound", "NotFoundException", "QueueDoesNotExist"),
    "AWS.SimpleQueueService.NonExistentQueue",
}
"""Codes by which services say that there is no such thing."""


def bulk_client(service: str, aws: AwsOptions, where: str, calls: int) -> AbstractAsyncContextManager[Any]:
    """A client for `calls` requests at once, each of many records, which are what they should be.

    botocore looks at each parameter of each record before it sends any, with more work than to write them down: 2.6 µs
    a record of Kinesis, 3.0 an event of CloudWatch Logs, 9.8 a metric, 11 a message of SNS, 17 an item of DynamoDB.
    Sinks make records from what they have looked at themselves; what a service finds wrong is a dead letter as ever.
    """
    return open_client(service, aws, where, connections=max(32, calls), parameter_validation=False)


async def called(where: str, call: Awaitable[T]) -> T:
    """What a call gives. Raises TryAgain, Refused, or, if someone has to do something, SinkError."""
    try:
        return await call
    except Exception as error:
        blame = blame_of(error)
        if blame is None:
            raise
        let_go(error)
        if blame is Blame.PERSON:
            raise SinkError(f"{where}: {told(error)}") from error
        if blame is Blame.REQUEST:
            raise Refused(code_of(error) or type(error).__name__, told(error)) from error
        raise TryAgain(told(error), slow=blame is Blame.SLOW) from error


async def until_known(look: Callable[[], Awaitable[None]], known: Callable[[], bool]) -> None:
    """Look until what is looked for is known, for as long as it takes. Raises SinkError if someone has to do something.

    A destination that could not be described when it was opened makes no record into an item before.
    """
    backoff = Backoff()
    while not known():
        try:
            await look()
        except ConfigError as error:
            raise SinkError(str(error)) from None
        if not known():
            await asyncio.sleep(backoff.wait())


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
