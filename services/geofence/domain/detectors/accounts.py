"""Accounts: when a wearer was known for sure to be inside a ring, and how near, in whatever order the reports arrived.

Each moment of a ring belongs to exactly one account. If a cleared episode covers the moment, that is the episode's account; else that
of the open or the next episode. While late reports can arrive, an account is measured again from the tracks. So a late report adds the
time that it proves and removes the time that it disproves. A changed account of a cleared episode is published as an alert of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from services.geofence.domain.decisions import AlertDraft, CaseContext, Detector
from services.geofence.domain.demands import AlertKind, AlertType
from services.geofence.domain.entries import Demand, Ring, Target
from services.geofence.domain.kinematics import rings
from services.geofence.domain.kinematics.rings import Account, RingState, Sides, Stretch, meets, overlaps, without
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS, WINDOW_MS
from services.geofence.domain.pairs import all_pairs
from services.geofence.domain.state import CaseState, State

AMEND_AFTER_MS = 60_000
"""Delay before an amended account is published, so that it includes more late reports: a backlog of an hour takes half a minute to
arrive."""
ACCOUNT_AMENDED = AlertType(AlertKind.ACCOUNT_AMENDED, Demand.RECORD)
SAME_VISIT_MS = 180_000
"""A newly proved presence this close in time to one that was notified belongs to the same visit."""


def account(state: State, case_state: CaseState, target: Target, *, ring: Ring, upto_ms: int) -> Account:
    """The account of a ring's open episode, up to a moment."""
    ring_state = case_state.ring(target, ring)
    spans = _unclaimed(case_state, ring_state, upto_ms)
    inside, min_mm, until_ms = _measure(
        state, case_state, target, ring=ring, spans=spans, inside=list(ring_state.inside), min_mm=ring_state.min_mm
    )
    incident = state.incidents.get(case_state.case.wearer_id)
    entered_mm = _assumed_mm(
        state, case_state, target, entered_mm=ring_state.entered_mm, at_ms=ring_state.since_ms or 0
    )
    least = rings.least(min_mm, entered_mm, ring.radius_mm)
    return Account(
        episode_id=case_state.episode_id,
        incident_id=incident.incident_id if incident else "",
        opened_ms=ring_state.opened_ms,
        until_ms=until_ms,
        spans=list(overlaps(spans, 0, until_ms)),
        inside=inside,
        min_mm=least.mm,
        is_assumed=least.is_assumed,
        final_inside=ring_state.inside,
        final_min_mm=ring_state.min_mm,
        entered_mm=entered_mm,
        entered_ms=ring_state.since_ms or 0,
    )


def _assumed_mm(
    state: State, case_state: CaseState, target: Target, *, entered_mm: float | None, at_ms: int
) -> float | None:
    """The distance that was assumed at an entry, mm; None once the movement at that moment is known of every pair of devices."""
    if entered_mm is None:
        return None
    known = [rings.relative_at(sides, at_ms) is not None for _, sides in all_pairs(state, case_state.case, target)]
    return None if known and all(known) else entered_mm


def close(ring_state: RingState, account_: Account) -> None:
    """Clears the ring and keeps the account of the cleared episode."""
    ring_state.leave()
    ring_state.bound_ms = max(ring_state.bound_ms, account_.until_ms)
    if account_.spans:
        ring_state.closed.append(account_)


def unnotified(ring_state: RingState, from_ms: int, until_ms: int) -> list[Stretch]:
    """The parts of a stretch without a notified presence inside, including parts that a later clearing has accounted for."""
    from_ms = max(from_ms, ring_state.floor_ms)
    return without([(from_ms, until_ms)] if from_ms <= until_ms else [], _notified(ring_state))


def release(ring_state: RingState, at_ms: int) -> None:
    """Frees the time around a presence that nobody was notified of: that time now belongs to the new episode, not to a cleared one."""
    seen = list(_notified(ring_state))
    from_ms = max((end_ms for _, end_ms in seen if end_ms <= at_ms), default=ring_state.floor_ms)
    to_ms = min((start_ms for start_ms, _ in seen if start_ms >= at_ms), default=ring_state.bound_ms)
    for cleared in ring_state.closed:
        cleared.spans = without(cleared.spans, [(from_ms, to_ms)])


def note_report(state: State, case_state: CaseState, ring_state: RingState, *, from_ms: int, until_ms: int) -> None:
    """Schedules an amendment of each account that covers some of the time that a report changes."""
    for cleared in ring_state.closed:
        if cleared.due_ms is None and meets(cleared.spans, from_ms, until_ms):
            cleared.due_ms = state.now_ms + AMEND_AFTER_MS
            pending_ms = cleared.due_ms if case_state.amend_ms is None else case_state.amend_ms
            case_state.amend_ms = min(pending_ms, cleared.due_ms)


