"""Read and check the input files of a back-test and a replay: scenario.json, reports.ndjson, and the decision rules as TOML.

JSON is checked against its protobuf message before it is parsed, so that an error names the field as the file spells it and shows an
example. The rules are a TOML file with the fields of `Rules`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, assert_never, cast

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.client.scenario import Arrival, ReportLine, Scenario
from services.common import times
from services.common.errors import InvalidField
from services.common.failure import trouble
from services.geofence import translate as geofence_translate
from services.ingest import translate as ingest_translate
from services.ingest.domain import FUTURE_MS
from services.registry.records import translate as registry_translate
from services.registry.records.translate import parse_unit
from services.registry.wearing import parse_good_cause, parse_refusal, parse_removal
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
    "refusal": (tag_record_pb2.RecordRefusalRequest, parse_refusal, ""),
    "good_cause": (tag_record_pb2.RecordGoodCauseRequest, parse_good_cause, ""),
    "removal": (tag_record_pb2.AllowRemovalRequest, parse_removal, ""),
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
        _check_fields(message.DESCRIPTOR, content)
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
        raise FileError(place, f"must be an RFC 3339 time (example: {TIME_EXAMPLE})") from None


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


_WHERE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_UINT32_MAX = (1 << 32) - 1


def load_rules(path: Path) -> log_pb2.Rules:
    """Reads rules and checks them by the same bounds as the mesh. Raises FileError with line and field."""
    try:
        text = path.read_text("utf-8")
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = _WHERE.search(str(error))
        line = int(where[1]) if where and where[1] else None
        raise FileError(InputPlace(path, line), f"isn't TOML: {_WHERE.sub('', str(error))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(InputPlace(path), trouble(error)) from None
    rules = log_pb2.Rules()
    known = rules.DESCRIPTOR.fields_by_name
    for name, value in content.items():
        place = InputPlace(path, _line_of(text, name), name)
        if name not in known:
            raise FileError(place, f"isn't a setting; known settings: {', '.join(known)}")
        if known[name].type == known[name].TYPE_STRING:
            if not isinstance(value, str):
                raise FileError(place, 'must be a text (example: "night")')
        elif type(value) is not int or not 0 <= value <= _UINT32_MAX:
            raise FileError(place, "must be a whole number, 0 or more (example: 60)")
        setattr(rules, name, value)
    try:
        geofence_translate.check_rules("", rules)
    except InvalidField as error:
        raise FileError(InputPlace(path, _line_of(text, error.field), error.field), error.reason) from None
    return rules


def _line_of(text: str, name: str) -> int | None:
    """Line number of a setting; None if it isn't found, as for a missing setting."""
    for number, line in enumerate(text.split("\n"), 1):
        if re.match(rf"""\s*\[*\s*["']?{re.escape(name)}\b""", line):
            return number
    return None


TIME = "google.protobuf.Timestamp"
TIME_EXAMPLE = "2026-07-06T09:00:00+09:00"
_WHOLE = frozenset(
    (
        *(FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64),
        *(FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64),
    )
)
_DECIMAL = frozenset((FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT))

_SCALARS = {
    **dict.fromkeys(_WHOLE, "must be a whole number (example: 1)"),
    **dict.fromkeys(_DECIMAL, "must be a number (example: 37.5)"),
    FieldDescriptor.CPPTYPE_BOOL: "must be true or false",
}


def _check_fields(message: Any, content: object, path: str = "") -> None:
    """Checks that a JSON value fits a message: known fields, each with a value of its type. Raises InvalidField with its path.

    `message` is the descriptor of the message.
    """
    if not isinstance(content, dict):
        raise InvalidField(path, "must be a JSON object")
    for name, value in content.items():
        field = message.fields_by_name.get(name) or message.fields_by_camelcase_name.get(name)
        place = f"{path}.{name}" if path else str(name)
        if field is None:
            raise InvalidField(place, _unknown(message, str(name)))
        if value is not None:
            _check_value(field, value, place)


def _unknown(message: Any, name: str) -> str:
    if close := get_close_matches(name, message.fields_by_name, n=1):
        return f"isn't a field of {message.name}; did you mean {close[0]}?"
    return f"isn't a field of {message.name}; its fields: {', '.join(message.fields_by_name)}"


def _check_value(field: FieldDescriptor, value: object, place: str) -> None:
    if not field.is_repeated:
        _check_single(field, value, place)
    elif field.message_type is None or not field.message_type.GetOptions().map_entry:
        if not isinstance(value, list):
            raise InvalidField(place, "must be a list")
        for n, element in enumerate(value):
            _check_single(field, element, f"{place}[{n}]")


def _check_single(field: FieldDescriptor, value: object, place: str) -> None:
    if field.message_type is not None:
        if field.message_type.full_name == TIME:
            _check_time_text(value, place)
        else:
            _check_fields(field.message_type, value, place)
    elif field.enum_type is not None:
        names = field.enum_type.values_by_name
        if isinstance(value, bool) or not (isinstance(value, int) or value in names):
            raise InvalidField(place, f"must be one of {', '.join(_meant(names))}")
    elif not _is_scalar(field, value):
        raise InvalidField(place, _SCALARS.get(field.cpp_type, 'must be a text in quotes (example: "W-1")'))


def _is_scalar(field: FieldDescriptor, value: object) -> bool:
    if field.cpp_type in _WHOLE:
        return _is_number(value, whole=True)
    if field.cpp_type in _DECIMAL:
        return _is_number(value, whole=False)
    return isinstance(value, bool if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL else str)


def _meant(names: Any) -> list[str]:
    """Names of an enum without the one that means nothing, unless it is the only one."""
    return [name for name in names if not name.endswith("UNSPECIFIED")] or list(names)


def _check_time_text(value: object, place: str) -> None:
    try:
        times.from_rfc3339(value if isinstance(value, str) else "")
    except ValueError:
        raise InvalidField(place, f"must be an RFC 3339 time (example: {TIME_EXAMPLE})") from None


def _is_number(value: object, *, whole: bool) -> bool:
    """Whether protobuf takes a value as a number. It takes texts too, as JSON has no 64-bit numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        return float(value).is_integer() or not whole
    except (ValueError, OverflowError):
        return False
