"""Read and check the two input files of a back-test and a replay: scenario.json and reports.ndjson."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, assert_never, cast

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.cli.failure import trouble
from services.cli.simulate import json_fields
from services.common import times
from services.common.rpc.errors import InvalidField
from services.ingest import translate as ingest_translate
from services.ingest.domain import FUTURE_MS
from services.registry.presence_units.translate import parse_unit
from services.registry.records import translate as registry_translate
from services.registry.wearing import translate as wearing
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import ingest_pb2, presence_pb2
from tandem.registry.v1 import registry_pb2, tag_record_pb2

_Msg = TypeVar("_Msg", bound=Message)


class InputPlace(NamedTuple):
    """Place in an input file."""

    path: Path
    line: int | None = None
    """Line number, from 1; None for the file as a whole."""
    field: str = ""
    """Path of the field; empty for the line or file as a whole."""

    def of(self, field: str) -> InputPlace:
        """The place of a field within this one."""
        return self._replace(field=f"{self.field}.{field}" if self.field else field)


class FileError(Exception):
    """An input file is unusable. The text names path, line, field and reason."""

    def __init__(self, place: InputPlace, reason: str) -> None:
        self.path, self.line, self.field = place
        self.reason = reason
        line = f": line {place.line}" if place.line else ""
        super().__init__(
            f"{place.path}{line}: {place.field}: {reason}" if place.field else f"{place.path}{line}: {reason}"
        )


@dataclass(slots=True)
class Scenario:
    """Validated records of both agencies, from scenario.json."""

    wearers: list[registry_pb2.Wearer] = field(default_factory=list)
    tags: list[registry_pb2.Tag] = field(default_factory=list)
    protected_persons: list[registry_pb2.ProtectedPerson] = field(default_factory=list)
    devices: list[registry_pb2.Device] = field(default_factory=list)
    orders: list[registry_pb2.Order] = field(default_factory=list)
    presence_units: list[registry_pb2.PresenceUnit] = field(default_factory=list)

    @property
    def device_ids(self) -> set[str]:
        """Ids of all tags and protective devices."""
        return {tag.device_id for tag in self.tags} | {device.device_id for device in self.devices}


TagRecordRequest = (
    tag_record_pb2.RecordRefusalRequest | tag_record_pb2.RecordGoodCauseRequest | tag_record_pb2.AllowRemovalRequest
)
"""What officers record about the wearing of tags."""
RecordChange = (
    registry_pb2.Tag | registry_pb2.EndTagRequest | registry_pb2.Device | registry_pb2.Order | registry_pb2.PresenceUnit
)
"""A record that an agency puts, or the end of a tag."""
Arrival = (
    ingest_pb2.Position
    | ingest_pb2.EquipmentEvent
    | presence_pb2.Presence
    | RecordChange
    | TagRecordRequest
    | log_pb2.Rules
)


@dataclass(frozen=True, slots=True)
class ReportLine:
    """One line of reports.ndjson: a report, a changed record or new rules."""

    number: int
    """Line number, from 1."""
    received_ms: int
    """Time of arrival, milliseconds since 1970 UTC."""
    what: Arrival


_RECORDS: dict[str, tuple[type[Message], Callable[[Any], object]]] = {
    "wearers": (registry_pb2.Wearer, registry_translate.parse_wearer),
    "tags": (registry_pb2.Tag, registry_translate.parse_tag),
    "protected_persons": (registry_pb2.ProtectedPerson, registry_translate.parse_protected_person),
    "devices": (registry_pb2.Device, registry_translate.parse_device),
    "orders": (registry_pb2.Order, registry_translate.parse_order),
    "presence_units": (registry_pb2.PresenceUnit, parse_unit),
}
_KINDS: dict[str, tuple[type[Message], Callable[[Any], object], str]] = {
    "position": (ingest_pb2.Position, ingest_translate.parse_position, "fix_time"),
    "equipment": (ingest_pb2.EquipmentEvent, ingest_translate.parse_equipment, "event_time"),
    "presence": (presence_pb2.Presence, ingest_translate.parse_presence, "seen"),
    "presence_unit": (registry_pb2.PresenceUnit, parse_unit, ""),
    "tag": (registry_pb2.Tag, registry_translate.parse_tag, ""),
    "end_tag": (registry_pb2.EndTagRequest, registry_translate.parse_device_end, ""),
    "device": (registry_pb2.Device, registry_translate.parse_device, ""),
    "order": (registry_pb2.Order, registry_translate.parse_order, ""),
    "refusal": (tag_record_pb2.RecordRefusalRequest, wearing.parse_refusal, ""),
    "good_cause": (tag_record_pb2.RecordGoodCauseRequest, wearing.parse_good_cause, ""),
    "removal": (tag_record_pb2.AllowRemovalRequest, wearing.parse_removal, ""),
    "rules": (log_pb2.Rules, lambda _: None, ""),
}


def load_scenario(path: Path) -> Scenario:
    """Reads and checks a scenario. Raises FileError."""
    place = InputPlace(path)
    content = json_object(place, read_text(path))
    unknown = sorted(set(content) - set(_RECORDS))
    if unknown:
        raise FileError(place.of(unknown[0]), f"isn't a key of a scenario; known keys: {', '.join(_RECORDS)}")
    scenario = Scenario()
    for key, (kind, parse) in _RECORDS.items():
        records = content.get(key, [])
        if not isinstance(records, list):
            raise FileError(place.of(key), "must be a list")
        for i, record in enumerate(records):
            getattr(scenario, key).append(message_of(place.of(f"{key}[{i}]"), record, kind, parse=parse))
    _check_references(place, scenario)
    return scenario


def load_reports(path: Path, scenario: Scenario) -> list[ReportLine]:
    """Reads reports in order of arrival, and checks them against their scenario. Raises FileError."""
    known = _KnownIds(scenario)
    lines = []
    for number, text in lines_of(read_text(path)):
        place = InputPlace(path, number)
        line = _report_line(place, number, json_object(place, text))
        known.check(place, line)
        lines.append(line)
    return lines


def _report_line(place: InputPlace, number: int, content: dict[str, Any]) -> ReportLine:
    name = content.pop("kind", "position")
    if not isinstance(name, str) or name not in _KINDS:
        raise FileError(place.of("kind"), f"must be one of {', '.join(_KINDS)}")
    kind, parse, own_time = _KINDS[name]
    received = content.pop("received_at", None)
    message = message_of(place, content, kind, parse=parse)
    if received is not None:
        received_ms = _moment(place.of("received_at"), received)
    elif own_time:
        received_ms = times.from_timestamp(getattr(message, own_time))
    else:
        raise FileError(place.of("received_at"), "is missing")
    return ReportLine(number, received_ms, cast(Arrival, message))


class _KnownIds:
    """Ids of a scenario's records, and of the tags and devices that report lines have added so far."""

    def __init__(self, scenario: Scenario) -> None:
        self._wearers = {wearer.wearer_id for wearer in scenario.wearers}
        self._persons = {protected_person.person_id for protected_person in scenario.protected_persons}
        self._devices = scenario.device_ids
        self._units = {unit.unit_id for unit in scenario.presence_units}

    def check(self, place: InputPlace, line: ReportLine) -> None:
        """Checks a line, and adds the id of its tag or device. Raises FileError."""
        match line.what:
            case ingest_pb2.Position() as position:
                self._check_report(place, position.device_id)
                _check_time(place.of("fix_time"), position.fix_time, line.received_ms)
            case ingest_pb2.EquipmentEvent() as event:
                self._check_report(place, event.device_id)
                _check_time(place.of("event_time"), event.event_time, line.received_ms)
            case presence_pb2.Presence() as presence:
                self._check_report(place, presence.device_id)
                self._check_unit(place.of("unit_id"), presence.unit_id)
                _check_time(place.of("seen"), presence.seen, line.received_ms)
            case registry_pb2.PresenceUnit() as unit:
                self.check_holder(place, unit)
                self._units.add(unit.unit_id)
            case registry_pb2.Tag() as tag:
                self.check_wearer(place.of("wearer_id"), tag.wearer_id)
                self._devices.add(tag.device_id)
            case registry_pb2.Device() as device:
                self.check_person(place.of("person_id"), device.person_id)
                self._devices.add(device.device_id)
            case registry_pb2.EndTagRequest() | tag_record_pb2.AllowRemovalRequest():
                self._check_report(place, line.what.device_id)
            case tag_record_pb2.RecordRefusalRequest() | tag_record_pb2.RecordGoodCauseRequest():
                self.check_wearer(place.of("wearer_id"), line.what.wearer_id)
            case registry_pb2.Order() | log_pb2.Rules():
                pass
            case _:
                assert_never(line.what)

    def check_wearer(self, place: InputPlace, wearer_id: str) -> None:
        """Raises FileError unless the scenario has this wearer."""
        if wearer_id not in self._wearers:
            raise FileError(place, "isn't a wearer of the scenario")

    def check_person(self, place: InputPlace, person_id: str) -> None:
        """Raises FileError unless the scenario has this protected person."""
        if person_id not in self._persons:
            raise FileError(place, "isn't a protected person of the scenario")

    def check_holder(self, place: InputPlace, unit: registry_pb2.PresenceUnit) -> None:
        """Raises FileError unless the scenario has the holder of this unit."""
        if unit.wearer_id:
            self.check_wearer(place.of("wearer_id"), unit.wearer_id)
        else:
            self.check_person(place.of("person_id"), unit.person_id)

    def _check_unit(self, place: InputPlace, unit_id: str) -> None:
        if unit_id not in self._units:
            raise FileError(place, "isn't a unit of the scenario")

    def _check_report(self, place: InputPlace, device_id: str) -> None:
        if device_id not in self._devices and device_id not in self._units:
            raise FileError(place.of("device_id"), "isn't a device of the scenario")


