"""What the decision says about a first contact with the wearer."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class ContactPlan(enum.Enum):
    """Ways of a first contact."""

    TAG = "TAG"
    """The tag shows the message; if that doesn't help, an officer calls."""
    CALL = "CALL"
    """No tag of the wearer was heard lately: an officer calls at once."""
    TAG_ALONE = "TAG_ALONE"
    """The tag shows the message, and nobody calls: away from named places, a call would say that a protected person is near."""
    OUT_OF_BUDGET = "OUT_OF_BUDGET"
    """The order's budget of contacts is used up."""
    WITHHELD = "WITHHELD"
    """The rule doesn't allow a contact here and now."""
    TURNED_BACK = "TURNED_BACK"
    """The wearer left the ring after the contact, and entered no ring that demands a response meanwhile."""


class ContactWithheld(enum.Enum):
    """Why a contact is withheld."""

    JUST_CONTACTED = "JUST_CONTACTED"
    """The wearer was contacted within the last 10 minutes, or is near a named place, whose own ring decides."""
    KNOWN_STAY = "KNOWN_STAY"
    """The wearer has lately stayed within that ring for hours, so that each way home would be a contact."""
    PAST = "PAST"
    """The alert is of a time that is over."""
    NOT_MOVING = "NOT_MOVING"
    """Away from named places, a wearer who doesn't move isn't contacted: somebody else came near."""
    NIGHT = "NIGHT"
    """Away from named places, contacts are made by day only, as those without a cause are."""
    PLACE_AND_HOUR = "PLACE_AND_HOUR"
    """The answer that was drawn for this place and hour is no, and stays so."""
    SLOT = "SLOT"
    """These days only a contact without a cause is made, by a draw."""
    INFERENCE = "INFERENCE"
    """From all contacts so far and this one the wearer could infer her position too closely."""


@dataclass(frozen=True, slots=True)
class FirstContact:
    """What the decision says about the first contact, on the alert of a ring."""

    contact_id: str
    """Id of the contact, and of the command to the tag if there is one."""
    plan: ContactPlan
    withheld: ContactWithheld | None = None
    """WITHHELD: why; else None."""
    device_id: str = ""
    """Device that gets the message; empty if none does."""
