"""Checkpoints of one partition: how one becomes valid, and which one an evaluator resumes from.

One at a time is begun, written by a child process, and made valid. It becomes valid only once every alert and all figures before it
are stored and verified, so no evaluator that resumes skips an unpublished alert.

An evaluator resumes after the last entry that its checkpoints and the streams have in common. At a normal start, that is the last
entry in the newest checkpoint. A checkpoint is usable only while the streams hold its footing: the last folded entry, the newest alert
and the newest figures. After a stream went back, the newest usable checkpoint may be an older one. Without a usable checkpoint, the
fold starts at the log's first entry.

Nobody would republish an alert that was lost after its acknowledgement, because a checkpoint covers all acknowledged alerts. So the
evaluator looks up the newest message of ALERTS and of MEASURES within a second of a reconnect, and every VERIFY_INTERVAL_S otherwise.
Alerts don't wait for this check; checkpoints do.

`services.common.messaging.lost_publications` serves publishers that have a database. It compares a record of each publication with
the stream and publishes the lost ones again. An evaluator has no such record, because the log holds the causes of all its outputs. For
an evaluator it is enough to notice one lost message: it folds again from a checkpoint before the loss.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from services.common.errors import Unavailable
from services.common.messaging import cursors, flow
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamWentBack
from services.common.observability.telemetry import logger
from services.common.retrying import every, retried
from services.common.running import completed
from services.geofence.domain.state import State
from services.geofence.store import (
    Checkpoint,
    CheckpointFailed,
    CheckpointStore,
    Footing,
    PendingCheckpoint,
    PublishedAlert,
)

CHECK_INTERVAL_S = 0.05
TIMEOUT_S = 600.0
PAUSE_FACTOR = 9.0
"""After a checkpoint that took t seconds, wait 9 t before the next one, so that checkpoints don't run back to back under load."""


class _Supported(NamedTuple):
    """A checkpoint whose alerts and figures are stored."""

    pending: PendingCheckpoint
    footing: Footing


class Checkpoints:
    """Runs the checkpoints of one partition: at most one is under way, and a pause follows each."""

    def __init__(self, store: CheckpointStore, published: PublishedOutputs, partition: int) -> None:
        self._store = store
        self._published = published
        self._partition = partition
        self._supported: asyncio.Queue[_Supported] = asyncio.Queue()
        self._is_under_way = False
        self._child: PendingCheckpoint | None = None
        """The checkpoint that a child process is writing."""
        self._finishing: asyncio.Future[None] | None = None
        self._began_s = self._none_before_s = 0.0
        """When the last checkpoint began, and when the next may begin, loop time."""

    def begin(self, state: State) -> PendingCheckpoint | None:
        """Begins a checkpoint of a state. Returns None during or soon after the last one, and if the fork fails."""
        now_s = asyncio.get_running_loop().time()
        if self._is_under_way or now_s < self._none_before_s:
            return None
        try:
            pending = self._store.begin(state)
        except OSError as error:
            logger().error("checkpoint_failed", partition=self._partition, reason=str(error.strerror))
            return None
        self._is_under_way = True
        self._child = pending
        self._began_s = now_s
        return pending

    def support(self, pending: PendingCheckpoint, footing: Footing) -> None:
        """Gives a checkpoint its footing, once every alert and all figures that it depends on are stored."""
        self._supported.put_nowait(_Supported(pending, footing))

    async def drop(self) -> None:
        """Drops the checkpoint that is under way, because its state is dropped."""
        if self._finishing:
            await asyncio.wait([self._finishing])
        if self._child:
            self._store.abandon(self._child)
        self._supported = asyncio.Queue()
        self._is_under_way = False
        self._child = None
        self._finishing = None

    async def run(self) -> None:
        """Makes each supported checkpoint valid, once its child has written it and its earlier outputs are verified as stored."""
        while True:
            pending, footing = await self._supported.get()
            try:
                await self._written(pending)
                while not self._published.is_verified:  # noqa: ASYNC110  # verified each second
                    await asyncio.sleep(CHECK_INTERVAL_S)
                self._finishing = asyncio.ensure_future(asyncio.to_thread(self._store.finish, pending, footing))
                await completed(self._finishing)
            except (CheckpointFailed, OSError) as error:
                # Decisions need no checkpoint, and the next one may succeed. Without any, a restart replays more.
                logger().error("checkpoint_failed", partition=self._partition, reason=str(error))
                await asyncio.to_thread(self._store.discard, pending)
            else:
                logger().info("checkpoint_written", partition=self._partition, sequence=pending.sequence)
            now_s = asyncio.get_running_loop().time()
            self._none_before_s = now_s + PAUSE_FACTOR * (now_s - self._began_s)
            self._is_under_way = False

    async def _written(self, pending: PendingCheckpoint) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while not self._store.is_written(pending):  # noqa: ASYNC110  # another process's work
                    await asyncio.sleep(CHECK_INTERVAL_S)
        except TimeoutError:
            self._store.abandon(pending)
            raise CheckpointFailed(f"the child took longer than {TIMEOUT_S:.0f} s") from None
        except asyncio.CancelledError:
            self._store.abandon(pending)
            raise
        finally:
            self._child = None


