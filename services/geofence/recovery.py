"""Recovery of an evaluator: it resumes after the last entry that its checkpoints and the streams have in common.

At a normal start, that is the last entry in the newest checkpoint. A checkpoint is usable only while the streams hold its footing: the
last folded entry, the newest alert and the newest figures. After a stream went back, the newest usable checkpoint may be an older one.
Without a usable checkpoint, the fold starts at the log's first entry.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from services.common.messaging import cursors, flow
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamWentBack
from services.common.observability.telemetry import logger
from services.common.retrying import every, retried
from services.common.rpc.errors import Unavailable
from services.geofence.domain.state import State
from services.geofence.outputs.published import PublishedOutputs
from services.geofence.store import Checkpoint, CheckpointStore, Footing

RETRY_DELAY_S = 0.25
T = TypeVar("T")


class RestoredState(NamedTuple):
    """A state from a checkpoint, and the checkpoint's footing."""

    state: State
    footing: Footing


async def newest(
    bus: Bus,
    store: CheckpointStore,
    published: PublishedOutputs,
    *,
    partition: int,
    log_id: str,
    on_dropped: Callable[[State], None],
) -> RestoredState | None:
    """The newest undamaged checkpoint of this log with a footing that the streams hold; None if the log must be folded from its start.

    Removes checkpoints whose footing is lost, and passes their states to `on_dropped`. Waits for the server.
    """
    store.drop_pending(partition)
    for checkpoint in store.found(partition):
        state = store.read(checkpoint, log_id)
        if state is None:
            continue
        try:
            await _require(bus, published, partition, checkpoint=checkpoint)
        except StreamWentBack as error:
            cursors.alarm(bus, error)
            logger().error("checkpoint_dropped", partition=partition, sequence=state.sequence, stream=error.stream)
            store.drop(checkpoint)
            on_dropped(state)
            continue
        return RestoredState(state, checkpoint.footing)
    return None


async def _require(bus: Bus, published: PublishedOutputs, partition: int, *, checkpoint: Checkpoint) -> None:
    entry = checkpoint.footing.entry
    await await_server(lambda: cursors.holds(bus, flow.log_stream(partition), entry))
    await await_server(lambda: published.require_footing(checkpoint.footing))


async def await_server(call: Callable[[], Awaitable[T]]) -> T:
    """The result of a call to a server that may be starting: retries it every RETRY_DELAY_S while it raises Unavailable."""
    return await retried(call, every(RETRY_DELAY_S), on=Unavailable, event="server_awaited", level=logging.INFO)
