"""Where destinations are, as far as the leg was told. Kept in memory only: a position that nobody repeats is of no use."""

from __future__ import annotations

from collections.abc import Iterable

from services.dispatch.domain.areas import LatLon

KNOWN_FOR_MS = 180_000
"""A position that is older is unknown."""
KNOWN_MAX = 100_000


class LastKnownPositions:
    """Positions by destination: a wearer, a protected person, or `order/place`."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[LatLon, int | None]] = {}

    def put(self, subject_id: str, point: LatLon, at_ms: int | None) -> None:
        """Keeps where a destination was at a moment, mesh time; None for a place, which stays where it is."""
        self._known.pop(subject_id, None)
        self._known[subject_id] = (point, at_ms)
        if len(self._known) > KNOWN_MAX:
            self._known.pop(next(iter(self._known)))

    def of(self, subject_ids: Iterable[str], now_ms: int) -> dict[str, LatLon]:
        """Where destinations are; who isn't known well enough is left out."""
        found = {}
        for subject_id in subject_ids:
            point, at_ms = self._known.get(subject_id, (None, None))
            if point and (at_ms is None or now_ms - at_ms <= KNOWN_FOR_MS):
                found[subject_id] = point
        return found
