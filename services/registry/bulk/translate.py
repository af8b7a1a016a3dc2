"""Translation of batches of records between messages and domain. Errors as in records/translate.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from services.common.rpc.errors import InvalidField, PermanentError, PermissionDenied
from services.common.rpc.identity import Role
from services.common.rpc.statuses import status_of
from services.registry.bulk.service import PutResult, Result
from services.registry.domain import Device, Order, ProtectedPerson, Tag, Wearer
from services.registry.keys.vault import Vault
from services.registry.presence_units import translate as unit_messages
from services.registry.presence_units.domain import PersonUnit, PresenceUnit, WearerUnit
from services.registry.reconciliation.domain import Agency
from services.registry.records import lifecycle, places, translate
from services.registry.records.area import ServiceArea
from services.registry.records.kinds import Record
from services.registry.records.lifecycle import RecordWarning
from services.registry.records.prepared import PreparedRecord, prepare
from tandem.registry.v1 import registry_pb2

MAX_BATCH = 500
"""Maximum number of records in a batch. A single put waits for one batch at most."""

_PARSERS: Mapping[str, Callable[[Any], Record]] = {
    "wearer": translate.parse_wearer,
    "tag": translate.parse_tag,
    "protected_person": translate.parse_protected_person,
    "device": translate.parse_device,
    "order": translate.parse_order,
    "presence_unit": unit_messages.parse_unit,
}
_AGENCIES = {Role.ROLE_MOJ_RECORDS: Agency.MOJ, Role.ROLE_NPA_RECORDS: Agency.NPA}


@dataclass(frozen=True, slots=True)
class ParsedRecord:
    """A record of a batch that is ready to be stored."""

    name: str
    """Name of the record's field in the message."""
    prepared: PreparedRecord[Any]

    def warnings(self) -> list[registry_pb2.Warning]:
        """Possible mistakes in the record."""
        return translate.warnings_to_proto(self.name, warnings_of(self.prepared.record))


def parse_batch(
    msg: registry_pb2.PutRecordsRequest, *, role: Role.ValueType, area: ServiceArea, vault: Vault
) -> list[ParsedRecord | PermanentError]:
    """The records of a batch from a caller with this role, each ready to be stored, or the error that refuses it.

    Raises InvalidField if there are more than MAX_BATCH records.
    """
    if len(msg.records) > MAX_BATCH:
        raise InvalidField("records", f"must hold at most {MAX_BATCH}")
    return [_parse(record, _AGENCIES[role], area, vault=vault) for record in msg.records]


def _parse(
    msg: registry_pb2.Record, agency: Agency, area: ServiceArea, *, vault: Vault
) -> ParsedRecord | PermanentError:
    name = msg.WhichOneof("record")
    if name is None:
        return InvalidField("record", f"holds no record of a known kind (example: {next(iter(_PARSERS))})")
    try:
        record = _PARSERS[name](getattr(msg, name))
        if isinstance(record, Order):
            places.check_area(record, area)
        if isinstance(record, PresenceUnit):
            unit_messages.check_area(record, area)
    except InvalidField as error:
        return error.under(name)
    prepared = prepare(record, vault)
    if prepared.kind.agency is not agency:
        return PermissionDenied(f"{name}: the other agency puts records of this kind")
    return ParsedRecord(name, prepared)


def warnings_of(record: Record) -> tuple[RecordWarning, ...]:
    """Warnings about possible mistakes in a record."""
    match record:
        case Wearer():
            return lifecycle.number_warnings("national_id", record.national_id)
        case Order():
            return (
                *lifecycle.number_warnings("respondent.national_id", record.respondent.national_id),
                *lifecycle.duration_warnings(record),
            )
        case Tag() | ProtectedPerson() | Device() | WearerUnit() | PersonUnit():
            return ()
        case _:
            assert_never(record)


def results_to_proto(
    parsed: Iterable[ParsedRecord | PermanentError], results: Iterable[Result]
) -> registry_pb2.PutRecordsResponse:
    """Results of a batch as a message. `results` are those of the parsed records without the refused ones, in order."""
    left = iter(results)
    return registry_pb2.PutRecordsResponse(
        results=[
            _refused(record) if isinstance(record, PermanentError) else _result(record, next(left)) for record in parsed
        ]
    )


def _result(record: ParsedRecord, result: Result) -> registry_pb2.RecordResult:
    if isinstance(result, PermanentError):
        return _refused(result)
    return _stored(record, result)


def _stored(record: ParsedRecord, result: PutResult) -> registry_pb2.RecordResult:
    return registry_pb2.RecordResult(
        outcome=translate.outcome_to_proto(result.outcome),
        warnings=record.warnings(),
        stage=translate.stage_to_proto(result.stage),
    )


def _refused(error: PermanentError) -> registry_pb2.RecordResult:
    refusal = registry_pb2.Refusal(code=status_of(error).code, message=str(error))
    if isinstance(error, InvalidField):
        refusal.field_violations.add(field=error.field, description=error.reason)
    return registry_pb2.RecordResult(refusal=refusal)