def is_inside(sides: Sides, target: Target, ring: Ring, *, from_ms: int, until_ms: int) -> bool:
    """Whether the two sides are known to have been within the ring during a stretch."""
    return any(
        target.shape.within(piece.start, piece.end, ring.radius_mm) for piece in rings.joined(sides, from_ms, until_ms)
    )


def amend(context: CaseContext, at_ms: int | None) -> None:
    """Publishes the amended accounts that are due by a moment; None means all that are pending."""
    case_state, case = context.case_state, context.case
    if case_state.amend_ms is None or (at_ms is not None and at_ms < case_state.amend_ms):
        return
    for target in case.targets:
        for ring in case.rings:
            for cleared in case_state.ring(target, ring).closed:
                if cleared.due_ms is not None and (at_ms is None or cleared.due_ms <= at_ms):
                    cleared.due_ms = None
                    _amend(context, target, ring, cleared=cleared)
    closed = [cleared for ring_state in case_state.rings.values() for cleared in ring_state.closed]
    case_state.amend_ms = min((cleared.due_ms for cleared in closed if cleared.due_ms is not None), default=None)


def amend_due(context: CaseContext, at_ms: int) -> Iterable[int]:
    """Publishes the amended accounts that are due. Returns when the next one is."""
    amend(context, at_ms)
    return () if context.case_state.amend_ms is None else (context.case_state.amend_ms,)


def _amend(context: CaseContext, target: Target, ring: Ring, *, cleared: Account) -> None:
    inside, min_mm, _ = _measure(
        context.state,
        context.case_state,
        target,
        ring=ring,
        spans=cleared.spans,
        inside=list(cleared.final_inside),
        min_mm=cleared.final_min_mm,
    )
    cleared.entered_mm = _assumed_mm(
        context.state, context.case_state, target, entered_mm=cleared.entered_mm, at_ms=cleared.entered_ms
    )
    least = rings.least(min_mm, cleared.entered_mm, ring.radius_mm)
    is_same_least = not (inside or least.is_assumed) or _rounded(least.mm) == _rounded(cleared.min_mm)
    if inside == cleared.inside and least.is_assumed == cleared.is_assumed and is_same_least:
        return
    cleared.inside = inside
    cleared.min_mm = least.mm
    cleared.is_assumed = least.is_assumed
    context.alert(
        AlertDraft(
            ACCOUNT_AMENDED,
            inside[-1][1] if inside else cleared.until_ms,
            target=target,
            ring=ring,
            distance_mm=float(ring.radius_mm) if inside else None,
            inside=tuple(inside),
            min_mm=least.mm,
            min_is_assumed=least.is_assumed,
            amended=cleared,
        )
    )


def publish_and_drop(context: CaseContext) -> None:
    """Publishes all pending amendments and drops the cleared accounts: no further report of the case counts."""
    amend(context, None)
    for ring_state in context.case_state.rings.values():
        ring_state.closed = []


def preserve(state: State, case_state: CaseState) -> None:
    """Adds the presence that the tracks prove to the accounts. Call this before devices of the case change."""
    for target, ring, _ in _open_or_cleared(case_state):
        _count(state, case_state, target, ring=ring, upto_ms=state.now_ms)


def make_final(state: State, case_state: CaseState, target: Target, *, ring: Ring) -> None:
    """Makes the account of an open ring final as of now. Call this before the shape of its target is corrected: each moment is
    measured by the shape that the record had then."""
    _count(state, case_state, target, ring=ring, upto_ms=state.now_ms)
    ring_state = case_state.ring(target, ring)
    ring_state.closed = []
    ring_state.floor_ms = ring_state.bound_ms = state.now_ms


def finalize(state: State, case_state: CaseState) -> None:
    """Makes the accounts final up to the moment before which no late report can change them.

    Later measurements need only the fixes of the window and 3 minutes more.
    """
    horizon_ms = state.now_ms - WINDOW_MS
    for target, ring, ring_state in _open_or_cleared(case_state):
        final_ms = _final_ms(state, case_state, target, horizon_ms=horizon_ms)
        if final_ms <= ring_state.floor_ms:
            continue
        _count(state, case_state, target, ring=ring, upto_ms=final_ms)
        for cleared in ring_state.closed:
            cleared.spans = without(cleared.spans, [(0, final_ms)])
        ring_state.closed = [cleared for cleared in ring_state.closed if cleared.spans or cleared.due_ms is not None]
        ring_state.floor_ms = final_ms


