"""Plausible drifts: no single device reveals them, so they clear a response. Another source that contradicts them doesn't let them."""

from __future__ import annotations

import dataclasses

import pytest

from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import Demand
from tests.support.geofence.spoofing.drifts import DRIFTS
from tests.support.geofence.spoofing.scene import (
    AWAY_M,
    Attack,
    Report,
    Said,
    Scene,
    both_tags_come_near,
    fold,
    outcome,
)
from tests.support.geofence.stories import Story


def with_source(drift: Attack, *extra: Report) -> Attack:
    """A drift while another source reports something, too."""
    return dataclasses.replace(drift, claims=lambda scene: [*drift.claims(scene), *extra])


def responds(story: Story, kind: AlertKind) -> bool:
    """Whether this kind of alert demanded a response, and the incident is still open."""
    return any(alert.demand is Demand.RESPOND for alert in story.of(kind)) and bool(story.state.incidents)


@pytest.mark.parametrize("name", DRIFTS)
def test_a_drift_clears_the_response_if_the_tag_is_alone(name: str) -> None:
    """Known limit: nothing in these positions differs from an honest departure."""
    result = outcome(fold(name, DRIFTS[name]))
    assert result.cleared_s is not None, f"{name} is held now: move it to the table of attacks"


@pytest.mark.parametrize("name", DRIFTS)
def test_a_second_tag_that_is_still_there_holds_the_response(name: str) -> None:
    drift = DRIFTS[name]

    def claims(scene: Scene) -> list[Report]:
        return [*drift.claims(scene), *scene.stay(AWAY_M, device_id="tag-2")]

    def before(scene: Scene) -> None:
        if drift.before is None:
            return both_tags_come_near(scene)
        drift.before(scene)
        scene.history += scene.stay(AWAY_M, from_s=-600, until_s=0, device_id="tag-2")

    assert (
        outcome(fold(name, dataclasses.replace(drift, claims=claims, before=before, devices=("tag-2",)))).cleared_s
        is None
    )


@pytest.mark.parametrize("name", DRIFTS)
def test_her_panic_button_holds_the_incident(name: str) -> None:
    drift = dataclasses.replace(DRIFTS[name], target="person")
    story = fold(name, with_source(drift, Said(90, "PANIC_BUTTON", "phone")))
    assert responds(story, AlertKind.PANIC)


@pytest.mark.parametrize("event", ["STRAP_OPEN", "CASE_OPEN"])
@pytest.mark.parametrize("name", DRIFTS)
def test_an_opened_tag_holds_the_incident(name: str, event: str) -> None:
    story = fold(name, with_source(DRIFTS[name], Said(30, event)))
    assert responds(story, AlertKind.TAMPERED)


@pytest.mark.parametrize("name", DRIFTS)
def test_jamming_is_notified_but_holds_nothing(name: str) -> None:
    """Known limit: the desks are notified of the jamming, and the ring is cleared by the positions after it."""
    story = fold(name, with_source(DRIFTS[name], Said(10, "JAMMING_SUSPECTED")))
    assert [alert.demand for alert in story.of(AlertKind.JAMMED)] == [Demand.NOTIFY]
    assert outcome(story).cleared_s is not None
