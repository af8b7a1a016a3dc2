"""Entries that an evaluator itself writes to the log of its partition: its fold version, and ticks while the log is idle.

The log keeps its entries for days only, and the fold needs the version: it asks tags for reports only if the log demands a version that
does so. So the version is written again each day.

Both evaluators of a partition write these entries. Equal entries have the same message id, so that the log stores only one of them.
"""

from __future__ import annotations

from contextlib import suppress

from services.common.messaging import flow
from services.common.messaging.bus import AlreadyStored, Bus
from services.common.rpc.errors import RetryableError
from services.geofence import recovery, translate
from services.geofence.domain.state import State
from services.geofence.domain.version import VERSION
from tandem.common.v1 import log_pb2

DAY_MS = 86_400_000

_THIS_VERSION = log_pb2.LogEntry(fold_version=log_pb2.FoldVersion(version=VERSION)).SerializeToString()
_TICK = log_pb2.LogEntry(tick=log_pb2.Tick()).SerializeToString()


class OwnEntries:
    """Writes one evaluator's own entries to the log of its partition."""

    def __init__(self, bus: Bus, partition: int) -> None:
        self._bus, self._partition = bus, partition

    async def require_this_version(self) -> None:
        """Writes this fold version to the log, so that older folds stop, unless the log has it already."""
        subject = flow.log_subject(self._partition, "fold")
        last = await recovery.await_server(lambda: self._bus.last_of(flow.log_stream(self._partition), subject))
        if last is None or translate.fold_version_of(last) < VERSION:
            await self._bus.publish_until_stored(subject, _THIS_VERSION, msg_id=f"fold-{self._partition}-{VERSION}")

    async def keep_version(self, state: State) -> None:
        """Writes this fold version again a day after the log last demanded one. `state` has caught up with the log.

        Does nothing without a server.
        """
        since_ms = state.log_version_ms
        if since_ms is not None and state.now_ms - since_ms >= DAY_MS:
            with suppress(RetryableError):
                subject = flow.log_subject(self._partition, "fold")
                await self._bus.publish(subject, _THIS_VERSION, msg_id=f"fold-{self._partition}-{VERSION}-{since_ms}")

    async def tick(self, sequence: int) -> None:
        """Writes an empty entry after the log's last one, at `sequence`. Does nothing without a server."""
        with suppress(
            RetryableError, AlreadyStored
        ):  # without the log there is nothing to decide; the next tick retries
            await self._bus.publish(
                flow.log_subject(self._partition, "tick"), _TICK, msg_id=f"tick-{self._partition}-{sequence}"
            )
