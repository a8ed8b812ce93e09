"""Every kind of security on a real broker: that it lets in who should be, and says clearly why it refuses others."""

import base64
import json
import time
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from flowkit.errors import BrokerError, BrokerRefused, ConfigError
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_client import started
from flowkit.source.kafka_reader import KafkaReaders
from flowkit.source.kafka_topics import KafkaTopics
from tests.kafka.real import Kafka
from tests.kafka.security import KEY_PASSWORD, PASSWORD, SCRAM_PASSWORD, SCRAM_USER, USER, Security

WRONG = "not-the-password"


def token(subject: str, seconds: float) -> str:
    """An unsigned JSON web token (RFC 7519), which Kafka's handler for tests accepts."""
    now = time.time()
    parts: list[dict[str, object]] = [{"alg": "none"}, {"sub": subject, "iat": now - 1, "exp": now + seconds}]
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


def security_of(kafka: Kafka) -> Security:
    assert kafka.security is not None
    return kafka.security


def address_of(kafka: Kafka, listener: str, query: str, **environ: str) -> KafkaAddress:
    ca = "" if listener == "sasl_plaintext" else f"&ca={security_of(kafka).ca}"
    return KafkaAddress.parse(f"kafka://{kafka.addresses[listener]}?timeout_ms=8000{query}{ca}", environ)


def login(user: str, password: str) -> dict[str, str]:
    return {"FLOWKIT_KAFKA_USERNAME": user, "FLOWKIT_KAFKA_PASSWORD": password}


async def there_and_back(address: KafkaAddress, name: str) -> None:
    """Every kind of client that there is: admin, producer, consumer."""
    async with KafkaTopics(address) as topics:
        await topics.create(name, 1)
        await topics.put(name, [(b"k", b"v", 1)])
        readers = KafkaReaders(topics)
        await readers.open()
        try:
            reader = await readers.source(name).open(0, None)
            while (batch := await reader.fetch(10)) is None:
                await readers.wait(5_000)
            assert batch.values == [b"v"]
        finally:
            await readers.close()


async def refusal(address: KafkaAddress, log: pytest.LogCaptureFixture) -> str:
    """What the error says; no secret is in it, nor in anything that was logged."""
    with log.at_level("DEBUG"), pytest.raises(BrokerError) as caught:
        async with KafkaTopics(address):
            pass
    message = str(caught.value)
    assert message.startswith(f"{address.url} cannot be used: ")
    for text in (message, repr(caught.value.__cause__), log.text):
        assert WRONG not in text
    return message


async def test_tls(secure_kafka: Kafka, name: str) -> None:
    await there_and_back(address_of(secure_kafka, "tls", ""), name)


async def test_mutual_tls(secure_kafka: Kafka, name: str) -> None:
    security = security_of(secure_kafka)
    query = f"&cert={security.cert}&key={security.key}"
    await there_and_back(address_of(secure_kafka, "mtls", query, FLOWKIT_KAFKA_KEY_PASSWORD=KEY_PASSWORD), name)


@pytest.mark.parametrize("listener", ["sasl_plaintext", "sasl_tls"])
@pytest.mark.parametrize(
    "sasl, user, password",
    [
        ("plain", USER, PASSWORD),
        ("scram-sha-256", SCRAM_USER, SCRAM_PASSWORD),
        ("scram-sha-512", SCRAM_USER, SCRAM_PASSWORD),
    ],
)
async def test_a_password(secure_kafka: Kafka, name: str, listener: str, sasl: str, user: str, password: str) -> None:
    query = f"&security={listener}&sasl={sasl}"
    await there_and_back(address_of(secure_kafka, listener, query, **login(user, password)), name)


