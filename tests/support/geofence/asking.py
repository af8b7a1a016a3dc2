"""Test support: a story whose log demands this fold version, so that the fold asks tags for reports."""

from __future__ import annotations

from dataclasses import dataclass

from services.geofence.domain.alerts import SensingRequest
from services.geofence.domain.entries import FoldVersion
from services.geofence.domain.version import VERSION
from tests.support.geofence.stories import T0_MS, Story


@dataclass
class AskingStory(Story):
    """A story in which the fold asks for data, and perhaps tags that obey."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.enter(0, FoldVersion(VERSION))

    @property
    def requests(self) -> list[SensingRequest]:
        """All requests of the story so far."""
        return [output for output in self.outputs if isinstance(output, SensingRequest)]

    def intervals(self, device_id: str = "tag") -> list[int]:
        """The intervals that were asked of a device, in order."""
        return [request.interval_s for request in self.of_device(device_id) if request.interval_s is not None]

    def located_s(self, device_id: str = "tag") -> list[float]:
        """When the position of a device was asked for, seconds of the story."""
        return [second(request) for request in self.of_device(device_id) if request.interval_s is None]

    def of_device(self, device_id: str) -> list[SensingRequest]:
        """All requests to a device."""
        return [request for request in self.requests if request.device_id == device_id]

    def needed_s(self, at_s: float, device_id: str = "tag", usual_s: int = 60) -> int:
        """The interval that an obeying device keeps at a second of the story."""
        now_ms = T0_MS + round(at_s * 1000)
        asked = [request for request in self.of_device(device_id) if request.interval_s is not None]
        newest = asked[-1] if asked else None
        return newest.interval_s if newest and newest.interval_s and newest.until_ms > now_ms else usual_s


def second(request: SensingRequest) -> float:
    """When a request was made, seconds of the story."""
    return (request.decided_at_ms - T0_MS) / 1000
