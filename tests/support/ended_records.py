"""Test support: stories of a response without a ring, in which the record of a device then ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from services.geofence.domain import codec
from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import Demand, Rules
from tandem.common.v1 import log_pb2
from tests.support.geofence.stories import T0_MS, Story

ENDED_S = 600
WAIT_S = Rules().silent_notify_after_ms // 1000
NO_TAG: dict[str, Any] = {"tag_device_ids": []}
NO_PHONE: dict[str, Any] = {"persons": [log_pb2.ProtectedTarget(person_id="p")]}
OTHER_PHONE: dict[str, Any] = {"persons": [log_pb2.ProtectedTarget(person_id="p", device_ids=["phone-2"])]}
OTHER_TAG: dict[str, Any] = {"tag_device_ids": ["tag-2"]}
FAR_M = 6000


def begin(*, stays_m: float = FAR_M, stays_s: int = 60, **case: Any) -> Story:
    """She is at home until the record ends, and the wearer's tag reports at a distance from her for a while."""
    story = Story()
    story.case(**case)
    for at_s in range(0, stays_s, 15):
        story.at(at_s, "phone", 0)
        story.at(at_s + 1, "tag", stays_m)
    return story


def unseen(**case: Any) -> Story:
    """The tag falls silent 2.5 km from her after a sign of evasion, so that a response rests on the silence alone."""
    story = begin(stays_m=2500, **case)
    story.says(60, "tag", "JAMMING_SUSPECTED")
    at_home(story, 60, ENDED_S)
    [alert] = [alert for alert in story.alerts if alert.demand is Demand.RESPOND]
    assert alert.kind is AlertKind.UNKNOWN_NEAR and not rings_of(story)
    return story


def tampered(*, event: str = "STRAP_OPEN", **case: Any) -> Story:
    """The strap is cut far from her, or the tag's case is opened, and the tag reports on."""
    story = begin(**case)
    story.says(60, "tag", event)
    for at_s in range(75, ENDED_S, 15):
        story.at(at_s, "phone", 0)
        story.at(at_s + 1, "tag", FAR_M)
    [alert] = [alert for alert in story.alerts if alert.demand is Demand.RESPOND]
    assert alert.kind is AlertKind.TAMPERED and not rings_of(story)
    return story


def panicked(**case: Any) -> Story:
    """She presses the panic button while the wearer is far away."""
    story = begin(stays_s=ENDED_S, **case)
    story.says(ENDED_S - 10, "phone", "PANIC_BUTTON")
    assert story.alerts[-1].kind is AlertKind.PANIC
    return story


def at_home(story: Story, from_s: int, to_s: int, *, phone: str = "phone") -> None:
    for at_s in range(from_s, to_s, 30):
        story.at(at_s, phone, 0)


def rings_of(story: Story) -> list[Alert]:
    return story.of(AlertKind.RING_ENTERED, AlertKind.RING_CLEARED)


def ends_of(story: Story) -> list[tuple[AlertKind, float, bool]]:
    """Kind, second of decision and whether it is unconfirmed, of each alert that ends the incident of the response."""
    incident_ids = {alert.incident_id for alert in story.alerts if alert.demand is Demand.RESPOND}
    return [
        (alert.kind, (alert.decided_at_ms - T0_MS) / 1000, alert.unconfirmed)
        for alert in story.alerts
        if alert.incident_ends and alert.incident_id in incident_ids
    ]


def is_open(story: Story) -> bool:
    return "w" in story.state.incidents


def restart(story: Story) -> None:
    story.state = codec.decode(codec.encode(story.state))


STORIES: dict[str, tuple[Callable[..., Story], dict[str, Any], set[AlertKind]]] = {
    "unseen": (unseen, NO_TAG, {AlertKind.UNKNOWN_NEAR, AlertKind.HEARD_AGAIN}),
    "tampered": (tampered, NO_TAG, {AlertKind.TAMPERED}),
    "panicked": (panicked, NO_PHONE, {AlertKind.PANIC}),
}
