"""The burden study counts the messages that the warning leg would send."""

from __future__ import annotations

from collections import Counter

from bench.burden import tables
from bench.burden.counts import Counts
from bench.burden.pushes import Pushes
from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import Leg
from tests.support.geofence.stories import Story

HOUR_MS = 3_600_000


def _sent(alerts: list[Alert]) -> Counter[str]:
    pushes = Pushes()
    for each in alerts:
        pushes.note(each, each.decided_at_ms)
    return pushes.sent(max((each.decided_at_ms for each in alerts), default=0) + HOUR_MS)


def _visit() -> list[Alert]:
    """He comes within 50 m of her for a few minutes and leaves."""
    story = Story()
    story.case(0, "1")
    for i, north_m in enumerate([3000, *[50] * 10, *[3000] * 30]):
        story.at(i * 30, "phone", 0)
        story.at(i * 30, "tag", north_m)
    return story.alerts


def test_a_visit_is_a_warning_and_one_all_clear() -> None:
    sent = _sent(_visit())
    assert sent["OVER (RING_CLEARED, RECORD)"] == 1
    assert sum(sent[f"INSTRUCTION (RING_ENTERED, {demand})"] for demand in ("WARN", "NOTIFY", "RESPOND")) == 1
    counts = Counts(home_m=300, seed=0, protects="person", arm="asked", days=7, pushes=sent)
    assert tables.warnings(counts) == tables.pushes(counts) - 1


def test_alerts_that_reach_no_person_send_nothing() -> None:
    alerts = [each for each in _visit() if all(leg is not Leg.WARNING for leg, _ in each.destinations)]
    assert _sent(alerts) == {}
