"""Which evaluator of this process has a case, and what to say where none has."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from services.common.rpc.errors import NotFound, Unavailable
from services.geofence.consumer import Evaluator

MIN_SEQUENCE_AWAITED_S = 4.0


class Holding:
    """The evaluators of this process, by partition, and how many partitions there are."""

    def __init__(self, evaluators: Mapping[int, Evaluator], partitions: int) -> None:
        self._evaluators, self._partitions = evaluators, partitions

    def of(self, case_id: str) -> Evaluator | None:
        """The evaluator that has applied this case."""
        return next((evaluator for evaluator in self._evaluators.values() if case_id in evaluator.state.cases), None)

    async def after(self, case_id: str, sequence: int) -> Evaluator:
        """The evaluator that has the case once its partition has applied a sequence.

        Raises Unavailable where that takes too long, and where the case may be in a partition that only others fold; NotFound where
        no partition has it.
        """
        holder = self.of(case_id)
        # A case that isn't there may be on its way in any partition: each answers for itself.
        among = [holder] if holder else list(self._evaluators.values())
        waits = [asyncio.ensure_future(_applied(one, sequence)) for one in among]
        try:
            for wait in asyncio.as_completed(waits):
                evaluator = await wait
                if case_id in evaluator.state.cases:
                    return evaluator
        finally:
            for one in waits:
                one.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        raise self.missing()

    def missing(self) -> NotFound | Unavailable:
        """Why a case isn't here: nobody has it, or others may."""
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
