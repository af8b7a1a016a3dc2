"""The offline fold of a stored log, for tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from services.common import pull
from services.geofence import translate
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.entries import Entry
from services.geofence.domain.state import State
from tandem.common.v1 import log_pb2

Stored = tuple[int, int, log_pb2.LogEntry]
"""Sequence, stamp in milliseconds, entry."""


def folded(entries: Iterable[Stored]) -> tuple[State, list[Alert]]:
    """State and alerts of the offline fold."""
    state, alerts = State(0), []
    for sequence, stamp_ms, entry in entries:
        for one in fold.step(state, Entry(sequence, stamp_ms, translate.entry_body(entry.SerializeToString()))):
            assert isinstance(one, Alert), one
            alerts.append(one)
    return state, alerts


def counted(entries: Iterable[tuple[pull.Delivered, log_pb2.LogEntry]]) -> Counter[tuple[str, str]]:
    """How often each report of the last 2 h counts in the fold, by device and report id; what doesn't count isn't there."""
    state, _ = folded((message.sequence, message.stamp_ms, entry) for message, entry in entries)
    found = Counter((device_id, fix.report_id) for device_id, track in state.tracks.items() for fix in track.fixes)
    found.update((device_id, report_id) for device_id, heard in state.heard.items() for report_id, _ in heard)
    return found
