"""Tables and rows of the warning database.

The warning database is a separate file from the leg's database, so that warnings and assignments never wait for each other's
transactions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from services.dispatch.domain.enums import WarningFlag
from services.dispatch.domain.events import LogPosition
from services.dispatch.warning.domain import ChannelId, MessageKind, ReceiptKind

metadata = sa.MetaData()


def _table(name: str, key: str, columns: str) -> sa.Table:
    names = [*key.split(), *columns.split()]
    return sa.Table(name, metadata, *(sa.Column(name, primary_key=name in key.split()) for name in names))


positions = _table("positions", "stream", "log_id sequence trail")
accepted_alerts = _table("taken", "alert_id", "at_ms")
contacts = sa.Table(
    "contacts",
    metadata,
    sa.Column("case_id", primary_key=True),
    sa.Column("person_id", primary_key=True),
    sa.Column("version"),
    sa.Column("sealed"),
    sa.Column("device_ids", sa.JSON),
    *(sa.Column(name) for name in ("valid_until_ms", "order_id", "valid_from_ms")),
)
contact_devices = _table("contact_devices", "device_id case_id person_id", "")
notified_persons = sa.Table(
    "told",
    metadata,
    sa.Column("incident_id", primary_key=True),
    sa.Column("person_id", primary_key=True),
    sa.Column("state", sa.JSON),
    sa.Column("is_open", sa.Boolean),
    sa.Column("is_silent", sa.Boolean),
    sa.Column("drill", sa.Boolean),
    *(sa.Column(name) for name in ("over_ms", "flag", "flag_ms")),
    sa.Column("duress", sa.Boolean),
)
advice = _table("advice", "incident_id subject_id", "advice advice_id number sequence ordinal at_ms")
closings = sa.Table(
    "closings",
    metadata,
    sa.Column("incident_id", primary_key=True),
    sa.Column("subject_id", primary_key=True),
    sa.Column("closed_ms"),
    sa.Column("found_nobody", sa.Boolean),
)
"""The police's last closing of each assignment to a protected person or place."""
messages = sa.Table(
    "messages",
    metadata,
    sa.Column("message_id", primary_key=True),
    *(
        sa.Column(name)
        for name in ("incident_id", "person_id", "order_id", "partition", "alert_id", "sequence", "ordinal")
    ),
    sa.Column("kind"),
    sa.Column("drill", sa.Boolean),
    *(sa.Column(name) for name in ("made_ms", "due_ms", "state", "instruction")),
    sa.Column("in_app_only", sa.Boolean),
    *(sa.Column(name) for name in ("receipt_due_ms", "issued_ms", "past_ms")),
    *(sa.Column(name) for name in ("language", "text", "who_text", "where_text", "act_text")),
    *(sa.Column(name) for name in ("repetitions", "repeated_ms", "repeat_ms")),
    *(sa.Column(name) for name in ("delivered_ms", "displayed_ms", "acknowledged_ms")),
    *(sa.Column(name) for name in ("ground", "wearer_id", "case_id")),
)
covered_alerts = sa.Table(
    "covered_alerts",
    metadata,
    sa.Column("message_id", primary_key=True),
    sa.Column("incident_id", primary_key=True),
    *(sa.Column(name) for name in ("alert_id", "sequence", "ordinal", "order_id")),
    sa.Column("acknowledged", sa.Boolean),
)
"""The newest alert of each incident of which a message informs. A receipt of the message acknowledges it in the leg."""
ministry_notices = _table(
    "ministry_notices",
    "incident_id person_id",
    "ground wearer_id case_id due_sequence due_ordinal ended_sequence ended_ordinal",
)
sendings = _table("sendings", "message_id way repetition", "command_id tries next_ms expires_ms outcome")
to_leg = sa.Table(
    "to_leg",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    *(sa.Column(name) for name in ("message_id", "incident_id", "person_id", "order_id", "alert_id")),
    *(sa.Column(name) for name in ("sequence", "ordinal", "what", "since_ms")),
)

