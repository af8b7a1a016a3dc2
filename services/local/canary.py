"""Canary state of `tandem watch`: decides when a canary is missing and when to page. Pure.

A canary is a synthetic breach. A canary is *complete* once all legs have offered it, all offers are acknowledged, and each
agency's leg was notified of the other's assignment. A complete canary is *over* once all legs have stood it down. A *canary outage*
lasts while a canary is missing. Times are seconds of mesh time since an arbitrary origin. Times of a canary outage are milliseconds
since 1970 UTC, because they are stored for the next process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from services.common.messaging import flow

INTERVAL_S = 20.0
LATE_AFTER_S = 35.0
"""Age, seconds, from which an incomplete canary counts as missing. Together with INTERVAL_S, an outage is paged within 60 s."""
OVER_WITHIN_S = 150.0
"""Age, seconds, from which a canary that isn't stood down counts as missing. The canary's wearer leaves the ring
after INTERVAL_S. The ring needs 60 s to clear, and the next report may come INTERVAL_S later. The rest is reserve."""
REPEAT_PAGE_S = 300.0
"""Interval at which an ongoing outage is paged again, seconds."""
MAX_KEPT = 100
"""Maximum number of canaries kept during an outage."""
MIN_DIAGNOSIS_AGE_S = 10.0
"""Minimum age, seconds, at which a canary's progress is used to say what is broken. Younger canaries may still be on their way."""
RESTART_GRACE_S = 10.0
"""Minimum time, seconds, from the start of the watch until a canary that was missing before the restart counts as missing again."""


@dataclass(slots=True)
class Canary:
    """The progress of one canary through the chain."""

    number: int
    slot: int
    """Number of the wearer who breaches."""
    sent_s: float
    failed: str = ""
    """Reason why the canary couldn't be sent or was refused by ingest; else empty."""
    durable: bool = False
    """Whether ingest has acknowledged that the canary's report is in the log."""
    decided: bool = False
    """Whether the canary's alert has arrived."""
    offered: set[str] = field(default_factory=set)
    accepted: set[str] = field(default_factory=set)
    notified: set[str] = field(default_factory=set)
    """Agencies' legs that have seen the other agency's assignment, through the stream of incidents."""
    stood_down: set[str] = field(default_factory=set)

    @property
    def answered(self) -> bool:
        """Whether all legs have offered the canary and the offers are acknowledged."""
        return self.accepted.issuperset(flow.LEGS)

    @property
    def complete(self) -> bool:
        """Whether the canary is answered, and each agency's leg was notified of the other's assignment."""
        return self.answered and self.notified.issuperset(flow.AGENCY_LEGS)

    @property
    def over(self) -> bool:
        """Whether the canary is complete, and all legs have stood it down."""
        return self.complete and self.stood_down.issuperset(flow.LEGS)

    def is_missing(self, now_s: float) -> bool:
        """Whether the canary is late at `now_s`: not complete in time, or not stood down in time."""
        return now_s - self.sent_s >= (OVER_WITHIN_S if self.complete else LATE_AFTER_S) and not self.over


class PageKind(StrEnum):
    """Kind of a page: an outage begins, goes on or has ended."""

    MISSING = "MISSING"
    STILL_MISSING = "STILL_MISSING"
    BACK = "BACK"


@dataclass(frozen=True, slots=True)
class CanaryOutage:
    """An outage: at least one canary is missing."""

    since_ms: int
    """Time when the first missing canary was sent, mesh time, milliseconds since 1970 UTC."""
    seen: str
    """Progress, in words, of the canary that best shows the fault (`_most_telling`)."""
    pages: int = 0
    """Number of delivered pages."""
    paged_ms: int = 0
    """Time of the last delivered page, mesh time, milliseconds since 1970 UTC."""
    over_ms: int | None = None
    """Time when a canary came through again, mesh time; the outage is dropped once the BACK page is delivered."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page to deliver."""

    kind: PageKind
    outage: CanaryOutage


@dataclass(slots=True)
class CanaryState:
    """State of the watch: the pending canaries, and the current outage."""

    canaries: list[Canary] = field(default_factory=list)
    outage: CanaryOutage | None = None
    first: Canary | None = None
    """The canary that began the outage; None if the outage began before the watch started."""
    awaits_stand_down: bool = False
    """Whether `first` was missing because it wasn't stood down."""

    def latest_of(self, slot: int) -> Canary | None:
        """The latest canary of a slot."""
        return next((canary for canary in reversed(self.canaries) if canary.slot == slot), None)

    @property
    def pending(self) -> Canary | None:
        """The oldest canary that isn't complete."""
        return next((canary for canary in self.canaries if not canary.complete), None)


