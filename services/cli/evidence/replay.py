"""The decision again: the enclosed entries of the log folded from nothing, and what comes of it beside what was stored.

Nothing that an evaluator derived is enclosed or needed, so the proof rests on raw entries alone. What stood before the window (cases,
rules) is folded as the window begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.common.messaging import flow
from services.common.rpc.errors import InvalidField, OutdatedFold
from services.dispatch.evidence.model import MARK_SUBJECT, StoredMessage
from services.geofence import translate
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.entries import Entry, Tick
from services.geofence.domain.state import State
from services.geofence.domain.version import VERSION
from tandem.common.v1 import alert_pb2

SAME = "SAME"


@dataclass(frozen=True, slots=True)
class Ground:
    """What the fold of the entries starts from."""

    incident_id: str
    partition: int
    log_id: str
    clock_rate: int
    clock_anchor_ms: int
    window_stamp_ms: int


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of it."""

    entries: int
    again: Mapping[str, str]
    """By alert of the incident: SAME, or what is different."""

    @property
    def differences(self) -> list[str]:
        """What the fold says otherwise than the mesh; empty where both say the same, byte for byte."""
        return [f"{alert_id}: {found}" for alert_id, found in self.again.items() if found != SAME]

    def to_json(self) -> dict[str, Any]:
        """As enclosed."""
        return {"fold_version": VERSION, "entries": self.entries, "again": dict(self.again)}


def replay(ground: Ground, records: Sequence[StoredMessage]) -> Replay:
    """Folds the log's entries among the records and compares with the alerts and figures among them."""
    log = [record for record in records if record.stream == flow.log_stream(ground.partition)]
    state = State(
        ground.partition,
        log_id=ground.log_id,
        clock_rate=ground.clock_rate,
        clock_anchor_ms=ground.clock_anchor_ms,
    )
    found: dict[str, Alert] = {}
    try:
        for record in log:
            for output in _step(state, ground, record):
                if isinstance(output, Alert):
                    found[output.alert_id] = output
    except OutdatedFold as error:
        return Replay(len(log), {"all": error.reason})
    whole = {one.sequence for one in log if not one.cut}
    alerts = [record for record in records if record.stream == flow.ALERTS.name]
    figures = {
        record.subject.rpartition(".")[2]: record.data for record in records if record.stream == flow.MEASURES.name
    }
    again: dict[str, str] = {}
    for record in alerts:
        stored = alert_pb2.Alert.FromString(record.data)
        once_more = found.pop(stored.alert_id, None)
        again[stored.alert_id] = _compared(ground, record, stored, once_more, stored.sequence in whole, figures)
    last = max((alert_pb2.Alert.FromString(alert.data).sequence for alert in alerts), default=0)
    for alert in found.values():
        if alert.incident_id == ground.incident_id and alert.sequence <= last:
            again[alert.alert_id] = "the fold gives it, and it isn't stored"
    return Replay(len(log), again)


def _step(state: State, ground: Ground, record: StoredMessage) -> Sequence[object]:
    stamp_ms = ground.window_stamp_ms if record.premise else record.stamp_ms
    if record.subject == MARK_SUBJECT:
        return fold.step(state, Entry(record.sequence, stamp_ms, Tick()))
    try:
        body = translate.stored_body(record.subject, record.data)
    except InvalidField:
        return ()  # set aside by everybody who reads the log
    return fold.step(state, Entry(record.sequence, stamp_ms, body))


def _compared(
    ground: Ground,
    record: StoredMessage,
    stored: alert_pb2.Alert,
    again: Alert | None,
    whole: bool,
    figures: Mapping[str, bytes],
) -> str:
    if again is None:
        return "the fold doesn't give it"
    message = translate.alert_to_proto(again, ground.partition)
    if not whole:
        # Its number among all that came of the entry counts what others were told too.
        message.ordinal = stored.ordinal
    if message.SerializeToString() != record.data:
        names = [
            field.name
            for field in message.DESCRIPTOR.fields
            if getattr(message, field.name) != getattr(stored, field.name)
        ]
        return f"the fold gives other bytes: {', '.join(names) or 'unknown fields'}"
    if figures.get(stored.alert_id) != translate.measure_to_proto(again).SerializeToString():
        return "the fold gives other figures" if stored.alert_id in figures else "its figures aren't enclosed"
    return SAME
