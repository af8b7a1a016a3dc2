"""Reproduce the decisions in a bundle: fold the enclosed log entries from an empty state, and compare with the stored alerts.

The proof uses raw entries only, and nothing that an evaluator derived. Cases and rules older than the window are folded at the start
of the window.
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
    """Starting point of a refold: log, clock and window."""

    incident_id: str
    partition: int
    log_id: str
    clock_rate: int
    clock_anchor_ms: int
    window_stamp_ms: int


@dataclass(frozen=True, slots=True)
class Replay:
    """Result of a refold."""

    entries: int
    results: Mapping[str, str]
    """SAME or the difference, by alert id of the incident."""

    @property
    def differences(self) -> list[str]:
        """Differences between the refold and the stored alerts; empty if all are the same, byte for byte."""
        return [f"{alert_id}: {found}" for alert_id, found in self.results.items() if found != SAME]

    def to_json(self) -> dict[str, Any]:
        """The JSON object that a bundle encloses."""
        return {"fold_version": VERSION, "entries": self.entries, "again": dict(self.results)}


def replay(ground: Ground, records: Sequence[StoredMessage]) -> Replay:
    """Folds the log entries among the records, and compares the result with the alerts and figures among them."""
    log = [record for record in records if record.stream == flow.log_stream(ground.partition)]
    state = State(
        ground.partition,
        log_id=ground.log_id,
        clock_rate=ground.clock_rate,
        clock_anchor_ms=ground.clock_anchor_ms,
    )
    refolded: dict[str, Alert] = {}
    try:
        for record in log:
            for output in _step(state, ground, record):
                if isinstance(output, Alert):
                    refolded[output.alert_id] = output
    except OutdatedFold as error:
        return Replay(len(log), {"all": error.reason})
    whole = {record.sequence for record in log if not record.cut}
    alerts = [record for record in records if record.stream == flow.ALERTS.name]
    figures = {
        record.subject.rpartition(".")[2]: record.data for record in records if record.stream == flow.MEASURES.name
    }
    results: dict[str, str] = {}
    for record in alerts:
        stored = alert_pb2.Alert.FromString(record.data)
        alert = refolded.pop(stored.alert_id, None)
        results[stored.alert_id] = _compared(
            ground, record, stored, refolded=alert, whole=stored.sequence in whole, figures=figures
        )
    last = max((alert_pb2.Alert.FromString(record.data).sequence for record in alerts), default=0)
    for extra in refolded.values():
        if extra.incident_id == ground.incident_id and extra.sequence <= last:
            results[extra.alert_id] = "the fold gives it, and it isn't stored"
    return Replay(len(log), results)


def _step(state: State, ground: Ground, record: StoredMessage) -> Sequence[object]:
    stamp_ms = ground.window_stamp_ms if record.premise else record.stamp_ms
    if record.subject == MARK_SUBJECT:
        return fold.step(state, Entry(record.sequence, stamp_ms, Tick()))
    try:
        body = translate.stored_body(record.subject, record.data)
    except InvalidField:
        return ()  # every reader of the log skips an unreadable entry
    return fold.step(state, Entry(record.sequence, stamp_ms, body))


def _compared(
    ground: Ground,
    record: StoredMessage,
    stored: alert_pb2.Alert,
    *,
    refolded: Alert | None,
    whole: bool,
    figures: Mapping[str, bytes],
) -> str:
    if refolded is None:
        return "the fold doesn't give it"
    message = translate.alert_to_proto(refolded, ground.partition)
    if not whole:
        # The stored ordinal counts alerts of other persons too, whose data was cut from the entry.
        message.ordinal = stored.ordinal
    if message.SerializeToString() != record.data:
        names = [
            field.name
            for field in message.DESCRIPTOR.fields
            if getattr(message, field.name) != getattr(stored, field.name)
        ]
        return f"the fold gives other bytes: {', '.join(names) or 'unknown fields'}"
    if figures.get(stored.alert_id) != translate.measure_to_proto(refolded).SerializeToString():
        return "the fold gives other figures" if stored.alert_id in figures else "its figures aren't enclosed"
    return SAME
