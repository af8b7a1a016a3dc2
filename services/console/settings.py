"""Settings of the console."""

from __future__ import annotations

import re
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from services.common.settings import HttpSettings
from services.console.domain.claims import Rule
from services.console.domain.people import Role
from services.console.sign_in.oidc import is_safe

_ROLES = Literal["police", "probation", "reviewer", "operator"]


class ConsoleSettings(HttpSettings):
    """Read once, in __main__. The five targets are gRPC's, such as `dns:///registry:7401` or `ipv4:127.0.0.1:7401`."""

    port: int = Field(default=7408, ge=0, le=65535)
    """TCP port of the pages."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """TCP port of /metrics, /healthz and /readyz."""
    registry: str = Field(default="ipv4:127.0.0.1:7401", min_length=1)
    """Reviews of matches, traces."""
    ingest: str = Field(default="ipv4:127.0.0.1:7402", min_length=1)
    """Refused reports."""
    geofence: str = Field(default="ipv4:127.0.0.1:7403,127.0.0.1:7413", min_length=1)
    """The evaluators: alerts."""
    dispatch_probation: str = Field(default="ipv4:127.0.0.1:7404", min_length=1)
    """The probation leg."""
    dispatch_police: str = Field(default="ipv4:127.0.0.1:7405", min_length=1)
    """The police leg."""
    console_role: _ROLES | None = None
    """With certificates: whose console this is, by its own certificate; nobody of another role is served."""
    public_origins: str = ""
    """Further origins under which browsers reach it, comma-separated, such as https://console.example; loopback is always one."""
    tiles: str = ""
    """Address of a PMTiles file that takes the place of the base map that comes with the console, such as the agency's own
    https://tiles.example/korea.pmtiles; empty for that one."""

    oidc_issuer: str = ""
    """The identity provider's issuer, exactly as it names itself, such as https://id.example/realms/npa; empty for none."""
    oidc_client_id: str = ""
    """As whom the provider knows this console."""
    oidc_client_secret: SecretStr = SecretStr("")
    """What the console proves that with."""
    oidc_roles: str = ""
    """Which value of the claim is which role, such as `police=npa-112,probation=moj-tracking`; a role may stand there several times."""
    oidc_roles_claim: str = "roles"
    """Claim of the ID token, a text or a list of texts, from which the role is taken."""
    oidc_name_claim: str = "preferred_username"
    """Claim of the ID token that is the name in the chain and the ledger."""

    @property
    def oidc_rule(self) -> Rule:
        """How claims become a user."""
        only = Role(self.console_role) if self.console_role else None
        return Rule(self._roles_of_values(), self.oidc_roles_claim, self.oidc_name_claim, only)

    def _roles_of_values(self) -> dict[str, Role]:
        """Raises ValueError where it isn't such as the setting says."""
        found: dict[str, Role] = {}
        for one in self.oidc_roles.split(","):
            role, _, value = (part.strip() for part in one.partition("="))
            if role not in set(Role) or not value:
                raise ValueError("TANDEM_OIDC_ROLES: each must be such as police=npa-112")
            if value in found:
                raise ValueError("TANDEM_OIDC_ROLES: each value stands for one role, once")
            found[value] = Role(role)
        return found

    @property
    def origins(self) -> frozenset[str]:
        """Origins under which it is reached beside loopback."""
        return frozenset(one.strip() for one in self.public_origins.split(",") if one.strip())

    @property
    def tiles_origin(self) -> str:
        """Where tiles come from, if not from here."""
        parts = urlsplit(self.tiles)
        return f"{parts.scheme}://{parts.netloc}" if self.tiles else ""

    @model_validator(mode="after")
    def _refuse_what_is_no_origin(self) -> Self:
        for origin in self.origins:
            if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+", origin):
                raise ValueError("TANDEM_PUBLIC_ORIGINS: each must be such as https://console.example")
        if self.tiles and not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+/[^\s;,'\"]*", self.tiles):
            raise ValueError("TANDEM_TILES must be the http(s) address of a PMTiles file")
        return self

    @model_validator(mode="after")
    def _refuse_half_a_provider(self) -> Self:
        given = (self.oidc_issuer, self.oidc_client_id, self.oidc_client_secret.get_secret_value(), self.oidc_roles)
        if not any(given):
            return self
        if not all(given):
            raise ValueError("TANDEM_OIDC_ISSUER, _CLIENT_ID, _CLIENT_SECRET and _ROLES go together")
        if not is_safe(self.oidc_issuer) or urlsplit(self.oidc_issuer).query or urlsplit(self.oidc_issuer).fragment:
            raise ValueError("TANDEM_OIDC_ISSUER must be an https address; http is taken on loopback only")
        roles = set(self._roles_of_values().values())
        if self.console_role and self.console_role not in roles:
            raise ValueError("TANDEM_OIDC_ROLES names nobody for TANDEM_CONSOLE_ROLE")
        return self

    @model_validator(mode="after")
    def _refuse_plaintext_to_services(self) -> Self:
        self.refuse_plaintext_to("registry", "ingest", "geofence", "dispatch_probation", "dispatch_police")
        if self.tls and self.console_role is None:
            raise ValueError("TANDEM_CONSOLE_ROLE is missing: with certificates a console is one agency's")
        if (self.tls or self.http_tls_cert or self.http_tls_key) and not self.http_tls:
            raise ValueError("TANDEM_HTTP_TLS_CERT or _KEY is missing: with certificates pages have one of their own")
        return self
