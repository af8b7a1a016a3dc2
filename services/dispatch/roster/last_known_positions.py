"""Cache of the last known positions of destinations. It is in memory only: a position that isn't repeated is soon useless."""

from __future__ import annotations

from collections.abc import Iterable

from services.common.geometry import LatLon

KNOWN_FOR_MS = 180_000
"""Age from which a position counts as unknown, milliseconds of mesh time."""
KNOWN_MAX = 100_000
"""Maximum number of destinations. The destination that was updated longest ago is dropped first."""


class LastKnownPositions:
    """Last known positions by destination: the id of a wearer or protected person, or `order/place`."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[LatLon, int | None]] = {}

    def put(self, subject_id: str, point: LatLon, at_ms: int | None) -> None:
        """Stores the position of a destination at `at_ms`, mesh time; None for a place, whose position never ages."""
        self._known.pop(subject_id, None)
        self._known[subject_id] = (point, at_ms)
        if len(self._known) > KNOWN_MAX:
            self._known.pop(next(iter(self._known)))

    def of(self, subject_ids: Iterable[str], now_ms: int) -> dict[str, LatLon]:
        """Returns the positions of destinations. Unknown or outdated positions are left out."""
        positions = {}
        for subject_id in subject_ids:
            point, at_ms = self._known.get(subject_id, (None, None))
            if point and (at_ms is None or now_ms - at_ms <= KNOWN_FOR_MS):
                positions[subject_id] = point
        return positions
