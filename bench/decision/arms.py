"""Arms of the decision-quality study: at which interval a tag reports, and how it obeys the fold's requests."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Delivery(enum.Enum):
    """How a command reaches the tag."""

    STREAM = "stream"
    """At once, by an open connection."""
    NEXT_CONTACT = "next contact"
    """With the answer to the tag's next report."""


class Arm(NamedTuple):
    """A tag of the study."""

    name: str
    every_ms: int
    """Interval of its reports; while it obeys a request, that of the request."""
    delivery: Delivery | None = None
    """How the fold's requests reach it; None if the tag can't be commanded."""


ARMS = {
    arm.name: arm
    for arm in (
        Arm("15 s", 15_000),
        Arm("60 s", 60_000),
        Arm("asked", 60_000, Delivery.STREAM),
        Arm("asked, next contact", 60_000, Delivery.NEXT_CONTACT),
    )
}
CONSTANT = frozenset(name for name, arm in ARMS.items() if arm.delivery is None)
"""Arms with a constant interval; the others are compared with them."""
BASE = "60 s"
"""The arm with which all others are compared."""
