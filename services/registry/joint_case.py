"""The joint case: one order linked with the wearer whom it restrains, as it goes into the log. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.common.privacy import notices
from services.common.privacy.notices import NoticeGround
from services.registry import domain
from services.registry.domain import (
    DEFAULT_RINGS,
    AllowedEncounter,
    Device,
    ExerciseKind,
    Order,
    OrderRing,
    Place,
    Tag,
    Wearer,
)
from services.registry.presence_units.domain import PersonUnit, PresenceUnit, WearerUnit
from services.registry.wearing.domain import Period, WearingDuty


@dataclass(frozen=True, slots=True)
class ProtectedTarget:
    """A protected person as the evaluator sees them: ids only."""

    person_id: str
    device_ids: tuple[str, ...]
    """Ids of the person's protective devices, sorted; empty if the person has none."""
    units: tuple[PresenceUnit, ...] = ()
    """Beacons of the person, sorted by id."""


@dataclass(frozen=True, slots=True)
class JointCase:
    """Complete joint case of one order and one wearer: ids and geometry, never names."""

    case_id: str
    order_id: str
    wearer_id: str
    tag_device_ids: tuple[str, ...]
    """Ids of the tags on the wearer, sorted."""
    persons: tuple[ProtectedTarget, ...]
    places: tuple[Place, ...]
    rings: tuple[OrderRing, ...]
    """At least one ring."""
    valid_from_ms: int
    valid_until_ms: int | None
    """End of validity, exclusive, milliseconds since 1970 UTC; None if the order is valid until the court decides."""
    encounters: tuple[AllowedEncounter, ...]
    """Encounters as the order allows them, including those after an early end of the order."""
    exercise: ExerciseKind | None
    """Exercise that the case belongs to; None for a live case."""
    notice_ground: NoticeGround | None
    """Ground on which the Ministry may notify the persons; None if there is none."""
    police_must_check: bool
    """Whether the police must look into each notice about the wearer's acts (Tag Act 31-6(5))."""
    tag_duty: WearingDuty | None = None
    """The duty to wear a tag; None unless the order is one of item 3-2."""
    removals: tuple[Period, ...] = ()
    """Authorised removals of the wearer's tags, in ascending order."""
    units: tuple[PresenceUnit, ...] = ()
    """Home units and beacons of the wearer, sorted by id."""


def build_case(
    order: Order,
    wearer: Wearer,
    tags: Sequence[Tag],
    *,
    devices: Sequence[Device],
    tag_duty: WearingDuty | None = None,
    removals: tuple[Period, ...] = (),
    units: Sequence[WearerUnit | PersonUnit] = (),
) -> JointCase:
    """Joint case of an order and the wearer whom it restrains. Tags, devices and units of other people are ignored."""
    by_id = sorted(units, key=lambda unit: unit.unit_id)
    worn = [tag for tag in tags if tag.wearer_id == wearer.wearer_id and tag.removed_at_ms is None]
    tag_bases, order_type = [tag.basis for tag in worn], order.type.value if order.type else ""
    return JointCase(
        case_id=domain.case_id_of(order.order_id, wearer.wearer_id),
        order_id=order.order_id,
        wearer_id=wearer.wearer_id,
        tag_device_ids=tuple(sorted(tag.device_id for tag in worn)),
        persons=tuple(
            ProtectedTarget(
                person_id,
                tuple(
                    sorted(
                        device.device_id
                        for device in devices
                        if device.person_id == person_id and device.removed_at_ms is None
                    )
                ),
                tuple(unit for unit in by_id if isinstance(unit, PersonUnit) and unit.person_id == person_id),
            )
            for person_id in order.protected_person_ids
        ),
        places=order.places,
        rings=order.rings or DEFAULT_RINGS,
        valid_from_ms=order.valid_from_ms,
        valid_until_ms=order.ends_ms,
        encounters=order.encounters,
        exercise=order.exercise,
        notice_ground=notices.ground_of(tag_bases, order_type),
        police_must_check=notices.police_must_check(tag_bases, order_type),
        tag_duty=tag_duty,
        removals=removals,
        units=tuple(unit for unit in by_id if isinstance(unit, WearerUnit) and unit.wearer_id == wearer.wearer_id),
    )


def withdraw(case: JointCase, at_ms: int) -> JointCase:
    """The case after its match was withdrawn, for example because a national number was corrected.

    The validity ends at `at_ms` at the latest. A case that begins later keeps 1 ms of validity.
    """
    until_ms = at_ms if case.valid_until_ms is None else min(case.valid_until_ms, at_ms)
    ends_ms = max(case.valid_from_ms + 1, until_ms)
    return replace(case, valid_until_ms=ends_ms)
