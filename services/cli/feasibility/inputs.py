"""Reads a proposed order and a wearer's history from files, with the faults that a person can mend."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import assert_never

from services.cli.failure import MISUSED, CommandFailed
from services.cli.feasibility.history import DAY_MS, History, HistoryEntry
from services.cli.simulate import tracks
from services.cli.simulate.actors import Report
from services.cli.simulate.files import FileError, InputPlace, Scenario, load_reports, load_scenario
from services.geofence import translate as geofence_translate
from services.geofence.domain.entries import Body, Case, Demand
from services.geofence.rules import translate as rules_translate
from services.ingest import translate as ingest_translate
from services.ingest.domain import Positions
from services.registry import domain as registry
from services.registry import joint_case
from services.registry.cases import translate as snapshots
from services.registry.records import translate as registry_translate
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import ingest_pb2, presence_pb2

RING_EXAMPLE = '(example: "rings": [{"radius_m": 1000, "action": "NOTIFY"}, {"radius_m": 100, "action": "RESPOND"}])'
PLACE_EXAMPLE = (
    '(example: "places": [{"place_id": "home", "circle": {"lat_deg": 37.5, "lon_deg": 127.0, "radius_m": 30}}])'
)


def load_order(path: Path) -> tuple[Scenario, Case]:
    """Reads a scenario with one order, as `tandem backtest` takes it, and joins the order with its wearer. Raises FileError."""
    scenario, place = load_scenario(path), InputPlace(path)
    if len(scenario.orders) != 1:
        raise FileError(place.of("orders"), f"must hold one order, not {len(scenario.orders)}: one is judged at a time")
    order = registry_translate.parse_order(scenario.orders[0])
    wearers = [registry_translate.parse_wearer(wearer) for wearer in scenario.wearers]
    matched = [wearer for wearer in wearers if registry.is_match(order.respondent, wearer)]
    if len(matched) != 1:
        raise FileError(
            place.of("orders[0].respondent.national_id"),
            f"is the number of {len(matched)} wearers of the file; it must be that of one (example: 000000-0000001 in both)",
        )
    if not order.rings:
        raise FileError(place.of("orders[0].rings"), f"is missing: propose rings {RING_EXAMPLE}")
    joined = joint_case.build_case(
        order,
        matched[0],
        [registry_translate.parse_tag(tag) for tag in scenario.tags],
        devices=[registry_translate.parse_device(device) for device in scenario.devices],
    )
    case = geofence_translate.case_of(snapshots.case_to_proto(joined, 1))
    if not case.tag_device_ids:
        raise FileError(
            place.of("tags"), f'has none of {case.wearer_id} (example: {{"device_id": "tag-1", "wearer_id": "W-1"}})'
        )
    if all(ring.action is not Demand.RESPOND for ring in case.rings):
        raise FileError(place.of("orders[0].rings"), f"has no ring that demands RESPOND {RING_EXAMPLE}")
    return scenario, case


def load_history(path: Path, scenario: Scenario, case: Case, *, device_id: str, accuracy_m: float) -> History:
    """Reads the days of a wearer: a track of one tag (GPX, CSV), or reports of all devices (NDJSON, as `tandem backtest` takes them).

    Raises FileError or CommandFailed.
    """
    if device_id and device_id not in case.tag_device_ids:
        known = ", ".join(case.tag_device_ids)
        raise CommandFailed(f"--device: {device_id} isn't a tag of {case.wearer_id} (tags: {known})", MISUSED)
    if path.suffix.lower() == ".ndjson":
        entries = _reports(path, scenario)
    else:
        entries = _track(path, device_id or case.tag_device_ids[0], accuracy_m)
    history = History(tuple(sorted(entries, key=lambda entry: entry.stamp_ms)), case.tag_device_ids)
    fixes = history.tag_fixes()
    if not fixes:
        tags = ", ".join(case.tag_device_ids)
        raise FileError(InputPlace(path), f"holds no position of {tags}, the wearer's tag in the order")
    if fixes[-1].time_ms - fixes[0].time_ms < DAY_MS:
        hours = (fixes[-1].time_ms - fixes[0].time_ms) / 3_600_000
        raise FileError(
            InputPlace(path),
            f"holds {hours:.1f} h of the wearer's positions, which say nothing about a week: give at least a day, better two weeks",
        )
    if all(later.time_ms - fix.time_ms > DAY_MS for fix, later in pairwise(fixes)):
        raise FileError(
            InputPlace(path), "has more than a day between all positions: give one at least every few minutes"
        )
    return history


def without_unknown_devices(case: Case, history: History) -> tuple[Case, list[str]]:
    """Returns the case without the protective devices that the history says nothing about, and their ids.

    Raises CommandFailed if then nothing is left to come near to.
    """
    heard = set(history.tracks())
    unknown = [id_ for target in case.targets for id_ in target.device_ids if id_ not in heard]
    targets = tuple(
        replace(target, device_ids=tuple(id_ for id_ in target.device_ids if id_ in heard)) for target in case.targets
    )
    if all(target.is_person and not target.device_ids for target in targets):
        raise CommandFailed(
            f"the order protects no place, and the history has no report of a protective device: add places {PLACE_EXAMPLE} or "
            "reports of her device",
            MISUSED,
        )
    return replace(case, targets=targets), unknown


def _track(path: Path, device_id: str, accuracy_m: float) -> list[HistoryEntry]:
    read = tracks.read(path, device_id, accuracy_m)
    if read.faults:
        fault = read.faults[0]
        raise CommandFailed(f"{path}: {fault}{_and_more(len(read.faults) - 1)}", MISUSED)
    if not read.timed:
        raise FileError(
            InputPlace(path), "has no times, so days can't be counted (example: <time>2026-07-06T00:00:00Z</time>)"
        )
    return [HistoryEntry(tracks.time_ms(report), _body(report)) for report in read.reports]


def _and_more(count: int) -> str:
    return f" (and {count} more faults)" if count else ""


def _reports(path: Path, scenario: Scenario) -> list[HistoryEntry]:
    entries = []
    for line in load_reports(path, scenario):
        match line.what:
            case ingest_pb2.Position() | ingest_pb2.EquipmentEvent():
                entries.append(HistoryEntry(line.received_ms, _body(line.what)))
            case log_pb2.Rules():
                entries.append(HistoryEntry(line.received_ms, rules_translate.rules_of(line.what)))
            case _:
                raise FileError(
                    InputPlace(path, line.number, "kind"),
                    "is a record: a history holds only position, equipment and rules; records belong into the order's file",
                )
    return entries


def _body(report: Report) -> Body:
    """The log entry that ingest would write, passed through the wire format so that numbers round alike."""
    match report:
        case ingest_pb2.Position():
            positions = Positions.of([ingest_translate.parse_position(report)])
            entry = ingest_translate.positions_entry(positions, received_wall_us=0)
        case ingest_pb2.EquipmentEvent():
            entry = ingest_translate.equipment_entry(ingest_translate.parse_equipment(report), received_wall_us=0)
        case presence_pb2.Presence():
            entry = ingest_translate.presences_entry([ingest_translate.parse_presence(report)], received_wall_us=0)
        case _:
            assert_never(report)
    return geofence_translate.entry_body(entry.SerializeToString())
