"""Settings of the geofence service, and the keys of its checkpoints and digests."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from services.common.privacy import secret_keys
from services.common.settings import LOOPBACK, CommonSettings


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
        return read_state_keys(self.state_key) if self.state_key else state_keys_of_secret(self.dev_secret)

    def partitions(self, count: int) -> list[int]:
        """Partitions that this evaluator folds: each p where p or p + 1 equals its number modulo `replicas`."""
        return [p for p in range(count) if self.replica in (p % self.replicas, (p + 1) % self.replicas)]

    def is_backup(self, partition: int) -> bool:
        """Whether this evaluator is the second of the two that fold a partition."""
        return self.replica != partition % self.replicas


_ID_CHARS = 8


class StateKeys:
    """Keys of one mesh's evaluators, the newest last. To change the key, add a line to the file of one evaluator, then of the other."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys:
            raise ValueError("at least one key is needed")
        self._keys = tuple(keys)

    def checkpoint(self, encoded: bytes) -> str:
        """Hash of a checkpoint with the newest key, hex."""
        return _mac(self._keys[-1], b"checkpoint", encoded)

    def is_checkpoint(self, encoded: bytes, stated: str) -> bool:
        """Whether a hash is that of a checkpoint with any of the keys."""
        return any([hmac.compare_digest(_mac(key, b"checkpoint", encoded), stated) for key in self._keys])

    def digest(self, partition: int, sequence: int, encoded: bytes) -> bytes:
        """Digest of the open rings and incidents after an entry, with the newest key: `id.hash`."""
        return _digest(self._keys[-1], partition, sequence, encoded=encoded).encode()

    def is_same(self, stated: bytes, partition: int, sequence: int, *, encoded: bytes) -> bool | None:
        """Whether another evaluator's digest matches this encoding; None if it was made with an unknown key."""
        for key in self._keys:
            if stated.startswith(f"{_id(key)}.".encode()):
                return hmac.compare_digest(stated, _digest(key, partition, sequence, encoded=encoded).encode())
        return None


def state_keys_of_secret(secret: str) -> StateKeys:
    """Keys for development, derived from the secret of the development tokens, which all evaluators on one machine share."""
    return StateKeys([hashlib.sha256(b"tandem state\n" + secret.encode()).digest()])


def read_state_keys(path: Path) -> StateKeys:
    """Reads the keys of a file. Raises FailedPrecondition as `key_files.read_keys` does."""
    return StateKeys(secret_keys.read_keys(path))


def _digest(key: bytes, partition: int, sequence: int, *, encoded: bytes) -> str:
    # Partition and sequence are part of the hash, so that the digest of one entry can't be replayed as that of another.
    return f"{_id(key)}.{_mac(key, f'digest {partition} {sequence}'.encode(), encoded)}"


def _id(key: bytes) -> str:
    return _mac(key, b"id", b"")[:_ID_CHARS]


def _mac(key: bytes, purpose: bytes, content: bytes) -> str:
    return hmac.new(key, b"tandem state " + purpose + b"\n" + content, hashlib.sha256).hexdigest()
