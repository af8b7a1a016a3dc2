"""Approaching and leaving: which rings of a case a wearer enters, and which the wearer has left for good."""

from __future__ import annotations

import math
from collections.abc import Iterator

from services.geofence.domain import accounts, demands
from services.geofence.domain.accounts import pairs
from services.geofence.domain.alerts import AlertKind, CausingReport
from services.geofence.domain.decisions import Decisions
from services.geofence.domain.detectors import encounters, possible_presence, withheld_clearing
from services.geofence.domain.entries import Demand, Ring, Target
from services.geofence.domain.kinematics import plausibility, presence, probability, rings
from services.geofence.domain.kinematics.geometry import ROUNDED_MM
from services.geofence.domain.kinematics.track import MAX_PREDICTION_MM, UNKNOWN_AFTER_MS, WINDOW_MS, Fix, Piece, Track
from services.geofence.domain.state import CaseState, State


def other_devices(target: Target) -> tuple[str | None, ...]:
    """Devices on the target's side; a place has the single entry None."""
    return target.device_ids if target.is_person else (None,)


def is_near(state: State, case_state: CaseState, device_id: str, *, fix: Fix) -> bool:
    """Whether a fix puts the wearer possibly within the ring that demands a response, with the other side at its last position."""
    case = case_state.case
    ring = next((ring for ring in case.rings if ring.action is Demand.RESPOND), None)
    if ring is None:
        return False
    for target in case.targets:
        if device_id in case.tag_device_ids:
            apart = state.apart_mm(fix, target)
        elif device_id in target.device_ids and (here := state.last_fix(case.tag_device_ids)):
            apart = math.dist(here.point, fix.point), here
        else:
            continue
        if apart and apart[0] <= ring.radius_mm + fix.accuracy_mm + (apart[1].accuracy_mm if apart[1] else 0):
            return True
    return False


def check(
    decisions: Decisions,
    case_state: CaseState,
    tag_id: str,
    *,
    target: Target,
    device_id: str | None,
    from_ms: int,
    until_ms: int | None,
    cause: CausingReport | None,
) -> None:
    """Enters the rings that the wearer was or is within between two moments (`until_ms` None: as far as anything is known).

    A ring that demands a response is entered on the believed positions of both sides. If a presence within it is only possible,
    that is emitted instead.
    """
    state, case = decisions.state, case_state.case
    wearer = state.tracks.get(tag_id)
    device = state.tracks.get(device_id) if device_id is not None else None
    if wearer is None or not wearer.fixes or (device_id is not None and (device is None or not device.fixes)):
        return
    # A confirmation of an unconfirmed fix also confirms the way to it, so a response looks back as far.
    lookback_ms = from_ms if cause is None else plausibility.lookback_ms((wearer, device), from_ms)
    newest = until_ms is None
    # Skip this bound after a position jump: the device may still be at its previous position, whichever direction it jumped.
    if _is_unreachable(wearer, device, target, radius_mm=case.rings[0].radius_mm, from_ms=lookback_ms) and not (
        newest and any(plausibility.has_jumped(side) for side in (wearer, device) if side)
    ):
        possible_presence.end_if_expired(decisions, case_state, target, cause=cause if newest else None)
        return
    if until_ms is None:
        until_ms = max(wearer.fixes[-1].time_ms, device.fixes[-1].time_ms if device else 0)
    until_ms = min(until_ms, case.valid_until_ms - 1)
    from_ms, lookback_ms = max(from_ms, case.valid_from_ms), max(lookback_ms, case.valid_from_ms)
    if from_ms > until_ms:
        return
    ways: list[list[Piece]] | None = None
    # Time alone makes nothing late: the decision is the same whenever the log reaches that moment, so ticks change nothing.
    is_late = not newest and cause is not None
    least_mm: float | None = None
    for ring in case.rings:
        ring_state = case_state.ring(target, ring)
        if cause is not None and ring_state.closed and from_ms < ring_state.bound_ms:
            accounts.note_report(state, case_state, ring_state, from_ms=from_ms, until_ms=until_ms)
        if ring_state.open:
            if is_late and accounts.is_inside(wearer, device, target, ring=ring, from_ms=from_ms, until_ms=until_ms):
                ring_state.late_ms = state.now_ms
            continue
        if is_late and ring_state.closed:
            _check_late(
                decisions,
                case_state,
                (wearer, device),
                target=target,
                ring=ring,
                from_back_ms=(from_ms, lookback_ms),
                until_ms=until_ms,
                cause=cause,
            )
            continue
        if ring.action is Demand.RESPOND:
            seen = presence.evaluate(
                state,
                (wearer, device),
                target,
                ring=ring,
                from_ms=max(lookback_ms, ring_state.bound_ms),
                until_ms=until_ms,
                newest=newest,
            )
            if seen.entered:
                _enter(decisions, case_state, target, ring=ring, entry=seen.entered, cause=cause, late=not newest)
            elif newest and cause is not None:
                possible_presence.update(decisions, case_state, target, ring=ring, possible=seen.possible, cause=cause)
            continue
        if least_mm is None:
            least_mm = _min_distance_mm(wearer, device, target, from_ms=from_ms, until_ms=until_ms)
        if least_mm > ring.radius_mm:
            continue
        if ways is None:
            ways = rings.assumed(wearer, device, from_ms, to_ms=until_ms)
            if not rings.may_reach(ways, target.shape, ring.radius_mm):
                ways = []
        for pieces in ways:
            first = next(rings.moments_within(pieces, target.shape, ring.radius_mm, from_ms=ring_state.bound_ms), None)
            if first:
                entry = *first, _probability(wearer, device, ring, moment=first)
                _enter(decisions, case_state, target, ring=ring, entry=entry, cause=cause, late=not newest)
                break


