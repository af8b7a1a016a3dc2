"""Decision which notice of the Ministry a protected person gets after an alert. Pure.

The fold says when a notice is due and when it has ended. Alerts may arrive in any order, so log positions decide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from services.common.privacy.notices import NoticeGround
from services.dispatch.domain.events import BEFORE_ALL, LogPosition


class NoticeRefusal(Enum):
    """Why a notice of the Ministry isn't given. The police's own warning of the same alert is sent all the same."""

    NO_GROUND = "NO_GROUND"
    """The alert names no article that this version knows."""
    ORDER_OVER = "ORDER_OVER"
    """The order is over, or no longer protects the person."""
    EXERCISE = "EXERCISE"
    """Nobody is notified by the Ministry in an exercise."""
    OUTDATED = "OUTDATED"
    """The notice is too old to be given: the reason for it is long past."""


@dataclass(frozen=True, slots=True)
class NoticeAlert:
    """The part of an alert that concerns a notice of the Ministry."""

    ground: NoticeGround | None
    """The article on which the notice rests; None if the alert names none that this version knows."""
    person_ids: tuple[str, ...]
    """Persons who get the notice. The alert warns each of them."""
    ended: bool
    """Whether the notice has ended."""
    wearer_id: str
    case_id: str


@dataclass(frozen=True, slots=True)
class NoticeState:
    """The notices of one person in one incident, by log positions."""

    due: LogPosition = BEFORE_ALL
    """The last alert that made a notice due."""
    ended: LogPosition = BEFORE_ALL
    """The last alert that ended the notice."""

    @property
    def is_open(self) -> bool:
        """Whether a notice was given and hasn't ended."""
        return self.due > self.ended


class NoticeMessage(Enum):
    """Kind of a message to a person about a notice."""

    GIVEN = "GIVEN"
    ENDED = "ENDED"


def decide(state: NoticeState, place: LogPosition, *, ended: bool) -> tuple[NoticeState, NoticeMessage | None]:
    """The state of a person's notices after an alert at a log position, and the message to her; None if there is none."""
    if not ended:
        is_late = place <= state.ended or place <= state.due
        return replace(state, due=max(state.due, place)), None if is_late else NoticeMessage.GIVEN
    after = replace(state, ended=max(state.ended, place))
    return after, NoticeMessage.ENDED if state.is_open and not after.is_open else None
