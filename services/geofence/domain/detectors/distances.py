"""Warnings of what is news. While a ring is entered, the protected person is warned again as the wearer comes nearer or goes away.
A wide ring in which the wearer is known to stay isn't warned of at each return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from services.geofence.domain.alerts import CausingReport
from services.geofence.domain.decisions import AlertDraft, CaseContext, Detector
from services.geofence.domain.demands import Detection
from services.geofence.domain.detectors import wearing, withheld_clearing
from services.geofence.domain.entries import Demand, Ring, Target
from services.geofence.domain.pairs import nearest
from services.geofence.domain.state import part_by_key

NEARER_SHARE = 0.5
"""Warn when the wearer has come to this share of the distance that the person was last told."""
NEARER_MM = 100_000
"""Least approach that is worth another warning, mm: below 200 m only the ring that demands a response warns again."""
HABIT_MS = 7 * 86_400_000
"""How long the person knows a distance that she was told. A wearer who lives 300 m away comes to that distance each evening."""
HABIT_AGE_MS = 3_600_000
"""Least age of a habit, ms. What the person was told within the hour belongs to the same approach."""
HABIT_SHARE = 2 / 3
"""Within that time only a distance below this share of it is news, beside the alerts of the rings."""
HABIT_FROM_MM = 200_000
"""Nearer than this, mm, every warning is repeated, whatever the person knows."""
AWAY_TIMES = 3
"""Warn once when the wearer has gone to this many times the distance that the person was last told: it misleads by then."""
AWAY_MM = 500_000
"""Least increase that is worth that warning, mm."""
AWAY_FOR_MS = 600_000
"""How long the wearer must stay away before that warning. Who leaves for good leaves the ring before, and she gets its all-clear."""
MIN_INTERVAL_MS = 15_000
"""Minimum interval between two warnings, however many reports arrive at once."""
STAY_MS = 21_600_000
"""Time within a ring without leaving it, ms, from which on it is a stay: 6 h. A night at home is longer, and a visit is shorter."""
STAY_KNOWN_MS = 36 * 3_600_000
"""How long a stay explains the next entry, ms: a day and a half, so that the way home after a night shift is explained, and a return
after a weekend elsewhere isn't."""


class LastWarning(NamedTuple):
    """The last warning of a protected person about the distance to the wearer."""

    apart_mm: float
    at_ms: int
    """Time of the warning, mesh time."""
    rings: int
    """Number of rings entered at that time."""
    away: bool = False
    """Whether the person was warned, since that number of rings is entered, that the wearer has gone away."""
    away_since_ms: int | None = None
    """Since when the wearer has been away, mesh time; None if the wearer isn't away."""
    near_at_ms: int | None = None
    """Time of the positions that put the wearer at a distance that would be news; None if the newest positions don't."""


class Habit(NamedTuple):
    """The least distance to the wearer that a person was told lately."""

    apart_mm: float
    at_ms: int
    """Time of that warning, mesh time."""


class KnownStay(NamedTuple):
    """What a protected person knows of the wearer's stays within a wide ring."""

    warned_ms: int
    """When the person was last warned of an entry of the ring, mesh time."""
    left_ms: int
    """When the wearer last left the ring after a stay, mesh time; 0 if the wearer never did."""


WARNED = part_by_key("warned", LastWarning._make)
"""Last warning of each person while the wearer is within one of the person's rings, by the person's key."""
HABITS = part_by_key("habits", Habit._make, outlives_episode=True)
"""The habit of the wearer as far as each person was told, by the person's key."""

STAYS = part_by_key("stays", KnownStay._make, outlives_episode=True)
"""Stays of the wearer, by target and ring."""


def is_known_stay(context: CaseContext, target: Target, ring: Ring) -> bool:
    """Whether the entry of a ring is no news, as the wearer has lately stayed within it and the persons were warned of that.

    Notes the warning if it is news. A ring that demands a response is always warned of.
    """
    if ring.responds:
        return False
    stays = STAYS.of(context.case_state)
    key = _stay_key(target, ring)
    now_ms = context.state.now_ms
    stay = stays.get(key)
    if stay and now_ms - stay.warned_ms <= HABIT_MS and now_ms - stay.left_ms <= STAY_KNOWN_MS:
        return True
    stays[key] = KnownStay(now_ms, stay.left_ms if stay else 0)
    return False


def is_within_stay(context: CaseContext, target: Target, ring: Ring) -> bool:
    """Whether the wearer has lately stayed within a ring for hours, by the wearer's way alone."""
    stay = STAYS.of(context.case_state).get(_stay_key(target, ring))
    return stay is not None and context.state.now_ms - stay.left_ms <= STAY_KNOWN_MS


def note_left(context: CaseContext, target: Target, ring: Ring, *, inside: Sequence[tuple[int, int]]) -> None:
    """Notes a stay when a ring is cleared. `inside`: the stretches of its account, ms, in order."""
    stays, key = STAYS.of(context.case_state), _stay_key(target, ring)
    if key in stays and sum(to_ms - from_ms for from_ms, to_ms in inside) >= STAY_MS:
        stays[key] = stays[key]._replace(left_ms=inside[-1][1])


