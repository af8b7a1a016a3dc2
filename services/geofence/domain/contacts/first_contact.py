"""First contact: whether the tag tells a wearer to turn round when the wearer enters a ring that demands NOTIFY.

Near a fixed place that the order names to the wearer, a contact tells nothing new: it follows from the wearer's own track and that
place. Elsewhere each contact says that a protected person, or a place whose address is kept from the wearer, is near. So there a
contact is rare and never sure: at most one in each slot of 5 days; only where and when a draw that is kept allows it; only while the
wearer's best inference of her position stays above 500 m; and a slot without a contact gets one without a cause. All of this but the
ring itself is known to the wearer, so that a contact that is withheld says nothing either (ADR 69). The draws are hashes, because the
same log must give the same contacts.

A contact changes no other decision: the response falls due at the same instant as without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from services.common.ids import hash_id
from services.geofence.domain.alerts import ContactRequest
from services.geofence.domain.contacts import inference
from services.geofence.domain.contacts.kinds import ContactPlan, ContactWithheld, FirstContact
from services.geofence.domain.decisions import CaseContext
from services.geofence.domain.detectors import distances
from services.geofence.domain.detectors.detector import Detector
from services.geofence.domain.entries import Case, Demand, Ring, Target
from services.geofence.domain.kinematics.encounters import DAY_MS, KOREA_MS
from services.geofence.domain.kinematics.geometry import Vector
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS
from services.geofence.domain.state import CasePart, CaseState, State
from services.geofence.domain.version import VERSION

FIRST_VERSION = 14
"""No contacts before the log demands this version: an older log was decided without them."""
TTL_MS = 120_000
"""Time in which a tag may get the message. A tag that reports each minute has two chances."""
JUST_MS = 600_000
"""Least time between two contacts of a wearer, under whatever orders."""
MAX_NAMED_A_DAY = 6
"""Budget of an order near named places: contacts in 24 hours. The seventh message of a day moves nobody."""
SLOT_MS = 5 * DAY_MS
"""Elsewhere, each slot of this length has one contact, with a cause or without."""
MAX_ELSEWHERE = 36
"""Budget of an order elsewhere, without a renewal: contacts of half a year."""
CAUSED_ONE_IN = 6
"""Elsewhere, one slot in so many may have a contact with a cause. In the others only one without a cause is made."""
ALLOWED_ONE_IN = 2
"""Elsewhere, one in so many pairs of a place and an hour allows contacts."""
PLACE_MM = 500_000
"""Size of a place in the draw by place and hour, mm."""
MIN_ERROR_MM = 500_000
"""The wearer's best inference of her position must stay vaguer than this, mm."""
MIN_MPS = 0.7
"""Least speed of a wearer who moves, m/s: slow walking."""
DAY_HOURS = range(8, 22)
"""Hours of the day in Korea in which contacts are made elsewhere."""
RETRY_MS = 600_000
"""Interval at which a contact without a cause is tried until the wearer is on the way."""


@dataclass(slots=True)
class ContactMemory:
    """The contacts of an order."""

    named_ms: list[int] = field(default_factory=list)
    """When the wearer was contacted near named places, at most MAX_NAMED_A_DAY times, mesh time."""
    elsewhere: list[tuple[int, Vector]] = field(default_factory=list)
    """When and where the wearer was contacted elsewhere, with a cause or without, mesh time and mm."""
    next_uncaused_ms: int | None = None
    """When a contact without a cause is tried next, mesh time; None if that isn't planned yet."""


@dataclass(slots=True)
class OpenContact:
    """A contact of the present episode, until its ring is cleared."""

    contact_id: str
    ring_mm: int


def _to_json(memory: ContactMemory) -> list[Any]:
    return [memory.named_ms, memory.elsewhere, memory.next_uncaused_ms]


def _of_json(content: list[Any]) -> ContactMemory:
    named_ms, elsewhere, next_uncaused_ms = content
    places = [(at_ms, (x_mm, y_mm, z_mm)) for at_ms, (x_mm, y_mm, z_mm) in elsewhere]
    return ContactMemory(named_ms, places, next_uncaused_ms)


CONTACTS = CasePart("contacts", new=ContactMemory, encode=_to_json, decode=_of_json, outlives_episode=True)
OPEN: CasePart[dict[str, OpenContact]] = CasePart(
    "open_contacts",
    new=dict,
    encode=lambda contacts: {key: [contact.contact_id, contact.ring_mm] for key, contact in contacts.items()},
    decode=lambda content: {key: OpenContact(id_, ring_mm) for key, (id_, ring_mm) in content.items()},
)
"""Open contacts by the key of the target whose ring was entered."""


