"""Read and check the two input files of a back-test and a replay: scenario.json and reports.ndjson."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from services.common import times
from services.common.rpc.errors import InvalidField
from services.ingest import translate as ingest_translate
from services.registry.records import translate as registry_translate
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import ingest_pb2
from tandem.registry.v1 import registry_pb2

FUTURE_MS = 120_000
_Msg = TypeVar("_Msg", bound=Message)


class FileError(Exception):
    """An input file is unusable. The text names path, line, field and reason."""

    def __init__(self, path: Path, line: int | None, field_path: str, *, reason: str) -> None:
        self.path, self.line, self.field, self.reason = path, line, field_path, reason
        place = f"{path}: line {line}" if line else str(path)
        super().__init__(f"{place}: {field_path}: {reason}" if field_path else f"{place}: {reason}")


@dataclass(slots=True)
class Scenario:
    """Validated records of both agencies, from scenario.json."""

    wearers: list[registry_pb2.Wearer] = field(default_factory=list)
    tags: list[registry_pb2.Tag] = field(default_factory=list)
    protected_persons: list[registry_pb2.ProtectedPerson] = field(default_factory=list)
    devices: list[registry_pb2.Device] = field(default_factory=list)
    orders: list[registry_pb2.Order] = field(default_factory=list)

    @property
    def device_ids(self) -> set[str]:
        """Ids of all tags and protective devices."""
        return {tag.device_id for tag in self.tags} | {device.device_id for device in self.devices}


Arrival = (
    ingest_pb2.Position
    | ingest_pb2.EquipmentEvent
    | registry_pb2.Tag
    | registry_pb2.Device
    | registry_pb2.Order
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
}
_KINDS: dict[str, tuple[type[Message], Callable[[Any], object], str]] = {
    "position": (ingest_pb2.Position, ingest_translate.parse_position, "fix_time"),
    "equipment": (ingest_pb2.EquipmentEvent, ingest_translate.parse_equipment, "event_time"),
    "tag": (registry_pb2.Tag, registry_translate.parse_tag, ""),
    "device": (registry_pb2.Device, registry_translate.parse_device, ""),
    "order": (registry_pb2.Order, registry_translate.parse_order, ""),
    "rules": (log_pb2.Rules, lambda _: None, ""),
}


def load_scenario(path: Path) -> Scenario:
    """Reads and checks a scenario. Raises FileError."""
    content = json_of(path, read_text(path), None)
    if not isinstance(content, dict):
        raise FileError(path=path, line=None, field_path="", reason="must be one JSON object")
    unknown = sorted(set(content) - set(_RECORDS))
    if unknown:
        raise FileError(
            path=path,
            line=None,
            field_path=unknown[0],
            reason=f"isn't a key of a scenario; known keys: {', '.join(_RECORDS)}",
        )
    scenario = Scenario()
    for key, (kind, parse) in _RECORDS.items():
        records = content.get(key, [])
        if not isinstance(records, list):
            raise FileError(path=path, line=None, field_path=key, reason="must be a list")
        for i, record in enumerate(records):
            getattr(scenario, key).append(message_of(path, None, f"{key}[{i}]", content=record, kind=kind, parse=parse))
    _check_references(path, scenario)
    return scenario


def load_reports(path: Path, scenario: Scenario) -> list[ReportLine]:
    """Reads reports in order of arrival, and checks them against their scenario. Raises FileError."""
    known = scenario.device_ids
    wearers = {wearer.wearer_id for wearer in scenario.wearers}
    persons = {protected_person.person_id for protected_person in scenario.protected_persons}
    lines = []
    for number, text in lines_of(read_text(path)):
        content = json_of(path, text, number)
        if not isinstance(content, dict):
            raise FileError(path=path, line=number, field_path="", reason="must be one JSON object")
        name = content.pop("kind", "position")
        if not isinstance(name, str) or name not in _KINDS:
            raise FileError(path=path, line=number, field_path="kind", reason=f"must be one of {', '.join(_KINDS)}")
        kind, parse, own_time = _KINDS[name]
        received = content.pop("received_at", None)
        message = message_of(path, number, "", content=content, kind=kind, parse=parse)
        if received is None and not own_time:
            raise FileError(path=path, line=number, field_path="received_at", reason="is missing")
        received_ms = (
            times.from_timestamp(getattr(message, own_time)) if received is None else _moment(path, number, received)
        )
        if isinstance(message, ingest_pb2.Position | ingest_pb2.EquipmentEvent):
            if message.device_id not in known:
                raise FileError(path=path, line=number, field_path="device_id", reason="isn't a device of the scenario")
            if times.from_timestamp(getattr(message, own_time)) > received_ms + FUTURE_MS:
                raise FileError(
                    path=path, line=number, field_path=own_time, reason="is more than 2 minutes after received_at"
                )
        elif isinstance(message, registry_pb2.Tag | registry_pb2.Device):
            if isinstance(message, registry_pb2.Tag) and message.wearer_id not in wearers:
                raise FileError(path=path, line=number, field_path="wearer_id", reason="isn't a wearer of the scenario")
            if isinstance(message, registry_pb2.Device) and message.person_id not in persons:
                raise FileError(
                    path=path, line=number, field_path="person_id", reason="isn't a protected person of the scenario"
                )
            known.add(message.device_id)
        lines.append(ReportLine(number, received_ms, message))  # type: ignore[arg-type]
    return lines


def _check_references(path: Path, scenario: Scenario) -> None:
    wearers = {wearer.wearer_id for wearer in scenario.wearers}
    persons = {protected_person.person_id for protected_person in scenario.protected_persons}
    for i, tag in enumerate(scenario.tags):
        if tag.wearer_id not in wearers:
            raise FileError(
                path=path, line=None, field_path=f"tags[{i}].wearer_id", reason="isn't a wearer of the scenario"
            )
    for i, device in enumerate(scenario.devices):
        if device.person_id not in persons:
            raise FileError(
                path=path,
                line=None,
                field_path=f"devices[{i}].person_id",
                reason="isn't a protected person of the scenario",
            )
    for i, order in enumerate(scenario.orders):
        for j, person_id in enumerate(order.protected_person_ids):
            if person_id not in persons:
                raise FileError(
                    path=path,
                    line=None,
                    field_path=f"orders[{i}].protected_person_ids[{j}]",
                    reason="isn't a protected person of the scenario",
                )


def message_of(
    path: Path, line: int | None, prefix: str, *, content: object, kind: type[_Msg], parse: Callable[[_Msg], object]
) -> _Msg:
    """Parses and checks a protobuf message from JSON. Raises FileError."""
    if not isinstance(content, dict):
        raise FileError(path=path, line=line, field_path=prefix, reason="must be a JSON object")
    message = kind()
    try:
        json_format.ParseDict(content, message)
        parse(message)
    except json_format.ParseError as error:
        raise FileError(path=path, line=line, field_path=prefix, reason=str(error)) from None
    except InvalidField as error:
        raise FileError(
            path=path, line=line, field_path=f"{prefix}.{error.field}" if prefix else error.field, reason=error.reason
        ) from None
    return message


def _moment(path: Path, line: int, text: object) -> int:
    try:
        return times.from_rfc3339(str(text))
    except ValueError:
        raise FileError(
            path=path,
            line=line,
            field_path="received_at",
            reason="must be an RFC 3339 time (example: 2026-07-06T09:00:00+09:00)",
        ) from None


def read_text(path: Path) -> str:
    """The text of a file. Raises FileError."""
    try:
        # Some editors write a byte order mark, which isn't part of the first line.
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(path=path, line=None, field_path="", reason=str(error)) from None


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """The lines that aren't blank, with their numbers from 1."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def json_of(path: Path, text: str, line: int | None) -> object:
    """Parses JSON. Raises FileError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(path=path, line=line, field_path="", reason=f"isn't JSON: {error}") from None