WAITING = "waiting"
SENDING = "sending"
REPLACED = "replaced"
NO_WAY = "no way"
REFUSED = "refused"
"""States of a message: not due or not yet worded; told; replaced by a newer message before it was told; told without any channel; a
notice of the Ministry that may not be given."""
_RECEIPT = "receipt"
OPEN = ""
HANDED_OVER = "handed over"
GIVEN_UP = "given up"
OUTDATED = "outdated"
IN_APP = "in app"
"""Outcomes of a sending: open, accepted by the channel, expired after failed attempts, replaced by a newer message or repetition, or
not sent because only an app that is open may show it."""


@dataclass(frozen=True, slots=True)
class ContactRow:
    """Contact of a person in one case. A person in several cases has several rows."""

    case_id: str
    person_id: str
    version: int
    sealed: bytes
    """Sealed contact, copied from the log; empty if the case has none."""
    device_ids: list[str]
    valid_until_ms: int | None
    """End of the order, milliseconds of mesh time; None if it is valid until the court decides."""
    order_id: str = ""
    valid_from_ms: int = 0
    """Beginning of the order, milliseconds of mesh time."""


@dataclass(frozen=True, slots=True)
class MessageRow:
    """A message to one person. The row contains nothing by which the person can be reached."""

    message_id: str
    incident_id: str
    """Incident of the message; empty if it belongs to none."""
    person_id: str
    order_id: str
    partition: int
    alert_id: str
    sequence: int
    ordinal: int
    kind: str
    drill: bool
    made_ms: int
    due_ms: int
    state: str
    instruction: str = ""
    """The instruction as JSON; empty for another kind of message."""
    in_app_only: bool = False
    """Whether nothing but an app that is open may show the message: the person has called for help in silence."""
    receipt_due_ms: int | None = None
    """Time at which the police are notified unless a receipt arrives, mesh time; None if no receipt is awaited."""
    issued_ms: int | None = None
    """When the message was worded and its sending began, mesh time; None while it waits."""
    past_ms: int | None = None
    """When another message took its place, mesh time; None while it waits or is the present one."""
    language: str = ""
    text: str = ""
    """Text as it is shown to the person; empty until the message is worded."""
    who_text: str = ""
    where_text: str = ""
    act_text: str = ""
    repetitions: int = 0
    repeated_ms: int | None = None
    """When it was last repeated, mesh time; None if it wasn't."""
    repeat_ms: int | None = None
    """When it is repeated next, mesh time; None if it isn't."""
    delivered_ms: int | None = None
    displayed_ms: int | None = None
    acknowledged_ms: int | None = None
    ground: str = ""
    """Code of the article of a notice of the Ministry; empty for the police's own warning."""
    wearer_id: str = ""
    """The wearer whom a notice of the Ministry is about; empty for any other message."""
    case_id: str = ""
    """The case under which a notice of the Ministry is given; empty for any other message."""

    @property
    def message_kind(self) -> MessageKind:
        """Kind of the message."""
        return MessageKind(self.kind)

    @property
    def receipt(self) -> ReceiptKind | None:
        """The receipt that says most; None if none has arrived."""
        kinds = {
            ReceiptKind.ACKNOWLEDGED: self.acknowledged_ms,
            ReceiptKind.DISPLAYED: self.displayed_ms,
            ReceiptKind.DELIVERED: self.delivered_ms,
        }
        return next((kind for kind, at_ms in kinds.items() if at_ms is not None), None)


class CoveredAlert(NamedTuple):
    """An alert of which a message informs."""

    incident_id: str
    alert_id: str
    place: LogPosition
    order_id: str


@dataclass(frozen=True, slots=True)
class Sending:
    """Delivery of a message, or of a repetition of it, over one channel."""

    message_id: str
    channel: ChannelId
    repetition: int
    """Number of repetitions of the message before this sending."""
    command_id: str
    """Id of the command to a device; empty for a gateway."""
    tries: int
    next_ms: int
    """Time of the next attempt, milliseconds of mesh time."""
    expires_ms: int
    """Time at which this sending gives way to the next one, or is given up, milliseconds of mesh time. The message itself lasts."""
    outcome: str


