"""Certificates as files: where they lie, whom they name, and that they were replaced."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from services.common.rpc.errors import FailedPrecondition

CERT, KEY, AUTHORITY = "tls.crt", "tls.key", "ca.crt"
"""Names of the files of an identity, as cert-manager has them in a Secret."""


class Files(NamedTuple):
    """What somebody proves itself with and whom it believes, all PEM."""

    cert: Path
    """Its certificate chain."""
    key: Path
    """Its private key."""
    authority: Path
    """The authorities whose certificates are taken."""

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Changes whenever one of them is replaced. Raises OSError where one is missing."""
        return tuple((one.stat().st_mtime_ns, one.stat().st_size, one.stat().st_ino) for one in self)


def spiffe_id(cert: Path) -> str:
    """The one SPIFFE id of a certificate. Raises FailedPrecondition where it hasn't exactly one."""
    try:
        leaf = x509.load_pem_x509_certificates(cert.read_bytes())[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound):
        uris = []
    if len(uris) != 1 or not uris[0].startswith("spiffe://"):
        raise FailedPrecondition(f"{cert.name} is no certificate with one SPIFFE id")
    return uris[0]


def client_context(files: Files) -> ssl.SSLContext:
    """For connections to the NATS server."""
    context = ssl.create_default_context(cafile=files.authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(files.cert, files.key)
    return context


def folder_of(folder: Path, spiffe_id: str) -> Path:
    """Where an identity's files lie: its id with dashes, such as moj-desk-seoul."""
    return folder / re.sub(r"[^a-z0-9-]+", "-", spiffe_id.removeprefix("spiffe://"))


def files_of(folder: Path, spiffe_id: str) -> Files:
    """The files of an identity."""
    own = folder_of(folder, spiffe_id)
    return Files(own / CERT, own / KEY, own / AUTHORITY)
