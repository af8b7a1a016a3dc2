"""Clearing: clears the rings that a wearer has left for good, and the rings that a case no longer asks for.

A ring that was entered under an authorised encounter is muted. Once no encounter is active, its full demand is emitted, or the ring is
cleared.

A record that ends the wearer's last tag, or the person's last device, proves no departure. The ring stays open for as long as that side
could be silent before a desk is notified; an exchange of the device is long over by then.

No ring is cleared while nobody knows where the person is. So the ring's demand is emitted once more when the wearer comes back to the
last known position of a silent person after having surely gone from there: a desk may have closed its assignment meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from services.geofence.domain.alerts import CausingReport, FirstContact
from services.geofence.domain.decisions import AlertDraft, Amendment, CaseContext, Detector
from services.geofence.domain.demands import AlertKind, AlertType
from services.geofence.domain.detectors import (
    accounts,
    distances,
    encounters,
    first_contact,
    wearing,
    withheld_clearing,
)
from services.geofence.domain.entries import Demand, Ring, Target
from services.geofence.domain.geometry import Disc
from services.geofence.domain.kinematics import accuracy, plausibility, rings
from services.geofence.domain.kinematics.rings import Sides
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS
from services.geofence.domain.pairs import all_pairs, claimed_mm, fresh_pairs
from services.geofence.domain.state import CasePart, CaseState, RingKey, State

RING_CLEARED = AlertType(AlertKind.RING_CLEARED, Demand.RECORD)
UNMEASURED: CasePart[dict[str, int]] = CasePart("unmeasured", new=dict, encode=dict, decode=dict)
"""Targets with an open ring to which no device of the case measures the distance, by key, and since when, mesh time."""
AWAY: CasePart[set[str]] = CasePart("away", new=set, encode=sorted, decode=set)
"""Keys of the silent persons whose last known position the wearer has left."""


def clear_left_rings(context: CaseContext, _: CausingReport | None) -> None:
    """Clears the rings that the wearer has left for good, by the positions of both sides that are known for sure."""
    case_state = context.case_state
    if wearing.is_off(case_state):
        return  # the tag isn't on its wearer: its positions prove nothing
    narrowest_first = case_state.case.rings[::-1]
    for target in case_state.case.targets:
        for ring in narrowest_first:
            # A wearer who may be within a narrower ring may be within the wider rings, too.
            if case_state.ring(target, ring).since_ms is not None and not _clear_if_left(context, target, ring):
                break
    context.decisions.end_if_quiet(case_state)


def _clear_if_left(context: CaseContext, target: Target, ring: Ring) -> bool:
    """Clears a ring if the wearer has left it for good, or emits why it isn't cleared. Returns whether it is cleared."""
    state, case_state = context.state, context.case_state
    if not _has_left(state, case_state, target, ring=ring):
        withheld_clearing.emit_reentry(context, target, ring)
        return False
    late_ms = case_state.ring(target, ring).late_ms
    if late_ms is not None and state.now_ms < late_ms + state.rules.clear_after_ms:
        return False  # a late backlog shows a presence inside, and may show more
    departed_ms = withheld_clearing.implausible_departure_ms(state, case_state, target, ring=ring)
    if departed_ms is not None:
        distance_mm = claimed_mm(state, context.case, target)
        withheld_clearing.emit_withheld(context, target, ring, since_ms=departed_ms, distance_mm=distance_mm)
        return False
    if withheld_clearing.is_too_soon(state, case_state, target, ring=ring):
        return False
    withheld_clearing.end_withholding(context, target, ring)
    withheld_clearing.keep_departure(state, case_state, target, ring=ring)
    contact = first_contact.of_departure(context, target, ring)
    _clear_ring(context, target, ring, upto_ms=state.now_ms, contact=contact)
    return True


def _has_left(state: State, case_state: CaseState, target: Target, *, ring: Ring) -> bool:
    """Whether the wearer left a ring: at least one pair of devices has fresh positions, each such pair proves it, and no pair
    contradicts it."""
    fresh = False
    for _, sides in all_pairs(state, case_state.case, target):
        until_ms = rings.known_until(sides) or 0
        # Vague positions must be farther away by their accuracy.
        margin_mm = state.rules.clear_beyond_mm(ring.radius_mm)
        stated_mm = sum([side.recent[-1].accuracy_mm for side in sides if side])
        if target.shape.is_surely_within(rings.newest(sides), margin_mm + stated_mm):
            return False  # nearly always, before any scatter is measured: it can only make the positions vaguer
        radius_mm = margin_mm + sum(accuracy.credible_mm(side) for side in sides if side)
        # Old positions can contradict that the ring was left, but never prove it.
        is_fresh = sides.are_fresh(state.now_ms)
        from_ms = until_ms if is_fresh else _contradicts_from_ms(state, until_ms)
        if _may_be_within(state, sides, target, radius_mm=radius_mm, from_ms=from_ms):
            return False
        if is_fresh:
            fresh = True
            since_ms = max(case_state.ring(target, ring).since_ms or 0, wearing.refitted_ms(case_state))
            if not _is_proven(state, sides, target, ring=ring, radius_mm=radius_mm, since_ms=since_ms):
                return False
    return fresh


