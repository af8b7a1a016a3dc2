"""Settings that every service has. Each service adds its own in its settings.py and reads them once, in __main__.py."""

from __future__ import annotations

from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.clock import MeshClock
from services.common.rpc.certificates import Files
from services.common.rpc.errors import FailedPrecondition

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def addresses_of(target: str) -> tuple[str, ...]:
    """The addresses of a gRPC target such as ipv4:127.0.0.1:7403,127.0.0.1:7413; none of an empty one."""
    addresses = target.removeprefix("ipv4:").removeprefix("dns:///")
    return tuple(addresses.split(",")) if addresses else ()


def is_loopback(address: str) -> bool:
    """Whether host:port is on this machine."""
    return address.rpartition(":")[0] in LOOPBACK


class CommonSettings(BaseSettings):
    """Read from the environment, each with the prefix TANDEM_."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_", frozen=True, extra="ignore", hide_input_in_errors=True)

    host: str = "127.0.0.1"
    """Address to bind. Anything but loopback needs the three TLS files."""
    port: int = Field(ge=0, le=65535)
    """TCP port of gRPC."""
    nats_url: str = "nats://127.0.0.1:4222"
    """The NATS server or, comma-separated, the servers of one cluster."""
    nats_monitor_url: str = ""
    """The server's monitoring address, asked at start whether the store is synchronous; needed unless allow_async_store."""
    allow_async_store: bool = False
    """Development only: run although a power cut could lose what was acknowledged."""
    data_dir: Path = Path(".tandem")
    """Folder for what this process keeps on disk."""
    dev_secret: str = ""
    """Key of the development tokens; where it is empty only certificates are taken. On loopback only."""
    tls_cert: Path | None = None
    """This process's certificate chain, PEM."""
    tls_key: Path | None = None
    """Its private key, PEM."""
    tls_ca: Path | None = None
    """The authority whose certificates are taken, PEM."""
    clock_rate: int = Field(default=1, ge=1, le=1000)
    """How many times as fast the mesh's clock runs; more than 1 for replays on loopback only."""
    clock_anchor_ms: int = 0
    """Wall time at which mesh and wall time are equal, milliseconds since 1970 UTC."""

    @property
    def clock(self) -> MeshClock:
        """The mesh's clock."""
        return MeshClock(self.clock_rate, self.clock_anchor_ms)

    @property
    def tls(self) -> bool:
        """Whether certificates are configured."""
        return self.tls_cert is not None

    def tls_files(self) -> Files:
        """Certificate chain, private key and authority. Raises FailedPrecondition without them."""
        if self.tls_cert is None or self.tls_key is None or self.tls_ca is None:
            raise FailedPrecondition("no certificates are configured")
        return Files(self.tls_cert, self.tls_key, self.tls_ca)

    def refuse_plaintext_to(self, *names: str) -> None:
        """Raises ValueError where one of these settings, gRPC targets, leads off this machine and there are no certificates."""
        for name in names:
            for address in addresses_of(getattr(self, name)):
                if not self.tls and not is_loopback(address):
                    raise ValueError(
                        f"TANDEM_{name.upper()} names {address}, which isn't loopback: refused without TANDEM_TLS_CERT, _KEY, _CA"
                    )

    @property
    def nats_tls(self) -> Files | None:
        """What this process proves itself with to the NATS server, where that is reached by TLS."""
        return self.tls_files() if self.nats_url.startswith("tls://") else None

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
                raise ValueError(f"TANDEM_NATS_URL names {parts.hostname}, which isn't loopback: only tls:// is taken")
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


class HttpSettings(CommonSettings):
    """Of a service with an HTTP port for those who have no certificates of the mesh, such as browsers and phones."""

    http_tls_cert: Path | None = None
    """Certificate chain of the HTTP port, PEM, as its callers know it; they need none themselves. TANDEM_TLS_CERT's stands for the
    process in the mesh and serves nobody here."""
    http_tls_key: Path | None = None
    """Its private key, PEM."""

    @property
    def http_tls(self) -> tuple[Path, Path] | None:
        """Certificate chain and key of the HTTP port, where it has them."""
        return (self.http_tls_cert, self.http_tls_key) if self.http_tls_cert and self.http_tls_key else None
