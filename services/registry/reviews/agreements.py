"""The agreements of a comparison as JSON in the database: field, level and weight. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable

from services.registry.matching.compare import words_of
from services.registry.matching.weights import FieldComparison


def dump(agreements: Iterable[FieldComparison]) -> str:
    """The agreements as JSON."""
    return json.dumps([(field.field, field.level, field.weight) for field in agreements])


def parse(text: str) -> tuple[FieldComparison, ...]:
    """The agreements from their JSON."""
    return tuple(
        FieldComparison(field=field, level=level, weight=weight, words=words_of(field, level))
        for field, level, weight in json.loads(text)
    )