def _contradicts_from_ms(state: State, until_ms: int) -> int:
    """Moment from which on positions of a pair that isn't fresh contradict that the ring was left.

    The silent device stays where it was. If a visit there long ago counted, no ring was ever cleared while another device reports.
    """
    return max(until_ms, state.now_ms - max(state.rules.clear_after_ms, UNKNOWN_AFTER_MS))


def _may_be_within(state: State, sides: Sides, target: Target, *, radius_mm: int, from_ms: int) -> bool:
    """Whether the wearer may be within a radius since the newest positions. A cheap check of these positions alone nearly always
    says yes."""
    here = rings.newest(sides)
    if target.shape.is_surely_within(here, radius_mm) or target.shape.within(here, here, radius_mm):
        return True
    movements = rings.assumed(sides, from_ms, state.now_ms)
    return any(target.shape.within(piece.start, piece.end, radius_mm) for pieces in movements for piece in pieces)


def _is_proven(state: State, sides: Sides, target: Target, *, ring: Ring, radius_mm: int, since_ms: int) -> bool:
    """Whether fresh positions prove that the wearer was beyond a radius for long enough since the ring was entered."""
    until_ms = rings.known_until(sides) or 0
    from_ms = until_ms - state.rules.clear_after_ms
    if from_ms < since_ms:
        return False
    # Other rings send nobody, so a line is enough to clear them, as it is to enter them.
    mps = state.rules.reach_mps if ring.responds else None
    if not rings.is_known_beyond(sides, target.shape, radius_mm, from_ms=from_ms, to_ms=until_ms, mps=mps):
        return False
    if not plausibility.are_newest_believed(sides, state.rules.reach_mps):
        return False
    return not ring.responds or _agree(sides, target, radius_mm, since_ms=since_ms, until_ms=until_ms)


def _agree(sides: Sides, target: Target, radius_mm: int, *, since_ms: int, until_ms: int) -> bool:
    """Whether all positions that must agree are beyond the radius, so that a receiver's lasting error is ruled out."""
    from_ms = rings.agree_from_ms(sides, since_ms, until_ms)
    if from_ms is None:
        return False
    moves = rings.assumed_to_stay(sides, from_ms, until_ms)
    return not any(target.shape.within(move.start, move.end, radius_mm) for move in moves)


def _clear_ring(
    context: CaseContext,
    target: Target,
    ring: Ring,
    *,
    upto_ms: int,
    contact: FirstContact | None = None,
    is_seen: bool = True,
) -> None:
    """Clears a ring and publishes the account of its episode up to a moment. `contact`: that the wearer turned back after one.
    `is_seen`: positions show that the wearer left; otherwise the alert states no distance."""
    state, case_state = context.state, context.case_state
    account = accounts.account(state, case_state, target, ring=ring, upto_ms=upto_ms)
    accounts.close(case_state.ring(target, ring), account)
    withheld_clearing.forget(case_state, target, ring)
    distances.note_left(context, target, ring, inside=account.inside)
    account.alert_id = context.alert(
        AlertDraft(
            RING_CLEARED,
            account.inside[-1][1] if account.inside else min(upto_ms, state.now_ms),
            target=target,
            ring=ring,
            cause=context.cause,
            distance_mm=float(ring.radius_mm) if account.inside and is_seen else None,
            inside=tuple(account.inside),
            min_mm=account.min_mm,
            min_is_assumed=account.is_assumed,
            due_ms=upto_ms,
            contact=contact,
            unconfirmed=not is_seen,
        )
    )


