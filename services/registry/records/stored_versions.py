"""Reads and checks of the stored version of a record that a command changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from services.common.rpc.errors import InvalidField, NotFound
from services.registry.domain import Order, RoutedDevice, Wearer
from services.registry.records.kinds import R
from services.registry.records.store import StoredRecord, owner_of

_E = TypeVar("_E", Wearer, Order)


def opened(stored: StoredRecord[R] | None, error_text: str) -> tuple[StoredRecord[R], R]:
    """A stored record and its content. Raises NotFound if there is no record (with `error_text`) or if it was destroyed."""
    if stored is None:
        raise NotFound(error_text)
    record = stored.open()
    if record is None:
        raise NotFound("no such record")
    return stored, record


def require_kept(records: Mapping[str, StoredRecord[Any]], record_id: str, error_text: str) -> None:
    """Require that a record is stored and wasn't destroyed: its row stays, but nothing would be enforced for it. Raises NotFound."""
    stored = records.get(record_id)
    if stored is None or stored.is_destroyed:
        raise NotFound(error_text)


def require_same_exercise(field: str, record: _E, before: _E | None) -> None:
    """Require that a record isn't switched between live and exercise. Raises InvalidField if it is."""
    if before is not None and before.exercise is not record.exercise:
        raise InvalidField(field, "can't change: a record can't be switched between live and exercise")


def owners(device: RoutedDevice, stored: StoredRecord[Any] | None) -> list[str]:
    """Ids of a device's previous and current owner, in the order in which their joint cases must be renewed.

    In this order, the cases of the previous owner drop the device before those of the current owner name it.
    """
    before = stored.open() if stored else None
    return list(dict.fromkeys(owner_of(version).record_id for version in (before, device) if version))
