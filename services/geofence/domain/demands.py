"""The one table that says what an alert demands, and where each leg then goes."""

from __future__ import annotations

import enum

from services.geofence.domain.alerts import AlertKind, Leg
from services.geofence.domain.entries import Case, Demand, EquipmentKind, Target

EQUIPMENT: dict[EquipmentKind, tuple[AlertKind, Demand]] = {
    # A tag that may be off its wearer: the Decree (23-13) has police told at once, and nobody knows where the wearer is.
    EquipmentKind.STRAP_OPEN: (AlertKind.TAMPERED, Demand.RESPOND),
    EquipmentKind.STRAP_CLOSED: (AlertKind.TAMPERED, Demand.RECORD),
    EquipmentKind.CASE_OPEN: (AlertKind.TAMPERED, Demand.RESPOND),
    EquipmentKind.CASE_CLOSED: (AlertKind.TAMPERED, Demand.RECORD),
    EquipmentKind.PANIC_BUTTON: (AlertKind.PANIC, Demand.RESPOND),
    EquipmentKind.PANIC_CANCELLED: (AlertKind.PANIC, Demand.RECORD),
    EquipmentKind.BATTERY_LOW: (AlertKind.LOW_BATTERY, Demand.RECORD),
    # Tunnels look like jamming, and devices are switched off for harmless reasons too: the desks ask, nobody is sent at once.
    EquipmentKind.JAMMING_SUSPECTED: (AlertKind.JAMMED, Demand.NOTIFY),
    EquipmentKind.JAMMING_OVER: (AlertKind.JAMMED, Demand.RECORD),
    EquipmentKind.SHUTDOWN: (AlertKind.DEVICE_OFF, Demand.NOTIFY),
    EquipmentKind.STARTED: (AlertKind.DEVICE_OFF, Demand.RECORD),
    # A protected person without a device is a foreseen state of the Decree, and police must then be told.
    EquipmentKind.DEVICE_REFUSED: (AlertKind.PROTECTED_DEVICE_LOST, Demand.NOTIFY),
    EquipmentKind.DEVICE_ACCEPTED: (AlertKind.PROTECTED_DEVICE_LOST, Demand.RECORD),
}
WITHOUT_ALERT = frozenset(
    (
        EquipmentKind.CHARGER_CONNECTED,
        EquipmentKind.CHARGER_REMOVED,
        EquipmentKind.BATTERY_RECOVERED,
        EquipmentKind.OUT_OF_COVERAGE,
        EquipmentKind.BACK_IN_COVERAGE,
    )
)
"""Events without an alert: each device is charged and goes underground daily, and nobody acts on it. That it was heard is kept. A
battery that has recovered would be one more LOW_BATTERY for the record, which nobody could tell from the first."""


class Detection(enum.Enum):
    """What the fold finds by itself beside the rings, without a device saying so."""

    NOT_HEARD = "NOT_HEARD"
    """No tag of the wearer for 3 minutes."""
    NOT_HEARD_FOR_LONG = "NOT_HEARD_FOR_LONG"
    """... for as long as the rules say."""
    HEARD_AGAIN = "HEARD_AGAIN"
    IN_REACH = "IN_REACH"
    """The wearer's position is unknown, and at the speed bound a ring that demands a response could be entered by now."""
    LIKELY_IN_REACH = "LIKELY_IN_REACH"
    """... and at the wearer's own pace too, or nobody has seen the wearer for as long as the rules say."""
    IN_REACH_AFTER_A_SIGN = "IN_REACH_AFTER_A_SIGN"
    """... and the last that was known was within a ring that demands NOTIFY or more, or a tag had been opened, jammed or shut down."""
    POSITION_REGAINED = "POSITION_REGAINED"
    PERSON_LOST = "PERSON_LOST"
    """No device of a protected person for as long as the rules say, or none is there."""
    PERSON_FOUND = "PERSON_FOUND"
    CLOSING_IN = "CLOSING_IN"
    """Contact would come before help."""
    OUTAGE = "OUTAGE"
    """So many wearers fell silent together that it is no wearer's doing."""
    OUTAGE_OVER = "OUTAGE_OVER"
    DISTANCE_CHANGED = "DISTANCE_CHANGED"
    """Within a ring, the wearer has come nearer or gone away since the person was warned last."""
    JUMPED = "JUMPED"
    """A position that nothing could have travelled to since the one before."""
    JUMPED_NEAR = "JUMPED_NEAR"
    """... within the ring that demands a response."""
    POSSIBLY_INSIDE = "POSSIBLY_INSIDE"
    """What is known of the positions allows that the wearer is within that ring, and doesn't make it likely."""
    POSSIBLY_INSIDE_RECORDED = "POSSIBLY_INSIDE_RECORDED"
    """... and somebody was sent to that target, or an encounter is authorised, or the desks were told within the hour."""
    UNDATED = "UNDATED"
    """All that a device has sent for a minute is dated so far off that it can't be used."""
    FROZEN = "FROZEN"
    COPIED = "COPIED"
    LEFT_BY_JUMP = "LEFT_BY_JUMP"
    """Positions say that a ring was left, and no vehicle makes the way: it stays entered, and the positions may be spoofed."""
    LEFT_BY_JUMP_REPEATED = "LEFT_BY_JUMP_REPEATED"
    """... and the desks were told so in this episode."""
    WAY_FOUND = "WAY_FOUND"
    """A vehicle can have made the way to the newest position, or it is back within the ring."""


