"""Authorised encounters for tests of the decision."""

from __future__ import annotations

from typing import Any

from services.common import times
from tandem.common.v1 import encounter_pb2
from tests.support.geofence.stories import T0_MS


def encounter(from_s: float = -1000, until_s: float = 3000, **changes: Any) -> encounter_pb2.Encounter:
    """A day in court."""
    content: dict[str, Any] = {
        "encounter_id": "hearing",
        "reason": encounter_pb2.COURT_DATE,
        "from": times.to_timestamp(T0_MS + round(from_s * 1000)),
        "until": times.to_timestamp(T0_MS + round(until_s * 1000)),
    }
    return encounter_pb2.Encounter(**(content | changes))