def _check_late(
    decisions: Decisions,
    case_state: CaseState,
    sides: tuple[Track, Track | None],
    *,
    target: Target,
    ring: Ring,
    from_back_ms: tuple[int, int],
    until_ms: int,
    cause: CausingReport | None,
) -> None:
    """Enters a ring on a late report that proves a presence of which nobody was notified.

    The ring may have been cleared since; it must not be open.
    """
    (from_ms, lookback_ms), ring_state = from_back_ms, case_state.ring(target, ring)
    respond = ring.action is Demand.RESPOND
    for low_ms, high_ms in accounts.unnotified(ring_state, lookback_ms if respond else from_ms, until_ms):
        if respond:
            entry = presence.evaluate(
                decisions.state, sides, target, ring=ring, from_ms=low_ms, until_ms=high_ms, newest=False
            ).entered
        else:
            ways = rings.assumed(*sides, low_ms, to_ms=high_ms)
            moments = (
                next(rings.moments_within(way, target.shape, ring.radius_mm, from_ms=low_ms), None) for way in ways
            )
            first = next((moment for moment in moments if moment and moment[0] <= high_ms), None)
            entry = (*first, _probability(*sides, ring, moment=first)) if first else None
        if entry:
            if entry[0] < ring_state.bound_ms:
                accounts.release(ring_state, entry[0])
            return _enter(decisions, case_state, target, ring=ring, entry=entry, cause=cause, late=True)


def _probability(wearer: Track, device: Track | None, ring: Ring, *, moment: tuple[int, float]) -> float:
    """Probability of being inside at a moment, from the distance then."""
    at_ms, distance_mm = moment
    tracks = (wearer,) if device is None else (wearer, device)
    return probability.inside(distance_mm, ring.radius_mm, tuple(track.accuracy_at(at_ms) for track in tracks))


def _enter(
    decisions: Decisions,
    case_state: CaseState,
    target: Target,
    *,
    ring: Ring,
    entry: tuple[int, float, float],
    cause: CausingReport | None,
    late: bool,
) -> None:
    """Enters a ring.

    `entry` is when, at what distance (mm) and with what probability of being inside. `late` means that newer reports came before.
    """
    at_ms, distance_mm, p = entry
    case_state.ring(target, ring).enter(at_ms, distance_mm, at_ms if cause is None else decisions.state.now_ms)
    if late and cause is not None:
        case_state.ring(target, ring).late_ms = decisions.state.now_ms
    demand = demands.of_ring(ring.action, entered=True)
    allowed = encounters.active_at(decisions.state, case_state.case, at_ms) if demand > demands.MUTED_DEMAND else None
    if allowed:
        case_state.ring(target, ring).muted, demand = True, demands.MUTED_DEMAND
    if ring.action is Demand.RESPOND:
        case_state.possible.pop(target.key, None)
    decisions.alert(
        case_state,
        AlertKind.RING_ENTERED,
        demand,
        at_ms=at_ms,
        target=target,
        ring=ring,
        cause=cause,
        distance_mm=distance_mm,
        p=p,
        encounter=allowed,
    )


def _is_unreachable(wearer: Track, device: Track | None, target: Target, *, radius_mm: int, from_ms: int) -> bool:
    """A cheap bound that rules out nearly all reports: wherever both sides were since `from_ms`, they were farther apart."""
    here = wearer.fixes[-1].point
    if device is None:
        return target.shape.min_distance_mm(here) - wearer.path_since_mm(from_ms) > radius_mm
    apart_mm = math.dist(here, device.fixes[-1].point)
    if apart_mm <= radius_mm + MAX_PREDICTION_MM:
        return False
    return apart_mm - wearer.path_since_mm(from_ms) - device.path_since_mm(from_ms) - MAX_PREDICTION_MM > radius_mm


