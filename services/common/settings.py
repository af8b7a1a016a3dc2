"""Settings that all services share, and the names of all settings. Each service adds its own in its settings.py.

Settings are read once, in __main__.py. A service can't know the settings classes of the others, yet `tandem up` gives each process the
environment of the shell. So the names stand here, where a name that none of them has is noticed: a misspelt setting has no effect. A
test compares them with the classes.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SecretsSettingsSource, SettingsConfigDict

from services.common.certificates import Files
from services.common.clock import MeshClock
from services.common.errors import FailedPrecondition

SECRETS_DIR = "TANDEM_SECRETS_DIR"
"""Environment variable with a folder of files, each named like a setting and with its value. For secrets: other users of the machine
and child processes can see an environment variable. A variable wins over a file."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Hosts that count as this machine."""


def addresses_of(target: str) -> tuple[str, ...]:
    """Splits a gRPC target such as ipv4:127.0.0.1:7403,127.0.0.1:7413 into its addresses. An empty target has none."""
    addresses = target.removeprefix("ipv4:").removeprefix("dns:///")
    return tuple(addresses.split(",")) if addresses else ()


def is_loopback(address: str) -> bool:
    """Whether an address, host:port, is on this machine."""
    return address.rpartition(":")[0] in LOOPBACK


class CommonSettings(BaseSettings):
    """Settings of every service, read from environment variables with the prefix TANDEM_, and from the files of TANDEM_SECRETS_DIR."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_", frozen=True, extra="ignore", hide_input_in_errors=True)

    host: str = "127.0.0.1"
    """Address to bind. Any address but loopback needs the three TLS files."""
    port: int = Field(ge=0, le=65535)
    """TCP port of the gRPC server. 0 lets the system choose."""
    nats_url: str = "nats://127.0.0.1:4222"
    """URL of the NATS server or, comma-separated, of the servers of one cluster."""
    nats_monitor_url: str = ""
    """Monitoring address of the NATS server, for the check at start that the store is synchronous. Required unless
    `allow_async_store`."""
    allow_async_store: bool = False
    """Development only: run although a power cut could lose acknowledged messages."""
    data_dir: Path = Path(".tandem")
    """Folder for the files of this process."""
    dev_secret: str = ""
    """Key of the development tokens, on loopback only. If empty, the default, only certificates are accepted."""
    tls_cert: Path | None = None
    """This process's certificate chain, PEM."""
    tls_key: Path | None = None
    """Private key of `tls_cert`, PEM."""
    tls_ca: Path | None = None
    """Certificate authorities whose certificates are accepted, PEM."""
    clock_rate: int = Field(default=1, ge=1, le=1000)
    """Speed of mesh time relative to wall time. More than 1 is for replays on loopback only."""
    clock_anchor_ms: int = 0
    """Wall time at which mesh time and wall time are equal, milliseconds since 1970 UTC."""

    @classmethod
    def settings_customise_sources(  # noqa: PLR0917  # as pydantic-settings calls it
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Sources of settings, the strongest first. Raises ValueError if TANDEM_SECRETS_DIR isn't a folder."""
        folder = os.environ.get(SECRETS_DIR)
        if not folder:
            return init_settings, env_settings
        if not Path(folder).is_dir():
            raise ValueError(f"{SECRETS_DIR}={folder} isn't a folder (example: /secrets)")
        return init_settings, env_settings, SecretsSettingsSource(settings_cls, secrets_dir=folder)

    @property
    def clock(self) -> MeshClock:
        """The mesh's clock with these settings."""
        return MeshClock(self.clock_rate, self.clock_anchor_ms)

    @property
    def tls(self) -> bool:
        """Whether certificates are configured."""
        return self.tls_cert is not None

    @property
    def certificates(self) -> dict[str, Path]:
        """This process's certificate chains by use: `mesh` is for calls within the mesh."""
        return {"mesh": self.tls_cert} if self.tls_cert else {}

    def tls_files(self) -> Files:
        """Certificate chain, private key and authorities of this process. Raises FailedPrecondition if they aren't configured."""
        if self.tls_cert is None or self.tls_key is None or self.tls_ca is None:
            raise FailedPrecondition("no certificates are configured: set TANDEM_TLS_CERT, _KEY and _CA")
        return Files(self.tls_cert, self.tls_key, self.tls_ca)

    def refuse_plaintext_to(self, *names: str) -> None:
        """Checks that gRPC targets, given by the names of their settings, need no certificates or have them.

        Raises ValueError if a target isn't on loopback and no certificates are configured.
        """
        for name in names:
            for address in addresses_of(getattr(self, name)):
                if not self.tls and not is_loopback(address):
                    raise ValueError(
                        f"TANDEM_{name.upper()} names {address}, which isn't loopback: refused without TANDEM_TLS_CERT, _KEY, _CA"
                    )

    def refuse_plaintext_url(self, name: str) -> None:
        """Checks that a URL, given by the name of its setting, isn't http:// off loopback. Raises ValueError."""
        parts = urlsplit(getattr(self, name))
        if parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise ValueError(f"TANDEM_{name.upper()} names {parts.hostname}, which isn't loopback: use an https:// URL")

    @property
    def nats_tls(self) -> Files | None:
        """Certificate files for the connection to the NATS server. None if that connection doesn't use TLS."""
        return self.tls_files() if self.nats_url.startswith("tls://") else None

    @model_validator(mode="after")
    def _refuse_malformed_urls(self) -> Self:
        for url in self.nats_url.split(","):
            parts = urlsplit(url)
            if parts.scheme not in ("nats", "tls") or not parts.hostname:
                # The value isn't shown: it may hold a password.
                raise ValueError("TANDEM_NATS_URL isn't a nats:// or tls:// URL (example: nats://127.0.0.1:4222)")
        monitor = urlsplit(self.nats_monitor_url)
        if self.nats_monitor_url and (monitor.scheme not in ("http", "https") or not monitor.hostname):
            raise ValueError(
                f'TANDEM_NATS_MONITOR_URL: "{self.nats_monitor_url}" isn\'t an http:// URL (example: http://127.0.0.1:8222)'
            )
        return self

    @model_validator(mode="after")
    def _refuse_plaintext_off_loopback(self) -> Self:
        files = (self.tls_cert, self.tls_key, self.tls_ca)
        if any(files) and not all(files):
            raise ValueError("TANDEM_TLS_CERT, TANDEM_TLS_KEY and TANDEM_TLS_CA go together")
        for url in self.nats_url.split(","):
            parts = urlsplit(url)
            if parts.scheme == "tls" and not all(files):
                raise ValueError("TANDEM_NATS_URL with tls:// needs TANDEM_TLS_CERT, _KEY and _CA")
            if parts.hostname not in LOOPBACK and parts.scheme != "tls":
                raise ValueError(
                    f"TANDEM_NATS_URL names {parts.hostname}, which isn't loopback: only tls:// is accepted"
                )
        if self.host not in LOOPBACK:
            if not self.tls:
                raise ValueError(
                    f"TANDEM_HOST={self.host} isn't loopback: refused without TANDEM_TLS_CERT, _KEY and _CA"
                )
            if self.dev_secret:
                raise ValueError(f"TANDEM_HOST={self.host} isn't loopback: refused with TANDEM_DEV_SECRET")
            if self.clock_rate != 1:
                raise ValueError(f"TANDEM_HOST={self.host} isn't loopback: refused with TANDEM_CLOCK_RATE")
        return self


class LegDatabases(CommonSettings):
    """Where the legs' records are, for a process that writes or reads them."""

    probation_database_url: SecretStr = SecretStr("")
    """Database of the probation leg, as postgresql://role@host/database; the role has its own schema. Empty for an SQLite file in
    the leg's `data_dir`."""
    police_database_url: SecretStr = SecretStr("")
    """Database of the police leg, like `probation_database_url`."""
    warning_database_url: SecretStr = SecretStr("")
    """Database of the warning leg, like `probation_database_url`."""

    @property
    def leg_databases(self) -> dict[str, str]:
        """PostgreSQL URL of each leg; empty for a leg that uses SQLite."""
        urls = {
            "probation": self.probation_database_url,
            "police": self.police_database_url,
            "warning": self.warning_database_url,
        }
        return {leg: url.get_secret_value() for leg, url in urls.items()}


class HttpSettings(CommonSettings):
    """Settings of a service with an HTTP port, for callers that have no certificate of the mesh, such as browsers and phones."""

    http_tls_cert: Path | None = None
    """Certificate chain of the HTTP port, PEM, from an authority that its callers trust. Callers need no certificate. TANDEM_TLS_CERT
    identifies the process within the mesh and isn't used for this port."""
    http_tls_key: Path | None = None
    """Private key of `http_tls_cert`, PEM."""

    @property
    def certificates(self) -> dict[str, Path]:
        """This process's certificate chains by use: `mesh` is for calls within the mesh, `http` for the HTTP port."""
        return super().certificates | ({"http": self.http_tls_cert} if self.http_tls_cert else {})

    @property
    def http_tls(self) -> tuple[Path, Path] | None:
        """Certificate chain and private key of the HTTP port. None if the port is plaintext."""
        return (self.http_tls_cert, self.http_tls_key) if self.http_tls_cert and self.http_tls_key else None


class PagesSettings(HttpSettings):
    """Settings of a service whose HTTP port has pages for people, under names that the operator lists."""

    public_origins: str = ""
    """Origins under which browsers and phones reach the pages, comma-separated, such as https://app.example. Loopback is always
    included; a request under any other host name is refused (421)."""

    @property
    def origins(self) -> frozenset[str]:
        """Origins under which the pages are reached, besides loopback."""
        return frozenset(origin.strip() for origin in self.public_origins.split(",") if origin.strip())

    @property
    def public_hosts(self) -> frozenset[str]:
        """Host of each origin, with its port if the origin has one."""
        return frozenset(urlsplit(origin).netloc for origin in self.origins)

    @model_validator(mode="after")
    def _refuse_bad_origins(self) -> Self:
        for origin in self.origins:
            if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+", origin):
                raise ValueError(f'TANDEM_PUBLIC_ORIGINS: "{origin}" is not an origin (example: https://app.example)')
        return self


# ── the names of all settings ─────────────────────────────────────────────────────────────────────────────────────────

PREFIX = "TANDEM_"
NAMES = frozenset(
    {
        "TANDEM_ACKNOWLEDGE_WITHIN_S",
        "TANDEM_ALLOW_ASYNC_STORE",
        "TANDEM_ANSWER_WITHIN_S",
        "TANDEM_ARRIVE_WITHIN_S",
        "TANDEM_BACKFILL_REPORTS_PER_S",
        "TANDEM_CHECKPOINT_EVERY",
        "TANDEM_CLOCK_ANCHOR_MS",
        "TANDEM_CLOCK_RATE",
        "TANDEM_CONSOLE_ROLE",
        "TANDEM_DATA_DIR",
        "TANDEM_DEPART_WITHIN_S",
        "TANDEM_DEVICE_REPORTS_BURST",
        "TANDEM_DEVICE_REPORTS_PER_S",
        "TANDEM_DEV_SECRET",
        "TANDEM_DISPATCH_POLICE",
        "TANDEM_DISPATCH_PROBATION",
        "TANDEM_DISPATCH_WARNING",
        "TANDEM_DISPATCH_WITHIN_S",
        "TANDEM_FIELD_PORT",
        "TANDEM_FIELD_URL",
        "TANDEM_GEOFENCE",
        "TANDEM_HEARTBEAT_FD",
        "TANDEM_HOST",
        "TANDEM_HTTP_PORT",
        "TANDEM_HTTP_TLS_CERT",
        "TANDEM_HTTP_TLS_KEY",
        "TANDEM_INGEST",
        "TANDEM_INGEST_PHONES",
        "TANDEM_LEDGER_KEY",
        "TANDEM_LINK_PORT",
        "TANDEM_LINK_URL",
        "TANDEM_MESH_FOLDER",
        "TANDEM_METRICS_PORT",
        "TANDEM_NATS_MONITOR_URL",
        "TANDEM_NATS_URL",
        "TANDEM_OIDC_CHECK_INTERVAL_S",
        "TANDEM_OFFER_WITHIN_S",
        "TANDEM_OIDC_CLIENT_ID",
        "TANDEM_OIDC_CLIENT_SECRET",
        "TANDEM_OIDC_ISSUER",
        "TANDEM_OIDC_NAME_CLAIM",
        "TANDEM_OIDC_ROLES",
        "TANDEM_OIDC_ROLES_CLAIM",
        "TANDEM_OSRM_URL",
        "TANDEM_OTHER_LEG_WITHIN_S",
        "TANDEM_PAGER_COMMAND",
        "TANDEM_PAGER_WEBHOOKS",
        "TANDEM_POLICE_DATABASE_URL",
        "TANDEM_POLICE_DESK_PHONE",
        "TANDEM_PORT",
        "TANDEM_PROBATION_DATABASE_URL",
        "TANDEM_PROBATION_DESK_PHONE",
        "TANDEM_PUBLIC_ORIGINS",
        "TANDEM_PUSH_CONTACT",
        "TANDEM_PUSH_SERVICES",
        "TANDEM_REACT_WITHIN_S",
        "TANDEM_RECEIVE_WITHIN_S",
        "TANDEM_REGISTRY",
        "TANDEM_REGISTRY_DATABASE_URL",
        "TANDEM_REGISTRY_KEY",
        "TANDEM_REPLICA",
        "TANDEM_REPLICAS",
        "TANDEM_SECRETS_DIR",
        "TANDEM_SERVICE_AREA",
        "TANDEM_SHARED_DATA",
        "TANDEM_SHARE_EVERY_S",
        "TANDEM_SHOTS",
        "TANDEM_STATE_KEY",
        "TANDEM_STREETS",
        "TANDEM_STREETS_ATTRIBUTION",
        "TANDEM_TICK_AFTER_S",
        "TANDEM_TILES",
        "TANDEM_TLS_CA",
        "TANDEM_TLS_CERT",
        "TANDEM_TLS_KEY",
        "TANDEM_WARNING_DATABASE_URL",
        "TANDEM_WARNING_GATEWAYS",
        "TANDEM_WARNING_KEY",
        "TANDEM_WARNING_PUBLIC_KEY",
        "TANDEM_WEBHOOKS",
        "TANDEM_WORD_WITHIN_S",
    }
)


def unknown(environment: Iterable[str]) -> dict[str, str]:
    """Variables with the prefix of settings that are no setting, each with the setting that is most like it, or an empty text."""
    names = sorted(name for name in environment if name.startswith(PREFIX) and name not in NAMES)
    return {name: next(iter(difflib.get_close_matches(name, NAMES, 1, 0.8)), "") for name in names}
