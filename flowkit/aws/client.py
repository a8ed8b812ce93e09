"""Clients of Amazon's services, by aiobotocore, which is loaded when the first one is opened.

Credentials, region and endpoints come from where the AWS tools take them: environment, profile, web identity, container
and instance role, assumed role; `AWS_ENDPOINT_URL_<SERVICE>` for another server. What a URL says goes before. When a
service says that credentials have expired, they are had anew from there: `renewing`.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from flowkit.aws.failures import told
from flowkit.errors import ConfigError

NAMES = ("region", "endpoint", "profile", "retries", "tries", "timeout")
"""What every URL of an Amazon service may say behind `?`."""

RETRIES = ("standard", "adaptive")
CONNECT_SECONDS = 10.0


class AwsOptions(NamedTuple):
    """How a service is reached: `?region=…&endpoint=http://…&profile=…&retries=adaptive&tries=5&timeout=30`.

    `tries` requests are made at most before a call fails (botocore's, with its waits: `retries`); one waits `timeout`
    seconds for an answer. None: as environment or profile says (AWS_RETRY_MODE, AWS_MAX_ATTEMPTS), else botocore.
    """

    region: str | None = None
    endpoint: str | None = None
    profile: str | None = None
    retries: str | None = None
    tries: int | None = None
    timeout: float = 30.0

    @classmethod
    def take(cls, options: Mapping[str, str], where: str) -> "tuple[AwsOptions, dict[str, str]]":
        """Those of `options` that are for every service, and the others. Raises ConfigError that begins with `where`.

        >>> AwsOptions.take({"region": "eu-west-1", "ttl": "at"}, "x")[1]
        {'ttl': 'at'}
        """
        problems = []
        retries, endpoint = options.get("retries"), options.get("endpoint")
        if retries is not None and retries not in RETRIES:
            problems.append(f"{where}: retries={retries}: there are {', '.join(RETRIES)}")
        if endpoint is not None and not endpoint.startswith(("http://", "https://")):
            problems.append(f"{where}: endpoint={endpoint}: write http://HOST:PORT or https://HOST")
        numbers: dict[str, float] = {}
        for name, least in (("tries", 1.0), ("timeout", 0.1)):
            if name in options:
                try:
                    numbers[name] = float(options[name])
                except ValueError:
                    numbers[name] = -1
                if not least <= numbers[name] <= 1000:
                    problems.append(f"{where}: {name}={options[name]}: needs a number from {least:g} to 1000")
        if problems:
            raise ConfigError(*problems)
        ours = cls(
            options.get("region") or None,
            endpoint or None,
            options.get("profile") or None,
            retries,
            int(numbers["tries"]) if "tries" in numbers else None,
            numbers.get("timeout", 30.0),
        )
        return ours, {name: value for name, value in options.items() if name not in NAMES}


def session(profile: str | None, region: str | None, where: str) -> tuple[Any, Any]:
    """A session, and its credentials, whose `watch` has to be told of the client that is made: see `renewing`."""
    from flowkit.aws.renewing import renewing_session

    return renewing_session(profile, region, where)


@asynccontextmanager
async def open_client(
    service: str,
    options: AwsOptions,
    where: str,
    *,
    connections: int = 32,
    times: Callable[[Any], Any] | None = None,
    **config: Any,
) -> AsyncIterator[Any]:
    """A client of `service` ("kinesis"). Raises ConfigError, after `where`.

    `times` makes something of each time in an answer, in place of a datetime. `config` is more of botocore's Config.
    """
    from aiobotocore.config import AioConfig
    from botocore.exceptions import BotoCoreError

    from flowkit.aws.http import Http

    retries: dict[str, Any] = {}
    if options.retries is not None:
        retries["mode"] = options.retries
    if options.tries is not None:
        retries["total_max_attempts"] = options.tries
    settings = AioConfig(
        connect_timeout=min(CONNECT_SECONDS, options.timeout),
        read_timeout=options.timeout,
        max_pool_connections=connections,
        http_session_cls=Http,
        **({"retries": retries} if retries else {}),
        **config,
    )
    try:
        found, credentials = session(options.profile, options.region, where)
        if found.get_config_variable("retry_mode") == "legacy" and "mode" not in retries:
            settings = settings.merge(AioConfig(retries={"mode": "standard", **retries}))
        if times is not None:
            found.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=times)
        making = found.create_client(
            service, region_name=options.region, endpoint_url=options.endpoint, config=settings
        )
        client = await making.__aenter__()
        credentials.watch(client)
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"{where}: {told(error)}") from None
    try:
        yield client
    finally:
        await making.__aexit__(None, None, None)
