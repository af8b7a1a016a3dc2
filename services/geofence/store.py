"""Checkpoints on disk: one file each, named by partition, sequence and digest, written whole or not at all."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from services.common.telemetry import logger
from services.geofence.domain import codec
from services.geofence.domain.state import State

KEEP = 2
_NAME = re.compile(r"checkpoint-p(\d+)-s(\d+)-([0-9a-f]{64})\.json")


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """Checkpoints of one evaluator."""

    folder: Path

    def save(self, partition: int, sequence: int, encoded: bytes) -> None:
        """Writes a checkpoint durably and drops all but the newest two."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f"checkpoint-p{partition}-s{sequence}-{codec.digest(encoded)}.json"
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(encoded)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        directory = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        for _, old in self._newest_first(partition)[KEEP:]:
            old.unlink(missing_ok=True)

    def load(self, partition: int, log_id: str) -> State | None:
        """The newest state of this log whose file is whole; None where the log must be replayed from its start."""
        for sequence, path in self._newest_first(partition):
            data = path.read_bytes()
            if codec.digest(data) != path.stem.rpartition("-")[2]:
                logger().error("checkpoint_damaged", partition=partition, sequence=sequence)
                continue
            try:
                state = codec.decode(data)
            except codec.UnreadableState as error:
                logger().warning("checkpoint_unreadable", partition=partition, sequence=sequence, reason=str(error))
                continue
            if state.log_id == log_id:
                return state
            logger().error("checkpoint_of_another_log", partition=partition, sequence=sequence)
        return None

    def _newest_first(self, partition: int) -> list[tuple[int, Path]]:
        found = []
        for path in self.folder.glob(f"checkpoint-p{partition}-*.json"):
            name = _NAME.fullmatch(path.name)
            if name:
                found.append((int(name[2]), path))
        return sorted(found, reverse=True)
