"""Forms of the roster: an office or unit from the fields of a form, with the field that is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from services.common import times
from services.common.rpc.errors import InvalidField
from services.console.pages import assets
from tandem.common.v1 import geometry_pb2
from tandem.dispatch.v1 import roster_pb2

EXAMPLES = {
    "office_id": "seoul-1",
    "unit_id": "seoul-1-car-2",
    "unit_class": "pair-2",
    "skills": "medic-1",
    "shift_from": "2026-03-02 18:00",
    "shift_until": "2026-03-03 09:00",
    "next_office_id": "seoul-2",
    "supervisor_desk": "supervisor-1",
    "national_desk": "national-1",
    "subject_ids": "W-1024 order-7/home",
    "lat_deg": "37.5665",
    "lon_deg": "126.9780",
    "radius_m": "3000",
    "version": "1",
}
"""Example of a valid value of each field."""
KEEP, CIRCLE, NONE = "keep", "circle", "none"
"""What a form says about an office's area: as stored, a circle, or no area."""


@dataclass(frozen=True, slots=True)
class OfficeForm:
    """Form of an office."""

    values: Mapping[str, str]

    def message(self, stored: roster_pb2.Office | None) -> roster_pb2.Office:
        """The office as the next version of the one that the page showed. `stored` keeps its area. Raises InvalidField."""
        office = roster_pb2.Office(
            office_id=_text(self.values, "office_id"),
            version=next_version(self.values),
            subject_ids=_words(self.values, "subject_ids"),
            next_office_id=_text(self.values, "next_office_id"),
            supervisor_desk=_text(self.values, "supervisor_desk"),
            national_desk=_text(self.values, "national_desk"),
            removed="removed" in self.values,
        )
        area = self.values.get("area", NONE)
        if area == CIRCLE:
            office.circle.CopyFrom(
                geometry_pb2.Circle(
                    lat_deg=_number(self.values, "lat_deg"),
                    lon_deg=_number(self.values, "lon_deg"),
                    radius_m=_number(self.values, "radius_m"),
                )
            )
        elif area == KEEP and stored is not None:
            if stored.HasField("circle"):
                office.circle.CopyFrom(stored.circle)
            elif stored.HasField("polygon"):
                office.polygon.CopyFrom(stored.polygon)
        return office


def unit(values: Mapping[str, str], stored: roster_pb2.Unit | None) -> roster_pb2.Unit:
    """The unit of a form as the next version of the one that the page showed. Raises InvalidField."""
    made = roster_pb2.Unit(
        unit_id=_text(values, "unit_id"),
        version=next_version(values),
        office_id=_text(values, "office_id"),
        unit_class=_text(values, "unit_class"),
        skills=_words(values, "skills"),
        contact_key=stored.contact_key if stored is not None else "",
        removed="removed" in values,
    )
    made.shift_from.CopyFrom(times.to_timestamp(_moment_ms(values, "shift_from")))
    made.shift_until.CopyFrom(times.to_timestamp(_moment_ms(values, "shift_until")))
    return made


def next_version(values: Mapping[str, str]) -> int:
    """Version that follows the one that the page showed; 1 for a new record. Raises InvalidField."""
    text = values.get("version", "0")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InvalidField("version", "is no number")
    return int(text) + 1


def _text(values: Mapping[str, str], field: str) -> str:
    return values.get(field, "").strip()


def _words(values: Mapping[str, str], field: str) -> list[str]:
    return values.get(field, "").replace(",", " ").split()


def _number(values: Mapping[str, str], field: str) -> float:
    try:
        return float(values.get(field, ""))
    except ValueError:
        raise InvalidField(field, "is no number") from None


def _moment_ms(values: Mapping[str, str], field: str) -> int:
    """A time of a form, such as 2026-03-02T18:00, as `assets.ms_of_local` reads it. Raises InvalidField."""
    try:
        return assets.ms_of_local(values.get(field, ""))
    except (ValueError, OverflowError):
        raise InvalidField(field, "is no time") from None
