"""Test support: a story is a short log of a case, with positions in metres from the protected person's home, and its alerts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.geofence import translate
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert, Output, SensingRequest
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import FOLD_VERSION, Body, Entry, FoldVersion, PositionSource, Rules, Tick
from services.geofence.domain.state import State
from services.ingest.domain import EquipmentEvent, Position, Positions, UnitPresence
from services.ingest.translate import equipment_entry, positions_entry, presences_entry
from tandem.common.v1 import geometry_pb2, log_pb2, presence_pb2

T0_MS = 1_790_000_000_000
"""Second 0 of each story."""
LAT_E7, LON_E7 = 375_000_000, 1_270_000_000
_NORTH_E7_PER_M = 90.10057
_EAST_E7_PER_M = 113.0897


def place_e7(north_m: float, east_m: float = 0.0) -> tuple[int, int]:
    """Latitude and longitude of an offset from the home, 1e-7 degrees; accurate to a centimetre within 1 km."""
    return LAT_E7 + round(north_m * _NORTH_E7_PER_M), LON_E7 + round(east_m * _EAST_E7_PER_M)


@dataclass
class Story:
    """A log that a test extends by calls, and the outputs of its fold."""

    state: State = field(default_factory=lambda: State(0))
    outputs: list[Output] = field(default_factory=list)
    clear_after_s: int = 60

    def __post_init__(self) -> None:
        self.enter(0, Rules(clear_after_ms=self.clear_after_s * 1000))
        self.enter(0, FoldVersion(FOLD_VERSION))

    def enter(self, at_s: float, body: Body) -> None:
        """Folds an entry that arrives at a second of the story, after all due ticks."""
        stamp_ms = T0_MS + round(at_s * 1000)
        while (due_ms := fold.next_due_ms(self.state)) is not None and due_ms < stamp_ms:
            self.outputs += fold.step(self.state, Entry(self.state.sequence + 1, due_ms, Tick()))
        self.outputs += fold.step(self.state, Entry(self.state.sequence + 1, stamp_ms, body))

    def tick(self, at_s: float) -> None:
        """Folds a tick at a second of the story."""
        self.enter(at_s, Tick())

    def case(self, at_s: float = 0, case: str = "1", **changes: object) -> None:
        """Folds a case of wearer w with tag `tag` and person p with device `phone`; `changes` replace fields of the snapshot."""
        ring = geometry_pb2.Ring
        content: dict[str, object] = {
            "case_id": f"case-{case}",
            "version": 1,
            "order_id": f"order-{case}",
            "wearer_id": "w",
            "tag_device_ids": ["tag"],
            "persons": [log_pb2.ProtectedTarget(person_id="p", device_ids=["phone"])],
            "rings": [
                ring(radius_m=2000, action=geometry_pb2.WARN),
                ring(radius_m=1000, action=geometry_pb2.NOTIFY),
                ring(radius_m=100, action=geometry_pb2.RESPOND),
            ],
            "valid_from_ms": T0_MS - 86_400_000,
            "valid_until_ms": T0_MS + 86_400_000,
        }
        self.enter(at_s, translate.case_of(log_pb2.CaseSnapshot(**(content | changes))))  # type: ignore[arg-type]

    def at(
        self,
        at_s: float,
        device_id: str,
        north_m: float,
        east_m: float = 0.0,
        *,
        fix_s: float | None = None,
        report_id: str | None = None,
        accuracy_m: float = 5,
        source: PositionSource = PositionSource.UNSPECIFIED,
    ) -> None:
        """Folds a position that arrives at a second of the story. `fix_s` is the time of the fix, by default the same second."""
        fix_ms = T0_MS + round((at_s if fix_s is None else fix_s) * 1000)
        position = Position(
            device_id, report_id or f"{fix_ms}", fix_ms, *place_e7(north_m, east_m), round(accuracy_m * 1000), source
        )
        self.enter(at_s, translate.entry_body(positions_entry(Positions.of([position]), 0).SerializeToString()))

    def says(
        self,
        at_s: float,
        device_id: str,
        event: str,
        report_id: str | None = None,
        event_s: float | None = None,
        *,
        silent: bool = False,
    ) -> None:
        """Folds an equipment event that a device reports. `silent` says that a panic is called in silence."""
        event_ms = T0_MS + round((at_s if event_s is None else event_s) * 1000)
        kind = log_pb2.EquipmentKind.Value(event)
        report = EquipmentEvent(device_id, report_id or f"e{at_s}", kind, event_ms, silent)
        self.enter(at_s, translate.entry_body(equipment_entry(report, 0).SerializeToString()))

    def heard(self, at_s: float, *device_ids: str) -> None:
        """Folds reports without usable content, as devices send them whose clocks are too far ahead."""
        batch = log_pb2.HeardBatch(device_id=device_ids, report_id=[f"h{at_s}" for _ in device_ids])
        self.enter(at_s, translate.entry_body(log_pb2.LogEntry(heard=batch).SerializeToString()))

    def present(
        self,
        at_s: float,
        unit_id: str,
        device_id: str = "tag",
        *,
        since_s: float | None = None,
        seen_s: float | None = None,
        left: bool = False,
    ) -> None:
        """Folds a presence of a device at a home unit or beacon, by default since and at the second of its arrival."""
        seen_ms = T0_MS + round((at_s if seen_s is None else seen_s) * 1000)
        since_ms = seen_ms if since_s is None else T0_MS + round(since_s * 1000)
        presence = UnitPresence(device_id, f"p{at_s}", unit_id, since_ms=since_ms, seen_ms=seen_ms, left=left)
        self.enter(at_s, translate.entry_body(presences_entry([presence], 0).SerializeToString()))

    def present_each_minute(self, from_s: float, to_s: float, unit_id: str, device_id: str = "tag") -> None:
        """Folds presences of a device at a unit each minute, from its arrival there on."""
        at_s = from_s
        while at_s <= to_s:
            self.present(at_s, unit_id, device_id, since_s=from_s)
            at_s += 60

    @property
    def alerts(self) -> list[Alert]:
        """All alerts of the story so far."""
        return [output for output in self.outputs if isinstance(output, Alert)]

    def of(self, *kinds: AlertKind) -> list[Alert]:
        """Alerts of these kinds of the story so far."""
        return [alert for alert in self.alerts if alert.kind in kinds]

    def emitted(self) -> list[tuple[str, int, float]]:
        """Kind, ring in metres, and time in seconds of the story, of each alert."""
        return [(a.kind.value, a.ring_mm // 1000, (a.at_ms - T0_MS) / 1000) for a in self.alerts]

    def entered(self) -> list[int]:
        """Radii of the entered rings, metres, in order."""
        return [a.ring_mm // 1000 for a in self.alerts if a.kind is AlertKind.RING_ENTERED]

    @property
    def requests(self) -> list[SensingRequest]:
        """All requests of the story so far."""
        return [output for output in self.outputs if isinstance(output, SensingRequest)]

    def intervals(self, device_id: str = "tag") -> list[int]:
        """The intervals that were asked of a device, in order."""
        return [request.interval_s for request in self.of_device(device_id) if request.interval_s is not None]

    def located_s(self) -> list[float]:
        """When the position of the tag was asked for, seconds of the story."""
        return [second(request) for request in self.of_device("tag") if request.interval_s is None]

    def of_device(self, device_id: str) -> list[SensingRequest]:
        """All requests to a device."""
        return [request for request in self.requests if request.device_id == device_id]

    def needed_s(self, at_s: float) -> int:
        """The interval that an obeying tag keeps at a second of the story: 60 s where none is asked."""
        now_ms = T0_MS + round(at_s * 1000)
        asked = [request for request in self.of_device("tag") if request.interval_s is not None]
        newest = asked[-1] if asked else None
        return newest.interval_s if newest and newest.interval_s and newest.until_ms > now_ms else 60


def second(request: SensingRequest) -> float:
    """When a request was made, seconds of the story."""
    return (request.decided_at_ms - T0_MS) / 1000


def unit(
    unit_id: str,
    north_m: float,
    east_m: float = 0.0,
    *,
    kind: presence_pb2.PresenceUnitKind.ValueType = presence_pb2.PRESENCE_UNIT_KIND_HOME_UNIT,
    range_m: float = 30,
    from_s: float = -86_400,
    until_s: float | None = None,
    interval_s: int = 60,
) -> presence_pb2.PresenceUnitPlace:
    """A home unit or beacon at an offset from the home."""
    return presence_pb2.PresenceUnitPlace(
        unit_id=unit_id,
        kind=kind,
        place=circle("", north_m, east_m, range_m).circle,
        installed_from_ms=T0_MS + round(from_s * 1000),
        installed_until_ms=0 if until_s is None else T0_MS + round(until_s * 1000),
        report_interval_s=interval_s,
    )


def circle(place_id: str, north_m: float, east_m: float, radius_m: float) -> geometry_pb2.Place:
    """A round protected place."""
    lat_e7, lon_e7 = place_e7(north_m, east_m)
    shape = geometry_pb2.Circle(lat_deg=lat_e7 / 1e7, lon_deg=lon_e7 / 1e7, radius_m=radius_m)
    return geometry_pb2.Place(place_id=place_id, circle=shape)


def polygon(
    place_id: str, *corners: tuple[float, float], holes: Sequence[Sequence[tuple[float, float]]] = ()
) -> geometry_pb2.Place:
    """A protected place with corners (north, east), and holes with such corners, metres."""
    area = geometry_pb2.Polygon(
        vertices=_points(corners), holes=[geometry_pb2.Hole(vertices=_points(hole)) for hole in holes]
    )
    return geometry_pb2.Place(place_id=place_id, polygon=area)


def _points(corners: Sequence[tuple[float, float]]) -> list[geometry_pb2.Point]:
    return [geometry_pb2.Point(lat_deg=lat / 1e7, lon_deg=lon / 1e7) for lat, lon in (place_e7(*c) for c in corners)]


def metres(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Distance of two offsets, metres."""
    return math.dist(first, second)
