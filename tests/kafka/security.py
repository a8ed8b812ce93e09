"""What a test broker needs for TLS and SASL: a certificate authority, certificates, users and their passwords."""

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LISTENERS = {"tls": "SSL", "mtls": "SSL", "sasl_plaintext": "SASL_PLAINTEXT", "sasl_tls": "SASL_SSL"}
"""The protocol of each listener beside the plain one."""

USER, PASSWORD = "alice", "a;lice's=pass word"
SCRAM_USER, SCRAM_PASSWORD = "sam", "sams-secret"  # StorageTool takes no commas
KEY_PASSWORD = "key-password"

MODULES = "org.apache.kafka.common.security"


class Security:
    """Files of a small authority.

    In `directory`: `ca.pem`, `other-ca.pem` (which signed nothing), `client.pem` and `client.key`, which is encrypted
    by KEY_PASSWORD, and the broker's own.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.ca, self.other_ca = directory / "ca.pem", directory / "other-ca.pem"
        self.cert, self.key = directory / "client.pem", directory / "client.key"
        self._broker = directory / "broker.pem"
        key, ca = _authority("flowkit test CA")
        self.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
        self.other_ca.write_bytes(_authority("another CA")[1].public_bytes(serialization.Encoding.PEM))
        broker_key, broker = _signed("broker", key, ca)
        self._broker.write_bytes(
            _pem(broker_key, serialization.NoEncryption()) + broker.public_bytes(serialization.Encoding.PEM)
        )
        client_key, client = _signed("client", key, ca)
        self.cert.write_bytes(client.public_bytes(serialization.Encoding.PEM))
        self.key.write_bytes(_pem(client_key, serialization.BestAvailableEncryption(KEY_PASSWORD.encode())))

    def scram_users(self) -> list[str]:
        """Arguments of StorageTool that make SCRAM_USER for both hashes."""
        return [
            part
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for part in ("--add-scram", f'{mechanism}=[name={SCRAM_USER},password="{SCRAM_PASSWORD}"]')
        ]

    def properties(self) -> dict[str, str]:
        """The lines of server.properties."""
        password = PASSWORD.replace("\\", "\\\\").replace('"', '\\"')
        jaas = {
            "plain": f'{MODULES}.plain.PlainLoginModule required user_{USER}="{password}";',
            "scram-sha-256": f"{MODULES}.scram.ScramLoginModule required;",
            "scram-sha-512": f"{MODULES}.scram.ScramLoginModule required;",
            "oauthbearer": f"{MODULES}.oauthbearer.OAuthBearerLoginModule required "
            'unsecuredLoginStringClaim_sub="broker";',
        }
        lines = {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self._broker),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.ca),
            "listener.name.mtls.ssl.client.auth": "required",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
        }
        for listener in ("sasl_plaintext", "sasl_tls"):
            for mechanism, line in jaas.items():
                lines[f"listener.name.{listener}.{mechanism}.sasl.jaas.config"] = line
        return lines


def _authority(name: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _builder(subject, subject, key).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return key, builder.sign(key, hashes.SHA256())


def _signed(
    name: str, by: ec.EllipticCurvePrivateKey, ca: x509.Certificate
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))])
    builder = _builder(subject, ca.subject, key).add_extension(names, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    return key, builder.sign(by, hashes.SHA256())


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
    )


def _pem(key: ec.EllipticCurvePrivateKey, encryption: serialization.KeySerializationEncryption) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
