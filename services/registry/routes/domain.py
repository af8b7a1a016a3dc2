"""Partitions of the log that need a device's reports. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from services.common import ids


class StoredRoute(NamedTuple):
    """The last route that was sent for a device."""

    version: int
    route: bytes
    """The route, serialised."""


def tag_partitions(wearer_id: str, partitions: int) -> tuple[int, ...]:
    """Log partitions that need the reports of a wearer's tags."""
    return (ids.partition_of(wearer_id, partitions),)


def device_partitions(person_id: str, wearer_ids: Iterable[str], partitions: int) -> tuple[int, ...]:
    """Log partitions that need the reports of a person's devices, sorted: the partitions of the restrained wearers.

    The partition of the person's own id is always included, so that reports have a destination before there is a case.
    """
    return tuple(sorted({ids.partition_of(subject_id, partitions) for subject_id in (person_id, *wearer_ids)}))
