"""Rules that the commands of both agencies share."""

from __future__ import annotations

from typing import TypeVar

from services.common.rpc.errors import InvalidField, NotFound
from services.registry.cases.effects import owner_of
from services.registry.domain import Device, Order, Tag, Wearer
from services.registry.records.kinds import R
from services.registry.records.store import StoredRecord

_E = TypeVar("_E", Wearer, Order)


def opened(stored: StoredRecord[R] | None, error_text: str) -> tuple[StoredRecord[R], R]:
    """A stored record and its content. Raises NotFound: with `error_text` if there is none, and if it was destroyed."""
    if stored is None:
        raise NotFound(error_text)
    record = stored.open()
    if record is None:
        raise NotFound("no such record")
    return stored, record


def require_same_exercise(field: str, record: _E, before: _E | None) -> None:
    """Raises InvalidField if a record would be switched between live and exercise."""
    if before is not None and before.exercise is not record.exercise:
        raise InvalidField(field, "can't change: a record can't be switched between live and exercise")


def owners(device: Tag | Device, stored: StoredRecord[Tag] | StoredRecord[Device] | None) -> list[str]:
    """Previous and current owner of a device, in this order, so that a log never has two cases naming it at once."""
    before = stored.open() if stored else None
    return list(dict.fromkeys(owner_of(version).record_id for version in (before, device) if version))
