"""Certificate files of an identity: their paths, their SPIFFE id, and detection of replaced files."""

from __future__ import annotations

import re
import ssl
import time
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from services.common.errors import FailedPrecondition

CERT = "tls.crt"
KEY = "tls.key"
AUTHORITY = "ca.crt"
"""File names of an identity's certificate chain, private key and authorities, as cert-manager uses them in a Secret."""


class Files(NamedTuple):
    """Certificate files of an identity, all PEM."""

    cert: Path
    """Certificate chain of the identity."""
    key: Path
    """Private key of the identity."""
    authority: Path
    """Authorities whose certificates the identity accepts."""

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Value that changes whenever one of the files is replaced. Raises OSError if a file is missing."""
        return tuple((file.stat().st_mtime_ns, file.stat().st_size, file.stat().st_ino) for file in self)


def spiffe_id(cert: Path) -> str:
    """Reads the SPIFFE id of a certificate. Raises FailedPrecondition unless the certificate has exactly one."""
    try:
        leaf = x509.load_pem_x509_certificates(cert.read_bytes())[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound):
        uris = []
    if len(uris) != 1 or not uris[0].startswith("spiffe://"):
        raise FailedPrecondition(
            f"{cert.name} isn't a certificate with exactly one SPIFFE id (example: spiffe://tandem/service/ingest)"
        )
    return uris[0]


def remaining_s(cert: Path) -> float:
    """Seconds until the first certificate of a chain ends, negative after its end. 0 if the file can't be read."""
    try:
        chain = x509.load_pem_x509_certificates(cert.read_bytes())
    except (OSError, ValueError):
        return 0.0
    return min(part.not_valid_after_utc.timestamp() for part in chain) - time.time()


def client_context(files: Files) -> ssl.SSLContext:
    """TLS context of a client within the mesh whose server checks its certificate, TLS 1.3 only."""
    context = ssl.create_default_context(cafile=files.authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(files.cert, files.key)
    return context


def folder_of(folder: Path, spiffe_id: str) -> Path:
    """Folder of an identity's files. Its name is the SPIFFE id with dashes, such as moj-desk-seoul."""
    return folder / re.sub(r"[^a-z0-9-]+", "-", spiffe_id.removeprefix("spiffe://"))


def files_of(folder: Path, spiffe_id: str) -> Files:
    """Certificate files of an identity, given the folder that holds all identities."""
    own = folder_of(folder, spiffe_id)
    return Files(own / CERT, own / KEY, own / AUTHORITY)
