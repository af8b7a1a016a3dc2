"""Settings of the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from services.common.privacy.secret_keys import KEY_BYTES, open_keys, parse_keys
from services.common.settings import CommonSettings


class RegistrySettings(CommonSettings):
    """Settings from the environment variables with the prefix TANDEM_."""

    # Validation errors must not print a key.
    model_config = SettingsConfigDict(hide_input_in_errors=True)

    port: int = Field(default=7401, ge=0, le=65535)
    """TCP port of gRPC."""
    metrics_port: int = Field(default=7441, ge=0, le=65535)
    """TCP port of /metrics, /healthz and /readyz."""
    service_area: Literal["korea", "world"] = "korea"
    """Area in which protected places may lie. `world` is for tracks recorded abroad."""
    registry_key: SecretStr = SecretStr("")
    """Keys that wrap the keys of personal data: 64 hex digits each, oldest first, separated by commas. If empty, the keys
    in `key_file` are used."""

    registry_database_url: SecretStr = SecretStr("")
    """postgresql://user@host/database. If empty, the database is an SQLite file in `data_dir`."""

    ledger_key: Path | None = None
    """File with the key that signs the ledger's heads. Keep it on another disk than the database."""

    warning_public_key: Path | None = None
    """File with the public key of the warning leg, which stores it next to its private key. The registry seals the contacts of
    protected persons with it. Without it the registry rejects a protected person with a contact."""

    @field_validator("registry_key")
    @classmethod
    def _is_a_key(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        try:
            parse_keys(text.split(",")) if text else ()
        except ValueError:
            raise ValueError(
                f"TANDEM_REGISTRY_KEY must be keys of {2 * KEY_BYTES} hex digits, separated by commas"
            ) from None
        return value

    @property
    def database(self) -> Path | str:
        """Path of the SQLite file, or URL of the PostgreSQL database."""
        return self.registry_database_url.get_secret_value() or self.data_dir / "registry.sqlite3"

    @property
    def key_file(self) -> Path:
        """File with the key ring. The first start creates it, readable by its owner only."""
        return self.data_dir / "registry.key"

    @property
    def ledger_key_file(self) -> Path:
        """File with the key that signs the ledger's heads. The first start creates it, readable by its owner only."""
        return self.ledger_key or self.data_dir / "ledger.key"

    def keys(self) -> tuple[bytes, ...]:
        """The key ring, oldest key first. Raises FailedPrecondition if its file is damaged."""
        given = self.registry_key.get_secret_value()
        return parse_keys(given.split(",")) if given else open_keys(self.key_file)
