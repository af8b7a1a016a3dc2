"""The duty to wear a tag, and the periods in which it need not be worn, as the snapshot of a joint case holds them. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Period:
    """A period that an officer recorded: good cause for a missing tag, or an authorised removal of a tag."""

    record_id: str
    from_ms: int
    until_ms: int
    """Exclusive end, milliseconds since 1970 UTC."""
    device_id: str = ""
    """The tag that may be removed; empty for good cause."""


@dataclass(frozen=True, slots=True)
class TagDuty:
    """The duty of the respondent of an order of item 3-2 to be fitted with a tag, and to wear it."""

    fit_by_ms: int
    refused_ms: int | None
    """When the respondent refused to be fitted; None if no refusal is recorded."""
    good_causes: tuple[Period, ...]
    """In ascending order."""
