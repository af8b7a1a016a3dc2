"""Verifies that an evaluator's published alerts and figures are still stored, since ALERTS and MEASURES can go back as the log can.

Nobody would republish an alert that was lost after its acknowledgement, because a checkpoint covers all acknowledged alerts. So the
evaluator looks up the newest message of each stream within a second of a reconnect, and every VERIFY_INTERVAL_S otherwise. Alerts
don't wait for this check; checkpoints do.

`services.common.messaging.lost_publications` serves publishers that have a database. It compares a record of each publication with
the stream and publishes the lost ones again. An evaluator has no such record, because the log holds the causes of all its outputs.
For an evaluator it is enough to notice one lost message. Its repair differs, too: it folds again from a checkpoint before the loss
(`recovery`).
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from services.common.messaging import cursors, flow
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamWentBack
from services.common.rpc.errors import Unavailable
from services.geofence.store import Footing, PublishedAlert

CHECK_INTERVAL_S = 1.0
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
            await asyncio.sleep(CHECK_INTERVAL_S)
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