DETECTIONS: dict[Detection, tuple[AlertKind, Demand]] = {
    # Tunnels and lifts silence each tag daily; only what lasts is worth a telephone call by the wearer's officer.
    Detection.NOT_HEARD: (AlertKind.SILENT, Demand.RECORD),
    Detection.NOT_HEARD_FOR_LONG: (AlertKind.SILENT, Demand.NOTIFY),
    Detection.HEARD_AGAIN: (AlertKind.HEARD_AGAIN, Demand.RECORD),
    # Whoever sits still in a cellar could have taken a car each day, and didn't: that is kept for whoever reviews the case. The Decree
    # has police told of a risk of breach at once; nobody is sent on it alone, unless there was a sign.
    Detection.IN_REACH: (AlertKind.UNKNOWN_NEAR, Demand.RECORD),
    Detection.LIKELY_IN_REACH: (AlertKind.UNKNOWN_NEAR, Demand.NOTIFY),
    Detection.IN_REACH_AFTER_A_SIGN: (AlertKind.UNKNOWN_NEAR, Demand.RESPOND),
    Detection.POSITION_REGAINED: (AlertKind.UNKNOWN_NEAR, Demand.RECORD),
    Detection.PERSON_LOST: (AlertKind.PROTECTED_DEVICE_LOST, Demand.NOTIFY),
    Detection.PERSON_FOUND: (AlertKind.PROTECTED_DEVICE_LOST, Demand.RECORD),
    # Who is sent only at 100 m comes five minutes too late.
    Detection.CLOSING_IN: (AlertKind.CONTACT_PREDICTED, Demand.RESPOND),
    # One call for all of them: a desk that is told of ten thousand silences reads none.
    Detection.OUTAGE: (AlertKind.OUTAGE, Demand.NOTIFY),
    Detection.OUTAGE_OVER: (AlertKind.OUTAGE, Demand.RECORD),
    Detection.DISTANCE_CHANGED: (AlertKind.DISTANCE_CHANGED, Demand.WARN),
    # Streets between high houses do that to each receiver, and so does spoofing: whoever reviews the case has to know.
    Detection.JUMPED: (AlertKind.IMPLAUSIBLE, Demand.RECORD),
    # It may be the truth: the desks look before the next position has said so.
    Detection.JUMPED_NEAR: (AlertKind.IMPLAUSIBLE, Demand.NOTIFY),
    # Nobody is sent on what is no more than possible; the desks look, also those that knew of a wider ring: 1 km is no 100 m.
    Detection.POSSIBLY_INSIDE: (AlertKind.UNKNOWN_NEAR, Demand.NOTIFY),
    Detection.POSSIBLY_INSIDE_RECORDED: (AlertKind.UNKNOWN_NEAR, Demand.RECORD),
    # It is heard, so silence doesn't tell of it, and nobody knows where the wearer is.
    Detection.UNDATED: (AlertKind.IMPLAUSIBLE, Demand.NOTIFY),
    # Some receivers pin themselves at a standstill; a track that was there before is no accident.
    Detection.FROZEN: (AlertKind.IMPLAUSIBLE, Demand.RECORD),
    Detection.COPIED: (AlertKind.IMPLAUSIBLE, Demand.NOTIFY),
    # Who was sent goes on, and both desks have to know why nothing clears: the tag is to be asked, and looked at.
    Detection.LEFT_BY_JUMP: (AlertKind.SPOOFING_SUSPECTED, Demand.NOTIFY),
    Detection.LEFT_BY_JUMP_REPEATED: (AlertKind.SPOOFING_SUSPECTED, Demand.RECORD),
    Detection.WAY_FOUND: (AlertKind.SPOOFING_SUSPECTED, Demand.RECORD),
}
EVASION_SIGNS = frozenset(
    (EquipmentKind.STRAP_OPEN, EquipmentKind.CASE_OPEN, EquipmentKind.JAMMING_SUSPECTED, EquipmentKind.SHUTDOWN)
)
"""Events of a tag after which its silence is no accident."""
EXPLAINS_SILENCE = frozenset((EquipmentKind.SHUTDOWN, EquipmentKind.DEVICE_REFUSED))
"""Events of a protective device after which its silence is no news."""

