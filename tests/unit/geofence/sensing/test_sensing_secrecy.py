"""An attacker who sees all requests to the wearer's tag and all reports of it can't tell by their times which of them have a cause.

The attacker is a wearer who listens to the tag's radio. What these tests hold: each new interval, whether it has a cause, renews an
earlier one or has no cause at all, comes 0 to 20 s after a report of the tag, evenly spread, and it is never the same moment again.

What they don't hold, and nothing can: a wearer who gets a report every half minute for hours is near somebody, because a request that
reports seldom near her wouldn't serve her. If she comes nearer fast while he reports seldom, the request comes at once, at any time
between two reports of the tag: waiting for his next report could take 3 minutes. And a request for the position follows an overdue
report within some 7 km of her, and not beyond. All of it is less than the tag's own distance tells him at the place where he stands.
"""

from __future__ import annotations

import math
from itertools import pairwise

from services.geofence.domain.alerts import SensingRequest
from services.geofence.domain.state import State
from tests.support.geofence.stories import Story, second

DAY_S = 86_400
HOURS = 20


def obey(log_id: str, *, north_m: float, rides: bool = False, hours: float = HOURS) -> tuple[Story, list[float]]:
    """A wearer whose tag obeys at once. With `rides` the wearer rides to and fro, so that requests have causes. Returns the times of
    the tag's reports, too."""
    story = Story(State(0, log_id))
    story.case()
    at_s = 1.0
    seen_s = []
    phone_s = 0.0
    while at_s < hours * 3600:
        while phone_s < at_s:
            story.at(phone_s, "phone", 0)
            phone_s += 150
        away_m = abs((at_s * 5) % 18_000 - 9000) if rides else 0
        story.at(at_s, "tag", north_m + away_m)
        seen_s.append(at_s)
        # A request that comes before the next report moves that report.
        due_s = at_s + story.needed_s(at_s)
        story.tick(min(due_s, at_s + 20.5))
        at_s = max(at_s + 20.5, min(due_s, at_s + story.needed_s(at_s + 20.5)))
    return story, seen_s


def phases(story: Story, seen_s: list[float]) -> list[float]:
    """How long after the tag's last report each interval was asked for, seconds; without the first one."""
    asked = [second(request) for request in story.requests if request.interval_s is not None]
    return [at_s - max(time_s for time_s in seen_s if time_s <= at_s) for at_s in asked[1:]]


def is_even(phases_s: list[float]) -> bool:
    """Whether the times are spread evenly over 20 s, by the Kolmogorov-Smirnov statistic at 1 in 1,000."""
    ordered = sorted(phases_s)
    count = len(ordered)
    off: float = max(max((i + 1) / count - time_s / 20, time_s / 20 - i / count) for i, time_s in enumerate(ordered))
    return off * math.sqrt(count) <= 1.95


def uncaused(story: Story) -> list[SensingRequest]:
    """Requests of a wearer at rest far away that differ from what is needed."""
    return [request for request in story.requests if request.interval_s is not None and request.interval_s < 153]


def test_far_away_some_four_changes_a_day_have_no_cause_and_the_tag_stays_within_its_budget() -> None:
    changes, reports = 0, 0
    for n in range(6):
        story, seen_s = obey(f"far-{n}", north_m=30_000)
        changes += len(uncaused(story))
        reports += len(seen_s)
        assert min(story.intervals()) >= 30
    days = 6 * HOURS / 24
    assert 2 <= changes / days <= 7
    assert reports / days <= 660


def test_changes_with_and_without_a_cause_come_at_the_same_times_after_a_report() -> None:
    with_cause: list[float] = []
    without: list[float] = []
    for n in range(4):
        far, far_seen_s = obey(f"far-{n}", north_m=30_000)
        near, near_seen_s = obey(f"near-{n}", north_m=300, rides=True, hours=8)
        without += phases(far, far_seen_s)
        with_cause += phases(near, near_seen_s)
    assert len(with_cause) > 150 and len(without) > 150
    for phases_s in (with_cause, without):
        assert all(0 <= phase_s <= 20 for phase_s in phases_s)
        assert is_even(phases_s)


def test_no_renewal_comes_at_a_regular_time() -> None:
    story, _ = obey("far", north_m=30_000)
    asked_s = [second(request) for request in story.requests]
    between_s = [after - before for before, after in pairwise(asked_s)]
    assert max(between_s) - min(between_s) > 600
    assert len({round(each) for each in between_s}) > len(between_s) / 2
    assert len({request.until_ms - request.decided_at_ms for request in story.requests}) > len(asked_s) / 2


def test_another_log_draws_other_numbers() -> None:
    first, _ = obey("one", north_m=30_000, hours=3)
    same, _ = obey("one", north_m=30_000, hours=3)
    other, _ = obey("other", north_m=30_000, hours=3)
    assert first.outputs == same.outputs
    assert [second(request) for request in first.requests] != [second(request) for request in other.requests]
