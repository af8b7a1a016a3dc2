"""Folding the log again up to one alert, and gathering what its devices reported before it and after."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass

from services.cli.failure import CommandFailed
from services.common import times
from services.common.messaging import flow, pull, streams
from services.common.messaging import stored as readers
from services.common.messaging.bus import Bus
from services.common.messaging.streams import LogMetadata
from services.common.rpc.errors import InvalidField, OutdatedFold
from services.geofence import translate
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert, DeadLetter, Output
from services.geofence.domain.entries import Body, Case, Entry, EquipmentReport, Heard, Positions, Target
from services.geofence.domain.kinematics.track import WINDOW_MS
from services.geofence.domain.state import State
from tandem.common.v1 import alert_pb2

PROGRESS_EVERY = 1_000


@dataclass(frozen=True, slots=True)
class StoredAlert:
    """An alert as the mesh stored it."""

    alert: alert_pb2.Alert
    data: bytes
    figures: bytes | None
    """Its Measure; None where none is stored."""


@dataclass(frozen=True, slots=True)
class LoggedPosition:
    """A position as it came into the log."""

    sequence: int
    index: int
    """Its place in the entry, from 0."""
    arrived_ms: int
    """Mesh time."""
    device_id: str
    report_id: str
    time_ms: int
    """When it holds: the time of its fix, at most that of its arrival."""
    lat_e7: int
    lon_e7: int
    accuracy_mm: int


class Refold:
    """The log up to one alert, folded from `first` on, and then its devices' reports of the 2 h before and all after."""

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
        """Of the first entry, mesh time."""
        self.stamp_ms = 0
        """Of the entry that decided, wall time."""
        self.body: Body | None = None
        """What that entry says; None where it can't be read."""
        self.outputs: list[Output] = []
        """What came of it."""
        self.before: Case | None = None
        """The case until then."""
        self.window_from = first
        """First entry of the 2 h before the decision."""
        self.reports: dict[str, list[LoggedPosition]] = defaultdict(list)
        """By device, in the order of the log."""
        self.contacts: dict[str, list[int]] = defaultdict(list)
        """By device: when anything of it came into the log, mesh time."""
        self._clock = log_meta.clock

    @property
    def case(self) -> Case | None:
        """The case as it stood after the decision; None where the log that is left never told of it."""
        case_state = self.state.cases.get(self.stored.alert.case_id)
        return case_state.case if case_state else None

    @property
    def target(self) -> Target | None:
        """Who or what was approached. An id may be a person's and a place's; where the police go tells which.

        Of an alert that goes to nobody it is the person.
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
        """Ids of the alerts that came of the entry."""
        return {output.alert_id for output in self.outputs if isinstance(output, Alert)}

    def fold(self, message: pull.Delivered) -> None:
        """Applies an entry up to and with the one that decided."""
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
        if decides:
            self.outputs = outputs

    def gather(self, message: pull.Delivered, device_ids: Collection[str]) -> None:
        """Notes what some devices reported in an entry, as far as it is of whom they were on when the alert was decided.

        What a device reported before it changed hands is of somebody else, and the fold didn't use it.
        """
        if message.subject != flow.log_subject(self.stored.alert.partition, "report"):
            return
        arrived_ms = self._clock.to_mesh_ms(message.stamp_ms)
        try:
            body = translate.stored_body(message.subject, message.data)
        except InvalidField:
            return  # parked by the fold; it tells of no device
        match body:
            case Positions() | Heard():
                heard = body.device_ids
            case EquipmentReport():
                heard = [body.device_id]
            case _:
                return
        for device_id in {*heard}.intersection(device_ids):
            if arrived_ms >= self.theirs_since_ms(device_id):
                self.contacts[device_id].append(arrived_ms)
        if isinstance(body, Positions):
            for i, device_id in enumerate(body.device_ids):
                if device_id in device_ids:
                    report = _report(message.sequence, i, arrived_ms, body)
                    if report.time_ms >= self.theirs_since_ms(device_id):
                        self.reports[device_id].append(report)

    def theirs_since_ms(self, device_id: str) -> int:
        """Since when a device had been on whom it was on at the decision, mesh time; 0 where the log tells of nobody before."""
        return self.state.owned_since.get(device_id, 0)

    def device_ids(self) -> set[str]:
        """Devices of both sides: the wearer's, and the target's or, without a target, those of all whom the order protects."""
        found: set[str] = set()
        for case in (self.case, self.before):
            if case:
                persons = (self.target,) if self.target else case.targets
                found.update(case.tag_device_ids, *(person.device_ids for person in persons))
        return found


def _report(sequence: int, i: int, arrived_ms: int, body: Positions) -> LoggedPosition:
    return LoggedPosition(
        sequence,
        i,
        arrived_ms,
        body.device_ids[i],
        body.report_ids[i],
        min(body.fix_times_ms[i], arrived_ms),
        body.lat_e7[i],
        body.lon_e7[i],
        body.accuracy_mm[i],
    )


async def find(bus: Bus, alert_id: str) -> tuple[StoredAlert, LogMetadata]:
    """An alert as it is stored. Raises CommandFailed where there is none."""
    log_meta = await streams.read_log_meta(bus)
    for partition in range(log_meta.partitions):
        data = await bus.last_of(flow.ALERTS.name, flow.alert_subject(partition, alert_id))
        if data is not None:
            figures = await bus.last_of(flow.MEASURES.name, flow.measure_subject(partition, alert_id))
            try:
                return StoredAlert(readers.alert(data), data, figures), log_meta
            except InvalidField as error:
                raise CommandFailed(f"what {flow.ALERTS.name} holds as {alert_id} is no alert: {error}") from None
    days = flow.ALERTS.max_age_s // flow.DAY_S
    raise CommandFailed(f"{flow.ALERTS.name} holds no {alert_id}; alerts are kept for {days} days")


async def refold(bus: Bus, stored: StoredAlert, log_meta: LogMetadata, progress: Callable[[int, int], None]) -> Refold:
    """Folds the log up to the alert and gathers reports up to its end; `progress` is told the entry and the last one.

    Raises CommandFailed where the log no longer holds the entry that decided, or demands a newer fold than this.
    """
    alert = stored.alert
    stream = flow.log_stream(alert.partition)
    bounds = await bus.bounds_of(stream)
    gone = CommandFailed(
        f"{stream} no longer holds entry {alert.sequence}, which decided it: entries are kept for "
        f"{flow.LOG.max_age_s // flow.DAY_S} days, and it now begins at {bounds.first}"
    )
    if not bounds.first <= alert.sequence <= bounds.last:
        raise gone
    found = Refold(stored, log_meta, bounds.first)
    try:
        async for message in pull.between(bus, stream, bounds.first, alert.sequence):
            found.fold(message)
            if message.sequence % PROGRESS_EVERY == 0:
                progress(message.sequence, alert.sequence)
    except OutdatedFold as error:
        raise CommandFailed(error.reason) from None
    if found.state.sequence != alert.sequence:
        raise gone  # it aged out meanwhile
    if found.state.now_ms != found.decided_ms and alert.alert_id not in found.alert_ids():
        raise CommandFailed(
            f"{stream} holds another entry at {alert.sequence} than the one that decided it: the stream went back since, and lost "
            "that entry (the runbook: stream_went_back). The alert can't be explained from the log"
        )
    device_ids = found.device_ids()
    async for message in pull.between(bus, stream, found.window_from, bounds.last):
        found.gather(message, device_ids)
        if message.sequence % PROGRESS_EVERY == 0:
            progress(message.sequence, bounds.last)
    return found
