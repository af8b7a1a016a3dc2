"""What an alert says about the first contact with the wearer, in words."""

from __future__ import annotations

from tandem.common.v1 import first_contact_pb2

_PLANS = {
    first_contact_pb2.CONTACT_PLAN_TAG: "the tag tells the wearer to turn round; if that doesn't help, an officer calls",
    first_contact_pb2.CONTACT_PLAN_CALL: "an officer calls the wearer, as no tag was heard within 3 minutes",
    first_contact_pb2.CONTACT_PLAN_TAG_ALONE: "the tag tells the wearer to turn round, and nobody calls: no named place is near",
    first_contact_pb2.CONTACT_PLAN_OUT_OF_BUDGET: "nobody contacts the wearer, as the order's budget is used up",
    first_contact_pb2.CONTACT_PLAN_TURNED_BACK: "the wearer turned back",
}
_WITHHELD = {
    first_contact_pb2.CONTACT_WITHHELD_JUST_CONTACTED: "the wearer was contacted within 10 minutes, or a named place is near "
    "and its own ring decides",
    first_contact_pb2.CONTACT_WITHHELD_KNOWN_STAY: "the wearer has lately stayed within the ring for hours",
    first_contact_pb2.CONTACT_WITHHELD_PAST: "it is of a time that is over",
    first_contact_pb2.CONTACT_WITHHELD_NOT_MOVING: "the wearer doesn't move",
    first_contact_pb2.CONTACT_WITHHELD_NIGHT: "it is night",
    first_contact_pb2.CONTACT_WITHHELD_PLACE_AND_HOUR: "the answer that was drawn for this place and hour is no",
    first_contact_pb2.CONTACT_WITHHELD_SLOT: "these days only a contact without a cause is made, by a draw",
    first_contact_pb2.CONTACT_WITHHELD_INFERENCE: "the wearer could infer the protected person's position to 500 m",
}


def in_words(contact: first_contact_pb2.FirstContact) -> str:
    """A sentence about a contact; the name of the plan if this version doesn't know it."""
    if contact.plan == first_contact_pb2.CONTACT_PLAN_WITHHELD:
        return f"withheld: {_WITHHELD.get(contact.withheld, 'for a reason that this version does not know')}"
    return _PLANS.get(contact.plan, f"plan {int(contact.plan)}")
