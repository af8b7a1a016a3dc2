"""Ambiguous positions: a wearer whose newest positions are too vague counts as unseen since the last position that wasn't.

Otherwise a jammer would hide a wearer near a target better than silence does: a tag that gives only the radio cell is heard and seems
seen.
"""

from __future__ import annotations

from typing import NamedTuple

from services.geofence.domain.decisions import CaseContext
from services.geofence.domain.entries import Case, Target
from services.geofence.domain.kinematics import reachability
from services.geofence.domain.kinematics.track import Track, until
from services.geofence.domain.state import State
from services.geofence.domain.tracks.fixes import Fix
from services.geofence.domain.unseen import stages

FIRST_VERSION = 18
"""Before this version of the log, any position ended the silence of a wearer near a target."""
VAGUE_FROM_MM = 300_000
"""Accuracy, mm, from which on a position doesn't show whether a wearer is near a target or at it: a radio cell."""


class Ambiguity(NamedTuple):
    """The newest position of a wearer doesn't say where the wearer is."""

    last: Fix | None
    """The last position that says it, if the wearer counts as unseen since then. None: what was demanded stays, and nothing more is."""


def find(context: CaseContext, target: Target, track: Track) -> Ambiguity | None:
    """The ambiguity about a wearer who was near a target. None if the newest position says where the wearer is.

    Nor is there any once somebody was sent: such positions clear no ring that demands a response.
    """
    state, case_state = context.state, context.case_state
    if state.log_version < FIRST_VERSION or any(
        case_state.ring(target, ring).open for ring in context.case.rings if ring.responds
    ):
        return None
    if not _may_be_there(state, context.case, track.recent[-1], target=target):
        return None
    last = _before_vague(context, target, track)
    if last and (stages.was_near(state, context.case, last, target=target) or stages.shows_sign(state, case_state)):
        return Ambiguity(last)
    return Ambiguity(None) if case_state.near.get(target.key) else None


def is_vague(track: Track) -> bool:
    """Whether the newest position of a tag may be too vague to show where the wearer is."""
    return track.recent[-1].accuracy_mm >= VAGUE_FROM_MM


def _may_be_there(state: State, case: Case, fix: Fix, *, target: Target) -> bool:
    """Whether a position is so vague that the wearer may be within the response ring, or anywhere near it."""
    return fix.accuracy_mm >= VAGUE_FROM_MM and not reachability.is_beyond_response(state, case, fix, target=target)


def _before_vague(context: CaseContext, target: Target, track: Track) -> Fix | None:
    """The last position before the vague ones. None if it was dropped, or if the wearer was stationary without a sign of evasion:
    indoors, tags fall back on radio cells each evening."""
    state, case_state = context.state, context.case_state
    last = next((fix for fix in track.backwards() if not _may_be_there(state, context.case, fix, target=target)), None)
    if last is None or stages.shows_sign(state, case_state):
        return last
    rest_ms = state.rules.rest_ms
    is_known = not track.is_truncated or track.began_by(last.time_ms - rest_ms)
    return last if is_known and reachability.rest_ms(until(track, last)) < rest_ms else None
