"""An evidence bundle of a fictional approach: decided by the fold from its log, with the steps of both legs, and no server."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from services.common.evidence.model import Evidence, StoredMessage
from services.common.messaging import flow
from services.court.evidence import bundle
from services.court.evidence.bundle import Ground
from services.court.evidence.leg_records import Chain
from services.dispatch.domain.enums import CloseCause, Demand
from services.dispatch.domain.events import Acknowledged, Closed, Event, Offered, Progressed
from services.dispatch.leg import chain
from services.dispatch.leg.chain import ChainHead
from services.geofence import translate
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.entries import FOLD_VERSION, Entry
from services.geofence.domain.state import State
from services.ingest.domain import Position
from tandem.common.v1 import log_pb2
from tests.support.bundles import ABOUT, KEY
from tests.support.geofence.log import case_entry, position, positions_entry, subject_of

BEGAN_MS = 1_795_000_000_000
PACE_M = 90
"""Metres between two reports of the wearer, 5 s apart."""
_COMES_M = tuple(range(1_200, 0, -PACE_M))
_DISTANCES_M = (*_COMES_M, *range(30, 2_600, 4 * PACE_M))
LINGERS_S = 600
"""Time that the wearer stays away before late positions arrive, seconds."""
_LOG_ID = "log-1"


def approach_bundle(
    leg: str = "police",
    equipment: Sequence[tuple[int, str]] = (),
    *,
    late_turns: Collection[int] = (),
    last_snapshot: log_pb2.LogEntry | None = None,
    ticks_after_s: int = 120,
) -> bytes:
    """The bundle of an approach to 30 m and away. `equipment` holds events of the tag: seconds after the beginning, and the kind. The
    positions of `late_turns` arrive 10 minutes after the departure, and amend the account. With a `last_snapshot` of the case, the log
    ends with it 1 s after the wearer has come to 30 m. Its tick comes `ticks_after_s` after all else."""
    entries = [(BEGAN_MS, log_pb2.LogEntry(fold_version=log_pb2.FoldVersion(version=FOLD_VERSION)))]
    entries.append((BEGAN_MS, case_entry(place=True)))
    distances_m = _DISTANCES_M if last_snapshot is None else _COMES_M
    if late_turns:
        distances_m = (*_COMES_M, *range(30, 2_600, PACE_M), *[2_600] * (LINGERS_S // 5))
    late = list[Position]()
    for turn, north_m in enumerate(distances_m):
        at_ms = BEGAN_MS + 1_000 + 5_000 * turn
        tag, phone = position("t1", at_ms, north_m), position("d1", at_ms, 0.0)
        late += [tag] if turn in late_turns else []
        entries.append((at_ms, positions_entry(*([phone] if turn in late_turns else [tag, phone]))))
    if late:
        entries.append((entries[-1][0] + 1_000, positions_entry(*late)))
    for second, kind in equipment:
        at_ms = BEGAN_MS + 1_000 * second
        event = log_pb2.EquipmentReport(
            device_id="t1", report_id=f"e{second}", event=log_pb2.EquipmentKind.Value(kind), event_time_ms=at_ms
        )
        entries.append((at_ms, log_pb2.LogEntry(equipment=event)))
    entries.sort(key=lambda entry: entry[0])
    if last_snapshot is not None:
        entries.append((entries[-1][0] + 1_000, last_snapshot))
    entries.append((entries[-1][0] + 1_000 * ticks_after_s, log_pb2.LogEntry(tick=log_pb2.Tick())))
    records = [
        StoredMessage(flow.log_stream(0), sequence, at_ms, subject_of(entry), entry.SerializeToString())
        for sequence, (at_ms, entry) in enumerate(entries, 1)
    ]
    alerts = _alerts(records)
    incident_id = next(alert.incident_id for alert in alerts if alert.incident_id)
    records += [
        StoredMessage(flow.ALERTS.name, number, alert.at_ms, "", translate.alert_to_proto(alert, 0).SerializeToString())
        for number, alert in enumerate(alerts, 1)
    ]
    records += [
        StoredMessage(
            flow.MEASURES.name,
            number,
            alert.at_ms,
            flow.measure_subject(0, alert.alert_id),
            translate.measure_to_proto(alert).SerializeToString(),
        )
        for number, alert in enumerate(alerts, 1)
        if leg == "police"
    ]
    evidence = Evidence(incident_id, leg, "w1", ("order-1",), ("p1",), 0, BEGAN_MS, True, True, tuple(records))
    ground = Ground(incident_id, 0, _LOG_ID, 1, 0, BEGAN_MS)
    chains = [_chain("police", incident_id, "p1"), _chain("probation", incident_id, "w1")]
    return bundle.make_bundle(evidence, ground, chains, about=ABOUT, key=KEY)


def _alerts(log: Sequence[StoredMessage]) -> list[Alert]:
    state = State(0, log_id=_LOG_ID, clock_rate=1, clock_anchor_ms=0)
    return [
        output
        for record in log
        for output in fold.step(
            state, Entry(record.sequence, record.stamp_ms, translate.stored_body(record.subject, record.data))
        )
        if isinstance(output, Alert)
    ]


def _chain(leg: str, incident_id: str, subject_id: str) -> Chain:
    """A leg's chain: offered 61 s after the beginning, acknowledged 8 s later, on scene, and closed as a breach."""
    id_ = f"assign-{leg}"
    at_ms = BEGAN_MS + 61_000
    desk = f"spiffe://{leg}/desk/kim"
    events: list[Event] = [
        Offered(at_ms, id_, subject_id, Demand.RESPOND, (14, 0), None, at_ms + 30_000),
        Acknowledged(at_ms + 8_000, id_, desk),
        Progressed(at_ms + 20_000, id_, desk, 8),
        Closed(at_ms + 90_000, id_, desk, CloseCause.BREACH_CONFIRMED, ""),
    ]
    head, links = ChainHead(), []
    for event in events:
        link = chain.write(head, incident_id, event)
        links.append(link)
        head = ChainHead(link.id, link.hash)
    return Chain(leg, ChainHead(), links, head)
