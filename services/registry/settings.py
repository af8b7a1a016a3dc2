"""Settings of the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from services.common.settings import CommonSettings
from services.registry.vault import KEY_BYTES, parse_keys, read_or_make_keys


class RegistrySettings(CommonSettings):
    """Read from the environment, each with the prefix TANDEM_."""

    # A refused key must not be printed.
    model_config = SettingsConfigDict(hide_input_in_errors=True)

    port: int = Field(default=7401, ge=0, le=65535)
    """TCP port of gRPC."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """TCP port of /metrics, /healthz and /readyz; 0 takes any."""
    service_area: Literal["korea", "world"] = "korea"
    """Where protected places may lie; the world is for foreign tracks."""
    registry_key: SecretStr = SecretStr("")
    """Keys that wrap the keys of personal data, 64 hex digits each, the oldest first, commas between them. Where it is
    empty, those in `key_file` are used."""

    registry_database_url: SecretStr = SecretStr("")
    """postgresql://user@host/database; where it is empty, the database is an SQLite file in `data_dir`."""

    ledger_key: Path | None = None
    """File of the key that signs the ledger's heads, which belongs on another disk than the database."""

    warning_public_key: Path | None = None
    """File of the warning leg's public key, which that leg keeps beside its private one: contacts of protected persons are sealed
    with it. Without it a protected person with a contact is refused."""

    @field_validator("registry_key")
    @classmethod
    def _is_a_key(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        try:
            parse_keys(text.split(",")) if text else ()
        except ValueError:
            raise ValueError(f"TANDEM_REGISTRY_KEY must be keys of {2 * KEY_BYTES} hex digits") from None
        return value

    @property
    def database(self) -> Path | str:
        """The SQLite file, or PostgreSQL's URL."""
        return self.registry_database_url.get_secret_value() or self.data_dir / "registry.sqlite3"

    @property
    def key_file(self) -> Path:
        """The key, made at the first start, readable by its owner only."""
        return self.data_dir / "registry.key"

    @property
    def ledger_key_file(self) -> Path:
        """The key that signs the ledger's heads, made at the first start, readable by its owner only."""
        return self.ledger_key or self.data_dir / "ledger.key"

    def keys(self) -> tuple[bytes, ...]:
        """The ring of keys, the oldest first. Raises FailedPrecondition where its file is damaged."""
        given = self.registry_key.get_secret_value()
        return parse_keys(given.split(",")) if given else read_or_make_keys(self.key_file)
