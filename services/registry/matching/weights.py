"""Weights of the Fellegi-Sunter model: how much each agreement or disagreement of two records weighs, in bits. Pure.

A field's comparator gives the level at which two values agree. Each level has two probabilities: m among pairs of records of one
person, and u among pairs of records of two people. The weight of a level is log2(m / u). A value that either record lacks weighs 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class AgreementLevel:
    """Level at which two values of a field agree or differ."""

    name: str
    words: str
    """Meaning of the level as a sentence, for the person who reviews the match."""
    m: float
    """Probability of the level among pairs of records of one person; above 0 and at most 1."""
    u: float
    """Probability of the level among pairs of records of two people."""

    @property
    def weight(self) -> float:
        """Evidence for one person, bits. A negative weight is evidence against it."""
        return math.log2(self.m / self.u)


@dataclass(frozen=True, slots=True)
class Field(Generic[R]):
    """A field by which two records are compared."""

    name: str
    compare: Callable[[R, R], int | None]
    """Index into `levels` for two records; None if a value is missing. Symmetric."""
    levels: tuple[AgreementLevel, ...]


@dataclass(frozen=True, slots=True)
class FieldComparison:
    """Result of comparing one field of two records."""

    field: str
    level: str
    weight: float
    """Evidence for one person, bits."""
    words: str


MISSING = "MISSING"
"""Level of a field that at least one of the two records doesn't state."""


@dataclass(frozen=True, slots=True)
class Schema(Generic[R]):
    """Fields of one kind of record. The model assumes that the fields are independent."""

    fields: tuple[Field[R], ...]

    def pattern(self, left: R, right: R) -> tuple[int | None, ...]:
        """Level of each field, in order."""
        return tuple(field.compare(left, right) for field in self.fields)

    def evidence(self, left: R, right: R) -> tuple[FieldComparison, ...]:
        """Comparison of each field, in order."""
        return tuple(map(_evidence, self.fields, self.pattern(left, right)))

    def weight_of(self, pattern: Sequence[int | None]) -> float:
        """Sum of the weights of a pattern of levels, bits."""
        return sum(
            field.levels[level].weight for field, level in zip(self.fields, pattern, strict=True) if level is not None
        )


def _evidence(field: Field[R], level: int | None) -> FieldComparison:
    if level is None:
        return FieldComparison(field=field.name, level=MISSING, weight=0.0, words="not stated on both sides")
    agreement = field.levels[level]
    return FieldComparison(field=field.name, level=agreement.name, weight=agreement.weight, words=agreement.words)
