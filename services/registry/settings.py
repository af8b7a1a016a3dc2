"""Settings of the registry."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from services.common.settings import CommonSettings
from services.registry.vault import KEY_BYTES


class RegistrySettings(CommonSettings):
    """Read from the environment, each with the prefix TANDEM_."""

    # A refused key must not be printed.
    model_config = SettingsConfigDict(hide_input_in_errors=True)

    port: int = Field(default=7401, ge=0, le=65535)
    """TCP port of gRPC."""
    registry_key: SecretStr = SecretStr("")
    """Key that personal data is encrypted under, 64 hex digits. Where it is empty, the one in `key_file` is used."""

    registry_database_url: SecretStr = SecretStr("")
    """postgresql://user@host/database; where it is empty, the database is an SQLite file in `data_dir`."""

    @field_validator("registry_key")
    @classmethod
    def _is_a_key(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        try:
            valid = not text or len(bytes.fromhex(text)) == KEY_BYTES
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(f"TANDEM_REGISTRY_KEY must be {2 * KEY_BYTES} hex digits")
        return value

    @property
    def database(self) -> Path | str:
        """The SQLite file, or PostgreSQL's URL."""
        return self.registry_database_url.get_secret_value() or self.data_dir / "registry.sqlite3"

    @property
    def key_file(self) -> Path:
        """The key, made at the first start, readable by its owner only."""
        return self.data_dir / "registry.key"
