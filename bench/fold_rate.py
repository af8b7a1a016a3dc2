"""How fast the fold alone is: entries as they stand in the log, decoded and applied, without a server."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

from bench import machine
from bench.crowd import EVERY_MS, Crowd
from services.geofence import translate
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.entries import Body, Entry
from services.geofence.domain.state import State

STARTS_MS = 1_790_000_000_000
WARM_UP_TURNS = 3
DEVICES_MOST = 60_000
"""Report in one turn that is measured; of a larger crowd the others don't."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What the fold of one crowd gave."""

    reports_per_s: float
    """A second of processor time: median of the turns."""
    alerts: int
    state_bytes_per_device: float


class Folder:
    """The partitions of one crowd, folded in this process."""

    def __init__(self, crowd: Crowd, partitions: int) -> None:
        self.crowd, self.partitions = crowd, partitions
        self.states = [State(one, "bench") for one in range(partitions)]
        self.alerts = 0
        devices = min(crowd.devices, DEVICES_MOST)
        self.reporting = range(devices - devices % (1 + crowd.orders))

    def open(self) -> None:
        """Enters all cases."""
        for wearer in range(self.crowd.wearers):
            partition = self.crowd.partition(wearer * (1 + self.crowd.orders), self.partitions)
            for case in self.crowd.cases(wearer, STARTS_MS - EVERY_MS):
                self._step(partition, STARTS_MS, translate.case_of(case))

    def turn(self, number: int) -> tuple[int, float]:
        """Everybody reports once: how many reports, and processor time in seconds."""
        entries = list(self.crowd.batches(number, STARTS_MS, self.reporting, self.partitions))
        began = time.process_time()
        for now_ms, partition, data in entries:
            self._step(partition, now_ms, translate.entry_body(data))
        return len(self.reporting), time.process_time() - began

    def _step(self, partition: int, now_ms: int, body: Body) -> None:
        state = self.states[partition]
        outputs = fold.step(state, Entry(state.sequence + 1, now_ms, body))
        self.alerts += sum(isinstance(one, Alert) for one in outputs)


def measure(crowd: Crowd, partitions: int, turns: int) -> Rate:
    """Folds so many turns after a warm-up."""
    before_mib = machine.resident_mib() or 0.0
    one = Folder(crowd, partitions)
    one.open()
    for number in range(WARM_UP_TURNS):
        one.turn(number)
    gc.collect()
    gc.freeze()  # as the evaluator does: what is kept isn't looked through again
    grown_mib = (machine.resident_mib() or 0.0) - before_mib
    try:
        rates = list(_rates(one, turns))
    finally:
        gc.unfreeze()
    return Rate(statistics.median(rates), one.alerts, grown_mib * (1 << 20) / crowd.devices)


def _rates(one: Folder, turns: int) -> Iterator[float]:
    for number in range(WARM_UP_TURNS, WARM_UP_TURNS + turns):
        reports, took_s = one.turn(number)
        yield reports / took_s
