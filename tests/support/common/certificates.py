"""Certificates for tests: authorities, and the identities that they issue."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from services.local import authority

HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Identity:
    """A private key and its certificate, PEM."""

    key: bytes
    cert: bytes

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Writes both files and returns the paths of the certificate and the key."""
        cert, key = folder / f"{name}.pem", folder / f"{name}.key"
        cert.write_bytes(self.cert)
        key.write_bytes(self.key)
        return cert, key


class Authority:
    """A certificate authority. With `domains`, it may issue only SPIFFE ids of these trust domains."""

    def __init__(self, name: str, *domains: str) -> None:
        self._authority = authority.Authority.made(name, domains)
        self.cert = self._authority.cert

    def server(self) -> Identity:
        """Identity of a server on 127.0.0.1."""
        return self._issue((), ("127.0.0.1", "localhost"), HOUR, None)

    def client(self, *spiffe_ids: str, since: datetime | None = None, lifetime: timedelta = HOUR) -> Identity:
        """Identity of a client with these SPIFFE ids in its certificate."""
        return self._issue(spiffe_ids, (), lifetime, since)

    def service(self, spiffe_id: str) -> Identity:
        """Identity of a process of Tandem, which is client and server."""
        return self._issue((spiffe_id,), ("127.0.0.1", "localhost"), HOUR, None)

    def _issue(self, ids: Iterable[str], hosts: Iterable[str], lifetime: timedelta, since: datetime | None) -> Identity:
        issued = self._authority.issue(ids, hosts, lifetime, since=since)
        return Identity(issued.key, issued.cert)
