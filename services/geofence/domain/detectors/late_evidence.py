"""Late evidence: positions that arrive after the window of late reports, and prove that a wearer was near a protected place.

They are too late for every ring and account: the tracks of that time are gone. Their own place and the case's protected places are
enough to say that the wearer was there. Nobody is sent for the past, but both desks are notified: once an hour for each device and
place. A moment that the desks were notified of doesn't count again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, NamedTuple

from services.geofence.domain.decisions import AlertDraft, Amendment, CaseContext, Decisions, Detector
from services.geofence.domain.demands import Detection
from services.geofence.domain.detectors import encounters
from services.geofence.domain.entries import Case, Demand, Ring, Rules, Target
from services.geofence.domain.geometry import Vector
from services.geofence.domain.kinematics import accuracy
from services.geofence.domain.kinematics.rings import Stretch
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS
from services.geofence.domain.state import ANOMALY_INTERVAL_MS, CasePart, CaseState

NOTIFY_AFTER_MS = 60_000
"""Delay before the desks are notified, so that the notice includes more reports: a backlog of an hour takes half a minute to arrive."""
MAX_STRETCHES = 100
"""Maximum number of separate stretches that are kept for each device and place."""


class TooLate(NamedTuple):
    """A position that arrived after the window of late reports."""

    device_id: str
    time_ms: int
    point: Vector
    accuracy_mm: int


class EvidenceKey(NamedTuple):
    """Key of late evidence: a place, and the tag that was there."""

    target_key: str
    device_id: str


@dataclass(slots=True)
class LateEvidence:
    """Presence near a place by positions that arrived too late."""

    found: list[Stretch] = field(default_factory=list)
    """Stretches of time that the desks aren't notified of yet. Positions at most 3 minutes apart are one stretch."""
    least_mm: float | None = None
    """Least distance in `found`, mm."""
    p: float = 0.0
    """Greatest probability of being inside in `found`."""
    due_ms: int = 0
    """When the desks are notified of `found`, mesh time."""
    notified: list[Stretch] = field(default_factory=list)
    """The newest stretches that the desks were notified of."""


Evidence = dict[EvidenceKey, LateEvidence]


def _to_json(evidence: Evidence) -> list[Any]:
    # Pairs keep the order of arrival, in which the notices of one moment are emitted; keys would be sorted.
    return [(f"{key.target_key} {key.device_id}", astuple(late)) for key, late in evidence.items()]


def _of_json(content: Iterable[Any]) -> Evidence:
    evidence: Evidence = {}
    for text, (found, least_mm, p, due_ms, notified) in dict(content).items():
        target_key, device_id = text.split(" ")
        evidence[EvidenceKey(target_key, device_id)] = LateEvidence(
            [(from_ms, to_ms) for from_ms, to_ms in found],
            least_mm,
            p,
            due_ms=due_ms,
            notified=[(from_ms, to_ms) for from_ms, to_ms in notified],
        )
    return evidence


LATE_EVIDENCE = CasePart("late_evidence", new=Evidence, encode=_to_json, decode=_of_json, outlives_episode=True)


def note(decisions: Decisions, positions: Iterable[TooLate]) -> list[str]:
    """Keeps the presence that too late positions prove. Returns the cases with a notice that is newly due, sorted."""
    state = decisions.state
    concerned: set[str] = set()
    for position in positions:
        if position.time_ms < state.owned_since.get(position.device_id, position.time_ms):
            continue
        for case_id in state.cases_of.get(position.device_id, ()):
            if _note(state.cases[case_id], position, rules=state.rules, now_ms=state.now_ms):
                concerned.add(case_id)
    return sorted(concerned)


def _note(case_state: CaseState, position: TooLate, *, rules: Rules, now_ms: int) -> bool:
    """Keeps the presence near each place of a case that a position proves. Returns whether there is any that is new."""
    case = case_state.case
    ring = _ring(case)
    is_tag = position.device_id in case.tag_device_ids
    if ring is None or not is_tag or not case.is_in_force(position.time_ms):
        return False
    if encounters.allows(case, position.time_ms, position.point):
        return False
    is_new = False
    for target in case.targets:
        if target.is_person:
            continue
        apart_mm = target.shape.distance_mm(position.point)
        p = accuracy.p_inside(apart_mm, ring.radius_mm, (position.accuracy_mm,))
        if p >= rules.respond_p_pct / 100:
            evidence = LATE_EVIDENCE.of(case_state)
            late = evidence.setdefault(EvidenceKey(target.key, position.device_id), LateEvidence())
            is_new |= _add(late, position.time_ms, apart_mm, p=p, now_ms=now_ms)
    return is_new