RETRY_DELAY_S = 0.25
T = TypeVar("T")


class RestoredState(NamedTuple):
    """A state from a checkpoint, and the checkpoint's footing."""

    state: State
    footing: Footing


async def newest_restored(
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
            await _require_footing(bus, published, partition, checkpoint=checkpoint)
        except StreamWentBack as error:
            cursors.alarm(bus, error)
            logger().error("checkpoint_dropped", partition=partition, sequence=state.sequence, stream=error.stream)
            store.drop(checkpoint)
            on_dropped(state)
            continue
        return RestoredState(state, checkpoint.footing)
    return None


async def _require_footing(bus: Bus, published: PublishedOutputs, partition: int, *, checkpoint: Checkpoint) -> None:
    entry = checkpoint.footing.entry
    await await_server(lambda: cursors.holds(bus, flow.log_stream(partition), entry))
    await await_server(lambda: published.require_footing(checkpoint.footing))


async def await_server(call: Callable[[], Awaitable[T]]) -> T:
    """The result of a call to a server that may be starting: retries it every RETRY_DELAY_S while it raises Unavailable."""
    return await retried(call, every(RETRY_DELAY_S), on=Unavailable, event="server_awaited", level=logging.INFO)


RECONNECT_CHECK_INTERVAL_S = 1.0
VERIFY_INTERVAL_S = 10.0
"""Interval of the check while the connection is open. In a cluster another server may lead a stream without a reconnect here."""


class _Acknowledged(NamedTuple):
    """Where and when a message was acknowledged."""

    stream: str
    reconnects: int
    """Number of reconnects at the acknowledgement."""


class PublishedOutputs:
    """The newest alert and the newest figures of a partition that the server acknowledged to this evaluator."""

    def __init__(self, bus: Bus, partition: int) -> None:
        self._bus, self._partition = bus, partition
        self._newest: dict[_Acknowledged, PublishedAlert] = {}
        """A message from before a reconnect stays here until it is verified, even if newer ones were stored since."""
        self._verified_at = bus.reconnects
        """Number of reconnects when the streams were last verified."""

    @property
    def is_verified(self) -> bool:
        """Whether the streams were verified over the present connection."""
        return self._verified_at == self._bus.reconnects

    def reset(self, footing: Footing | None) -> None:
        """Replaces the known messages with a checkpoint's footing. None: nothing is published yet."""
        self._newest = {_Acknowledged(stream, 0): stored for stream, stored in _by_stream(footing)} if footing else {}

    def note_stored(self, stream: str, alert_id: str, sequence: int) -> None:
        """Notes that the server stores a message, published by this evaluator or the other."""
        key, stored = _Acknowledged(stream, self._bus.reconnects), PublishedAlert(sequence, alert_id)
        self._newest[key] = max(self._newest.get(key, stored), stored)

    def newest(self, stream: str) -> PublishedAlert | None:
        """The newest message known to be stored in a stream."""
        return max((stored for key, stored in self._newest.items() if key.stream == stream), default=None)

    async def verify(self) -> None:
        """Verifies that the streams still hold the newest known messages. Raises StreamWentBack, Unavailable."""
        reconnects = self._bus.reconnects
        for key, stored in list(self._newest.items()):
            await self._require(key.stream, stored)
            if key.reconnects < reconnects:  # from now on the newest message of this connection covers this one
                del self._newest[key]
                self.note_stored(key.stream, stored.alert_id, stored.sequence)
        self._verified_at = reconnects

    async def require_footing(self, footing: Footing) -> None:
        """Verifies that the streams hold the messages of a checkpoint's footing. Raises StreamWentBack, Unavailable."""
        for stream, stored in _by_stream(footing):
            await self._require(stream, stored)

    async def watch(self) -> None:
        """Verifies the streams until cancelled. Raises StreamWentBack."""
        verified_s = 0.0
        while True:
            await asyncio.sleep(RECONNECT_CHECK_INTERVAL_S)
            now_s = asyncio.get_running_loop().time()
            if self.is_verified and now_s - verified_s < VERIFY_INTERVAL_S:
                continue
            try:
                await self.verify()
            except Unavailable:
                continue
            verified_s = now_s

    async def _require(self, stream: str, stored: PublishedAlert) -> None:
        message = await cursors.kept_at(self._bus, stream, stored.sequence)
        if message and message["subject"] != self._subject(stream, stored.alert_id):
            raise StreamWentBack(stream, stored.sequence, cursors.of_stored(message))

    def _subject(self, stream: str, alert_id: str) -> str:
        subject = flow.alert_subject if stream == flow.ALERTS.name else flow.measure_subject
        return subject(self._partition, alert_id)


def _by_stream(footing: Footing) -> list[tuple[str, PublishedAlert]]:
    both = ((flow.ALERTS.name, footing.alert), (flow.MEASURES.name, footing.measure))
    return [(stream, stored) for stream, stored in both if stored]
