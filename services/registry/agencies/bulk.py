"""Put records in bulk: each batch is one transaction, with the commands that single puts use.

The rows that a batch needs are read into the working set first, each table with few statements for the whole batch. Only speed
depends on this, because the commands ask the working set, which reads a row that it lacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, assert_never

from services.common.errors import InvalidField, PermanentError, PermissionDenied
from services.common.rpc.identity import Role
from services.common.rpc.statuses import status_of
from services.registry.agencies.ministry import MinistryService
from services.registry.agencies.police import PoliceService
from services.registry.agencies.presence_units import PresenceUnits
from services.registry.domain import lifecycle
from services.registry.domain.lifecycle import OrderStage, PutOutcome, RecordWarning
from services.registry.domain.reconciliation import Agency
from services.registry.domain.records import (
    Device,
    Order,
    PersonUnit,
    PresenceUnit,
    ProtectedPerson,
    Tag,
    Wearer,
    WearerUnit,
)
from services.registry.domain.reviews import Side
from services.registry.keys import Vault
from services.registry.records import places
from services.registry.records.kinds import (
    DEVICES,
    ORDERS,
    PERSON_UNITS,
    PERSONS,
    TAGS,
    UNIT_TYPES,
    WEARER_UNITS,
    WEARERS,
    R,
    Record,
    RecordType,
)
from services.registry.records.places import ServiceArea
from services.registry.records.store import PreparedRecord, prepare
from services.registry.records.translate import (
    check_unit_area,
    outcome_to_proto,
    parse_device,
    parse_order,
    parse_protected_person,
    parse_tag,
    parse_unit,
    parse_wearer,
    stage_to_proto,
    warnings_to_proto,
)
from services.registry.transactions import Transactions
from services.registry.working_set.working_set import WorkingSet
from tandem.registry.v1 import registry_pb2


@dataclass
class _Needs:
    """Ids of the records that a batch needs."""

    wearers: set[str] = field(default_factory=set)
    persons: set[str] = field(default_factory=set)
    devices: set[str] = field(default_factory=set)
    """Ids of tags, protective devices and units."""
    orders: set[str] = field(default_factory=set)
    cases_of_wearers: set[str] = field(default_factory=set)
    """Ids of the wearers whose joint cases may change."""
    cases_of_persons: set[str] = field(default_factory=set)
    """Ids of the protected persons whose joint cases may change."""


def prefetch(working: WorkingSet, batch: Sequence[PreparedRecord[Any]]) -> None:
    """Read the rows that the records of a batch need."""
    if len(batch) < 2:
        return  # the command itself reads fewer rows
    needs = _needs_of(batch)
    stored_orders = working.records.opened(ORDERS, needs.orders)
    needs.persons |= _persons_of(stored_orders.values())
    needs.cases_of_wearers |= {tag.wearer_id for tag in working.records.opened(TAGS, needs.devices).values()}
    needs.cases_of_persons |= {device.person_id for device in working.records.opened(DEVICES, needs.devices).values()}
    for kind in UNIT_TYPES:
        working.records.some(kind, needs.devices)
    stored_wearers = working.records.some(WEARERS, needs.wearers | needs.cases_of_wearers)
    working.records.some(PERSONS, needs.persons | needs.cases_of_persons)
    _gather_candidates(working, batch)
    cases = [
        *working.cases.of_orders(stored_orders),
        *working.cases.of_wearers(needs.cases_of_wearers | stored_wearers.keys()),
        *working.cases.of_orders(_orders_of(working, needs.persons | needs.cases_of_persons)),
    ]
    working.records.persons.by("order_id", stored_orders)
    working.reviews.rows.by("order_id", stored_orders)
    working.reviews.rows.by("wearer_id", stored_wearers)
    working.reviews.some({case.case_id for case in cases})
    needs.wearers |= {case.wearer_id for case in cases}
    needs.orders |= {case.order_id for case in cases}
    _gather_surroundings(working, batch, needs)


def _needs_of(batch: Iterable[PreparedRecord[Any]]) -> _Needs:
    needs = _Needs()
    for prepared in batch:
        record: Record = prepared.record
        match record:
            case Wearer(wearer_id=wearer_id):
                needs.wearers.add(wearer_id)
            case Tag(device_id=device_id, wearer_id=wearer_id):
                needs.devices.add(device_id)
                needs.cases_of_wearers.add(wearer_id)
            case ProtectedPerson(person_id=person_id):
                needs.persons.add(person_id)
            case Device(device_id=device_id, person_id=person_id):
                needs.devices.add(device_id)
                needs.cases_of_persons.add(person_id)
            case WearerUnit(unit_id=unit_id, wearer_id=wearer_id):
                needs.devices.add(unit_id)
                needs.cases_of_wearers.add(wearer_id)
            case PersonUnit(unit_id=unit_id, person_id=person_id):
                needs.devices.add(unit_id)
                needs.cases_of_persons.add(person_id)
            case Order(order_id=order_id, protected_person_ids=person_ids):
                needs.orders.add(order_id)
                needs.persons.update(person_ids)
            case _:
                assert_never(record)
    return needs


def _gather_candidates(working: WorkingSet, batch: Iterable[PreparedRecord[Any]]) -> None:
    """Read the records that share a match key with a record of the batch, and the tags and persons that belong to them."""
    keys: dict[RecordType[Any], set[bytes]] = {WEARERS: set(), ORDERS: set()}
    for prepared in batch:
        if prepared.kind.side is not None:
            keys[prepared.kind].update(prepared.match_keys)
    orders = working.records.opened(ORDERS, working.match_keys.sharing(Side.ORDER, keys[WEARERS]))
    persons = _persons_of(orders.values())
    working.records.some(PERSONS, persons)
    working.records.owned(DEVICES, persons)
    wearers = working.match_keys.sharing(Side.WEARER, keys[ORDERS])
    working.tag_records.of_wearers(working.records.some(WEARERS, wearers).keys())
    working.records.owned(TAGS, wearers)


def _gather_surroundings(working: WorkingSet, batch: Iterable[PreparedRecord[Any]], needs: _Needs) -> None:
    """Read the people, devices and routes around the joint cases that may change."""
    orders = working.records.opened(ORDERS, needs.orders)
    persons = needs.persons | needs.cases_of_persons | _persons_of(orders.values())
    wearers = needs.wearers | needs.cases_of_wearers
    working.records.some(PERSONS, persons)
    stored_wearers = working.records.some(WEARERS, wearers)
    working.tag_records.of_wearers(stored_wearers.keys())
    working.records.owned(WEARER_UNITS, wearers)
    working.records.owned(PERSON_UNITS, persons)
    devices = working.records.owned(DEVICES, persons)
    working.cases.of_orders(_orders_of(working, {device.person_id for device in devices}))
    put_wearers = {prepared.record_id for prepared in batch if prepared.kind is WEARERS}
    tags = [tag for tag in working.records.owned(TAGS, wearers) if tag.wearer_id in put_wearers]
    routed = {*needs.devices, *_ids(DEVICES, devices), *_ids(TAGS, tags)}
    working.routes.last_sent(routed)
    working.tokens.of_devices(routed)


def _persons_of(orders: Iterable[Order]) -> set[str]:
    return {person_id for order in orders for person_id in order.protected_person_ids}


def _orders_of(working: WorkingSet, person_ids: Collection[str]) -> list[str]:
    return [row.order_id for row in working.records.persons.by("person_id", person_ids)]


def _ids(kind: RecordType[R], records: Iterable[R]) -> Iterable[str]:
    return map(kind.id_of, records)


FEW_RECORDS = 10
"""Number of records up to which a batch doesn't wait: it is as urgent as single puts, as `tandem put` sends one record as a batch."""
MAX_WAITING = 512
"""Number of waiting messages from which a batch waits. A relay publishes them within a second on a disk that syncs in a millisecond."""
STALLED_S = 3.0
"""Time without a published message after which a batch doesn't wait, seconds: the log is away, and records must be stored anyhow."""
CHECK_INTERVAL_S = 0.1
"""Interval at which the outbox is checked, seconds. The relay may be in another process."""


