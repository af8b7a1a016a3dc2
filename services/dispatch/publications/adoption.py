"""Adoption of steps: publishes the steps that another process of the leg committed and didn't publish."""

from __future__ import annotations

import asyncio

from services.common.retrying import retried
from services.dispatch.leg.store import Store
from services.dispatch.publications.outbox import StepOutbox
from services.dispatch.publications.steps import numbered

ADOPT_AFTER_S = 2.0
"""Interval of the search for unpublished steps of other processes, seconds. Such a step is published after one to two intervals."""


async def adopt_steps(store: Store, outbox: StepOutbox) -> None:
    """Publishes steps of other processes that stay unpublished, until cancelled.

    A step stays unpublished if its process died, or if the answer to a commit of this process was lost.
    """
    previous: set[int] = set()
    while True:
        await asyncio.sleep(ADOPT_AFTER_S)
        waiting = await retried(store.unpublished_sequences)
        orphans = {sequence for sequence in waiting if not outbox.holds(sequence)}
        # Take only steps that the previous search found too. Another process may be about to publish the newer ones.
        if orphans & previous:
            rows = await retried(store.unpublished)
            outbox.add(numbered(row for row in rows if row.sequence in orphans & previous))
        previous = orphans
