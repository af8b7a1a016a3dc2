"""Canaries as the watch knows them, and when somebody has to be woken. Pure.

A canary is a synthetic breach: it is *whole* once all legs have offered it and it was taken, and each agency's leg was told of the
other's; it is over once all legs stood it down. Moments are mesh time since an arbitrary one, seconds, but for those of an outage,
which outlive the process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

LEGS = ("probation", "police", "warning")
AGENCIES = LEGS[:2]
EVERY_S = 20.0
LATE_AFTER_S = 35.0
"""A canary that isn't whole after this is missing: with EVERY_S, an outage is paged within 60 s of its beginning."""
OVER_WITHIN_S = 150.0
"""Until it is stood down: it leaves the ring after EVERY_S, the ring is cleared 60 s later, with the next report at the latest."""
RETRY_AFTER_S = 300.0
"""How often an outage is paged again."""
MAX_KEPT = 100
"""Canaries that are remembered while an outage lasts."""
TRIED_AFTER_S = 10.0
"""After this it shows where a canary is stuck."""
GRACE_S = 10.0
"""What a canary gets at the least after the watch was started, whatever was missing before."""


@dataclass(slots=True)
class Canary:
    """One synthetic breach."""

    number: int
    slot: int
    """Which of the wearers breaches."""
    sent_s: float
    failed: str = ""
    """Why it couldn't be sent, or ingest didn't take it."""
    durable: bool = False
    """Ingest says that it is in the log."""
    decided: bool = False
    """There is an alert."""
    offered: set[str] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    """Agencies' legs that were told of the other's, which goes by the stream of incidents."""
    stood_down: set[str] = field(default_factory=set)

    @property
    def answered(self) -> bool:
        """All legs offered it, and it was taken."""
        return self.taken.issuperset(LEGS)

    @property
    def whole(self) -> bool:
        """All that can be expected of it at once has happened."""
        return self.answered and self.told.issuperset(AGENCIES)

    @property
    def over(self) -> bool:
        """Nothing is left of it."""
        return self.whole and self.stood_down.issuperset(LEGS)

    def is_missing(self, now_s: float) -> bool:
        """Whether it should be further than it is."""
        return now_s - self.sent_s >= (OVER_WITHIN_S if self.whole else LATE_AFTER_S) and not self.over


class PageKind(StrEnum):
    """What a page says."""

    MISSING = "MISSING"
    STILL_MISSING = "STILL_MISSING"
    BACK = "BACK"


@dataclass(frozen=True, slots=True)
class CanaryOutage:
    """Canaries are missing."""

    since_ms: int
    """When the first missing one was sent, mesh time, milliseconds since 1970 UTC."""
    seen: str
    """How far the newest came that has had its time."""
    pages: int = 0
    """How many were delivered."""
    paged_ms: int = 0
    """When the last one was."""
    over_ms: int | None = None
    """When a canary came through again; it is told, and then the outage is forgotten."""


@dataclass(frozen=True, slots=True)
class Page:
    """What somebody has to be told."""

    kind: PageKind
    outage: CanaryOutage


@dataclass(slots=True)
class CanaryState:
    """What is known: the canaries that are on their way, and the outage if there is one."""

    canaries: list[Canary] = field(default_factory=list)
    outage: CanaryOutage | None = None
    first: Canary | None = None
    """The canary that began the outage; None where that was before the watch was started."""
    awaits_end: bool = False
    """It was missing because it wasn't stood down."""

    def on(self, slot: int) -> Canary | None:
        """The last canary of a slot."""
        return next((canary for canary in reversed(self.canaries) if canary.slot == slot), None)

    @property
    def pending(self) -> Canary | None:
        """The oldest that isn't whole."""
        return next((canary for canary in self.canaries if not canary.whole), None)