def _count(state: State, case_state: CaseState, target: Target, *, ring: Ring, upto_ms: int) -> None:
    """Adds the presence that the tracks prove up to a moment to the accounts, so that the accounts no longer need these tracks."""
    ring_state = case_state.ring(target, ring)
    if ring_state.open:
        at_ms = ring_state.since_ms or 0
        ring_state.entered_mm = _assumed_mm(state, case_state, target, entered_mm=ring_state.entered_mm, at_ms=at_ms)
        spans = _unclaimed(case_state, ring_state, upto_ms)
        ring_state.inside, ring_state.min_mm, _ = _measure(
            state, case_state, target, ring=ring, spans=spans, inside=ring_state.inside, min_mm=ring_state.min_mm
        )
    for cleared in ring_state.closed:
        cleared.entered_mm = _assumed_mm(
            state, case_state, target, entered_mm=cleared.entered_mm, at_ms=cleared.entered_ms
        )
        spans = list(overlaps(cleared.spans, 0, upto_ms))
        cleared.final_inside, cleared.final_min_mm, _ = _measure(
            state, case_state, target, ring=ring, spans=spans, inside=cleared.final_inside, min_mm=cleared.final_min_mm
        )


def _open_or_cleared(case_state: CaseState) -> Iterator[tuple[Target, Ring, RingState]]:
    for target in case_state.case.targets:
        for ring in case_state.case.rings:
            ring_state = case_state.ring(target, ring)
            if ring_state.open or ring_state.closed:
                yield target, ring, ring_state


def _final_ms(state: State, case_state: CaseState, target: Target, *, horizon_ms: int) -> int:
    """The moment before which no report can change a line of either track.

    A line may lead across the horizon from a side's last fix before the horizon. So the moment is the earliest time of these fixes.
    """
    final_ms = horizon_ms
    for pair in all_pairs(state, case_state.case, target):
        for _, track in pair.tracks:
            last = track.last_before(horizon_ms)
            if last is not None and last.time_ms >= horizon_ms - UNKNOWN_AFTER_MS:
                final_ms = min(final_ms, last.time_ms)
    return final_ms


def _unclaimed(case_state: CaseState, ring_state: RingState, upto_ms: int) -> list[Stretch]:
    """The time of the open or the next episode: all that no cleared episode accounts for."""
    from_ms = max(ring_state.floor_ms, case_state.case.valid_from_ms)
    if case_state.case.is_over(upto_ms):
        upto_ms = case_state.case.end_ms
    spans = [(from_ms, upto_ms)] if from_ms < upto_ms else []
    return without(spans, [span for cleared in ring_state.closed for span in cleared.spans])


def _measure(
    state: State,
    case_state: CaseState,
    target: Target,
    *,
    ring: Ring,
    spans: list[Stretch],
    inside: list[Stretch],
    min_mm: float | None,
) -> tuple[list[Stretch], float | None, int]:
    """Adds the presence that the tracks prove in `spans` to `inside` and to the least distance.

    Returns both, and the moment up to which both sides are known.
    """
    reached_ms = case_state.ring(target, ring).bound_ms
    for _, sides in all_pairs(state, case_state.case, target) if spans else ():
        known_ms = rings.known_until(sides)
        if known_ms is None or known_ms <= spans[0][0]:
            continue
        # Whole lines at both ends: the end of a stretch never depends on where a line was cut.
        from_ms = max(spans[0][0] - UNKNOWN_AFTER_MS, case_state.ring(target, ring).floor_ms)
        pieces = rings.joined(sides, from_ms, min(spans[-1][1] + UNKNOWN_AFTER_MS, known_ms))
        min_mm = rings.measure_inside(
            inside, min_mm, target.shape, radius_mm=ring.radius_mm, pieces=pieces, spans=spans
        )
        reached_ms = max(reached_ms, min(spans[-1][1], known_ms))
    return inside, min_mm, reached_ms


def _rounded(mm: float | None) -> int | None:
    """A distance rounded to the millimetre, as it is published."""
    return None if mm is None else round(mm)


def _notified(ring_state: RingState) -> Iterator[Stretch]:
    """Stretches with a notified presence or a response under way.

    A presence that is proved within such a stretch is no reason to send somebody again.
    """
    for cleared in ring_state.closed:
        if cleared.opened_ms < cleared.until_ms:
            yield cleared.opened_ms, cleared.until_ms
        for from_ms, to_ms in cleared.inside:
            yield from_ms - SAME_VISIT_MS, to_ms + SAME_VISIT_MS


def has_pending(case_state: CaseState) -> bool:
    """Whether an amended account is yet to be published."""
    return case_state.amend_ms is not None


DETECTOR = Detector(on_time=amend_due, awaits_report=has_pending)