def _stay_key(target: Target, ring: Ring) -> str:
    return f"{target.key}/{ring.radius_mm}"


def check(context: CaseContext, newest: CausingReport | None) -> None:
    """Warns each person again while the wearer is within a ring, if the distance has changed enough since the last warning."""
    if not context.case_state.episode_id or newest is None:
        return
    for target in context.case.targets:
        if target.is_person:
            _check_person(context, target, newest)


def _check_person(context: CaseContext, target: Target, newest: CausingReport) -> None:
    state = context.state
    case_state = context.case_state
    warned = WARNED.of(context.case_state)
    rings_ = context.case.rings
    entered = [ring for ring in rings_ if ring.action >= Demand.WARN and case_state.ring(target, ring).open]
    if not entered:
        warned.pop(target.key, None)
        return
    found = nearest(state, context.case, target)
    if found is None:
        return
    apart_mm, at_ms = found
    before, now_ms = warned.get(target.key), state.now_ms
    if before is None or before.rings != len(entered):
        # The alert of that ring has warned her.
        warned[target.key] = LastWarning(apart_mm, now_ms, len(entered))
        return
    ring = entered[-1]
    away_since_ms = None
    near_at_ms = None
    if not before.away and _is_away(before, apart_mm, ring.radius_mm) and not wearing.is_off(case_state):
        if withheld_clearing.implausible_departure_ms(state, case_state, target, ring=ring) is not None:
            return  # not credible: no vehicle could have covered that way in the time
        away_since_ms = now_ms if before.away_since_ms is None else before.away_since_ms
    habit = _habit(context, target)
    if _is_nearer(before, habit, apart_mm, widest_mm=rings_[0].radius_mm):
        near_at_ms = at_ms if before.near_at_ms is None else before.near_at_ms
    if (before.away_since_ms, before.near_at_ms) != (away_since_ms, near_at_ms):  # seldom
        before = warned[target.key] = before._replace(away_since_ms=away_since_ms, near_at_ms=near_at_ms)
    away = before.away_since_ms is not None and now_ms - before.away_since_ms >= AWAY_FOR_MS
    if now_ms - before.at_ms < MIN_INTERVAL_MS or not (away or _is_confirmed(before, habit, at_ms, now_ms=now_ms)):
        return
    if not away:
        HABITS.of(case_state)[target.key] = Habit(apart_mm, now_ms)
    warned[target.key] = LastWarning(apart_mm, now_ms, len(entered), away=away or before.away)
    context.alert(
        AlertDraft(
            Detection.DISTANCE_CHANGED.alert_type, at_ms, target=target, ring=ring, cause=newest, distance_mm=apart_mm
        )
    )


def note_warning(context: CaseContext, target: Target, distance_mm: float) -> None:
    """Notes that another alert has just warned a person, with a distance."""
    warned = WARNED.of(context.case_state)
    if before := warned.get(target.key):
        warned[target.key] = before._replace(apart_mm=distance_mm, at_ms=context.state.now_ms)


def _is_away(before: LastWarning, apart_mm: float, radius_mm: int) -> bool:
    """Whether the distance that the person was last told misleads. Beyond the narrowest entered ring, its all-clear says so."""
    return max(AWAY_TIMES * before.apart_mm, before.apart_mm + AWAY_MM) <= apart_mm <= radius_mm


def _habit(context: CaseContext, target: Target) -> Habit | None:
    """The habit that a person knows; None if the person was told no distance lately."""
    habit = HABITS.of(context.case_state).get(target.key)
    return habit if habit and context.state.now_ms - habit.at_ms <= HABIT_MS else None


def _is_nearer(before: LastWarning, habit: Habit | None, apart_mm: float, *, widest_mm: int) -> bool:
    """Whether a distance is so much less than the person was told, now or as a habit, that it would be news."""
    nearer_mm = min(NEARER_SHARE * before.apart_mm, before.apart_mm - NEARER_MM, widest_mm)
    return apart_mm <= nearer_mm and (habit is None or apart_mm < max(HABIT_FROM_MM, HABIT_SHARE * habit.apart_mm))


def _is_confirmed(before: LastWarning, habit: Habit | None, at_ms: int, *, now_ms: int) -> bool:
    """Whether the positions at `at_ms` warn the person of a nearer distance.

    If the person has known a habit for an hour, later positions have to confirm it: the receiver of a device that rests in a flat
    jumps by 100 m.
    """
    if before.near_at_ms is None:
        return False
    is_old = habit is not None and now_ms - habit.at_ms >= HABIT_AGE_MS
    return not is_old or at_ms - before.near_at_ms >= MIN_INTERVAL_MS


DETECTOR = Detector(on_batch=check, parts=(WARNED, HABITS, STAYS))