# ── rings ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def of_entry(context: CaseContext, target: Target, ring: Ring, *, demand: Demand, is_past: bool) -> FirstContact | None:
    """What the decision says about a contact when a ring is entered; None if it says nothing. `is_past`: newer reports are known.

    Orders the message of the tag, if there is one. Call this for each entered ring, once its demand is known.
    """
    if ring.responds and demand is Demand.RESPOND:
        OPEN.of(context.case_state).pop(target.key, None)  # the wearer didn't turn back
    if demand is not Demand.NOTIFY or not _is_used(context.state, context.case):
        return None
    tag_id = _heard_tag(context.state, context.case)
    plan = _plan(context, target, ring, tag_id=tag_id, is_past=is_past)
    if isinstance(plan, ContactWithheld):
        return FirstContact(_new_id(context), ContactPlan.WITHHELD, plan)
    device_id = tag_id if plan in (ContactPlan.TAG, ContactPlan.TAG_ALONE) else ""
    contact = FirstContact(_new_id(context), plan, device_id=device_id)
    if plan is not ContactPlan.OUT_OF_BUDGET:
        _note(context, target, ring, contact)
    if device_id:
        _order_message(context, contact.contact_id, device_id)
    return contact


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
            fold_version=VERSION,
        )
    )


def of_departure(context: CaseContext, target: Target, ring: Ring) -> FirstContact | None:
    """What the decision says about a contact when the wearer has left a ring: turned back, if the ring is the contact's."""
    contacts = OPEN.of(context.case_state)
    contact = contacts.get(target.key)
    if contact is None or contact.ring_mm != ring.radius_mm:
        return None
    del contacts[target.key]
    return FirstContact(contact.contact_id, ContactPlan.TURNED_BACK)


def _plan(
    context: CaseContext, target: Target, ring: Ring, *, tag_id: str, is_past: bool
) -> ContactPlan | ContactWithheld:
    state, case = context.state, context.case
    if is_past:
        return ContactWithheld.PAST
    if state.now_ms < _last_ms(state, case) + JUST_MS:
        return ContactWithheld.JUST_CONTACTED
    memory = CONTACTS.of(context.case_state)
    if target.is_named:
        if distances.is_within_stay(context, target, ring):
            return ContactWithheld.KNOWN_STAY
        memory.named_ms = [at_ms for at_ms in memory.named_ms if at_ms > state.now_ms - DAY_MS]
        if len(memory.named_ms) >= MAX_NAMED_A_DAY:
            return ContactPlan.OUT_OF_BUDGET
        return ContactPlan.TAG if tag_id else ContactPlan.CALL
    return _plan_elsewhere(state, case, memory, tag_id=tag_id, radius_mm=ring.radius_mm)


def _plan_elsewhere(
    state: State, case: Case, memory: ContactMemory, *, tag_id: str, radius_mm: int
) -> ContactPlan | ContactWithheld:
    """The plan of a contact that no named place explains. It is withheld by draws and by what the wearer can know as well."""
    if tag_id and _is_near_named(case, state.tracks[tag_id].recent[-1].point, radius_mm):
        return ContactWithheld.JUST_CONTACTED
    here = _moving_at(state, tag_id)
    if here is None:
        return ContactWithheld.NOT_MOVING
    if withheld := _secrecy(state, case, memory, here=here, radius_mm=radius_mm):
        return withheld
    begin_ms = _slot_begin_ms(state, case, state.now_ms)
    if _last_elsewhere_ms(memory) >= begin_ms or len(memory.elsewhere) >= MAX_ELSEWHERE:
        return ContactPlan.OUT_OF_BUDGET
    is_begun = memory.next_uncaused_ms is not None and memory.next_uncaused_ms < begin_ms + SLOT_MS
    if not is_begun or _draw(state, case, "caused", begin_ms) % CAUSED_ONE_IN:
        return ContactWithheld.SLOT
    return ContactPlan.TAG_ALONE