def _min_distance_mm(wearer: Track, device: Track | None, target: Target, *, from_ms: int, until_ms: int) -> float:
    """A lower bound of the distance on all assumed movements of both sides since a moment, mm."""
    here = wearer.fixes[-1].point
    if device is None:
        return target.shape.min_distance_mm(here) - wearer.path_since_mm(from_ms) - ROUNDED_MM
    least_mm = math.dist(here, device.fixes[-1].point) - ROUNDED_MM
    for track in (wearer, device):
        least_mm -= track.path_since_mm(from_ms)
        if ahead := track.predicted(until_ms):
            least_mm -= math.dist(ahead.start, ahead.end)
    return least_mm


def clear_left_rings(decisions: Decisions, case_state: CaseState, cause: CausingReport | None) -> None:
    """Clears the rings that the wearer has left for good, by the positions of both sides that are known for sure.

    Clears none while a late backlog shows a presence inside, because the end of that presence isn't known yet.
    """
    state = decisions.state
    for target in case_state.case.targets:
        for ring in reversed(case_state.case.rings):
            ring_state = case_state.ring(target, ring)
            if not ring_state.open:
                continue
            if not _has_left(state, case_state, target, ring=ring):
                withheld_clearing.emit_reentry(decisions, case_state, target, ring=ring, cause=cause)
                break  # a wearer possibly within a narrower ring is within the wider ones
            if ring_state.late_ms and state.now_ms < ring_state.late_ms + state.rules.clear_after_ms:
                break
            departed_ms = withheld_clearing.implausible_departure_ms(state, case_state, target, ring=ring)
            if departed_ms is not None:
                apart_mm = _newest_mm(state, case_state, target)
                withheld_clearing.emit_withheld(
                    decisions, case_state, target, ring=ring, since_ms=departed_ms, cause=cause, distance_mm=apart_mm
                )
                break
            if withheld_clearing.is_too_soon(state, case_state, target, ring=ring):
                break
            withheld_clearing.end_withholding(decisions, case_state, target, ring=ring, cause=cause)
            _clear_ring(decisions, case_state, target, ring=ring, upto_ms=decisions.state.now_ms, cause=cause)
    decisions.end_if_quiet(case_state)


def _newest_mm(state: State, case_state: CaseState, target: Target) -> float:
    """Least distance that the newest positions claim, mm."""
    positions = [rings.newest(wearer, device) for wearer, device in pairs(state, case_state, target)]
    return min(target.shape.least(here, here) for here in positions)


def _has_left(state: State, case_state: CaseState, target: Target, *, ring: Ring) -> bool:
    rules, now_ms = state.rules, state.now_ms
    since_ms = case_state.ring(target, ring).since_ms or 0
    margin_mm = rules.clear_margin_of(ring.radius_mm)
    fresh = False
    for wearer, device in pairs(state, case_state, target):
        until_ms = rings.known_until(wearer, device)
        if until_ms is None:
            continue
        # The newest positions come first: they nearly always say no, and cheaply. Old positions may say no, but never yes. Vague
        # ones must be farther away by their accuracy.
        beyond_mm = margin_mm + wearer.fixes[-1].accuracy_mm + (device.fixes[-1].accuracy_mm if device else 0)
        here = rings.newest(wearer, device)
        if target.shape.is_surely_within(here, ring.radius_mm + beyond_mm):
            return False
        if target.shape.within(here, here, ring.radius_mm + beyond_mm):
            return False
        for pieces in rings.assumed(wearer, device, until_ms, to_ms=now_ms):
            for piece in pieces:
                if target.shape.within(piece.start, piece.end, ring.radius_mm + beyond_mm):
                    return False
        if not rings.is_fresh(until_ms, now_ms):
            continue
        fresh = True
        from_ms = until_ms - rules.clear_after_ms
        if from_ms < since_ms:
            return False
        pieces_known = rings.joined(wearer, device, from_ms, to_ms=until_ms)
        if not rings.clear_for(pieces_known, target.shape, ring, margin_mm=beyond_mm, from_ms=from_ms, to_ms=until_ms):
            return False
        if not all(plausibility.is_newest_believed(side, rules.reach_mps) for side in (wearer, device) if side):
            return False
        if ring.action is Demand.RESPOND and not _agree(
            wearer, device, target, ring=ring, beyond_mm=beyond_mm, since_ms=since_ms, until_ms=until_ms
        ):
            return False
    return fresh


def _agree(
    wearer: Track, device: Track | None, target: Target, *, ring: Ring, beyond_mm: int, since_ms: int, until_ms: int
) -> bool:
    """Whether enough positions of each side say that the ring was left to rule out a lasting error."""
    from_ms = rings.agree_from_ms((wearer, device), since_ms, until_ms)
    if from_ms is None:
        return False
    moves = rings.assumed(wearer, device, from_ms, to_ms=until_ms)[0]
    return not any(target.shape.within(move.start, move.end, ring.radius_mm + beyond_mm) for move in moves)