async def test_a_token_that_is_renewed_on_disk(secure_kafka: Kafka, name: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(token("flowkit", 600))
    address = address_of(secure_kafka, "sasl_tls", "&sasl=oauthbearer", FLOWKIT_KAFKA_TOKEN_FILE=str(file))
    await there_and_back(address, name)
    file.write_text(token("flowkit", -600))
    with pytest.raises(BrokerError, match=r"it refuses what sasl=oauthbearer gave"):
        await there_and_back(address, name)
    file.write_text(token("flowkit", 600))
    await there_and_back(address, f"{name}-again")


async def test_a_token_that_is_over_when_the_connection_breaks(secure_kafka: Kafka, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(token("flowkit", 600))
    address = address_of(secure_kafka, "sasl_tls", "&sasl=oauthbearer", FLOWKIT_KAFKA_TOKEN_FILE=str(file))
    async with KafkaTopics(address) as topics:
        await topics.topics()
        file.write_text(token("flowkit", -600))
        secure_kafka.restart()
        with pytest.raises(BrokerError, match=r"listing topics: .*: it refuses what sasl=oauthbearer gave"):
            await topics.topics()
        file.write_text(token("flowkit", 600))
        await topics.topics()


@pytest.mark.parametrize("sasl, user", [("plain", USER), ("scram-sha-256", SCRAM_USER), ("scram-sha-512", "nobody")])
async def test_a_wrong_password(secure_kafka: Kafka, sasl: str, user: str, caplog: pytest.LogCaptureFixture) -> None:
    address = address_of(secure_kafka, "sasl_tls", f"&sasl={sasl}", **login(user, WRONG))
    message = await refusal(address, caplog)
    assert f"it refuses what sasl={sasl} gave: check the FLOWKIT_KAFKA_" in message


async def test_a_token_that_is_none(secure_kafka: Kafka, caplog: pytest.LogCaptureFixture) -> None:
    address = address_of(secure_kafka, "sasl_tls", "&sasl=oauthbearer", FLOWKIT_KAFKA_TOKEN=WRONG)
    assert "it refuses what sasl=oauthbearer gave" in await refusal(address, caplog)


async def test_a_token_that_cannot_be_had(
    secure_kafka: Kafka, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(token("flowkit", 600))
    address = address_of(secure_kafka, "sasl_tls", "&sasl=oauthbearer", FLOWKIT_KAFKA_TOKEN_FILE=str(file))
    client = AIOKafkaAdminClient(**address.client_options())
    file.unlink()
    with pytest.raises((BrokerError, ConfigError), match=r"FLOWKIT_KAFKA_TOKEN_FILE: .*cannot be read"):
        await started(client, address)


async def test_a_certificate_of_someone_else(secure_kafka: Kafka, caplog: pytest.LogCaptureFixture) -> None:
    url = f"kafka://{secure_kafka.addresses['tls']}?ca={security_of(secure_kafka).other_ca}"
    message = await refusal(KafkaAddress.parse(url, {}), caplog)
    assert "its certificate is not trusted" in message
    assert "is ca= the authority that signed it?" in message


async def test_mutual_tls_without_a_certificate(secure_kafka: Kafka, caplog: pytest.LogCaptureFixture) -> None:
    message = await refusal(address_of(secure_kafka, "mtls", ""), caplog)
    assert "does it want cert= and key=?" in message


async def test_tls_where_there_is_none(secure_kafka: Kafka, caplog: pytest.LogCaptureFixture) -> None:
    url = f"kafka://{secure_kafka.addresses['plaintext']}?ca={security_of(secure_kafka).ca}&timeout_ms=3000"
    assert "security=" in await refusal(KafkaAddress.parse(url, {}), caplog)


async def test_no_tls_where_there_is_some(secure_kafka: Kafka, caplog: pytest.LogCaptureFixture) -> None:
    url = f"kafka://{secure_kafka.addresses['tls']}?timeout_ms=3000"
    assert "security=" in await refusal(KafkaAddress.parse(url, {}), caplog)


async def test_a_mechanism_that_is_not_offered(secure_kafka: Kafka, caplog: pytest.LogCaptureFixture) -> None:
    url = f"kafka://{secure_kafka.addresses['plaintext']}?security=sasl_plaintext&sasl=plain&timeout_ms=3000"
    address = KafkaAddress.parse(url, login(USER, WRONG))
    assert "it takes no sasl=plain at this port" in await refusal(address, caplog)
    with pytest.raises(BrokerRefused):  # which nobody waits for
        await KafkaTopics(address).open()
