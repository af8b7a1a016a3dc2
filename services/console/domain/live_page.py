"""Live page of one role: turns the mesh's messages into the rows that browsers show, each with the number of its last change. Pure.

The incidents are indexed so that a change costs the same however many are open, and a browser gets only newer changes.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

from services.console.domain import board
from services.console.domain.board import AssignmentCard, IncidentCard, IncidentRank, IncidentTimes

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
        self,
        notify: Callable[[], None] = lambda: None,
        notify_urgent: Callable[[], None] = lambda: None,
        *,
        own_leg: str = "",
    ) -> None:
        """`own_leg` is the leg whose desk the page is for; empty if it is for no desk."""
        self._own_leg = own_leg
        self._items = NumberedItems(notify)
        self._notify_urgent = notify_urgent
        """Called after each change of an incident and each new alert."""
        self.urgent_number = 0
        """Number of the last change of an incident, or of the last new alert."""
        self._incidents = ShownIncidents(own_leg)
        self._begun_elsewhere: dict[str, None] = {}
        """Incidents of which another leg's step came before the own leg's, the oldest first."""
        self._targets_of: dict[str, set[str]] = {}
        """Ids of the shown targets, by incident id."""
        self._tracks: dict[str, deque[TargetFix]] = {}
        """Positions of each shown target, by its id."""
        self._alerts: deque[NumberedAlert] = deque(maxlen=MAX_ALERTS)
        self._overview: dict[str, Any] = {}
        """The last overview, of the change `_overview_number`: every request of a desk's page asks for it."""
        self._overview_number = -1

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

    def overview(self) -> dict[str, Any]:
        """Returns what a desk must know of its incidents on every page, as the browser gets it."""
        if self._overview_number != self.number:
            overview = self._incidents.overview()
            self._overview_number = self.number
            self._overview = {
                "open": overview.open_count,
                "unclosed": overview.unclosed_count,
                "first": overview.first and board.shown(overview.first, own_leg=self._own_leg),
                "alarms": [board.alarm(card, self._own_leg) for card in overview.sounding],
            }
        return self._overview

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
        item = board.shown(card, self._incidents.group_of(card.incident_id), own_leg=self._own_leg)
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


FLOOD = 5
"""From this many notices of one kind on, the page shows them as one line."""
MAX_SOUNDING = 200
"""Maximum number of incidents with a sound in an overview."""


class Overview(NamedTuple):
    """What a desk must know of its incidents on every page."""

    open_count: int
    unclosed_count: int
    """Number of incidents that have ended, and that the desk has to close."""
    first: IncidentCard | None
    """The most urgent open incident; None if none is open."""
    sounding: list[IncidentCard]
    """The incidents that are announced with a sound, the most urgent first."""


