"""What `kafka://` may say, what it becomes for aiokafka, and that no secret is ever in it."""

import asyncio
import base64
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from flowkit.errors import ConfigError
from flowkit.source.kafka_address import KafkaAddress
from tests.kafka.security import KEY_PASSWORD, Security

SECRET = "hunter2"
LOGIN = {"FLOWKIT_KAFKA_USERNAME": "alice", "FLOWKIT_KAFKA_PASSWORD": SECRET}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Security:
    return Security(tmp_path_factory.mktemp("pem"))


def parse(url: str, **environ: str) -> KafkaAddress:
    return KafkaAddress.parse(url, environ)


def refusal(url: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        KafkaAddress.parse(url, environ)
    return str(caught.value)


@pytest.mark.parametrize(
    "hosts, servers",
    [
        ("one", ("one:9092",)),
        ("one:9094", ("one:9094",)),
        ("one:9094,two,10.0.0.3:1", ("one:9094", "two:9092", "10.0.0.3:1")),
        ("[::1]", ("[::1]:9092",)),
        ("[::1]:9094/", ("[::1]:9094",)),
    ],
)
def test_servers(hosts: str, servers: tuple[str, ...]) -> None:
    address = parse(f"kafka://{hosts}")
    assert address.servers == servers
    assert address.client_options() == {
        "bootstrap_servers": list(servers),
        "security_protocol": "PLAINTEXT",
        "request_timeout_ms": 15_000,
    }


@pytest.mark.parametrize("hosts", ["", ":9092", "one:", "one:x", "one:0", "one:65536", "one/topic", "one,,two"])
def test_a_server_that_is_none(hosts: str) -> None:
    assert "is no HOST:PORT" in refusal(f"kafka://{hosts}")


@pytest.mark.parametrize(
    "url",
    [
        f"kafka://alice:{SECRET}@one:9092",
        f"kafka://alice:{SECRET}?x@one:9092?security=tls",
        f"kafka://alice:{SECRET}/x@one",
        f"kafka://one?password={SECRET}",
        f"kafka://one?sasl_plain_password={SECRET}",
        f"kafka://one?{SECRET}",
        f"kafka://alice:{SECRET}",
    ],
)
def test_a_secret_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    message = refusal(url)
    assert SECRET not in message
    assert any(part in message for part in ("FLOWKIT_KAFKA_PASSWORD", "has no value", "is no HOST:PORT"))


def test_an_unknown_option_names_those_that_there_are() -> None:
    message = refusal("kafka://one?securty=tls")
    assert "unknown option 'securty'" in message
    for option in ("security", "sasl", "ca", "cert", "key", "region", "timeout_ms"):
        assert option in message


@pytest.mark.parametrize(
    "query, complaint",
    [
        ("security=ssl", "use one of plaintext, tls, sasl_plaintext, sasl_tls"),
        ("sasl=gssapi", "use one of plain, scram-sha-256, scram-sha-512, oauthbearer, msk-iam"),
        ("security=tls&security=tls", "given twice"),
        ("security=sasl_tls", "needs sasl="),
        ("security=tls&sasl=plain", "needs security=sasl_tls"),
        ("security=plaintext&ca=x", "ca= needs security=tls"),
        ("cert=x", "go together"),
        ("key=x", "go together"),
        ("sasl=plain&region=x", "region= is for sasl=msk-iam"),
        ("sasl=msk-iam", "needs region="),
        ("sasl=msk-iam&security=sasl_plaintext&region=x", "sasl_tls only"),
        ("timeout_ms=soon", "no number of milliseconds"),
        ("timeout_ms=0", "no number of milliseconds"),
    ],
)
def test_what_does_not_go_together(query: str, complaint: str) -> None:
    assert complaint in refusal(f"kafka://one?{query}", **LOGIN)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("kafka://one:x?security=ssl&sasl=gssapi&nix=1")
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    "query, security", [("sasl=plain", "sasl_tls"), ("security=sasl_plaintext&sasl=plain", "sasl_plaintext")]
)
def test_sasl_is_encrypted_unless_told_otherwise(query: str, security: str) -> None:
    assert parse(f"kafka://one?{query}", **LOGIN).security == security


