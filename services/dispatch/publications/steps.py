"""Committed steps with their sequences, in the form that desks and INCIDENTS get."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from services.dispatch.leg import translate
from services.dispatch.leg.rows import StepRow
from tandem.dispatch.v1 import dispatch_pb2


@dataclass(frozen=True, slots=True)
class NumberedStep:
    """A step with its sequence in the leg's own order; 0 for a repeated offer. The message is shared and must not be changed."""

    sequence: int
    step: dispatch_pb2.Step


def numbered(rows: Iterable[StepRow]) -> Iterator[NumberedStep]:
    """Stored steps with their sequences, as messages."""
    return (NumberedStep(row.sequence, translate.stored_step(row)) for row in rows)
