"""`kafka://host:port,host:port?option=value`: which cluster, by which security. Secrets never stand in the URL.

They come from the environment, and each may come from a file instead, named by the same variable with `_FILE`:

    sasl=plain, scram-sha-…    FLOWKIT_KAFKA_USERNAME, FLOWKIT_KAFKA_PASSWORD
    sasl=oauthbearer           FLOWKIT_KAFKA_TOKEN (better FLOWKIT_KAFKA_TOKEN_FILE: it is read anew for each
                               connection), or FLOWKIT_KAFKA_TOKEN_URL, FLOWKIT_KAFKA_CLIENT_ID,
                               FLOWKIT_KAFKA_CLIENT_SECRET and, where wanted, FLOWKIT_KAFKA_SCOPE
    sasl=msk-iam               what boto finds: its variables, files, or the role of the machine
    key=FILE, encrypted        FLOWKIT_KAFKA_KEY_PASSWORD
"""

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args
from urllib.parse import parse_qsl, quote

from flowkit.errors import ConfigError

SecurityName = Literal["plaintext", "tls", "sasl_plaintext", "sasl_tls"]
SaslName = Literal["plain", "scram-sha-256", "scram-sha-512", "oauthbearer", "msk-iam"]

PROTOCOLS: dict[str, str] = {
    "plaintext": "PLAINTEXT",
    "tls": "SSL",
    "sasl_plaintext": "SASL_PLAINTEXT",
    "sasl_tls": "SASL_SSL",
}
OPTIONS = ("security", "sasl", "ca", "cert", "key", "region", "timeout_ms")
DEFAULT_PORT = 9092
DEFAULT_TIMEOUT_MS = 15_000
PREFIX = "FLOWKIT_KAFKA_"


