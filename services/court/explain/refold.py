"""Refold the log up to one alert, and collect the reports of its devices before and after the decision.

Each report before it is evaluated by the fold's own functions: which rule held the entry of the ring back. Nothing here decides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, assert_never

from services.common import times
from services.common.errors import InvalidField, OutdatedFold
from services.common.failure import CommandFailed
from services.common.messaging import flow, pull, streams
from services.common.messaging import stored as readers
from services.common.messaging.bus import Bounds, Bus
from services.common.messaging.streams import LogMetadata
from services.geofence import translate
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert, AnomalyKind, ContactRequest, DeadLetter, Output, SensingRequest
from services.geofence.domain.entries import (
    Body,
    Case,
    Demand,
    Entry,
    EquipmentReport,
    FoldVersion,
    Heard,
    Positions,
    Presences,
    Ring,
    Rules,
    Target,
    Tick,
)
from services.geofence.domain.kinematics import plausibility, presence
from services.geofence.domain.kinematics.presence import Presence
from services.geofence.domain.kinematics.rings import Sides
from services.geofence.domain.kinematics.track import WINDOW_MS
from services.geofence.domain.state import CaseState, State
from tandem.common.v1 import alert_pb2

PROGRESS_EVERY = 1_000
EARLIER_MS = 600_000
"""Reports from this time before the decision on are evaluated for why they didn't decide, milliseconds."""


@dataclass(frozen=True, slots=True)
class StoredAlert:
    """An alert as the mesh stored it, with its bytes and figures."""

    alert: alert_pb2.Alert
    data: bytes
    figures: bytes | None
    """Serialized Measure of the alert; None if none is stored."""


@dataclass(frozen=True, slots=True)
class LoggedPosition:
    """A position from an entry of the log."""

    sequence: int
    index: int
    """Index in the entry, from 0."""
    arrived_ms: int
    """Time of arrival, mesh time, milliseconds since 1970 UTC."""
    device_id: str
    report_id: str
    time_ms: int
    """Time of the fix, capped at the time of arrival."""
    lat_e7: int
    lon_e7: int
    accuracy_mm: int
    source: int
    """Where the position comes from, a number of PositionSource."""


@dataclass(frozen=True, slots=True)
class EarlierReport:
    """A report before the decision, with the evaluation of the decision's ring right after it."""

    sequence: int
    arrived_ms: int
    """Time of arrival, mesh time."""
    device_id: str
    evaluation: EarlierEvaluation


