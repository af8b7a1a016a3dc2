"""Settings of the console."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from services.common.settings import LegDatabases, PagesSettings
from services.console.domain.people import ClaimsRule, Role
from services.console.sign_in.provider import is_safe

_STREETS = re.compile(
    r"https?://[A-Za-z0-9.:\[\]-]+/"
    r"([^\s;,'\"{}]*\.pmtiles|[^\s;,'\"{}]*\{z\}/\{x\}/\{y\}(@2x)?\.(pbf|mvt|png|jpg|jpeg|webp))(\?[^\s;,'\"{}]*)?"
)
_ROLES = Literal["police", "probation", "reviewer", "operator", "police-records", "probation-records"]


class ConsoleSettings(PagesSettings, LegDatabases):
    """Settings of the console, from the environment. `__main__` reads them once.

    The five targets are gRPC targets, such as `dns:///registry:7401` or `ipv4:127.0.0.1:7401`.
    """

    port: int = Field(default=7408, ge=0, le=65535)
    """TCP port of the pages."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """TCP port of /metrics, /healthz and /readyz."""
    registry: str = Field(default="ipv4:127.0.0.1:7401", min_length=1)
    """gRPC target of the registry: reviews of matches, traces."""
    ingest: str = Field(default="ipv4:127.0.0.1:7402", min_length=1)
    """gRPC target of ingest: refused reports."""
    geofence: str = Field(default="ipv4:127.0.0.1:7403,127.0.0.1:7413", min_length=1)
    """gRPC target of the evaluators: alerts."""
    dispatch_probation: str = Field(default="ipv4:127.0.0.1:7404", min_length=1)
    """gRPC target of the probation leg."""
    dispatch_police: str = Field(default="ipv4:127.0.0.1:7405", min_length=1)
    """gRPC target of the police leg."""
    console_role: _ROLES | None = None
    """With certificates: the only role that this console serves, which its own certificate proves."""
    field_url: str = Field(default="", pattern=r"^(https?://[A-Za-z0-9.:\[\]-]+/?)?$")
    """Address of the phones' apps, such as https://app.example, for the links that desks give out; empty if it isn't known here."""
    tiles: str = ""
    """Address of a PMTiles file that replaces the console's base map, such as https://tiles.example/korea.pmtiles; empty for the
    console's own."""

    mesh_folder: Path | None = None
    """Folder of the mesh that `tandem up` runs on this machine, from which the console makes documents for a court; none: it makes
    none, and names the command."""
    streets: str = ""
    """Address of a street map beneath the live page's marks: a PMTiles file, or a template with {z}, {x} and {y} of vector tiles
    (.pbf, .mvt) or pictures (.png, .jpg, .webp), such as https://tiles.example/{z}/{x}/{y}.png; empty for none."""
    streets_attribution: str = Field(default="", max_length=200)
    """Whom the licence of a template's street map wants to be named, such as © OpenStreetMap contributors. A PMTiles file says so
    itself; with this setting its words are replaced."""

    oidc_issuer: str = ""
    """Issuer of the identity provider, exactly as its document gives it, such as https://id.example/realms/npa; empty for none."""
    oidc_client_id: str = ""
    """Client id of this console at the identity provider."""
    oidc_client_secret: SecretStr = SecretStr("")
    """Client secret of this console at the identity provider."""
    oidc_roles: str = ""
    """Roles by value of the claim, such as `police=npa-112,probation=moj-tracking`; a role may have several values."""
    oidc_roles_claim: str = "roles"
    """Claim of the ID token that gives the role: a text or a list of texts."""
    oidc_name_claim: str = "preferred_username"
    """Claim of the ID token that gives the user's name for the chain and the ledger."""
    oidc_check_interval_s: int = Field(default=300, ge=1, le=3600)
    """Interval in s at which the console asks the identity provider whether the account of a session in use is still open and has
    the same role."""

    @property
    def oidc_rule(self) -> ClaimsRule:
        """Rule by which claims become a user."""
        only = Role(self.console_role) if self.console_role else None
        return ClaimsRule(
            roles=self._roles_of_values(), roles_claim=self.oidc_roles_claim, name_claim=self.oidc_name_claim, only=only
        )

    def _roles_of_values(self) -> dict[str, Role]:
        """Parses `oidc_roles`. Raises ValueError on a wrong entry."""
        role_of_value: dict[str, Role] = {}
        for entry in self.oidc_roles.split(","):
            role, _, value = (part.strip() for part in entry.partition("="))
            if role not in set(Role) or not value:
                raise ValueError(
                    f'TANDEM_OIDC_ROLES: "{entry.strip()}" is not role=value with a role of {", ".join(Role)} '
                    "(example: police=npa-112)"
                )
            if value in role_of_value:
                raise ValueError(f'TANDEM_OIDC_ROLES: "{value}" is there twice: give each value one role')
            role_of_value[value] = Role(role)
        return role_of_value

    @property
    def tiles_origins(self) -> tuple[str, ...]:
        """Origins of maps that aren't the console's own."""
        parts = (urlsplit(address) for address in (self.tiles, self.streets) if "://" in address)
        return tuple(dict.fromkeys(f"{part.scheme}://{part.netloc}" for part in parts))

    @model_validator(mode="after")
    def _refuse_bad_maps(self) -> Self:
        if self.tiles and not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+/[^\s;,'\"]*", self.tiles):
            raise ValueError(
                "TANDEM_TILES must be the http(s) address of a PMTiles file (example: https://tiles.example/korea.pmtiles)"
            )
        if self.streets and not _STREETS.fullmatch(self.streets):
            raise ValueError(
                "TANDEM_STREETS must be the http(s) address of a PMTiles file or of tiles with {z}, {x} and {y} "
                "(example: https://tiles.example/{z}/{x}/{y}.png)"
            )
        return self

    @model_validator(mode="after")
    def _refuse_half_a_provider(self) -> Self:
        given = (self.oidc_issuer, self.oidc_client_id, self.oidc_client_secret.get_secret_value(), self.oidc_roles)
        if not any(given):
            return self
        if not all(given):
            raise ValueError(
                "TANDEM_OIDC_ISSUER, _CLIENT_ID, _CLIENT_SECRET and _ROLES go together: set all of them or none"
            )
        if not is_safe(self.oidc_issuer) or urlsplit(self.oidc_issuer).query or urlsplit(self.oidc_issuer).fragment:
            raise ValueError(
                "TANDEM_OIDC_ISSUER must be an https address without query and fragment; http is accepted on loopback only"
            )
        roles = set(self._roles_of_values().values())
        if self.console_role and self.console_role not in roles:
            raise ValueError(
                f"TANDEM_OIDC_ROLES gives no value the role of TANDEM_CONSOLE_ROLE={self.console_role}: nobody could sign in"
            )
        return self

    @model_validator(mode="after")
    def _refuse_plaintext_to_services(self) -> Self:
        self.refuse_plaintext_to("registry", "ingest", "geofence", "dispatch_probation", "dispatch_police")
        if self.tls and self.console_role is None:
            raise ValueError(
                "TANDEM_CONSOLE_ROLE is missing: with certificates a console serves a single role (example: police)"
            )
        if (self.tls or self.http_tls_cert or self.http_tls_key) and not self.http_tls:
            raise ValueError(
                "TANDEM_HTTP_TLS_CERT or TANDEM_HTTP_TLS_KEY is missing: with certificates the pages need their own"
            )
        return self
