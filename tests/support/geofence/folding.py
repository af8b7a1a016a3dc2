"""The offline fold of a stored log, for tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from services.common.messaging import pull
from services.geofence import translate
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert, Request
from services.geofence.domain.entries import Entry
from services.geofence.domain.state import State
from tandem.common.v1 import geometry_pb2, log_pb2

Stored = tuple[int, int, log_pb2.LogEntry]
"""Sequence, stamp in milliseconds, entry."""


def folded(entries: Iterable[Stored]) -> tuple[State, list[Alert]]:
    """Final state and alerts of the offline fold of these entries."""
    state, alerts = State(0), []
    for sequence, stamp_ms, entry in entries:
        for output in fold.step(state, Entry(sequence, stamp_ms, translate.entry_body(entry.SerializeToString()))):
            if isinstance(output, Request):
                continue
            assert isinstance(output, Alert), output
            alerts.append(output)
    return state, alerts


def counted(entries: Sequence[tuple[pull.Delivered, log_pb2.LogEntry]]) -> Counter[str]:
    """Number of times that each report of the last 2 h counts in the fold, by report id, which must be unique.

    A report that doesn't count has no key. A position counts where the track holds it, an equipment event where it causes an alert. A
    case with all devices goes before the log, because for other devices the fold keeps only two positions and emits no alert.
    """
    device_ids = {
        device_id for _, entry in entries for device_id in (*entry.positions.device_id, entry.equipment.device_id)
    } - {""}
    everyone = log_pb2.CaseSnapshot(
        case_id="everyone",
        version=1,
        order_id="o",
        wearer_id="w",
        tag_device_ids=sorted(device_ids),
        rings=[geometry_pb2.Ring(radius_m=100, action=geometry_pb2.RESPOND)],
        valid_until_ms=1 << 50,
    )
    state, alerts = folded(
        [
            (0, 0, log_pb2.LogEntry(case=everyone)),
            *((message.sequence, message.stamp_ms, entry) for message, entry in entries),
        ]
    )
    counts = Counter(fix.report_id for track in state.tracks.values() for fix in track.fixes)
    counts.update(alert.cause.report_id for alert in alerts if alert.cause)
    return counts