def _ring(case: Case) -> Ring | None:
    """The ring whose entry is a breach: the widest one that demands a response, else the widest one that demands NOTIFY."""
    return case.response_ring or next((ring for ring in case.rings if ring.action is Demand.NOTIFY), None)


def _add(late: LateEvidence, at_ms: int, apart_mm: float, *, p: float, now_ms: int) -> bool:
    """Adds a moment. Returns False if the desks were notified of it, or if there are too many stretches."""
    if any(from_ms <= at_ms <= to_ms for from_ms, to_ms in late.notified):
        return False
    near = [span for span in late.found if span[0] - UNKNOWN_AFTER_MS <= at_ms <= span[1] + UNKNOWN_AFTER_MS]
    if not near and len(late.found) >= MAX_STRETCHES:
        return False
    if not late.found:
        late.due_ms = max(now_ms + NOTIFY_AFTER_MS, late.due_ms + ANOMALY_INTERVAL_MS if late.notified else 0)
    for span in near:
        late.found.remove(span)
    late.found.append((min([at_ms, *(span[0] for span in near)]), max([at_ms, *(span[1] for span in near)])))
    late.found.sort()
    late.least_mm = apart_mm if late.least_mm is None else min(late.least_mm, apart_mm)
    late.p = max(late.p, p)
    return True


def notify_due(context: CaseContext, at_ms: int) -> Iterable[int]:
    """Notifies the desks of all late evidence that is due. Returns when the rest is due."""
    evidence = LATE_EVIDENCE.all_in(context.case_state).get(LATE_EVIDENCE.name)
    return _notify_due(context, evidence, at_ms) if evidence else ()


def _notify_due(context: CaseContext, evidence: Evidence, at_ms: int) -> Iterator[int]:
    for key, late in evidence.items():
        if late.found and late.due_ms <= at_ms:
            _notify(context, key, late)
        elif late.found:
            yield late.due_ms


def _notify(context: CaseContext, key: EvidenceKey, late: LateEvidence) -> None:
    target = next(target for target in context.case.targets if target.key == key.target_key)
    context.alert(
        AlertDraft(
            Detection.WAS_INSIDE.alert_type,
            late.found[0][0],
            target=target,
            ring=_ring(context.case),
            inside=tuple(late.found),
            min_mm=late.least_mm,
            p=late.p,
        )
    )
    late.notified = sorted([*late.notified, *late.found])[-MAX_STRETCHES:]
    late.found = []
    late.least_mm = None
    late.p = 0.0


def _notify_all(context: CaseContext) -> None:
    for key, late in LATE_EVIDENCE.of(context.case_state).items():
        if late.found:
            _notify(context, key, late)


def amend(context: CaseContext, amendment: Amendment) -> None:
    """Notifies the desks of everything pending by the old snapshot, and drops the places and devices that the new one doesn't name."""
    _notify_all(context)
    evidence, case = LATE_EVIDENCE.of(context.case_state), amendment.case
    for key in _dropped(evidence, case.targets, case.tag_device_ids):
        del evidence[key]


def _dropped(evidence: Evidence, targets: Sequence[Target], tag_ids: tuple[str, ...]) -> list[EvidenceKey]:
    kept = {target.key for target in targets}
    return [key for key in evidence if key.target_key not in kept or key.device_id not in tag_ids]


def end(context: CaseContext) -> None:
    """Notifies the desks of everything pending in a case that ends, and drops it."""
    _notify_all(context)
    LATE_EVIDENCE.of(context.case_state).clear()


WHY = {
    Detection.WAS_INSIDE: (
        "reports that arrived more than 2 h late show that the wearer was within the ring round this place: too late to send anybody"
    ),
}
DETECTOR = Detector(on_time=notify_due, on_amend=amend, on_end=end, parts=(LATE_EVIDENCE,), why=WHY)