class Refold:
    """A refold of the log from entry `first` up to one alert. It also holds the devices' reports from 2 h before the decision on."""

    def __init__(self, stored: StoredAlert, log_meta: LogMetadata, first: int) -> None:
        self.stored = stored
        self.first = first
        self.state = State(
            stored.alert.partition,
            log_id=log_meta.log_id,
            clock_rate=log_meta.clock.rate,
            clock_anchor_ms=log_meta.clock.anchor_ms,
        )
        self.decided_ms = times.from_timestamp(stored.alert.decided_at)
        self.began_ms = 0
        """Time of the first entry, mesh time, milliseconds since 1970 UTC."""
        self.stamp_ms = 0
        """Stamp of the entry that decided, wall time."""
        self.body: Body | None = None
        """Content of the entry that decided; None if it is unreadable."""
        self.outputs: list[Output] = []
        """Outputs of the entry that decided."""
        self.requests: list[SensingRequest] = []
        """Requests to the tags of the alert's case up to the decision, in the order of the log."""
        self.earlier: list[EarlierReport] = []
        """Reports of both sides in the 10 min before the decision, if the alert is the entry of a ring that demands a response."""
        self.messages: list[ContactRequest] = []
        """Messages to the wearer by the tags of the alert's case up to the decision, in the order of the log."""
        self.before: Case | None = None
        """The case before the entry that decided."""
        self.read_to = first
        """Sequence of the last entry that was read for reports. What arrived after it isn't known."""
        self.window_from = first
        """Sequence of the first entry of the 2 h before the decision."""
        self.reports: dict[str, list[LoggedPosition]] = defaultdict(list)
        """Positions by device id, in the order of the log."""
        self.contacts: dict[str, list[int]] = defaultdict(list)
        """Times of all contacts by device id, mesh time."""
        self._clock = log_meta.clock

    @property
    def case(self) -> Case | None:
        """The case after the decision; None if the remaining log doesn't contain it."""
        case_state = self.state.cases.get(self.stored.alert.case_id)
        return case_state.case if case_state else None

    @property
    def target(self) -> Target | None:
        """The approached person or place; None if neither case version has it.

        A person and a place may share an id: the destination of the police tells them apart. An alert without destinations means
        the person.
        """
        alert = self.stored.alert
        sent = {destination.subject_id for destination in alert.destinations if destination.leg == alert_pb2.POLICE}
        kinds = (alert.target_id in sent,) if sent else (True, False)
        for case in (self.case, self.before):
            for target in case.targets if case else ():
                if target.target_id == alert.target_id and target.is_person in kinds:
                    return target
        return None

    def alert_ids(self) -> set[str]:
        """Ids of all alerts that the fold put out at the entry that decided."""
        return {output.alert_id for output in self.outputs if isinstance(output, Alert)}

    def fold(self, message: pull.Delivered) -> None:
        """Applies an entry of the log, up to and including the entry that decided."""
        decides = message.sequence == self.stored.alert.sequence
        if decides:
            self.before, self.stamp_ms = self.case, message.stamp_ms
        arrived_ms = self._clock.to_mesh_ms(message.stamp_ms)
        self.began_ms = self.began_ms or arrived_ms
        if arrived_ms < self.decided_ms - WINDOW_MS:
            self.window_from = message.sequence + 1
        try:
            body = translate.stored_body(message.subject, message.data)
        except InvalidField as error:
            self.state.sequence = message.sequence
            outputs: list[Output] = [DeadLetter(message.sequence, str(error))]
        else:
            outputs = fold.step(self.state, Entry(message.sequence, message.stamp_ms, body))
            if decides:
                self.body = body
            elif arrived_ms >= self.decided_ms - EARLIER_MS:
                self.earlier += self._earlier(message.sequence, arrived_ms, body)
        tag_ids = self.case.tag_device_ids if self.case else ()
        self.requests += [
            output for output in outputs if isinstance(output, SensingRequest) and output.device_id in tag_ids
        ]
        self.messages += [
            output for output in outputs if isinstance(output, ContactRequest) and output.device_id in tag_ids
        ]
        if decides:
            self.outputs = outputs

    def _earlier(self, sequence: int, arrived_ms: int, body: Body) -> Iterator[EarlierReport]:
        """The positions of both sides in an entry that was just folded, each evaluated for the ring of the alert."""
        alert, target = self.stored.alert, self.target
        case_state = self.state.cases.get(alert.case_id)
        if alert.kind != alert_pb2.RING_ENTERED or not isinstance(body, Positions) or not case_state or not target:
            return
        radius_mm = round(alert.ring_m * 1000)
        rings = (ring for ring in case_state.case.rings if ring.radius_mm == radius_mm)
        ring = next((ring for ring in rings if ring.action is Demand.RESPOND), None)
        if ring is None:
            return
        sides = {*case_state.case.tag_device_ids, *target.device_ids}
        for device_id in dict.fromkeys(body.device_ids):
            if device_id in sides:
                is_late = self._has_newer(device_id, body, arrived_ms)
                evaluation = evaluate(self.state, case_state, target, ring=ring, device_id=device_id, is_late=is_late)
                yield EarlierReport(sequence, arrived_ms, device_id, evaluation=evaluation)

    def _has_newer(self, device_id: str, body: Positions, arrived_ms: int) -> bool:
        """Whether a device has a newer position than those of an entry that was just folded."""
        times_ms = (
            time_ms for id_, time_ms in zip(body.device_ids, body.fix_times_ms, strict=True) if id_ == device_id
        )
        newest_ms = max(min(time_ms, arrived_ms) for time_ms in times_ms)
        track = self.state.tracks.get(device_id)
        return track is not None and bool(track.recent) and track.recent[-1].time_ms > newest_ms

    def collect(self, message: pull.Delivered, device_ids: AbstractSet[str]) -> None:
        """Collects the reports of these devices from an entry of the log.

        Reports from before a device got its owner at the decision are left out: such reports belong to somebody else, and the fold
        didn't use them.
        """
        if message.subject != flow.log_subject(self.stored.alert.partition, "report"):
            return
        arrived_ms = self._clock.to_mesh_ms(message.stamp_ms)
        try:
            body = translate.stored_body(message.subject, message.data)
        except InvalidField:
            return  # unreadable: the fold made it a dead letter, and its devices are unknown
        for device_id in device_ids & _reporting(body):
            if arrived_ms >= self.theirs_since_ms(device_id):
                self.contacts[device_id].append(arrived_ms)
        if isinstance(body, Positions):
            for report in _reports(message.sequence, arrived_ms, body, device_ids=device_ids):
                if report.time_ms >= self.theirs_since_ms(report.device_id):
                    self.reports[report.device_id].append(report)

    def theirs_since_ms(self, device_id: str) -> int:
        """Time from which a device has belonged to its owner at the decision, ms of mesh time; 0 if the log has no earlier owner."""
        return self.state.owned_since.get(device_id, 0)

    def device_ids(self) -> set[str]:
        """Device ids of the wearer and of the target; without a target, of all persons whom the order protects."""
        device_ids: set[str] = set()
        for case in (self.case, self.before):
            if case:
                persons = (self.target,) if self.target else case.targets
                device_ids.update(case.tag_device_ids, *(person.device_ids for person in persons))
        return device_ids


