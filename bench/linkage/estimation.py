"""Estimates the weights of a schema from unlabelled pairs by expectation maximisation over agreement patterns. Pure.

The model is the mixture of Winkler (1988). Each pattern comes from pairs of one person (with m) or of two persons (with u), and fields
are independent within each class. A missing value has no weight. Equal patterns are grouped, so the cost doesn't grow with the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from services.registry.matching.compare import Schema

R = TypeVar("R")
Pattern = tuple[int | None, ...]

MATCH = 0.5
"""Threshold: a pair counts as one person when that is more likely than not. It needs no labels for any data set."""
_MIN_PROBABILITY = 1e-6
"""Minimum probability of a level, so that no weight is infinite."""
_ROUNDS = 500
_CONVERGED = 1e-7


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated share of matching pairs."""

    share: float
    """Share of the pairs that are one person."""

    def prior(self) -> float:
        """Bits of evidence before any field is compared."""
        return math.log2(self.share / (1 - self.share))


def fit(schema: Schema[R], counts: Mapping[Pattern, int]) -> tuple[Schema[R], Estimate]:
    """Fits m and u of a schema to the patterns, starting from its present values; returns it and the share of matching pairs.

    Raises ValueError where there are no pairs.
    """
    total = sum(counts.values())
    if total == 0:
        raise ValueError("counts: holds no pairs to estimate from")
    share = 0.05
    for _ in range(_ROUNDS):
        prior = math.log2(share / (1 - share))
        chances = {pattern: probability(prior + schema.weight_of(pattern)) for pattern in counts}
        before = share
        share = sum(count * chances[pattern] for pattern, count in counts.items()) / total
        share = min(max(share, _MIN_PROBABILITY), 1 - _MIN_PROBABILITY)
        schema = _maximised(schema, counts, chances)
        if abs(share - before) < _CONVERGED * share:
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
    return [max(amount / total if total else 0.0, _MIN_PROBABILITY) for amount in amounts]
