"""Stories of a race to a protected person: alerts of rings, cars with travel times, and updates of targets."""

from __future__ import annotations

from collections.abc import Mapping

from services.common.geometry import LatLon
from services.dispatch.domain.enums import Demand, Estimate
from services.dispatch.domain.escalation import Situation
from services.dispatch.domain.events import Event
from services.dispatch.domain.following import Approach, Follow, TargetUpdate, may_change
from services.dispatch.domain.incident import Alert
from services.dispatch.domain.roster import Travel
from tandem.common.v1 import alert_pb2
from tests.support.dispatch.incidents import DEADLINES, Story, kinds_of
from tests.support.dispatch.roster import TWO_OFFICES, board, unit

HOME = LatLon(37.5, 127.0)
PER_M = 1 / 111_195
"""Degrees of latitude per metre."""
FAR = Approach(None)


def ring(
    sequence: int, subject: str, *, target: str, ring_m: float = 100.0, entered: bool = True, ends: bool = False
) -> Alert:
    """An alert of a ring that was entered or left."""
    demand = Demand.RESPOND if entered else Demand.RECORD
    kind = alert_pb2.RING_ENTERED if entered else alert_pb2.RING_CLEARED
    threat = f"{target}-{ring_m}"
    fields = (f"alert-{sequence}", "incident-1", (sequence, 0), kind, demand, "order-1", threat, (subject,))
    kinds = kinds_of((subject,), "w1")
    return Alert(*fields, ends, None, wearer_id="w1", ring_m=ring_m, subject_kinds=kinds)


def with_travel(**travel_s: int) -> Story:
    """A police leg with cars a1, a2 and b1, whose travel times to p1 are `travel_s`, seconds."""
    story = Story("police")
    set_travel(story, travel_s)
    return story


def set_travel(story: Story, travel_s: Mapping[str, int]) -> None:
    """Sets the cars' travel times to p1, seconds."""
    units = [unit("a1", "a"), unit("a2", "a"), unit("b1", "b")]
    travel = {(id_, "p1"): Travel(s, Estimate.ROAD) for id_, s in travel_s.items()}
    story.board = board(TWO_OFFICES, units, travel=travel)


def update(story: Story, how: Approach = FAR, *, moved: bool = False, subject: str = "p1") -> tuple[Event, ...]:
    """Applies an update of the destination\'s target."""
    target = TargetUpdate("incident-1", story.id_of(subject), subject, how, 400 if moved else 0)
    is_news = may_change(story.incident, target, Situation(story.now_ms, DEADLINES, story.board))
    events = story.do(Follow(target))
    assert is_news or not events, "a leg decides only about updates that may change something"
    return events