def judge(watched: CanaryState, now_s: float, now_ms: int) -> Page | None:
    """Brings what is known up to a moment; what is to be told of it, again and again until it is delivered (`delivered`)."""
    last_whole = max((canary.number for canary in watched.canaries if canary.whole), default=-1)
    # What never reached the log, or of which the other leg wasn't told, is made up for by a later one. What did reach it must come.
    watched.canaries = [
        canary
        for canary in watched.canaries
        if canary.whole or canary.number > last_whole or (canary.durable and not canary.answered)
    ]
    if watched.outage is None:
        _begin(watched, now_s, now_ms)
    elif watched.outage.over_ms is None:
        _end(watched, watched.outage, now_s, now_ms)
    watched.canaries = [canary for canary in watched.canaries if not canary.over]
    return _due(watched.outage, now_ms)


def _begin(watched: CanaryState, now_s: float, now_ms: int) -> None:
    missing = next((canary for canary in watched.canaries if canary.is_missing(now_s)), None)
    if missing is not None:
        watched.outage = CanaryOutage(
            now_ms - round((now_s - missing.sent_s) * 1000), seen(_telling(watched, missing, now_s))
        )
        watched.first, watched.awaits_end = missing, missing.whole


def _end(watched: CanaryState, outage: CanaryOutage, now_s: float, now_ms: int) -> None:
    """A later canary that comes as far as the first one should have ends the outage."""
    first = watched.first
    later = [canary for canary in watched.canaries if first is None or canary.number > first.number]
    back = next((one for one in later if (one.over if watched.awaits_end else one.whole)), None)
    if back is not None:
        watched.outage, watched.first = replace(outage, over_ms=now_ms), None
        watched.canaries = [one for one in later if one.number >= back.number]
    elif first is not None:
        watched.outage = replace(outage, seen=seen(_telling(watched, first, now_s)))
    del watched.canaries[:-MAX_KEPT]


def _telling(watched: CanaryState, first: Canary, now_s: float) -> Canary:
    """The newest canary that has had its time and isn't whole: how far it came says what is broken now."""
    tried = [canary for canary in watched.canaries if not canary.whole and now_s - canary.sent_s >= TRIED_AFTER_S]
    return first if watched.awaits_end or not tried else tried[-1]


def delivered(watched: CanaryState, page: Page, now_ms: int) -> None:
    """Notes that a page reached somebody."""
    if watched.outage is None:
        return
    if page.kind is PageKind.BACK:
        watched.outage = None
    else:
        watched.outage = replace(watched.outage, pages=watched.outage.pages + 1, paged_ms=now_ms)


def resumed(missing_s: float | None, now_s: float) -> list[Canary]:
    """What stands for a canary that was missing for so long when the watch was started; nothing where none was."""
    if missing_s is None:
        return []
    sent_s = max(now_s - missing_s, now_s - LATE_AFTER_S + GRACE_S)
    return [Canary(0, -1, sent_s, failed="the watch was started again meanwhile")]


def _due(outage: CanaryOutage | None, now_ms: int) -> Page | None:
    if outage is None:
        return None
    if outage.over_ms is not None:
        return Page(PageKind.BACK, outage)
    if not outage.pages:
        return Page(PageKind.MISSING, outage)
    if now_ms - outage.paged_ms >= RETRY_AFTER_S * 1000:
        return Page(PageKind.STILL_MISSING, outage)
    return None


def seen(canary: Canary) -> str:
    """How far a canary came, in words for whoever is woken."""
    if not canary.durable:
        return f"nothing; {canary.failed or 'ingest has not answered'}"
    if not canary.decided and not canary.offered:
        return "ingest put it into the log; there is no alert"
    if not canary.answered:
        parts = [f"{leg} {_state(canary, leg)}" for leg in LEGS]
        return f"the alert; {', '.join(parts)}"
    if not canary.whole:
        return f"all legs took it; not told of the other agency's: {_and(leg for leg in AGENCIES if leg not in canary.told)}"
    return f"all legs took it; not stood down: {_and(leg for leg in LEGS if leg not in canary.stood_down)}"


def _state(canary: Canary, leg: str) -> str:
    return "took it" if leg in canary.taken else "offered it" if leg in canary.offered else "did nothing"


def _and(words: Iterable[str]) -> str:
    return " and ".join(words)