def amend(context: CaseContext, amendment: Amendment) -> None:
    """Clears the rings that a new snapshot no longer asks for, and keeps the accounts of the others."""
    state = context.state
    case_state = context.case_state
    before = context.case
    case = amendment.case
    # Publish pending amendments before any ring is cleared or dropped: they are measured with the targets and devices of the old
    # snapshot.
    accounts.amend(context, None)
    if before.device_ids != case.device_ids:
        accounts.preserve(state, case_state)
    asked = {(t.key, r.radius_mm, r.action) for t in case.targets for r in case.rings}
    shapes = {t.key: t.shape for t in case.targets}
    for target in before.targets:
        dropped = []
        for ring in before.rings:
            if (target.key, ring.radius_mm, ring.action) not in asked:
                dropped.append(ring)
            elif shapes[target.key] != target.shape:
                if amendment.in_force and case_state.ring(target, ring).open:
                    accounts.make_final(state, case_state, target, ring=ring)
                else:
                    dropped.append(ring)
        # An order that isn't in force yet watches no ring.
        _close(context, target, dropped if amendment.in_force else before.rings, at_ms=state.now_ms)
        for ring in dropped:
            case_state.rings.pop(RingKey(target.key, ring.radius_mm), None)


def end(context: CaseContext) -> None:
    """Clears all rings of a case that ends, then publishes and drops its accounts."""
    for target in context.case.targets:
        _close(context, target, context.case.rings, at_ms=context.case.end_ms)
    accounts.publish_and_drop(context)


def _close(context: CaseContext, target: Target, rings_: Iterable[Ring], *, at_ms: int) -> None:
    """Clears open rings that the order no longer asks for, or that no device measures any more."""
    for ring in reversed(tuple(rings_)):
        if context.case_state.ring(target, ring).open:
            _clear_ring(context, target, ring, upto_ms=at_ms, is_seen=False)


# ── rings that nobody measures, and muted rings ──────────────────────────────────────────────────────────────────────


def end_wait(context: CaseContext, at_ms: int) -> Iterable[int]:
    """Clears the open rings to which no device has measured the distance for too long. Returns the moments of the next checks."""
    case_state = context.case_state
    if not case_state.episode_id:
        return ()  # nearly always
    rules = context.state.rules
    case = case_state.case
    memory = UNMEASURED.of(case_state)
    waiting = [
        target
        for target in case.targets
        if not case.can_locate(target) and any(case_state.ring(target, ring).open for ring in case.rings)
    ]
    since_ms = {target.key: memory.get(target.key, at_ms) for target in waiting}
    memory.clear()
    wait_ms = rules.protected_lost_after_ms if case.tag_device_ids else rules.silent_notify_after_ms
    for target in waiting:
        if at_ms < since_ms[target.key] + wait_ms:
            memory[target.key] = since_ms[target.key]
        else:
            _close(context, target, case.rings, at_ms=at_ms)
    return [from_ms + wait_ms for from_ms in memory.values()]


def end_muting(context: CaseContext, at_ms: int) -> Iterable[int]:
    """Emits the full demand of muted rings once no encounter is active. Returns the moment of the next check."""
    case_state = context.case_state
    if not case_state.episode_id or not has_muted(case_state):  # nearly always
        return ()
    state, case = context.state, case_state.case
    muted = [(t, ring) for t in case.targets for ring in case.rings if case_state.ring(t, ring).muted]
    until_ms = encounters.active_until_ms(state, case, at_ms)
    if until_ms is not None:
        return (until_ms,)
    for target, ring in muted:
        _end_muting(context, target, ring, at_ms=at_ms)
    return ()


def _end_muting(context: CaseContext, target: Target, ring: Ring, *, at_ms: int) -> None:
    """Emits the full demand of one ring.

    If the wearer is already beyond the ring and its margin, the ring is cleared instead, unless no vehicle can have made that
    departure.
    """
    state, case_state = context.state, context.case_state
    apart_mm, is_beyond = _apart(state, case_state, target, ring=ring)
    departed_ms = None
    if is_beyond:
        departed_ms = withheld_clearing.implausible_departure_ms(state, case_state, target, ring=ring)
        if departed_ms is None:
            return _clear_ring(context, target, ring, upto_ms=at_ms)
    case_state.ring(target, ring).muted = False
    context.alert(
        AlertDraft(
            AlertType(AlertKind.RING_ENTERED, ring.action),
            at_ms,
            target=target,
            ring=ring,
            cause=context.cause,
            distance_mm=None if is_beyond else apart_mm,
            contact=first_contact.of_entry(context, target, ring, demand=ring.action, is_past=is_beyond),
        )
    )
    if departed_ms is not None:
        withheld_clearing.emit_withheld(context, target, ring, since_ms=departed_ms, distance_mm=apart_mm)


