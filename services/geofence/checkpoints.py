"""Keeps the checkpoints of one partition: one at a time is begun, written by a child process, and made valid.

A checkpoint becomes valid only once every alert and all figures before it are stored and verified (`outputs`), so recovery never skips
an unpublished alert.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from services.common.observability.telemetry import logger
from services.common.running import completed
from services.geofence.domain.state import State
from services.geofence.outputs.published import PublishedOutputs
from services.geofence.store import CheckpointFailed, CheckpointStore, Footing, PendingCheckpoint

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
        self._store, self._published, self._partition = store, published, partition
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
        self._is_under_way, self._child, self._began_s = True, pending, now_s
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
        self._is_under_way, self._child, self._finishing = False, None, None

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
