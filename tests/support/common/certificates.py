"""Certificates for a test: an authority and the files of those that it vouches for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from services.cli.stack import authority

HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Identity:
    """A key and its certificate, PEM."""

    key: bytes
    cert: bytes

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Puts both on disk; returns the certificate's path and the key's."""
        cert, key = folder / f"{name}.pem", folder / f"{name}.key"
        cert.write_bytes(self.cert)
        key.write_bytes(self.key)
        return cert, key


class Authority:
    """A certificate authority; with `domains` only for SPIFFE ids of these trust domains."""

    def __init__(self, name: str, *domains: str) -> None:
        self._one = authority.Authority.made(name, domains)
        self.cert = self._one.cert

    def server(self) -> Identity:
        """A server on 127.0.0.1."""
        return self._issue((), ("127.0.0.1", "localhost"), HOUR, None)

    def client(self, *spiffe_ids: str, since: datetime | None = None, lifetime: timedelta = HOUR) -> Identity:
        """A client with these ids in its certificate."""
        return self._issue(spiffe_ids, (), lifetime, since)

    def service(self, spiffe_id: str) -> Identity:
        """A process of Tandem: both of it."""
        return self._issue((spiffe_id,), ("127.0.0.1", "localhost"), HOUR, None)

    def _issue(self, ids: Iterable[str], hosts: Iterable[str], lifetime: timedelta, since: datetime | None) -> Identity:
        issued = self._one.issue(ids, hosts, lifetime, since)
        return Identity(issued.key, issued.cert)
