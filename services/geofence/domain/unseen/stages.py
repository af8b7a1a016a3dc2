"""Stages of an unseen wearer: from when on which detection holds about a target that the wearer can have reached."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from services.geofence.domain import demands
from services.geofence.domain.decisions import CaseContext
from services.geofence.domain.demands import Detection
from services.geofence.domain.entries import Case, Demand, EquipmentKind, Target
from services.geofence.domain.kinematics import encounters, reachability
from services.geofence.domain.kinematics.reachability import Unseen
from services.geofence.domain.state import WEARER, CasePart, CaseState, State
from services.geofence.domain.tracks.fixes import Fix
from services.geofence.domain.wearing import removals

ANNOUNCED_MS = 21_600_000
"""How long an announcement explains a silence: 6 h. A tag with a low battery lasts for hours, not for days."""


class UnseenStage(NamedTuple):
    """A detection about an unseen wearer and a target, and the moment from which on it holds."""

    from_ms: int
    detection: Detection

    @property
    def demand(self) -> Demand:
        """The demand of the detection."""
        return demands.DETECTIONS[self.detection][1]


PUT_OFF: CasePart[dict[str, Detection]] = CasePart(
    "put_off",
    new=dict,
    encode=lambda put_off: {key: detection.value for key, detection in put_off.items()},
    decode=lambda content: {key: Detection(value) for key, value in content.items()},
    outlives_episode=True,
)
"""Greatest detection about each target, by key, that the positions gave while a home unit or beacon put it off. It holds once the unit
says nothing more, however long ago the positions were."""


def from_unit(context: CaseContext, target: Target, at_unit: Unseen, upto: UnseenStage) -> list[UnseenStage]:
    """The detections that hold from the place of a unit on, as far as they demand no more than `upto`, which holds by the positions.

    So a presence at a unit never demands anything by itself.
    """
    found = [stage for stage in stages(context, target, at_unit) if stage.demand <= upto.demand]
    return [stage._replace(from_ms=max(stage.from_ms, upto.from_ms)) for stage in found]


def stages(context: CaseContext, target: Target, unseen: Unseen | None) -> Iterator[UnseenStage]:
    """The detections about an unseen wearer and a target. A wearer without any position may be anywhere, which is emitted together
    with the notice of the silence."""
    state, case_state, case = context.state, context.case_state, context.case
    has_sign = shows_sign(state, case_state)
    if unseen is None:
        from_ms = case_state.awaited_from_ms[WEARER] + state.rules.silent_notify_after_ms
        yield UnseenStage(from_ms, Detection.IN_REACH_AFTER_A_SIGN if has_sign else Detection.LIKELY_IN_REACH)
        return
    possible_ms = reachability.possible_ms(state, case, unseen, target=target)
    is_noted = target.key in case_state.near or target.key in PUT_OFF.of(case_state)
    if possible_ms is None and not is_noted:
        return
    if possible_ms is not None:
        yield UnseenStage(possible_ms, Detection.IN_REACH_AFTER_A_SIGN if has_sign else Detection.IN_REACH)
    if was_near(state, case, unseen.last, target=target):
        yield UnseenStage(unseen.from_ms if possible_ms is None else possible_ms, Detection.UNSEEN_NEAR)
        announced = _is_announced(state, case, unseen.last)
        from_ms = reachability.respond_ms(state, case, unseen, target=target, is_announced=announced)
        yield UnseenStage(_may_respond_ms(state, case, from_ms), Detection.ARRIVED_UNSEEN)
    else:
        yield UnseenStage(reachability.likely_ms(state, case, unseen, target=target), Detection.LIKELY_IN_REACH)


def shows_sign(state: State, case_state: CaseState) -> bool:
    """Whether a sign of evasion is active: a tag was opened, jammed or shut down. A tag whose battery was low before it shut down
    shows no sign by that, nor does a tag whose removal was authorised then."""
    if not case_state.raised:  # nearly always
        return False
    for key, since_ms in case_state.raised.items():
        tag_id = key.device_id
        if tag_id not in case_state.case.tag_device_ids or removals.covers(
            state, case_state.case, tag_id, at_ms=since_ms
        ):
            continue
        if key.event in demands.EVASION_SIGNS:
            return True
        if key.event is EquipmentKind.SHUTDOWN and not _was_announced(
            state, tag_id, since_ms, by=(EquipmentKind.BATTERY_LOW,)
        ):
            return True
    return False


def _is_announced(state: State, case: Case, last: Fix) -> bool:
    """Whether any tag had announced that it would fall silent: its battery is low, or it has no network."""
    return any(_was_announced(state, tag_id, last.time_ms, by=demands.ANNOUNCEMENTS) for tag_id in case.tag_device_ids)


def _was_announced(state: State, tag_id: str, at_ms: int, *, by: Iterable[EquipmentKind]) -> bool:
    """Whether one of these announcements of a tag is active and not much older than a moment."""
    active = state.active_events.get(tag_id, {})
    return any(at_ms - active[event.value].at_ms <= ANNOUNCED_MS for event in by if event.value in active)


def was_near(state: State, case: Case, last: Fix, *, target: Target) -> bool:
    """Whether the last known positions of wearer and target were within a ring that demands NOTIFY or more."""
    apart = state.apart_mm(last, target)
    radius_mm = max((ring.radius_mm for ring in case.rings if ring.action >= Demand.NOTIFY), default=0)
    return apart is not None and apart[0] <= radius_mm


def _may_respond_ms(state: State, case: Case, from_ms: int) -> int:
    """The first moment from `from_ms` on at which no authorised encounter or removal is active: during one, nobody is sent."""
    from_ms = removals.after_ms(state, case, from_ms)
    while (until_ms := encounters.active_until_ms(state, case, from_ms)) is not None:
        from_ms = removals.after_ms(state, case, until_ms)
    return from_ms
