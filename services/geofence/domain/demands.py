"""Kinds of alert: what each demands, and its destinations on each leg."""

from __future__ import annotations

import enum
from typing import NamedTuple

from services.common.privacy.notices import NoticeGround
from services.geofence.domain.entries import Case, Demand, EquipmentKind, Ring, Target


class AlertKind(enum.Enum):
    """Kinds of alert."""

    RING_ENTERED = "RING_ENTERED"
    RING_CLEARED = "RING_CLEARED"
    TAMPERED = "TAMPERED"
    PANIC = "PANIC"
    LOW_BATTERY = "LOW_BATTERY"
    JAMMED = "JAMMED"
    DEVICE_OFF = "DEVICE_OFF"
    PROTECTED_DEVICE_LOST = "PROTECTED_DEVICE_LOST"
    SILENT = "SILENT"
    HEARD_AGAIN = "HEARD_AGAIN"
    UNKNOWN_NEAR = "UNKNOWN_NEAR"
    CONTACT_PREDICTED = "CONTACT_PREDICTED"
    IMPLAUSIBLE = "IMPLAUSIBLE"
    DISTANCE_CHANGED = "DISTANCE_CHANGED"
    OUTAGE = "OUTAGE"
    ACCOUNT_AMENDED = "ACCOUNT_AMENDED"
    SPOOFING_SUSPECTED = "SPOOFING_SUSPECTED"
    LATE_EVIDENCE = "LATE_EVIDENCE"
    NOTICE_ENDED = "NOTICE_ENDED"
    NOT_FITTED = "NOT_FITTED"
    TAG_LAPSED = "TAG_LAPSED"
    TAG_REMOVAL = "TAG_REMOVAL"
    TAG_REMOVED = "TAG_REMOVED"
    TAG_REFITTED = "TAG_REFITTED"


class Leg(enum.Enum):
    """Legs of the response."""

    PROBATION = "PROBATION"
    POLICE = "POLICE"
    WARNING = "WARNING"


class AlertType(NamedTuple):
    """A kind of alert with what it demands."""

    kind: AlertKind
    demand: Demand


