"""Where an evaluator begins: behind the last entry that its checkpoints and the streams have in common.

At a start that is the newest checkpoint, as a rule. After a stream went back it is the newest one whose footing is still there as a
whole: the entry that it stands behind, and what was published by then. Without such a checkpoint it is the log's first entry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from services.common.messaging import cursors, flow
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamWentBack
from services.common.observability.telemetry import logger
from services.common.rpc.errors import Unavailable
from services.geofence.domain.state import State
from services.geofence.published import Published
from services.geofence.store import Checkpoint, CheckpointStore, Footing

RETRY_DELAY_S = 0.25
T = TypeVar("T")


class Beginning(NamedTuple):
    """A state, and what it rests on."""

    state: State
    footing: Footing


async def newest(
    bus: Bus,
    store: CheckpointStore,
    published: Published,
    partition: int,
    log_id: str,
    on_dropped: Callable[[State], None],
) -> Beginning | None:
    """The newest checkpoint of this log that is whole and rests on what the streams hold; None where the log must be folded from its
    start. Those that rest on what is lost are removed, and `on_dropped` gets their states. Waits for the server."""
    store.drop_drafts(partition)
    for checkpoint in store.found(partition):
        state = store.read(checkpoint, log_id)
        if state is None:
            continue
        try:
            await _require(bus, published, partition, checkpoint)
        except StreamWentBack as error:
            cursors.alarm(error)
            logger().error("checkpoint_dropped", partition=partition, sequence=state.sequence, stream=error.stream)
            store.drop(checkpoint)
            on_dropped(state)
            continue
        return Beginning(state, checkpoint.footing)
    return None


async def _require(bus: Bus, published: Published, partition: int, checkpoint: Checkpoint) -> None:
    entry = checkpoint.footing.entry
    await retried(lambda: cursors.holds(bus, flow.log_stream(partition), entry))
    await retried(lambda: published.require(checkpoint.footing))


async def retried(ask: Callable[[], Awaitable[T]]) -> T:
    """The answer of a server that may be starting: asks until it comes."""
    while True:
        try:
            return await ask()
        except Unavailable as error:
            logger().info("server_awaited", reason=error.reason)
            await asyncio.sleep(RETRY_DELAY_S)
