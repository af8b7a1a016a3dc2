"""Back-test: run the mesh's fold over files, in process and without any service, and compare the alerts under two sets of rules."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, assert_never

from services.cli.simulate import tracks
from services.cli.simulate.files import FileError, InputPlace, load_reports, load_scenario
from services.client.scenario import RecordChange, ReportLine, Scenario, TagRecordRequest
from services.common import times
from services.common.failure import MISUSED, CommandFailed
from services.common.ids import hash_id
from services.geofence import translate
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert, ContactRequest, DeadLetter, Output, SensingRequest
from services.geofence.domain.decisions import CaseContext, Decisions
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.detectors import accounts
from services.geofence.domain.entries import FOLD_VERSION, Body, Demand, Entry, FoldVersion, Tick
from services.geofence.domain.state import State
from services.ingest import translate as ingest_translate
from services.ingest.domain import Positions
from services.registry.cases import translate as snapshots
from services.registry.domain import records as registry
from services.registry.domain.cases import build_case, duty_of
from services.registry.domain.wearing import TagRecord, TagRecordKind, periods_of
from services.registry.records import translate as registry_translate
from services.registry.records.translate import parse_unit
from services.registry.wearing import NewRecord, parse_good_cause, parse_refusal, parse_removal
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import ingest_pb2, presence_pb2
from tandem.registry.v1 import registry_pb2, tag_record_pb2

RING_OPEN = "RING_OPEN"


TRACK_SUFFIXES = (".gpx", ".csv")
"""Suffixes of files that hold the track of one tag; any other file holds reports as NDJSON."""
TRACK_ACCURACY_M = 10.0
"""Accuracy of a track's positions without one, metres."""


def run_files(
    scenario_path: Path,
    reports_path: Path,
    rules: log_pb2.Rules | None = None,
    *,
    requests: bool = False,
    device_id: str = "",
) -> Iterator[dict[str, Any]]:
    """Alerts of a scenario and its reports, as `tandem backtest` prints them, by `rules` or the rules in the reports.

    The reports are NDJSON, or a GPX or CSV track of the tag `device_id`, by default the scenario's first. With `requests` also the
    requests for reports of the tags. The reports stay as they are: no tag obeys.

    Raises FileError or CommandFailed before the first alert if a file is unusable.
    """
    scenario = load_scenario(scenario_path)
    if reports_path.suffix.lower() in TRACK_SUFFIXES:
        lines = _track_lines(reports_path, scenario, device_id)
    else:
        lines = load_reports(reports_path, scenario)
    return fold_lines(scenario, lines, rules, requests=requests)


def _track_lines(path: Path, scenario: Scenario, device_id: str) -> list[ReportLine]:
    """The positions of a track, in order of their times, each received at its own time."""
    tag_ids = [tag.device_id for tag in scenario.tags]
    if not tag_ids:
        raise CommandFailed('the scenario has no tag (example: {"device_id": "tag-1", "wearer_id": "W-1"})', MISUSED)
    if device_id and device_id not in tag_ids:
        raise CommandFailed(f"--device: the scenario has no tag {device_id} (tags: {', '.join(tag_ids)})", MISUSED)
    track = tracks.read(path, device_id or tag_ids[0], TRACK_ACCURACY_M)
    if track.faults:
        raise CommandFailed(f"{path}: {track.faults[0]}", MISUSED)
    if not track.timed:
        raise FileError(InputPlace(path), "has no times (example: <time>2026-07-06T00:00:00Z</time>)")
    reports = sorted(track.reports, key=tracks.time_ms)
    return [ReportLine(number, tracks.time_ms(report), report) for number, report in enumerate(reports, 1)]


def fold_lines(
    scenario: Scenario, lines: list[ReportLine], rules: log_pb2.Rules | None = None, *, requests: bool = False
) -> Iterator[dict[str, Any]]:
    """Alerts of a scenario and of report lines that are already read, as `run` gives them."""
    backtest = Backtest(scenario, requests=requests)
    yield from backtest.begin(lines, rules)
    for line in lines:
        if rules is None or not isinstance(line.what, log_pb2.Rules):
            yield from backtest.arrive(line)
    yield from _still_open(backtest.state)


