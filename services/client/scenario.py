"""Scenario of both agencies' records with its reports, and its replay through a running mesh, as if it happened now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar, assert_never

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from services.client import outcome
from services.client.actors import MOJ_RECORDS, NPA_RECORDS, VENDOR_ID, Alerts, Desk, HeadEnd, Matches, Report, time_of
from services.client.calls import PATIENCE_S, call
from services.client.mesh import OPERATOR, Clients
from services.common import times
from services.common.clock import wall_us
from services.common.failure import CommandFailed
from services.common.ids import hash_id
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from tandem.common.v1 import alert_pb2, geometry_pb2, log_pb2, notice_pb2, sensing_pb2
from tandem.geofence.v1 import geofence_pb2
from tandem.ingest.v1 import ingest_pb2, presence_pb2
from tandem.registry.v1 import presence_unit_pb2, registry_pb2, tag_record_pb2


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


LEAD_S = 2.0
"""Time from putting the first order to the first report, seconds of wall time, so that the order's case exists by then."""
MAX_BATCH = 500
QUIET_S = 3.0
"""The replay ends after this long without an alert, seconds of wall time."""
POLL_S = 0.2

_Dated = TypeVar(
    "_Dated",
    registry_pb2.EndTagRequest,
    tag_record_pb2.RecordRefusalRequest,
    tag_record_pb2.RecordGoodCauseRequest,
    tag_record_pb2.AllowRemovalRequest,
)
_Record = TypeVar(
    "_Record",
    registry_pb2.Wearer,
    registry_pb2.Tag,
    registry_pb2.ProtectedPerson,
    registry_pb2.Device,
    registry_pb2.PresenceUnit,
)
_Reporter = TypeVar("_Reporter", registry_pb2.Tag, registry_pb2.Device, registry_pb2.PresenceUnit)


@dataclass(frozen=True, slots=True)
class Replayed:
    """Outcome of a replay. All times are mesh times, `shift_ms` later than in the files."""

    shift_ms: int
    match_ms: float | None
    incidents: list[outcome.IncidentOutcome]
    alerts: list[geofence_pb2.WatchAlertsResponse]
    """Alerts that the input caused, in the order of the log."""
    from_ms: int
    until_ms: int
    """When the replay began, and when the last line was sent."""
    refused: list[str] = field(default_factory=list)
    """Reasons of the reports that ingest refused."""


async def replay_scenario(
    clients: Clients, scenario: Scenario, lines: Sequence[ReportLine], *, progress: Callable[[int], None]
) -> Replayed:
    """Puts the records, then sends each line when it is due on the mesh's clock.

    Meanwhile it plays every desk and acknowledges each offer. Calls `progress` with the number of lines sent.

    Raises CommandFailed if the mesh doesn't answer in time.
    """
    began_ms = clients.clock.now_ms()
    order_ids = {order.order_id for order in scenario.orders}
    order_ids |= {line.what.order_id for line in lines if isinstance(line.what, registry_pb2.Order)}
    async with AsyncExitStack() as stack:
        matches = [await stack.enter_async_context(Matches(clients, who)) for who in (MOJ_RECORDS, NPA_RECORDS)]
        alerts = await stack.enter_async_context(Alerts(clients, order_ids))
        for leg in flow.LEGS:
            await stack.enter_async_context(Desk(clients, leg, order_ids, answers=True))
        head_end = await stack.enter_async_context(HeadEnd(clients))

        sender = _ReplaySender(clients, head_end)
        # The back-test begins with the default rules, too.
        await sender.put_rules(log_pb2.Rules(rules_id="default"))
        await sender.put_records(scenario)
        sender.start(lines)
        await sender.put_orders(scenario.orders)
        match_ms = await _match_ms(matches, sender, _expected_matches(scenario))
        await sender.send(lines, progress)
        ended_ms = clients.clock.now_ms()
        incidents = await _settle(clients, alerts, order_ids, since_ms=began_ms)
        messages = [
            message for message in alerts.seen if began_ms <= times.from_timestamp(message.alert.decided_at) <= ended_ms
        ]
    messages.sort(key=lambda message: (message.alert.partition, message.alert.sequence, message.alert.ordinal))
    # Devices fall silent after the end of the file; incidents of that silence don't belong to the replay.
    incident_ids = {message.alert.incident_id for message in messages}
    incidents = [incident for incident in incidents if incident.incident_id in incident_ids]
    return Replayed(
        shift_ms=sender.shift_ms,
        match_ms=match_ms,
        incidents=incidents,
        alerts=messages,
        from_ms=began_ms,
        until_ms=ended_ms,
        refused=sender.refused,
    )


