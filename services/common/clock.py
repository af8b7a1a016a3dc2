"""The mesh's clock: wall time in earnest, faster for replays on loopback."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MeshClock:
    """Maps wall time to mesh time. Deadlines and stamps follow it; latencies are measured in wall time."""

    rate: int = 1
    """How many times as fast as wall time; an integer, so that every host maps a stamp to the same millisecond."""
    anchor_ms: int = 0
    """Wall time at which both are equal, milliseconds since 1970 UTC."""

    def to_mesh_ms(self, wall_ms: int) -> int:
        """Mesh time of a wall time, both milliseconds since 1970 UTC."""
        return wall_ms if self.rate == 1 else self.anchor_ms + (wall_ms - self.anchor_ms) * self.rate

    def now_ms(self) -> int:
        """Mesh time now, milliseconds since 1970 UTC."""
        return self.to_mesh_ms(time.time_ns() // 1_000_000)

    def to_wall_us(self, mesh_ms: int) -> int:
        """Wall time of a mesh time, microseconds since 1970 UTC."""
        return (
            mesh_ms * 1000 if self.rate == 1 else self.anchor_ms * 1000 + (mesh_ms - self.anchor_ms) * 1000 // self.rate
        )

    def wall_s(self, mesh_ms: int) -> float:
        """Wall duration of a stretch of mesh time, seconds."""
        return mesh_ms / 1000 / self.rate


def wall_us() -> int:
    """Wall time now, microseconds since 1970 UTC; for measurement only."""
    return time.time_ns() // 1000
