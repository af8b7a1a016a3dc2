"""Outages: when so many wearers fall silent together that it is no wearer's doing, the desks are told once and not of each.

A carrier, a vendor's head-end, a door of the mesh: the log can't tell which, but it can tell that a tenth of all tags stopped within
3 minutes, or that nothing at all came for so long. What would then be a notice of one wearer or phone is recorded under the outage;
what demands a response never is. Once most are heard again the rest is told one by one, for it is theirs.
"""

from __future__ import annotations

import heapq

from services.geofence.domain import demands
from services.geofence.domain.decisions import Decisions
from services.geofence.domain.demands import Detection
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS
from services.geofence.domain.state import TIMED_CHECK, CaseState, Outage, State

MIN_SILENT = 10
"""Fewer wearers who fall silent together are no outage, whatever their share: a desk can ask for each."""
SILENT_ONE_IN = 10
"""... and one of so many who are watched must have. By day one in a hundred falls silent within 3 minutes (ADR 23)."""


BACK_WITHIN_MS = 180_000
"""After its end the others have so long to be heard: phones report more rarely than tags."""


def note_silence(decisions: Decisions, case_id: str, moment_ms: int) -> None:
    """A wearer who had been heard fell silent at a moment; with enough others within 3 minutes that begins an outage."""
    state = decisions.state
    if state.outage is None:
        state.silences[case_id] = moment_ms
        while state.silences[first := next(iter(state.silences))] < moment_ms - UNKNOWN_AFTER_MS:
            del state.silences[first]
        if len(state.silences) < _enough(state):
            return
        first_ms = min(state.silences.values())
        members = dict.fromkeys(state.silences)
        _begin(decisions, first_ms - UNKNOWN_AFTER_MS, moment_ms, members, len(members))
    else:
        state.outage.members[case_id] = None
        state.outage.max_silent = max(state.outage.max_silent, len(state.outage.members))


def note_gap(decisions: Decisions, from_ms: int, until_ms: int) -> None:
    """Nothing came into the log between two moments, not even a tick: where that is 3 minutes, everybody is silent at once."""
    state = decisions.state
    if state.outage is None and from_ms and until_ms - from_ms >= UNKNOWN_AFTER_MS and len(state.watched) >= MIN_SILENT:
        _begin(decisions, from_ms, from_ms + UNKNOWN_AFTER_MS, {}, len(state.watched))


def note_heard(decisions: Decisions, case_state: CaseState, at_ms: int) -> None:
    """A wearer isn't silent any more, or nobody asks about them; once few are the outage is over."""
    state, outage = decisions.state, decisions.state.outage
    # Else the outage that others begin would wait for who isn't silent.
    state.silences.pop(case_state.case.case_id, None)
    # Where a wearer is who is heard again stays the outage's question until it is over: the position comes behind the contact.
    case_state.grouped = [
        name for name in case_state.grouped if not name.startswith(Detection.NOT_HEARD_FOR_LONG.value)
    ]
    if not case_state.grouped:
        state.grouped.discard(case_state.case.case_id)
    if outage is None:
        return
    outage.members.pop(case_state.case.case_id, None)
    if 2 * len(outage.members) < _enough(state):
        state.outage, state.outage_over_ms = None, state.now_ms
        heapq.heappush(
            state.due, (state.now_ms + BACK_WITHIN_MS, "", TIMED_CHECK)
        )  # of no case: that a tick comes then is enough
        kind, demand = demands.DETECTIONS[Detection.OUTAGE_OVER]
        decisions.outage_alert(outage, kind, demand, at_ms, outage.max_silent)


def covering(state: State, heard_ms: int) -> str:
    """The outage that explains why somebody who was last heard at a moment is silent; empty where none does."""
    outage = state.outage
    # Who fell silent in the 3 minutes before its first fell to the same cause.
    return outage.outage_id if outage and heard_ms >= outage.from_ms - UNKNOWN_AFTER_MS else ""


def is_grouped(case_state: CaseState, detection: Detection, key: str) -> bool:
    """Whether the notice of an outage stands for what was found."""
    return f"{detection.value} {key}" in case_state.grouped


def group(state: State, case_state: CaseState, detection: Detection, key: str) -> None:
    """Notes that it does."""
    case_state.grouped.append(f"{detection.value} {key}")
    state.grouped.add(case_state.case.case_id)


def cases_after_outage(state: State) -> list[str]:
    """Cases of which the notice of an outage stood for something, once it is over and the others have had their time."""
    over = state.outage is None and state.now_ms >= state.outage_over_ms + BACK_WITHIN_MS
    return sorted(state.grouped) if over and state.grouped else []


def ungroup(case_state: CaseState) -> None:
    """No outage stands for it any more: what still holds is found anew, and told."""
    for name in case_state.grouped:
        detection, _, key = name.partition(" ")
        if detection == Detection.PERSON_LOST.value:
            case_state.lost.pop(key, None)
    case_state.grouped = []


def _enough(state: State) -> int:
    return max(MIN_SILENT, -(-len(state.watched) // SILENT_ONE_IN))


def _begin(decisions: Decisions, from_ms: int, at_ms: int, members: dict[str, None], silent: int) -> None:
    state = decisions.state
    state.silences.clear()
    state.outage = Outage(*decisions.outage_ids(), from_ms, members, silent)
    kind, demand = demands.DETECTIONS[Detection.OUTAGE]
    decisions.outage_alert(state.outage, kind, demand, at_ms, silent)
