"""Clients of aiokafka that start or say why not, and its errors as ours.

aiokafka logs why it cannot connect and raises only that it cannot. So, once it has failed, the servers are asked again
one by one, which tells a refused password from an unknown certificate from a broker that is away.
"""

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

import anyio
import structlog
from aiokafka import errors as kafka
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.util import create_task

from flowkit.errors import BrokerError, BrokerRefused, FlowkitError
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_tokens import NoToken

AWAY = (kafka.KafkaError, OSError, TimeoutError, EOFError)
"""What aiokafka lets through when a broker is away or refuses us."""

LOOK_AGAIN_MS = 5_000
"""At most so long is spent on asking again why a start failed."""

DENIED = (
    kafka.SaslAuthenticationFailed,
    kafka.UnsupportedSaslMechanismError,
    kafka.IllegalSaslStateError,  # a listener without SASL; or a refused token, see RefusedToken
    kafka.TopicAuthorizationFailedError,
    kafka.GroupAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.TransactionalIdAuthorizationFailed,
    ssl.SSLCertVerificationError,
)
"""What does not pass by waiting: who we are, or what we may do."""

STOP_SECONDS = 1.0
"""So long a client may take to finish in good order."""

log = structlog.get_logger("flowkit.kafka")

Client = TypeVar("Client", bound=Any)


class RefusedToken(kafka.SaslAuthenticationFailed):  # type: ignore[misc]  # aiokafka has no types
    """A cluster that names no broker.

    A refused token is answered by a challenge (RFC 7628, section 3.2.2), which aiokafka takes for a welcome. After that
    the broker answers every request by an error, which aiokafka reads as a cluster without brokers.
    """


class NoSecrets(logging.Filter):
    """Keeps back what aiokafka says about signing in: at DEBUG, passwords and tokens as they are sent."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.DEBUG or "SaslAuthenticate" not in record.getMessage()


logging.getLogger("aiokafka.conn").addFilter(NoSecrets())
# Where a process has set up no logs, as short commands do not, Python prints these lines as they are, to stderr: there
# our own error says it. Handlers of others still hear of them.
logging.getLogger("aiokafka").addHandler(logging.NullHandler())


async def started(client: Client, address: KafkaAddress) -> Client:
    """`client`, once it has started. Raises BrokerError, saying why, if it cannot; then it is closed.

    If waiting would not help, that is a BrokerRefused.
    """
    if (accumulator := getattr(client, "_message_accumulator", None)) is not None:
        _hear_failures(accumulator)
    try:
        with anyio.fail_after(address.timeout_ms / 1000):
            await client.start()
        if not _inner(client).cluster.brokers():
            raise no_brokers(address)
    except BaseException as error:
        await stopped(client)
        if not isinstance(error, AWAY):
            raise
        refused = isinstance(error, kafka.SaslAuthenticationFailed)
        why = error_of(error)(_reason(error, address)) if refused else await why_not(address)
        raise type(why)(f"{address.url} cannot be used: {why}") from None
    return client


def _hear_failures(accumulator: Any) -> None:
    """What fails with a fenced producer is told to who sent it, and once more to who waits for room in its batch: where
    nobody does, asyncio would complain.
    """
    fail_all = accumulator.fail_all

    def heard(error: BaseException) -> None:
        batches = [batch for waiting in accumulator._batches.values() for batch in waiting]  # noqa: SLF001
        fail_all(error)
        for batch in batches:
            batch._drain_waiter.exception()  # noqa: SLF001

    accumulator.fail_all = heard


async def all_sent(futures: Iterable[Awaitable[Any]]) -> list[Any]:
    """What became of all that was sent; the first failure is raised once each has been heard."""
    told = await asyncio.gather(*futures, return_exceptions=True)
    for error in told:
        if isinstance(error, BaseException):
            raise error
    return told


async def stopped(client: Any) -> None:
    """Stop a client, or close it, whatever state it is in; a cancelled caller still lets go of the connections."""
    with anyio.CancelScope(shield=True):
        if not await _ends(client, client.stop() if hasattr(client, "stop") else client.close()):
            await _ends(client, _let_go(client))
            await _inner(client).close()
        if (sender := getattr(client, "_sender", None)) is not None:
            await _end_strays(sender)
            await _inner(client).close()
        # A producer that is fenced tells it to who sends, and once more to who waits for the end of the transaction:
        # where nobody does, asyncio would complain.
        waiter = getattr(getattr(client, "_txn_manager", None), "_transaction_waiter", None)
        if waiter is not None and waiter.done() and not waiter.cancelled():
            waiter.exception()


async def _ends(client: Any, stopping: Awaitable[None]) -> bool:
    """True if that is done in time; what failed in the client's background is raised once more by it."""
    with anyio.move_on_after(STOP_SECONDS) as scope:
        try:
            await stopping
        except AWAY as error:
            log.debug("client stopped in disorder", client=type(client).__name__, error=repr(error))
            return False
        except asyncio.CancelledError:  # a task of the client's own, which it cancels and then waits for
            if scope.cancel_called or _is_cancelled():
                raise
            return False
        return True
    return False


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _let_go(client: Any) -> None:
    """End what goes on in the background of a client that could not end by itself.

    A producer flushes first, and cannot while the broker is away. A member of a group waits first for the round that
    is under way, and would not leave, so that the others waited for it until its session had run out.
    """
    if (sender := getattr(client, "_sender", None)) is not None:
        client._message_accumulator.fail_all(kafka.ProducerClosed())  # noqa: SLF001  # else its flush waits for ever
        await sender.close()
    if (fetcher := getattr(client, "_fetcher", None)) is not None:
        await fetcher.close()
    if (heartbeats := getattr(getattr(client, "_coordinator", None), "_stop_heartbeat_task", None)) is not None:
        await heartbeats()
        await client._coordinator._maybe_leave_group()  # noqa: SLF001


