"""Stored form of events, and the hash chain that shows whether a stored event was changed. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.dispatch.domain.enums import (
    Advice,
    CloseCause,
    Demand,
    EscalationLevel,
    EscalationReason,
    Estimate,
    Exercise,
    WarningFlag,
)
from services.dispatch.domain.events import (
    Acknowledged,
    AlertFolded,
    AlertWasMissing,
    Cause,
    Choice,
    Closed,
    Escalated,
    Event,
    Flagged,
    LegAbsent,
    LegReturned,
    NobodyAvailable,
    Notified,
    Offered,
    Progressed,
    Raced,
    Received,
    Rejected,
    Reoffered,
    Retargeted,
    SceneShared,
    SpoofingSuspected,
    StepsLost,
    StoodDown,
    TargetsShown,
)

STORED_NAMES: Mapping[type[Event], str] = {
    AlertFolded: "AlertFolded",
    AlertWasMissing: "AlertWasMissing",
    Notified: "Notified",
    Offered: "Offered",
    Reoffered: "Reoffered",
    NobodyAvailable: "NobodyAvailable",
    Escalated: "Escalated",
    LegAbsent: "LegAbsent",
    LegReturned: "LegReturned",
    StepsLost: "StepsLost",
    Received: "Received",
    Acknowledged: "Acknowledged",
    Rejected: "Rejected",
    Progressed: "Progressed",
    Closed: "Closed",
    StoodDown: "StoodDown",
    Flagged: "Flagged",
    Retargeted: "Retargeted",
    Raced: "Raced",
    SceneShared: "SceneShared",
    SpoofingSuspected: "SpoofingSuspected",
    TargetsShown: "TargetsShown",
}
"""Names under which events are stored and hashed. A class may be renamed, its stored name may not: the chain would not verify."""
_CLASSES: Mapping[str, type[Event]] = {name: kind for kind, name in STORED_NAMES.items()}


@dataclass(frozen=True, slots=True)
class ChainedEvent:
    """A stored event, as a link of the hash chain."""

    id: int
    """Number in the leg's own order, from 1 without gaps."""
    incident_id: str
    kind: str
    """The event's name in STORED_NAMES."""
    body: str
    """The event's fields, JSON with sorted keys."""
    hash: str
    """SHA-256 over the previous hash and this content, hex."""


@dataclass(frozen=True, slots=True)
class ChainHead:
    """Last link of a chain; id 0 for an empty chain."""

    id: int = 0
    hash: str = ""


def write(head: ChainHead, incident_id: str, event: Event) -> ChainedEvent:
    """The link of an event that follows `head`."""
    kind = STORED_NAMES[type(event)]
    body = json.dumps(event, default=_fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return ChainedEvent(
        id=head.id + 1,
        incident_id=incident_id,
        kind=kind,
        body=body,
        hash=_hash(head.hash, head.id + 1, incident_id, kind, body),
    )


def read(kind: str, body: str) -> Event:
    """The event of a stored name and body."""
    fields: dict[str, Any] = json.loads(body)
    if "place" in fields:
        sequence, ordinal = fields["place"]
        fields["place"] = (sequence, ordinal)
    if "demand" in fields:
        fields["demand"] = Demand(fields["demand"])
    for name in ("assignment_ids", "legs"):
        if name in fields:
            fields[name] = tuple(fields[name])
    if fields.get("cause"):
        cause = fields["cause"]
        fields["cause"] = CloseCause(cause) if _CLASSES[kind] is Closed else Cause(**cause)
    if fields.get("choice"):
        choice = fields["choice"]
        fields["choice"] = Choice(
            **{**choice, "level": EscalationLevel(choice["level"]), "estimate": Estimate(choice["estimate"])}
        )
    if "flag" in fields:
        fields["flag"] = WarningFlag(fields["flag"])
    if "advice" in fields:
        fields["advice"] = Advice(fields["advice"])
    if "escalation_reason" in fields:
        fields["escalation_reason"] = EscalationReason(fields["escalation_reason"])
    if "exercise" in fields:
        fields["exercise"] = Exercise(fields["exercise"])
    return _CLASSES[kind](**fields)


def first_broken(head: ChainHead, links: Iterable[ChainedEvent]) -> tuple[ChainHead, int | None]:
    """Verifies `links` from `head`. Returns the new head, and the id of the first link that doesn't follow; None where all do."""
    for link in links:
        if link.id != head.id + 1 or link.hash != _hash(head.hash, link.id, link.incident_id, link.kind, link.body):
            return head, link.id
        head = ChainHead(link.id, link.hash)
    return head, None


def _fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass. `asdict` isn't used: it copies every value, which took a sixth of a transaction."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _hash(previous: str, *content: str | int) -> str:
    digest = hashlib.sha256(previous.encode())
    for part in content:
        text = str(part).encode()
        digest.update(len(text).to_bytes(4, "big") + text)
    return digest.hexdigest()
