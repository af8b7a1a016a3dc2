"""Sources of positions: how far the decision believes the accuracy that a position from Wi-Fi or radio cells states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.geofence.domain.entries import Positions, PositionSource
from services.geofence.domain.state import State

FIRST_VERSION = 14
"""Sources count once the log demands this version: an older log was decided without them."""
MIN_ACCURACY_MM: Mapping[int, int] = {
    PositionSource.UNSPECIFIED: 0,
    PositionSource.GNSS: 0,
    PositionSource.WIFI: 30_000,
    PositionSource.CELL: 500_000,
}
"""Least accuracy of a position by its source, mm: access points are heard 30 m away, and positions from cells were 500 m off when
police went to them. A worse stated accuracy stays. So a position from cells clears no ring within some 500 m."""


def of_batch(state: State, batch: Positions) -> Sequence[int]:
    """The source of each position of a batch; UNSPECIFIED for all if no sender says, or if the log demands an older version."""
    if batch.sources and state.log_version >= FIRST_VERSION:
        return batch.sources
    return (0,) * len(batch.device_ids)
