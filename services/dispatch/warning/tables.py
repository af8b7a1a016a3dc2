"""The tables of the warning leg's own database, and their rows. A file of its own: nothing here waits for the leg's, or holds it up."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

metadata = sa.MetaData()


def _table(name: str, key: str, columns: str) -> sa.Table:
    names = [*key.split(), *columns.split()]
    return sa.Table(name, metadata, *(sa.Column(name, primary_key=name in key.split()) for name in names))


positions = _table("positions", "stream", "log_id sequence trail")
taken = _table("taken", "alert_id", "at_ms")
contacts = sa.Table(
    "contacts",
    metadata,
    sa.Column("case_id", primary_key=True),
    sa.Column("person_id", primary_key=True),
    sa.Column("version"),
    sa.Column("sealed"),
    sa.Column("device_ids", sa.JSON),
    sa.Column("valid_until_ms"),
)
told = sa.Table(
    "told",
    metadata,
    sa.Column("incident_id", primary_key=True),
    sa.Column("person_id", primary_key=True),
    sa.Column("state", sa.JSON),
    sa.Column("figure_alert_id"),
    sa.Column("flag"),
    sa.Column("flag_ms"),
    sa.Column("duress", sa.Boolean),
)
messages = sa.Table(
    "messages",
    metadata,
    sa.Column("message_id", primary_key=True),
    *(
        sa.Column(one)
        for one in ("incident_id", "person_id", "order_id", "partition", "alert_id", "sequence", "ordinal")
    ),
    *(sa.Column(one) for one in ("before_alert_id", "notice", "demand", "ring_m")),
    sa.Column("of_place", sa.Boolean),
    sa.Column("drill", sa.Boolean),
    *(sa.Column(one) for one in ("made_ms", "due_ms", "receipt_due_ms", "state", "language", "text")),
    *(sa.Column(one) for one in ("delivered_ms", "displayed_ms", "acknowledged_ms")),
)
sendings = _table("sendings", "message_id way", "command_id tries next_ms expires_ms outcome")
to_leg = sa.Table(
    "to_leg",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("message_id"),
    sa.Column("what"),
    sa.Column("since_ms"),
)

WAITING, SENDING, REPLACED, NO_WAY = "waiting", "sending", "replaced", "no way"
"""States of a message: not due yet or not opened; on its ways; a newer one took its place; nothing takes it."""
OPEN, HANDED_OVER, GIVEN_UP, OUTDATED = "", "handed over", "given up", "outdated"
"""Outcomes of a sending."""


@dataclass(frozen=True, slots=True)
class ContactRow:
    """How a person is reached by one case."""

    case_id: str
    person_id: str
    version: int
    sealed: bytes
    """As it stands in the log; empty where none is known."""
    device_ids: list[str]
    valid_until_ms: int
    """When the order ends, mesh time."""


@dataclass(frozen=True, slots=True)
class MessageRow:
    """A message to one person. It holds no way to reach them."""

    message_id: str
    incident_id: str
    """Empty where it is of no incident."""
    person_id: str
    order_id: str
    partition: int
    alert_id: str
    sequence: int
    ordinal: int
    before_alert_id: str
    """The alert that last told how far the wearer is from this person; empty where none did."""
    notice: str
    demand: int
    ring_m: float
    of_place: bool
    drill: bool
    made_ms: int
    due_ms: int
    receipt_due_ms: int | None
    """When the police are told unless a receipt came; None where none is awaited any more. Mesh time."""
    state: str
    language: str = ""
    text: str = ""
    """As it was shown; empty until it is opened."""
    delivered_ms: int | None = None
    displayed_ms: int | None = None
    acknowledged_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Sending:
    """A message on one of its ways."""

    message_id: str
    way: str
    """`gateway/NAME` or `device/ID`."""
    command_id: str
    """Of a device's command; empty for a gateway."""
    tries: int
    next_ms: int
    """When it is tried next, mesh time."""
    expires_ms: int
    """Of no use from then on, mesh time."""
    outcome: str


@dataclass(frozen=True, slots=True)
class Owed:
    """What the leg is to be told of a message: `receipt`, or the name of a flag."""

    id: int
    message_id: str
    what: str
    since_ms: int
