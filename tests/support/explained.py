"""Test support: a log that grows by method calls, and the explanation of its alerts as `tandem explain` makes it."""

from __future__ import annotations

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.messaging.pull import Delivered
from services.common.messaging.streams import LogMetadata
from services.court.explain import explanation
from services.court.explain.explanation import Explanation
from services.court.explain.refold import Refold, StoredAlert
from services.geofence import translate
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import Demand, Entry
from services.geofence.domain.state import State
from services.ingest.domain import Position
from tandem.common.v1 import exercise_pb2, log_pb2
from tests.support.geofence import log

T0_MS = 1_790_000_000_000
"""Mesh time of second 0, milliseconds since 1970 UTC."""
KINDS = (AlertKind.RING_ENTERED, AlertKind.TAMPERED)
"""Kinds of alerts that these tests explain."""


class Log:
    """A log that grows by method calls, with the alerts that a mesh would store."""

    def __init__(self, rate: int = 1) -> None:
        self.log_meta = LogMetadata(1, MeshClock(rate, T0_MS), "log")
        self.messages: list[Delivered] = []
        self.alerts: list[Alert] = []
        self._state = State(0, log_id="log", clock_rate=rate, clock_anchor_ms=T0_MS)

    def add(self, at_s: float, entry: log_pb2.LogEntry) -> None:
        """Appends an entry with a stamp at this second of the mesh's clock."""
        self.add_bytes(at_s, entry.SerializeToString(), log.kind_of(entry))
        last = self.messages[-1]
        outputs = fold.step(
            self._state, Entry(last.sequence, last.stamp_ms, translate.stored_body(last.subject, last.data))
        )
        self.alerts += [output for output in outputs if isinstance(output, Alert)]

    def add_bytes(self, at_s: float, data: bytes, kind: str = "report") -> None:
        """Appends raw bytes as an entry."""
        stamp_ms, sequence = T0_MS + round(at_s * 1000 / self.log_meta.clock.rate), len(self.messages) + 1
        self.messages.append(Delivered(flow.log_subject(0, kind), data, "LOG_0", sequence, stamp_ms, 0, ""))

    def at(self, at_s: float, device_id: str, north_m: float, fix_s: float | None = None) -> None:
        """Appends a position of a device; `fix_s` is its fix time if it differs from its arrival."""
        self.add(at_s, log.positions_entry(fix(device_id, at_s if fix_s is None else fix_s, north_m)))

    def stored(self, alert: Alert) -> StoredAlert:
        """The stored form of an alert."""
        message = translate.alert_to_proto(alert, 0)
        figures = translate.measure_to_proto(alert).SerializeToString()
        return StoredAlert(message, message.SerializeToString(), figures)

    def explain(self, stored: StoredAlert) -> Explanation:
        """Refolds the log and explains an alert, as the command does over a real log."""
        refolded = Refold(stored, self.log_meta, 1)
        for message in self.messages[: stored.alert.sequence]:
            refolded.fold(message)
        device_ids = refolded.device_ids()
        refolded.read_to = len(self.messages)
        for message in self.messages[refolded.window_from - 1 :]:
            refolded.collect(message, device_ids)
        return explanation.explain(refolded)


def case_entry(*, version: int = 1, until_s: float = 86_400, place: bool = False) -> log_pb2.LogEntry:
    """The case of wearer w1 with tag t1, person p1 with device d1."""
    return log.case_entry(from_ms=T0_MS, until_ms=T0_MS + round(until_s * 1000), version=version, place=place)


def fix(device_id: str, at_s: float, north_m: float) -> Position:
    return log.position(device_id, T0_MS + round(at_s * 1000), north_m)


def approach(rate: int = 1, *, exercise: exercise_pb2.Exercise.ValueType = exercise_pb2.EXERCISE_UNSPECIFIED) -> Log:
    """The protected person is at home, and the wearer comes from 3 km to 50 m. Both report every 30 s; she falls silent after 1 min."""
    story = Log(rate)
    entry = case_entry()
    entry.case.exercise = exercise
    story.add(0, entry)
    for i, north_m in enumerate((3000, 2500, 1900, 1500, 900, 400, 50)):
        if i < 3:
            story.at(1 + 30 * i, "d1", 0)
        story.at(2 + 30 * i, "t1", north_m)
    return story


def respond(story: Log) -> Alert:
    (explained,) = [alert for alert in story.alerts if alert.demand is Demand.RESPOND and alert.kind in KINDS]
    return explained