class Backtest:
    """A mesh without services. `state` may be saved and restored between two arrivals, as an evaluator does."""

    def __init__(self, scenario: Scenario, *, requests: bool = False) -> None:
        self.state = State(partition=0)
        self._scenario, self._requests = scenario, requests
        self._cases = _Cases(scenario)
        self._stamp_ms = 0

    def begin(self, lines: list[ReportLine], rules: log_pb2.Rules | None = None) -> Iterator[dict[str, Any]]:
        """Enters the rules and the agencies' records, one second before the first report line."""
        self._stamp_ms = min((_earliest_ms(line) for line in lines), default=0) - 1000
        yield from self._enter(self._stamp_ms, FoldVersion(FOLD_VERSION))
        if rules is not None:
            yield from self._enter(self._stamp_ms, translate.rules_of(rules))
        for order in self._scenario.orders:
            for body in self._cases.put_order(order):
                yield from self._enter(self._stamp_ms, body)

    def arrive(self, line: ReportLine) -> Iterator[dict[str, Any]]:
        """Alerts of the time until a report line arrives, and of the line itself."""
        self._stamp_ms = max(self._stamp_ms, line.received_ms)
        # An idle mesh ticks, so that each deadline is decided when it is due.
        while (due_ms := fold.next_due_ms(self.state)) is not None and due_ms < self._stamp_ms:
            yield from self._enter(due_ms, Tick())
        for body in _bodies(line, self._cases):
            yield from self._enter(self._stamp_ms, body)

    def _enter(self, stamp_ms: int, body: Body) -> Iterator[dict[str, Any]]:
        outputs = fold.step(self.state, Entry(self.state.sequence + 1, stamp_ms, body))
        return _alerts(output for output in outputs if self._requests or not isinstance(output, SensingRequest))


def _earliest_ms(line: ReportLine) -> int:
    match line.what:
        case ingest_pb2.Position():
            return min(line.received_ms, times.from_timestamp(line.what.fix_time))
        case ingest_pb2.EquipmentEvent():
            return min(line.received_ms, times.from_timestamp(line.what.event_time))
        case presence_pb2.Presence():
            return min(line.received_ms, times.from_timestamp(line.what.seen))
        case _:
            return line.received_ms


