"""Test support: a wearer stands 60 m from a protected home, somebody is on the way, and then his tag is deceived.

An attack is a function from the tag's true history to the reports of the half hour after it. `play` folds both, and says whether
the ring that demands a response was cleared, and which notices the desks had by then.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from services.geofence.domain import codec
from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import Demand
from tests.support.geofence.stories import T0_MS, Story, circle

AWAY_M = 60.0
"""His distance from the home while he stands there, metres."""
END_S = 1800
"""End of an attack, seconds after it began. It begins at second 0; the true history has negative seconds."""
BEGIN_S = 172_800
"""When the attack begins, seconds of the story: there is room for the days before."""
WALK_MPS = 1.4
UNTIL_MS = T0_MS + 10 * 86_400_000
RESPONSE_RING_MM = 100_000
NOTICES = (AlertKind.SPOOFING_SUSPECTED, AlertKind.IMPLAUSIBLE, AlertKind.UNKNOWN_NEAR)
"""Kinds of alert by which a desk learns that positions can't be accepted at face value. An all-clear isn't one of them."""
TARGETS: dict[str, dict[str, Any]] = {
    "place": {"persons": [], "places": [circle("home", 0, 0, radius_m=1)]},
    "person": {},
}
"""Fields of the case by kind of target."""


class Claim(NamedTuple):
    """A reported position, metres north and east of the home."""

    at_s: float
    """When it arrives, seconds after the attack began."""
    north_m: float
    east_m: float
    accuracy_m: float = 5
    fix_s: float | None = None
    """Time of the fix; None if it is the time of arrival."""
    report_id: str | None = None
    device_id: str = "tag"


class Said(NamedTuple):
    """An equipment event that a device reports."""

    at_s: float
    event: str
    device_id: str = "tag"


class Unusable(NamedTuple):
    """A report with a clock that is too far off: ingest keeps only that the device was heard."""

    at_s: float
    device_id: str = "tag"


Report = Claim | Said | Unusable


@dataclass
class Scene:
    """The tag's true history, and what an attack needs to continue it."""

    every_s: float
    """Interval of the tag's reports, seconds."""
    rng: random.Random
    history: list[Claim] = field(default_factory=list)

    def times(self, from_s: float = 0, until_s: float = END_S) -> Iterable[float]:
        """Times of reports."""
        count = math.ceil((until_s - from_s) / self.every_s)
        return [from_s + number * self.every_s for number in range(count)]

    def noisy(self, at_s: float, north_m: float, east_m: float = 0.0, sigma_m: float = 2.0, **more: Any) -> Claim:
        """A position with a receiver's error."""
        return Claim(at_s, north_m + self.rng.gauss(0, sigma_m), east_m + self.rng.gauss(0, sigma_m), **more)

    def stay(
        self, north_m: float, east_m: float = 0.0, *, from_s: float = 0, until_s: float = END_S, **more: Any
    ) -> list[Claim]:
        """Positions of a device that stands still."""
        return [self.noisy(at_s, north_m, east_m, **more) for at_s in self.times(from_s, until_s)]

    def go(
        self, mps: float, far_m: float, *, from_s: float = 0, until_s: float = END_S, start_m: float = AWAY_M
    ) -> list[Claim]:
        """Positions of a device that goes north at a constant speed, up to a distance from the home."""
        return [
            self.noisy(at_s, min(far_m, start_m + mps * (at_s - from_s + self.every_s)))
            for at_s in self.times(from_s, until_s)
        ]


@dataclass(frozen=True)
class Attack:
    """A way to deceive a tag."""

    claims: Callable[[Scene], Sequence[Report]]
    """The reports of the half hour after the history."""
    every_s: float = 15
    target: str = "place"
    before: Callable[[Scene], None] | None = None
    """Writes the true history; None if he only comes on foot and stays."""
    devices: tuple[str, ...] = ()
    """Further tags."""


class Outcome(NamedTuple):
    """What became of the response within half an hour."""

    cleared_s: float | None
    """When the ring that demands a response was cleared, seconds after the attack began; None if it wasn't."""
    notices: tuple[tuple[str, float], ...]
    """Kind of each notice to a desk and seconds after the attack began, up to the all-clear."""

    @property
    def is_talked_away(self) -> bool:
        """Whether the ring was cleared although no desk had been notified."""
        return self.cleared_s is not None and not self.notices


