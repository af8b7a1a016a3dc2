"""Live page of one role: turns the mesh's messages into the rows that browsers show. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Set
from dataclasses import replace
from typing import Any, NamedTuple

from services.console.domain import board
from services.console.domain.board import AssignmentCard, IncidentCard, IncidentTimes
from services.console.domain.numbered_items import Item, ItemKey, ItemKind, NumberedItems
from services.console.domain.shown_incidents import ShownIncidents

MAX_INCIDENTS = 1_000
"""Maximum number of incidents to keep: the oldest ended ones beyond it are dropped. Open incidents are always kept."""
MAX_ALERTS = 200
TRACK_MS = 600_000
"""Age up to which positions of a followed target are kept for its track, in ms of mesh time."""
MAX_TRACK = 240
"""Maximum number of positions of a track."""


class NumberedAlert(NamedTuple):
    """Alert with the number of the change that brought it."""

    number: int
    alert: Item


class TargetFix(NamedTuple):
    """A position of a target's track."""

    fix_ms: int
    lon_deg: float
    lat_deg: float


class LivePage:
    """Incidents, targets, units and alerts of one role, with the numbers of their changes."""

    def __init__(
        self, notify: Callable[[], None] = lambda: None, notify_urgent: Callable[[], None] = lambda: None
    ) -> None:
        self._items = NumberedItems(notify)
        self._notify_urgent = notify_urgent
        """Called after each change of an incident and each new alert."""
        self.urgent_number = 0
        """Number of the last change of an incident, or of the last new alert."""
        self._incidents = ShownIncidents()
        self._begun_elsewhere: dict[str, None] = {}
        """Incidents of which another leg's step came before the own leg's, the oldest first."""
        self._targets_of: dict[str, set[str]] = {}
        """Ids of the shown targets, by incident id."""
        self._tracks: dict[str, deque[TargetFix]] = {}
        """Positions of each shown target, by its id."""
        self._alerts: deque[NumberedAlert] = deque(maxlen=MAX_ALERTS)

    # ── from the mesh ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def incident_ids(self) -> Set[str]:
        """Ids of the kept incidents."""
        return self._incidents.ids

    def put_incident(self, card: IncidentCard) -> None:
        """Adds or replaces an incident."""
        self._incidents.put(card)
        self._show(card)

    def drop_incidents(self, incident_ids: Iterable[str]) -> None:
        """Removes incidents that the leg doesn't list."""
        for incident_id in incident_ids:
            self._drop(incident_id)

    def assign(self, changed: AssignmentCard, times: IncidentTimes | None = None, *, is_own: bool = True) -> bool:
        """Replaces an assignment of its incident. `times` are those of the incident, if the own leg sent them with the step.

        Returns whether the incident must be read from the leg: the page doesn't know it, or it may have ended. An own offer of an
        unknown incident is shown at once, alone.
        """
        incident_id = changed.incident_id
        known = self._incidents.get(incident_id)
        if known is None and times and times.is_new and incident_id not in self._begun_elsewhere:
            self.put_incident(IncidentCard(incident_id, times.opened_ms, times.ended_ms, assignments=(changed,)))
            return False
        if known is None:
            if not is_own:
                self._begun_elsewhere[incident_id] = None
                if len(self._begun_elsewhere) > MAX_INCIDENTS:
                    del self._begun_elsewhere[next(iter(self._begun_elsewhere))]
            elif changed.state in board.OFFERS and changed.offered_ms is not None:
                self.put_incident(IncidentCard(incident_id, changed.offered_ms, ended_ms=None, assignments=(changed,)))
            return True
        others = (old for old in known.assignments if old.assignment_id != changed.assignment_id)
        ended_ms = times.ended_ms if times else known.ended_ms
        card = replace(known, ended_ms=ended_ms, assignments=(*others, changed))
        self.put_incident(card)
        # Another leg's step ends no incident of the own leg.
        return is_own and times is None and all(assignment.state in board.OVER for assignment in card.assignments)

    def regroup(self) -> None:
        """Groups the notices that have changed, and drops the oldest ended incidents beyond MAX_INCIDENTS."""
        for card in self._incidents.regroup():
            self._show(card)
        self.drop_incidents(self._incidents.oldest_ended(MAX_INCIDENTS))

    def put_target(self, incident_id: str, target: Item) -> None:
        """Adds or moves a target of an incident."""
        self._targets_of.setdefault(incident_id, set()).add(target["id"])
        self._items.put(ItemKey(ItemKind.TARGET, target["id"]), target)
        if target["at"] and target["fix"]:
            track = self._tracks.setdefault(target["id"], deque(maxlen=MAX_TRACK))
            if not track or target["fix"] > track[-1].fix_ms:
                lon_deg, lat_deg, _ = target["at"]
                track.append(TargetFix(target["fix"], lon_deg, lat_deg))
            while track[0].fix_ms < target["fix"] - TRACK_MS:
                track.popleft()

    def drop_targets(self, incident_id: str) -> None:
        """Removes the targets of an incident."""
        for target_id in self._targets_of.pop(incident_id, ()):
            self._items.remove(ItemKey(ItemKind.TARGET, target_id))
            self._tracks.pop(target_id, None)

    def replace_units(self, units: Mapping[str, Item]) -> None:
        """Replaces all units, by id."""
        for unit_id in self.units().keys() - units.keys():
            self._items.remove(ItemKey(ItemKind.UNIT, unit_id))
        for unit_id, unit in units.items():
            self._items.put(ItemKey(ItemKind.UNIT, unit_id), unit)

    def add_alert(self, alert: Item) -> None:
        """Adds an alert, once: several steps may carry the same notice."""
        if all(known["id"] != alert["id"] for _, known in self._alerts):
            self._alerts.append(NumberedAlert(self._items.next_number(), alert))
            self._count_urgent()

    def count_change(self) -> None:
        """Counts a change outside the rows, such as of the connected sources, so that browsers get a message."""
        self._items.next_number()

    # ── questions ────────────────────────────────────────────────────────────────────────────────────────────────────

    def assignments_of(self, leg: str) -> list[AssignmentCard]:
        """Returns the assignments of one leg in all incidents."""
        return [assignment for card in self._incidents for assignment in card.of(leg)]

    def offers_of(self, leg: str) -> list[AssignmentCard]:
        """Returns the unanswered offers of one leg."""
        return self._incidents.offers_of(leg)

    def responding(self, followed: Container[str], most: int) -> list[str]:
        """Returns the ids of at most `most` open incidents that demand a response, the most urgent first.

        Among incidents of the same level, those in `followed` come first, so that the followed incidents change rarely.
        """
        return self._incidents.responding(followed, most)

    def tracks(self, incident_id: str) -> dict[str, list[TargetFix]]:
        """Returns the tracks of an incident's shown targets, oldest position first, by target id."""
        shown = self._targets_of.get(incident_id, ())
        return {target_id: list(self._tracks[target_id]) for target_id in shown if target_id in self._tracks}

    def rings(self, incident_id: str) -> list[float]:
        """Returns the radii of the rings that the kept alerts of an incident name, in m, ascending."""
        named = {alert["ring"] for _, alert in self._alerts if alert["incident"] == incident_id and alert["ring"]}
        return sorted(named)

    def units(self) -> Mapping[str, Item]:
        """Returns the units by id."""
        return self._items.of(ItemKind.UNIT)

    # ── to the browsers ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def number(self) -> int:
        """Number of the last change."""
        return self._items.number

    def alerts(self) -> list[Item]:
        """Returns the kept alerts, newest first."""
        return [alert for _, alert in reversed(self._alerts)]

    def since(self, seen: int | None) -> dict[str, Any]:
        """Returns the rows that changed since the number `seen`; all rows for None and for a number that is too old."""
        difference = self._items.since(seen)
        from_number = 0 if difference.reset else seen or 0
        return {
            "reset": difference.reset,
            **{sort.value: items for sort, items in difference.changed.items()},
            "gone": difference.gone,
            "alerts": [alert for number, alert in self._alerts if number > from_number],
        }

    def _show(self, card: IncidentCard) -> None:
        item = board.shown(card, self._incidents.group_of(card.incident_id))
        before = self._items.number
        self._items.put(ItemKey(ItemKind.INCIDENT, card.incident_id), item)
        if self._items.number != before:
            self._count_urgent()

    def _count_urgent(self) -> None:
        self.urgent_number = self._items.number
        self._notify_urgent()

    def _drop(self, incident_id: str) -> None:
        self._incidents.drop(incident_id)
        self._items.remove(ItemKey(ItemKind.INCIDENT, incident_id))
