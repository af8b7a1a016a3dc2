"""A certificate authority for development and exercises, and the X.509 SVIDs that it issues (SPIFFE X.509-SVID 1.0).

In production each agency runs its own authority, or cert-manager does: see docs/reference/kubernetes.md and docs/reference/partners.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.client import drill
from services.client.actors import DESKS, MOJ_RECORDS, NPA_RECORDS, REVIEWER, VENDOR
from services.client.mesh import OPERATOR
from services.common.certificates import AUTHORITY, Files, files_of
from services.common.messaging import flow
from services.common.messaging.permissions import SERVICE
from services.common.rpc.identity import CONSOLES, FIELD
from services.common.storage import stored_files
from services.local import nats_server
from services.local.watch import WATCH_IDENTITY

AUTHORITY_KEY = "ca.key"
AUTHORITY_LIFETIME = timedelta(days=365)
NOBODYS = "invalid"
"""A domain that nobody can own (RFC 2606). If it is the only permitted name of a kind, no name of that kind is permitted."""
SKEW = timedelta(minutes=5)
"""A new certificate is valid this long before its issue, for clocks that are behind."""
CLIENTS = (
    MOJ_RECORDS,
    NPA_RECORDS,
    *DESKS.values(),
    VENDOR,
    REVIEWER,
    OPERATOR,
    drill.EXERCISE_VENDOR,
    drill.DRILL_OPERATOR,
    WATCH_IDENTITY,
    *CONSOLES.values(),
)
"""Identities of callers: the demo's simulated callers, drills, the watch, and the consoles."""
CONSOLE_SERVER = SERVICE + "console"
"""Identity with which a console serves its pages; as a client it uses its agency's identity."""
SERVERS = (nats_server.SERVER_IDENTITY, CONSOLE_SERVER, FIELD, *(SERVICE + user for user in flow.USERS))
LOOPBACK = ("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True)
class Identity:
    """A private key and the certificate of its public half, PEM."""

    key: bytes
    cert: bytes


class Authority:
    """A certificate authority with its private key."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, cert: x509.Certificate) -> None:
        self._key, self._cert = key, cert

    @classmethod
    def made(cls, name: str, domains: Sequence[str] = ()) -> Self:
        """Creates an authority. `domains` restricts it to SPIFFE ids of these trust domains, such as moj, and to no other names.

        Other kinds of names are excluded because nats-server maps a DNS name to a user, too.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = _usage(digital_signature=False, signs=True)
        builder = _builder(subject, subject, key, lifetime=AUTHORITY_LIFETIME, since=datetime.now(UTC))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        if domains:
            permitted: list[x509.GeneralName] = [x509.UniformResourceIdentifier(domain) for domain in domains]
            permitted += [x509.DNSName(NOBODYS), x509.RFC822Name(NOBODYS)]
            excluded = [x509.IPAddress(ip_network(network)) for network in ("0.0.0.0/0", "::/0")]
            builder = builder.add_extension(x509.NameConstraints(permitted, excluded), critical=True)
        return cls(key, builder.sign(key, hashes.SHA256()))

    @classmethod
    def opened(cls, folder: Path) -> Self:
        """Opens the authority in a folder, and creates it the first time."""
        if not (folder / AUTHORITY_KEY).exists():
            folder.mkdir(parents=True, exist_ok=True)
            created = cls.made("Tandem development")
            (folder / AUTHORITY).write_bytes(created.cert)
            stored_files.write(folder / AUTHORITY_KEY, _pem_of_key(created._key))
        key = serialization.load_pem_private_key((folder / AUTHORITY_KEY).read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(
                f"{folder / AUTHORITY_KEY} isn't an elliptic-curve key; `tandem certs` creates one if it is absent"
            )
        return cls(key, x509.load_pem_x509_certificate((folder / AUTHORITY).read_bytes()))

    @property
    def cert(self) -> bytes:
        """The authority's own certificate, PEM."""
        return self._cert.public_bytes(serialization.Encoding.PEM)

    def issue(
        self, spiffe_ids: Iterable[str], hosts: Iterable[str], lifetime: timedelta, *, since: datetime | None = None
    ) -> Identity:
        """Issues a certificate for server and client, valid from `since` (default: now).

        `hosts` are the DNS names and addresses under which the holder serves.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id) for spiffe_id in spiffe_ids]
        names += [_host(host) for host in hosts]
        # The SPIFFE id must be the only name; a subject would be a second name.
        builder = _builder(x509.Name([]), self._cert.subject, key, lifetime=lifetime, since=since or datetime.now(UTC))
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(digital_signature=True, signs=False), critical=True)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        signed = builder.add_extension(issuer, critical=False).sign(self._key, hashes.SHA256())
        return Identity(_pem_of_key(key), signed.public_bytes(serialization.Encoding.PEM))


def issue(folder: Path, ids: Iterable[str], hosts: Iterable[str], *, lifetime: timedelta) -> None:
    """Issues certificates for these ids. Creates the authority in the folder the first time."""
    issuer, hosts = Authority.opened(folder), tuple(hosts)
    trusted = (folder / AUTHORITY).read_bytes()
    for spiffe_id in ids:
        # Only Tandem's own services accept connections. Other certificates get no host names, so that no server can use them.
        host_names = hosts if spiffe_id.startswith(SERVICE) else ()
        write(folder, spiffe_id, issuer.issue([spiffe_id], host_names, lifetime), trusted=trusted)


def write(folder: Path, spiffe_id: str, identity: Identity, *, trusted: bytes) -> Files:
    """Writes an identity's key, certificate and trusted authorities (`trusted`, PEM) into the folder of its SPIFFE id."""
    files = files_of(folder, spiffe_id)
    files.cert.parent.mkdir(parents=True, exist_ok=True)
    stored_files.write(files.authority, trusted)
    stored_files.write(files.key, identity.key)
    stored_files.write(files.cert, identity.cert)
    return files


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, lifetime: timedelta, since: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since - SKEW)
        .not_valid_after(since + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, digital_signature: bool, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature, False, False, False, False, signs, signs, False, False)


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