def _check_time(place: InputPlace, moment: Timestamp, received_ms: int) -> None:
    if times.from_timestamp(moment) > received_ms + FUTURE_MS:
        raise FileError(place, "is more than 2 minutes after received_at")


def _check_references(place: InputPlace, scenario: Scenario) -> None:
    known = _KnownIds(scenario)
    for i, tag in enumerate(scenario.tags):
        known.check_wearer(place.of(f"tags[{i}].wearer_id"), tag.wearer_id)
    for i, device in enumerate(scenario.devices):
        known.check_person(place.of(f"devices[{i}].person_id"), device.person_id)
    for i, unit in enumerate(scenario.presence_units):
        known.check_holder(place.of(f"presence_units[{i}]"), unit)
    for i, order in enumerate(scenario.orders):
        for j, person_id in enumerate(order.protected_person_ids):
            known.check_person(place.of(f"orders[{i}].protected_person_ids[{j}]"), person_id)


def message_of(place: InputPlace, content: Any, kind: type[_Msg], *, parse: Callable[[_Msg], object]) -> _Msg:
    """Parses and checks a protobuf message from JSON. Raises FileError."""
    message = kind()
    try:
        json_fields.check(message.DESCRIPTOR, content)
        json_format.ParseDict(content, message)
        parse(message)
    except json_format.ParseError as error:
        # Such as a number beyond its bounds; the text of a nested error has a line for each level.
        raise FileError(place, str(error).splitlines()[-1]) from None
    except InvalidField as error:
        raise FileError(place.of(error.field) if error.field else place, error.reason) from None
    return message


def _moment(place: InputPlace, text: object) -> int:
    try:
        return times.from_rfc3339(str(text))
    except ValueError:
        raise FileError(place, f"must be an RFC 3339 time (example: {json_fields.TIME_EXAMPLE})") from None


def read_text(path: Path) -> str:
    """The text of a file. Raises FileError."""
    try:
        # Some editors write a byte order mark, which isn't part of the first line.
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(InputPlace(path), trouble(error)) from None


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """The lines that aren't blank, with their numbers from 1."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def json_object(place: InputPlace, text: str) -> dict[str, Any]:
    """Parses a JSON object. Raises FileError."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        line = place.line or error.lineno
        raise FileError(place._replace(line=line), f"isn't JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError):
        raise FileError(place, "isn't JSON: it is nested too deeply, or a number has too many digits") from None
    if not isinstance(content, dict):
        raise FileError(place, "must be one JSON object")
    return content
