"""Weights of a schema from pairs that nobody has labelled: expectation maximisation over patterns of agreement. Pure.

The mixture of Winkler (1988): each pattern comes from pairs that are one person (with m) or two (with u), fields being independent
within each; a missing value says nothing. Equal patterns are counted once, so that the cost doesn't grow with the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from services.registry.matching.weights import Schema

R = TypeVar("R")
Pattern = tuple[int | None, ...]

MATCH = 0.5
"""The threshold: a pair counts as one person when that is likelier than not. It needs no labels, whatever the records."""
_LEAST = 1e-6
"""Least probability of a level, so that no weight is infinite."""
_ROUNDS = 500
_SETTLED = 1e-7


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the pairs say of themselves."""

    share: float
    """Share of the pairs that are one person."""

    def prior(self) -> float:
        """Bits of evidence before anything is compared."""
        return math.log2(self.share / (1 - self.share))


def fit(schema: Schema[R], counts: Mapping[Pattern, int]) -> tuple[Schema[R], Estimate]:
    """The schema with the m and u that explain the patterns best, starting from those it has, and the share of pairs that match.

    Raises ValueError where there is no pair.
    """
    total = sum(counts.values())
    if total == 0:
        raise ValueError("no pairs to estimate from")
    share = 0.05
    for _ in range(_ROUNDS):
        prior = math.log2(share / (1 - share))
        chances = {pattern: probability(prior + schema.weight_of(pattern)) for pattern in counts}
        before = share
        share = sum(count * chances[pattern] for pattern, count in counts.items()) / total
        share = min(max(share, _LEAST), 1 - _LEAST)
        schema = _maximised(schema, counts, chances)
        if abs(share - before) < _SETTLED * share:
            break
    return schema, Estimate(share)


def probability(bits: float) -> float:
    """Probability for odds of 2 ** bits."""
    return 1 / (1 + math.exp2(-min(max(bits, -1000.0), 1000.0)))


def _maximised(schema: Schema[R], counts: Mapping[Pattern, int], chances: Mapping[Pattern, float]) -> Schema[R]:
    same = [[0.0] * len(field.levels) for field in schema.fields]
    other = [[0.0] * len(field.levels) for field in schema.fields]
    for pattern, count in counts.items():
        chance = chances[pattern]
        for n, level in enumerate(pattern):
            if level is not None:
                same[n][level] += count * chance
                other[n][level] += count * (1 - chance)
    fields = []
    for field, m, u in zip(schema.fields, same, other, strict=True):
        ms, us = _shares(m), _shares(u)
        levels = tuple(replace(level, m=ms[n], u=us[n]) for n, level in enumerate(field.levels))
        fields.append(replace(field, levels=levels))
    return Schema(tuple(fields))


def _shares(amounts: list[float]) -> list[float]:
    total = sum(amounts)
    return [max(amount / total if total else 0.0, _LEAST) for amount in amounts]