class BulkPace:
    """Lets one batch at a time pass, once few messages wait for the log."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._turn = asyncio.Lock()
        self._stalled_at: int | None = None
        """The message that waited when nothing was published for STALLED_S; None if that never happened."""

    @asynccontextmanager
    async def turn(self, records: int) -> AsyncIterator[None]:
        """The turn of a batch with so many records. Raises Unavailable if the database refuses."""
        if records <= FEW_RECORDS:
            yield
            return
        async with self._turn:
            await self._wait_for_log()
            yield

    async def _wait_for_log(self) -> None:
        loop = asyncio.get_running_loop()
        seen, since_s = self._stalled_at, float("-inf")
        while (waits := await self._waiting()) is not None:
            now_s = loop.time()
            if waits != seen:
                seen, since_s = waits, now_s
            elif now_s - since_s >= STALLED_S:
                self._stalled_at = waits
                return
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def _waiting(self) -> int | None:
        """A message that waits behind MAX_WAITING others: another one after each that was published; None if fewer wait."""
        async with self._transactions.reading() as work:
            return await work.outbox.waiting_behind(MAX_WAITING)


@dataclass(frozen=True, slots=True)
class PutResult:
    """Result for a record that wasn't refused."""

    outcome: PutOutcome
    stage: OrderStage | None = None
    """Stage of an order; None for other records, and if nothing was stored."""


