"""Test support: readable scenarios (tests/scenarios/*.json), converted into records and reports of the back-test."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.cli.simulate.backtest import Backtest
from services.client.scenario import ReportLine
from services.client.scenario import Scenario as Records
from services.common import times
from services.geofence.domain import codec
from tandem.common.v1 import encounter_pb2, geometry_pb2, log_pb2
from tandem.common.v1 import presence_pb2 as presence_messages
from tandem.ingest.v1 import ingest_pb2, presence_pb2
from tandem.registry.v1 import registry_pb2
from tests.support.expected import Expected, Forbidden
from tests.support.registry import tag_records
from tests.support.scenario_paths import along, scattered

FOLDER = Path(__file__).parents[2] / "scenarios"
RINGS = {"2000": "WARN", "1000": "NOTIFY", "100": "RESPOND"}
"""Rings of an order without rings: radius in metres to the demand of entering it."""
REPEATS = frozenset({"DISTANCE_CHANGED"})
"""Kinds of repeated warnings. A scenario lists the ones that it tests; unlisted ones are no faults."""
ACCURACY_M = 5
DAY_S = 86_400
BIRTH_DATE = "1990-01-01"
_A_M, _E2 = 6_378_137.0, 0.00669437999014
"""WGS84: semi-major axis in metres, and the square of the eccentricity."""
_ITEMS = {
    "path_m": {"what", "device", "path_m", "from_s", "to_s", "every_s", "accuracy_m", "clock_ahead_s"}
    | {"delay_s", "arrives_s", "times", "backwards", "scatter_m", "report", "source"},
    "at_unit": {"what", "device", "at_unit", "from_s", "to_s", "every_s", "since_s", "arrives_s", "leaves"},
    "unit": {"what", "at_s", "unit"},
    "says": {"what", "device", "says", "at_s", "arrives_s", "times"},
    "order": {"what", "at_s", "order"},
    "gives": {"what", "at_s", "gives", "to", "basis"},
    "ends_tag": {"what", "at_s", "ends_tag"},
    "refusal": {"what", "at_s", "refusal"},
    "good_cause": {"what", "at_s", "good_cause"},
    "removal": {"what", "at_s", "removal"},
}
"""Allowed keys of a timeline item, by the key that identifies its kind."""
_ALSO_IN_ORDERS = {"places", "rings", "from_s", "until_s", "encounters", "type", "fit_by_s"}
_EXPECTED = {
    "what",
    "kind",
    "demand",
    "order",
    "target",
    "ring_m",
    "not_before_s",
    "by_s",
    "late",
    "unconfirmed",
    "inside_s",
    "least_m",
    "notice",
    "location",
    "checks",
    "contact",
}
_REQUESTS = frozenset({"SENSING_REQUEST", "CONTACT_REQUEST"})
"""Kinds of outputs for devices, which are no alerts."""


@dataclass(slots=True)
class Scenario:
    """A scenario file, parsed."""

    name: str
    story: str
    begins_ms: int
    records: Records
    must: list[Expected]
    incidents: int | None
    must_not: list[Forbidden] = field(default_factory=list)
    lines: list[ReportLine] = field(default_factory=list)
    """Reports and records in order of arrival."""

    def alerts(self, restart: bool = False) -> list[dict[str, Any]]:
        """All alerts of the fold, and dead letters. With `restart`, the evaluator restarts from a checkpoint before each arrival."""
        backtest = Backtest(self.records, requests=True)
        outputs = list(backtest.begin(self.lines))
        for line in self.lines:
            if restart:
                backtest.state = codec.decode(codec.encode(backtest.state))
            outputs += backtest.arrive(line)
        return [output for output in outputs if output["kind"] not in _REQUESTS]

    def faults(self, alerts: Sequence[dict[str, Any]]) -> list[str]:
        """Missing alerts, unexpected alerts above RECORD, forbidden alerts, and alerts about a future time, as texts."""
        left = list(alerts)
        faults = []
        for expected in self.must:
            met = next(
                (alert for alert in left if alert["kind"] != "PARKED" and expected.is_met_by(alert, self.begins_ms)),
                None,
            )
            if met is None:
                faults.append(f"missing: {expected}")
            else:
                left.remove(met)
        unexpected = [
            alert for alert in left if alert.get("demand", "RECORD") != "RECORD" and alert["kind"] not in REPEATS
        ]
        faults += [f"unexpected: {alert}" for alert in unexpected]
        faults += [
            f"forbidden: {alert}"
            for alert in alerts
            if any(forbidden.is_broken_by(alert, self.begins_ms) for forbidden in self.must_not)
        ]
        faults += [
            f"of a time that hasn't come: {alert}"
            for alert in alerts
            if alert.get("at", "") > alert.get("decided_at", "")
        ]
        incidents = {alert["incident_id"] for alert in alerts if alert.get("incident_id")}
        if self.incidents is not None and len(incidents) != self.incidents:
            faults.append(f"incidents: {len(incidents)}, not {self.incidents}")
        return faults


def files() -> list[Path]:
    """Paths of all scenarios."""
    return sorted(FOLDER.glob("*.json"))


def load(path: Path) -> Scenario:
    """Reads a scenario file. Raises ValueError where it breaks the format of tests/scenarios/README.md."""
    return parse(json.loads(path.read_text("utf-8")))


def parse(content: dict[str, Any]) -> Scenario:
    """Parses the content of a scenario file. Raises ValueError where it breaks the format."""
    return _Reader(content).scenario


class _Reader:
    def __init__(self, content: dict[str, Any]) -> None:
        _only(
            content,
            {"name", "story", "origin", "begins", "wearers", "protected", "orders", "timeline", "must"},
            {"incidents", "must_not", "tag_basis", "units"},
        )
        _only(content["origin"], {"where", "lat_deg", "lon_deg"})
        self._lat_deg, self._lon_deg = content["origin"]["lat_deg"], content["origin"]["lon_deg"]
        self._begins_ms = times.from_rfc3339(content["begins"])
        self._wearers: dict[str, list[str]] = content["wearers"]
        self._protected: dict[str, list[str]] = content["protected"]
        self._bases: dict[str, str] = content.get("tag_basis", {})
        self._units: list[dict[str, Any]] = content.get("units", [])
        self._reports = 0
        for alert in content["must"]:
            _only(alert, {"kind", "demand", "by_s"}, _EXPECTED)
        for alert in content.get("must_not", ()):
            _only(alert, {"kind"}, {"what", "target", "ring_m", "before_s"})
        self.scenario = Scenario(
            name=content["name"],
            story=content["story"],
            begins_ms=self._begins_ms,
            records=self._records(content["orders"]),
            must=[Expected(**alert) for alert in content["must"]],
            incidents=content.get("incidents"),
            must_not=[Forbidden(**alert) for alert in content.get("must_not", ())],
        )
        arrivals = [arrival for item in content["timeline"] for arrival in self._arrivals(item)]
        arrivals.sort(key=lambda arrival: arrival[0])  # stable: arrivals of the same moment keep the order of the file
        self.scenario.lines = [ReportLine(number, *arrival) for number, arrival in enumerate(arrivals, 1)]

    # ── records ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _records(self, orders: list[dict[str, Any]]) -> Records:
        records = Records()
        for name, tags in self._wearers.items():
            number = self._national_id(name)
            records.wearers.append(
                registry_pb2.Wearer(wearer_id=name, national_id=number, name=name, birth_date=BIRTH_DATE)
            )
            records.tags += [self._tag(tag, name) for tag in tags]
        for name, devices in self._protected.items():
            records.protected_persons.append(registry_pb2.ProtectedPerson(person_id=name, name=name))
            records.devices += [registry_pb2.Device(device_id=device, person_id=name) for device in devices]
        records.orders += [self._order(order) for order in orders]
        records.presence_units += [self._unit(unit) for unit in self._units]
        return records

    def _tag(self, device: str, wearer: str, basis: str = "") -> registry_pb2.Tag:
        name = basis or self._bases.get(device, "UNSPECIFIED")
        return registry_pb2.Tag(
            device_id=device, wearer_id=wearer, basis=registry_pb2.TagBasis.Value(f"TAG_BASIS_{name}")
        )

    def _unit(self, unit: dict[str, Any]) -> registry_pb2.PresenceUnit:
        """A home unit, or another `kind`, of a wearer or protected person."""
        optional = {"kind", "range_m", "from_s", "until_s", "interval_s"}
        _only(unit, {"unit", "of", "centre_m"}, optional)
        kind = unit.get("kind", "HOME_UNIT")
        message = registry_pb2.PresenceUnit(
            unit_id=unit["unit"],
            kind=presence_messages.PresenceUnitKind.Value(f"PRESENCE_UNIT_KIND_{kind}"),
            place=geometry_pb2.Circle(**self._point(*unit["centre_m"]), radius_m=unit.get("range_m", 30)),
            installed_from=times.to_timestamp(self._ms(unit.get("from_s", -DAY_S))),
            report_interval_s=unit.get("interval_s", 60),
            identifier="" if kind == "HOME_UNIT" else "02:00:5e:10:00:01",
        )
        if "until_s" in unit:
            message.installed_until.CopyFrom(times.to_timestamp(self._ms(unit["until_s"])))
        setattr(message, "wearer_id" if unit["of"] in self._wearers else "person_id", unit["of"])
        return message

    def _national_id(self, wearer: str) -> str:
        return f"900101-1{list(self._wearers).index(wearer):06d}"

    def _order(self, order: dict[str, Any]) -> registry_pb2.Order:
        _only(order, {"order", "against", "protects"}, _ALSO_IN_ORDERS)
        name = order["against"]
        rings = order.get("rings", RINGS)
        until_s, fit_by_s = order.get("until_s", 30 * DAY_S), order.get("fit_by_s")
        return registry_pb2.Order(
            order_id=order["order"],
            respondent=registry_pb2.Respondent(national_id=self._national_id(name), name=name, birth_date=BIRTH_DATE),
            protected_person_ids=order["protects"],
            places=[self._place(place) for place in order.get("places", ())],
            rings=[
                geometry_pb2.Ring(radius_m=float(radius_m), action=geometry_pb2.Demand.Value(action))
                for radius_m, action in rings.items()
            ],
            valid_from=times.to_timestamp(self._ms(order.get("from_s", -DAY_S))),
            valid_until=None if until_s is None else times.to_timestamp(self._ms(until_s)),
            type=registry_pb2.OrderType.Value(f"ORDER_TYPE_{order.get('type', 'UNSPECIFIED')}"),
            fit_by=None if fit_by_s is None else times.to_timestamp(self._ms(fit_by_s)),
            encounters=[self._encounter(encounter) for encounter in order.get("encounters", ())],
        )

    def _encounter(self, encounter: dict[str, Any]) -> encounter_pb2.Encounter:
        _only(encounter, {"encounter", "reason", "from_s", "until_s"}, {"places"})
        reason = encounter_pb2.EncounterReason.Value(encounter["reason"])
        places = [self._place(place) for place in encounter.get("places", ())]
        allowed = encounter_pb2.Encounter(encounter_id=encounter["encounter"], reason=reason, places=places)
        getattr(allowed, "from").CopyFrom(times.to_timestamp(self._ms(encounter["from_s"])))
        allowed.until.CopyFrom(times.to_timestamp(self._ms(encounter["until_s"])))
        return allowed

    def _place(self, place: dict[str, Any]) -> geometry_pb2.Place:
        if "corners_m" in place:
            _only(place, {"place", "corners_m"}, {"holes_m", "named"})
            holes = [geometry_pb2.Hole(vertices=self._corners(hole)) for hole in place.get("holes_m", ())]
            area = geometry_pb2.Polygon(vertices=self._corners(place["corners_m"]), holes=holes)
            named = place.get("named", False)
            return geometry_pb2.Place(place_id=place["place"], polygon=area, named_to_respondent=named)
        _only(place, {"place", "centre_m", "radius_m"}, {"named"})
        circle = geometry_pb2.Circle(**self._point(*place["centre_m"]), radius_m=place["radius_m"])
        return geometry_pb2.Place(place_id=place["place"], circle=circle, named_to_respondent=place.get("named", False))

    def _corners(self, corners_m: list[list[float]]) -> list[geometry_pb2.Point]:
        return [geometry_pb2.Point(**self._point(*corner)) for corner in corners_m]

    # ── timeline ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _arrivals(self, item: dict[str, Any]) -> Iterator[tuple[int, Any]]:
        (kind,) = [key for key in _ITEMS if key in item]
        _only(item, {"what"}, _ITEMS[kind])
        match kind:
            case "order":
                yield self._ms(item["at_s"]), self._order(item["order"])
            case "gives":
                yield self._ms(item["at_s"]), self._handover(item["gives"], item["to"], item.get("basis", ""))
            case "ends_tag":
                removed_at = times.to_timestamp(self._ms(item["at_s"]))
                ended = registry_pb2.EndTagRequest(device_id=item["ends_tag"], removed_at=removed_at, source_version=1)
                yield self._ms(item["at_s"]), ended
            case "refusal" | "good_cause" | "removal":
                self._reports += 1
                number, record = f"t{self._reports}", item[kind]
                yield (
                    self._ms(item["at_s"]),
                    tag_records.request_of(kind, number, record, at_s=item["at_s"], ms=self._ms),
                )
            case "says":
                yield from self._events(item)
            case "unit":
                yield self._ms(item["at_s"]), self._unit(item["unit"])
            case "at_unit":
                yield from self._presences(item)
            case _:
                yield from self._positions(item)

    def _handover(self, device: str, to: str, basis: str) -> registry_pb2.Tag | registry_pb2.Device:
        if to in self._wearers:
            return self._tag(device, to, basis)
        return registry_pb2.Device(device_id=device, person_id=to)

    def _events(self, item: dict[str, Any]) -> Iterator[tuple[int, Any]]:
        self._reports += 1
        event = ingest_pb2.EquipmentEvent(
            device_id=item["device"],
            report_id=f"r{self._reports}",
            event_time=times.to_timestamp(self._ms(item["at_s"])),
            event=log_pb2.EquipmentKind.Value(item["says"]),
        )
        for _ in range(item.get("times", 1)):
            yield self._ms(item.get("arrives_s", item["at_s"])), event

    def _presences(self, item: dict[str, Any]) -> Iterator[tuple[int, Any]]:
        """Reports of presence at regular intervals, by default since the first of them. With `leaves`, the last says that he left."""
        from_s, to_s = item["from_s"], item.get("to_s", item["from_s"])
        count = int((to_s - from_s) / item["every_s"]) + 1 if to_s > from_s else 1
        for number in range(count):
            self._reports += 1
            seen_s = from_s + number * item.get("every_s", 0)
            presence = presence_pb2.Presence(
                device_id=item["device"],
                report_id=f"r{self._reports}",
                unit_id=item["at_unit"],
                since=times.to_timestamp(self._ms(item.get("since_s", from_s))),
                seen=times.to_timestamp(self._ms(seen_s)),
                left=bool(item.get("leaves")) and number == count - 1,
            )
            yield self._ms(item.get("arrives_s", seen_s)), presence

    def _positions(self, item: dict[str, Any]) -> Iterator[tuple[int, Any]]:
        """Reports at regular intervals along a path, at constant speed."""
        from_s, to_s = item["from_s"], item.get("to_s", item["from_s"])
        moments = (
            [from_s + i * item["every_s"] for i in range(int((to_s - from_s) / item["every_s"]) + 1)]
            if to_s > from_s
            else [from_s]
        )
        arrivals = []
        errors = random.Random(self._reports)
        for moment_s in moments:
            self._reports += 1
            part = (moment_s - from_s) / (to_s - from_s) if to_s > from_s else 0.0
            place = self._point(*scattered(along(item["path_m"], part), item.get("scatter_m", 0), errors))
            position = ingest_pb2.Position(
                device_id=item["device"],
                report_id=item.get("report", f"r{self._reports}"),
                fix_time=times.to_timestamp(self._ms(moment_s + item.get("clock_ahead_s", 0))),
                accuracy_m=item.get("accuracy_m", ACCURACY_M),
                source=presence_messages.PositionSource.Value(f"POSITION_SOURCE_{item.get('source', 'UNSPECIFIED')}"),
                lat_deg=place["lat_deg"],
                lon_deg=place["lon_deg"],
            )
            arrives_s = item.get("arrives_s", moment_s + item.get("delay_s", 0))
            arrivals += [(self._ms(arrives_s), position)] * item.get("times", 1)
        yield from reversed(arrivals) if item.get("backwards") else arrivals

    def _ms(self, second: float) -> int:
        return self._begins_ms + round(second * 1000)

    def _point(self, east_m: float, north_m: float) -> dict[str, float]:
        """Latitude and longitude of an offset from the origin, by the local curvature; accurate to 0.1 m within 3 km."""
        lat = math.radians(self._lat_deg)
        w2 = 1 - _E2 * math.sin(lat) ** 2
        along_meridian, across = _A_M * (1 - _E2) / w2**1.5, _A_M / math.sqrt(w2)
        return {
            "lat_deg": self._lat_deg + math.degrees(north_m / along_meridian),
            "lon_deg": self._lon_deg + math.degrees(east_m / (across * math.cos(lat))),
        }


def _only(content: dict[str, Any], needed: set[str], also: Sequence[str] | set[str] = ()) -> None:
    missing, unknown = needed - set(content), set(content) - needed - set(also)
    if missing or unknown:
        raise ValueError(f"{content}: missing keys {sorted(missing)}, unknown keys {sorted(unknown)}")