def come_near(scene: Scene, until_s: float = 0, stay_s: float = 600) -> None:
    """He comes on foot from 1,500 m away and stands 60 m from the home."""
    walk_s = (1500 - AWAY_M) / WALK_MPS
    from_s = until_s - math.ceil((stay_s + walk_s) / scene.every_s) * scene.every_s
    scene.history += [
        scene.noisy(at_s, max(AWAY_M, 1500 - WALK_MPS * (at_s - from_s))) for at_s in scene.times(from_s, until_s)
    ]


def both_tags_come_near(scene: Scene) -> None:
    """He wears two tags and comes near with both."""
    come_near(scene)
    scene.history += [scene.noisy(claim.at_s + 1, claim.north_m, device_id="tag-2") for claim in scene.history]


def play(name: str, attack: Attack) -> Outcome:
    """Folds the history and the attack, and says what became of the response."""
    return outcome(fold(name, attack))


def fold(name: str, attack: Attack, *, restart_every: int = 0) -> Story:
    """Folds the history and the attack. The name seeds the receivers' errors.

    With `restart_every`, the state goes through a checkpoint after every so many reports.
    """
    scene = Scene(attack.every_s, random.Random(name))
    (attack.before or come_near)(scene)
    reports: list[Report] = [*scene.history, *attack.claims(scene)]
    first_s = min(report.at_s for report in reports)
    if attack.target == "person":
        phone = Scene(60, random.Random(f"{name} phone"))
        is_deceived = any(report.device_id == "phone" for report in reports)
        reports += phone.stay(0, from_s=first_s, until_s=0 if is_deceived else END_S, sigma_m=1.0, device_id="phone")
    story = Story()
    tags = ["tag", *attack.devices]
    story.case(BEGIN_S + first_s, tag_device_ids=tags, valid_until_ms=UNTIL_MS, **TARGETS[attack.target])
    deliver(story, [report for report in reports if report.at_s < 0], restart_every=restart_every)
    assert_response_is_open(story)
    deliver(story, [report for report in reports if 0 <= report.at_s < END_S], restart_every=restart_every)
    story.tick(BEGIN_S + END_S)
    return story


def deliver(story: Story, reports: Iterable[Report], *, restart_every: int = 0) -> None:
    """Folds reports in order of arrival."""
    for number, report in enumerate(sorted(reports, key=lambda report: report.at_s)):
        if restart_every and number % restart_every == 0:
            story.state = codec.decode(codec.encode(story.state))
        at_s = BEGIN_S + report.at_s
        match report:
            case Claim():
                story.at(
                    at_s,
                    report.device_id,
                    report.north_m,
                    report.east_m,
                    fix_s=None if report.fix_s is None else BEGIN_S + report.fix_s,
                    report_id=report.report_id,
                    accuracy_m=report.accuracy_m,
                )
            case Said():
                story.says(at_s, report.device_id, report.event)
            case Unusable():
                story.heard(at_s, report.device_id)


def assert_response_is_open(story: Story) -> None:
    """The story is worth nothing unless somebody was sent before the attack, and still is."""
    rings = story.state.cases["case-1"].rings
    assert any(key.radius_mm == RESPONSE_RING_MM and ring.open for key, ring in rings.items())
    entered = [alert for alert in story.of(AlertKind.RING_ENTERED) if alert.ring_mm == RESPONSE_RING_MM]
    assert entered and entered[-1].demand is Demand.RESPOND


def outcome(story: Story) -> Outcome:
    """The first all-clear of the ring that demands a response, and the notices until then."""
    cleared = [
        seconds_of(alert)
        for alert in story.of(AlertKind.RING_CLEARED)
        if alert.ring_mm == RESPONSE_RING_MM and seconds_of(alert) >= 0
    ]
    until_s = cleared[0] if cleared else END_S
    notices = [(alert.kind.value, seconds_of(alert)) for alert in story.alerts if is_notice(alert)]
    return Outcome(cleared[0] if cleared else None, tuple(notice for notice in notices if 0 <= notice[1] <= until_s))


def seconds_of(alert: Alert) -> float:
    """When an alert was decided, seconds after the attack began."""
    return (alert.decided_at_ms - T0_MS) / 1000 - BEGIN_S


def is_notice(alert: Alert) -> bool:
    """Whether an alert tells a desk that positions can't be accepted at face value."""
    return alert.kind in NOTICES and alert.demand >= Demand.NOTIFY and bool(alert.destinations)
