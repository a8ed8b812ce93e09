"""What an error of an Amazon service means: to be tried again, for a person to mend, or the request's own fault."""

import traceback
from enum import Enum
from typing import Any

SLOW = frozenset(
    (
        *("ProvisionedThroughputExceededException", "ThrottlingException", "Throttling", "ThrottledException"),
        *("RequestThrottled", "RequestThrottledException", "TooManyRequestsException", "RequestLimitExceeded"),
        *("SlowDown", "BandwidthLimitExceeded", "LimitExceededException", "EC2ThrottledException", "429"),
        *("KMSThrottlingException", "TransactionInProgressException", "PriorRequestNotComplete"),
        *("ServiceUnavailableException", "ConcurrentInvocationLimitExceeded"),
        *("ReservedFunctionConcurrentInvocationLimitExceeded", "KMS.ThrottlingException", "KMSThrottling"),
    )
)  # fmt: skip
"""Codes by which a service asks for fewer requests."""

EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired")
"""Codes by which a service says that credentials were good, and are no more."""
SUSPECT = frozenset(
    ("UnrecognizedClientException", "InvalidClientTokenId", "InvalidAccessKeyId", "InvalidToken", "InvalidSecurity")
)
"""Codes for keys that a service does not know: of some that have worked, that they do so no more."""
WAITS = "FlowkitWaitsForCredentials"
"""Stands in an answer's metadata if its error is for want of credentials that were good before."""

PASSING = frozenset(
    (
        *(
            "InternalException",
            "InternalFailure",
            "InternalFailureException",
            "InternalServerError",
            "InternalServiceError",
            "InternalError",
            "ServiceUnavailable",
        ),
        *("ServiceException", "RequestTimeout", "RequestTimeoutException", "RequestTimeTooSkewed", "500", "502", "503"),
        *("504", "ConditionalRequestConflict", "OperationAborted", "409", "ResourceInUseException"),
        *("TransactionConflictException", "KMSInternalException", "DependencyTimeoutException"),
        "RequestExpired",
        *EXPIRED,  # the client has asked for fresh ones, and will again: flowkit/aws/renewing.py
    )
)
"""Codes of what passes by itself."""

FOR_A_PERSON = frozenset(
    (
        *("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AllAccessDisabled", "403", "404", "301"),
        *("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSignatureException", "UnrecognizedClientException"),
        *("InvalidClientTokenId", "InvalidToken", "MissingAuthenticationToken", "IncompleteSignature", "OptInRequired"),
        *("AuthFailure", "NotAuthorized", "MissingAuthenticationTokenException", "AuthorizationHeaderMalformed"),
        *("ResourceNotFoundException", "ResourceNotFound", "NoSuchBucket", "PermanentRedirect", "InvalidBucketName"),
        *("NotFoundException", "NotFound", "QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue"),
        *("NotImplemented", "UnknownOperationException", "InvalidAction", "KMSAccessDeniedException"),
        *("KMSDisabledException", "KMSInvalidStateException", "KMSNotFoundException", "KMSOptInRequired"),
        *("InvalidKMSResourceException", "KMS.AccessDeniedException", "KMS.DisabledException", "KMS.NotFoundException"),
        *("KMS.InvalidStateException", "KMS.OptInRequired", "KMSDisabled", "KMSInvalidState", "KMSNotFound"),
        *("KMSAccessDenied", "AuthorizationError", "InvalidSecurity", "InvalidAccountIdException"),
        *("NotAuthorizedForSourceException", "NotAuthorizedForDetailTypeException"),
    )
)
"""Codes that only someone with rights can do something about."""


class Blame(Enum):
    """Whose matter an error is."""

    SLOW = "the service asks for fewer requests"
    PASSING = "it passes: try again"
    PERSON = "someone has to do something: rights, names, credentials"
    REQUEST = "the request itself is wrong: the same again would be refused again"


def blame_of(error: BaseException) -> Blame | None:
    """Whose matter an error of a client is; None if it is no such error."""
    import asyncio

    import aiohttp
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        if error.response.get("ResponseMetadata", {}).get(WAITS):
            return Blame.PASSING
        return blame_of_code(code_of(error), status_of(error))
    if isinstance(error, boto.ParamValidationError):
        return Blame.REQUEST
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        return Blame.PERSON
    if isinstance(error, boto.BotoCoreError | aiohttp.ClientError | asyncio.TimeoutError | OSError):
        return Blame.PASSING
    return None


def blame_of_code(code: str, status: int = 0) -> Blame:
    """Whose matter an error is that a service tells by a code, of a whole request or of one entry of it.

    >>> blame_of_code("RequestThrottled").name, blame_of_code("AccessDenied").name, blame_of_code("", 503).name
    ('SLOW', 'PERSON', 'PASSING')
    """
    if code in SLOW or status == 429:
        return Blame.SLOW
    if code in FOR_A_PERSON:
        return Blame.PERSON
    if code in PASSING or status >= 500:
        return Blame.PASSING
    return Blame.REQUEST


def failures() -> tuple[type[BaseException], ...]:
    """What a client may raise when it is asked something: for an `except` clause."""
    import aiohttp
    from botocore import exceptions as boto

    return (boto.BotoCoreError, boto.ClientError, aiohttp.ClientError, OSError, TimeoutError)


def code_of(error: Any) -> str:
    """The service's code for what went wrong; '' if it is no answer of a service."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def status_of(error: Any) -> int:
    """The HTTP status of a service's answer; 0 if it is none."""
    response = getattr(error, "response", None)
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0) if isinstance(response, dict) else 0


def let_go(error: BaseException) -> None:
    """Forget what a call that failed has at hand: its request, above all, which may be megabytes.

    A client keeps the error in a variable before it raises it, so that each holds the other, and the collector that
    finds such rings comes seldom: a service that hangs would cost memory with each try.
    """
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is not None and each.__traceback__ is not None:
            traceback.clear_frames(each.__traceback__)
            each.__traceback__ = None  # also what is seen twice ends here
            left += [each.__cause__, each.__context__]


def told(error: BaseException) -> str:
    """An error for a person, without any secret."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        said, status = response.get("Error", {}), status_of(error)
        return f"{said.get('Code')}: {said.get('Message') or 'no reason given'}" + (f" (HTTP {status})" * bool(status))
    name = type(error).__name__
    if name in {"NoCredentialsError", "PartialCredentialsError"}:
        return "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or run under a role"
    if name == "NoRegionError":
        return "no region: set AWS_REGION, or write ?region=… behind the URL"
    return str(error) or name
