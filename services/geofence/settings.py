"""Settings of the geofence service."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from services.common.settings import LOOPBACK, CommonSettings
from services.geofence import state_keys
from services.geofence.state_keys import StateKeys


class GeofenceSettings(CommonSettings):
    """Settings of one evaluator process, from the environment; read once, in __main__."""

    port: int = Field(default=7403, ge=0, le=65535)
    """TCP port of gRPC; 0 takes any free port."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """TCP port of /metrics, /healthz and /readyz; 0 takes any free port."""
    replica: int = Field(default=0, ge=0)
    """Number of this evaluator, from 0."""
    replicas: int = Field(default=2, ge=1)
    """Number of evaluators. Two of them fold each partition, or the only one."""
    checkpoint_every: int = Field(default=5_000, ge=1)
    """Entries between checkpoints of a partition."""
    tick_after_s: float = Field(default=1.0, gt=0)
    """Idle time of the log after which the evaluator publishes a tick, seconds of mesh time."""

    state_key: Path | None = None
    """File of the keys of checkpoints and digests, 64 hex digits a line, the newest last. It is the same for all evaluators and
    isn't kept in `data_dir`. Required off loopback; on loopback `dev_secret` replaces a missing file."""

    share_every_s: float = Field(default=1.0, gt=0)
    """Minimum time between two positions of a subject in one share, seconds of wall time."""

    @model_validator(mode="after")
    def _replica_exists(self) -> Self:
        if self.replica >= self.replicas:
            raise ValueError(f"TANDEM_REPLICA={self.replica} must be below TANDEM_REPLICAS={self.replicas}")
        return self

    @model_validator(mode="after")
    def _require_key_off_loopback(self) -> Self:
        if self.state_key is None and self.host not in LOOPBACK:
            raise ValueError(f"TANDEM_HOST={self.host} isn't loopback: TANDEM_STATE_KEY must name a key file")
        return self

    @property
    def state_keys(self) -> StateKeys:
        """Keys of checkpoints and digests. Raises FailedPrecondition if the key file holds none."""
        return state_keys.read(self.state_key) if self.state_key else state_keys.of_secret(self.dev_secret)

    def partitions(self, count: int) -> list[int]:
        """Partitions that this evaluator folds: each p where p or p + 1 equals its number modulo `replicas`."""
        return [p for p in range(count) if self.replica in (p % self.replicas, (p + 1) % self.replicas)]

    def is_backup(self, partition: int) -> bool:
        """Whether this evaluator is the second of the two that fold a partition."""
        return self.replica != partition % self.replicas