def judge(state: CanaryState, now_s: float, now_ms: int) -> Page | None:
    """Updates the state to the time `now_s`. Returns the page that is due, or None. The same page is returned at each call
    until `delivered` is called.
    """
    last_complete = max((canary.number for canary in state.canaries if canary.complete), default=-1)
    # A later complete canary proves that the chain works, so drop incomplete ones before it. But keep a canary whose report is in the
    # log while an offer is missing or unacknowledged: its loss must be paged.
    state.canaries = [
        canary
        for canary in state.canaries
        if canary.complete or canary.number > last_complete or (canary.durable and not canary.answered)
    ]
    if state.outage is None:
        _begin(state, now_s, now_ms)
    elif state.outage.over_ms is None:
        _end(state, state.outage, now_s, now_ms=now_ms)
    state.canaries = [canary for canary in state.canaries if not canary.over]
    return _due(state.outage, now_ms)


def _begin(state: CanaryState, now_s: float, now_ms: int) -> None:
    missing = next((canary for canary in state.canaries if canary.is_missing(now_s)), None)
    if missing is not None:
        state.outage = CanaryOutage(
            now_ms - round((now_s - missing.sent_s) * 1000), progress_of(_most_telling(state, missing, now_s))
        )
        state.first, state.awaits_stand_down = missing, missing.complete


def _end(state: CanaryState, outage: CanaryOutage, now_s: float, *, now_ms: int) -> None:
    """Ends the outage if a later canary has come as far as the first missing one should have."""
    first = state.first
    later = [canary for canary in state.canaries if first is None or canary.number > first.number]
    back = next((canary for canary in later if (canary.over if state.awaits_stand_down else canary.complete)), None)
    if back is not None:
        state.outage, state.first = replace(outage, over_ms=now_ms), None
        state.canaries = [canary for canary in later if canary.number >= back.number]
    elif first is not None:
        state.outage = replace(outage, seen=progress_of(_most_telling(state, first, now_s)))
    del state.canaries[:-MAX_KEPT]


def _most_telling(state: CanaryState, first: Canary, now_s: float) -> Canary:
    """The canary whose progress best shows the fault: the newest incomplete one older than MIN_DIAGNOSIS_AGE_S, else the first missing
    one."""
    tried = [
        canary for canary in state.canaries if not canary.complete and now_s - canary.sent_s >= MIN_DIAGNOSIS_AGE_S
    ]
    return first if state.awaits_stand_down or not tried else tried[-1]


def delivered(state: CanaryState, page: Page, now_ms: int) -> None:
    """Records the delivery of a page."""
    if state.outage is None:
        return
    if page.kind is PageKind.BACK:
        state.outage = None
    else:
        state.outage = replace(state.outage, pages=state.outage.pages + 1, paged_ms=now_ms)


def canaries_at_start(missing_s: float | None, now_s: float) -> list[Canary]:
    """Canaries to start with after a restart: a stand-in for the incomplete canary that was sent `missing_s` ago; none for None.

    The stand-in counts as missing after RESTART_GRACE_S at the earliest.
    """
    if missing_s is None:
        return []
    sent_s = max(now_s - missing_s, now_s - LATE_AFTER_S + RESTART_GRACE_S)
    return [Canary(0, -1, sent_s, failed="the watch was restarted meanwhile")]


def _due(outage: CanaryOutage | None, now_ms: int) -> Page | None:
    if outage is None:
        return None
    if outage.over_ms is not None:
        return Page(PageKind.BACK, outage)
    if not outage.pages:
        return Page(PageKind.MISSING, outage)
    if now_ms - outage.paged_ms >= REPEAT_PAGE_S * 1000:
        return Page(PageKind.STILL_MISSING, outage)
    return None


def progress_of(canary: Canary) -> str:
    """How far a canary came, in words for the person on call."""
    if not canary.durable:
        return f"nothing; {canary.failed or 'ingest has not answered'}"
    if not canary.decided and not canary.offered:
        return "ingest put it into the log; there is no alert"
    if not canary.answered:
        parts = [f"{leg} {_state(canary, leg)}" for leg in flow.LEGS]
        return f"there is an alert; {', '.join(parts)}"
    if not canary.complete:
        unaware = _and(leg for leg in flow.AGENCY_LEGS if leg not in canary.notified)
        return f"all legs accepted it; not notified of the other agency's assignment: {unaware}"
    return f"all legs accepted it; not stood down: {_and(leg for leg in flow.LEGS if leg not in canary.stood_down)}"


def _state(canary: Canary, leg: str) -> str:
    return "accepted it" if leg in canary.accepted else "offered it" if leg in canary.offered else "did nothing"


def _and(words: Iterable[str]) -> str:
    return " and ".join(words)
