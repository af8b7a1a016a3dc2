"""Outages: many wearers fall silent together, through no wearer's doing. The desks are notified once, not for each wearer.

The cause may be a carrier, a vendor's head-end or an endpoint of the mesh. The log can't show which, but it shows that a tenth of
all tags stopped within 3 minutes, or that nothing at all arrived for that long. A notice about one wearer or phone is then recorded
under the outage; a demand to respond never is. Once most wearers are heard again, each remaining silence gets its own notice,
because it isn't due to the outage.
"""

from __future__ import annotations

from services.geofence.domain.decisions import Decisions
from services.geofence.domain.demands import Detection
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS
from services.geofence.domain.state import CaseState, Due, GroupedKey, Outage, State

MIN_SILENT = 10
"""Minimum number of wearers who fall silent together in an outage, whatever their share. A desk can inquire about fewer one by one."""
SILENT_ONE_IN = 10
"""In an outage, at least one in this many watched wearers has fallen silent. By day, one in a hundred normally falls silent within 3
minutes (ADR 23)."""
BACK_WITHIN_MS = 180_000
"""Time that the remaining wearers have to be heard after an outage: phones report more rarely than tags."""


def note_silence(decisions: Decisions, case_id: str, moment_ms: int) -> None:
    """Notes that a wearer who had been heard fell silent. With enough others within 3 minutes, an outage begins."""
    state = decisions.state
    if state.outage is None:
        state.silences[case_id] = moment_ms
        while state.silences[first := next(iter(state.silences))] < moment_ms - UNKNOWN_AFTER_MS:
            del state.silences[first]
        if len(state.silences) < _enough(state):
            return
        first_ms = min(state.silences.values())
        members = dict.fromkeys(state.silences)
        _begin(decisions, first_ms - UNKNOWN_AFTER_MS, moment_ms, members=members, silent=len(members))
    else:
        state.outage.members[case_id] = None
        state.outage.max_silent = max(state.outage.max_silent, len(state.outage.members))


def note_gap(decisions: Decisions, from_ms: int, until_ms: int) -> None:
    """Begins an outage if nothing entered the log for 3 minutes, not even a tick: everybody is silent at once."""
    state = decisions.state
    if state.outage is None and from_ms and until_ms - from_ms >= UNKNOWN_AFTER_MS and len(state.watched) >= MIN_SILENT:
        _begin(decisions, from_ms, from_ms + UNKNOWN_AFTER_MS, members={}, silent=len(state.watched))


def note_heard(decisions: Decisions, case_state: CaseState, at_ms: int) -> None:
    """Notes that a wearer is no longer silent, or no longer watched. The outage ends once few members remain."""
    state, outage = decisions.state, decisions.state.outage
    # Otherwise an outage that begins later would count this wearer, who isn't silent, as a member.
    state.silences.pop(case_state.case.case_id, None)
    # Alerts about the wearer's position remain covered until the outage ends, because the position arrives after the contact.
    case_state.grouped = [key for key in case_state.grouped if key.detection is not Detection.NOT_HEARD_FOR_LONG]
    if not case_state.grouped:
        state.grouped.discard(case_state.case.case_id)
    if outage is None:
        return
    outage.members.pop(case_state.case.case_id, None)
    if 2 * len(outage.members) < _enough(state):
        state.outage, state.outage_over_ms = None, state.now_ms
        state.due.add(Due(state.now_ms + BACK_WITHIN_MS, "", is_boundary=False))
        decisions.outage_alert(outage, Detection.OUTAGE_OVER, at_ms=at_ms, silent=outage.max_silent)


def covering(state: State, heard_ms: int) -> str:
    """Id of the outage that explains why somebody last heard at `heard_ms` is silent; empty if none does."""
    outage = state.outage
    # Silences that began up to 3 minutes before the outage's first one have the same cause.
    return outage.outage_id if outage and heard_ms >= outage.from_ms - UNKNOWN_AFTER_MS else ""


def group(state: State, case_state: CaseState, key: GroupedKey) -> None:
    """Records that the notice of an outage covers a detection."""
    case_state.grouped.append(key)
    state.grouped.add(case_state.case.case_id)


def cases_after_outage(state: State) -> list[str]:
    """Cases with a detection that an outage's notice covered, once the outage is over and the grace period has passed."""
    if state.outage or state.outage_over_ms is None or state.now_ms < state.outage_over_ms + BACK_WITHIN_MS:
        return []
    return sorted(state.grouped)


def ungroup(case_state: CaseState) -> None:
    """Ends the cover of an outage for a case: conditions that still hold are detected and emitted again."""
    for key in case_state.grouped:
        if key.detection is Detection.PERSON_LOST:
            case_state.lost.pop(key.about, None)
    case_state.grouped = []


def _enough(state: State) -> int:
    return max(MIN_SILENT, -(-len(state.watched) // SILENT_ONE_IN))


def _begin(decisions: Decisions, from_ms: int, at_ms: int, *, members: dict[str, None], silent: int) -> None:
    state = decisions.state
    state.silences.clear()
    outage_id, incident_id = decisions.outage_ids()
    state.outage = Outage(
        outage_id=outage_id, incident_id=incident_id, from_ms=from_ms, members=members, max_silent=silent
    )
    decisions.outage_alert(state.outage, Detection.OUTAGE, at_ms=at_ms, silent=silent)