def _reporting(body: Body) -> frozenset[str]:
    """Ids of the devices that report in an entry."""
    match body:
        case Positions() | Heard():
            return frozenset(body.device_ids)
        case Presences():
            return frozenset(report.device_id for report in body.reports)
        case EquipmentReport():
            return frozenset((body.device_id,))
        case Case() | Rules() | FoldVersion() | Tick():
            return frozenset()
        case _:
            assert_never(body)


def _reports(
    sequence: int, arrived_ms: int, body: Positions, *, device_ids: AbstractSet[str]
) -> Iterator[LoggedPosition]:
    for i, device_id in enumerate(body.device_ids):
        if device_id not in device_ids:
            continue
        yield LoggedPosition(
            sequence=sequence,
            index=i,
            arrived_ms=arrived_ms,
            device_id=device_id,
            report_id=body.report_ids[i],
            time_ms=min(body.fix_times_ms[i], arrived_ms),
            lat_e7=body.lat_e7[i],
            lon_e7=body.lon_e7[i],
            accuracy_mm=body.accuracy_mm[i],
            source=body.sources[i] if body.sources else 0,
        )


async def find(bus: Bus, alert_id: str) -> tuple[StoredAlert, LogMetadata]:
    """Reads a stored alert. Raises CommandFailed if there is none."""
    log_meta = await streams.read_log_meta(bus)
    for partition in range(log_meta.partitions):
        data = await bus.last_of(flow.ALERTS.name, flow.alert_subject(partition, alert_id))
        if data is not None:
            figures = await bus.last_of(flow.MEASURES.name, flow.measure_subject(partition, alert_id))
            try:
                return StoredAlert(readers.alert(data), data, figures), log_meta
            except InvalidField as error:
                raise CommandFailed(f"{flow.ALERTS.name}: {alert_id} can't be read as an alert: {error}") from None
    days = flow.ALERTS.max_age_s // flow.DAY_S
    raise CommandFailed(f"{flow.ALERTS.name} holds no {alert_id}; alerts are kept for {days} days")


async def alerts_of(bus: Bus, incident_id: str, bounds: Bounds) -> list[alert_pb2.Alert]:
    """The stored alerts of an incident, in their order. Raises CommandFailed if there is none."""
    found = []
    if bounds.first <= bounds.last:
        async for message in pull.between(bus, flow.ALERTS.name, bounds.first, last=bounds.last):
            with suppress(InvalidField):  # unreadable: its readers made it a dead letter
                alert = readers.alert(message.data)
                if alert.incident_id == incident_id:
                    found.append(alert)
    if not found:
        days = flow.ALERTS.max_age_s // flow.DAY_S
        raise CommandFailed(f"{flow.ALERTS.name} holds no alert of {incident_id}; alerts are kept for {days} days")
    return found


async def refold(
    bus: Bus, stored: StoredAlert, log_meta: LogMetadata, *, progress: Callable[[int, int], None]
) -> Refold:
    """Refolds the log up to the alert, then collects reports up to the end of the log.

    Calls `progress` with the current and the last sequence. Raises CommandFailed if the log no longer holds the entry that decided,
    holds another entry in its place, or needs a newer version of the fold.
    """
    alert = stored.alert
    stream = flow.log_stream(alert.partition)
    bounds = await bus.bounds_of(stream)
    expired = CommandFailed(
        f"{stream} no longer holds entry {alert.sequence}, which decided it: entries are kept for "
        f"{flow.LOG.max_age_s // flow.DAY_S} days, and it now begins at {bounds.first}"
    )
    if not bounds.first <= alert.sequence <= bounds.last:
        raise expired
    refolded = Refold(stored, log_meta, bounds.first)
    try:
        async for message in pull.between(bus, stream, bounds.first, last=alert.sequence):
            refolded.fold(message)
            if message.sequence % PROGRESS_EVERY == 0:
                progress(message.sequence, alert.sequence)
    except OutdatedFold as error:
        raise CommandFailed(error.reason) from None
    if refolded.state.sequence != alert.sequence:
        raise expired  # the entry aged out during the refold
    if refolded.state.now_ms != refolded.decided_ms and alert.alert_id not in refolded.alert_ids():
        raise CommandFailed(
            f"{stream} holds another entry at {alert.sequence} than the one that decided it: the stream went back since, and lost "
            "that entry (the runbook: stream_went_back). The alert can't be explained from the log"
        )
    device_ids = refolded.device_ids()
    refolded.read_to = bounds.last
    async for message in pull.between(bus, stream, refolded.window_from, last=bounds.last):
        refolded.collect(message, device_ids)
        if message.sequence % PROGRESS_EVERY == 0:
            progress(message.sequence, bounds.last)
    return refolded