class ShownIncidents:
    """Incidents by id, with the groups of notices, the unanswered offers and the urgency of the open incidents."""

    def __init__(self, own_leg: str = "") -> None:
        self._own_leg = own_leg
        """Leg whose desk the page is for; empty if it is for no desk."""
        self._cards: dict[str, IncidentCard] = {}
        self._ended: dict[str, None] = {}
        """Incidents that have ended, without those that the desk has to close."""
        self._unclosed: dict[str, None] = {}
        """Incidents that have ended, and that the desk has to close."""
        self._open: dict[str, IncidentRank] = {}
        """Ranks of the open incidents."""
        self._responding: dict[str, None] = {}
        """Open incidents that demand a response."""
        self._sounding: dict[str, None] = {}
        """Open incidents that are announced with a sound."""
        self._with_offers: dict[str, None] = {}
        """Incidents with an unanswered offer of any leg."""
        self._kinds: dict[str, str] = {}
        """Kind of the alert of each open notice, by incident id. An incident that demands a response is no notice."""
        self._notices: dict[str, dict[str, None]] = {}
        """Ids of the open notices by kind."""
        self._groups: dict[str, str] = {}
        """Group of each grouped incident, by incident id."""
        self._regrouped: dict[str, None] = {}
        """Incidents whose kind has changed since `regroup`."""
        self._floods: set[str] = set()
        """Kinds that form a group."""

    def __len__(self) -> int:
        return len(self._cards)

    def __iter__(self) -> Iterator[IncidentCard]:
        return iter(self._cards.values())

    @property
    def ids(self) -> Set[str]:
        """Ids of the incidents."""
        return self._cards.keys()

    def get(self, incident_id: str) -> IncidentCard | None:
        """Returns an incident; None if the page doesn't have it."""
        return self._cards.get(incident_id)

    def group_of(self, incident_id: str) -> str:
        """Returns the group of an incident as of the last `regroup`; empty if it is in none."""
        return self._groups.get(incident_id, "")

    def put(self, card: IncidentCard) -> None:
        """Adds or replaces an incident."""
        id_, is_open = card.incident_id, card.ended_ms is None
        self._cards[id_] = card
        responds = board.demand(card) == "RESPOND"
        is_unclosed = board.is_unclosed(card, self._own_leg)
        _set(self._ended, id_, not is_open and not is_unclosed)
        _set(self._unclosed, id_, is_unclosed)
        _set(self._with_offers, id_, any(assignment.state in board.OFFERS for assignment in card.assignments))
        _set(self._responding, id_, is_open and responds)
        _set(self._sounding, id_, bool(board.sound(card, self._own_leg)))
        if is_open:
            self._open[id_] = board.rank(card, self._own_leg)
        else:
            self._open.pop(id_, None)
        self._set_kind(id_, board.cause(card) if is_open and not responds else "")

    def drop(self, incident_id: str) -> None:
        """Removes an incident, if the page has it."""
        self._cards.pop(incident_id, None)
        self._open.pop(incident_id, None)
        for index in (self._ended, self._unclosed, self._with_offers, self._responding, self._sounding):
            index.pop(incident_id, None)
        self._set_kind(incident_id, "")

    def regroup(self) -> list[IncidentCard]:
        """Groups the notices whose kind has changed. Returns the incidents whose group has changed."""
        regrouped, self._regrouped = self._regrouped, {}
        for kind in dict.fromkeys(self._kinds.get(id_, "") for id_ in regrouped) | dict.fromkeys(sorted(self._floods)):
            notices = self._notices.get(kind, {})
            if kind and (len(notices) >= FLOOD) != (kind in self._floods):
                self._floods ^= {kind}
                regrouped |= notices
        changed = []
        for id_ in regrouped:
            kind, card = self._kinds.get(id_, ""), self._cards.get(id_)
            group = kind if kind in self._floods else ""
            if group != self._groups.get(id_, ""):
                if group:
                    self._groups[id_] = group
                else:
                    del self._groups[id_]
                changed += [card] if card else []
        return changed

    def oldest_ended(self, most: int) -> list[str]:
        """Returns the ids of the oldest ended incidents, as many as there are incidents beyond `most`."""
        beyond = len(self._cards) - most
        if beyond <= 0:
            return []
        return heapq.nsmallest(beyond, self._ended, key=lambda id_: (self._cards[id_].opened_ms, id_))

    def offers_of(self, leg: str) -> list[AssignmentCard]:
        """Returns the unanswered offers of a leg."""
        return [
            assignment
            for id_ in self._with_offers
            for assignment in self._cards[id_].of(leg)
            if assignment.state in board.OFFERS
        ]

    def responding(self, followed: Container[str], most: int) -> list[str]:
        """Returns the ids of at most `most` open incidents that demand a response, the most urgent first.

        Among incidents of the same level, those in `followed` come first, so that the followed incidents change rarely.
        """

        def urgency(incident_id: str) -> tuple[int, bool, int]:
            rank = self._open[incident_id]
            return rank.level, incident_id not in followed, rank.due_ms

        return heapq.nsmallest(most, self._responding, key=urgency)

    def overview(self) -> Overview:
        """Returns the numbers of the incidents, the most urgent open one, and those with a sound. A live one comes before exercises."""

        def urgency(incident_id: str) -> tuple[bool, IncidentRank]:
            rank = self._open[incident_id]
            return rank.exercise, rank

        first = min(self._open, key=urgency, default="")
        return Overview(
            open_count=len(self._open),
            unclosed_count=len(self._unclosed),
            first=self._cards[first] if first else None,
            sounding=[self._cards[id_] for id_ in heapq.nsmallest(MAX_SOUNDING, self._sounding, key=urgency)],
        )

    def _set_kind(self, incident_id: str, kind: str) -> None:
        before = self._kinds.pop(incident_id, "")
        if kind:
            self._kinds[incident_id] = kind
        if kind == before:
            return
        self._regrouped[incident_id] = None
        if before:
            del self._notices[before][incident_id]
            if not self._notices[before]:
                del self._notices[before]
        if kind:
            self._notices.setdefault(kind, {})[incident_id] = None


