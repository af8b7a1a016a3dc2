"""Partition ownership: which evaluator of this process has a case, and the error if none has it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from services.common.rpc.errors import NotFound, Unavailable
from services.geofence.consumer import Evaluator

MIN_SEQUENCE_AWAITED_S = 4.0


class PartitionOwnership:
    """The evaluators of this process by partition, and the number of partitions of the log."""

    def __init__(self, evaluators: Mapping[int, Evaluator], partitions: int) -> None:
        self._evaluators, self._partitions = evaluators, partitions

    def evaluator_of(self, case_id: str) -> Evaluator | None:
        """The evaluator that has a case in its state."""
        return next((evaluator for evaluator in self._evaluators.values() if case_id in evaluator.state.cases), None)

    async def evaluator_after(self, case_id: str, sequence: int) -> Evaluator:
        """The evaluator that has a case, once its partition has applied a sequence.

        Raises Unavailable if that takes longer than MIN_SEQUENCE_AWAITED_S, or if the case may be in a partition that only other
        evaluators fold. Raises NotFound if no partition has the case.
        """
        owner = self.evaluator_of(case_id)
        # An unknown case may arrive in any partition, so each evaluator waits for the sequence by itself.
        candidates = [owner] if owner else list(self._evaluators.values())
        waits = [asyncio.ensure_future(_applied(evaluator, sequence)) for evaluator in candidates]
        try:
            for wait in asyncio.as_completed(waits):
                evaluator = await wait
                if case_id in evaluator.state.cases:
                    return evaluator
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        raise self.not_found()

    def not_found(self) -> NotFound | Unavailable:
        """The error for an unknown case: NotFound, or Unavailable if another evaluator may have the case."""
        others = [p for p in range(self._partitions) if p not in self._evaluators]
        if not others:
            return NotFound("no such case")
        return Unavailable(
            f"no such case in partitions {_listed(list(self._evaluators))} of this evaluator; "
            f"{_listed(others)} are folded by others: ask another evaluator"
        )


def _listed(partitions: list[int]) -> str:
    return ", ".join(map(str, partitions))


async def _applied(evaluator: Evaluator, sequence: int) -> Evaluator:
    try:
        async with asyncio.timeout(MIN_SEQUENCE_AWAITED_S), evaluator.applied:
            await evaluator.applied.wait_for(lambda: evaluator.state.sequence >= sequence)
    except TimeoutError:
        raise Unavailable(f"partition {evaluator.partition} hasn't applied sequence {sequence} yet") from None
    return evaluator
