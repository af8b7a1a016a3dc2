"""Settings of the ingest service."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from services.common.settings import LOOPBACK, HttpSettings


class IngestSettings(HttpSettings):
    """Settings of the ingest service, from the environment. `__main__` reads them once."""

    port: int = Field(default=7402, ge=0, le=65535)
    """TCP port of the gRPC endpoint."""
    http_port: int = Field(default=7432, ge=0, le=65535)
    """TCP port of the HTTP endpoint, for phones; off loopback it needs a certificate."""
    field_port: int = Field(default=7433, ge=0, le=65535)
    """TCP port of the HTTP endpoint for field alone, which brings its phones' reports. So nobody who fills the other one keeps a panic
    from here. Off loopback it has the mesh's certificates, and only the holder of field's is served."""
    metrics_port: int = Field(default=7442, ge=0, le=65535)
    """TCP port of /metrics, /healthz and /readyz."""
    device_reports_per_s: float = Field(default=10.0, gt=0)
    """Rate limit: reports per second that a device may send in the long run. Each ingest process counts by itself."""
    device_reports_burst: int = Field(default=300, ge=1)
    """Rate limit: reports that a device may send at once. An hour of reports at 15 s is 240."""
    backfill_reports_per_s: float = Field(default=10_000.0, gt=0)
    """Maximum rate of buffered reports into each partition of the log, so that live reports don't wait for them."""

    @model_validator(mode="after")
    def _refuse_plaintext_for_phones_off_loopback(self) -> Self:
        if bool(self.http_tls_cert) != bool(self.http_tls_key):
            raise ValueError("TANDEM_HTTP_TLS_CERT and TANDEM_HTTP_TLS_KEY go together: set both or neither")
        if self.host not in LOOPBACK and not self.http_tls:
            raise ValueError(
                f"TANDEM_HOST={self.host} isn't loopback: refused without TANDEM_HTTP_TLS_CERT and TANDEM_HTTP_TLS_KEY"
            )
        return self