def _set(index: dict[str, None], incident_id: str, belongs: bool) -> None:
    """Adds an incident to an index, or removes it."""
    if belongs:
        index[incident_id] = None
    else:
        index.pop(incident_id, None)


MAX_GONE = 2_000
"""Number of removed items that are remembered for browsers that reconnect."""

Item: TypeAlias = dict[str, Any]
"""Item as the browser gets it."""


class ItemKind(StrEnum):
    """Kind of an item. The value is the field of a message that lists such items."""

    INCIDENT = "incidents"
    TARGET = "targets"
    UNIT = "units"


class ItemKey(NamedTuple):
    """Key of an item."""

    kind: ItemKind
    id: str


@dataclass(frozen=True, slots=True)
class ChangedItems:
    """Changes of items after the change number that a browser has seen."""

    reset: bool
    """Whether `changed` has all items, because the changes since that number are no longer known."""
    changed: Mapping[ItemKind, list[Item]]
    gone: list[str]
    """Ids of removed items."""


class NumberedItems:
    """Items of a page. The number grows by one with each change."""

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        """Called after each change."""
        self._items: dict[ItemKind, dict[str, Item]] = {kind: {} for kind in ItemKind}
        self._changed_at: dict[ItemKey, int] = {}
        """Number of the last change of each item, ascending. Also of removed items that are remembered."""
        self._gone: deque[ItemKey] = deque()
        self._newest_forgotten = 0
        """Change number of the newest removal that was forgotten. A browser that saw less needs a reset."""
        self.number = 0
        """Number of the last change."""

    def of(self, kind: ItemKind) -> Mapping[str, Item]:
        """Returns the items of a kind by id."""
        return self._items[kind]

    def put(self, key: ItemKey, item: Item) -> None:
        """Adds or replaces an item. An equal item is no change."""
        if self._items[key.kind].get(key.id) != item:
            self._items[key.kind][key.id] = item
            self._mark_changed(key)

    def remove(self, key: ItemKey) -> None:
        """Removes an item, if the page has it."""
        if self._items[key.kind].pop(key.id, None) is not None:
            self._mark_changed(key)
            self._gone.append(key)
            if len(self._gone) > MAX_GONE:
                self._forget(self._gone.popleft())

    def next_number(self) -> int:
        """Counts a change, of an item or of anything else that browsers get, and returns its number."""
        self.number += 1
        self._notify()
        return self.number

    def since(self, seen: int | None) -> ChangedItems:
        """Returns the changes since the number `seen`; all items for None and for a number that is too old.

        Reads no more items than it returns.
        """
        if seen is not None and seen < self._newest_forgotten:
            seen = None
        keys: list[ItemKey] = []
        for key, number in reversed(self._changed_at.items()):
            if seen is not None and number <= seen:
                break
            keys.append(key)
        changed: dict[ItemKind, list[Item]] = {kind: [] for kind in ItemKind}
        gone: list[str] = []
        for key in reversed(keys):
            item = self._items[key.kind].get(key.id)
            if item is not None:
                changed[key.kind].append(item)
            elif seen is not None:
                gone.append(key.id)
        return ChangedItems(seen is None, changed, gone)

    def _mark_changed(self, key: ItemKey) -> None:
        self._changed_at.pop(key, None)
        self._changed_at[key] = self.next_number()

    def _forget(self, key: ItemKey) -> None:
        if key.id not in self._items[key.kind]:  # else the item was added again
            self._newest_forgotten = max(self._newest_forgotten, self._changed_at.pop(key, 0))
