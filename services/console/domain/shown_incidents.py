"""The incidents of a live page, indexed so that a change costs the same however many incidents are open. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterator, Set
from typing import NamedTuple

from services.console.domain import board
from services.console.domain.board import AssignmentCard, IncidentCard

FLOOD = 5
"""From this many notices of one kind on, the page shows them as one line."""


class _Urgency(NamedTuple):
    """Urgency of an open incident that demands a response."""

    level: int
    due_ms: int


class ShownIncidents:
    """Incidents by id, with the groups of notices, the unanswered offers and the urgency of the responses."""

    def __init__(self) -> None:
        self._cards: dict[str, IncidentCard] = {}
        self._ended: dict[str, None] = {}
        self._urgency: dict[str, _Urgency] = {}
        """Urgency of the open incidents that demand a response."""
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
        _set(self._ended, id_, not is_open)
        _set(self._with_offers, id_, any(assignment.state in board.OFFERS for assignment in card.assignments))
        if is_open and responds:
            level, due_ms, _ = board.rank(card)
            self._urgency[id_] = _Urgency(level, due_ms)
        else:
            self._urgency.pop(id_, None)
        self._set_kind(id_, board.cause(card) if is_open and not responds else "")

    def drop(self, incident_id: str) -> None:
        """Removes an incident, if the page has it."""
        self._cards.pop(incident_id, None)
        self._urgency.pop(incident_id, None)
        for index in (self._ended, self._with_offers):
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
            level, due_ms = self._urgency[incident_id]
            return level, incident_id not in followed, due_ms

        return heapq.nsmallest(most, self._urgency, key=urgency)

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
