"""Replaces a case by its new snapshot: closes the rings and alerts that it no longer asks for, and keeps the accounts."""

from __future__ import annotations

import heapq

from services.geofence.domain import accounts
from services.geofence.domain.decisions import Decisions
from services.geofence.domain.detectors import approach, equipment, possible_presence, silence
from services.geofence.domain.entries import Case
from services.geofence.domain.state import CaseState


def apply(decisions: Decisions, before: CaseState, case: Case) -> None:
    """Closes the rings and alerts that a new snapshot no longer asks for, then puts the snapshot in place of the old one."""
    state, now_ms = decisions.state, decisions.state.now_ms
    in_force = case.valid_from_ms <= now_ms
    heard = {t.key for t in case.targets if case.tag_device_ids and (t.device_ids or not t.is_person)}
    kept_rings = {(t.key, r.radius_mm, r.action, t.shape) for t in case.targets for r in case.rings}
    accounts.amend(decisions, before, None)
    if before.case.device_ids != case.device_ids:
        accounts.preserve(state, before)
    for target in before.case.targets:
        dropped = [r for r in before.case.rings if (target.key, r.radius_mm, r.action, target.shape) not in kept_rings]
        # Nor can a ring be watched once its last device is gone, or before its order is in force.
        to_close = dropped if in_force and target.key in heard else list(before.case.rings)
        approach.close(decisions, before, (target,), at_ms=now_ms, only=to_close)
        for ring in dropped:
            before.rings.pop((target.key, ring.radius_mm), None)
    named = set(case.device_ids) if in_force else set()
    equipment.retract(
        decisions, before, sorted(key for key in before.raised if key.split()[1] not in named), at_ms=now_ms
    )
    silence.amend(decisions, before, case, in_force=in_force)
    kept_keys = heard if in_force else set()
    possible_presence.close(decisions, before, now_ms, keys={t.key for t in before.case.targets} - kept_keys)
    decisions.end_if_quiet(before)
    state.forget(before.case)
    state.due = [due for due in state.due if due[1] != case.case_id]
    heapq.heapify(state.due)
    before.case, before.next_check_ms = case, 0
