"""An attacker who sees all contacts of a month and his own track, and wants to know where she lives. Pure.

He knows the rings, the rule with all its constants, the place that the order names, when people like her are at home, and that she
lives within 8 km of his home and not within 2 km. He doesn't know the mesh's key. He computes the probability of each cell of a grid by
Bayes: a contact is likelier where it says that he has just come within the ring around her home, and less likely where he came there
and none followed. His best estimate is the cell with the least expected distance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.contact.lives import DAYS, HOME_M, INTERVAL_S, SPREAD_M, Month
from services.geofence.domain.contacts.first_contact import (
    ALLOWED_ONE_IN,
    CAUSED_ONE_IN,
    DAY_HOURS,
    PLACE_MM,
    SLOT_MS,
)

RING_M = 1_000.0
CELL_M = 250.0
PLACE_M = PLACE_MM / 1_000
BELIEVED_WRONG = 1e-3
"""Probability of a contact that nothing of the model explains, such as a detour of hers, in one interval of reports."""
Floats = NDArray[np.float64]


class Rule(NamedTuple):
    """What an attacker believes about a rule."""

    caused: float
    """Probability that a slot may have a contact with a cause."""
    allowed: float
    """Probability that a place and an hour allow contacts. The draw for each pair is kept."""
    uncaused: float
    """Probability of a contact without a cause in an interval of reports in which he moves by day, before the slot had one."""
    by_day: bool
    """Whether contacts are made by day only, and one in each slot at most."""


def at_home(at_s: Floats) -> Floats:
    """Probability that she is at home: at night, by day at the weekend, by day on weekdays."""
    hour, day = at_s % 86_400 / 3_600, at_s // 86_400
    is_weekday = day % 7 < 5
    by_day = np.where(is_weekday, np.where((hour > 8.5) & (hour < 17.5), 0.05, 0.75), 0.7)
    chances: Floats = np.where((hour < 7.5) | (hour > 22), 0.97, by_day)
    return chances


class Attacker:
    """The attacker of one month."""

    def __init__(self, month: Month) -> None:
        self._month = month
        side = np.arange(-SPREAD_M, SPREAD_M + 1, CELL_M)
        north, east = np.meshgrid(side, side, indexing="ij")
        cells = (east + 1j * north).ravel() + month.home
        away = abs(cells - month.home)
        self._cells = cells[(away >= HOME_M[0]) & (away <= SPREAD_M)]
        self._prior = np.full(len(self._cells), 1 / len(self._cells))
        points = np.array([sighting.point for sighting in month.wearer])
        times = np.array([sighting.at_s for sighting in month.wearer])
        moved = np.flatnonzero(abs(np.diff(points)) > 80) + 1
        # Contacts near the named place say nothing about her.
        moved = moved[abs(points[moved] - month.work) > RING_M + 30]
        self._moved, self._times = moved, times
        hours = times[moved] % 86_400 // 3_600
        self._by_day = (hours >= DAY_HOURS.start) & (hours < DAY_HOURS.stop)
        inside = abs(points[moved][:, None] - self._cells[None, :]) <= RING_M
        before = abs(points[moved - 1][:, None] - self._cells[None, :]) <= RING_M
        self._entered = inside & ~before
        self._home = at_home(times[moved])
        self._keys = [
            (point.real // PLACE_M, point.imag // PLACE_M, hour)
            for point, hour in zip(points[moved], hours, strict=True)
        ]
        """Place and hour of each movement, for which the rule gives one answer."""

    def naive(self) -> Rule:
        """A contact at each NOTIFY."""
        return Rule(caused=1.0, allowed=1.0, uncaused=0.0, by_day=False)

    def kept(self) -> Rule:
        """The rule of the decision."""
        per_slot = self._by_day.sum() / (DAYS * 86_400_000 / SLOT_MS)
        return Rule(1 / CAUSED_ONE_IN, 1 / ALLOWED_ONE_IN, 2 / max(2.0, per_slot), by_day=True)

    def error_m(self, contacts_s: Sequence[float], rule: Rule) -> float:
        """Error of his best estimate of her home."""
        return self._error_m(self._posterior(contacts_s, rule))

    def share_near(self, contacts_s: Sequence[float], rule: Rule, *, within_m: float) -> float:
        """Probability that he gives to places within a distance of her home."""
        return float(self._posterior(contacts_s, rule)[abs(self._cells) <= within_m].sum())

    def error_without_m(self) -> float:
        """Error of his best estimate without contacts."""
        return self._error_m(self._prior)

    def _posterior(self, contacts_s: Sequence[float], rule: Rule) -> Floats:
        moved_s = self._times[self._moved]
        contacts = set()
        for at_s in contacts_s:
            nearest = int(np.argmin(abs(moved_s - at_s)))
            if abs(moved_s[nearest] - at_s) < 2 * INTERVAL_S:
                contacts.add(nearest)
        weight = np.log(self._prior)
        # He takes the slots to begin with the month, which is about right.
        slots = moved_s * 1_000 // SLOT_MS if rule.by_day else np.arange(len(moved_s))
        for slot in np.unique(slots):
            weight += self._of_slot(np.flatnonzero(slots == slot), contacts, rule)
        weight -= weight.max()
        probabilities: Floats = np.exp(weight)
        probabilities /= probabilities.sum()
        return probabilities

    def _of_slot(self, moves: NDArray[np.int_], contacts: set[int], rule: Rule) -> Floats:
        """Logarithm of the probability of what he noticed in a slot, for each cell."""
        none_yet, tried = np.ones(len(self._cells)), set()
        for n in moves:
            if rule.by_day and not self._by_day[n]:
                continue
            entering = rule.allowed * self._home[n] * self._entered[n]
            if n in contacts:
                caused = rule.caused * none_yet * entering
                chances: Floats = np.log(caused + rule.uncaused + BELIEVED_WRONG)
                return chances
            if self._keys[n] not in tried:
                none_yet = none_yet * (1 - entering * (1 - BELIEVED_WRONG))
                if entering.any():
                    tried.add(self._keys[n])
        nothing: Floats = np.log(1 - rule.caused + rule.caused * none_yet)
        return nothing

    def _error_m(self, probabilities: Floats) -> float:
        likely = np.flatnonzero(probabilities > 1e-7)
        expected = abs(self._cells[:, None] - self._cells[likely][None, :]) @ probabilities[likely]
        # Without contacts, all is symmetrical: his own home is as good an estimate as any.
        estimate = self._cells[int(np.argmin(expected))]
        if float(abs(self._month.home - self._cells) @ probabilities) <= float(expected.min()):
            estimate = self._month.home
        return math.hypot(estimate.real, estimate.imag)
