"""Jumps: a wearer whose newest positions no vehicle can have reached counts as unseen since the last position that one can.

Otherwise a spoofed tag would hide a wearer near a target better than silence does: the desks would be notified, and nobody would be
sent.
"""

from __future__ import annotations

from services.geofence.domain.decisions import CaseContext
from services.geofence.domain.entries import Demand, Ring, Target
from services.geofence.domain.kinematics import rings
from services.geofence.domain.kinematics.track import Track
from services.geofence.domain.spoofing import ways_out
from services.geofence.domain.tracks.fixes import Fix

FIRST_VERSION = 19
"""Before this version of the log, the desks alone were notified of a wearer who had leapt out of a ring that sends nobody."""


def find(context: CaseContext, target: Target, track: Track) -> Fix | None:
    """The last believed position of a wearer who jumped out of a ring that demands NOTIFY. None if the newest position is believed, or
    still within such a ring.

    Nor is there any once a ring that demands a response is entered: a jump doesn't clear it.
    """
    state, case_state, case = context.state, context.case_state, context.case
    if state.log_version < FIRST_VERSION or not case_state.episode_id:
        return None
    left = [ring for ring in case.rings if ring.action >= Demand.NOTIFY and case_state.ring(target, ring).open]
    if not left or any(ring.responds for ring in left):
        return None
    pairs = [pair for pair in ways_out.all_pairs(state, case, target) if pair.sides.wearer is track]
    found = [fix for ring in left for pair in pairs if (fix := _before_jump(context, target, ring, pair=pair))]
    return max(found, default=None)


def _before_jump(context: CaseContext, target: Target, ring: Ring, *, pair: ways_out.Pair) -> Fix | None:
    """The last believed position on the tag's way out of a ring, by the positions of a pair of devices."""
    state, case_state = context.state, context.case_state
    if target.shape.distance_mm(rings.newest(pair.sides)) <= ways_out.near_mm(state, ring, pair.sides):
        return None  # the last near moment would be now
    near = ways_out.last_near(state, case_state, target, ring=ring, pair=pair)
    ways = next(ways_out.since_near(state, case_state, target, ring=ring, pair=pair, near=near))
    return max(way.last for way in ways) if ways and all(way.false for way in ways) else None