def end_muting(
    decisions: Decisions, case_state: CaseState, at_ms: int, *, cause: CausingReport | None
) -> Iterator[int]:
    """Emits the full demand of rings entered under an encounter, once no encounter is active. Yields the times of the next check.

    A wearer beyond the ring and its margin by then has left it, and must enter it once more.
    """
    state, case = decisions.state, case_state.case
    muted = [(t, ring) for t in case.targets for ring in case.rings if case_state.ring(t, ring).muted]
    if not muted:
        return
    until_ms = encounters.active_until_ms(state, case, at_ms)
    if until_ms is not None:
        yield until_ms
        return
    last = state.last_fix(case.tag_device_ids)
    for target, ring in muted:
        apart_mm, there = (state.apart_mm(last, target) if last else None) or (0.0, None)
        vague_mm = (last.accuracy_mm if last else 0) + (there.accuracy_mm if there else 0)
        is_beyond = apart_mm > ring.radius_mm + state.rules.clear_margin_of(ring.radius_mm) + vague_mm
        departed_ms = (
            withheld_clearing.implausible_departure_ms(state, case_state, target, ring=ring) if is_beyond else None
        )
        if is_beyond and departed_ms is None:
            _clear_ring(decisions, case_state, target, ring=ring, upto_ms=at_ms, cause=cause)
            continue
        case_state.ring(target, ring).muted = False
        demand = demands.of_ring(ring.action, entered=True)
        decisions.alert(
            case_state,
            AlertKind.RING_ENTERED,
            demand,
            at_ms=at_ms,
            target=target,
            ring=ring,
            cause=cause,
            distance_mm=None if is_beyond else apart_mm,
        )
        if departed_ms is not None:
            withheld_clearing.emit_withheld(
                decisions, case_state, target, ring=ring, since_ms=departed_ms, cause=cause, distance_mm=apart_mm
            )


def close(
    decisions: Decisions,
    case_state: CaseState,
    targets: tuple[Target, ...],
    *,
    at_ms: int,
    only: list[Ring] | None = None,
) -> None:
    """Clears open rings that the order no longer asks for."""
    for target in targets:
        for ring in reversed(case_state.case.rings if only is None else only):
            if case_state.ring(target, ring).open:
                _clear_ring(decisions, case_state, target, ring=ring, upto_ms=at_ms, cause=None)


def _clear_ring(
    decisions: Decisions,
    case_state: CaseState,
    target: Target,
    *,
    ring: Ring,
    upto_ms: int,
    cause: CausingReport | None,
) -> None:
    account = accounts.account(decisions.state, case_state, target, ring=ring, upto_ms=upto_ms)
    at_ms = account.inside[-1][1] if account.inside else min(upto_ms, decisions.state.now_ms)
    accounts.close(case_state.ring(target, ring), account)
    withheld_clearing.forget(case_state, target, ring)
    account.alert_id = decisions.alert(
        case_state,
        AlertKind.RING_CLEARED,
        demands.of_ring(ring.action, entered=False),
        at_ms=at_ms,
        target=target,
        ring=ring,
        cause=cause,
        distance_mm=float(ring.radius_mm) if account.inside else None,
        inside=tuple(account.inside),
        min_mm=account.min_mm,
        due_ms=upto_ms,
    )


def forget_old(state: State, device_id: str, case_ids: list[str]) -> None:
    """Drops fixes that no late report can need. The accounts and ways of these cases first take over their content."""
    track = state.tracks[device_id]
    if track.fixes[0].time_ms >= state.now_ms - WINDOW_MS:
        return
    for case_state in map(state.cases.__getitem__, case_ids):
        accounts.finalize(state, case_state)
    horizon_ms = state.now_ms - WINDOW_MS - UNKNOWN_AFTER_MS
    _keep_ways(state, device_id, case_ids, horizon_ms=horizon_ms)
    before = len(track.fixes)
    track.forget_before(horizon_ms, plausibility.JUDGED_FIXES)
    track.is_truncated = track.is_truncated or len(track.fixes) < before


def _keep_ways(state: State, device_id: str, case_ids: list[str], *, horizon_ms: int) -> None:
    """Keeps the ways of a device through positions about to be dropped, while an episode is open."""
    open_cases = [case_state for case_state in map(state.cases.__getitem__, case_ids) if case_state.episode_id]
    if not open_cases:
        return
    track = state.tracks[device_id]
    remaining = Track(track.fixes[:])
    remaining.forget_before(horizon_ms, plausibility.JUDGED_FIXES)
    if count := len(track.fixes) - len(remaining.fixes):
        for case_state in open_cases:
            withheld_clearing.keep(state, case_state, device_id, dropped=track.fixes[:count])