class DueSending(NamedTuple):
    """A sending to attempt, with its message."""

    sending: Sending
    message: MessageRow


@dataclass(frozen=True, slots=True)
class DueWork:
    """The messages and sendings that are due at a moment."""

    next_ms: int | None
    """Time at which the next message, repetition or sending is due, mesh time; None if there is none."""
    messages: Sequence[MessageRow] = ()
    """Waiting messages, at most 500, the police's own warnings first."""
    repeats: Sequence[MessageRow] = ()
    """Instructions to repeat, at most 500."""
    contacts: Mapping[str, Sequence[ContactRow]] = field(default_factory=dict)
    """Contacts of the messages' persons by person id, the newest case version first."""
    sendings: Sequence[DueSending] = ()


class TriedSending(NamedTuple):
    """An attempt to send a message over one channel, with its outcome."""

    sending: Sending
    outcome: str
    next_ms: int
    """Time of the next attempt, milliseconds of mesh time."""


@dataclass(frozen=True, slots=True)
class OpenedMessage:
    """A message with its text and its channels."""

    message: MessageRow
    sendings: Sequence[Sending]


@dataclass(frozen=True, slots=True)
class PendingLegUpdate:
    """A change that the leg hasn't recorded yet: a receipt of a message, or a flag."""

    id: int
    message_id: str
    person_id: str
    alert: CoveredAlert
    """The alert that the person knows of, or that the flag is about."""
    flag: WarningFlag | None
    """Flag of the person; None for a receipt."""
    since_ms: int

    @property
    def what(self) -> str:
        """Name of the change in the database and the log."""
        return name_of_update(self.flag)


def name_of_update(flag: WarningFlag | None) -> str:
    """Returns the name of a change that the leg has to record: `receipt`, or the name of the flag."""
    return flag.name if flag else _RECEIPT


# ── rows: a row has the values of its table's columns, in their order ────────────────────────────────────────────────


_MESSAGE_COLUMNS = tuple(messages.c.keys())


def contact_of(row: Sequence[Any]) -> ContactRow:
    """Converts a row of `contacts`, in which the device ids are JSON."""
    values = dict(zip(contacts.c.keys(), row, strict=True))
    return ContactRow(**values | {"device_ids": json.loads(values["device_ids"])})


def message_of(row: Sequence[Any]) -> MessageRow:
    """Converts a row of `messages`, in which a boolean may be 0 or 1."""
    values = dict(zip(_MESSAGE_COLUMNS, row, strict=True))
    return MessageRow(**values | {name: bool(values[name]) for name in ("drill", "in_app_only")})


def sending_of(row: Sequence[Any]) -> Sending:
    """Converts a row of `sendings`."""
    values = dict(zip(sendings.c.keys(), row, strict=True))
    return Sending(channel=ChannelId.parse(values.pop("way")), **values)


def sending_values(sending: Sending) -> dict[str, Any]:
    """Converts a sending to values of `sendings`."""
    values = asdict(sending)
    del values["channel"]
    return values | {"way": str(sending.channel)}


def leg_update_of(row: Sequence[Any]) -> PendingLegUpdate:
    """Converts a row of `to_leg`."""
    values = dict(zip(to_leg.c.keys(), row, strict=True))
    what, alert = values["what"], covered_alert_of(values)
    return PendingLegUpdate(
        id=values["id"],
        message_id=values["message_id"],
        person_id=values["person_id"],
        alert=alert,
        flag=None if what == _RECEIPT else WarningFlag[what],
        since_ms=values["since_ms"],
    )


def covered_alert_of(values: Mapping[str, Any]) -> CoveredAlert:
    """Converts the columns that name an alert of which a person was told."""
    place = values["sequence"], values["ordinal"]
    return CoveredAlert(values["incident_id"], alert_id=values["alert_id"], place=place, order_id=values["order_id"])
