"""Handovers between the shifts of a desk, as the page shows them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MAX_NOTES = 4_000
MAX_REMARK = 500
MAX_NAMED = 200
"""Maximum number of reviews, and of devices, that a handover names."""


@dataclass(frozen=True, slots=True)
class HandoverCard:
    """A handover of the desk."""

    handover_id: str
    notes: str
    incident_ids: tuple[str, ...]
    """Incidents that were open when it was written."""
    case_ids: tuple[str, ...]
    """Match reviews that waited."""
    device_ids: tuple[str, ...]
    """Devices that were in trouble."""
    reviews_incomplete: bool
    """The writer's page couldn't show all match reviews."""
    devices_incomplete: bool
    """The writer's page couldn't show all devices in trouble."""
    written_by: str
    """SPIFFE id of the writer."""
    written_ms: int
    acknowledged_by: str = ""
    """SPIFFE id of the person who acknowledged it; empty until then."""
    acknowledged_ms: int | None = None
    remark: str = ""

    @property
    def is_open(self) -> bool:
        """Whether nobody has acknowledged it yet."""
        return not self.acknowledged_by


def name_of(spiffe_id: str) -> str:
    """Name of a person in a SPIFFE id, such as `kim` of spiffe://npa/desk/kim and of spiffe://npa/desk/console/kim."""
    return spiffe_id.rpartition("/")[2]


def waiting(cards: Iterable[HandoverCard]) -> list[HandoverCard]:
    """Handovers that nobody has acknowledged, the oldest first."""
    return sorted((card for card in cards if card.is_open), key=lambda card: card.written_ms)