class _Cases:
    """Builds case snapshots as the registry does, with the scenario's records in memory."""

    def __init__(self, scenario: Scenario) -> None:
        self._wearers = [registry_translate.parse_wearer(wearer) for wearer in scenario.wearers]
        self._tags = {tag.device_id: registry_translate.parse_tag(tag) for tag in scenario.tags}
        self._devices = {device.device_id: registry_translate.parse_device(device) for device in scenario.devices}
        self._units = {unit.unit_id: parse_unit(unit) for unit in scenario.presence_units}
        self._orders: dict[str, registry.Order] = {}
        self._tag_records: list[TagRecord] = []
        self._versions: dict[str, int] = {}
        self._now_ms = 0

    def apply(self, what: RecordChange | TagRecordRequest, now_ms: int) -> Iterator[Body]:
        """Case snapshots after a change of the records."""
        self._now_ms = now_ms
        match what:
            case registry_pb2.Tag():
                return self.put_tag(registry_translate.parse_tag(what))
            case registry_pb2.EndTagRequest():
                device_id, removed_ms, version = registry_translate.parse_device_end(what)
                return self.put_tag(replace(self._tags[device_id], removed_at_ms=removed_ms, source_version=version))
            case registry_pb2.Device():
                return self.put_device(what)
            case registry_pb2.Order():
                return self.put_order(what)
            case registry_pb2.PresenceUnit():
                return self.put_unit(what)
            case tag_record_pb2.RecordRefusalRequest():
                return self._put_tag_record(parse_refusal(what))
            case tag_record_pb2.RecordGoodCauseRequest():
                return self._put_tag_record(parse_good_cause(what))
            case tag_record_pb2.AllowRemovalRequest():
                return self._put_tag_record(parse_removal(what))
            case _:
                assert_never(what)

    def put_order(self, message: registry_pb2.Order) -> Iterator[Body]:
        """Case snapshots, one for each wearer whom the order restrains."""
        order = self._orders[message.order_id] = registry_translate.parse_order(message)
        return self._snapshots([order])

    def put_tag(self, tag: registry.Tag) -> Iterator[Body]:
        """Case snapshots of all orders. The fold itself finds the cases that name the tag's wearer, or that named the tag before."""
        self._tags[tag.device_id] = tag
        return self._snapshots(self._orders.values())

    def _put_tag_record(self, new: NewRecord) -> Iterator[Body]:
        """Case snapshots of all orders after an officer recorded something about a tag."""
        record = TagRecord(
            record_id=new.record_id,
            kind=new.kind,
            wearer_id=new.wearer_id or self._tags[new.device_id].wearer_id,
            order_id=new.order_id,
            device_id=new.device_id,
            from_ms=self._now_ms if new.from_ms is None else new.from_ms,
            until_ms=new.until_ms,
            recorded_by="backtest",
            recorded_ms=self._now_ms,
        )
        self._tag_records.append(record)
        return self._snapshots(self._orders.values())

    def put_unit(self, message: registry_pb2.PresenceUnit) -> Iterator[Body]:
        """Case snapshots of all orders after a home unit or beacon has changed."""
        self._units[message.unit_id] = parse_unit(message)
        return self._snapshots(self._orders.values())

    def put_device(self, message: registry_pb2.Device) -> Iterator[Body]:
        """Case snapshots of all orders after a protective device has changed."""
        self._devices[message.device_id] = registry_translate.parse_device(message)
        return self._snapshots(self._orders.values())

    def _snapshots(self, orders: Iterable[registry.Order]) -> Iterator[Body]:
        for order in orders:
            for wearer in self._wearers:
                if registry.is_match(order.respondent, wearer):
                    tags = [tag for tag in self._tags.values() if tag.wearer_id == wearer.wearer_id]
                    devices = [
                        device for device in self._devices.values() if device.person_id in order.protected_person_ids
                    ]
                    records = [record for record in self._tag_records if record.wearer_id == wearer.wearer_id]
                    case = build_case(
                        order,
                        wearer,
                        tags,
                        devices=devices,
                        tag_duty=duty_of(order, records, self._now_ms),
                        removals=periods_of(records, TagRecordKind.REMOVAL, self._now_ms),
                        units=list(self._units.values()),
                    )
                    version = self._versions[case.case_id] = self._versions.get(case.case_id, 0) + 1
                    yield translate.case_of(snapshots.case_to_proto(case, version))


def _bodies(line: ReportLine, cases: _Cases) -> Iterator[Body]:
    """Log entries that the services would write for an arrival, passed through the wire format so that numbers round alike."""
    what = line.what
    match what:
        case ingest_pb2.Position():
            position = ingest_translate.parse_position(what)
            entry = ingest_translate.positions_entry(Positions.of([position]), received_wall_us=0)
            yield translate.entry_body(entry.SerializeToString())
        case ingest_pb2.EquipmentEvent():
            entry = ingest_translate.equipment_entry(ingest_translate.parse_equipment(what), received_wall_us=0)
            yield translate.entry_body(entry.SerializeToString())
        case presence_pb2.Presence():
            entry = ingest_translate.presences_entry([ingest_translate.parse_presence(what)], received_wall_us=0)
            yield translate.entry_body(entry.SerializeToString())
        case log_pb2.Rules():
            yield translate.rules_of(what)
        case _:
            yield from cases.apply(what, line.received_ms)