_TAG_ALONE = frozenset(
    (EquipmentKind.STRAP_OPEN, EquipmentKind.STRAP_CLOSED, EquipmentKind.CASE_OPEN, EquipmentKind.CASE_CLOSED)
)
_PERSON_ALONE = frozenset(
    (
        EquipmentKind.PANIC_BUTTON,
        EquipmentKind.PANIC_CANCELLED,
        EquipmentKind.DEVICE_REFUSED,
        EquipmentKind.DEVICE_ACCEPTED,
    )
)
OF_TAGS = frozenset(EquipmentKind) - _PERSON_ALONE
"""What a tag can say."""
OF_PERSONS = frozenset(EquipmentKind) - _TAG_ALONE
"""What a protective device can say."""

ENDS: dict[EquipmentKind, EquipmentKind] = {
    EquipmentKind.STRAP_CLOSED: EquipmentKind.STRAP_OPEN,
    EquipmentKind.CASE_CLOSED: EquipmentKind.CASE_OPEN,
    EquipmentKind.PANIC_CANCELLED: EquipmentKind.PANIC_BUTTON,
    EquipmentKind.JAMMING_OVER: EquipmentKind.JAMMING_SUSPECTED,
    EquipmentKind.STARTED: EquipmentKind.SHUTDOWN,
    EquipmentKind.DEVICE_ACCEPTED: EquipmentKind.DEVICE_REFUSED,
}
"""Which event takes back which."""
ACTIVE_UNTIL_ENDED = frozenset(ENDS.values())
"""Events that stand until they are taken back: an order that comes later is told of them."""
HOLDS_INCIDENT = frozenset(event for event in ACTIVE_UNTIL_ENDED if EQUIPMENT[event][1] is Demand.RESPOND)
"""Those that hold the incident open while they stand. What only notifies doesn't: a device may be off or refused for months, and in an
incident that stays open a desk that has taken its assignment is asked again only where a threat was over and comes back."""

_OF_DEVICES = frozenset(
    (AlertKind.JAMMED, AlertKind.DEVICE_OFF, AlertKind.PROTECTED_DEVICE_LOST, AlertKind.IMPLAUSIBLE)
)
"""Alerts of a device that is out of order: the desks weigh them, and no protected person is frightened by a message."""
_OF_SILENCE = frozenset((AlertKind.SILENT, AlertKind.HEARD_AGAIN))
"""Alerts of a wearer who isn't heard: probation's alone. Where that endangers somebody UNKNOWN_NEAR says so to the police."""


MUTED_DEMAND = Demand.WARN
"""What entering a ring demands at most while an authorised encounter holds: nobody is sent, and the warning is never muted."""


def of_ring(action: Demand, entered: bool) -> Demand:
    """Entering a ring demands the ring's action; the all-clear is for the record."""
    return action if entered else Demand.RECORD


def _subject(case: Case, target: Target) -> str:
    """A person's id, or `order/place`: an agency numbers places within their order, and ids hold no slash."""
    return target.target_id if target.is_person else f"{case.order_id}/{target.target_id}"


def destinations(case: Case, kind: AlertKind, demand: Demand, target: Target | None) -> tuple[tuple[Leg, str], ...]:
    """Probation to the wearer, police to what is under threat, a warning to each person who is.

    Without a target, as when a tag is cut, all that the order protects is under threat. Of a device that is out of order nobody is
    warned, and probation learns nothing of protective devices. Nor is anybody warned of what is no more than possible.
    """
    persons = [other.target_id for other in case.targets if other.is_person]
    threatened = [_subject(case, target)] if target else persons or [_subject(case, other) for other in case.targets]
    warned = [target.target_id] if target and target.is_person else persons
    probation = ((Leg.PROBATION, case.wearer_id),)
    police = tuple((Leg.POLICE, subject_id) for subject_id in threatened)
    if kind is AlertKind.DISTANCE_CHANGED:
        # Hers alone: how often it is told would tell the others how far he is.
        return tuple((Leg.WARNING, person_id) for person_id in warned)
    if kind in _OF_SILENCE:
        return probation
    if kind is AlertKind.ACCOUNT_AMENDED:
        # For the desks' own records: nobody is warned of what is over.
        return probation + police
    if kind in _OF_DEVICES:
        return police if target else probation + police
    if kind is AlertKind.SPOOFING_SUSPECTED or (kind is AlertKind.UNKNOWN_NEAR and demand is not Demand.RESPOND):
        return probation + police
    return (*probation, *police, *((Leg.WARNING, person_id) for person_id in warned))
