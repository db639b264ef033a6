"""Who is who in a deployment: a certificate for the SuperLink, a key pair for each SuperNode.

The formats are those that Flower's commands read: PEM for certificates and the server's key, OpenSSH for
the SuperNodes' keys, all on the NIST curve P-384.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_CLOCK_SKEW = datetime.timedelta(days=1)  # A board without a battery for its clock may lag behind.


@dataclass(frozen=True)
class Certificates:
    """PEM files: an authority, and a server's certificate that it signed, with their keys."""

    ca: bytes
    ca_key: bytes
    server: bytes
    server_key: bytes


def make_certificates(host: str, days: int) -> Certificates:
    """Return a new authority, and a certificate by it for a server that is reached as ``host``.

    The server's certificate also holds for localhost, 127.0.0.1 and ::1.

    Parameters
    ----------
    host
        A name or an IP address.
    days
        How long both are valid.
    """
    ca_key, server_key = _new_key(), _new_key()
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedprune deployment")])
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    ca = _certificate(ca_name, ca_name, ca_key.public_key(), days)
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    ca = ca.add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    server = _certificate(server_name, ca_name, server_key.public_key(), days)
    names = [_general_name(name) for name in dict.fromkeys((host, "localhost", "127.0.0.1", "::1"))]
    server = server.add_extension(x509.SubjectAlternativeName(names), critical=False)
    server = server.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    server = server.add_extension(_usage(digital_signature=True), critical=True)
    server = server.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    server = server.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
    )
    return Certificates(
        ca=ca.sign(ca_key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM),
        ca_key=_private_pem(ca_key),
        server=server.sign(ca_key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM),
        server_key=_private_pem(server_key),
    )


def make_key_pair() -> tuple[bytes, bytes]:
    """Return a new private and public key of a SuperNode, in OpenSSH's formats."""
    key = _new_key()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - _CLOCK_SKEW,
        not_valid_after=now + datetime.timedelta(days=days),
    )
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(**allowed: bool) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in names})


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
