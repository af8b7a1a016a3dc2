"""A followed target: its last position, its recent track, and its share at an evaluator."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from services.common import times
from services.common.geometry import LatLon
from services.common.retrying import Backoff
from services.dispatch.domain.race import PACE_OVER_MS, Sighting
from services.dispatch.following.endpoints import EvaluatorEndpoint
from services.dispatch.following.evaluator_stream import EvaluatorStream
from tandem.geofence.v1 import positions_pb2


class TargetKey(NamedTuple):
    """Key of a target. It has the incident too, since the same person may be the target in several incidents."""

    incident_id: str
    kind: positions_pb2.SubjectKind.ValueType
    subject_id: str


@dataclass(slots=True)
class FollowedTarget:
    """A target with its last position and recent track."""

    position: positions_pb2.LivePosition | None = None
    interrupted: bool = True
    """Whether no positions arrive at present, since the share isn't open yet, or its stream broke."""
    track: deque[Sighting] = field(default_factory=deque)
    """Positions of the last minute, mesh time."""
    expires_at_ms: int = 0
    """End of the requested share, mesh time; 0 if none was requested."""
    stream: EvaluatorStream | None = None
    """Stream to the evaluator that the share was requested from."""
    number: int = 0
    """Number of the share."""
    refused_by: set[EvaluatorEndpoint] = field(default_factory=set)
    """Evaluators that refused the share in this round."""
    is_unavailable: bool = False
    """Whether an evaluator refused it as UNAVAILABLE in this round."""
    failures: int = 0
    """Number of rounds through all evaluators without a position."""
    retry: asyncio.TimerHandle | None = None

    def put(self, position: positions_pb2.LivePosition) -> tuple[LatLon, int | None] | None:
        """Applies a position. Returns its point and time, mesh time (None for a place), if the position is known."""
        self.position, self.interrupted, self.failures = position, False, 0
        self.refused_by.clear()
        if not position.HasField("lat_deg"):
            return None
        point = LatLon(position.lat_deg, position.lon_deg)
        at_ms = times.from_timestamp(position.fix_time) if position.HasField("fix_time") else None
        if at_ms is not None and (not self.track or at_ms > self.track[-1].at_ms):
            self.track.append(Sighting(at_ms, point))
            while self.track[0].at_ms < at_ms - PACE_OVER_MS:
                self.track.popleft()
        return point, at_ms

    def request_later(self, backoff: Backoff, request: Callable[[], None]) -> None:
        """Calls `request` after the next delay of a backoff, and begins a new round through the evaluators."""
        self.cancel_retry()
        self.refused_by.clear()
        self.is_unavailable = False
        # Add jitter, so that the shares of an evaluator that stopped aren't requested all at once.
        delay_s = backoff.delay_s(self.failures) * random.uniform(0.5, 1.0)  # noqa: S311  # no secret
        self.failures += 1

        def retry() -> None:
            self.retry = None
            request()

        self.retry = asyncio.get_running_loop().call_later(delay_s, retry)

    def cancel_retry(self) -> None:
        """Cancels the next retry, if there is one."""
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None