EQUIPMENT: dict[EquipmentKind, AlertType] = {
    # The tag may be off its wearer, whose position is then unknown. The Decree (23-13) has the police notified at once.
    EquipmentKind.STRAP_OPEN: AlertType(AlertKind.TAMPERED, Demand.RESPOND),
    EquipmentKind.STRAP_CLOSED: AlertType(AlertKind.TAMPERED, Demand.RECORD),
    EquipmentKind.CASE_OPEN: AlertType(AlertKind.TAMPERED, Demand.RESPOND),
    EquipmentKind.CASE_CLOSED: AlertType(AlertKind.TAMPERED, Demand.RECORD),
    EquipmentKind.PANIC_BUTTON: AlertType(AlertKind.PANIC, Demand.RESPOND),
    EquipmentKind.PANIC_CANCELLED: AlertType(AlertKind.PANIC, Demand.RECORD),
    EquipmentKind.BATTERY_LOW: AlertType(AlertKind.LOW_BATTERY, Demand.RECORD),
    # Tunnels look like jamming, and devices are switched off for harmless reasons too. The desks inquire; nobody is sent at once.
    EquipmentKind.JAMMING_SUSPECTED: AlertType(AlertKind.JAMMED, Demand.NOTIFY),
    EquipmentKind.JAMMING_OVER: AlertType(AlertKind.JAMMED, Demand.RECORD),
    EquipmentKind.SHUTDOWN: AlertType(AlertKind.DEVICE_OFF, Demand.NOTIFY),
    EquipmentKind.STARTED: AlertType(AlertKind.DEVICE_OFF, Demand.RECORD),
    # The Decree foresees a protected person without a device, and the police must then be notified.
    EquipmentKind.DEVICE_REFUSED: AlertType(AlertKind.PROTECTED_DEVICE_LOST, Demand.NOTIFY),
    EquipmentKind.DEVICE_ACCEPTED: AlertType(AlertKind.PROTECTED_DEVICE_LOST, Demand.RECORD),
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
"""Equipment events without an alert. Devices are charged and go underground daily, and nobody acts on it; the contact still counts.
A recovered battery would be one more LOW_BATTERY for the record, which nobody could distinguish from the first."""


class Detection(enum.Enum):
    """Conditions other than rings that the fold detects by itself, without a device reporting them."""

    NOT_HEARD = "NOT_HEARD"
    """No tag of the wearer was heard for 3 minutes."""
    NOT_HEARD_FOR_LONG = "NOT_HEARD_FOR_LONG"
    """No tag of the wearer was heard for as long as the rules say."""
    HEARD_AGAIN = "HEARD_AGAIN"
    IN_REACH = "IN_REACH"
    """The wearer's position is unknown, and at the speed bound the wearer could be within a ring that demands a response."""
    LIKELY_IN_REACH = "LIKELY_IN_REACH"
    """The wearer's position is unknown, and a presence within a ring that demands a response is likely. Either the ring is in reach
    at the wearer's own pace, or the position has been unknown for as long as the rules say."""
    UNSEEN_NEAR = "UNSEEN_NEAR"
    """The wearer's position is unknown, and the last known one was within a ring that demands NOTIFY or more."""
    ARRIVED_UNSEEN = "ARRIVED_UNSEEN"
    """As UNSEEN_NEAR, and by now the wearer can have arrived within the ring that demands a response, at the own pace."""
    IN_REACH_AFTER_A_SIGN = "IN_REACH_AFTER_A_SIGN"
    """The wearer's position is unknown, and a ring that demands a response is in reach after a sign of evasion: a tag had been
    opened, jammed or shut down."""
    POSITION_REGAINED = "POSITION_REGAINED"
    PRESENT_AT_UNIT = "PRESENT_AT_UNIT"
    """The wearer's position is unknown, but a home unit or beacon away from the target has the wearer's tag with it."""
    PRESENCE_CONTRADICTED = "PRESENCE_CONTRADICTED"
    """Positions, or another unit, contradict a presence at a home unit or beacon."""
    PERSON_LOST = "PERSON_LOST"
    """No device of a protected person was heard for as long as the rules say, or the person has none."""
    PERSON_FOUND = "PERSON_FOUND"
    CLOSING_IN = "CLOSING_IN"
    """Contact is predicted before help can arrive."""
    OUTAGE = "OUTAGE"
    """So many wearers fell silent together that no wearer caused it."""
    OUTAGE_OVER = "OUTAGE_OVER"
    DISTANCE_CHANGED = "DISTANCE_CHANGED"
    """Within a ring, the wearer has come nearer or gone away since the person's last warning."""
    JUMPED = "JUMPED"
    """No movement explains the step from the position before to this position."""
    JUMPED_NEAR = "JUMPED_NEAR"
    """A position jumped to within the ring that demands a response."""
    POSSIBLY_INSIDE = "POSSIBLY_INSIDE"
    """The known positions allow that the wearer is within the ring that demands a response, but don't make it likely."""
    POSSIBLY_INSIDE_RECORDED = "POSSIBLY_INSIDE_RECORDED"
    """A possible presence without a notice: somebody was sent to that target, an encounter is active, or the desks were notified
    within the hour."""
    UNDATED = "UNDATED"
    """All reports of a device for a minute are dated too far off to be used."""
    FROZEN = "FROZEN"
    COPIED = "COPIED"
    LEFT_BY_JUMP = "LEFT_BY_JUMP"
    """Positions claim that a ring was left, but no vehicle makes the way. The ring stays entered; the positions may be spoofed."""
    LEFT_BY_JUMP_REPEATED = "LEFT_BY_JUMP_REPEATED"
    """Another departure that no vehicle makes, after the desks were notified of one in this episode."""
    WAY_FOUND = "WAY_FOUND"
    """A vehicle can have made the way to the newest position, or the position is back within the ring."""
    WAS_INSIDE = "WAS_INSIDE"
    """Reports older than the window show that the wearer was within the ring that demands a response."""
    NOT_FITTED = "NOT_FITTED"
    """A respondent under an order of item 3-2 wears no tag by the court's time, or refused one, without good cause."""
    FITTING_SETTLED = "FITTING_SETTLED"
    """After NOT_FITTED a tag is worn, there is good cause, or the order is over."""
    TAG_LAPSED = "TAG_LAPSED"
    """The record of the last tag ended while an order of item 3-2 is valid, and nothing explains it."""
    LAPSE_SETTLED = "LAPSE_SETTLED"
    REMOVAL_BEGUN = "REMOVAL_BEGUN"
    """An authorised removal of a tag begins."""
    REMOVAL_BEGUN_UNDER_AN_ORDER = "REMOVAL_BEGUN_UNDER_AN_ORDER"
    """An authorised removal of a tag begins under an order of item 3-2."""
    STRAP_OPENED_BY_PERMISSION = "STRAP_OPENED_BY_PERMISSION"
    STRAP_CLOSED_BY_PERMISSION = "STRAP_CLOSED_BY_PERMISSION"

    @property
    def alert_type(self) -> AlertType:
        """Kind and demand of the alert that the condition gives."""
        return DETECTIONS[self]


DETECTIONS: dict[Detection, AlertType] = {
    # Tunnels and lifts silence each tag daily. Only a lasting silence is worth a call by the wearer's officer.
    Detection.NOT_HEARD: AlertType(AlertKind.SILENT, Demand.RECORD),
    Detection.NOT_HEARD_FOR_LONG: AlertType(AlertKind.SILENT, Demand.NOTIFY),
    Detection.HEARD_AGAIN: AlertType(AlertKind.HEARD_AGAIN, Demand.RECORD),
    # A wearer who sits in a cellar could have taken a car each day and didn't, so this is kept for the reviewers of the case. The
    # Decree has the police notified of a risk of breach at once; nobody is sent on it alone, without a sign.
    Detection.IN_REACH: AlertType(AlertKind.UNKNOWN_NEAR, Demand.RECORD),
    Detection.LIKELY_IN_REACH: AlertType(AlertKind.UNKNOWN_NEAR, Demand.NOTIFY),
    # Most tags that fall silent near a target report again within seconds or minutes. The desks check first, and a unit is sent when
    # the wearer can be there.
    Detection.UNSEEN_NEAR: AlertType(AlertKind.UNKNOWN_NEAR, Demand.NOTIFY),
    Detection.ARRIVED_UNSEEN: AlertType(AlertKind.UNKNOWN_NEAR, Demand.RESPOND),
    Detection.IN_REACH_AFTER_A_SIGN: AlertType(AlertKind.UNKNOWN_NEAR, Demand.RESPOND),
    Detection.POSITION_REGAINED: AlertType(AlertKind.UNKNOWN_NEAR, Demand.RECORD),
    Detection.PRESENT_AT_UNIT: AlertType(AlertKind.UNKNOWN_NEAR, Demand.RECORD),
    # Positions indoors are often wrong, too. Nothing rests on the presence, since it isn't believed.
    Detection.PRESENCE_CONTRADICTED: AlertType(AlertKind.IMPLAUSIBLE, Demand.RECORD),
    Detection.PERSON_LOST: AlertType(AlertKind.PROTECTED_DEVICE_LOST, Demand.NOTIFY),
    Detection.PERSON_FOUND: AlertType(AlertKind.PROTECTED_DEVICE_LOST, Demand.RECORD),
    # A unit sent only at 100 m arrives five minutes too late.
    Detection.CLOSING_IN: AlertType(AlertKind.CONTACT_PREDICTED, Demand.RESPOND),
    # One call for all silent wearers: a desk with ten thousand notices of silence reads none.
    Detection.OUTAGE: AlertType(AlertKind.OUTAGE, Demand.NOTIFY),
    Detection.OUTAGE_OVER: AlertType(AlertKind.OUTAGE, Demand.RECORD),
    Detection.DISTANCE_CHANGED: AlertType(AlertKind.DISTANCE_CHANGED, Demand.WARN),
    # Streets between high houses cause jumps in every receiver, and so does spoofing. The reviewers of the case have to know.
    Detection.JUMPED: AlertType(AlertKind.IMPLAUSIBLE, Demand.RECORD),
    # The jump may be true: the desks check before the next position confirms it.
    Detection.JUMPED_NEAR: AlertType(AlertKind.IMPLAUSIBLE, Demand.NOTIFY),
    # Nobody is sent on a mere possibility. The desks check, even if they know of a wider ring: 1 km isn't 100 m.
    Detection.POSSIBLY_INSIDE: AlertType(AlertKind.UNKNOWN_NEAR, Demand.NOTIFY),
    Detection.POSSIBLY_INSIDE_RECORDED: AlertType(AlertKind.UNKNOWN_NEAR, Demand.RECORD),
    # The device is heard, so no alert of silence covers this, and nobody knows where the wearer is.
    Detection.UNDATED: AlertType(AlertKind.IMPLAUSIBLE, Demand.NOTIFY),
    # Some receivers pin their position at a standstill. A copy of an earlier track is no accident.
    Detection.FROZEN: AlertType(AlertKind.IMPLAUSIBLE, Demand.RECORD),
    Detection.COPIED: AlertType(AlertKind.IMPLAUSIBLE, Demand.NOTIFY),
    # Units under way go on. Both desks have to know why nothing clears: the tag must be queried and inspected.
    Detection.LEFT_BY_JUMP: AlertType(AlertKind.SPOOFING_SUSPECTED, Demand.NOTIFY),
    Detection.LEFT_BY_JUMP_REPEATED: AlertType(AlertKind.SPOOFING_SUSPECTED, Demand.RECORD),
    Detection.WAY_FOUND: AlertType(AlertKind.SPOOFING_SUSPECTED, Demand.RECORD),
    # A breach of hours ago sends nobody, but people have to know of it: the case is reviewed, and she is asked how she is.
    Detection.WAS_INSIDE: AlertType(AlertKind.LATE_EVIDENCE, Demand.NOTIFY),
    # Tag Act 31-6(4) item 1: the police are notified at once, and look into it (31-6(5)).
    Detection.NOT_FITTED: AlertType(AlertKind.NOT_FITTED, Demand.NOTIFY),
    Detection.FITTING_SETTLED: AlertType(AlertKind.NOT_FITTED, Demand.RECORD),
    # No article foresees it: somebody who must wear a tag doesn't, by the records alone, and nobody would know.
    Detection.TAG_LAPSED: AlertType(AlertKind.TAG_LAPSED, Demand.NOTIFY),
    Detection.LAPSE_SETTLED: AlertType(AlertKind.TAG_LAPSED, Demand.RECORD),
    # Decree 23-14(1) item 2: the police are notified of each removal, but only under an order of item 3-2. Probation allowed it.
    Detection.REMOVAL_BEGUN: AlertType(AlertKind.TAG_REMOVAL, Demand.RECORD),
    Detection.REMOVAL_BEGUN_UNDER_AN_ORDER: AlertType(AlertKind.TAG_REMOVAL, Demand.NOTIFY),
    Detection.STRAP_OPENED_BY_PERMISSION: AlertType(AlertKind.TAG_REMOVED, Demand.RECORD),
    Detection.STRAP_CLOSED_BY_PERMISSION: AlertType(AlertKind.TAG_REFITTED, Demand.RECORD),
}
EVASION_SIGNS = frozenset((EquipmentKind.STRAP_OPEN, EquipmentKind.CASE_OPEN, EquipmentKind.JAMMING_SUSPECTED))
"""Events of a tag after which its silence is no accident. A SHUTDOWN is one, too, unless the battery was low."""
EXPLAINS_SILENCE = frozenset((EquipmentKind.SHUTDOWN, EquipmentKind.DEVICE_REFUSED))
"""Events of a protective device that explain its silence."""

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
"""Events that a tag can report."""
OF_PERSONS = frozenset(EquipmentKind) - _TAG_ALONE
"""Events that a protective device can report."""

ENDS: dict[EquipmentKind, EquipmentKind] = {
    EquipmentKind.STRAP_CLOSED: EquipmentKind.STRAP_OPEN,
    EquipmentKind.CASE_CLOSED: EquipmentKind.CASE_OPEN,
    EquipmentKind.PANIC_CANCELLED: EquipmentKind.PANIC_BUTTON,
    EquipmentKind.JAMMING_OVER: EquipmentKind.JAMMING_SUSPECTED,
    EquipmentKind.STARTED: EquipmentKind.SHUTDOWN,
    EquipmentKind.DEVICE_ACCEPTED: EquipmentKind.DEVICE_REFUSED,
}
"""Each ending event, with the event that it ends."""
ANNOUNCEMENT_ENDS: dict[EquipmentKind, EquipmentKind] = {
    EquipmentKind.BATTERY_RECOVERED: EquipmentKind.BATTERY_LOW,
    EquipmentKind.CHARGER_CONNECTED: EquipmentKind.BATTERY_LOW,
    EquipmentKind.BACK_IN_COVERAGE: EquipmentKind.OUT_OF_COVERAGE,
}
"""Each event that ends an announcement, with the announcement."""
ANNOUNCEMENTS = (EquipmentKind.BATTERY_LOW, EquipmentKind.OUT_OF_COVERAGE)
"""Events by which a device announces that it may fall silent. They stay active (`State.active_events`) until they are ended; no alert
follows from that."""
ACTIVE_UNTIL_ENDED = frozenset(ENDS.values())
"""Events that stay active until they are ended: an order that comes later is notified of them."""
HOLDS_INCIDENT = frozenset(event for event in ACTIVE_UNTIL_ENDED if EQUIPMENT[event].demand is Demand.RESPOND)
"""Events that hold the incident open while they are active. A mere notice doesn't: a device may be off or refused for months. In an
incident that stays open, a desk with an accepted assignment gets a new demand only after a threat ended and came back."""

_OF_DEVICES = frozenset(
    (AlertKind.JAMMED, AlertKind.DEVICE_OFF, AlertKind.PROTECTED_DEVICE_LOST, AlertKind.IMPLAUSIBLE)
)
"""Alerts about a faulty device: the desks weigh them, and no message frightens a protected person."""
_OF_SILENCE = frozenset((AlertKind.SILENT, AlertKind.HEARD_AGAIN))
"""Alerts about a silent wearer go to probation alone. If the silence endangers somebody, UNKNOWN_NEAR informs the police."""
_OF_WEARING = frozenset(
    (
        AlertKind.NOT_FITTED,
        AlertKind.TAG_LAPSED,
        AlertKind.TAG_REMOVAL,
        AlertKind.TAG_REMOVED,
        AlertKind.TAG_REFITTED,
    )
)
"""Alerts about the duty to wear a tag, which say nothing of an approach. The police get them only under an order of item 3-2, and go
to the respondent (Tag Act 31-6(5))."""


class Act(enum.Enum):
    """Acts of a wearer of which the Ministry notifies somebody, by the items of Tag Act 31-6(4)."""

    NOT_FITTED = "NOT_FITTED"
    """No tag by the court's time, or a refusal, without good cause (item 1). The order itself is the ground, as no tag is worn."""
    BREACH = "BREACH"
    """A breach of the order, or a marked risk of one (item 2)."""
    TAMPERING = "TAMPERING"
    """The tag was opened or damaged (item 3)."""
    NEAR_PLACE = "NEAR_PLACE"
    """Within 1 km of a protected place (item 4 with Decree 23-14(1)1). Under a judgment it is a marked risk of a breach."""
    REMOVAL = "REMOVAL"
    """An authorised removal of the tag begins (item 4 with Decree 23-14(1)2)."""


NEAR_PLACE_MM = 1_000_000
"""Distance from a protected place within which the Decree (23-14(1)) has the police notified, mm."""
ACTS: dict[AlertType, Act] = {
    AlertType(AlertKind.RING_ENTERED, Demand.RESPOND): Act.BREACH,
    # Of a place it is NEAR_PLACE (`act_of`).
    AlertType(AlertKind.RING_ENTERED, Demand.NOTIFY): Act.BREACH,
    AlertType(AlertKind.CONTACT_PREDICTED, Demand.RESPOND): Act.BREACH,
    # A mere possibility (NOTIFY) is no marked risk: the desks inquire first.
    AlertType(AlertKind.UNKNOWN_NEAR, Demand.RESPOND): Act.BREACH,
    # Suspected jamming and a device that is off have mostly harmless causes: the desks inquire first.
    AlertType(AlertKind.TAMPERED, Demand.RESPOND): Act.TAMPERING,
    AlertType(AlertKind.NOT_FITTED, Demand.NOTIFY): Act.NOT_FITTED,
    AlertType(AlertKind.TAG_REMOVAL, Demand.NOTIFY): Act.REMOVAL,
}
"""The act that an alert states. Any other alert states none, so it makes no notice of the Ministry and no check."""
OF_DUTY = frozenset((Act.NOT_FITTED, Act.REMOVAL))
"""Acts against the duty to wear a tag under an order of item 3-2, or within it. The order is their ground, whatever tag is worn."""
NOTIFIES_PERSONS: dict[NoticeGround, frozenset[Act]] = {
    NoticeGround.JUDGMENT: frozenset((Act.BREACH, Act.NEAR_PLACE)),
    # The proviso of 31-6(4) names item 2 alone.
    NoticeGround.STALKING_ORDER: frozenset((Act.BREACH,)),
}
"""Acts of which the protected persons are notified, by the ground of the notice."""
CHECKED_BY: dict[NoticeGround, Leg | None] = {
    # Decree 13-2(2): the probation office, at once, such as by going to where the wearer is.
    NoticeGround.JUDGMENT: Leg.PROBATION,
    # 31-6(5) has the police look into any notice, also of an act that she isn't notified of: `Case.police_must_check`.
    NoticeGround.STALKING_ORDER: None,
}
"""Leg that must look into an act because the protected persons are notified of it; None if another rule says who does."""


def act_of(kind: AlertKind, demand: Demand, *, target: Target | None, ring: Ring | None) -> Act | None:
    """The act that an alert states; None if the Ministry notifies nobody of it."""
    act = ACTS.get(AlertType(kind, demand))
    if kind is AlertKind.RING_ENTERED and demand is Demand.NOTIFY and target is not None and not target.is_person:
        return Act.NEAR_PLACE if ring is not None and ring.radius_mm <= NEAR_PLACE_MM else None
    return act


def checks(case: Case, act: Act, notifies_persons: bool) -> tuple[Leg, ...]:
    """Legs that must look into an act at once, with the wearer as their destination."""
    by = CHECKED_BY[case.notice_ground] if case.notice_ground and notifies_persons else None
    by_police = case.police_must_check or (act in OF_DUTY and case.tag_duty is not None)
    return tuple(leg for leg in (by, Leg.POLICE if by_police else None) if leg)


MUTED_DEMAND = Demand.WARN
"""The most that entering a ring demands during an authorised encounter: nobody is sent, but the warning is never muted."""


def _subject(case: Case, target: Target) -> str:
    """Destination id of a target: a person's id, or `order/place`.

    Agencies number places within an order, and ids hold no slash.
    """
    return target.target_id if target.is_person else f"{case.order_id}/{target.target_id}"


def destinations(case: Case, kind: AlertKind, demand: Demand, *, target: Target | None) -> tuple[tuple[Leg, str], ...]:
    """Destinations of an alert: probation for the wearer, police for threatened targets, a warning for each threatened person.

    Without a target, as when a tag is cut, all targets of the order are threatened. Nobody is warned about a faulty device, and
    probation learns nothing about protective devices. Nobody is warned of a mere possibility either.
    """
    persons = [other.target_id for other in case.targets if other.is_person]
    threatened = [_subject(case, target)] if target else persons or [_subject(case, other) for other in case.targets]
    warned = [target.target_id] if target and target.is_person else persons
    probation = ((Leg.PROBATION, case.wearer_id),)
    police = tuple((Leg.POLICE, subject_id) for subject_id in threatened)
    if kind is AlertKind.DISTANCE_CHANGED:
        # Only the warning leg gets this alert: the frequency of these alerts would show the other legs how far away the wearer is.
        return tuple((Leg.WARNING, person_id) for person_id in warned)
    if kind in _OF_SILENCE:
        return probation
    if kind in _OF_WEARING:
        return probation + (((Leg.POLICE, case.wearer_id),) if case.tag_duty else ())
    if kind in (AlertKind.ACCOUNT_AMENDED, AlertKind.LATE_EVIDENCE):
        # Only the desks learn of it; nobody is warned of a past event.
        return probation + police
    if kind in _OF_DEVICES:
        return police if target else probation + police
    if kind is AlertKind.SPOOFING_SUSPECTED or (kind is AlertKind.UNKNOWN_NEAR and demand is not Demand.RESPOND):
        return probation + police
    if kind is AlertKind.PANIC:
        # She knows that she called. A message would show somebody else what she did.
        return probation + police
    return (*probation, *police, *((Leg.WARNING, person_id) for person_id in warned))
