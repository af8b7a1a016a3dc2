"""Maps of the protected persons right after a decision, computed by the fold's own function, for `tandem explain`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from services.cli.explain.refold import Refold
from services.geofence.domain.her_map import view as views
from services.geofence.domain.her_map.view import MapView, ViewOutcome

_IN_WORDS = {
    ViewOutcome.UNKNOWN: "unknown: the newest position is older than 3 minutes, or the tag is off",
    ViewOutcome.NOT_URGENT: "withheld: the rule of urgency doesn't hold",
    ViewOutcome.FAR: "withheld: the region begins beyond the distance of the rule of urgency",
    ViewOutcome.AT_REST: "withheld: the wearer stays at a place",
    ViewOutcome.LEAVING: "withheld: the wearer is moving away",
    ViewOutcome.SHOWN: "a region",
}


def as_json(refold: Refold, positions: bool) -> list[dict[str, Any]]:
    """A JSON object for each person with an open notice. Circles, distances and directions only if `positions` is set."""
    rows = []
    for view in _views(refold):
        row: dict[str, Any] = {"person_id": view.person_id, "outcome": view.outcome.value}
        if view.outcome is ViewOutcome.SHOWN and positions:
            row["grows_mps"] = round(view.grows_mps, 1)
            row["circles"] = [
                {"lat_deg": lat_e7 / 1e7, "lon_deg": lon_e7 / 1e7, "radius_m": radius_m}
                for lat_e7, lon_e7, radius_m in view.circles
            ]
            row["from_her"] = view.from_her._asdict() if view.from_her else None
        rows.append(row)
    return rows


def table(refold: Refold, positions: bool) -> Table | None:
    """A table of the views; None if no person has an open notice."""
    made = list(_views(refold))
    if not made:
        return None
    printed = Table("person", "what her map could show", title="her map at the decision", title_justify="left")
    for view in made:
        shown = _IN_WORDS[view.outcome]
        if view.outcome is ViewOutcome.SHOWN and positions:
            shown = "; ".join(f"{c.radius_m} m round {c.lat_e7 / 1e7:.4f}, {c.lon_e7 / 1e7:.4f}" for c in view.circles)
        printed.add_row(view.person_id, shown)
    return printed


def _views(refold: Refold) -> Iterator[MapView]:
    """The view of the case on the first device of each person who has an open notice."""
    case = refold.case
    for target in case.targets if case else ():
        if target.is_person and target.device_ids:
            seen = views.views(refold.state, target.device_ids[0], refold.decided_ms)
            yield from (view for view in seen if view.case_id == refold.stored.alert.case_id)