Change: TypeAlias = RecordChange | TagRecordRequest | log_pb2.Rules
"""A changed record, or new rules, of a report line."""


class _ReplaySender:
    """Sends the records, rules and reports of a replay into the mesh."""

    def __init__(self, clients: Clients, head_end: HeadEnd) -> None:
        self._clients = clients
        self._head_end = head_end
        self._moj = clients.identity(MOJ_RECORDS)
        self._npa = clients.identity(NPA_RECORDS)
        self._version = 0
        self.shift_ms = 0
        self.put_wall_us: dict[str, int] = {}
        """When each order was first put, by order id. Wall clock, microseconds since 1970 UTC."""
        self.refused: list[str] = []

    def start(self, lines: Sequence[ReportLine]) -> None:
        """Sets the time shift: the first line is due after LEAD_S. The shift is whole seconds, as orders are valid to the second."""
        first_ms = min((line.received_ms for line in lines), default=self._clients.clock.now_ms())
        start_ms = self._clients.clock.now_ms() + round(LEAD_S * 1000 * self._clients.clock.rate)
        self.shift_ms = -((first_ms - start_ms) // 1000 * 1000)

    def _next_version(self) -> int:
        """A version that grows with each put and each run, so that later records replace earlier ones, as in a back-test."""
        self._version = max(self._version + 1, time.time_ns() // 1_000_000)
        return self._version

    def _versioned(self, record: _Record) -> _Record:
        copy = type(record)()
        copy.CopyFrom(record)
        copy.source_version = self._next_version()
        return copy

    def _bound(self, record: _Reporter) -> _Reporter:
        """A versioned copy of a record, bound to this vendor unless the scenario names another vendor."""
        copy = self._versioned(record)
        copy.vendor_id = record.vendor_id or VENDOR_ID
        return copy

    async def put_rules(self, rules: log_pb2.Rules) -> None:
        request = geofence_pb2.PutRulesRequest(rules=rules)
        await call(self._clients.geofence.PutRules, request, self._clients.identity(OPERATOR))

    async def put_records(self, scenario: Scenario) -> None:
        registry = self._clients.registry
        for wearer in map(self._versioned, scenario.wearers):
            await call(registry.PutWearer, registry_pb2.PutWearerRequest(wearer=wearer), self._moj)
        for tag in scenario.tags:
            await self.put_tag(tag)
        for person in map(self._versioned, scenario.protected_persons):
            request = registry_pb2.PutProtectedPersonRequest(protected_person=person)
            await call(registry.PutProtectedPerson, request, self._npa)
        for device in scenario.devices:
            await self.put_device(device)
        for unit in scenario.presence_units:
            await self.put_unit(unit)

    async def put_tag(self, tag: registry_pb2.Tag) -> None:
        request = registry_pb2.PutTagRequest(tag=self._bound(tag))
        await call(self._clients.registry.PutTag, request, self._moj)

    async def put_device(self, device: registry_pb2.Device) -> None:
        request = registry_pb2.PutDeviceRequest(device=self._bound(device))
        await call(self._clients.registry.PutDevice, request, self._npa)

    async def put_unit(self, unit: registry_pb2.PresenceUnit) -> None:
        shifted = self._bound(unit)
        for moment in (shifted.installed_from, shifted.installed_until):
            if times.from_timestamp(moment):
                moment.CopyFrom(times.to_timestamp(times.from_timestamp(moment) + self.shift_ms))
        request = presence_unit_pb2.PutPresenceUnitRequest(presence_unit=shifted)
        await call(self._clients.presence_units.PutPresenceUnit, request, self._moj if unit.wearer_id else self._npa)

    async def put_orders(self, orders: Iterable[registry_pb2.Order]) -> None:
        for order in orders:
            shifted = registry_pb2.Order()
            shifted.CopyFrom(order)
            shifted.source_version = self._next_version()
            shifted.valid_from.CopyFrom(times.to_timestamp(times.from_timestamp(order.valid_from) + self.shift_ms))
            for moment in ("valid_until", "fit_by"):
                if order.HasField(moment):
                    shifted_ms = times.from_timestamp(getattr(order, moment)) + self.shift_ms
                    getattr(shifted, moment).CopyFrom(times.to_timestamp(shifted_ms))
            self.put_wall_us.setdefault(order.order_id, wall_us())
            await call(self._clients.registry.PutOrder, registry_pb2.PutOrderRequest(order=shifted), self._npa)

    async def send(self, lines: Sequence[ReportLine], progress: Callable[[int], None]) -> None:
        """Sends each line when it is due, in the order of the file. Reports that are due together go in one batch."""
        clock = self._clients.clock
        due: list[ReportLine] = []
        due_ms = 0
        for n, line in enumerate(lines):
            due_ms = max(due_ms, line.received_ms + self.shift_ms)
            wait_ms = due_ms - clock.now_ms()
            if wait_ms > 0:
                await self._flush(due)
                progress(n)
                await asyncio.sleep(clock.wall_s(max(due_ms - clock.now_ms(), 0)))
            if not isinstance(line.what, Report):
                await self._flush(due)
                await self._put(line.what)
                continue
            # In a batch, positions come before events and presences, so a position after these has to go with the next batch.
            if due and not isinstance(due[-1].what, ingest_pb2.Position):
                await self._flush(due)
            due.append(line)
            if len(due) >= MAX_BATCH:
                await self._flush(due)
        await self._flush(due)
        progress(len(lines))

    async def _put(self, what: Change) -> None:
        match what:
            case registry_pb2.PresenceUnit():
                await self.put_unit(what)
            case registry_pb2.Tag():
                await self.put_tag(what)
            case registry_pb2.EndTagRequest():
                await call(self._clients.registry.EndTag, self._moved(what), self._moj)
            case tag_record_pb2.RecordRefusalRequest():
                await call(self._clients.tag_records.RecordRefusal, self._moved(what), self._moj)
            case tag_record_pb2.RecordGoodCauseRequest():
                await call(self._clients.tag_records.RecordGoodCause, self._moved(what), self._moj)
            case tag_record_pb2.AllowRemovalRequest():
                await call(self._clients.tag_records.AllowRemoval, self._moved(what), self._moj)
            case registry_pb2.Device():
                await self.put_device(what)
            case registry_pb2.Order():
                await self.put_orders([what])
            case log_pb2.Rules():
                await self.put_rules(what)
            case _:
                assert_never(what)

    def _moved(self, what: _Dated) -> _Dated:
        """A request with its times moved to the time of the replay, and with an id or a version of this run."""
        copy = type(what)()
        copy.CopyFrom(what)
        for _, value in copy.ListFields():
            if isinstance(value, Timestamp):
                value.CopyFrom(times.to_timestamp(times.from_timestamp(value) + self.shift_ms))
        if isinstance(copy, registry_pb2.EndTagRequest):
            copy.source_version = self._next_version()
        else:
            copy.record_id = hash_id("record", self.shift_ms, copy.record_id)
        return copy

    async def _flush(self, due: list[ReportLine]) -> None:
        if due:
            refusals = await self._head_end.carry([self._shifted(line.what) for line in due])
            self.refused += [f"{refusal.field}: {refusal.reason}" for refusal in refusals]
            due.clear()

    def _shifted(self, what: Any) -> Report:
        copy: Report = type(what)()
        copy.MergeFrom(what)
        # The mesh counts a report id of a device only once, so each run needs new ids.
        copy.report_id = hash_id("report", self.shift_ms, what.device_id, what.report_id)
        moment = time_of(copy)
        moment.CopyFrom(times.to_timestamp(times.from_timestamp(moment) + self.shift_ms))
        if isinstance(copy, presence_pb2.Presence) and copy.HasField("since"):
            copy.since.CopyFrom(times.to_timestamp(times.from_timestamp(copy.since) + self.shift_ms))
        return copy


def _expected_matches(scenario: Scenario) -> set[str]:
    """Ids of the orders whose respondent is a wearer of the scenario."""
    wearers = {wearer.national_id.replace("-", "") for wearer in scenario.wearers}
    return {order.order_id for order in scenario.orders if order.respondent.national_id.replace("-", "") in wearers}


async def _match_ms(matches: Sequence[Matches], sender: _ReplaySender, order_ids: set[str]) -> float | None:
    """Longest time from putting an order until both agencies had seen its match, milliseconds of wall time."""
    waits = [
        (await match.until("a match", lambda match=match, order_id=order_id: match.seen_wall_us.get(order_id)))  # type: ignore[misc]
        - sender.put_wall_us[order_id]
        for match in matches
        for order_id in order_ids
    ]
    # If an earlier run already matched an order, its match was seen before this put. The wait is then negative and counts as 0.
    return max(*waits, 0) / 1000 if waits else None


async def _settle(
    clients: Clients, alerts: Alerts, order_ids: set[str], *, since_ms: int
) -> list[outcome.IncidentOutcome]:
    """The incidents, once no more alerts come and both agencies have acknowledged each incident that demands a response."""
    deadline = time.monotonic() + PATIENCE_S
    seen, quiet_since = -1, time.monotonic()
    while True:
        if len(alerts.seen) != seen:
            seen, quiet_since = len(alerts.seen), time.monotonic()
        if time.monotonic() - quiet_since >= QUIET_S:
            incidents = await outcome.read(clients, order_ids, since_ms)
            responding = {incident.incident_id for incident in incidents if incident.responds}
            demanded = {
                message.alert.incident_id
                for message in alerts.seen
                if message.alert.demand == geometry_pb2.Demand.RESPOND
                and times.from_timestamp(message.alert.decided_at) >= since_ms
            }
            if demanded <= responding and all(incident.answered for incident in incidents if incident.responds):
                return incidents
        if time.monotonic() > deadline:
            raise CommandFailed(f"waited {PATIENCE_S:.0f} s for both legs of every incident to be acknowledged")
        await asyncio.sleep(POLL_S)


def alert_json(message: geofence_pb2.WatchAlertsResponse, shift_ms: int) -> dict[str, Any]:
    """The JSON object of an alert, in the form of a back-test's output line."""
    alert, measure = message.alert, message.measure
    measured = message.HasField("measure")

    def moment(value: Any) -> str:
        return times.to_rfc3339(times.from_timestamp(value) - shift_ms)

    line: dict[str, Any] = {
        "alert_id": alert.alert_id,
        "order_id": alert.order_id,
        "episode_id": alert.episode_id,
        "incident_id": alert.incident_id,
        "target_id": alert.target_id,
        "kind": alert_pb2.AlertKind.Name(alert.kind),
        "demand": geometry_pb2.Demand.Name(alert.demand),
        "ring_m": alert.ring_m or None,
        "at": moment(alert.at),
        "decided_at": moment(alert.decided_at),
        "distance_m": measure.distance_m if measured else None,
        "probability": measure.probability if measured else None,
        "late": alert.late,
    }
    if alert.kind in (
        alert_pb2.AlertKind.RING_CLEARED,
        alert_pb2.AlertKind.ACCOUNT_AMENDED,
        alert_pb2.AlertKind.LATE_EVIDENCE,
    ):
        line["inside"] = [[moment(getattr(interval, "from")), moment(interval.to)] for interval in measure.inside]
        line["min_distance_m"] = measure.min_distance_m if measured else None
        if measure.min_distance_assumed:
            line["min_distance_assumed"] = True
    if alert.amends:
        line["amends"] = alert.amends
    if alert.unconfirmed:
        line["unconfirmed"] = True
    if alert.HasField("ministry_notice"):
        line["notice"] = {
            "ground": notice_pb2.NoticeGround.Name(alert.ministry_notice.ground),
            "person_ids": list(alert.ministry_notice.person_ids),
            "gives_location": measure.location_allowed,
            "ended": alert.ministry_notice.ended,
        }
    if alert.checks:
        line["checks"] = [alert_pb2.Leg.Name(check.leg) for check in alert.checks]
    return line


async def read_sensing_requests(
    bus: Bus, device_ids: Collection[str], *, from_ms: int, until_ms: int
) -> list[sensing_pb2.SensingRequest]:
    """Requests to these devices that were decided from `from_ms` to `until_ms` (mesh time), in the order of the log."""
    requests = []
    bounds = await bus.bounds_of(flow.SENSING.name)
    async for message in pull.between(bus, flow.SENSING.name, bounds.first, last=bounds.last):
        try:
            request = sensing_pb2.SensingRequest.FromString(message.data)
        except DecodeError:
            continue  # ingest sets it aside with a reason
        if request.device_id in device_ids and from_ms <= request.decided_at_ms <= until_ms:
            requests.append(request)
    return sorted(requests, key=lambda request: (request.sequence, request.ordinal))


def sensing_request_json(request: sensing_pb2.SensingRequest, shift_ms: int) -> dict[str, Any]:
    """The JSON object of a request, in the form of a back-test's output line, with all times moved back by `shift_ms`."""
    if request.HasField("remind_wearer"):
        return {
            "request_id": request.request_id,
            "kind": "CONTACT_REQUEST",
            "device_id": request.device_id,
            "decided_at": times.to_rfc3339(request.decided_at_ms - shift_ms),
            "until": times.to_rfc3339(request.until_ms - shift_ms),
        }
    is_interval = request.WhichOneof("need") == "report_every"
    return {
        "request_id": request.request_id,
        "kind": "SENSING_REQUEST",
        "device_id": request.device_id,
        "interval_s": request.report_every.interval_s if is_interval else None,
        "decided_at": times.to_rfc3339(request.decided_at_ms - shift_ms),
        "until": times.to_rfc3339(request.until_ms - shift_ms),
    }
