"""Counts of the decision-quality study, of one play or of several together, and their form in a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

THRESHOLDS_M = np.array([*range(20, 300, 5), *range(300, 1001, 25), *range(1100, 3001, 100)], np.float64)
"""Thresholds of the plain rule."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A missed breach, a dispatch for nothing or a close approach that was notified late, and its probable cause."""

    what: str
    """`missed`, `for nothing`, `close`, or `close, recorded` where UNKNOWN_NEAR was in the record."""
    cause: str
    play: str
    arm: str
    gaps: str
    draw: int
    at_ms: int
    true_m: float
    """Minimum true distance meanwhile."""


class Group(NamedTuple):
    """What the counts are about."""

    gaps: str
    arm: str
    draw: int
    wearer: str
    is_far: bool


def _by_threshold() -> NDArray[np.int64]:
    return np.zeros(len(THRESHOLDS_M), np.int64)


@dataclass(slots=True)
class Judged:
    """Judgement of one play, or of all plays of a group, with one arm, one regime of gaps and one draw of the noise."""

    wearer: str
    is_far: bool
    """Whether the protected person or place is far away, 1 to 20 km."""
    arm: str
    gaps: str
    draw: int
    hours: float
    """Duration."""
    cpu_s: float = 0.0
    """Processor time that it took, seconds."""
    breaches: int = 0
    missed: int = 0
    """Breaches without a demand by 60 s after their end."""
    missed_by_report: int = 0
    """Breaches without a demand by the first report after their end."""
    missed_but_near: int = 0
    """Missed breaches for which UNKNOWN_NEAR notified a person."""
    missed_but_recorded: int = 0
    """Missed breaches for which UNKNOWN_NEAR was at least in the record."""
    delays_ms: list[int] = field(default_factory=list)
    """Delays of breaches that weren't missed and began while both sides were known; 0 where the demand was active before."""
    close: int = 0
    late: int = 0
    """Close approaches of which nobody was notified by 60 s after their end."""
    late_by_start: int = 0
    """Close approaches of which nobody was notified by 90 s after their start."""
    late_by_report: int = 0
    """Close approaches of which nobody was notified by the first report after their first 30 s."""
    dispatches: int = 0
    nothing: Counter[str] = field(default_factory=Counter)
    """Dispatches for nothing, by the kind of their first demand."""
    single_nothing: int = 0
    """Demands to respond for nothing, not only the first one of each dispatch."""
    touching: int = 0
    """Number of alerts that demand NOTIFY or more."""
    sent: int = 0
    """Number of the tag's reports that arrived, without duplicates."""
    commands: int = 0
    """Number of the fold's requests for an interval."""
    locates: int = 0
    """Number of the fold's requests for a position now."""
    located: int = 0
    """Number of positions on demand that were reported."""
    plain_missed: NDArray[np.int64] = field(default_factory=_by_threshold)
    """Missed breaches of the plain rule, by threshold, like the next two."""
    plain_nothing: NDArray[np.int64] = field(default_factory=_by_threshold)
    """Dispatches for nothing of the plain rule."""
    plain_single_nothing: NDArray[np.int64] = field(default_factory=_by_threshold)
    """The same without grouping: each time that the distance falls to T or less."""
    faults: list[Fault] = field(default_factory=list)

    @property
    def all_nothing(self) -> int:
        """All dispatches for nothing together."""
        return self.nothing.total()

    def add(self, other: Judged) -> None:
        """Adds the counts of another judgement of the same group."""
        for each in fields(self):
            value = getattr(self, each.name)
            if not isinstance(value, str | bool) and each.name != "draw":
                setattr(self, each.name, value + getattr(other, each.name))


def merged(judged: Iterable[Judged]) -> list[Judged]:
    """Judgements added up by group, in the order of the groups."""
    groups: dict[Group, Judged] = {}
    for play in judged:
        group = Group(play.gaps, play.arm, play.draw, play.wearer, play.is_far)
        if group not in groups:
            groups[group] = Judged(play.wearer, play.is_far, play.arm, play.gaps, play.draw, 0.0)
        groups[group].add(play)
    return [sums for _, sums in sorted(groups.items())]


def to_json(judged: Judged) -> dict[str, Any]:
    """A judgement as JSON values, without its faults."""
    values = {each.name: getattr(judged, each.name) for each in fields(judged) if each.name != "faults"}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def from_json(values: dict[str, Any]) -> Judged:
    """The judgement of `to_json`."""
    arrays = {name: np.array(value, np.int64) for name, value in values.items() if name.startswith("plain_")}
    return Judged(**{**values, **arrays, "nothing": Counter(values["nothing"])})