def _secrecy(
    state: State, case: Case, memory: ContactMemory, *, here: Vector, radius_mm: int
) -> ContactWithheld | None:
    """Why a contact elsewhere, with a cause or without, would tell too much; None if it wouldn't."""
    hour = (state.now_ms + KOREA_MS) % DAY_MS // 3_600_000
    if hour not in DAY_HOURS:
        return ContactWithheld.NIGHT
    place = [int(axis_mm // PLACE_MM) for axis_mm in here]
    if _draw(state, case, "place", *place, hour) % ALLOWED_ONE_IN:
        return ContactWithheld.PLACE_AND_HOUR
    earlier = [there for _, there in memory.elsewhere]
    if inference.expected_error_mm(here, radius_mm, earlier) <= MIN_ERROR_MM:
        return ContactWithheld.INFERENCE
    return None


def _note(context: CaseContext, target: Target, ring: Ring, contact: FirstContact) -> None:
    state, memory = context.state, CONTACTS.of(context.case_state)
    OPEN.of(context.case_state)[target.key] = OpenContact(contact.contact_id, ring.radius_mm)
    if contact.plan is ContactPlan.TAG_ALONE:
        memory.elsewhere.append((state.now_ms, state.tracks[contact.device_id].recent[-1].point))
    else:
        memory.named_ms.append(state.now_ms)


# ── without a cause ──────────────────────────────────────────────────────────────────────────────────────────────────


def try_uncaused(context: CaseContext, at_ms: int) -> Iterable[int]:
    """Contacts the wearer without a cause if that is due, so that a contact elsewhere is never sure. Returns the next moment."""
    state, case_state = context.state, context.case_state
    case = case_state.case
    if not case.contacts_elsewhere or not case.is_live or state.log_version < FIRST_VERSION:
        return ()
    memory = CONTACTS.of(case_state)
    if len(memory.elsewhere) >= MAX_ELSEWHERE:
        return ()
    if memory.next_uncaused_ms is not None and at_ms < memory.next_uncaused_ms:
        return (memory.next_uncaused_ms,)
    begin_ms = _slot_begin_ms(state, case, at_ms)
    # Only at the planned moment: other checks of the case come when something is about her.
    is_used = _last_elsewhere_ms(memory) >= begin_ms
    if not is_used and memory.next_uncaused_ms == at_ms and state.now_ms - at_ms < TTL_MS:
        is_used = _contact_uncaused(context, memory)
    next_ms = max(_planned_ms(state, case, begin_ms), at_ms + RETRY_MS)
    # An order that begins within a slot has no contact in what is left of it, so that not all new orders have one at once.
    if is_used or memory.next_uncaused_ms is None or next_ms >= begin_ms + SLOT_MS:
        next_ms = _planned_ms(state, case, begin_ms + SLOT_MS)
    memory.next_uncaused_ms = next_ms
    return (next_ms,)


def _contact_uncaused(context: CaseContext, memory: ContactMemory) -> bool:
    """Contacts a wearer who is on the way outside all rings of NOTIFY around named places. Returns whether the tag gets a message."""
    state, case = context.state, context.case
    tag_id = _heard_tag(state, case)
    here = _moving_at(state, tag_id)
    radius_mm = max(ring.radius_mm for ring in case.rings if ring.action is Demand.NOTIFY)
    if here is None or state.now_ms < _last_ms(state, case) + JUST_MS:
        return False
    if _is_near_named(case, here, radius_mm):
        return False
    if _secrecy(state, case, memory, here=here, radius_mm=radius_mm):
        return False
    memory.elsewhere.append((state.now_ms, here))
    _order_message(context, _new_id(context), tag_id)
    return True


def _slot_begin_ms(state: State, case: Case, at_ms: int) -> int:
    """When the slot of an order began to which a moment belongs, mesh time. The slots of two orders begin at different times."""
    offset_ms = _draw(state, case, "slots") % SLOT_MS
    return at_ms - (at_ms - offset_ms) % SLOT_MS


def _planned_ms(state: State, case: Case, begin_ms: int) -> int:
    """When a contact without a cause is tried first in a slot, mesh time: any moment of it is as likely."""
    return begin_ms + _draw(state, case, "slot", begin_ms) % SLOT_MS


# ── by the state ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _is_used(state: State, case: Case) -> bool:
    """Whether contacts are decided for a case. No real tag stands behind an exercise."""
    if state.log_version < FIRST_VERSION or not case.is_live:
        return False
    return Demand.NOTIFY in [ring.action for ring in case.rings]


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


def _is_near_named(case: Case, here: Vector, radius_mm: int) -> bool:
    """Whether a place that the order names to the wearer is within a radius. Its own ring then decides on contacts."""
    return any(place.shape.distance_mm(here) <= radius_mm for place in case.targets if place.is_named)


def _moving_at(state: State, tag_id: str) -> Vector | None:
    """Where the wearer is, if the newest positions are fresh and show a movement; else None."""
    recent = state.tracks[tag_id].recent[-2:] if tag_id else []
    if len(recent) < 2 or state.now_ms - recent[1].time_ms >= UNKNOWN_AFTER_MS:
        return None
    took_ms = recent[1].time_ms - recent[0].time_ms
    if took_ms >= UNKNOWN_AFTER_MS:
        return None
    moved_mm = sum(abs(after - before) for after, before in zip(recent[1].point, recent[0].point, strict=True))
    vague_mm = recent[0].accuracy_mm + recent[1].accuracy_mm
    return recent[1].point if moved_mm > max(MIN_MPS * took_ms, vague_mm) else None


def _last_ms(state: State, case: Case) -> int:
    """When the wearer was last contacted, under whatever order, mesh time; 0 if that never happened."""
    return max((max(_times(case_state), default=0) for case_state in _cases_of_wearer(state, case)), default=0)


def _times(case_state: CaseState) -> list[int]:
    memory = CONTACTS.of(case_state)
    return [*memory.named_ms[-1:], *(at_ms for at_ms, _ in memory.elsewhere[-1:])]


def _cases_of_wearer(state: State, case: Case) -> Iterator[CaseState]:
    for case_id in {case_id: None for tag_id in case.tag_device_ids for case_id in state.cases_of.get(tag_id, ())}:
        yield state.cases[case_id]


def _last_elsewhere_ms(memory: ContactMemory) -> int:
    return memory.elsewhere[-1][0] if memory.elsewhere else 0


def _draw(state: State, case: Case, *what: str | int) -> int:
    """A number of 80 bits that nobody outside can foresee. Each evaluator draws the same, whenever it is drawn."""
    return int(hash_id("draw", state.log_id, case.case_id, "contact", *what).removeprefix("draw-"), 16)


DETECTOR = Detector(on_time=try_uncaused, parts=(CONTACTS, OPEN))
