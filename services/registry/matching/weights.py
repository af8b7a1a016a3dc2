"""Fellegi-Sunter: what each agreement and disagreement of two records weighs, in bits, and in words. Pure.

A field's comparator says at which level two values agree. A level has m, its probability among pairs that are one person, and u, its
probability among pairs that are two; its weight is log2(m / u). A value that is missing on either side weighs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class AgreementLevel:
    """One way in which two values of a field agree or differ."""

    name: str
    words: str
    """What it means, for the person who decides."""
    m: float
    """Its probability among pairs that are one person; above 0 and at most 1."""
    u: float
    """Its probability among pairs that are two."""

    @property
    def weight(self) -> float:
        """Bits of evidence for one person; below 0 speaks against."""
        return math.log2(self.m / self.u)


@dataclass(frozen=True, slots=True)
class Field(Generic[R]):
    """One thing that two records are compared by."""

    name: str
    compare: Callable[[R, R], int | None]
    """Which of `levels` two records are at; None where a value is missing. Symmetric."""
    levels: tuple[AgreementLevel, ...]


@dataclass(frozen=True, slots=True)
class FieldComparison:
    """What one field says of a pair."""

    field: str
    level: str
    weight: float
    """Bits, above 0 for one person."""
    words: str


MISSING = "MISSING"
"""The level of a field that one of the two records doesn't state."""


@dataclass(frozen=True, slots=True)
class Schema(Generic[R]):
    """The fields of one kind of record. What they say is taken as independent."""

    fields: tuple[Field[R], ...]

    def pattern(self, left: R, right: R) -> tuple[int | None, ...]:
        """The level of each field, in order."""
        return tuple(field.compare(left, right) for field in self.fields)

    def evidence(self, left: R, right: R) -> tuple[FieldComparison, ...]:
        """What each field says, in order."""
        return tuple(map(_evidence, self.fields, self.pattern(left, right)))

    def weight_of(self, pattern: Sequence[int | None]) -> float:
        """Sum of the weights of a pattern, bits."""
        return sum(
            field.levels[level].weight for field, level in zip(self.fields, pattern, strict=True) if level is not None
        )


def _evidence(field: Field[R], level: int | None) -> FieldComparison:
    if level is None:
        return FieldComparison(field.name, MISSING, 0.0, "not stated on both sides")
    found = field.levels[level]
    return FieldComparison(field.name, found.name, found.weight, found.words)
