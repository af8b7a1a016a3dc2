"""Settings of the service that faces phones on the internet."""

from __future__ import annotations

import re
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from services.common.settings import LOOPBACK, PagesSettings
from services.field.domain import DEFAULT_PUSH_SERVICES, is_push_service

_NAME = r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+"
_CONTACT = re.compile(rf"mailto:[A-Za-z0-9._%+-]+@{_NAME}|https://{_NAME}")
"""Senders of a message that py_vapid accepts. It raises an error at each message for anything else."""


class FieldSettings(PagesSettings):
    """Settings of field, from the environment. `__main__` reads them once."""

    port: int = Field(default=7409, ge=0, le=65535)
    """TCP port of the app."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """TCP port of /metrics, /healthz and /readyz."""
    registry: str = Field(default="ipv4:127.0.0.1:7401", min_length=1)
    """gRPC target of the registry: enrolment, and whose a token is."""
    dispatch_warning: str = Field(default="ipv4:127.0.0.1:7406", min_length=1)
    """gRPC target of the warning leg: notices and their receipts."""
    geofence: str = Field(default="ipv4:127.0.0.1:7403", min_length=1)
    """gRPC target of the evaluators: the region that her map shows."""
    dispatch_probation: str = Field(default="ipv4:127.0.0.1:7404", min_length=1)
    """gRPC target of the probation leg: the offers and assignments of its units."""
    dispatch_police: str = Field(default="ipv4:127.0.0.1:7405", min_length=1)
    """gRPC target of the police leg, like `dispatch_probation`."""
    probation_desk_phone: str = Field(default="", pattern=r"^(\+?[0-9-]{2,20})?$")
    """Telephone number of the tracking centre, which units call by one tap; empty for none."""
    police_desk_phone: str = Field(default="112", pattern=r"^(\+?[0-9-]{2,20})?$")
    """Telephone number of the police 112 room, like `probation_desk_phone`."""
    ingest_phones: str = "http://127.0.0.1:7433"
    """Address of the port that ingest has for field alone, which takes the phones' reports. https needs the mesh's certificates."""
    osrm_url: str = Field(default="", pattern=r"^(https?://[^\s?#]+)?$")
    """URL of the agency's own OSRM route service, for the way out by road on her map; empty for the direction alone. It receives her
    position, so it must be on loopback or behind https."""
    push_services: str = ",".join(DEFAULT_PUSH_SERVICES)
    """Hosts of the push services to which messages go, comma-separated; `*.` stands for any name below. On loopback without
    certificates an address such as http://127.0.0.1:9000 is accepted, for tests."""
    push_contact: str = "mailto:operator@tandem.invalid"
    """Contact of the operator, which push services get with each message (VAPID, RFC 8292)."""

    @property
    def push_hosts(self) -> tuple[str, ...]:
        """Entries of `push_services`."""
        return tuple(entry.strip() for entry in self.push_services.split(",") if entry.strip())

    @model_validator(mode="after")
    def _refuse_bad_addresses(self) -> Self:
        for entry in self.push_hosts:
            if not is_push_service(entry, plain=not self.tls):
                raise ValueError(f'TANDEM_PUSH_SERVICES: "{entry}" is no host (example: *.push.apple.com)')
        if not _CONTACT.fullmatch(self.push_contact):
            raise ValueError(
                "TANDEM_PUSH_CONTACT must be a mailto: address, or an https: address without a path (example: "
                "mailto:duty@police.example)"
            )
        return self

    @model_validator(mode="after")
    def _refuse_plaintext_to_services(self) -> Self:
        self.refuse_plaintext_to("registry", "dispatch_warning", "geofence", "dispatch_probation", "dispatch_police")
        self.refuse_plaintext_url("osrm_url")
        parts = urlsplit(self.ingest_phones)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise ValueError(
                "TANDEM_INGEST_PHONES must be an http(s) address without a path (example: https://ingest:7433)"
            )
        if parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise ValueError(
                f"TANDEM_INGEST_PHONES names {parts.hostname}, which isn't loopback: use an https:// address"
            )
        if parts.scheme == "https" and not self.tls:
            raise ValueError(
                "TANDEM_INGEST_PHONES is an https:// address: refused without TANDEM_TLS_CERT, _KEY and _CA"
            )
        if (self.tls or self.http_tls_cert or self.http_tls_key) and not self.http_tls:
            raise ValueError(
                "TANDEM_HTTP_TLS_CERT or TANDEM_HTTP_TLS_KEY is missing: with certificates the app needs its own"
            )
        return self