def _alerts(outputs: Iterable[Output]) -> Iterator[dict[str, Any]]:
    for output in outputs:
        match output:
            case Alert():
                yield alert_dict(output)
            case DeadLetter():
                yield {"kind": "PARKED", "sequence": output.sequence, "reason": output.reason}
            case SensingRequest():
                yield {
                    "request_id": output.request_id,
                    "kind": "SENSING_REQUEST",
                    "device_id": output.device_id,
                    "interval_s": output.interval_s,
                    "decided_at": times.to_rfc3339(output.decided_at_ms),
                    "until": times.to_rfc3339(output.until_ms),
                }
            case ContactRequest():
                yield {
                    "request_id": output.request_id,
                    "kind": "CONTACT_REQUEST",
                    "device_id": output.device_id,
                    "decided_at": times.to_rfc3339(output.decided_at_ms),
                    "until": times.to_rfc3339(output.until_ms),
                }
            case _:
                assert_never(output)


def alert_dict(alert: Alert) -> dict[str, Any]:
    """The JSON object of an alert, one line of the back-test's output."""
    line: dict[str, Any] = {
        "alert_id": alert.alert_id,
        "order_id": alert.order_id,
        "episode_id": alert.episode_id,
        "incident_id": alert.incident_id,
        "target_id": alert.target_id,
        "kind": alert.kind.value,
        "demand": alert.demand.name,
        "ring_m": alert.ring_mm / 1000 if alert.ring_mm else None,
        "at": times.to_rfc3339(alert.at_ms),
        "decided_at": times.to_rfc3339(alert.decided_at_ms),
        "distance_m": _metres(alert.distance_mm),
        "probability": alert.probability,
        "late": alert.late,
    }
    if alert.kind in (AlertKind.RING_CLEARED, AlertKind.ACCOUNT_AMENDED, AlertKind.LATE_EVIDENCE):
        line |= {"inside": stretches(alert.inside), "min_distance_m": _metres(alert.min_distance_mm)}
        if alert.min_distance_assumed:
            line["min_distance_assumed"] = True
    if alert.amends:
        line["amends"] = alert.amends
    if alert.unconfirmed:
        line["unconfirmed"] = True
    if alert.notice:
        line["notice"] = {
            "ground": alert.notice.ground.value,
            "person_ids": list(alert.notice.person_ids),
            "gives_location": alert.notice.gives_location,
            "ended": alert.notice.ended,
        }
    if alert.checks:
        line["checks"] = [leg.value for leg in alert.checks]
    if alert.contact:
        line["contact"] = {
            "contact_id": alert.contact.contact_id,
            "plan": alert.contact.plan.value,
            "withheld": alert.contact.withheld.value if alert.contact.withheld else None,
            "device_id": alert.contact.device_id or None,
        }
    return line


def _still_open(state: State) -> Iterator[dict[str, Any]]:
    """Pending amendments and open rings at the end of the input, computed on a copy of the state."""
    ended = copy.deepcopy(state)
    for case_state in ended.cases.values():
        decisions = Decisions(ended, ended.sequence + 1, ended.now_ms)
        accounts.amend(CaseContext(decisions, case_state), None)
        yield from _alerts(decisions.out)
        case = case_state.case
        for target in case.targets:
            for ring in case.rings:
                if not case_state.ring(target, ring).open:
                    continue
                account = accounts.account(ended, case_state, target, ring=ring, upto_ms=ended.now_ms)
                yield {
                    "alert_id": hash_id("open", case.case_id, target.key, ring.radius_mm, ended.sequence),
                    "order_id": case.order_id,
                    "episode_id": account.episode_id,
                    "incident_id": account.incident_id,
                    "target_id": target.target_id,
                    "kind": RING_OPEN,
                    "demand": Demand.RECORD.name,
                    "ring_m": ring.radius_mm / 1000,
                    "at": times.to_rfc3339(ended.now_ms),
                    "decided_at": times.to_rfc3339(ended.now_ms),
                    "distance_m": None,
                    "probability": None,
                    "late": False,
                    "inside": stretches(account.inside),
                    "min_distance_m": _metres(account.min_mm),
                }