Result: TypeAlias = PutResult | PermanentError
"""Result for a record of a batch: the error if it was refused."""


class BulkService:
    """Puts batches of records."""

    def __init__(
        self, transactions: Transactions, ministry: MinistryService, police: PoliceService, *, units: PresenceUnits
    ) -> None:
        self._transactions = transactions
        self.vault = transactions.vault
        self._ministry = ministry
        self._police = police
        self._units = units
        self._pace = BulkPace(transactions)

    async def put(self, batch: Sequence[PreparedRecord[Any]]) -> list[Result]:
        """Put records in their order, as one transaction, at the pace of the log. Returns the result for each record.

        Raises Unavailable if the database refuses. Then nothing of the batch is stored.
        """

        def apply(working: WorkingSet) -> list[Result]:
            prefetch(working, batch)
            return [self._apply(working, prepared) for prepared in batch]

        if not batch:
            return []
        async with self._pace.turn(len(batch)):
            return await self._transactions.change(apply)

    def _apply(self, working: WorkingSet, prepared: PreparedRecord[Any]) -> Result:
        record: Record = prepared.record
        try:
            match record:
                case Wearer():
                    return PutResult(self._ministry.apply_wearer(working, prepared))
                case Tag():
                    return PutResult(self._ministry.apply_tag(working, prepared))
                case ProtectedPerson():
                    return PutResult(self._police.apply_person(working, prepared))
                case Device():
                    return PutResult(self._police.apply_device(working, prepared))
                case Order():
                    outcome, stage = self._police.apply_order(working, prepared)
                    return PutResult(outcome, stage)
                case WearerUnit() | PersonUnit():
                    return PutResult(self._units.apply_unit(working, prepared))
                case _:
                    assert_never(record)
        except PermanentError as error:
            return error


MAX_BATCH = 500
"""Maximum number of records in a batch. A single put waits for one batch at most."""

_PARSERS: Mapping[str, Callable[[Any], Record]] = {
    "wearer": parse_wearer,
    "tag": parse_tag,
    "protected_person": parse_protected_person,
    "device": parse_device,
    "order": parse_order,
    "presence_unit": parse_unit,
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
        return warnings_to_proto(self.name, warnings_of(self.prepared.record))


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
            check_unit_area(record, area)
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
        outcome=outcome_to_proto(result.outcome),
        warnings=record.warnings(),
        stage=stage_to_proto(result.stage),
    )


def _refused(error: PermanentError) -> registry_pb2.RecordResult:
    refusal = registry_pb2.Refusal(code=status_of(error).code, message=str(error))
    if isinstance(error, InvalidField):
        refusal.field_violations.add(field=error.field, description=error.reason)
    return registry_pb2.RecordResult(refusal=refusal)
