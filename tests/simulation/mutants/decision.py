"""Defects of the evaluators: what they fold, what they publish, and how they come back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from services.common.clock import wall_us
from services.geofence import consumer
from services.geofence.checkpoints import PublishedOutputs
from services.geofence.consumer import Evaluator
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.detectors import withheld_clearing
from services.geofence.domain.entries import Case, Entry, EquipmentReport
from services.geofence.own_entries import OwnEntries
from services.geofence.publisher import OutputPublisher
from services.geofence.store import CheckpointStore
from tests.simulation.mutants.replacing import nothing, replace

SLOW_S = 15.0
"""Delay of a slow evaluator, seconds: more than a judge allows."""


def _fold_with(step: Any) -> None:
    replace(consumer, "fold", SimpleNamespace(step=step))


def nobody_writes_ticks() -> None:
    """While nobody reports, nothing that depends on time alone is decided."""
    replace(OwnEntries, "tick", nothing)


def evaluators_decide_by_their_own_clocks() -> None:
    """The deadline on the wrong clock: an entry has the time of its reader."""

    def entry(sequence: int, _: int, body: Any) -> Entry:
        return Entry(sequence, wall_us() // 1000, body)

    replace(consumer, "Entry", entry)


def an_evaluator_folds_no_later_snapshots_of_a_case() -> None:
    """The first snapshot of a case stays in force."""

    def step(state: Any, entry: Any) -> Any:
        if isinstance(entry.body, Case) and entry.body.case_id in state.cases:
            state.sequence = entry.sequence
            return []
        return fold.step(state, entry)

    _fold_with(step)


def an_evaluator_folds_no_backfill() -> None:
    """Reports that come later than a minute are passed over."""

    def step(state: Any, entry: Any) -> Any:
        fix_ms = getattr(entry.body, "fix_times_ms", None)
        if fix_ms and max(fix_ms) < entry.stamp_ms - 60_000:
            state.sequence = entry.sequence
            return []
        return fold.step(state, entry)

    _fold_with(step)


def an_evaluator_folds_no_equipment_events() -> None:
    """Panic, tamper and battery events are passed over."""

    def step(state: Any, entry: Any) -> Any:
        if isinstance(entry.body, EquipmentReport):
            state.sequence = entry.sequence
            return []
        return fold.step(state, entry)

    _fold_with(step)


def the_last_alert_of_an_entry_is_not_published() -> None:
    """Off by one in a batch of alerts."""
    plain = OutputPublisher.put

    def put(self: OutputPublisher, outputs: Sequence[Any], entry: Any) -> bool:
        alerts = [output for output in outputs if isinstance(output, Alert)]
        kept = [output for output in outputs if len(alerts) < 2 or output is not alerts[-1]]
        return plain(self, kept, entry)

    replace(OutputPublisher, "put", put)


def an_evaluator_publishes_nothing() -> None:
    """One of the two evaluators folds and is silent, so that the mesh has lost its redundancy."""
    plain = OutputPublisher._publish_alert

    async def publish(self: OutputPublisher, *arguments: Any) -> None:
        if not self._delay_s:  # the backup of the two has a delay
            await plain(self, *arguments)

    replace(OutputPublisher, "_publish_alert", publish)


def alerts_are_published_late() -> None:
    """Work that can wait is done before an alert."""
    plain = OutputPublisher._publish_alert

    async def publish(self: OutputPublisher, *arguments: Any) -> None:
        await asyncio.sleep(SLOW_S)
        await plain(self, *arguments)

    replace(OutputPublisher, "_publish_alert", publish)


def checkpoints_do_not_wait_for_verification() -> None:
    """A checkpoint counts before the streams were verified over the new connection."""
    replace(PublishedOutputs, "is_verified", True)


def an_evaluator_restores_another_state() -> None:
    """A restored state forgets the newest fix of each device."""
    plain = Evaluator.restore

    async def restore(self: Evaluator) -> None:
        await plain(self)
        self.state.tracks.clear()

    replace(Evaluator, "restore", restore)


def drafts_of_checkpoints_are_not_dropped() -> None:
    """A draft of an earlier run stays, though its alerts may be unpublished."""
    replace(CheckpointStore, "drop_pending", lambda _self, _partition: None)


def an_evaluator_keeps_its_state_after_a_loss() -> None:
    """After the log went back, an evaluator keeps its state."""

    async def restore(self: Evaluator) -> None:
        if not self._is_restored:
            await plain(self)

    plain = Evaluator.restore
    replace(Evaluator, "restore", restore)


def late_reports_change_no_account() -> None:
    """The decision itself is wrong: reports that come later than 20 s change nothing."""
    plain = fold.step

    def step(state: Any, entry: Any) -> Any:
        times_ms = getattr(entry.body, "fix_times_ms", None)
        if times_ms and min(times_ms) < state.now_ms - 20_000:
            state.sequence = entry.sequence
            return []
        return plain(state, entry)

    replace(fold, "step", step)


def nobody_is_ever_near() -> None:
    """The decision itself is wrong: no ring is entered."""
    plain = fold.step

    def step(state: Any, entry: Any) -> Any:
        return [output for output in plain(state, entry) if getattr(output, "kind", None) is not AlertKind.RING_ENTERED]

    replace(fold, "step", step)


def a_jump_clears_a_ring() -> None:
    """The decision itself is wrong: a wearer who reports from far away has left."""
    replace(withheld_clearing, "implausible_departure_ms", lambda *_, **__: None)
    replace(withheld_clearing, "is_too_soon", lambda *_, **__: False)