@pytest.mark.parametrize("sasl", ["plain", "scram-sha-256", "scram-sha-512"])
def test_a_login_comes_from_the_environment(sasl: str) -> None:
    address = parse(f"kafka://one?sasl={sasl}", **LOGIN)
    options = address.client_options()
    assert options["security_protocol"] == "SASL_SSL"
    assert options["sasl_mechanism"] == sasl.upper()
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("alice", SECRET)
    assert isinstance(options["ssl_context"], ssl.SSLContext)


def test_a_password_file_is_read_at_each_use(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n")
    address = parse("kafka://one?sasl=plain", FLOWKIT_KAFKA_USERNAME="alice", FLOWKIT_KAFKA_PASSWORD_FILE=str(file))
    assert address.client_options()["sasl_plain_password"] == SECRET
    file.write_text("renewed")
    assert address.client_options()["sasl_plain_password"] == "renewed"
    file.unlink()
    with pytest.raises(ConfigError, match=r"PASSWORD_FILE: .*password cannot be read: No such file"):
        address.client_options()


@pytest.mark.parametrize("missing", ["USERNAME", "PASSWORD"])
def test_a_missing_login_names_its_variable(missing: str) -> None:
    environ = {name: value for name, value in LOGIN.items() if not name.endswith(missing)}
    message = refusal("kafka://one?sasl=plain", **environ)
    assert f"FLOWKIT_KAFKA_{missing}" in message
    assert SECRET not in message


def test_no_secret_is_in_what_people_see() -> None:
    address = parse("kafka://one,two?sasl=plain&timeout_ms=100", **LOGIN)
    assert address.url == str(address) == "kafka://one:9092,two:9092?security=sasl_tls&sasl=plain&timeout_ms=100"
    assert SECRET not in repr(address)
    assert address.redact(f"the broker said {SECRET}!") == "the broker said ***!"


def test_its_url_names_the_same_address(files: Security) -> None:
    address = parse(f"kafka://one?ca={files.ca}")
    assert address == parse(address.url)


def test_certificates(files: Security) -> None:
    address = parse(
        f"kafka://one?ca={files.ca}&cert={files.cert}&key={files.key}", FLOWKIT_KAFKA_KEY_PASSWORD=KEY_PASSWORD
    )
    assert address.security == "tls"
    context = address.client_options()["ssl_context"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert [authority["subject"] for authority in context.get_ca_certs()] == [((("commonName", "flowkit test CA"),),)]


@pytest.mark.parametrize("password", ["", SECRET])
def test_a_key_that_stays_shut(files: Security, password: str) -> None:
    message = refusal(
        f"kafka://one?ca={files.ca}&cert={files.cert}&key={files.key}", FLOWKIT_KAFKA_KEY_PASSWORD=password
    )
    assert "FLOWKIT_KAFKA_KEY_PASSWORD" in message
    assert SECRET not in message


@pytest.mark.parametrize("name", ["ca", "cert"])
def test_a_certificate_that_is_none(files: Security, tmp_path: Path, name: str) -> None:
    good = {"ca": files.ca, "cert": files.cert, "key": files.key}
    for bad, complaint in ((tmp_path / "missing", "No such file"), (Path(__file__), f"{name}=")):
        query = "&".join(f"{option}={path}" for option, path in (good | {name: bad}).items())
        message = refusal(f"kafka://one?{query}", FLOWKIT_KAFKA_KEY_PASSWORD=KEY_PASSWORD)
        assert complaint in message
        assert str(bad) in message


# --- tokens -----------------------------------------------------------------------------------------------------------


async def test_a_token_file_is_read_for_each_connection(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    address = parse("kafka://one?sasl=oauthbearer", FLOWKIT_KAFKA_TOKEN_FILE=str(file))
    options = address.client_options()
    assert options["sasl_mechanism"] == "OAUTHBEARER"
    provider = options["sasl_oauth_token_provider"]
    assert await provider.token() == "one"
    file.write_text("two")
    assert await provider.token() == "two"


async def test_a_token_that_is_gone_is_an_error_that_aiokafka_survives(tmp_path: Path) -> None:
    from aiokafka.errors import KafkaError

    file = tmp_path / "token"
    file.write_text("one")
    provider = parse("kafka://one?sasl=oauthbearer", FLOWKIT_KAFKA_TOKEN_FILE=str(file)).client_options()[
        "sasl_oauth_token_provider"
    ]
    file.unlink()
    with pytest.raises(KafkaError, match="TOKEN_FILE"):
        await provider.token()


def test_no_token_names_the_variables() -> None:
    assert "FLOWKIT_KAFKA_TOKEN_FILE" in refusal("kafka://one?sasl=oauthbearer")
    message = refusal("kafka://one?sasl=oauthbearer", FLOWKIT_KAFKA_TOKEN_URL="http://127.0.0.1:1/")
    assert "FLOWKIT_KAFKA_CLIENT_SECRET" in message


def test_a_secret_in_the_endpoints_url_is_refused_and_not_repeated() -> None:
    message = refusal("kafka://one?sasl=oauthbearer", FLOWKIT_KAFKA_TOKEN_URL=f"https://app:{SECRET}@one/token")
    assert "FLOWKIT_KAFKA_CLIENT_SECRET" in message
    assert SECRET not in message


@contextmanager
def endpoint(status: int, body: bytes) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A token endpoint, and the (authorization, body) of each request that it got."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers["Content-Length"])).decode()
            asked.append((self.headers["Authorization"], form))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/token", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def client_of(url: str) -> Any:
    address = parse(
        "kafka://one?sasl=oauthbearer",
        FLOWKIT_KAFKA_TOKEN_URL=url,
        FLOWKIT_KAFKA_CLIENT_ID="app",
        FLOWKIT_KAFKA_CLIENT_SECRET=SECRET,
        FLOWKIT_KAFKA_SCOPE="kafka read",
    )
    return address.client_options()["sasl_oauth_token_provider"]


async def test_client_credentials_give_a_token_that_is_kept_while_it_lives() -> None:
    with endpoint(200, b'{"access_token": "abc", "expires_in": 3600}') as (url, asked):
        provider = client_of(url)
        assert await asyncio.gather(*(provider.token() for _ in range(3))) == ["abc"] * 3
    login = base64.b64encode(f"app:{SECRET}".encode()).decode()
    assert asked == [(f"Basic {login}", "grant_type=client_credentials&scope=kafka+read")]


async def test_a_token_without_a_life_is_asked_for_each_time() -> None:
    with endpoint(200, b'{"access_token": "abc"}') as (url, asked):
        provider = client_of(url)
        await provider.token()
        await provider.token()
    assert len(asked) == 2


@pytest.mark.parametrize("status, body", [(401, b"{}"), (200, b"{}"), (200, b"no json"), (200, b"[]")])
async def test_an_endpoint_without_a_token(status: int, body: bytes) -> None:
    from aiokafka.errors import KafkaError

    with endpoint(status, body) as (url, _):
        with pytest.raises(KafkaError, match="token endpoint http") as caught:
            await client_of(url).token()
        assert SECRET not in str(caught.value)


# --- Amazon MSK -------------------------------------------------------------------------------------------------------


async def test_msk_tokens_are_signed_with_what_boto_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    options = parse("kafka://one:9098?sasl=msk-iam&region=eu-west-1").client_options()
    assert (options["security_protocol"], options["sasl_mechanism"]) == ("SASL_SSL", "OAUTHBEARER")
    token = await options["sasl_oauth_token_provider"].token()
    url = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
    assert url.startswith("https://kafka.eu-west-1.amazonaws.com/?Action=kafka-cluster%3AConnect")
    assert "AKIDEXAMPLE" in url
    assert SECRET not in url


def test_msk_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "aws_msk_iam_sasl_signer", None)
    assert "pip install 'flowkit[msk]'" in refusal("kafka://one?sasl=msk-iam&region=eu-west-1")