@dataclass(frozen=True)
class KafkaAddress:
    """A cluster and how to speak to it. It holds no secret: `client_options` reads them when a client is made.

    `ca` is a file of certificates to trust (None: the system's); `cert` and `key` are ours, for mutual TLS. `region` is
    for msk-iam. A broker that does not answer within `timeout_ms` counts as away.
    """

    servers: tuple[str, ...]
    security: SecurityName = "plaintext"
    sasl: SaslName | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    region: str | None = None
    timeout_ms: int = DEFAULT_TIMEOUT_MS
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False, compare=False)

    @classmethod
    def parse(cls, url: str, environ: Mapping[str, str] | None = None) -> "KafkaAddress":
        """The address that `url` names; `environ` stands in for the process's environment.

        Raises ConfigError naming everything that is wrong, a file or a variable that is missing included.

        >>> KafkaAddress.parse("kafka://one,two:9094?security=tls").servers
        ('one:9092', 'two:9094')
        """
        scheme, _, rest = url.partition("://")
        if scheme != "kafka":
            raise ConfigError("a Kafka cluster is named by kafka://HOST:PORT,HOST:PORT?option=value")
        if "@" in rest:  # wherever it stands: a password may hold ? and /, and nothing of it must be repeated
            raise ConfigError(
                "kafka://: the URL has an @, but no secret may stand in it: set FLOWKIT_KAFKA_USERNAME and "
                "FLOWKIT_KAFKA_PASSWORD (or FLOWKIT_KAFKA_PASSWORD_FILE); in a file's name write %40"
            )
        hosts, _, query = rest.partition("?")
        servers, problems = _servers(hosts)
        options = _options(query, problems)
        if problems:
            raise ConfigError(*problems)
        address = cls(servers, **options, environ=os.environ if environ is None else environ)
        if problems := address._problems():
            raise ConfigError(*problems)
        return address

    @property
    def url(self) -> str:
        """The address as a URL, for people and logs. No secret is in it."""
        said = [(name, getattr(self, name)) for name in OPTIONS]
        defaults = {each.name: each.default for each in fields(self)}
        query = "&".join(f"{name}={quote(str(value), safe='/')}" for name, value in said if value != defaults[name])
        return f"kafka://{','.join(self.servers)}" + (f"?{query}" if query else "")

    def __str__(self) -> str:
        return self.url

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments for every client of aiokafka. They hold secrets: they are for no log and no error.

        Raises ConfigError if a secret or a certificate cannot be read.
        """
        options: dict[str, Any] = {
            "bootstrap_servers": list(self.servers),
            "security_protocol": PROTOCOLS[self.security],
            "request_timeout_ms": self.timeout_ms,
        }
        if self.security.endswith("tls"):
            options["ssl_context"] = self._ssl_context()
        if self.sasl in ("plain", "scram-sha-256", "scram-sha-512"):
            options["sasl_mechanism"] = self.sasl.upper()
            options["sasl_plain_username"] = self._need("USERNAME")
            options["sasl_plain_password"] = self._need("PASSWORD")
        elif self.sasl is not None:
            from flowkit.source.kafka_tokens import token_provider

            options["sasl_mechanism"] = "OAUTHBEARER"
            options["sasl_oauth_token_provider"] = token_provider(self)
        return options

    def secret(self, name: str) -> str | None:
        """FLOWKIT_KAFKA_`name`, or what the file in FLOWKIT_KAFKA_`name`_FILE holds now; None if neither is set.

        Raises ConfigError if the file cannot be read.
        """
        value = self.environ.get(PREFIX + name)
        if value is not None:
            return value
        path = self.environ.get(f"{PREFIX}{name}_FILE")
        if path is None:
            return None
        try:
            return Path(path).read_text(encoding="utf-8").strip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
            raise ConfigError(f"{PREFIX}{name}_FILE: {path} cannot be read: {reason}") from None

    def redact(self, text: str) -> str:
        """`text` without the secrets of this address, for messages that come from elsewhere."""
        for name in ("PASSWORD", "TOKEN", "CLIENT_SECRET", "KEY_PASSWORD"):
            try:
                secret = self.secret(name)
            except ConfigError:
                continue
            if secret:
                text = text.replace(secret, "***")
        return text

    def _need(self, name: str) -> str:
        value = self.secret(name)
        if not value:
            raise ConfigError(f"{self.url}: sasl={self.sasl} needs {PREFIX}{name}, or {PREFIX}{name}_FILE")
        return value

    def _problems(self) -> list[str]:
        """What does not go together, and what is missing on this machine."""
        found: list[str] = []
        if self.security.startswith("sasl") and self.sasl is None:
            found.append(f"{self.url}: security={self.security} needs sasl=, one of {_choice(SaslName)}")
        if self.sasl and not self.security.startswith("sasl"):
            found.append(f"{self.url}: sasl={self.sasl} needs security=sasl_tls or sasl_plaintext")
        if not self.security.endswith("tls"):
            found += [
                f"{self.url}: {name}= needs security=tls or sasl_tls"
                for name in ("ca", "cert", "key")
                if getattr(self, name)
            ]
        if bool(self.cert) != bool(self.key):
            found.append(f"{self.url}: cert= and key= go together: the certificate and its private key, in PEM")
        if self.sasl == "msk-iam":
            if self.security == "sasl_plaintext":
                found.append(f"{self.url}: sasl=msk-iam is for security=sasl_tls only")
            if not self.region and not self.environ.get("AWS_REGION"):
                found.append(f"{self.url}: sasl=msk-iam needs region=, or AWS_REGION in the environment")
        elif self.region:
            found.append(f"{self.url}: region= is for sasl=msk-iam only")
        if not found:
            try:
                self.client_options()  # reads every file and variable
            except ConfigError as error:
                found += error.problems
        return found

    def _ssl_context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{self.url}: ca={self.ca} is no file of PEM certificates ({_reason(error)})") from None
        if self.cert is None:
            return context
        password = self.secret("KEY_PASSWORD") or ""  # without one, OpenSSL would ask at the terminal
        try:
            context.load_cert_chain(self.cert, self.key, lambda: password)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise ConfigError(
                f"{self.url}: cert={self.cert} and key={self.key} cannot be used ({_reason(error)}): both are PEM "
                f"files that belong together, and an encrypted key needs {PREFIX}KEY_PASSWORD (or …_FILE)"
            ) from None
        return context


def _servers(hosts: str) -> tuple[tuple[str, ...], list[str]]:
    servers: list[str] = []
    problems: list[str] = []
    for server in hosts.rstrip("/").split(","):
        host, colon, port = server.strip().rpartition(":")
        if not colon or server.strip().endswith("]"):  # [::1] has colons and no port
            host, port = server.strip(), str(DEFAULT_PORT)
        if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65_536:
            # What stands after the colon is not repeated: it may be a password.
            problems.append(f"kafka://: {host!r} is no HOST:PORT; use kafka://HOST:PORT,HOST:PORT?option=value")
        servers.append(f"{host}:{port}")
    return tuple(servers), problems


def _options(query: str, problems: list[str]) -> dict[str, Any]:
    """Options that are well-formed, with the security that the others imply; adds to `problems`."""
    found: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        if "=" not in part:
            problems.append("kafka://: an option has no value; write ?name=value&name=value")
            continue
        ((name, value),) = parse_qsl(part, keep_blank_values=True)
        if name not in OPTIONS:  # the value may be a secret
            problems.append(
                f"kafka://: unknown option {name!r}; there are {', '.join(OPTIONS)}. Secrets come from the "
                f"environment: {PREFIX}USERNAME, {PREFIX}PASSWORD, {PREFIX}TOKEN_FILE, {PREFIX}KEY_PASSWORD"
            )
        elif name in found:
            problems.append(f"kafka://: {name}= is given twice")
        else:
            found[name] = value
    for name, names in (("security", SecurityName), ("sasl", SaslName)):
        if name in found and found[name] not in get_args(names):
            problems.append(f"kafka://: {name}={found[name]} is not known; use one of {_choice(names)}")
    if "timeout_ms" in found:
        if not found["timeout_ms"].isdecimal() or int(found["timeout_ms"]) < 1:
            problems.append(f"kafka://: timeout_ms={found['timeout_ms']} is no number of milliseconds")
        else:
            found["timeout_ms"] = int(found["timeout_ms"])
    if "security" not in found:  # the safe reading: whoever names SASL or a certificate wants encryption
        if "sasl" in found:
            found["security"] = "sasl_tls"
        elif {"ca", "cert", "key"} & found.keys():
            found["security"] = "tls"
    return found


def _choice(names: Any) -> str:
    return ", ".join(cast("tuple[str, ...]", get_args(names)))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
