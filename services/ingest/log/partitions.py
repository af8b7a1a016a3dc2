"""Writes the accepted reports of a batch to each partition that needs them: live reports to one lane, buffered ones to another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from services.common.clock import MeshClock, wall_us
from services.ingest.admission.checks import Checked, RoutedPositions
from services.ingest.admission.routes import Partitions
from services.ingest.batch import Batch
from services.ingest.domain import LIVE_MS
from services.ingest.log.writer import LogWriter, Origin


class Lane(NamedTuple):
    """The partitions that need a position, and whether the position is buffered."""

    partitions: Partitions
    is_backfill: bool


class LogWriters:
    """The log writers of all partitions."""

    def __init__(self, writers: Mapping[int, LogWriter], clock: MeshClock) -> None:
        self._writers, self._clock = writers, clock

    def write(self, batch: Batch, sender: str, checked: Checked, *, is_backfill: bool) -> None:
        """Queues the accepted reports of a batch. The writers note in the batch whether each entry was stored.

        Call it after all checks, so that a failed look-up leaves no batch half written. `sender` is the key by which senders take turns
        in the queues.
        """
        origin = Origin(batch, sender, wall_us())
        for lane, positions in self._lanes(checked.positions, is_backfill):
            for partition in lane.partitions:
                self._writers[partition].positions(
                    origin, positions.columns, contexts=positions.contexts, backfill=lane.is_backfill
                )
        for event, partitions in checked.events:
            for partition in partitions:
                self._writers[partition].equipment(origin, event)
        for presence, partitions in checked.presences:
            for partition in partitions:
                self._writers[partition].presence(origin, presence)
        for heard in (*checked.heard, *checked.contacts):
            for partition in heard.partitions:
                self._writers[partition].heard(origin, heard.device_id, heard.report_id)

    def _lanes(self, positions: RoutedPositions, is_backfill: bool) -> Iterator[tuple[Lane, RoutedPositions]]:
        """Yields the positions of each lane. Nearly always all positions share one lane."""
        times_ms, routes = positions.columns.fix_times_ms, positions.partitions
        if not times_ms:
            return
        live_from_ms = self._clock.now_ms() - LIVE_MS
        all_late = is_backfill or max(times_ms) < live_from_ms
        if routes.count(routes[0]) == len(routes) and (all_late or min(times_ms) >= live_from_ms):
            yield Lane(routes[0], all_late), positions
            return
        lanes: dict[Lane, list[int]] = {}
        for i, partitions in enumerate(routes):
            lanes.setdefault(Lane(partitions, is_backfill or times_ms[i] < live_from_ms), []).append(i)
        for lane, rows in lanes.items():
            yield lane, positions.only(rows)