def stretches(inside: tuple[tuple[int, int], ...] | list[tuple[int, int]]) -> list[list[str]]:
    """Time intervals, from milliseconds to pairs of RFC 3339 times."""
    return [[times.to_rfc3339(from_ms), times.to_rfc3339(to_ms)] for from_ms, to_ms in inside]


def _metres(mm: float | None) -> float | None:
    return None if mm is None else round(mm) / 1000


AlertLine = dict[str, Any]
"""An alert as a back-test prints it."""

_IDS = frozenset(("alert_id", "episode_id", "incident_id"))
"""Fields not compared: they hash log positions, which differ after any earlier difference."""


@dataclass(frozen=True, slots=True)
class ChangedAlert:
    """An alert that differs between the two rule sets."""

    a: AlertLine | None
    """The alert under the first rules; None if it is only in b."""
    b: AlertLine | None
    """The alert under the second rules; None if it is only in a."""

    @property
    def what(self) -> str:
        """Kind of the change: ONLY_A, ONLY_B or CHANGED."""
        if self.a is None:
            return "ONLY_B"
        return "ONLY_A" if self.b is None else "CHANGED"

    @property
    def fields(self) -> list[str]:
        """Names of the fields that differ, for an alert that both have."""
        return sorted(_different(self.a, self.b)) if self.a and self.b else []

    def to_json(self) -> dict[str, Any]:
        """The JSON object of a change, one line of the output."""
        return {"change": self.what, "fields": self.fields, "a": self.a, "b": self.b}


def compare_alerts(a: Iterable[AlertLine], b: Iterable[AlertLine]) -> list[ChangedAlert]:
    """Changes from `a` to `b`, in order of time.

    Only alerts of the same kind, ring, target and order are compared. Two alerts of the same moment are paired first. The alerts
    between two such pairs are paired in order.
    """
    first, second = _grouped(a), _grouped(b)
    changes = [change for key in first | second for change in _aligned(first[key], second[key])]
    return sorted(changes, key=_order)


def summary_of_changes(a: list[AlertLine], b: list[AlertLine], changes: list[ChangedAlert]) -> dict[str, Any]:
    """Counts of the changes, and of the alerts on each side."""
    counted = Counter(change.what for change in changes)
    return {
        "only_a": counted["ONLY_A"],
        "only_b": counted["ONLY_B"],
        "changed": counted["CHANGED"],
        "a": _numbers(a),
        "b": _numbers(b),
    }


def _grouped(alerts: Iterable[AlertLine]) -> defaultdict[str, list[AlertLine]]:
    groups = defaultdict(list)
    for alert in alerts:
        groups[repr([alert.get(name) for name in ("order_id", "target_id", "kind", "ring_m")])].append(alert)
    return groups


def _aligned(a: list[AlertLine], b: list[AlertLine]) -> Iterator[ChangedAlert]:
    matcher = SequenceMatcher(None, [alert.get("at") for alert in a], [alert.get("at") for alert in b], autojunk=False)
    for _, a_from, a_to, b_from, b_to in matcher.get_opcodes():
        in_a, in_b = a[a_from:a_to], b[b_from:b_to]
        paired = min(len(in_a), len(in_b))
        for left, right in zip(in_a, in_b, strict=False):
            if _different(left, right):
                yield ChangedAlert(left, right)
        yield from (ChangedAlert(alert, None) for alert in in_a[paired:])
        yield from (ChangedAlert(None, alert) for alert in in_b[paired:])


def _different(a: AlertLine, b: AlertLine) -> set[str]:
    return {name for name in a.keys() | b.keys() if name not in _IDS and a.get(name) != b.get(name)}


def _order(change: ChangedAlert) -> tuple[str, str]:
    alert = change.a or change.b or {}
    return alert.get("decided_at", ""), alert.get("at", "")


def _numbers(alerts: list[AlertLine]) -> dict[str, int]:
    demands = Counter(alert["demand"] for alert in alerts if "demand" in alert)
    incidents = {alert["incident_id"] for alert in alerts if alert.get("incident_id")}
    return {"alerts": len(alerts), "incidents": len(incidents)} | dict(sorted(demands.items()))
