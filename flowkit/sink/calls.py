"""What a failed call of an Amazon service means for the records that it carried."""

from collections.abc import Awaitable
from typing import TypeVar

from flowkit.aws import Blame, blame_of, code_of, told
from flowkit.errors import SinkError
from flowkit.sink.dispatch import Refused, TryAgain

T = TypeVar("T")


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