async def _end_strays(sender: Any) -> None:
    """End the requests that a producer had under way when it was fenced, all but the one that was told so.

    aiokafka forgets them (`Sender._sender_routine` waits for them only where it is cancelled): they would try for ever,
    each time by a connection that nobody closes, or fail with nobody to hear it.
    """
    strays = [task for task in asyncio.all_tasks() if _is_of(task, sender)]
    for task in strays:
        task.cancel()
    await asyncio.gather(*strays, return_exceptions=True)


def _is_of(task: "asyncio.Task[Any]", owner: Any) -> bool:
    """True if a task runs a method of `owner`."""
    frame = getattr(task.get_coro(), "cr_frame", None)
    return frame is not None and frame.f_locals.get("self") is owner


def _inner(client: Any) -> Any:
    """The connections of a producer, a consumer or an admin client."""
    return client.client if hasattr(client, "client") else client._client  # noqa: SLF001


async def why_not(address: KafkaAddress) -> BrokerError:
    """What each server says when it is asked alone; BrokerRefused if one refuses us and none does not."""
    options = address.client_options()
    options["request_timeout_ms"] = min(address.timeout_ms, LOOK_AGAIN_MS)
    servers = options.pop("bootstrap_servers")
    answers: dict[str, str] = {}
    kinds: set[type[BrokerError]] = set()

    async def ask(server: str) -> None:
        host, _, port = server.rpartition(":")
        connection = AIOKafkaConnection(host.strip("[]"), int(port), **options)
        try:
            await connection.connect()
            told = await connection.send(MetadataRequest([]))
            if not told.brokers:
                raise no_brokers(address)
            answers[server] = "it answers now, so try again"
            kinds.add(BrokerError)
        except (*AWAY, FlowkitError) as error:
            answers[server] = _reason(error, address)
            if (kind := error_of(error)) is BrokerRefused:
                kinds.add(kind)
        finally:
            if connection._protocol is not None:  # noqa: SLF001  # else there is nothing to wait for
                await connection.close()
            for _ in range(3):
                await asyncio.sleep(0)  # asyncio closes the socket of a failed handshake in the loop's next turns

    with anyio.move_on_after(options["request_timeout_ms"] / 1000 + 1):
        await asyncio.gather(*(create_task(ask(server)) for server in servers))
    kind = BrokerRefused if kinds == {BrokerRefused} else BrokerError
    return kind("; ".join(f"{server}: {answers.get(server, _silent(address))}" for server in servers))


def error_of(error: BaseException) -> type[BrokerError]:
    """Which of ours an error of aiokafka is: whether waiting may help."""
    return BrokerRefused if isinstance(error, DENIED) else BrokerError


def no_brokers(address: KafkaAddress) -> BaseException:
    """What an answer means that names no broker: see RefusedToken."""
    return kafka.NoBrokersAvailable() if address.sasl is None else RefusedToken()


def broker_error(address: KafkaAddress, doing: str, error: BaseException | None) -> BrokerError:
    """`error` of aiokafka as ours: what was being done at which cluster, and what came of it."""
    reason = _silent(address) if error is None else _reason(error, address)
    kind = BrokerError if error is None else error_of(error)
    return kind(f"{address.url}: {doing}: {reason}")


def _silent(address: KafkaAddress) -> str:
    return f"no answer within {address.timeout_ms} ms"


def _reason(error: BaseException, address: KafkaAddress) -> str:
    """One error for a person, without any secret."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted ({error.verify_message}): {_cure(error.verify_code)}"
        case ssl.SSLError():
            return f"TLS failed ({error.reason or error}): is security= right, and does it want cert= and key=?"
        case socket.gaierror():
            return "its name is not known"
        case kafka.SaslAuthenticationFailed():
            return f"it refuses what sasl={address.sasl} gave: check the FLOWKIT_KAFKA_… variables and their files"
        case kafka.UnsupportedSaslMechanismError():
            return f"it does not offer sasl={address.sasl}"
        case kafka.IllegalSaslStateError() if address.sasl in ("oauthbearer", "msk-iam"):  # see RefusedToken
            return (
                f"it refuses what sasl={address.sasl} gave (check the FLOWKIT_KAFKA_… variables and their files), or "
                "takes no sasl= at this port"
            )
        case kafka.IllegalSaslStateError():
            return f"it takes no sasl={address.sasl} at this port: is it the right one, and is security= right?"
        case kafka.MessageSizeTooLargeError() | kafka.RecordListTooLargeError():
            return "it takes no record as large as that: raise the topic's max.message.bytes"
        case NoToken():
            return RuntimeError.__str__(error)
        case TimeoutError() | kafka.RequestTimedOutError() | kafka.KafkaTimeoutError():
            return _silent(address)
        case kafka.KafkaConnectionError() | EOFError() | ConnectionResetError() | BrokenPipeError():
            return "it closed the connection: is security= right, and does it want cert= and key=?"
        case OSError():
            return (os.strerror(error.errno) if error.errno else type(error).__name__).lower()
    return address.redact(str(error) or type(error).__name__)


def _cure(verify_code: int) -> str:
    """What helps against a certificate that OpenSSL does not trust, by its X509_V_ERR_… number.

    >>> _cure(10), _cure(20)
    ('it has to be renewed, or the clock here is wrong', 'is ca= the authority that signed it?')
    """
    match verify_code:
        case 9 | 10:  # not yet valid, expired
            return "it has to be renewed, or the clock here is wrong"
        case 62 | 64:  # host name, IP address
            return "name the broker as its certificate does; its advertised.listeners have to, too"
        case _:
            return "is ca= the authority that signed it?"
