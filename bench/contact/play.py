"""Plays a month of the contact study through the fold, and notes what the wearer notices. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from bench.contact.lives import DAYS, Month, Sighting, e7, ms
from bench.silence import RINGS
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert, ContactRequest, Output
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import Case, Demand, Entry, FoldVersion, Positions, Target
from services.geofence.domain.kinematics.geometry import PERSON, Disc, ecef_mm
from services.geofence.domain.state import State
from services.geofence.domain.version import VERSION

WORK_RADIUS_M = 30
ACCURACY_MM = 8_000


class Played(NamedTuple):
    """What a month brought. All times in seconds after its start."""

    contacts_s: tuple[float, ...]
    """Messages that the tag showed, by the rule."""
    caused_s: tuple[float, ...]
    """Those of them that an approach to her caused, away from the named place."""
    notified_s: tuple[float, ...]
    """When an approach to her demanded NOTIFY: the contacts of the naive rule, away from the named place."""


def perform(month: Month) -> Played:
    """Plays a month by an order that protects her with her phone, and names her place of work."""
    state = State(0, log_id=month.name)
    outputs: list[Output] = []

    def step(at_ms: int, body: FoldVersion | Case | Positions) -> None:
        outputs.extend(fold.step(state, Entry(state.sequence + 1, at_ms, body)))

    step(ms(0) - 2_000, FoldVersion(VERSION))
    step(ms(0) - 1_000, _case(month))
    for his, hers in zip(month.wearer, month.person, strict=True):
        step(ms(max(his.at_s, hers.at_s)), _positions(his, hers))
    contacts = [output for output in outputs if isinstance(output, ContactRequest)]
    alerts = [output for output in outputs if isinstance(output, Alert) and output.target_id == "p"]
    caused = {alert.contact.contact_id for alert in alerts if alert.contact and alert.contact.device_id}
    return Played(
        contacts_s=tuple(_seconds(contacts)),
        caused_s=tuple(_seconds(contacts, lambda contact: contact.request_id in caused)),
        notified_s=tuple(
            (alert.decided_at_ms - ms(0)) / 1000
            for alert in alerts
            if alert.kind is AlertKind.RING_ENTERED and alert.demand is Demand.NOTIFY
        ),
    )


def _seconds(contacts: list[ContactRequest], is_wanted: Callable[[ContactRequest], bool] = bool) -> Iterator[float]:
    return ((contact.decided_at_ms - ms(0)) / 1000 for contact in contacts if is_wanted(contact))


def _case(month: Month) -> Case:
    work = Disc(ecef_mm(*e7(month.work)), WORK_RADIUS_M * 1000)
    return Case(
        case_id="case",
        version=1,
        order_id="order",
        wearer_id="w",
        tag_device_ids=("tag",),
        targets=(Target("p", True, ("phone",), PERSON), Target("work", False, (), work, is_named=True)),
        rings=RINGS,
        valid_from_ms=ms(0) - 1_000,
        valid_until_ms=ms((DAYS + 1) * 86_400),
    )


def _positions(*sightings: Sighting) -> Positions:
    places = [e7(sighting.point) for sighting in sightings]
    return Positions(
        device_ids=["tag", "phone"],
        report_ids=[f"{sighting.at_s:.3f}" for sighting in sightings],
        fix_times_ms=[ms(sighting.at_s) for sighting in sightings],
        lat_e7=[lat for lat, _ in places],
        lon_e7=[lon for _, lon in places],
        accuracy_mm=[ACCURACY_MM] * len(places),
        received_wall_us=0,
    )