class HeldBackBy(Enum):
    """The rule because of which a ring wasn't entered at a report. Its words are in HELD_BACK_WORDS."""

    NOT_IN_FORCE = "NOT_IN_FORCE"
    NO_POSITION = "NO_POSITION"
    FAR = "FAR"
    UNLIKELY = "UNLIKELY"
    UNCONFIRMED = "UNCONFIRMED"
    LATE = "LATE"
    VAGUE = "VAGUE"
    ENCOUNTER = "ENCOUNTER"


class EarlierEvaluation(NamedTuple):
    """The evaluation of a ring after a report."""

    held_back_by: HeldBackBy | None
    """None if the ring was entered, by this report or before."""
    distance_mm: float | None = None
    """Distance at the moment that counted; None if no position could be inside."""
    p: float | None = None
    """Probability of being inside at that moment; None if no position could be inside."""


def evaluate(
    state: State, case_state: CaseState, target: Target, *, ring: Ring, device_id: str, is_late: bool
) -> EarlierEvaluation:
    """Evaluates a ring that demands a response right after a report of a device was folded.

    Of several devices of a side, the pair with the greatest probability counts. `is_late`: the device has a newer position, so the
    report could only prove a presence in the past, and the ring would be open if it had.
    """
    case, ring_state = case_state.case, case_state.ring(target, ring)
    if not case.is_in_force(state.now_ms):
        return EarlierEvaluation(HeldBackBy.NOT_IN_FORCE)
    if ring_state.open:
        return EarlierEvaluation(HeldBackBy.ENCOUNTER if ring_state.muted else None)
    pairs = list(_sides(state, case_state, target))
    if is_late and pairs:
        return EarlierEvaluation(HeldBackBy.LATE)
    found = [
        _evaluation(_presence(state, case_state, target, ring=ring, sides=sides, device_id=device_id))
        for sides in pairs
    ]
    return max(found, key=lambda evaluation: evaluation.p or 0.0, default=EarlierEvaluation(HeldBackBy.NO_POSITION))


def _sides(state: State, case_state: CaseState, target: Target) -> Iterator[Sides]:
    """The pairs of tracks with positions."""
    for tag_id in case_state.case.tag_device_ids:
        wearer = state.tracks.get(tag_id)
        if wearer is None or not wearer.recent:
            continue
        if not target.is_person:
            yield Sides(wearer, None)
        for other_id in target.device_ids:
            device = state.tracks.get(other_id)
            if device is not None and device.recent:
                yield Sides(wearer, device)


def _presence(
    state: State, case_state: CaseState, target: Target, *, ring: Ring, sides: Sides, device_id: str
) -> Presence:
    """The presence as `detectors/approach.py` evaluates it for the newest movement of a device."""
    moved = state.tracks.get(device_id)
    fixes = moved.recent if moved is not None and moved in sides else sides.wearer.recent
    from_ms = fixes[-2].time_ms if len(fixes) > 1 else fixes[-1].time_ms
    known_ms, until_ms = max(side.recent[-1].time_ms for side in sides if side), case_state.case.valid_until_ms
    return presence.evaluate(
        state.rules,
        sides,
        target,
        ring=ring,
        from_ms=max(
            plausibility.lookback_ms(sides, from_ms),
            case_state.case.valid_from_ms,
            case_state.ring(target, ring).bound_ms,
        ),
        until_ms=known_ms if until_ms is None else min(known_ms, until_ms - 1),
        newest=True,
    )


def _evaluation(seen: Presence) -> EarlierEvaluation:
    if seen.entered is not None:
        return EarlierEvaluation(None, seen.entered.distance_mm, seen.entered.p)
    if seen.possible is None:
        return EarlierEvaluation(HeldBackBy.FAR)
    possible = seen.possible
    held_back_by = {AnomalyKind.JUMP: HeldBackBy.UNCONFIRMED, AnomalyKind.VAGUE: HeldBackBy.VAGUE}
    return EarlierEvaluation(
        HeldBackBy.UNLIKELY if possible.anomaly is None else held_back_by[possible.anomaly],
        possible.distance_mm,
        possible.p,
    )
