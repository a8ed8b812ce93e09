"""`flowkit receive firehose`: a process of its own, killed in the middle; and what it refuses to begin with."""

import asyncio
import base64
import json
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from flowkit.clock import SystemClock
from flowkit.source.embedded import EmbeddedBroker
from tests.aws.servers import free_port
from tests.cli.place import Place

RECORDS, A_REQUEST = 20_000, 100
BROKER = "embedded://topics"


def receiver(place: Place, port: int, *words: str) -> "subprocess.Popen[bytes]":
    words = ("receive", "firehose", "--broker", BROKER, "--topic", "t", "--listen", f"127.0.0.1:{port}", *words)
    with (place.path / "log").open("ab") as log:
        return place.spawn(*words, stdout=log, stderr=log)


class Firehose:
    """Delivers requests of numbered records, as often as it takes. `acknowledged` are the numbers of those taken."""

    def __init__(self, url: str, secret: str) -> None:
        self.url, self.secret = url, secret
        self.acknowledged: set[int] = set()
        self.tries = 0
        self.enough = asyncio.Event()

    async def deliver(self, session: aiohttp.ClientSession, first: int) -> None:
        """One request, until it is taken."""
        records = [{"data": base64.b64encode(b'{"k":"%d"}' % n).decode()} for n in range(first, first + A_REQUEST)]
        data = json.dumps({"requestId": f"r{first}", "timestamp": 1, "records": records})
        headers = {
            "Content-Type": "application/json",
            "X-Amz-Firehose-Request-Id": f"r{first}",
            "X-Amz-Firehose-Access-Key": self.secret,
        }
        while True:
            self.tries += 1
            try:
                async with session.post(self.url, data=data, headers=headers) as answer:
                    assert answer.status == 200, await answer.text()
                    assert json.loads(await answer.read())["requestId"] == f"r{first}"
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)
                continue
            self.acknowledged.add(first)
            if len(self.acknowledged) >= 60:
                self.enough.set()
            return


async def test_killed_in_the_middle_all_that_was_acknowledged_is_there(place: Place) -> None:
    (place.path / "key").write_text("old\nsecret\n")
    (place.path / "key").chmod(0o600)
    async with EmbeddedBroker(place.path / "topics", SystemClock()) as broker:
        await broker.create("t", 3)
    port = free_port()
    words = ("--key", "k", "--access-key-file", "key")
    firehose = Firehose(f"http://127.0.0.1:{port}/", "secret")
    process = receiver(place, port, *words)
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=20)) as session:
            jobs = [asyncio.create_task(firehose.deliver(session, n)) for n in range(0, RECORDS, A_REQUEST)]
            await asyncio.wait_for(firehose.enough.wait(), 60)
            process.kill()
            process.wait(10)
            before = set(firehose.acknowledged)
            assert A_REQUEST * len(before) < RECORDS
            there = await numbers(place.path)
            assert {n for first in before for n in range(first, first + A_REQUEST)} <= set(there)
            process = receiver(place, port, *words)
            await asyncio.wait_for(asyncio.gather(*jobs), 60)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 30) == 0
    finally:
        process.kill()
    there = await numbers(place.path)
    assert set(there) == set(range(RECORDS))
    # What was in and not acknowledged came again: of the requests that were under way, and of no others.
    assert len(there) - RECORDS <= 20 * A_REQUEST
    log = (place.path / "log").read_text()
    assert "secret" not in log


async def numbers(path: Path) -> list[int]:
    """What is in the topic; each record lies where its key belongs."""
    found: list[int] = []
    async with EmbeddedBroker(path / "topics", SystemClock()) as broker:
        for partition, end in enumerate(await broker.end_offsets("t")):
            batch = await broker.read("t", partition, 0, end)
            assert len(batch) == end
            assert batch.keys is not None
            for key, value in zip(batch.keys, batch.values, strict=True):
                number = json.loads(value or b"")["k"]
                assert key == number.encode()
                found.append(int(number))
    return found


def test_with_a_certificate_it_speaks_https(place: Place) -> None:
    place.call("topics", "create", "t", "--broker", BROKER)
    place.write("both.pem", certificate())
    port = free_port()
    process = receiver(place, port, "--certificate", "both.pem")
    trusting = ssl.create_default_context(cafile=str(place.path / "both.pem"))
    body = json.dumps({"requestId": "r", "timestamp": 1, "records": [{"data": "eA=="}]}).encode()
    headers = {"Content-Type": "application/json", "X-Amz-Firehose-Request-Id": "r"}
    request = urllib.request.Request(f"https://localhost:{port}/", body, headers)
    try:
        end = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(request, context=trusting, timeout=10) as answer:
                    assert json.loads(answer.read())["requestId"] == "r"
                break
            except urllib.error.URLError as error:
                if not isinstance(error.reason, ConnectionRefusedError) or time.monotonic() > end:
                    raise
                time.sleep(0.05)
    finally:
        process.terminate()
        assert process.wait(30) == 0


def certificate() -> bytes:
    """One for localhost, signed by itself, and its private key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(pem) + private


def test_it_says_where_it_listens_and_what_it_took(place: Place) -> None:
    place.call("topics", "create", "t", "--broker", BROKER)
    port = free_port()
    process = receiver(place, port)
    end = time.monotonic() + 30
    while "receiving" not in (place.path / "log").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 0
    log = (place.path / "log").read_text()
    assert str(port) in log
    assert "received" in log


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ("--listen", "0.0.0.0:80"),
            "so a key is needed: give --access-key-file, or listen at 127.0.0.1",
        ),
        (("--certificate", "none"), "--certificate none: cannot be used: [Errno 2] No such file or directory"),
        (("--certificate", "empty"), "--certificate empty: cannot be used: "),
        (("--listen", "x"), "--listen x: write PORT"),
        (("--topic", "none-such"), "no topic 'none-such' at embedded://topics: make it first"),
        (("--broker", "memory://x"), "lives in one process only"),
        (("--access-key-file", "open"), "--access-key-file open: is open to others (mode 0644): chmod 0600 it"),
        (("--access-key-file", "empty"), "--access-key-file empty: holds no key"),
        (("--access-key-file", "none"), "--access-key-file none: cannot be read: No such file or directory"),
    ],
)
def test_what_is_wrong_is_told_before_it_listens(place: Place, words: tuple[str, ...], problem: str) -> None:
    place.call("topics", "create", "t", "--broker", BROKER)
    place.write("open", "secret").chmod(0o644)
    place.write("empty", " \n").chmod(0o600)
    usual = {"--broker": BROKER, "--topic": "t", "--listen": "0"}
    usual |= dict(zip(words[::2], words[1::2], strict=True))
    done = place.call("receive", "firehose", *(word for pair in usual.items() for word in pair))
    assert done.code == 2
    assert problem in done.err
