"""First contact: whether the tag tells a wearer to turn round when the wearer enters a ring that demands NOTIFY round a named place.

Near a fixed place that the order names to the wearer, a contact tells nothing new: it follows from the wearer's own track and that
place. Elsewhere each contact would say that a protected person, or a place whose address is kept from the wearer, is near. So there is
none (ADR 69).

A contact changes no other decision: the response falls due at the same instant as without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.geofence.domain.alerts import ContactPlan, ContactRequest, ContactWithheld, FirstContact
from services.geofence.domain.decisions import CaseContext, Detector
from services.geofence.domain.detectors import distances
from services.geofence.domain.detectors.encounters import DAY_MS
from services.geofence.domain.entries import FOLD_VERSION, Case, Demand, Ring, Target
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS
from services.geofence.domain.state import CasePart, CaseState, State

TTL_MS = 120_000
"""Time in which a tag may get the message. A tag that reports each minute has two chances."""
JUST_MS = 600_000
"""Least time between two contacts of a wearer, under whatever orders."""
MAX_CONTACTS_A_DAY = 6
"""Budget of an order: contacts in 24 hours. The seventh message of a day moves nobody."""


@dataclass(slots=True)
class OpenContact:
    """A contact of the present episode, until its ring is cleared."""

    contact_id: str
    ring_mm: int


CONTACTS: CasePart[list[int]] = CasePart("contacts", new=list, encode=list, decode=list, outlives_episode=True)
"""When the wearer was contacted under an order, the last MAX_CONTACTS_A_DAY times at most, mesh time."""
OPEN: CasePart[dict[str, OpenContact]] = CasePart(
    "open_contacts",
    new=dict,
    encode=lambda contacts: {key: [contact.contact_id, contact.ring_mm] for key, contact in contacts.items()},
    decode=lambda content: {key: OpenContact(id_, ring_mm) for key, (id_, ring_mm) in content.items()},
)
"""Open contacts by the key of the target whose ring was entered."""


def of_entry(context: CaseContext, target: Target, ring: Ring, *, demand: Demand, is_past: bool) -> FirstContact | None:
    """What the decision says about a contact when a ring is entered; None if it says nothing. `is_past`: newer reports are known.

    Orders the message of the tag, if there is one. Call this for each entered ring, once its demand is known.
    """
    if ring.responds and demand is Demand.RESPOND:
        OPEN.of(context.case_state).pop(target.key, None)  # the wearer didn't turn back
    if demand is not Demand.NOTIFY or not target.is_named or not _is_used(context.case):
        return None
    tag_id = _heard_tag(context.state, context.case)
    plan = _plan(context, target, ring, tag_id=tag_id, is_past=is_past)
    if isinstance(plan, ContactWithheld):
        return FirstContact(_new_id(context), ContactPlan.WITHHELD, plan)
    contact = FirstContact(_new_id(context), plan, device_id=tag_id if plan is ContactPlan.TAG else "")
    if plan is not ContactPlan.OUT_OF_BUDGET:
        OPEN.of(context.case_state)[target.key] = OpenContact(contact.contact_id, ring.radius_mm)
        CONTACTS.of(context.case_state).append(context.state.now_ms)
    if contact.device_id:
        _order_message(context, contact.contact_id, contact.device_id)
    return contact


def of_departure(context: CaseContext, target: Target, ring: Ring) -> FirstContact | None:
    """What the decision says about a contact when the wearer has left a ring: turned back, if the ring is the contact's."""
    contacts = OPEN.of(context.case_state)
    contact = contacts.get(target.key)
    if contact is None or contact.ring_mm != ring.radius_mm:
        return None
    del contacts[target.key]
    return FirstContact(contact.contact_id, ContactPlan.TURNED_BACK)


def _is_used(case: Case) -> bool:
    """Whether contacts are decided for a case. No real tag stands behind an exercise."""
    return case.is_live and Demand.NOTIFY in [ring.action for ring in case.rings]


def _plan(
    context: CaseContext, target: Target, ring: Ring, *, tag_id: str, is_past: bool
) -> ContactPlan | ContactWithheld:
    state, case = context.state, context.case
    if is_past:
        return ContactWithheld.PAST
    if state.now_ms < _last_ms(state, case) + JUST_MS:
        return ContactWithheld.JUST_CONTACTED
    if distances.is_within_stay(context, target, ring):
        return ContactWithheld.KNOWN_STAY
    contacted_ms = CONTACTS.of(context.case_state)
    contacted_ms[:] = [at_ms for at_ms in contacted_ms if at_ms > state.now_ms - DAY_MS]
    if len(contacted_ms) >= MAX_CONTACTS_A_DAY:
        return ContactPlan.OUT_OF_BUDGET
    return ContactPlan.TAG if tag_id else ContactPlan.CALL


def _new_id(context: CaseContext) -> str:
    return context.decisions.new_id("contact", context.case.case_id)


def _order_message(context: CaseContext, contact_id: str, device_id: str) -> None:
    """Has a tag tell the wearer to turn round."""
    now_ms = context.state.now_ms
    context.decisions.put_request(
        ContactRequest(
            request_id=contact_id,
            sequence=context.decisions.sequence,
            ordinal=0,
            device_id=device_id,
            decided_at_ms=now_ms,
            until_ms=now_ms + TTL_MS,
            fold_version=FOLD_VERSION,
        )
    )


def _heard_tag(state: State, case: Case) -> str:
    """The wearer's tag that was heard within 3 minutes and has the newest position; empty if there is none."""
    heard = [
        (state.tracks[tag_id].recent[-1].time_ms, tag_id)
        for tag_id in case.tag_device_ids
        if state.now_ms - state.heard_at_ms.get(tag_id, 0) < UNKNOWN_AFTER_MS
        and tag_id in state.tracks
        and state.tracks[tag_id].recent
    ]
    return max(heard)[1] if heard else ""


def _last_ms(state: State, case: Case) -> int:
    """When the wearer was last contacted, under whatever order, mesh time; 0 if that never happened."""
    return max(
        (at_ms for case_state in _cases_of_wearer(state, case) for at_ms in CONTACTS.of(case_state)[-1:]), default=0
    )


def _cases_of_wearer(state: State, case: Case) -> Iterator[CaseState]:
    for case_id in {case_id: None for tag_id in case.tag_device_ids for case_id in state.cases_of.get(tag_id, ())}:
        yield state.cases[case_id]


DETECTOR = Detector(parts=(CONTACTS, OPEN))