def _apart(state: State, case_state: CaseState, target: Target, *, ring: Ring) -> tuple[float | None, bool]:
    """Least distance between wearer and target, mm, and whether the wearer is surely beyond a ring and its margin.

    Every assumed movement of each pair of devices has to be beyond: two people on one bus who report in turn are never far apart. If no
    pair has fresh positions, by the interval that each device keeps, or a newest position isn't believed, the distance is None and
    nothing proves that the ring was left.
    """
    distances_mm, beyond = [], []
    if wearing.is_off(case_state):
        return None, False
    for _, sides in fresh_pairs(state, case_state.case, target):
        if not plausibility.are_newest_believed(sides, state.rules.reach_mps):
            return None, False
        apart_mm = min(target.shape.distance_mm(apart) for apart in rings.assumed_now(sides))
        vague_mm = sum(accuracy.credible_mm(side) for side in sides if side)
        distances_mm.append(apart_mm)
        beyond.append(apart_mm > state.rules.clear_beyond_mm(ring.radius_mm) + vague_mm)
    return min(distances_mm, default=None), bool(beyond) and all(beyond)


def has_muted(case_state: CaseState) -> bool:
    """Whether a ring was entered under an authorised encounter. A muted ring is an entered one, so the episode is open."""
    return bool(case_state.episode_id) and any(ring.muted for ring in case_state.rings.values())


# ── returns to a silent person ───────────────────────────────────────────────────────────────────────────────────────


def check_returns(context: CaseContext, _: CausingReport | None) -> None:
    """Emits the demands of open rings round silent persons once more to whom the wearer comes back."""
    case_state = context.case_state
    if wearing.is_off(case_state):
        return
    for target in context.case.targets:
        if not target.is_person:
            continue
        for ring in context.case.rings:
            if ring.responds and case_state.ring(target, ring).open:
                _check_return(context, target, ring)


def _check_return(context: CaseContext, target: Target, ring: Ring) -> None:
    state, away = context.state, AWAY.of(context.case_state)
    known = all_pairs(state, context.case, target)
    if any(sides.device and sides.device.is_fresh(state.now_ms) for _, sides in known):
        away.discard(target.key)
        return  # the positions of both sides decide
    held = [*_last_known(context, target)]
    if held and all(_has_gone(context, sides, place, ring=ring) for sides, place in held):
        away.add(target.key)
    elif target.key in away:
        for sides, place in held:
            if rings.newest_apart_mm(sides, place.shape) <= ring.radius_mm:
                _emit_return(context, target, ring, sides=sides, place=place)
                return


def _last_known(context: CaseContext, target: Target) -> Iterator[tuple[Sides, Target]]:
    """The tags whose position is known, each with the last known positions of the person as places."""
    state = context.state
    for _, sides in all_pairs(state, context.case, target):
        if sides.device and sides.wearer.is_fresh(state.now_ms):
            yield Sides(sides.wearer, None), replace(target, shape=Disc(sides.device.recent[-1].point, 0))


def _has_gone(context: CaseContext, sides: Sides, place: Target, *, ring: Ring) -> bool:
    """Whether the wearer has surely left a ring round a place since it was entered."""
    state = context.state
    radius_mm = state.rules.clear_beyond_mm(ring.radius_mm) + accuracy.credible_mm(sides.wearer)
    since_ms = context.case_state.ring(place, ring).since_ms or 0
    return _is_proven(state, sides, place, ring=ring, radius_mm=radius_mm, since_ms=since_ms)


def _emit_return(context: CaseContext, target: Target, ring: Ring, *, sides: Sides, place: Target) -> None:
    state, last = context.state, sides.wearer.recent[-1]
    if not plausibility.is_newest_believed(sides.wearer, state.rules.reach_mps):
        return
    if encounters.active_at(state, context.case, last.time_ms) is not None:
        return
    AWAY.of(context.case_state).remove(target.key)
    distance_mm = rings.newest_apart_mm(sides, place.shape)
    context.alert(
        AlertDraft(
            AlertType(AlertKind.RING_ENTERED, ring.action),
            last.time_ms,
            target=target,
            ring=ring,
            cause=context.cause,
            distance_mm=distance_mm,
            p=accuracy.p_inside(distance_mm, ring.radius_mm, (last.accuracy_mm,)),
            contact=first_contact.of_entry(context, target, ring, demand=ring.action, is_past=False),
        )
    )


DETECTOR = Detector(on_batch=clear_left_rings, on_amend=amend, on_end=end)
END_OF_MUTING = Detector(on_time=end_muting, awaits_report=has_muted)
"""A detector of its own: its place among the checks by time is after those of silences."""
END_OF_WAIT = Detector(on_time=end_wait, parts=(UNMEASURED,))
"""A detector of its own, after the silences: a person whose last device is gone counts as lost at the moment at which her rings are
cleared, and the all-clear is the incident's last alert."""
RETURNS = Detector(on_batch=check_returns, parts=(AWAY,))
