"""Stored form of events, and the hash chain by which a changed event is detected. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from services.dispatch.domain.events import EVENTS, Event

STORED_NAMES: Mapping[type[Event], str] = {kind: names.stored_name for kind, names in EVENTS.items()}
"""Names under which events are stored and hashed."""


class _FieldNames(dict[type, tuple[str, ...]]):
    """The names of the fields of each dataclass, looked up once: `dataclasses.fields` took a twentieth of a leg's time."""

    def __missing__(self, of: type) -> tuple[str, ...]:
        self[of] = names = tuple(field.name for field in dataclasses.fields(of))
        return names


_FIELD_NAMES = _FieldNames()


class ChainedEvent(NamedTuple):
    """A stored event, as a link of the hash chain and a row of the table `events`."""

    id: int
    """Number in the leg's own order, from 1 without gaps."""
    incident_id: str
    kind: str
    """The event's name in STORED_NAMES."""
    body: str
    """The event's fields, JSON with sorted keys."""
    hash: str
    """SHA-256 over the previous link's hash and this event's fields, hex."""


@dataclass(frozen=True, slots=True)
class ChainHead:
    """Last link of a chain; id 0 for an empty chain."""

    id: int = 0
    hash: str = ""


def write(head: ChainHead, incident_id: str, event: Event) -> ChainedEvent:
    """The chain link of an event that is appended after `head`."""
    body = json.dumps(event, default=_fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return link(head, incident_id, STORED_NAMES[type(event)], body=body)


def link(head: ChainHead, incident_id: str, kind: str, *, body: str) -> ChainedEvent:
    """The chain link of any record with an id, a kind and a body that is appended after `head`."""
    return ChainedEvent(
        id=head.id + 1,
        incident_id=incident_id,
        kind=kind,
        body=body,
        hash=_hash(head.hash, head.id + 1, incident_id, kind, body),
    )


def read(kind: str, body: str) -> Event:
    """The event with a stored name and body. Raises KeyError if the name is unknown."""
    event: Event = _RESTORERS[kind](json.loads(body))
    return event


def _object_restorer(of: type[Any]) -> Callable[[Mapping[str, Any]], Any]:
    """Returns a function that restores a dataclass object from its stored fields. A field that isn't stored keeps its default."""
    hints = get_type_hints(of)
    restorers = {name: restore for name, hint in hints.items() if (restore := _restorer(hint))}

    def restore_object(fields: Mapping[str, Any]) -> Any:
        return of(**{name: restorers[name](value) if name in restorers else value for name, value in fields.items()})

    return restore_object


def _restorer(hint: Any) -> Callable[[Any], Any] | None:
    """Returns a function that restores a value of the type `hint` from JSON; None if the JSON value needs no conversion."""
    if get_origin(hint) is tuple:
        restore_item = _restorer(get_args(hint)[0])
        return (lambda values: tuple(map(restore_item, values))) if restore_item else tuple
    if isinstance(hint, UnionType):  # `X | None`
        restore = _restorer(next(part for part in get_args(hint) if part is not NoneType))
        return (lambda value: None if value is None else restore(value)) if restore else None
    if not isinstance(hint, type):
        return None
    if issubclass(hint, Enum):
        return hint
    return _object_restorer(hint) if dataclasses.is_dataclass(hint) else None


_RESTORERS = {names.stored_name: _object_restorer(kind) for kind, names in EVENTS.items()}


def first_broken(head: ChainHead, links: Iterable[ChainedEvent]) -> tuple[ChainHead, int | None]:
    """Verifies that `links` continue the chain. Returns the last valid head, and the id of the first broken link or None."""
    for link in links:
        if link.id != head.id + 1 or link.hash != _hash(head.hash, link.id, link.incident_id, link.kind, link.body):
            return head, link.id
        head = ChainHead(link.id, link.hash)
    return head, None


def _fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass object. `asdict` isn't used, since its copies took a sixth of a transaction."""
    return {name: getattr(value, name) for name in _FIELD_NAMES[type(value)]}


def _hash(previous: str, *content: str | int) -> str:
    digest = hashlib.sha256(previous.encode())
    for part in content:
        text = str(part).encode()
        digest.update(len(text).to_bytes(4, "big") + text)
    return digest.hexdigest()
