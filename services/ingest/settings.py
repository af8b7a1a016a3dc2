"""Settings of the ingest service."""

from __future__ import annotations

from pydantic import Field

from services.common.settings import CommonSettings


class Settings(CommonSettings):
    """Read once, in __main__."""

    port: int = Field(default=7402, ge=0, le=65535)
    """TCP port of gRPC."""
