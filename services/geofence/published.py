"""Whether what an evaluator published is still there: ALERTS and MEASURES can go back, as the log can.

An alert that was acknowledged and is lost afterwards would be published by nobody, since checkpoints pass what was acknowledged. So the
newest of each stream is looked up within a second of a reconnect, whatever was stored since, and every few seconds anyhow. Alerts don't
wait for that; checkpoints do.
"""

from __future__ import annotations

import asyncio

from services.common.messaging import cursors, flow
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamWentBack
from services.common.rpc.errors import Unavailable
from services.geofence.store import Footing, PublishedAlert

CHECK_INTERVAL_S = 1.0
CHECK_ANYHOW_S = 10.0
"""How often the streams are asked while the connection stands: in a cluster another server may lead them without our noticing."""


class Published:
    """The newest alert and the newest figures that an evaluator knows to be stored, of one partition."""

    def __init__(self, bus: Bus, partition: int) -> None:
        self._bus, self._partition = bus, partition
        self._newest: dict[tuple[str, int], PublishedAlert] = {}
        """By stream, and by how often the connection had been made again when it was known: what was known before a reconnect stays
        here until it is compared, whatever is stored since."""
        self._compared_at = bus.reconnects
        """How often the connection had been made again when the streams were last compared."""

    @property
    def is_compared(self) -> bool:
        """Whether the streams were compared over the connection that there is now."""
        return self._compared_at == self._bus.reconnects

    def begin_with(self, footing: Footing | None) -> None:
        """What a checkpoint rests on, and no more; None: nothing is published yet."""
        self._newest = {(stream, 0): stored for stream, stored in _by_stream(footing)} if footing else {}

    def stored(self, stream: str, alert_id: str, sequence: int) -> None:
        """Notes what the server has, by this evaluator or the other."""
        key, stored = (stream, self._bus.reconnects), PublishedAlert(sequence, alert_id)
        self._newest[key] = max(self._newest.get(key, stored), stored)

    def newest(self, stream: str) -> PublishedAlert | None:
        """The newest that is stored in a stream."""
        return max((stored for (of, _), stored in self._newest.items() if of == stream), default=None)

    async def compare(self) -> None:
        """Looks whether the streams still have what they had. Raises StreamWentBack, Unavailable."""
        reconnects = self._bus.reconnects
        for key, stored in list(self._newest.items()):
            await self._require(key[0], stored)
            if key[1] < reconnects:  # from now on the newest of this connection speaks for it
                del self._newest[key]
                self.stored(key[0], stored.alert_id, stored.sequence)
        self._compared_at = reconnects

    async def require(self, footing: Footing) -> None:
        """Looks whether the streams have what a checkpoint rests on. Raises StreamWentBack, Unavailable."""
        for stream, stored in _by_stream(footing):
            await self._require(stream, stored)

    async def watch(self) -> None:
        """Compares for ever. Raises StreamWentBack."""
        compared_s = 0.0
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            now_s = asyncio.get_running_loop().time()
            if self.is_compared and now_s - compared_s < CHECK_ANYHOW_S:
                continue
            try:
                await self.compare()
            except Unavailable:
                continue
            compared_s = now_s

    async def _require(self, stream: str, stored: PublishedAlert) -> None:
        found = await cursors.kept_at(self._bus, stream, stored.sequence)
        if found and found["subject"] != self._subject(stream, stored.alert_id):
            raise StreamWentBack(stream, stored.sequence, cursors.of_stored(found))

    def _subject(self, stream: str, alert_id: str) -> str:
        subject = flow.alert_subject if stream == flow.ALERTS.name else flow.measure_subject
        return subject(self._partition, alert_id)


def _by_stream(footing: Footing) -> list[tuple[str, PublishedAlert]]:
    both = ((flow.ALERTS.name, footing.alert), (flow.MEASURES.name, footing.figures))
    return [(stream, stored) for stream, stored in both if stored]
