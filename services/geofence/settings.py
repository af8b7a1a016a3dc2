"""Settings of the geofence service."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from services.common.settings import LOOPBACK, CommonSettings
from services.geofence import state_keys
from services.geofence.state_keys import StateKeys


class GeofenceSettings(CommonSettings):
    """Read once, in __main__."""

    port: int = Field(default=7403, ge=0, le=65535)
    """TCP port of gRPC."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """TCP port of /metrics, /healthz and /readyz; 0 takes any."""
    replica: int = Field(default=0, ge=0)
    """Which evaluator this is, from 0."""
    replicas: int = Field(default=2, ge=1)
    """How many there are. Each partition is folded by two of them, or by the only one."""
    checkpoint_every: int = Field(default=5_000, ge=1)
    """Entries between checkpoints of a partition."""
    tick_after_s: float = Field(default=1.0, gt=0)
    """A tick is published when the log has been idle for this long, seconds of mesh time."""

    state_key: Path | None = None
    """File of the keys of checkpoints and digests, 64 hex digits a line, the newest last; the same for all evaluators, and not in
    `data_dir`. Needed off loopback; on it, without the file, `dev_secret` takes its place."""

    share_every_s: float = Field(default=1.0, gt=0)
    """Least time between two positions of a subject in one share, seconds of wall time."""

    @model_validator(mode="after")
    def _replica_exists(self) -> Self:
        if self.replica >= self.replicas:
            raise ValueError(f"TANDEM_REPLICA={self.replica} must be below TANDEM_REPLICAS={self.replicas}")
        return self

    @model_validator(mode="after")
    def _refuse_no_key_off_loopback(self) -> Self:
        if self.state_key is None and self.host not in LOOPBACK:
            raise ValueError(f"TANDEM_HOST={self.host} isn't loopback: refused without TANDEM_STATE_KEY")
        return self

    @property
    def state_keys(self) -> StateKeys:
        """Keys of checkpoints and digests. Raises FailedPrecondition where the file holds none."""
        return state_keys.read(self.state_key) if self.state_key else state_keys.of_secret(self.dev_secret)

    def partitions(self, count: int) -> list[int]:
        """Partitions that this evaluator folds: those with p or p + 1 equal to the replica, mod the number of replicas."""
        return [p for p in range(count) if self.replica in (p % self.replicas, (p + 1) % self.replicas)]
