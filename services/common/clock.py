"""Mesh time: equal to wall time in live operation, faster than wall time for replays on loopback."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MeshClock:
    """Mapping between wall time and mesh time. Deadlines and stamps use mesh time; latencies are measured in wall time."""

    rate: int = 1
    """Speed of mesh time relative to wall time. An integer, so that every host maps a stamp to the same millisecond."""
    anchor_ms: int = 0
    """Wall time at which wall time and mesh time are equal, milliseconds since 1970 UTC."""

    def to_mesh_ms(self, wall_ms: int) -> int:
        """Converts wall time to mesh time, both milliseconds since 1970 UTC."""
        return wall_ms if self.rate == 1 else self.anchor_ms + (wall_ms - self.anchor_ms) * self.rate

    def now_ms(self) -> int:
        """Current mesh time, milliseconds since 1970 UTC."""
        return self.to_mesh_ms(time.time_ns() // 1_000_000)

    def to_wall_us(self, mesh_ms: int) -> int:
        """Converts mesh time in milliseconds to wall time in microseconds, both since 1970 UTC."""
        return (
            mesh_ms * 1000 if self.rate == 1 else self.anchor_ms * 1000 + (mesh_ms - self.anchor_ms) * 1000 // self.rate
        )

    def wall_s(self, mesh_ms: int) -> float:
        """Converts a duration in mesh time, milliseconds, to its duration in wall time, seconds."""
        return mesh_ms / 1000 / self.rate


def wall_us() -> int:
    """Current wall time, microseconds since 1970 UTC. For latency measurements only."""
    return time.time_ns() // 1000
